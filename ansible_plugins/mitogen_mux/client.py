"""A small blocking gRPC client on h2, for one UNIX socket. It knows nothing of Ansible.

grpcio would cost every ansible-playbook 90 to 280 ms to import and every forked worker 10 ms more, and it must never have a live
channel across a fork. This one has no thread, opens its connection at the first call, and gives one call at a time. Where it waits for the
daemon, a worker thread of the run gives the baton away."""

from __future__ import annotations

import base64
import collections
import contextlib
import os
import select
import socket
import struct
import time
import typing as t
import urllib.parse

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from google.protobuf.message import DecodeError, Message

from . import baton
from .v1 import error_pb2

Reply = t.TypeVar('Reply', bound=Message)

OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE = 0, 1, 2, 4, 13, 14

MAX_MESSAGE = 4 << 20
"""Longest reply that is accepted, in bytes; the daemon keeps its messages far below."""

WINDOW = 1 << 20
"""Bytes that the daemon may send ahead on one call."""

MAX_FRAME = 1 << 18

_FRAME_HEADER, _GOAWAY = 9, 7
"""RFC 9113, 4.1 and 6.8."""


class RpcError(Exception):
    """A call ended with a status other than OK. ``detail`` is the daemon's typed error, if it sent one."""

    def __init__(self, code: int, message: str, detail: error_pb2.Error | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail
        self.answers: list[t.Any] = []
        """What the request's steps gave before: one each, None for those without."""

    @property
    def kind(self) -> int:
        """The ``Error.Kind``; 0 if the daemon sent none."""
        return self.detail.kind if self.detail is not None else 0

    def at(self) -> int | None:
        """The number of the step that failed; None if the daemon did not say."""
        return self.detail.step if self.detail is not None else None


class NotSent(RpcError):
    """The daemon could not be reached, or ended before it began with the call: nothing of it was run."""


class Client:
    """Calls to the daemon behind one UNIX socket. For one thread, and for the process that made it: a client that finds itself in a
    forked child raises RuntimeError, for the bytes of two processes must never mix on one connection."""

    def __init__(self, path: str, connect_timeout: float = 10.0) -> None:
        self.path = path
        self._connect_timeout = connect_timeout
        self._pid = os.getpid()
        self._wire: _Wire | None = None

    def close(self) -> None:
        """Closes the connection; a call under way is thereby cancelled in the daemon."""
        if self._wire is not None:
            self._wire.sock.close()
        self._wire = None

    def unary(self, method: str, request: Message, reply_type: type[Reply], timeout: float | None = None) -> Reply:
        """Calls ``/service/Method``. ``timeout`` in seconds. Raises RpcError."""
        replies = list(self.stream(method, (request,), reply_type, timeout))
        if len(replies) != 1:
            raise RpcError(INTERNAL, f'{method}: {len(replies)} replies where one was due')
        return replies[0]

    def stream(
        self, method: str, requests: t.Iterable[Message], reply_type: type[Reply], timeout: float | None = None, ahead: bool = False
    ) -> t.Generator[Reply]:
        """Sends the requests, yields the replies as they come. Leaving the iterator early, by whatever exception, cancels the call. ``ahead``: a
        thread that is ahead waits for its turn only before the replies."""
        if os.getpid() != self._pid:
            raise RuntimeError('a client of the mitogen-mux daemon was used after a fork')
        if not ahead:
            baton.turn()
        call = _Call(self._connect(), method, timeout)
        done = False
        try:
            call.send_headers()
            for request in requests:
                for message in call.send_message(request.SerializeToString()):
                    yield _parse(reply_type, message)
                if call.ended:
                    break
            call.end_requests()
            baton.turn()
            for message in call.replies():
                yield _parse(reply_type, message)
            call.check_status()
            done = True
        except (OSError, h2.exceptions.ProtocolError) as error:
            if isinstance(error, TimeoutError):
                raise RpcError(DEADLINE_EXCEEDED, f'the mitogen-mux daemon did not answer within {timeout:g} s') from None
            lost = RpcError if call.may_have_begun() else NotSent
            raise lost(UNAVAILABLE, f'the connection to the mitogen-mux daemon was lost: {error}') from None
        except RpcError:
            done = call.ended
            raise
        finally:
            if not done:
                self.close()

    def _connect(self) -> _Wire:
        if self._wire is not None:
            if self._wire.stands():
                return self._wire
            self.close()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._connect_timeout)
            sock.connect(self.path)  # with the baton: it never waits, and whoever got the baton might keep it while the request has not left
            sock.setblocking(False)
            config = h2.config.H2Configuration(
                client_side=True, header_encoding='utf-8', validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
            )
            conn = h2.connection.H2Connection(config=config)
            conn.local_settings = h2.settings.Settings(
                client=True,
                initial_values={
                    h2.settings.SettingCodes.ENABLE_PUSH: 0,
                    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                    h2.settings.SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
                },
            )
            conn.max_inbound_frame_size = conn.local_settings.max_frame_size
            conn.initiate_connection()
            conn.increment_flow_control_window(WINDOW)
            # The preface leaves with the first call's headers: one write.
        except OSError as error:
            sock.close()
            raise NotSent(UNAVAILABLE, f'cannot connect to the mitogen-mux daemon at {self.path}: {error.strerror or error}') from None
        except BaseException:
            sock.close()
            raise
        self._wire = _Wire(sock, conn)
        return self._wire


class _Wire:
    """A connection."""

    def __init__(self, sock: socket.socket, conn: h2.connection.H2Connection) -> None:
        self.sock = sock
        self.h2 = conn
        self.heard = False
        """Whether the daemon has ever said anything on it."""
        self.last: int | None = None
        """The last call that a daemon that is leaving sees to; None: it is not leaving."""
        self._rest = b''

    def stands(self) -> bool:
        """Whether it will carry another call, after what the daemon has said since the last one."""
        try:
            while self.last is None:
                if self.receive() is None:
                    return True
        except (OSError, h2.exceptions.ProtocolError):
            pass
        return False

    def send(self, data: memoryview) -> int:
        """How many bytes have left: none if the daemon has to read first."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> list[h2.events.Event] | None:
        """What the daemon says; None: nothing yet. Raises ConnectionResetError if it never will say anything."""
        try:
            data = self.sock.recv(1 << 17)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError('the daemon closed it')
        self.heard = True
        return self.h2.receive_data(self._without_goodbye(data))

    def _without_goodbye(self, data: bytes) -> bytes:
        """Takes GOAWAY frames out: after one h2 takes the connection for closed, while the calls that it leaves go on (RFC 9113, 6.8)."""
        data, passed, start, end = self._rest + data, b'', 0, 0
        while len(data) - end >= _FRAME_HEADER:
            length, kind = int.from_bytes(data[end : end + 3], 'big'), data[end + 3]
            if length > MAX_FRAME:
                raise h2.exceptions.FrameTooLargeError
            if len(data) - end < _FRAME_HEADER + length:
                break
            if kind == _GOAWAY and length >= 4:
                passed += data[start:end]
                self.last = int.from_bytes(data[end + _FRAME_HEADER : end + _FRAME_HEADER + 4], 'big') & 0x7FFFFFFF
                start = end + _FRAME_HEADER + length
            end += _FRAME_HEADER + length
        self._rest = data[end:]
        return passed + data[start:end]


class _Call:
    """One call on a connection: h2 stream, deadline, messages received so far."""

    def __init__(self, wire: _Wire, method: str, timeout: float | None) -> None:
        self._wire = wire
        self._sock, self._h2 = wire.sock, wire.h2
        self._method = method
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._id = self._h2.get_next_available_stream_id()
        self._buffer = bytearray()
        self._messages: collections.deque[bytes] = collections.deque()
        self._headers: dict[str, str] = {}
        self._left = False
        self.ended = False

    def may_have_begun(self) -> bool:
        """Whether the daemon may have taken the call up. Before it looks at what a new connection brings it sends its own preface (RFC 9113, 3.4;
        grpc-go's NewServerTransport): one that says nothing at all has ended first, as a connection in the backlog of a killed daemon does."""
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            if not self._wire.heard:
                self._wire.receive()  # what it said before it ended
        return self._left and self._wire.heard and not self._refused()

    def _refused(self) -> bool:
        return self._wire.last is not None and self._id > self._wire.last

    def send_headers(self) -> None:
        headers = [
            (':method', 'POST'),
            (':scheme', 'http'),
            (':path', self._method),
            (':authority', 'localhost'),
            ('content-type', 'application/grpc'),
            ('te', 'trailers'),
        ]
        if self._timeout is not None:
            headers.append(('grpc-timeout', f'{max(1, int(self._timeout * 1000))}m'))
        self._h2.send_headers(self._id, headers)

    def send_message(self, body: bytes) -> t.Iterator[bytes]:
        """Sends one message; yields replies that arrive while it waits for the daemon to take it."""
        view = memoryview(struct.pack('>BI', 0, len(body)) + body)
        while len(view) and not self.ended:
            room = min(self._h2.local_flow_control_window(self._id), self._h2.max_outbound_frame_size, len(view))
            if room <= 0:
                self._receive()
                yield from self._drain()
                continue
            self._h2.send_data(self._id, view[:room].tobytes())
            view = view[room:]
            if len(view):
                self._flush()

    def end_requests(self) -> None:
        if not self.ended:
            self._h2.end_stream(self._id)
        self._flush()

    def replies(self) -> t.Iterator[bytes]:
        yield from self._drain()
        while not self.ended:
            self._receive()
            yield from self._drain()

    def check_status(self) -> None:
        """Raises RpcError unless the trailers say OK."""
        status = int(self._headers.get('grpc-status', UNKNOWN))
        if status == OK:
            return
        message = urllib.parse.unquote(self._headers.get('grpc-message', ''))
        raise RpcError(status, message or f'{self._method} failed with status {status}', _detail(self._headers.get('grpc-status-details-bin')))

    def _drain(self) -> t.Iterator[bytes]:
        while self._messages:
            yield self._messages.popleft()

    def _flush(self) -> None:
        data = memoryview(self._h2.data_to_send())
        while data:
            if sent := self._wire.send(data):
                data = data[sent:]
                self._left = True
            else:
                self._wait(select.POLLOUT)

    def _receive(self) -> None:
        self._flush()
        while (events := self._wire.receive()) is None:
            self._wait(select.POLLIN)  # whatever interrupts this has nothing to do with an error, which the core would show
        for event in events:
            self._handle(event)
        if self._refused() and not self.ended:
            raise ConnectionResetError('the daemon is leaving')
        self._flush()

    def _wait(self, what: int) -> None:
        """Waits for the socket until the deadline. The daemon ends the call by the same deadline: give it a moment to say so."""
        left = None
        if self._deadline is not None:
            left = self._deadline + 1.0 - time.monotonic()
            if left <= 0:
                raise TimeoutError
        poll = select.poll()
        poll.register(self._sock, what)
        with baton.waiting(self._interrupt):
            poll.poll(None if left is None else left * 1000)

    def _interrupt(self) -> None:
        """Ends the wait, from another thread."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def _handle(self, event: h2.events.Event) -> None:
        if getattr(event, 'stream_id', None) != self._id:
            return
        if isinstance(event, h2.events.DataReceived):
            self._buffer += event.data
            if event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, self._id)
            self._split()
        elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            self._headers.update((_text(name), _text(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.ended = True
            if 'grpc-status' not in self._headers and event.error_code != h2.errors.ErrorCodes.NO_ERROR:
                code = CANCELLED if event.error_code == h2.errors.ErrorCodes.CANCEL else UNAVAILABLE
                raise RpcError(code, f'the mitogen-mux daemon gave up {self._method}')

    def _split(self) -> None:
        while len(self._buffer) >= 5:
            compressed, length = struct.unpack_from('>BI', self._buffer)
            if compressed or length > MAX_MESSAGE:
                raise RpcError(INTERNAL, f'{self._method}: the reply is not one of this protocol')
            if len(self._buffer) < 5 + length:
                return
            self._messages.append(bytes(self._buffer[5 : 5 + length]))
            del self._buffer[: 5 + length]


def _text(value: str | bytes | None) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value or ''


def _parse(reply_type: type[Reply], body: bytes) -> Reply:
    try:
        return reply_type.FromString(body)
    except DecodeError as error:
        raise RpcError(INTERNAL, f'the reply is no {reply_type.__name__}: {error}') from None


def _detail(header: str | None) -> error_pb2.Error | None:
    """Reads the daemon's Error out of ``grpc-status-details-bin``; a detail of another type, or a broken one, is None."""
    if not header:
        return None
    try:
        status = error_pb2.RpcStatus.FromString(base64.b64decode(header + '=' * (-len(header) % 4)))
        for item in status.details:
            detail = error_pb2.Error()
            if item.Unpack(detail):
                return detail
    except (ValueError, DecodeError):
        pass
    return None
