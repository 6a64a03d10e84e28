"""Connections: what stands in front of Ansible's own plugins and sends their work through the daemon.

An object of ours is of a class made of a mixin and the original class, so that options, documentation and everything that is not
overridden here stay the original's. With ``mitogen_enabled: false`` it is the original. This is what all of them have in common."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_text

from . import along, ansiballz, baton, beforehand, compat, daemon, display, errands, errors, hops, payload, rehearsal, successors
from .client import RpcError
from .v1 import error_pb2, jobs_pb2, path_pb2

BODY_PART = 128 << 10

UPLOADS = 5
"""How often the daemon is given a module's code for one request: files may change while they are read, and then it wants them anew."""

DEFINITIONS: dict[str, dict[str, t.Any]] = {
    'mitogen_enabled': {
        'description': ['Whether mitogen-mux does the work of this connection. If not, everything is done as if it were not there.'],
        'type': 'bool',
        'default': True,
        'vars': [{'name': 'mitogen_enabled'}],
        'env': [{'name': 'MITOGEN_ENABLED'}],
    },
    'mitogen_max_interpreters': {
        'description': ['How many interpreters the host may have at the same time; 0 is as MITOGEN_MAX_INTERPRETERS says.'],
        'type': 'int',
        'default': 0,
        'vars': [{'name': 'mitogen_max_interpreters'}],
    },
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

    mux_definitions: t.ClassVar[dict[str, dict[str, t.Any]]] = DEFINITIONS
    """Our own options of such a plugin."""
    mux_hostvars: t.Any = None
    """The variables of all hosts, each templated for its own."""
    mux_needed = ''
    """The interpreter of the account where it is only on the way; empty: it may do without an agent."""
    mux_chain: tuple[str, ...] = ()
    """The hosts that are reached through this one, the last first, if it is not for its own sake that this object was made."""

    _mux_escalation: hops.Escalation | None = None
    _mux_remembers = False
    _mux_discovery: jobs_pb2.Discovery | None = None
    _mux_input = ''
    _mux_rehearse: t.Callable[[], rehearsal.Outcomes] | None = None
    _mux_along: along.Along | None = None
    _mux_last_file = ''

    def mux_enabled(self) -> bool:
        """Whether we are to do this connection's work."""
        return bool(hops.option(self, 'mitogen_enabled', True))

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        """The hop to the connection's account."""
        raise NotImplementedError

    def mux_way(self) -> list[path_pb2.Hop]:
        """The hops before that one."""
        return []

    def mux_path(self, interpreter: str = '') -> path_pb2.Path:
        """The path to the connection's account."""
        most = max(0, int(hops.option(self, 'mitogen_max_interpreters', 0)))
        return path_pb2.Path(hops=[*self.mux_way(), self.mux_account(interpreter)], max_interpreters=most)

    def mux_become(self, plugin: t.Any, interpreter: str) -> path_pb2.Hop:
        """The hop to an account that the task has no part in."""
        run = session() if interpreter else None
        return hops.become(self, interpreter, run.attach.stage1 if run else '', run.attach.agent_name if run else '', plugin)

    def mux_depth(self) -> int:
        """How many hops that path has; what a task becomes is behind them."""
        return len(self.mux_way()) + 1

    def set_options(self, task_keys: t.Any = None, var_options: t.Any = None, direct: t.Any = None) -> None:
        self.mux_learn(var_options)
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)  # type: ignore[misc]

    def _resolve_option_variables(self, variables: t.Any, templar: t.Any) -> t.Any:
        self.mux_learn(variables)
        return super()._resolve_option_variables(variables, templar)  # type: ignore[misc]

    def mux_learn(self, variables: t.Any) -> None:
        """Takes what the core knows of the hosts."""
        if not variables:
            return
        self.mux_hostvars = variables.get('hostvars', self.mux_hostvars)
        successors.warn(successors.VARIABLES, variables)

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
        run = session()
        become = self._mux_become(cmd) is not None
        try:
            if self._mux_along is not None and (answer := self._mux_along.recall(token, become, self._mux_folder)) is not None:
                return answer
            path = self.mux_path(token.interpreter)
            if become:
                path.hops.append(hops.become(self, token.interpreter, run.attach.stage1, run.attach.agent_name))
            if account := payload.removed_account(token):
                run.vacate(self.mux_host(), account)
            outcomes = self._mux_outcomes(become)
            try:
                return self._mux_run_module(token, path, outcomes)
            except payload.NotCovered:
                if not outcomes.unchanged and outcomes.changed is None:
                    raise
                return self._mux_run_module(token, path, rehearsal.Outcomes())  # it is one of the questions
        except payload.NotCovered:
            return self.mux_command(cmd, token.stock(), sudoable=True)
        except RpcError as error:
            if self._mux_refused(error):
                return tool_failed(error)
            if error.kind == error_pb2.Error.INTERPRETER_MISSING:
                # Nothing was run. The plain way gives the very message that the core knows how to read.
                return self.mux_command(cmd, token.stock(), sudoable=True)
            raise self._mux_error(error) from None

    def _mux_outcomes(self, become: bool) -> rehearsal.Outcomes:
        """What may be asked next of the same account."""
        if self._mux_rehearse is None:
            return rehearsal.Outcomes()
        with self._mux_meanwhile('_mux_escalation', self._mux_escalation):  # a rehearsal has escalations of its own
            return self._mux_rehearse().within(become)

    def _mux_refused(self, error: RpcError) -> bool:
        """Whether the tool by which a task becomes another account has refused."""
        return error.kind == error_pb2.Error.BECOME_FAILED and (error.detail is None or error.detail.hop >= self.mux_depth())

    def _mux_error(self, error: RpcError) -> AnsibleError:
        return errors.to_ansible(error, self.mux_host(), self.mux_depth())

    def _mux_run_module(self, token: payload.Token, path: path_pb2.Path, outcomes: rehearsal.Outcomes) -> Result:
        """Runs a module with what waits before it and what may be asked after it, in one request."""
        errand = self._mux_errand(token, path)
        at = len(errand.steps)
        if errand.folder is not None or errands.core_module(token) != 'stat':
            outcomes = outcomes.without_change()
        more = along.Along(outcomes, at, path, self._mux_module_step)
        tokens = {at: token, **more.tokens}
        steps = [*errand.steps, self._mux_module_step(token), *more.steps, *errand.last]
        decides = [at] if token.last else more.last if self._mux_last_file else []
        failure: RpcError | None = None
        wanted = 0
        while True:
            try:
                answers = self._mux_run(path, steps, {**errand.bodies, **more.bodies}, decides=decides)
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
                answers, failure = error.answers, error
                if len(answers) <= at or answers[at] is None:
                    raise
            else:
                self._mux_errand_done(errand, answers)
            more.learn(answers, failure, self._mux_folder)
            self._mux_along = more
            return t.cast(Result, answers[at])

    def _mux_module_step(self, token: payload.Token) -> jobs_pb2.Step:
        module = jobs_pb2.Module(
            payload=token.source.key(), params=token.params, name=token.source.name, rlimit_nofile=token.rlimit_nofile, process=self.mux_process()
        )
        module.input, module.glance = self._mux_input, token.glance
        module.logging = display.verbosity() > 2 and not payload.silent(token)
        for name, value in token.environment:
            module.environment.add(name=name, value=value)
        return jobs_pb2.Step(module=module)

    def _mux_upload(self, token: payload.Token) -> None:
        key = token.source.key()
        with payload.building(key) as mine:
            if mine:
                made = beforehand.build(token.source)
                session().upload(key, made.manifest, made.inputs, made.blobs)

    def mux_rehearse(self, rehearse: t.Callable[[], rehearsal.Outcomes] | None) -> None:
        """Says what may be asked after the next module; None: no more."""
        self._mux_rehearse = rehearse

    def mux_far(self) -> bool:
        """Whether a round trip costs more than the work of avoiding it."""
        return True

    @contextlib.contextmanager
    def _mux_meanwhile(self, name: str, value: t.Any) -> t.Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    def mux_remembering(self) -> contextlib.AbstractContextManager[None]:
        """Meanwhile commands ask for what does not change while the connection lives."""
        return self._mux_meanwhile('_mux_remembers', True)

    def mux_discovering(self, prefer: t.Iterable[str]) -> contextlib.AbstractContextManager[None]:
        """Meanwhile a command without input is the search for an interpreter; which of them the core will choose is a guess."""
        return self._mux_meanwhile('_mux_discovery', jobs_pb2.Discovery(prefer=prefer))

    def mux_input(self, index: str) -> contextlib.AbstractContextManager[None]:
        """Meanwhile modules get the files that the file ``index`` names (jobs_pb2.Module.input)."""
        return self._mux_meanwhile('_mux_input', index)

    def mux_last_file(self, dest: str) -> contextlib.AbstractContextManager[None]:
        """Meanwhile the action copies a file of that name, its last; empty: that is not known."""
        return self._mux_meanwhile('_mux_last_file', dest)

    def mux_forget(self) -> None:
        """What was asked ahead and is not wanted is no answer to a later question."""
        self._mux_along = None

    def mux_shell(self) -> list[bytes]:
        """What stands before a command line for an agent."""
        return [to_bytes(self._play_context.executable or '/bin/sh'), b'-c']

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> Result:
        """Runs a command line as the plain plugin would."""
        raise NotImplementedError

    def mux_steps(self, path: path_pb2.Path, steps: list[jobs_pb2.Step], body: bytes | None = None, tty: bool = False) -> list[Result]:
        """Runs steps on a node; ``body`` is the input of the first, which may have a terminal. Errors are those of Ansible."""
        try:
            answers = self._mux_run(path, steps, {0: body} if body else {})
            return t.cast('list[Result]', answers)
        except RpcError as error:
            if self._mux_refused(error):
                return [tool_failed(error, tty)]
            raise self._mux_error(error) from None

    def _mux_run(
        self, path: path_pb2.Path, steps: list[jobs_pb2.Step], bodies: dict[int, bytes], timeout: float | None = None, decides: t.Sequence[int] = ()
    ) -> list[Result | None]:
        """Runs steps; gives an answer for each, None for one whose guard said no. An RpcError has those that came before it. ``timeout`` in seconds.
        Once one of ``decides`` has been run the action asks nothing more."""
        request = jobs_pb2.Request(host=self.mux_host(), path=path, steps=steps)
        turn = baton.my_turn()
        while True:
            if turn is not None:
                turn.asks(request, decides, self._mux_last_file)
            try:
                return self._mux_send(request, bodies, timeout)
            except RpcError as error:
                if error.kind != error_pb2.Error.NOT_BEGUN or turn is None:
                    raise
            request.ClearField('follow')  # what came before did not end as it most often does
            turn.refused()

    def _mux_send(self, request: jobs_pb2.Request, bodies: dict[int, bytes], timeout: float | None) -> list[Result | None]:
        steps = request.steps
        if not request.HasField('follow'):
            baton.turn()  # what came before may have told of secrets; if it does, nothing follows it
        for step in steps:
            if step.WhichOneof('action') == 'module':
                step.module.secrets[:] = compat.secrets_in(step.module.params)
        files_only = all(step.WhichOneof('action') in ('put', 'get', 'folder') for step in steps)
        out: list[tuple[list[bytes], list[bytes]]] = [([], []) for _ in steps]
        codes: dict[int, int | None] = {}
        run = session()
        send = run.transfer if files_only else run.request
        try:
            with contextlib.closing(send(request, _Bodies(bodies), timeout)) as replies:
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
        beforehand.answered()
        return _answers(codes, out)


class _Bodies:
    """The input of steps in parts; iterable again, for a request that has to be repeated."""

    def __init__(self, bodies: dict[int, bytes]) -> None:
        self._bodies = bodies

    def __iter__(self) -> t.Iterator[jobs_pb2.Body]:
        for step, data in sorted(self._bodies.items()):
            for offset in range(0, max(1, len(data)), BODY_PART):
                yield jobs_pb2.Body(step=step, data=data[offset : offset + BODY_PART], last=offset + BODY_PART >= len(data))


def _answers(codes: dict[int, int | None], out: list[tuple[list[bytes], list[bytes]]]) -> list[Result | None]:
    answers: list[Result | None] = []
    for n, (stdout, stderr) in enumerate(out):
        code = codes.get(n)
        answers.append(None if code is None else (code, b''.join(stdout), b''.join(stderr)))
    return answers


def session() -> daemon.Session:
    """The run's session. Raises AnsibleError."""
    try:
        return daemon.session()
    except daemon.DaemonError as error:
        raise AnsibleError(str(error)) from None


def stock(in_data: bytes | None) -> bytes | None:
    """What the core itself would send."""
    return in_data.stock() if isinstance(in_data, payload.Token) else in_data


def tool_failed(error: RpcError, tty: bool = False) -> Result:
    """The become tool itself refused: what the plain way gives is its text, where it would have said it, and a failed command."""
    text = (error.detail.stderr or error.detail.message if error.detail else error.message).rstrip('\n') + '\n'
    code = (error.detail.exit_code if error.detail else 0) or 1
    if tty and error.detail and error.detail.stderr:
        return code, to_bytes(text.replace('\n', '\r\n')), b''
    return code, b'', to_bytes(text)


def umask() -> int:
    """That of this process. Only where the kernel does not tell it is it set for that, for another thread may make a file meanwhile."""
    with contextlib.suppress(OSError), open('/proc/self/status') as status:
        for line in status:
            if line.startswith('Umask:'):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
