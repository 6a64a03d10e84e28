"""What differs between the supported versions of ansible-core, each with the version that ends it. Nothing else in the plugins asks for a
version; and where a feature can be seen, this file asks for the feature instead."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import inspect
import json
import os
import threading
import time
import traceback
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.executor import interpreter_discovery, module_common
from ansible.parsing import vault
from ansible.parsing.yaml import objects

BUILT_MODULE: t.Any = getattr(module_common, '_BuiltModule', None)
"""What ``modify_module`` returns: a tuple (data, style, shebang) up to 2.18, this class since 2.19."""

BECOME_TIMEOUT: type[AnsibleError] = AnsibleError if BUILT_MODULE is None else AnsibleConnectionFailure
"""What the core raises for a become tool that neither asks nor starts the command in time: a failed task up to 2.18, an unreachable host
since 2.19."""

LOADER = '' if BUILT_MODULE is None else 'ansible.module_utils._internal._ansiballz._loader'
"""The payload's own entry point: runpy up to 2.18, a module of the payload since 2.19."""

PROFILE = '' if BUILT_MODULE is None else 'legacy'
"""Serialization profile of parameters and results. 2.19 has others, behind a switch that is off; a module that asks for one is not ours."""

CORE_MODULE_UTILS = os.path.realpath(os.path.join(os.path.dirname(module_common.__file__), '..', 'module_utils'))
"""ansible-core's own module_utils."""

CORE_ROOT = os.path.dirname(os.path.dirname(CORE_MODULE_UTILS))
"""The folder that holds the package ``ansible``: paths in a payload are relative to it."""

ROUTING = os.path.join(CORE_ROOT, 'ansible', 'config', 'ansible_builtin_runtime.yml')
"""Redirects of module_utils of ansible.builtin."""


def _lazy() -> tuple[type, ...]:
    if BUILT_MODULE is None:
        return ()
    from ansible._internal._templating import _lazy_containers

    return (_lazy_containers._AnsibleLazyTemplateMixin,)


LAZY = _lazy()
"""Containers whose items are templated when they are looked at: since 2.19."""


ENCRYPTED: t.Any = getattr(vault, 'EncryptedString', None) or objects.AnsibleVaultEncryptedUnicode
"""A string of the vault: another class up to 2.18."""


FINALIZERS: dict[str, t.Callable[[t.Any], bool]] = {}
"""The core's own, and for which objects they do nothing: since 2.19 a template removes the file that was written for its debugger."""

if BUILT_MODULE is not None:
    FINALIZERS['ansible._internal._templating._jinja_bits.AnsibleTemplate.__del__'] = lambda template: not template._python_source_temp_path


def tags(value: t.Any) -> t.Any:
    """What is known of a value besides itself, which only cores since 2.19 know."""
    return getattr(value, '_ansible_tags_mapping', None)


def _secret_masker() -> t.Any:
    with contextlib.suppress(ImportError):
        from ansible.module_utils._internal import _secrets

        return _secrets._secret_masker
    return None


_masker = _secret_masker()

MASKS_SECRETS = _masker is not None
"""Whether the core remembers what is secret, and results tell of more: since 2.22."""


def _copy_clears_acls() -> bool:
    with open(os.path.join(CORE_ROOT, 'ansible', 'modules', 'copy.py'), encoding='utf-8') as module:
        return 'def clear_facls' in module.read()


COPY_CLEARS_ACLS = _copy_clears_acls()
"""Whether the module copy takes ACLs off a file for another account, which leaves traces in its mode: 2.16, ended by 2.17."""


@functools.cache
def copy_knows_parents() -> bool:
    """Whether copy of a folder leaves out the folders that its files have made: since 2.20. Up to 2.19 it asks for each of them."""
    from ansible.plugins.action import copy

    return 'implicit_directories.add(source_rel)' in inspect.getsource(copy)


def likely_interpreters(discovery_mode: str) -> list[str]:
    """Which interpreter the core will choose if it finds one of these: the first. Up to 2.18 it looks into a map of distributions, of which
    nearly all have the same; later cores take what they find first."""
    if not hasattr(interpreter_discovery, '_version_fuzzy_match'):
        return []
    return ['/usr/bin/python', '/usr/bin/python3'] if discovery_mode.startswith('auto_legacy') else ['/usr/bin/python3']


def surrogate_fqn(module_name: str) -> str:
    """The full name that a payload gives to a module whose path tells none (roles, ``library/``)."""
    return f'ansible.modules.{module_name}' if BUILT_MODULE is None else f'ansible.legacy.{module_name}'


def preload_roots() -> list[str]:
    """The modules that every payload of this core imports before the module itself runs."""
    if BUILT_MODULE is None:
        return ['ansible.module_utils.basic']
    from ansible.module_utils._internal import _json

    names = [_json.get_module_serialization_profile_module_name(PROFILE, to_module) for to_module in (True, False)]
    return ['ansible.module_utils.basic', LOADER, *names]


def wants_extensions(task_vars: dict[str, t.Any]) -> bool:
    """Whether a debugger or coverage shall go into the payload. Such a payload is left to the core."""
    if BUILT_MODULE is None:
        return bool(os.environ.get('_ANSIBLE_COVERAGE_CONFIG'))
    from ansible._internal._ansiballz import _builder

    if C.config.get_config_value('_MODULE_METADATA'):
        return True
    return bool(_builder.ExtensionManager.create(task_vars=task_vars).extension_names)


def encode_params(module_args: dict[str, t.Any]) -> bytes:
    """The module's parameters as the core's own encoder writes them into a payload. Raises TypeError for what it cannot write."""
    params = {'ANSIBLE_MODULE_ARGS': module_args}
    if BUILT_MODULE is None:
        from ansible.module_utils.common.json import AnsibleJSONEncoder

        return json.dumps(params, cls=AnsibleJSONEncoder, vault_to_text=True).encode()
    from ansible.module_utils.common.json import Direction, get_module_encoder

    return json.dumps(params, cls=get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)).encode()


def secrets_in(params: bytes) -> list[bytes]:
    """The texts in a module's parameters that the core masks. The module is told them, for what it logs. What is secret becomes known as the run
    goes on: so this is asked late."""
    if not MASKS_SECRETS:
        return []
    return [secret.encode('utf-8', 'surrogatepass') for secret in sorted(_masker.secrets_in_json(params.decode('utf-8', 'surrogatepass')))]


def fill_payload(archive: t.Any, module_name: str, fqn: str, path: str, source: bytes) -> None:
    """Lets the core write the files of a payload into ``archive``, in its own order."""
    if BUILT_MODULE is None:
        date = time.gmtime()[:6]
        module_common.recursive_finder(module_name, fqn, source, archive, date)
        module_common._add_module_to_zip(archive, date, fqn, source)
        return
    from ansible._internal._ansiballz import _builder
    from ansible._internal._datatag._tags import Origin

    extensions = _builder.ExtensionManager()
    now = datetime.datetime.now(datetime.timezone.utc)
    with _imports_remembered():
        module_common.recursive_finder(module_name, fqn, Origin(path=path).tag(source), archive, now, extensions)
    module_common._add_module_to_zip(archive, now, fqn, source, path, extensions)


FINDER_PARSES = 'module_data' in inspect.signature(module_common.ModuleDepFinder).parameters
"""Whether the core's finder is given texts: since 2.21. Up to 2.20 it is given trees."""

_imports: dict[tuple[str, bytes, bool], dict[str, t.Any]] = {}
"""What the core's finder saw in files of module_utils, by name and text: nearly all modules need the same fifty."""


@contextlib.contextmanager
def _imports_remembered() -> t.Iterator[None]:
    """Meanwhile no such file is parsed twice."""
    if not FINDER_PARSES:
        yield
        return
    finder: t.Any = module_common.ModuleDepFinder
    look = finder.__init__

    def init(self: t.Any, module_fqn: str, module_data: bytes, is_pkg_init: bool = False) -> None:
        key = module_fqn, module_data, is_pkg_init
        if key in _imports:
            self.__dict__.update(_imports[key])
            return
        look(self, module_fqn, module_data, is_pkg_init)
        if 'module_utils' in (parts := module_fqn.split('.')) and 'modules' not in parts:
            _imports[key] = {name: value for name, value in self.__dict__.items() if name != 'tree'}

    finder.__init__ = init
    try:
        yield
    finally:
        finder.__init__ = look


def built(data: bytes, shebang: str) -> t.Any:
    """``modify_module``'s answer for a new-style Python module."""
    if BUILT_MODULE is None:
        return data, 'new', shebang
    return BUILT_MODULE(b_module_data=data, module_style='new', shebang=shebang, serialization_profile=PROFILE)


def built_data(answer: t.Any) -> bytes:
    """The payload in ``modify_module``'s answer."""
    return bytes(answer[0] if BUILT_MODULE is None else answer.b_module_data)


def prewarm() -> None:
    """Does once in the parent what every forked worker would do for the first time."""
    if BUILT_MODULE is None:
        return
    from ansible.module_utils.common.json import Direction, get_module_decoder, get_module_encoder

    get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
    get_module_decoder(PROFILE, Direction.MODULE_TO_CONTROLLER)
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from ansible._internal import _task  # 2.21: field tables of results

        _task.UnifiedTaskResult.from_module_result_dict({})
        _task.UnifiedTaskResult.from_action_result_dict({})


_ACTION_HELPERS = (
    '_configure_module',
    '_is_pipelining_enabled',
    '_transfer_data',
    '_execute_module',
    '_make_tmp_path',
    '_remove_tmp_path',
    '_should_remove_tmp_path',
    '_fixup_perms2',
    '_remote_expand_user',
    '_execute_remote_stat',
    '_is_become_unprivileged',
)


DETACHED = BUILT_MODULE is not None
"""Whether a worker's children get neither the run's terminal nor its session: since 2.19."""


def keeps_session(variables: dict[str, t.Any]) -> bool:
    """Whether the worker of a task with such variables is to stay in the run's session, with its terminal, as one may ask for since 2.21."""
    with contextlib.suppress(AnsibleError):  # there is no such setting
        return not C.config.get_config_value('WORKER_SESSION_ISOLATION', variables=variables)
    return False


def spare_source() -> None:
    """Since 2.19 whoever gives a warning is found by the file of the calling frame. Python is asked for the lines around each call, too, which
    nobody uses, and looks through all modules for them: some 7,000 calls of the system."""
    with contextlib.suppress(ImportError, AttributeError):
        from ansible.module_utils._internal import _stack

        if set(_stack.iter_stack.__code__.co_names) == {'_inspect', 'stack', 'frame', 'f_locals'} and _stack._inspect is inspect:
            _stack.iter_stack = _iter_stack


def _iter_stack() -> t.Iterator[inspect.FrameInfo]:
    _skip_stackwalk = True
    for frame in inspect.stack(0):
        if '_skip_stackwalk' not in frame.frame.f_locals:
            yield frame


def missing_workers() -> str:
    """What this core lacks of what worker threads stand on; empty if they fit."""
    from ansible.executor.process import worker
    from ansible.plugins import strategy
    from ansible.utils.display import Display

    named: t.Any = getattr(strategy, 'WorkerProcess', None)
    if named is None or named is not worker.WorkerProcess:
        return 'plugins.strategy.WorkerProcess'
    wanted = {'final_q', 'task_vars', 'host', 'task', 'play_context', 'loader', 'variable_manager', 'shared_loader_obj', 'worker_id'}
    if not wanted <= set(inspect.signature(named).parameters):
        return 'the parameters of WorkerProcess'
    if '_final_q' not in vars(Display()):
        return 'Display._final_q'
    return ''


_queue_of_thread = threading.local()


@contextlib.contextmanager
def display_per_thread() -> t.Iterator[None]:
    """Lets a thread have what a forked worker has: a Display that sends all through the result queue, in order with results and callbacks."""
    from ansible.utils.display import Display

    cls = type(Display())

    def get(self: t.Any) -> t.Any:
        return getattr(_queue_of_thread, 'queue', None) or vars(self).get('_final_q')

    def put(self: t.Any, value: t.Any) -> None:
        vars(self)['_final_q'] = value

    cls._final_q = property(get, put)
    try:
        yield
    finally:
        del cls._final_q


@contextlib.contextmanager
def display_through(final_q: t.Any) -> t.Iterator[None]:
    """What this thread displays goes through the queue."""
    before = getattr(_queue_of_thread, 'queue', None)
    _queue_of_thread.queue = final_q
    try:
        yield
    finally:
        _queue_of_thread.queue = before


def run_host_task(job: dict[str, t.Any]) -> None:
    """What the core's WorkerProcess does once it has been forked: runs the host-task and sends its result. ``job`` has the names of its
    constructor's parameters."""
    if BUILT_MODULE is None:
        _run_to_2_18(job)
        return
    from ansible._internal import _task

    if hasattr(_task.TaskContext, 'create'):
        _run_since_2_21(job, _task)
    else:
        _run_to_2_20(job, _task)


def _run_to_2_18(job: dict[str, t.Any]) -> None:
    from ansible.errors import AnsibleConnectionFailure
    from ansible.executor.task_executor import TaskExecutor

    host, task, final_q = job['host'], job['task'], job['final_q']

    def send(result: dict[str, t.Any], fields: dict[str, t.Any]) -> None:
        final_q.send_task_result(host.name, task._uuid, result, task_fields=fields)

    try:
        with open(os.devnull) as stdin:
            executor = TaskExecutor(
                host, task, job['task_vars'], job['play_context'], stdin, job['loader'], job['shared_loader_obj'], final_q, job['variable_manager']
            )
            result = executor.run()
        try:
            send(result, task.dump_attrs())
        except Exception as error:
            send({'failed': True, 'msg': f'{error}', 'exception': traceback.format_exc()}, {})
    except AnsibleConnectionFailure:
        send({'unreachable': True}, task.dump_attrs())
    except Exception:
        send({'failed': True, 'exception': traceback.format_exc(), 'stdout': ''}, task.dump_attrs())


def _run_to_2_20(job: dict[str, t.Any], _task: t.Any) -> None:
    from ansible._internal._errors import _error_utils
    from ansible.errors import AnsibleError
    from ansible.executor.task_executor import TaskExecutor
    from ansible.executor.task_result import _RawTaskResult

    host, task, final_q = job['host'], job['task'], job['final_q']
    with _task.TaskContext(task):
        executor = TaskExecutor(host, task, job['task_vars'], job['play_context'], job['loader'], job['shared_loader_obj'], final_q, job['variable_manager'])
        result = executor.run()
        try:
            final_q.send_task_result(_RawTaskResult(host=host, task=task, return_data=result, task_fields=task.dump_attrs()))
        except Exception as error:
            try:
                raise AnsibleError('Task result omitted due to queue send failure.') from error
            except Exception as wrapped:
                result = _error_utils.result_dict_from_exception(wrapped)
                final_q.send_task_result(_RawTaskResult(host=host, task=task, return_data=result, task_fields={}))


def _run_since_2_21(job: dict[str, t.Any], _task: t.Any) -> None:
    from ansible.errors import AnsibleError
    from ansible.executor.task_executor import TaskExecutor
    from ansible.inventory.host import Host
    from ansible.playbook.task import Task

    host, task, final_q = job['host'], job['task'], job['final_q']
    with _task.TaskContext.create(task=task, task_vars=job['task_vars'], host_name=host.name) as context, _secrets_followed(context):
        task.squash()
        executor = TaskExecutor(host, job['play_context'], job['loader'], job['shared_loader_obj'], final_q, job['variable_manager'])
        utr = executor.run()
        utr.finalize_registered_values()
        task.ignore_errors, task.ignore_unreachable = utr.ignore_errors, utr.ignore_unreachable
        try:
            final_q.send_task_result(host, task, utr)
        except Exception as error:
            try:
                raise AnsibleError('Task result omitted due to queue send failure.') from error
            except Exception as wrapped:
                surrogate = Task()
                surrogate._uuid = task._uuid
                utr = _task.UnifiedTaskResult.create_from_action_exception(wrapped)
                utr.finalize_registered_values()
                final_q.send_task_result(Host(name=host.name), surrogate, utr)


@contextlib.contextmanager
def _secrets_followed(context: t.Any) -> t.Iterator[None]:
    """Since 2.22 a context is told of each secret that becomes known, as long as its process lives."""
    try:
        yield
    finally:
        if (tracker := getattr(context, '_new_secrets', None)) is not None:
            tracker.unregister()


def missing_loops() -> str:
    """What this core lacks of what two runners of a loop stand on; empty if they fit."""
    from ansible.executor.task_executor import TaskExecutor

    if list(inspect.signature(TaskExecutor._run_loop).parameters) != ['self', 'items'] or not callable(getattr(TaskExecutor, '_execute', None)):
        return 'TaskExecutor._run_loop'
    if BUILT_MODULE is not None:
        from ansible._internal import _task

        wanted = {'_loop_items', '_item_index', '_raw_loop_results', '_base_task_vars', '_active_task_vars', '_templar'}
        if hasattr(_task.TaskContext, 'create') and not wanted <= set(_task.TaskContext.__dataclass_fields__):
            return 'TaskContext'
    return ''


def loop_context() -> t.Any:
    """What keeps a loop's state since 2.21; None up to 2.20, where the executor does."""
    if BUILT_MODULE is None:
        return None
    from ansible._internal import _task

    return _task.TaskContext.current() if hasattr(_task.TaskContext, 'create') else None


def register_again(context: t.Any, names: t.Iterable[str], result: t.Any) -> None:
    """A loop's state (of 2.21) gets a result that is not its own as what is registered, until it has one of its own again."""
    context.update_task_vars(dict.fromkeys(names, result.as_result_dict()))
    context._registered_vars_enabled = False


def current_task(task: t.Any) -> contextlib.AbstractContextManager[t.Any]:
    """Makes a task the thread's current one, which no core before 2.19 asks for. Not for 2.21, where it belongs to a loop's state."""
    if BUILT_MODULE is None:
        return contextlib.nullcontext()
    from ansible._internal import _task

    return t.cast('contextlib.AbstractContextManager[t.Any]', _task.TaskContext(task))


def loop_variables(executor: t.Any) -> t.Any:
    """Those of a task that is about to loop."""
    context = loop_context()
    return executor._job_vars if context is None else context.task_vars


def skipped_item() -> t.Any:
    """The result of an item that was not run: a dictionary up to 2.20."""
    if loop_context() is None:
        return {'skipped': True, 'changed': False}
    from ansible._internal import _task

    with _task.UnifiedTaskResult.create_and_record() as result:
        result.set_skipped('not run')
    return result


def brings_variables(result: t.Any) -> bool:
    """Whether what comes after this result may see something new, besides what is registered."""
    if isinstance(result, dict):
        return 'ansible_facts' in result
    return bool(result.ansible_facts) or any(result.pending_changes.register_host_variables.values())


def projects(task: t.Any) -> bool:
    """Whether what a task registers is worked out by expressions of its own: since 2.21."""
    if not isinstance(task.register, dict):
        return False
    from ansible._internal import _task

    return any(expression != _task.POLYMORPHIC_RESULT_EXPRESSION for expression in task.register.values())


def template_plugins() -> tuple[t.Any, t.Any, str]:
    """Where templates find their filters and tests; and the owner and name of what answers ``now()``: the function itself up to 2.18, the
    module datetime as it sees it since 2.19."""
    from ansible import template

    if BUILT_MODULE is None:
        return template.JinjaPluginIntercept, template.Templar, '_now_datetime'
    from ansible._internal._templating import _jinja_plugins

    return _jinja_plugins.JinjaPluginIntercept, _jinja_plugins, 'datetime'


def show_variables(ours: t.Any) -> None:
    """Lets connections of ours see the variables of the hosts: up to 2.20 the core shows a plugin only what its options name."""
    from ansible.executor.task_executor import TaskExecutor
    from ansible.plugins.connection import ConnectionBase

    if hasattr(ConnectionBase, '_resolve_option_variables'):
        return
    original = TaskExecutor._set_connection_options

    def set_connection_options(self: t.Any, variables: t.Any, templar: t.Any) -> t.Any:
        if isinstance(self._connection, ours):
            self._connection.mux_learn(variables)
        return original(self, variables, templar)

    TaskExecutor._set_connection_options = set_connection_options


def missing_seams() -> str:
    """What this core lacks of what the seams stand on; empty if they fit. A core newer than those that are known may have moved it."""
    from ansible.plugins import action, loader
    from ansible.plugins.action import copy

    wanted = {'module_name', 'module_path', 'module_args', 'templar', 'task_vars', 'async_timeout', 'environment', 'remote_is_local'}
    original = getattr(action, 'modify_module', None)
    if original is None:
        return 'plugins.action.modify_module'
    if not wanted <= set(inspect.signature(original).parameters):
        return 'the parameters of modify_module'
    if not callable(getattr(action, 'discover_interpreter', None)):
        return 'plugins.action.discover_interpreter'
    for name in _ACTION_HELPERS:
        if not callable(getattr(action.ActionBase, name, None)):
            return f'ActionBase.{name}'
    if not callable(getattr(copy.ActionModule, '_copy_file', None)) or not callable(getattr(copy, '_walk_dirs', None)):
        return 'the action copy'
    for name in ('recursive_finder', '_add_module_to_zip', '_get_shebang', '_extract_interpreter', '_is_binary', '_get_ansible_module_fqn'):
        if not callable(getattr(module_common, name, None)):
            return f'module_common.{name}'
    for name in ('REPLACER', 'NEW_STYLE_PYTHON_MODULE_RE', 'LegacyModuleUtilLocator', 'CollectionModuleUtilLocator', 'module_utils_loader'):
        if not hasattr(module_common, name):
            return f'module_common.{name}'
    if not callable(getattr(loader.connection_loader, 'get_with_context', None)):
        return 'PluginLoader.get_with_context'
    return 'the parameters of run_module' if unknown_to_agents() else ''


def unknown_to_agents() -> set[str]:
    """What a payload's entry point wants and no agent has for it."""
    if not LOADER:
        return set()
    parameters = inspect.signature(importlib.import_module(LOADER).run_module).parameters.values()
    return {p.name for p in parameters if p.default is p.empty} - {'json_params', 'profile', 'module_fqn', 'modlib_path', 'extensions', 'secrets'}
