"""The client on h2 against a grpcio server, with grpcio's own client as the oracle: one suite, both clients."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pathlib
import socket
import threading
import time
import typing as t

import h2.connection
import pytest

grpc = pytest.importorskip('grpc', reason='grpcio, the oracle, is not installed')

from concurrent import futures  # noqa: E402

from mitogen_mux import baton  # noqa: E402
from mitogen_mux import client as client_module  # noqa: E402
from mitogen_mux.client import Client, NotSent, RpcError  # noqa: E402
from mitogen_mux.v1 import error_pb2, jobs_pb2  # noqa: E402

RUN = '/test.Service/Run'
FAIL = '/test.Service/Fail'
HANG = '/test.Service/Hang'
ABSENT = '/test.Service/Absent'


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Run answers each body with its data and ends with their number; Fail carries a typed detail; Hang waits to be cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.asked = threading.Event()

    def service(self, details: t.Any) -> t.Any:
        name = details.method.rpartition('/')[2]
        handler = {'Run': self.run, 'Fail': self.fail, 'Hang': self.hang}.get(name)
        return handler and grpc.stream_stream_rpc_method_handler(handler, jobs_pb2.RunRequest.FromString, jobs_pb2.RunReply.SerializeToString)

    def run(self, requests: t.Iterator[jobs_pb2.RunRequest], context: t.Any) -> t.Iterator[jobs_pb2.RunReply]:
        count = 0
        for request in requests:
            self.asked.set()
            count += 1
            yield jobs_pb2.RunReply(output=jobs_pb2.Output(stdout=request.body.data))
        yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(rc=count))

    def fail(self, requests: t.Iterator[jobs_pb2.RunRequest], context: t.Any) -> t.Iterator[jobs_pb2.RunReply]:
        status = error_pb2.RpcStatus(code=9, message='nö 100 %')
        status.details.add().Pack(error_pb2.Error(kind=error_pb2.Error.HOST_KEY_UNKNOWN, host='h1', message='nö'))
        context.set_trailing_metadata((('grpc-status-details-bin', status.SerializeToString()),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'nö 100 %')
        yield jobs_pb2.RunReply()

    def hang(self, requests: t.Iterator[jobs_pb2.RunRequest], context: t.Any) -> t.Iterator[jobs_pb2.RunReply]:
        context.add_callback(self.cancelled.set)
        yield jobs_pb2.RunReply(log=jobs_pb2.Log(text='begun'))
        self.cancelled.wait(30)


@dataclasses.dataclass
class Outcome:
    replies: list[jobs_pb2.RunReply]
    code: int
    message: str = ''
    kind: int = 0


Caller = t.Callable[[str, t.Iterable[jobs_pb2.RunRequest], float | None], Outcome]


def with_h2(path: str) -> Caller:
    client = Client(path)

    def call(method: str, requests: t.Iterable[jobs_pb2.RunRequest], timeout: float | None) -> Outcome:
        replies = []
        try:
            for reply in client.stream(method, requests, jobs_pb2.RunReply, timeout):
                replies.append(reply)
        except RpcError as error:
            return Outcome(replies, error.code, error.message, error.kind)
        return Outcome(replies, 0)

    return call


def with_grpcio(path: str) -> Caller:
    channel = grpc.insecure_channel(f'unix:{path}')

    def call(method: str, requests: t.Iterable[jobs_pb2.RunRequest], timeout: float | None) -> Outcome:
        stub = channel.stream_stream(method, jobs_pb2.RunRequest.SerializeToString, jobs_pb2.RunReply.FromString)
        replies = []
        stream = stub(iter(requests), timeout=timeout)
        try:
            for reply in stream:
                replies.append(reply)
        except grpc.RpcError as error:
            packed = dict(error.trailing_metadata() or ()).get('grpc-status-details-bin', b'')
            detail = error_pb2.Error()
            for item in error_pb2.RpcStatus.FromString(packed).details:
                item.Unpack(detail)
            return Outcome(replies, error.code().value[0], error.details(), detail.kind)
        return Outcome(replies, 0)

    return call


def serve(path: str, handler: Service) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f'unix:{path}')
    server.start()
    return server


@pytest.fixture
def handler() -> Service:
    return Service()


@pytest.fixture
def server(tmp_path: pathlib.Path, handler: Service) -> t.Iterator[grpc.Server]:
    server = serve(str(tmp_path / 's'), handler)
    yield server
    handler.cancelled.set()
    server.stop(0).wait()


@pytest.fixture
def service(tmp_path: pathlib.Path, handler: Service, server: grpc.Server) -> tuple[Service, str]:
    return handler, str(tmp_path / 's')


@pytest.fixture(params=[with_h2, with_grpcio], ids=['h2', 'grpcio'])
def call(request: pytest.FixtureRequest, service: tuple[Service, str]) -> Caller:
    return t.cast(Caller, request.param(service[1]))


def bodies(count: int, size: int) -> t.Iterator[jobs_pb2.RunRequest]:
    for number in range(count):
        yield jobs_pb2.RunRequest(body=jobs_pb2.Body(data=bytes([number % 256]) * size))


@pytest.mark.parametrize(('count', 'size'), [(0, 0), (1, 0), (1, 1), (3, 16383), (3, 16384), (1, 65535), (1, 65536), (200, 131072)])
def test_bodies_come_back(call: Caller, count: int, size: int) -> None:
    outcome = call(RUN, bodies(count, size), None)
    assert (outcome.code, outcome.replies[-1].result.rc) == (0, count)
    assert [reply.output.stdout for reply in outcome.replies[:-1]] == [request.body.data for request in bodies(count, size)]


def test_calls_follow_each_other(call: Caller) -> None:
    for count in (0, 2, 1):
        assert call(RUN, bodies(count, 9), 30).replies[-1].result.rc == count
        assert call(FAIL, (), 30).code == 9


@pytest.mark.parametrize(('method', 'code', 'kind'), [(FAIL, 9, error_pb2.Error.HOST_KEY_UNKNOWN), (ABSENT, 12, 0)])
def test_errors(call: Caller, method: str, code: int, kind: int) -> None:
    outcome = call(method, bodies(1, 10), None)
    assert (outcome.code, outcome.kind) == (code, kind)
    if method == FAIL:
        assert outcome.message == 'nö 100 %'


def test_deadline(call: Caller) -> None:
    outcome = call(HANG, (), 0.2)
    assert outcome.code == client_module.DEADLINE_EXCEEDED
    assert outcome.replies[0].log.text == 'begun'


def test_leaving_early_cancels(service: tuple[Service, str]) -> None:
    handler, path = service
    client = Client(path)
    for reply in client.stream(HANG, (), jobs_pb2.RunReply):
        assert reply.log.text == 'begun'
        break
    gc.collect()
    assert handler.cancelled.wait(10)
    assert list(client.stream(RUN, (), jobs_pb2.RunReply))[-1].result.rc == 0


def test_no_daemon(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotSent) as caught:
        list(Client(str(tmp_path / 'none')).stream(RUN, (), jobs_pb2.RunReply))
    assert 'none' in caught.value.message


@pytest.mark.parametrize('taken', [False, True])
def test_a_daemon_that_ends_without_a_word_has_begun_nothing(tmp_path: pathlib.Path, taken: bool) -> None:
    """One that is killed takes connections until its last moment."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 's'))
        listener.listen(1)

        def requests() -> t.Iterator[jobs_pb2.RunRequest]:
            if taken:
                listener.accept()[0].close()
            yield from bodies(1, 10)
            listener.close()

        with pytest.raises(NotSent):
            list(Client(str(tmp_path / 's')).stream(RUN, requests(), jobs_pb2.RunReply))


def served_once(path: str, client: Client) -> grpc.Server:
    server = serve(path, Service())
    assert len(list(client.stream(RUN, bodies(1, 10), jobs_pb2.RunReply))) == 2
    return server


def test_a_connection_that_has_ended_meanwhile_is_not_used(tmp_path: pathlib.Path) -> None:
    """As after a daemon that was killed between two tasks."""
    client = Client(str(tmp_path / 's'))
    served_once(client.path, client).stop(0).wait()
    served_once(client.path, client).stop(0).wait()


def test_a_connection_that_ends_before_the_call_leaves_carries_nothing(tmp_path: pathlib.Path) -> None:
    client = Client(str(tmp_path / 's'))
    server = served_once(client.path, client)

    def requests() -> t.Iterator[jobs_pb2.RunRequest]:
        server.stop(0).wait()
        assert client._wire is not None
        while client._wire.stands():
            time.sleep(0.01)
        yield from bodies(1, 10)

    with pytest.raises(NotSent):
        list(client.stream(RUN, requests(), jobs_pb2.RunReply))


def test_a_daemon_that_is_leaving_answers_what_it_was_asked(service: tuple[Service, str], server: grpc.Server) -> None:
    """And nothing else: what is asked later never gets to it."""
    handler, path = service
    client, idle = Client(path), Client(path)
    list(idle.stream(RUN, (), jobs_pb2.RunReply))
    replies = client.stream(HANG, (), jobs_pb2.RunReply)
    assert next(replies).log.text == 'begun'
    stopped = server.stop(60)
    assert idle._wire is not None and client._wire is not None
    while idle._wire.stands():
        time.sleep(0.01)
    with pytest.raises(NotSent):
        list(idle.stream(RUN, (), jobs_pb2.RunReply))
    handler.cancelled.set()
    assert list(replies) == []
    assert client._wire.last is not None, 'it has said that it is leaving'
    with pytest.raises(NotSent):
        list(client.stream(RUN, (), jobs_pb2.RunReply))
    stopped.wait()


GOODBYE = bytes([0, 0, 8, 7, 0, 0, 0, 0, 0])
"""The header of a GOAWAY frame (RFC 9113, 6.8)."""
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b'12345678'


@pytest.mark.parametrize('ends', [False, True])
@pytest.mark.parametrize('cut', range(len(SETTINGS + GOODBYE + PING) + 8))
def test_a_goodbye_is_read_wherever_it_is_cut(cut: int, ends: bool) -> None:
    ours, daemons = socket.socketpair()
    with ours, daemons:
        conn = h2.connection.H2Connection()
        conn.initiate_connection()
        conn.clear_outbound_data_buffer()
        wire = client_module._Wire(ours, conn)
        ours.setblocking(False)
        said = SETTINGS + GOODBYE + b'\x80\0\0\x05' + b'\0\0\0\0' + PING
        events = []
        for part in (said[:cut], said[cut:]):
            daemons.sendall(part)
            if part:
                events += wire.receive() or []
        assert [type(event).__name__ for event in events] == ['RemoteSettingsChanged', 'PingReceived']
        assert wire.last == 5
        if ends:
            daemons.close()
        assert not wire.stands()


@pytest.mark.parametrize(('last', 'begun'), [(0, False), (1, True)])
def test_what_a_goodbye_leaves_out_has_not_begun(tmp_path: pathlib.Path, last: int, begun: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 's'))
        listener.listen(1)

        def leave() -> None:
            with listener.accept()[0] as daemons:
                daemons.recv(65536)
                daemons.sendall(SETTINGS + GOODBYE + bytes([0, 0, 0, last]) + b'\0\0\0\0')

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(RpcError) as caught:
            list(Client(str(tmp_path / 's')).stream(RUN, bodies(1, 10), jobs_pb2.RunReply))
        thread.join(10)
        assert isinstance(caught.value, NotSent) != begun


def test_what_a_daemon_has_said_counts_where_it_does_not_listen(tmp_path: pathlib.Path) -> None:
    """The call is longer than what it reads of it before it ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 's'))
        listener.listen(1)

        def end() -> None:
            with listener.accept()[0] as daemons:
                daemons.sendall(SETTINGS)
                daemons.recv(10000)

        thread = threading.Thread(target=end)
        thread.start()

        def requests() -> t.Iterator[jobs_pb2.RunRequest]:
            yield from bodies(1, 40000)
            thread.join(10)

        with pytest.raises(RpcError) as caught:
            list(Client(str(tmp_path / 's')).stream(RUN, requests(), jobs_pb2.RunReply))
        assert not isinstance(caught.value, NotSent)


def test_a_fork_is_noticed(service: tuple[Service, str]) -> None:
    client = Client(service[1])
    list(client.stream(RUN, (), jobs_pb2.RunReply))
    client._pid = os.getppid()  # as a forked child would find it
    with pytest.raises(RuntimeError):
        list(client.stream(RUN, (), jobs_pb2.RunReply))


def test_a_worker_thread_gives_the_baton_away_when_its_request_has_left(tmp_path: pathlib.Path) -> None:
    """Whoever gets it may keep it for long."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / 's'))
    listener.listen(1)
    listener.setblocking(False)
    sent: list[bytes] = []

    class Baton(baton.Baton):
        def give(self) -> None:
            if self.held() and not sent:
                sent.append(b'')
                with contextlib.suppress(BlockingIOError), listener.accept()[0] as outer:  # which ends the call
                    sent.append(outer.recv(1 << 16, socket.MSG_DONTWAIT))
                listener.close()
            super().give()

    with Baton().job(threading.Event()), contextlib.suppress(RpcError):
        list(Client(str(tmp_path / 's')).stream(RUN, bodies(1, 10), jobs_pb2.RunReply))
    assert next(bodies(1, 10)).SerializeToString() in b''.join(sent)


@pytest.mark.parametrize(('ahead', 'order'), [(False, ['turn', 'request', 'turn', 'reply', 'reply']), (True, ['request', 'turn', 'reply', 'reply'])])
def test_a_thread_that_is_ahead_waits_for_its_turn_only_before_the_replies(
    service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch, ahead: bool, order: list[str]
) -> None:
    """By then the whole request is with the daemon."""
    done: list[str] = []

    def turn() -> None:
        done.append('turn')
        assert 'request' not in done or service[0].asked.wait(60)

    def requests() -> t.Iterator[jobs_pb2.RunRequest]:
        done.append('request')
        yield from bodies(1, 10)

    monkeypatch.setattr(baton, 'turn', turn)
    client = Client(service[1])
    for _ in client.stream(RUN, requests(), jobs_pb2.RunReply, ahead=ahead):
        done.append('reply')
    client.close()
    assert done == order


@pytest.mark.parametrize('cut', range(0, 200, 7))
def test_a_connection_cut_anywhere_is_an_error(tmp_path: pathlib.Path, service: tuple[Service, str], cut: int) -> None:
    """A relay passes ``cut`` bytes of the answer and then closes: always RpcError, never a hang, and the next call works."""
    path = str(tmp_path / 'relay')
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)

    def relay() -> None:
        inner = socket.socket(socket.AF_UNIX)
        outer, _ = listener.accept()
        with outer, inner:
            inner.connect(service[1])
            inner.sendall(outer.recv(65536))  # so the call has left, whatever is cut
            left = cut
            threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
            while left > 0:
                data = inner.recv(left)
                if not data:
                    return
                outer.sendall(data)
                left -= len(data)
            outer.shutdown(socket.SHUT_RDWR)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    thread = threading.Thread(target=relay)
    thread.start()
    client = Client(path)
    with pytest.raises(RpcError) as caught:
        list(client.stream(RUN, bodies(1, 1000), jobs_pb2.RunReply))
    assert caught.value.code == client_module.UNAVAILABLE
    assert isinstance(caught.value, NotSent) == (cut == 0), 'whoever has said a word may have begun'
    thread.join(10)
    listener.close()
    client.path = service[1]
    assert len(list(client.stream(RUN, bodies(1, 10), jobs_pb2.RunReply))) == 2
