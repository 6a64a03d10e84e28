"""Finding, starting and attaching: against programs that only pretend to be the daemon, with faults to switch on, and a server that refuses."""

from __future__ import annotations

import os
import pathlib
import socket
import stat
import threading
import time
import typing as t

import pytest

from mitogen_mux import baton, daemon
from mitogen_mux.client import NotSent, RpcError
from mitogen_mux.v1 import error_pb2, files_pb2, jobs_pb2, path_pb2, runs_pb2

grpc = pytest.importorskip('grpc', reason='grpcio, which plays the daemon, is not installed')

from concurrent import futures  # noqa: E402


class Daemon(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Runs, Jobs and Files as far as a session uses them. ``refusals`` are the kinds that the next requests are refused with."""

    def __init__(self, path: pathlib.Path, refusals: list[int]) -> None:
        self.refusals = refusals
        self.attached: list[runs_pb2.AttachRequest] = []
        self.detached: list[str] = []
        self.reset: list[str] = []
        self.afterwards: list[int] = []
        """The kinds with which requests end that have had their result."""
        self.unwilling: list[int] = []
        """The kinds that runs are refused with that attach."""
        self.slowly = 0.0
        """Seconds until it attaches a run."""
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.blobs: dict[bytes, bytes] = {}
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((self,))
        self.server.add_insecure_port(f'unix:{path}')
        self.server.start()

    def service(self, details: t.Any) -> t.Any:
        unary, stream, gather = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        return {
            '/mitogen_mux.v1.Runs/Attach': unary(self._attach, runs_pb2.AttachRequest.FromString, runs_pb2.AttachReply.SerializeToString),
            '/mitogen_mux.v1.Runs/Detach': unary(self._detach, runs_pb2.DetachRequest.FromString, runs_pb2.DetachReply.SerializeToString),
            '/mitogen_mux.v1.Runs/Reset': unary(self._reset, runs_pb2.ResetRequest.FromString, runs_pb2.ResetReply.SerializeToString),
            '/mitogen_mux.v1.Jobs/Run': stream(self._run, jobs_pb2.RunRequest.FromString, jobs_pb2.RunReply.SerializeToString),
            '/mitogen_mux.v1.Files/Offer': unary(self._offer, files_pb2.OfferRequest.FromString, files_pb2.OfferReply.SerializeToString),
            '/mitogen_mux.v1.Files/Upload': gather(self._upload, files_pb2.Blob.FromString, files_pb2.UploadReply.SerializeToString),
        }.get(details.method)

    def _attach(self, request: runs_pb2.AttachRequest, context: t.Any) -> runs_pb2.AttachReply:
        self.attached.append(request)
        number = len(self.attached)
        time.sleep(self.slowly)
        if self.unwilling:
            _abort(context, self.unwilling.pop(0))
        return runs_pb2.AttachReply(
            run=f'run{number}',
            version='1',
            agent_name='mitogen-mux: me',
            agent_socket='/nowhere',
            stage1_local='import sys; open(sys.argv[2] + ".started", "a").write(" ".join(sys.argv[1:]) + "\\n"); print("attached")',
        )

    def _refuse(self, context: t.Any) -> None:
        if self.refusals:
            _abort(context, self.refusals.pop(0))

    def _detach(self, request: runs_pb2.DetachRequest, context: t.Any) -> runs_pb2.DetachReply:
        self.detached.append(request.run)
        return runs_pb2.DetachReply()

    def _reset(self, request: runs_pb2.ResetRequest, context: t.Any) -> runs_pb2.ResetReply:
        self._refuse(context)
        self.reset.append(request.host)
        return runs_pb2.ResetReply()

    def _run(self, requests: t.Iterator[jobs_pb2.RunRequest], context: t.Any) -> t.Iterator[jobs_pb2.RunReply]:
        self.requests.append(next(requests).request.run)
        self._refuse(context)
        for request in requests:
            self.bodies.append(request.body.data)
        yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(rc=7))
        if self.afterwards:
            _abort(context, self.afterwards.pop(0))

    def _offer(self, request: files_pb2.OfferRequest, context: t.Any) -> files_pb2.OfferReply:
        return files_pb2.OfferReply(missing=[e.sha256 for e in request.manifest.entries if e.sha256 not in self.blobs])

    def _upload(self, requests: t.Iterator[files_pb2.Blob], context: t.Any) -> files_pb2.UploadReply:
        for part in requests:
            self.blobs[part.sha256] = self.blobs.get(part.sha256, b'') + part.data
        return files_pb2.UploadReply()


def _abort(context: t.Any, kind: int) -> None:
    status = error_pb2.RpcStatus(code=9, message='no')
    status.details.add().Pack(error_pb2.Error(kind=t.cast(t.Any, kind), message='no', token=b'\x12\x34'))
    context.set_trailing_metadata((('grpc-status-details-bin', status.SerializeToString()),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'no')


class Place(t.NamedTuple):
    folder: pathlib.Path
    program: pathlib.Path
    socket: pathlib.Path

    def pretend(self, script: str) -> None:
        """Writes the program: a shell script that is run in place of ``mitogen-mux serve``."""
        self.program.write_text(f'#!/bin/sh\necho >> {self.folder}/calls\n{script}\n')
        self.program.chmod(0o755)

    def calls(self) -> int:
        return len((self.folder / 'calls').read_text().splitlines()) if (self.folder / 'calls').exists() else 0


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    tmp_path.chmod(0o700)
    found = Place(tmp_path, tmp_path / 'mitogen-mux', tmp_path / 's')
    monkeypatch.setenv('MITOGEN_MUX_BIN', str(found.program))
    monkeypatch.setenv('MITOGEN_MUX_DIR', str(tmp_path))
    monkeypatch.delenv('MITOGEN_PERSIST', raising=False)
    monkeypatch.setattr(daemon, '_core_version', lambda: '2.99')
    found.pretend(f'echo mitogen-mux 1 v1 unix {found.socket} grpc')
    return found


@pytest.fixture
def served(place: Place) -> t.Iterator[Daemon]:
    server = Daemon(place.socket, [])
    yield server
    server.server.stop(0).wait()


REQUEST = jobs_pb2.Request(host='h1', path=path_pb2.Path(hops=[path_pb2.Hop(local=path_pb2.LocalHop(), interpreter='/bin/false')]))


def test_attach_tells_the_run(place: Place, served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, 'START_ENVIRON', {'SSH_AUTH_SOCK': '/a', 'LC_ALL': 'C', 'AWS_PROFILE': 'p', 'ANSIBLE_VAULT_PASSWORD': 'secret'})
    monkeypatch.setenv('MITOGEN_PERSIST', '5')
    session = daemon.Session()
    request = served.attached[0]
    assert session.run_id == 'run1'
    assert (request.pid, request.core_version, request.persist_seconds) == (os.getpid(), '2.99', 5)
    assert request.start_time > 0
    assert {v.name: v.value for v in request.environ} == {b'SSH_AUTH_SOCK': b'/a', b'LC_ALL': b'C', b'AWS_PROFILE': b'p'}
    session.detach()
    assert served.detached == ['run1']


def test_the_second_session_runs_no_program(place: Place, served: Daemon) -> None:
    assert [daemon.Session().started, daemon.Session().started] == [True, False]
    assert place.calls() == 1
    place.pretend(f'echo mitogen-mux 1 v2 unix {place.socket} grpc')  # another build: it has to be asked
    os.utime(place.program, ns=(1, 1))
    assert daemon.Session().started
    assert place.calls() == 2


@pytest.mark.parametrize('mode', [0o755, 0o770])
def test_a_note_that_others_could_write_is_not_believed(place: Place, served: Daemon, mode: int) -> None:
    daemon.Session()
    place.folder.chmod(mode)
    daemon.Session()
    assert place.calls() == 2


@pytest.mark.parametrize(
    ('script', 'words'),
    [
        ('echo hello', 'did not start'),
        ('exit 1', 'did not start'),
        ('echo "cannot listen: /run/x belongs to uid 7" >&2; exit 1', 'belongs to uid 7'),
        ('echo mitogen-mux 2 v1 unix /x grpc', 'handshake 2'),
        ('printf "mitogen-mux 1 v1 unix"', 'did not start'),
    ],
)
def test_a_program_that_does_not_serve(place: Place, script: str, words: str) -> None:
    place.pretend(script)
    with pytest.raises(daemon.DaemonError, match=words) as caught:
        daemon.Session()
    assert '\n' not in str(caught.value)


def test_a_program_that_says_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, 'START_TIMEOUT', 0.2)
    place.pretend('exec sleep 1')
    with pytest.raises(daemon.DaemonError, match=r'said nothing for 0\.2 s'):
        daemon.Session()


def test_no_program(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.program.unlink()
    with pytest.raises(daemon.DaemonError, match='MITOGEN_MUX_BIN'):
        daemon.Session()
    monkeypatch.delenv('MITOGEN_MUX_BIN')
    monkeypatch.setenv('PATH', str(place.folder))
    monkeypatch.setattr(daemon, '_PLUGINS', place.folder / 'ansible_plugins')
    with pytest.raises(daemon.DaemonError, match='make build'):
        daemon.Session()
    place.pretend('exit 1')
    assert daemon.find_binary() == os.path.realpath(place.program)
    beside = place.folder / 'bin' / 'mitogen-mux'
    beside.parent.mkdir()
    beside.write_text('')
    beside.chmod(stat.S_IRWXU)
    assert daemon.find_binary() == os.path.realpath(beside)


def test_a_bad_number_is_told(place: Place, served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MITOGEN_PERSIST', 'ever')
    with pytest.raises(daemon.DaemonError, match='MITOGEN_PERSIST=ever'):
        daemon.Session()


def test_requests(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    bodies = [jobs_pb2.Body(data=b'a'), jobs_pb2.Body(data=b'b', last=True)]
    assert [reply.result.rc for reply in session.request(REQUEST, bodies)] == [7]
    assert (served.requests, served.bodies) == (['run1'], [b'a', b'b'])
    session.reset('h1')
    assert served.reset == ['h1']


@pytest.mark.parametrize('kind', [error_pb2.Error.RUN_UNKNOWN, error_pb2.Error.DRAINING])
def test_where_nothing_ran_it_is_asked_again(place: Place, served: Daemon, kind: int) -> None:
    session = daemon.Session()
    served.refusals.append(kind)
    assert [reply.result.rc for reply in session.request(REQUEST, [jobs_pb2.Body(data=b'a')])] == [7]
    assert (served.requests, served.bodies) == (['run1', 'run2'], [b'a'])


@pytest.mark.parametrize('kind', [error_pb2.Error.RUN_UNKNOWN, error_pb2.Error.DRAINING, error_pb2.Error.LOCAL_AGENT_WANTED])
def test_what_has_an_answer_is_not_asked_again(place: Place, served: Daemon, kind: int) -> None:
    session = daemon.Session()
    served.afterwards.append(kind)
    replies = session.request(REQUEST)
    assert next(replies).result.rc == 7
    with pytest.raises(RpcError):
        next(replies)
    assert served.requests == ['run1']


@pytest.mark.parametrize('kind', [error_pb2.Error.RUN_UNKNOWN, error_pb2.Error.DRAINING])
def test_what_a_daemon_does_not_know_need_not_be_ended(place: Place, served: Daemon, kind: int) -> None:
    session = daemon.Session()
    for end in (lambda: session.reset('h1'), lambda: session.vacate('h1', 'app')):
        served.refusals.append(kind)
        end()
    assert (served.refusals, served.reset) == ([], [])


def test_one_that_is_leaving_is_waited_for(place: Place, served: Daemon) -> None:
    served.unwilling += [error_pb2.Error.DRAINING] * 3
    assert daemon.Session().run_id == 'run4'


def test_who_attaches_again_is_not_waited_for_with_the_baton_in_hand(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    served.slowly = 0.2
    served.refusals += [error_pb2.Error.RUN_UNKNOWN] * 2
    mine, asked = baton.Baton(), []

    def ask() -> None:
        asked.append([reply.result.rc for reply in session.request(REQUEST)])

    def work() -> None:
        with mine.job(threading.Event()):
            ask()

    def main() -> None:
        mine.take()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        with mine.lent():
            while len(served.attached) < 2:
                time.sleep(0.001)
        ask()
        with mine.lent():
            worker.join()

    both = threading.Thread(target=main, daemon=True)
    both.start()
    both.join(30)
    assert not both.is_alive()
    assert asked == [[7], [7]]


def test_it_is_not_asked_for_ever(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    served.refusals += [error_pb2.Error.RUN_UNKNOWN] * 50
    with pytest.raises(RpcError):
        list(session.request(REQUEST))
    assert len(served.requests) == 4


def test_other_refusals_are_the_callers(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    served.refusals.append(error_pb2.Error.UNREACHABLE)
    with pytest.raises(RpcError) as caught:
        list(session.request(REQUEST))
    assert caught.value.kind == error_pb2.Error.UNREACHABLE
    assert served.requests == ['run1']


def test_the_local_agent_is_started_with_its_token(place: Place, served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    session = daemon.Session()
    session.attach.agent_socket = str(place.folder / 'agent')
    request = jobs_pb2.Request()
    request.CopyFrom(REQUEST)
    request.path.hops[0].interpreter = os.environ.get('PYTHON', 'python3') + ' -I'
    served.refusals.append(error_pb2.Error.LOCAL_AGENT_WANTED)
    assert [reply.result.rc for reply in session.request(request)] == [7]
    for agent in session._local_agents:
        assert agent.wait(30) == 0
    assert (place.folder / 'agent.started').read_text() == f'mitogen-mux: me {place.folder}/agent 1234\n'


def test_a_local_interpreter_that_is_not_there(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    request = jobs_pb2.Request()
    request.CopyFrom(REQUEST)
    request.path.hops[0].interpreter = '/nowhere/python3'
    served.refusals.append(error_pb2.Error.LOCAL_AGENT_WANTED)
    with pytest.raises(RpcError) as caught:
        list(session.request(request))
    assert caught.value.kind == error_pb2.Error.INTERPRETER_MISSING


def test_a_local_interpreter_that_ends_by_itself(place: Place, served: Daemon) -> None:
    broken = place.folder / 'python'
    broken.write_text('#!/bin/sh\necho no library >&2\nexit 127\n')
    broken.chmod(0o755)
    session = daemon.Session()
    request = jobs_pb2.Request()
    request.CopyFrom(REQUEST)
    request.path.hops[0].interpreter = str(broken)
    served.refusals.append(error_pb2.Error.LOCAL_AGENT_WANTED)
    with pytest.raises(RpcError) as caught:
        list(session.request(request))
    assert (caught.value.kind, caught.value.detail and caught.value.detail.stderr) == (error_pb2.Error.INTERPRETER_MISSING, 'no library')
    assert served.requests == ['run1']


def test_a_slow_local_interpreter_is_the_daemons_to_wait_for(place: Place, served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, 'ATTACH_TIMEOUT', 0.01)
    session = daemon.Session()
    request = jobs_pb2.Request()
    request.CopyFrom(REQUEST)
    request.path.hops[0].interpreter = "sh -c 'sleep 1'"
    served.refusals.append(error_pb2.Error.LOCAL_AGENT_WANTED)
    assert [reply.result.rc for reply in session.request(request)] == [7]
    for agent in session._local_agents:
        agent.wait(30)


def test_a_daemon_that_has_gone_is_replaced(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    session.close()
    served.server.stop(0).wait()
    place.socket.unlink(missing_ok=True)
    with pytest.raises(NotSent):
        list(session._client().stream('/mitogen_mux.v1.Jobs/Run', (), jobs_pb2.RunReply))
    session.upload(b'key', files_pb2.Manifest(), [], {})
    session.reset('h1')
    fresh = Daemon(place.socket, [])
    try:
        assert [reply.result.rc for reply in session.request(REQUEST)] == [7]
        assert fresh.requests == ['run1']
    finally:
        fresh.server.stop(0).wait()


def test_a_daemon_that_ends_as_it_is_asked_is_not_the_one(place: Place, served: Daemon) -> None:
    """The program takes one that is being killed for one that serves."""
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(place.folder / 'dying'))
        dying.listen(1)
        thread = threading.Thread(target=lambda: dying.accept()[0].close())
        thread.start()
        place.pretend(
            f'if [ $(wc -l < {place.folder}/calls) = 1 ]; then socket=dying; else socket=s; fi\necho mitogen-mux 1 v1 unix {place.folder}/$socket grpc'
        )
        session = daemon.Session()
        thread.join()
    assert (place.calls(), session.path, session.run_id) == (2, str(place.socket), 'run1')


def test_upload_sends_what_is_missing(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    big, small, known = b'x' * (300 << 10), b'', b'known'
    blobs = {bytes([n]) * 32: data for n, data in enumerate((big, small, known))}
    served.blobs[bytes([2]) * 32] = b'as it was'
    manifest = files_pb2.Manifest(entries=[files_pb2.Manifest.Entry(path=str(d[0]), sha256=d) for d in blobs])
    session.upload(b'key', manifest, [], blobs)
    assert served.blobs == {bytes([0]) * 32: big, bytes([1]) * 32: small, bytes([2]) * 32: b'as it was'}


def test_each_thread_has_its_own_connection(place: Place, served: Daemon) -> None:
    session = daemon.Session()
    clients = [session._client()]
    thread = threading.Thread(target=lambda: clients.append(session._client()))
    thread.start()
    thread.join()
    assert clients[0] is session._client()
    assert clients[0] is not clients[1]
