"""The seams: the few places of Ansible where our work is joined to its own.

Each is guarded by "is this connection ours", installed once per process and only after a test that the core has what it stands on.
Without them (MITOGEN_SEAMS=0, or a core newer than we know) a connection of ours gets the payload whole, and runs it all the same."""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import typing as t

from ansible import constants as C
from ansible.executor import module_common
from ansible.plugins import action as action_plugins
from ansible.plugins.loader import connection_loader, lookup_loader, module_loader

from . import actions, beforehand, compat, connection, display, payload, standins, synchronize, trees

_LOOKUPS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'lookup')

_current_action: contextvars.ContextVar[t.Any] = contextvars.ContextVar('mitogen_mux_action', default=None)
"""The action whose module is being built: modify_module itself is not told."""

_installed = False
_sources: dict[str, tuple[tuple[int, ...], payload.Source | None]] = {}


def enabled() -> bool:
    """Whether the environment leaves us on."""
    return os.environ.get('MITOGEN_ENABLED', '').strip().lower() not in ('0', 'false', 'no', 'off', 'n', 'f')


def ours(candidate: t.Any) -> bool:
    """Whether this is a connection of ours that is switched on."""
    return isinstance(candidate, connection.MuxConnection) and candidate.mux_enabled()


def install() -> None:
    """The build seam and what belongs to it. Does nothing the second time."""
    global _installed
    if _installed:
        return
    _installed = True
    if os.environ.get('MITOGEN_SEAMS') == '0':
        return
    missing = compat.missing_seams()
    if missing:
        display.remark(f'mitogen-mux: this ansible-core has changed {missing}; modules are sent the slower way')
        return
    base = action_plugins.ActionBase
    action_plugins.modify_module = _modify_module(action_plugins.modify_module)
    base._configure_module = _configure_module(base._configure_module)
    base._is_pipelining_enabled = _is_pipelining_enabled(base._is_pipelining_enabled)
    base._transfer_data = _transfer_data(base._transfer_data)
    actions.install(ours)
    trees.install(ours)
    synchronize.install(ours)
    lookup_loader.add_directory(_LOOKUPS)
    compat.show_variables(connection.MuxConnection)


def substitute() -> t.Callable[[], None]:
    """What the loader returns for a plugin that we stand in front of becomes an object of ours, until the returned function is called."""
    loader = t.cast(t.Any, connection_loader)
    original, before = loader.get_with_context, loader.__dict__.get('get_with_context')

    def get_with_context(name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        result = original(name, *args, **kwargs)
        if result.object is None or isinstance(result.object, (type, connection.MuxConnection)):
            return result
        full_name = result.plugin_load_context.resolved_fqcn or ''
        ours = standins.adopt(result.object, full_name)
        if ours is None:
            display.once_a_run(f'untouched-{full_name}', f'mitogen-mux leaves connections of type {full_name} as they are')
            return result
        return result._replace(object=ours)

    def undo() -> None:
        if loader.__dict__.get('get_with_context') is get_with_context:
            if before is None:
                del loader.get_with_context
            else:
                loader.get_with_context = before

    loader.get_with_context = get_with_context
    return undo


def modules(blocks: t.Iterable[t.Any]) -> list[t.Callable[[], payload.Source | None]]:
    """What finds the modules that the tasks of these blocks will probably run, each once, as ``_configure_module`` of the core would."""
    found: dict[tuple[str, tuple[str, ...]], t.Callable[[], payload.Source | None]] = {}
    for block in blocks:
        for task in block.get_tasks():
            name = _RUNS.get(task.action.removeprefix('ansible.builtin.'), task.action)
            found.setdefault((name, tuple(task.collections or ())), functools.partial(_find, name, task.collections))
    return list(found.values())


_RUNS = {'template': 'copy', 'shell': 'command'}
"""Actions of the core that run a module of another name."""


def _find(name: str, collections: list[str] | None) -> payload.Source | None:
    context = module_loader.find_plugin_with_context(name, '', collection_list=collections)
    return _source(name, context.plugin_resolved_path) if context.resolved else None


def _configure_module(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    def configure_module(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if not ours(self._connection):
            return original(self, *args, **kwargs)
        reset = _current_action.set(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _current_action.reset(reset)

    return configure_module


def _is_pipelining_enabled(original: t.Callable[..., bool]) -> t.Callable[..., bool]:
    def is_pipelining_enabled(self: t.Any, module_style: str, wrap_async: bool = False) -> bool:
        if not ours(self._connection):
            return original(self, module_style, wrap_async)
        return module_style == 'new' and not wrap_async and not C.DEFAULT_KEEP_REMOTE_FILES

    return is_pipelining_enabled


def _transfer_data(original: t.Callable[..., str]) -> t.Callable[..., str]:
    def transfer_data(self: t.Any, remote_path: str, data: t.Any) -> str:
        # Some actions write the payload to a file after all (parallel fact gathering, for one): then it must be the real one.
        return original(self, remote_path, data.stock() if isinstance(data, payload.Token) else data)

    return transfer_data


def _modify_module(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    signature = inspect.signature(original)

    def modify_module(*args: t.Any, **kwargs: t.Any) -> t.Any:
        action = _current_action.get()
        if action is None:
            return original(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        answer = _tokenize(action, call.arguments, lambda: compat.built_data(original(*args, **kwargs)))
        return original(*args, **kwargs) if answer is None else answer

    return modify_module


def _tokenize(action: t.Any, call: dict[str, t.Any], stock: t.Callable[[], bytes]) -> t.Any:
    """The token for a module, as modify_module's answer; None for what is left to the core."""
    task_vars = call['task_vars'] or {}
    if call['async_timeout'] or C.DEFAULT_KEEP_REMOTE_FILES or compat.wants_extensions(task_vars):
        return None
    source = _source(call['module_name'], call['module_path'])
    if source is None:
        return None
    environment = payload.environment(call['environment'] or {})
    limit = _rlimit_nofile(task_vars)
    if environment is None or limit is None:
        return None
    try:
        params = compat.encode_params(call['module_args'])
    except TypeError:
        return None  # the core says it better
    if not payload.fits(params):
        return None
    beforehand.expect(source)
    interpreter, arguments = module_common._extract_interpreter(source.data)
    shebang, interpreter = module_common._get_shebang(
        interpreter or '/usr/bin/python', call['task_vars'], call['templar'], arguments, remote_is_local=call['remote_is_local']
    )
    if '/' not in interpreter and any(name == b'PATH' for name, _ in environment):
        return None
    token = payload.Token()
    token.source, token.params, token.environment, token.rlimit_nofile, token.stock = source, params, environment, limit, stock
    token.glance = actions.glances(action, source)
    token.last = actions.asks_one_module(action, source) and not action._discovered_interpreter_key  # which is a fact
    token.interpreter = action._connection._shell.build_module_command('', shebang, '').strip()
    return compat.built(token, shebang)


def _source(name: str, path: str) -> payload.Source | None:
    info = os.stat(path)
    identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    known = _sources.get(path)
    if known is None or known[0] != identity or (known[1] is not None and known[1].name != name):
        known = _sources[path] = identity, payload.classify(name, path)
    return known[1]


def _rlimit_nofile(task_vars: dict[str, t.Any]) -> int | None:
    value = C.config.get_config_value('PYTHON_MODULE_RLIMIT_NOFILE', variables=task_vars)
    try:
        return int(value)
    except (TypeError, ValueError):
        return None  # a template
