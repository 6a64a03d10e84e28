"""Connections: what stands in front of Ansible's own ssh and local plugins and sends their work through the daemon.

An object of ours is of a class made of a mixin and the original class, so that options, documentation and everything that is not
overridden here stay the original's. With ``mitogen_enabled: false`` it is the original."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_native, to_text
from ansible.utils.path import unfrackpath

from . import ansiballz, daemon, display, errands, errors, hops, payload, rehearsal
from .client import RpcError
from .v1 import error_pb2, jobs_pb2, path_pb2

BODY_PART = 128 << 10

UPLOADS = 5
"""How often the daemon is given a module's code for one request: files may change while they are read, and then it wants them anew."""

SSH_DEFINITIONS: dict[str, dict[str, t.Any]] = {
    'mitogen_inventory_name': {'description': ['For messages only.'], 'default': '', 'vars': [{'name': 'inventory_hostname'}]},
    'mitogen_ssh_transport': {
        'description': ["Who connects: the daemon's own client (native), the user's ssh program (openssh), or whichever can do it (auto)."],
        'choices': ['auto', 'native', 'openssh'],
        'default': 'auto',
        'vars': [{'name': 'mitogen_ssh_transport'}],
        'env': [{'name': 'MITOGEN_SSH_TRANSPORT'}],
    },
}
"""For ssh alone. Its plugin knows inventory_hostname already: a new variable shows in the results of delegated tasks that set it."""

DEFINITIONS: dict[str, dict[str, t.Any]] = {
    'mitogen_enabled': {
        'description': ['Whether mitogen-mux does the work of this connection. If not, everything is done as if it were not there.'],
        'type': 'bool',
        'default': True,
        'vars': [{'name': 'mitogen_enabled'}],
        'env': [{'name': 'MITOGEN_ENABLED'}],
    }
}
"""Our own variables, as options of the plugins that we stand in front of: so the core finds, templates and delegates them."""

Result = errands.Result


class MuxConnection(errands.Carrier):
    """What all our connections have in common. Mixed in before an Ansible connection class."""

    if t.TYPE_CHECKING:
        _play_context: t.Any
        _shell: t.Any
        _connected: bool
        _load_name: str
        become: t.Any
        plugin_type: str

    _mux_escalation: hops.Escalation | None = None
    _mux_remembers = False
    _mux_rehearse: t.Callable[[], list[rehearsal.Question]] | None = None
    _mux_known: list[tuple[rehearsal.Question, Result]] | None = None

    def mux_enabled(self) -> bool:
        """Whether we are to do this connection's work."""
        return bool(hops.option(self, 'mitogen_enabled', True))

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        """The hop to the login account."""
        raise NotImplementedError

    def mux_host(self) -> str:
        """Whom messages are about: the inventory name, where it is known."""
        return str(to_text(hops.option(self, 'mitogen_inventory_name') or self._play_context.remote_addr))

    def mux_process(self) -> jobs_pb2.Process | None:
        """What the account itself does not determine about a new process."""
        return None

    def set_become_plugin(self, plugin: t.Any) -> None:
        super().set_become_plugin(plugin)  # type: ignore[misc]
        self._mux_escalation = None
        if plugin is not None:
            hops.watch(plugin, self._mux_remember)

    def _mux_remember(self, escalation: hops.Escalation) -> None:
        self._mux_escalation = escalation

    def _mux_become(self, cmd: str) -> hops.Escalation | None:
        """The escalation that is in force for a command: the become plugin's latest, if its marker is in the text."""
        latest = self._mux_escalation
        if latest is None or self.become is None or not latest.success or latest.success not in cmd:
            return None
        return latest

    def is_pipelining_enabled(self, wrap_async: bool = False) -> bool:
        """Since 2.19 the core asks the connection."""
        if not self.mux_enabled():
            return bool(super().is_pipelining_enabled(wrap_async))  # type: ignore[misc]
        return not wrap_async and not C.DEFAULT_KEEP_REMOTE_FILES

    def _mux_token(self, in_data: bytes | None, cmd: str) -> payload.Token | None:
        """The module that is to be run, if it is one: from the build seam, or taken from the core's own payload."""
        if in_data is None or isinstance(in_data, payload.Token):
            return in_data
        return ansiballz.token(self, in_data, cmd, self._mux_become(cmd))

    def mux_module(self, token: payload.Token, cmd: str) -> Result:
        """Runs a module in a job of the account's agent."""
        session = _session()
        become = self._mux_become(cmd) is not None
        known, self._mux_known = self._mux_known or [], None
        for n, (question, answer) in enumerate(known):
            if question.same(token, become):
                self._mux_known = known[n + 1 :]
                return answer
        path = path_pb2.Path(hops=[self.mux_account(token.interpreter)])
        if become:
            path.hops.append(hops.become(self, token.interpreter, session.attach.stage1, session.attach.agent_name))
        questions = [q for q in self._mux_rehearse() if q.become == become] if self._mux_rehearse else []
        try:
            if account := payload.removed_account(token):
                session.vacate(self.mux_host(), account)
            try:
                return self._mux_run_module(token, path, questions)
            except payload.NotCovered:
                if not questions:
                    raise
                return self._mux_run_module(token, path, [])  # it is one of the questions
        except payload.NotCovered:
            return self.mux_command(cmd, token.stock(), sudoable=True)
        except RpcError as error:
            if error.kind == error_pb2.Error.BECOME_FAILED:
                return _tool_failed(error)
            if error.kind == error_pb2.Error.INTERPRETER_MISSING:
                # Nothing was run. The plain way gives the very message that the core knows how to read.
                return self.mux_command(cmd, token.stock(), sudoable=True)
            raise errors.to_ansible(error, self.mux_host()) from None

    def _mux_run_module(self, token: payload.Token, path: path_pb2.Path, questions: list[rehearsal.Question]) -> Result:
        """Runs a module with what waits before it and what may be asked after it, in one request."""
        errand = self._mux_errand(token, path)
        at = len(errand.steps)
        tokens = {at: token}
        steps = [*errand.steps, self._mux_module_step(token)]
        for question in questions:
            tokens[len(steps)] = question.token
            steps.append(self._mux_module_step(question.token))
            steps[-1].guard.CopyFrom(jobs_pb2.Guard(step=len(steps) - 2, field='stat.checksum', value=json.dumps(question.checksum)))
        steps += errand.last
        wanted = 0
        while True:
            try:
                answers = self._mux_run(path, steps, errand.bodies)
            except RpcError as error:
                if error.kind == error_pb2.Error.PAYLOAD_WANTED:
                    wanted += 1
                    missing = tokens[error.detail.step if error.detail else at]
                    if wanted > UPLOADS * len(tokens):
                        raise AnsibleError(
                            f'{self.mux_host()}: the mitogen-mux daemon still lacks the code of module {missing.source.name}, which it was given '
                            f'{UPLOADS} times. The files of the module, or folders of module_utils, change all the time.'
                        ) from None
                    self._mux_upload(missing)
                    continue
                self._mux_errand_failed(errand, error)
                answers = error.answers
                if len(answers) <= at or answers[at] is None:
                    raise
            else:
                self._mux_errand_done(errand, answers)
            self._mux_known = [(q, answer) for q, answer in zip(questions, answers[at + 1 :]) if answer is not None]
            return t.cast(Result, answers[at])

    def _mux_module_step(self, token: payload.Token) -> jobs_pb2.Step:
        module = jobs_pb2.Module(
            payload=token.source.key(), params=token.params, name=token.source.name, rlimit_nofile=token.rlimit_nofile, process=self.mux_process()
        )
        module.logging = display.verbosity() > 2 and not payload.silent(token)
        for name, value in token.environment:
            module.environment.add(name=name, value=value)
        return jobs_pb2.Step(module=module)

    def _mux_upload(self, token: payload.Token) -> None:
        key = token.source.key()
        with payload.building(key) as mine:
            if mine:
                made = token.source.build()
                _session().upload(key, made.manifest, made.inputs, made.blobs)

    def mux_rehearse(self, rehearse: t.Callable[[], list[rehearsal.Question]] | None) -> None:
        """Says what may be asked after the next module; None: no more, and what is known is forgotten."""
        self._mux_rehearse = rehearse

    def mux_far(self) -> bool:
        """Whether a round trip costs more than the work of avoiding it."""
        return True

    @contextlib.contextmanager
    def mux_remembering(self) -> t.Iterator[None]:
        """Meanwhile commands ask for what does not change while the connection lives."""
        before, self._mux_remembers = self._mux_remembers, True
        try:
            yield
        finally:
            self._mux_remembers = before

    def mux_forget(self) -> None:
        """What was asked ahead and is not wanted is no answer to a later question."""
        self._mux_known = None

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> Result:
        """Runs a command line as the plain plugin would."""
        raise NotImplementedError

    def mux_steps(self, path: path_pb2.Path, steps: list[jobs_pb2.Step], body: bytes | None = None) -> list[Result]:
        """Runs steps on a node; ``body`` is the input of the first. Errors are those of Ansible."""
        try:
            answers = self._mux_run(path, steps, {0: body} if body else {})
            return t.cast('list[Result]', answers)
        except RpcError as error:
            if error.kind == error_pb2.Error.BECOME_FAILED:
                return [_tool_failed(error)]
            raise errors.to_ansible(error, self.mux_host()) from None

    def _mux_run(self, path: path_pb2.Path, steps: list[jobs_pb2.Step], bodies: dict[int, bytes]) -> list[Result | None]:
        """Runs steps; gives an answer for each, None for one whose guard said no. An RpcError has those that came before it."""
        request = jobs_pb2.Request(host=self.mux_host(), path=path, steps=steps)
        files_only = all(step.WhichOneof('action') in ('put', 'get', 'folder') for step in steps)
        out: list[tuple[list[bytes], list[bytes]]] = [([], []) for _ in steps]
        codes: dict[int, int | None] = {}
        session = _session()
        send = session.transfer if files_only else session.request
        try:
            with contextlib.closing(send(request, _Bodies(bodies))) as replies:  # type: ignore[type-var]
                for reply in replies:
                    kind = reply.WhichOneof('event')
                    if kind == 'log':
                        display.log(reply.log, self.mux_host())
                        continue
                    event = reply.output if kind == 'output' else reply.result
                    stdout, stderr = out[event.step]
                    stdout.append(event.stdout)
                    stderr.append(event.stderr)
                    if kind == 'result':
                        codes[event.step] = None if reply.result.skipped else reply.result.rc
        except RpcError as error:
            error.answers = _answers(codes, out)
            raise
        except daemon.DaemonError as error:
            raise AnsibleError(str(error)) from None
        if len(codes) != len(steps):
            raise AnsibleConnectionFailure(f'{self.mux_host()}: the mitogen-mux daemon ended the request without its results')
        self._connected = True
        return _answers(codes, out)


class SshConnection(MuxConnection):
    """In front of ansible.builtin.ssh."""

    if t.TYPE_CHECKING:
        host: str
        user: str
        port: int | None

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        return hops.ssh(self, interpreter)

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Result:
        if not self.mux_enabled():
            return super().exec_command(cmd, in_data=_stock(in_data), sudoable=sudoable)  # type: ignore[misc,no-any-return]
        self._mux_introduce()
        display.vvv(f'SSH: EXEC {to_text(cmd)}', self.host)
        token = self._mux_token(in_data, cmd)
        answer = self.mux_command(cmd, in_data, sudoable) if token is None else self.mux_module(token, cmd)
        display.result(answer, self._play_context.no_log, self.host)
        return answer

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> Result:
        if self._mux_folder and (self._mux_folder.files or self._mux_folder.path in cmd):
            self.mux_run_errands()
        path = path_pb2.Path(hops=[self.mux_account()])
        escalation = self._mux_become(cmd)
        if escalation is None:
            argv = [b'/bin/sh', b'-c', _LOGIN_SHELL, to_bytes(cmd)]
        else:
            path.hops.append(hops.become(self))
            argv = [*(to_bytes(word) for word in shlex.split(escalation.executable)), b'-c', to_bytes(escalation.command)]
        tty = not in_data and sudoable and bool(hops.option(self, 'use_tty', True))
        step = jobs_pb2.Step(command=jobs_pb2.Command(argv=argv, plain=to_bytes(cmd), has_body=bool(in_data), tty=tty, remember=self._mux_remembers))
        rc, stdout, stderr = self.mux_steps(path, [step], in_data)[0]
        if tty:
            stderr += self._mux_farewell()
        return rc, stdout, stderr

    def _mux_farewell(self) -> bytes:
        """What ssh itself adds to stderr when it ends a session that has a terminal."""
        ssh = self.mux_account().ssh
        words = ' '.join([*ssh.args, *ssh.late_args]).lower()
        if ' -q ' in f' {words} ' or any(f'loglevel{sep}{level}' in words for sep in '= ' for level in ('quiet', 'fatal', 'error')):
            return b''
        shared = 'Shared connection' if 'controlpersist' in words else 'Connection'
        return bytes(to_bytes(f'{shared} to {self.host} closed.\r\n'))

    def put_file(self, in_path: str, out_path: str) -> t.Any:
        if not self.mux_enabled():
            return super().put_file(in_path, out_path)  # type: ignore[misc]
        self._mux_set_host()
        display.vvv(f'PUT {in_path} TO {out_path}', self.host)
        source = os.path.abspath(to_bytes(in_path, errors='surrogate_or_strict'))
        try:
            mode = stat.S_IMODE(os.stat(source).st_mode) & 0o777
        except OSError:
            raise AnsibleFileNotFound(f'file or module does not exist: {to_native(in_path)}') from None
        if self._mux_folder and self._mux_folder.holds(out_path):
            with contextlib.suppress(OSError):  # the daemon says it better
                self._mux_folder.files.append(errands.File.take(os.fsdecode(source), out_path))
                return 0, b'', b''
            self.mux_run_errands()
        put = jobs_pb2.Put(path=os.fsdecode(source), dest=to_bytes(out_path), mode=mode)
        return self.mux_steps(path_pb2.Path(hops=[self.mux_account()]), [jobs_pb2.Step(put=put)])[0]

    def fetch_file(self, in_path: str, out_path: str) -> t.Any:
        if not self.mux_enabled():
            return super().fetch_file(in_path, out_path)  # type: ignore[misc]
        self._mux_set_host()
        display.vvv(f'FETCH {in_path} TO {out_path}', self.host)
        if self._mux_folder and self._mux_folder.holds(in_path):
            self.mux_run_errands()
        source, dest = to_bytes(in_path), os.path.abspath(to_text(out_path))
        listing = jobs_pb2.Command(argv=[b'ls', b'-dlL', b'--', source], plain=to_bytes(f'ls -dlL -- {shlex.quote(to_text(in_path))}'))
        steps = [jobs_pb2.Step(command=listing), jobs_pb2.Step(get=jobs_pb2.Get(source=source, path=dest))]
        # A new file gets the mode of the remote one, as from sftp, and nobody else can read it before that.
        with _private_file(dest) as grant:
            listed, answer = self.mux_steps(path_pb2.Path(hops=[self.mux_account()]), steps)
            grant(_listed_mode(listed[1]))
        return answer

    def reset(self) -> None:
        if not self.mux_enabled():
            super().reset()  # type: ignore[misc]
            return
        self._mux_set_host()
        try:
            _session().reset(self.mux_host(), path_pb2.Path(hops=[self.mux_account()]))
        except RpcError as error:
            raise errors.to_ansible(error, self.mux_host()) from None
        self.close()  # type: ignore[attr-defined]

    def _mux_set_host(self) -> None:
        self.host = str(to_text(hops.option(self, 'host') or self._play_context.remote_addr))
        self.port = hops.option(self, 'port')
        self.user = hops.option(self, 'remote_user')

    def _mux_introduce(self) -> None:
        self._mux_set_host()
        display.vvv(f'ESTABLISH SSH CONNECTION FOR USER: {self.user}', self.host)


class LocalConnection(MuxConnection):
    """In front of ansible.builtin.local. Modules run in the agent; commands and files need no machine but this one, so that the
    original's own methods are the shortest way and exactly the plain one."""

    if t.TYPE_CHECKING:
        cwd: str | bytes | None

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        return hops.local(interpreter)

    def mux_far(self) -> bool:
        return False

    def mux_process(self) -> jobs_pb2.Process | None:
        process = jobs_pb2.Process(cwd=to_bytes(self.cwd or ''))
        if os.environ != daemon.START_ENVIRON:
            for name, value in os.environb.items():
                process.environ.add(name=name, value=value)
        return process

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Result:
        token = self._mux_token(in_data, cmd) if self.mux_enabled() else None
        if token is None:
            self.mux_run_errands()
            return self.mux_command(cmd, _stock(in_data), sudoable)
        if not self._connected:
            self._connect()  # type: ignore[attr-defined]
        display.vvv(f'EXEC {to_text(cmd)}', self.mux_host())
        return self.mux_module(token, cmd)

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> Result:
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)  # type: ignore[misc,no-any-return]

    def put_file(self, in_path: str, out_path: str) -> t.Any:
        folder = self._mux_folder
        if folder is not None and folder.holds(out_path):
            source = unfrackpath(in_path, basedir=self.cwd)
            with contextlib.suppress(OSError):  # the original says it better
                file = errands.File.take(source, out_path)
                file.mode = 0o666 & ~_umask()
                folder.files.append(file)
                return None
            self.mux_run_errands()
        return super().put_file(in_path, out_path)  # type: ignore[misc]

    def fetch_file(self, in_path: str, out_path: str) -> t.Any:
        self.mux_run_errands()
        return super().fetch_file(in_path, out_path)  # type: ignore[misc]

    def mux_run_errands(self) -> None:
        folder = self._mux_folder
        if folder is not None and (folder.at is None or len(folder.at.hops) == 1):
            folder.run_here()
            folder.at = path_pb2.Path(hops=[self.mux_account()])
        super().mux_run_errands()

    def mux_remove(self) -> None:
        if self._mux_folder is not None and not self._mux_folder.foreign:
            folder, self._mux_folder = self._mux_folder, None
            folder.remove_here()
        super().mux_remove()

    def reset(self) -> None:
        """The next module starts a new agent, for a reset is what a user does whose groups or limits have changed."""
        super().reset()  # type: ignore[misc]
        if self.mux_enabled():
            with contextlib.suppress(RpcError):
                _session().reset(self.mux_host(), path_pb2.Path(hops=[self.mux_account()]))


MIXINS: dict[str, type[MuxConnection]] = {'ansible.builtin.ssh': SshConnection, 'ansible.builtin.local': LocalConnection}
"""The plugins that we stand in front of, by full name."""

_classes: dict[tuple[type, type], type] = {}


def class_for(mixin: type[MuxConnection], original: type) -> type:
    """The class of our objects. Its name must be that of the original, from which Ansible derives the plugin's type."""
    made = _classes.get((mixin, original))
    if made is None:
        made = _classes[mixin, original] = type(original.__name__, (mixin, original), {'__module__': original.__module__})
    return made


def substitute(obj: t.Any, mixin: type[MuxConnection]) -> t.Any:
    """An object of ours with the state of the original."""
    new: t.Any = object.__new__(class_for(mixin, type(obj)))
    new.__dict__.update(obj.__dict__)
    return new


def definitions(mixin: type[MuxConnection]) -> dict[str, dict[str, t.Any]]:
    """Our own options of such a plugin."""
    return {**DEFINITIONS, **SSH_DEFINITIONS} if issubclass(mixin, SshConnection) else DEFINITIONS


def define_variables(load_name: str, mixin: type[MuxConnection]) -> None:
    """Adds our variables to the options of a connection plugin."""
    known = C.config.get_configuration_definitions(plugin_type='connection', name=load_name)
    for name, definition in definitions(mixin).items():
        if name not in known:
            known[name] = definition


_LOGIN_SHELL = b'exec "${SHELL:-/bin/sh}" -c "$0"'
"""sshd hands a command line to the account's login shell; so does this."""


class _Bodies:
    """The input of steps in parts; iterable again, for a request that has to be repeated."""

    def __init__(self, bodies: dict[int, bytes]) -> None:
        self._bodies = bodies

    def __iter__(self) -> t.Iterator[jobs_pb2.Body]:
        for step, data in sorted(self._bodies.items()):
            for offset in range(0, max(1, len(data)), BODY_PART):
                yield jobs_pb2.Body(step=step, data=data[offset : offset + BODY_PART], last=offset + BODY_PART >= len(data))


@contextlib.contextmanager
def _private_file(path: str) -> t.Iterator[t.Callable[[int], None]]:
    """Makes a new file that only its owner can read, for a content to come; gives the function that sets its final mode, less the umask.
    Without a content it goes again; a file that is there already is left as it is."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError:
        yield lambda _: None
        return
    umask = _umask()
    try:
        yield lambda mode: os.chmod(path, mode & ~umask)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _listed_mode(listing: bytes) -> int:
    """The mode in a line of ``ls -l``, writable for the owner; that of a new file where there is none."""
    letters = listing[1:10]
    if len(letters) < 9:
        return 0o666
    bits = ''.join('0' if letter in b'-ST' else '1' for letter in letters)
    return int(bits, 2) | 0o200


def _answers(codes: dict[int, int | None], out: list[tuple[list[bytes], list[bytes]]]) -> list[Result | None]:
    answers: list[Result | None] = []
    for n, (stdout, stderr) in enumerate(out):
        code = codes.get(n)
        answers.append(None if code is None else (code, b''.join(stdout), b''.join(stderr)))
    return answers


def _session() -> daemon.Session:
    try:
        return daemon.session()
    except daemon.DaemonError as error:
        raise AnsibleError(str(error)) from None


def _stock(in_data: bytes | None) -> bytes | None:
    return in_data.stock() if isinstance(in_data, payload.Token) else in_data


def _tool_failed(error: RpcError) -> Result:
    """The become tool itself refused: what the plain way gives is its text and a failed command."""
    text = (error.detail.stderr or error.detail.message if error.detail else error.message).rstrip('\n') + '\n'
    return 127 if 'not found' in text else 1, b'', to_bytes(text)
