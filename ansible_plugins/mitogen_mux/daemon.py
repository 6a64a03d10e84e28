"""Finding, starting and attaching to the daemon. It knows nothing of tasks: a request goes in, replies come out."""

from __future__ import annotations

import contextlib
import faulthandler
import getpass
import hashlib
import multiprocessing
import os
import pathlib
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import typing as t

from . import baton
from .client import UNAVAILABLE, Client, NotSent, RpcError
from .v1 import error_pb2, files_pb2, jobs_pb2, path_pb2, runs_pb2

START_ENVIRON = dict(os.environ)
"""The environment of the run when the plugins were loaded: agents of the controller itself are started with it."""

START_TIMEOUT = 15.0
"""Seconds that a new daemon may take to its handshake line."""

ATTACH_TIMEOUT = 1.0
"""Seconds that a new local agent may take to say that it has found the daemon. A later one is waited for by the daemon."""

MAX_STDERR = 2000
"""Bytes of what a program says that are passed on."""

BLOB_PART = 128 << 10

_PLUGINS = pathlib.Path(__file__).resolve().parent.parent

_ENVIRON_NAMES = frozenset(
    'HOME USER LOGNAME SHELL PATH TERM TMPDIR LANG LANGUAGE TZ DISPLAY WAYLAND_DISPLAY KRB5CCNAME KRB5_CONFIG'
    ' SSH_AUTH_SOCK SSH_AGENT_PID SSH_ASKPASS SSH_ASKPASS_REQUIRE XAUTHORITY'
    ' ALL_PROXY all_proxy http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY'.split()
)
_ENVIRON_PREFIXES = ('LC_', 'XDG_', 'AWS_', 'AZURE_', 'CLOUDSDK_', 'GOOGLE_', 'GCLOUD_', 'TELEPORT_', 'TSH_', 'VAULT_', 'STEP', 'MITOGEN_')
"""What ``ssh -G``, a ProxyCommand or an SSH agent may need of the run's environment."""

_NOT_OURS = frozenset((error_pb2.Error.RUN_UNKNOWN, error_pb2.Error.DRAINING))
"""Of a daemon that is another one than the run attached to, or about to be."""


class DaemonError(Exception):
    """There is no daemon to talk to. The text is one line with the remedy."""


class Session:
    """This run at the daemon. Made in the run's main process it serves its forked workers too; each thread of each process has its own
    connection."""

    def __init__(self) -> None:
        self.pid, self._start_time = _run_process()
        self.path = ''
        self.attach = runs_pb2.AttachReply()
        self.started = False
        """Whether this run has run the daemon's program: then it is most likely a new one, which knows nothing."""
        self._clients = threading.local()
        self._owner = os.getpid()
        self._local_agents: list[subprocess.Popen[bytes]] = []
        self._connect()

    @property
    def run_id(self) -> str:
        """``AttachReply.run``."""
        return self.attach.run

    def request(self, request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body] = (), timeout: float | None = None) -> t.Generator[jobs_pb2.RunReply]:
        """Runs a request; ``bodies`` must be iterable again, for where nothing was run yet it is asked again: after a daemon that has gone or
        is leaving, and after starting the controller's own agent. Raises RpcError and DaemonError; leaving early cancels."""
        return self._run('/mitogen_mux.v1.Jobs/Run', request, bodies, timeout)

    def transfer(self, request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body] = (), timeout: float | None = None) -> t.Generator[jobs_pb2.RunReply]:
        """As ``request``, for requests of Put and Get steps alone."""
        return self._run('/mitogen_mux.v1.Files/Transfer', request, bodies, timeout)

    def upload(self, key: bytes, manifest: files_pb2.Manifest, inputs: t.Iterable[files_pb2.OfferRequest.Input], blobs: t.Mapping[bytes, bytes]) -> None:
        """Makes the payload ``key`` known, sending those of ``blobs`` (by SHA-256) that the daemon lacks. One that has gone will be replaced, and the next
        will want it again."""
        client = self._client()
        offer = files_pb2.OfferRequest(payload=key, manifest=manifest, inputs=inputs)
        with contextlib.suppress(NotSent):
            missing = client.unary('/mitogen_mux.v1.Files/Offer', offer, files_pb2.OfferReply).missing
            if missing:
                list(client.stream('/mitogen_mux.v1.Files/Upload', _parts(missing, blobs), files_pb2.UploadReply))

    def reset(self, host: str, path: path_pb2.Path | None = None) -> None:
        """Makes the next request for ``host`` dial anew; jobs under way are left alone."""
        with _already_so():
            self._client().unary('/mitogen_mux.v1.Runs/Reset', runs_pb2.ResetRequest(run=self.run_id, host=host, path=path), runs_pb2.ResetReply, 10.0)

    def vacate(self, host: str, account: str) -> None:
        """Ends the idle agents of a become account of ``host``, and waits until they have gone."""
        with _already_so():
            self._client().unary('/mitogen_mux.v1.Runs/Reset', runs_pb2.ResetRequest(run=self.run_id, host=host, account=account), runs_pb2.ResetReply, 10.0)

    def release(self, hosts: t.Iterable[str]) -> None:
        """Lets the connections of ``hosts`` leave as idle ones do, unless they are asked for again."""
        with _already_so():
            self._client().unary('/mitogen_mux.v1.Runs/Release', runs_pb2.ReleaseRequest(run=self.run_id, hosts=hosts), runs_pb2.ReleaseReply, 10.0)

    def detach(self) -> None:
        """Ends the run at the daemon, which would else notice by itself when the process has gone. A daemon that is not there is fine."""
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(RpcError):
            self._client().unary('/mitogen_mux.v1.Runs/Detach', runs_pb2.DetachRequest(run=self.run_id), runs_pb2.DetachReply, 5.0)
        self.close()
        for agent in self._local_agents:
            agent.poll()

    def close(self) -> None:
        """Closes this thread's connection; a call under way is thereby cancelled."""
        if getattr(self._clients, 'pid', None) == os.getpid():
            self._clients.client.close()

    def _run(self, method: str, request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body], timeout: float | None) -> t.Generator[jobs_pb2.RunReply]:
        tries = 4
        answered = False
        while True:
            tries -= 1
            request.run = self.run_id
            try:
                replies = self._client().stream(method, _messages(request, bodies), jobs_pb2.RunReply, timeout, ahead=request.HasField('follow'))
                with contextlib.closing(replies):
                    for reply in replies:
                        answered = answered or reply.WhichOneof('event') != 'log'
                        yield reply
                return
            except RpcError as error:
                if not tries or answered:
                    raise
                if _nothing_ran(error):
                    self._connect()
                elif error.detail is not None and error.kind == error_pb2.Error.LOCAL_AGENT_WANTED:
                    self._start_local_agent(request.path.hops[0].interpreter, error.detail.token)
                else:
                    raise

    def _client(self) -> Client:
        """This thread's client; after a fork, or when the daemon was replaced, a new one."""
        mine = self._clients
        if getattr(mine, 'pid', None) != os.getpid() or mine.client.path != self.path:
            mine.client = Client(self.path)
            mine.pid = os.getpid()
        return t.cast(Client, mine.client)

    def _connect(self) -> None:
        """Attaches to the daemon of the installed binary, starting it where it does not answer."""
        binary = find_binary()
        deadline = time.monotonic() + START_TIMEOUT
        with baton.kept():
            for path, start in _sockets(binary):
                client = Client(path)
                try:
                    self.attach = client.unary('/mitogen_mux.v1.Runs/Attach', self._attach_request(), runs_pb2.AttachReply, START_TIMEOUT)
                except RpcError as error:
                    client.close()
                    if not start:
                        continue
                    # One that is ending takes connections until its last moment: the program takes it for one that serves.
                    if not _nothing_ran(error) or time.monotonic() > deadline:
                        raise DaemonError(f'the mitogen-mux daemon at {path} refuses this run: {error.message}') from None
                    time.sleep(0.01)
                    continue
                self.path, self.started = path, start
                self._clients.client, self._clients.pid = client, os.getpid()
                return

    def _attach_request(self) -> runs_pb2.AttachRequest:
        request = runs_pb2.AttachRequest(pid=self.pid, start_time=self._start_time, cwd=os.getcwd(), user=_user(), core_version=_core_version())
        for name, value in START_ENVIRON.items():
            if name in _ENVIRON_NAMES or name.startswith(_ENVIRON_PREFIXES):
                request.environ.add(name=os.fsencode(name), value=os.fsencode(value))
        persist = _number('MITOGEN_PERSIST')
        if persist is not None:
            request.persist_seconds = persist
        request.max_interpreters = _number('MITOGEN_MAX_INTERPRETERS') or 0
        return request

    def _start_local_agent(self, interpreter: str, token: bytes) -> None:
        """Starts the agent of the controller's own account: a child of this run, so that it inherits what a local task would (cgroup, limits,
        groups, umask); it attaches itself to the daemon."""
        words = shlex.split(interpreter)
        argv = [*words, '-c', self.attach.stage1_local, self.attach.agent_name, self.attach.agent_socket, token.hex()]
        with tempfile.TemporaryFile() as stderr:
            try:
                agent = subprocess.Popen(argv, env=START_ENVIRON, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
            except OSError as error:
                raise _no_local_agent(interpreter, f'{words[0]}: {error.strerror}') from None
            self._local_agents.append(agent)
            assert agent.stdout is not None
            with agent.stdout as stdout, baton.waiting():
                if _line(stdout.fileno(), time.monotonic() + ATTACH_TIMEOUT) != 'attached':
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        agent.wait(0.1)  # it may have said its last word, or closed what it had open, an instant before
            if agent.returncode is not None:
                stderr.seek(0)
                raise _no_local_agent(interpreter, stderr.read(MAX_STDERR).decode('utf-8', 'replace').strip() or f'exit code {agent.returncode}')


def _no_local_agent(interpreter: str, why: str) -> RpcError:
    detail = error_pb2.Error(
        kind=error_pb2.Error.INTERPRETER_MISSING,
        hop_name='local',
        stderr=why,
        message=f'cannot start {interpreter}: {why}',
        hint='Set ansible_python_interpreter.',
    )
    return RpcError(UNAVAILABLE, detail.message, detail)


_session: Session | None = None


def session() -> Session:
    """The run's session, made at the first call. Raises DaemonError."""
    global _session
    if _session is None:
        _session = Session()
        if seconds := _number('MITOGEN_DUMP_THREAD_STACKS'):
            faulthandler.dump_traceback_later(seconds, repeat=True, file=2)
    return _session


def started() -> bool:
    """Whether this run has started the daemon."""
    return _session is not None and _session.started


def find_binary() -> str:
    """The daemon's program: MITOGEN_MUX_BIN, ``bin/`` beside ``ansible_plugins/``, PATH. Raises DaemonError."""
    named = os.environ.get('MITOGEN_MUX_BIN')
    if named:
        if not os.access(named, os.X_OK):
            raise DaemonError(f'MITOGEN_MUX_BIN names {named}, which is not an executable file: set it to the mitogen-mux program, or unset it')
        return os.path.realpath(named)
    beside = _PLUGINS.parent / 'bin' / 'mitogen-mux'
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which('mitogen-mux')
    if not found:
        raise DaemonError(f'the mitogen-mux program is neither at {beside} nor on PATH: run `make build` in {_PLUGINS.parent}, or set MITOGEN_MUX_BIN')
    return os.path.realpath(found)


def runtime_dir() -> pathlib.Path:
    """The daemon's folder, by the rules of internal/daemon."""
    if os.environ.get('MITOGEN_MUX_DIR'):
        return pathlib.Path(os.environ['MITOGEN_MUX_DIR'])
    runtime = os.environ.get('XDG_RUNTIME_DIR', '')
    with contextlib.suppress(OSError):
        if os.path.isabs(runtime) and os.stat(runtime).st_uid == os.getuid():  # not another user's, as after su
            return pathlib.Path(runtime, 'mitogen-mux')
    return pathlib.Path(f'/tmp/mitogen-mux-{os.getuid()}')


def _note(binary: str) -> pathlib.Path:
    """The file that remembers which socket this very binary serves, so that a process need not run it to learn its version."""
    info = os.stat(binary)
    name = hashlib.sha256(repr((binary, info.st_ino, info.st_size, info.st_mtime_ns)).encode()).hexdigest()[:16]
    return runtime_dir() / f'socket-of-{name}'


def _known_socket(binary: str) -> str:
    """The socket noted for the binary, if its folder is ours alone; else empty."""
    try:
        folder = os.lstat(runtime_dir())
        if folder.st_uid != os.getuid() or folder.st_mode & 0o077:
            return ''
        return _note(binary).read_text()
    except OSError:
        return ''


def _sockets(binary: str) -> t.Iterator[tuple[str, bool]]:
    """The socket noted for the binary, then what the program says, however often; and whether the program was run for it."""
    if known := _known_socket(binary):
        yield known, False
    while True:
        yield _start(binary), True


def _start(binary: str) -> str:
    """Runs ``mitogen-mux serve`` and reads its handshake line: the path of its socket. A daemon that already serves answers the same way."""
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen([binary, 'serve'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True, cwd='/')
        except OSError as error:
            raise DaemonError(f'cannot run {binary}: {error.strerror}: build it for this machine with `make build`, or set MITOGEN_MUX_BIN') from None
        assert process.stdout is not None
        with process.stdout as stdout:
            line = _line(stdout.fileno(), time.monotonic() + START_TIMEOUT)
        words = line.split(' ')
        if len(words) != 6 or words[0] != 'mitogen-mux' or words[3] != 'unix':
            stderr.seek(0)
            said = stderr.read(MAX_STDERR).decode('utf-8', 'replace').strip().splitlines()
            raise DaemonError(f'{binary} serve did not start: {said[-1] if said else "it said nothing for " + format(START_TIMEOUT, "g") + " s"}')
        if words[1] != '1':
            raise DaemonError(f'{binary} speaks handshake {words[1]}, these plugins 1: install both from one version')
    path = words[4]
    with contextlib.suppress(OSError):
        note = _note(binary)
        draft = note.with_name(f'{note.name}.{os.getpid()}')
        draft.touch(0o600)
        draft.write_text(path)
        draft.replace(note)
    return path


def _line(fd: int, deadline: float) -> str:
    line = b''
    while not line.endswith(b'\n'):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return ''
        part = os.read(fd, 1024)
        if not part:
            return ''
        line += part
    return line.decode('utf-8', 'replace').rstrip('\n')


def _run_process() -> tuple[int, int]:
    """The pid of the process whose life is the run's, and its start time in clock ticks (0 where /proc has none)."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid else os.getpid()
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
        return pid, int(stat.rpartition(')')[2].split()[19])
    except (OSError, IndexError, ValueError):
        return pid, 0


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f'{name}@{socket.gethostname()}'


def _core_version() -> str:
    from ansible.release import __version__

    return str(__version__)


def _number(name: str) -> int | None:
    """A whole number from the environment. Raises DaemonError for what is none."""
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isdigit():
        raise DaemonError(f'{name}={value} is not a whole number')
    return int(value)


def _nothing_ran(error: RpcError) -> bool:
    """Whether the daemon has done nothing, and another one, or the run once it has attached to it, may be asked."""
    return isinstance(error, NotSent) or error.kind in _NOT_OURS


@contextlib.contextmanager
def _already_so() -> t.Iterator[None]:
    """For what ends connections: a daemon that has gone has none, nor has one that does not know the run."""
    try:
        yield
    except RpcError as error:
        if not _nothing_ran(error):
            raise


def _messages(request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body]) -> t.Iterator[jobs_pb2.RunRequest]:
    yield jobs_pb2.RunRequest(request=request)
    for body in bodies:
        yield jobs_pb2.RunRequest(body=body)


def _parts(missing: t.Iterable[bytes], blobs: t.Mapping[bytes, bytes]) -> t.Iterator[files_pb2.Blob]:
    for digest in missing:
        data = blobs[digest]
        for offset in range(0, max(1, len(data)), BLOB_PART):
            yield files_pb2.Blob(sha256=digest, data=data[offset : offset + BLOB_PART], last=offset + BLOB_PART >= len(data))
