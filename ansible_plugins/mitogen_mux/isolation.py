"""Which host-tasks need a process of their own: what is not known to leave the run's own process as it was."""

from __future__ import annotations

import os
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.loader import action_loader, connection_loader, module_loader
from ansible.template import Templar

from . import compat, standins

ACTIONS: dict[str, str] = {
    'add_host': 'hands its host to the main thread',
    'assemble': 'reads fragments, writes a temporary file of its own, transfers it',
    'assert': 'templates only',
    'async_status': 'one module',
    'command': 'one module',
    'copy': 'reads and hashes files, transfers them, modules',
    'debug': 'templates only',
    'dnf': 'modules',
    'fail': 'templates only',
    'fetch': 'writes the fetched file and its folders',
    'gather_facts': 'modules',
    'group_by': 'hands its group to the main thread',
    'include_vars': 'reads files',
    'normal': 'one module: every module that has no action plugin of its own, whoever wrote it, for it runs on the target',
    'package': 'modules',
    'raw': 'one command',
    'reboot': 'commands, and waits by time.sleep',
    'script': 'transfers a file, one command',
    'service': 'modules',
    'set_fact': 'templates only',
    'set_stats': 'templates only',
    'shell': 'one module',
    'template': 'reads a file, templates it, transfers it',
    'unarchive': 'transfers a file, one module',
    'uri': 'transfers files, one module',
    'validate_argument_spec': 'templates only',
    'wait_for_connection': 'commands and modules, and waits by time.sleep',
    'yum': 'modules',
}
"""Action plugins of ansible.builtin that were read for this, in every supported version, and why they may share a process: none changes
the environment, the working directory, the umask, signal handlers or the terminal, and what they change of Ansible's own objects is copied
beforehand. All but ``pause``, which talks to the terminal."""

QUIET = frozenset(('command', 'copy', 'dnf', 'normal', 'package', 'raw', 'service', 'shell', 'template', 'yum'))
"""Those that change nothing on the controller before their first request."""

_FOLDER = os.path.join(os.path.dirname(compat.CORE_MODULE_UTILS), 'plugins', 'action')

_OUR_FOLDER = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', 'connection'))

_known: dict[tuple[t.Any, ...], tuple[str, str]] = {}


def reason(job: dict[str, t.Any]) -> str:
    """Why the host-task needs a process of its own; empty if a thread will do. ``job`` is what WorkerProcess would be made from.
    Raises AnsibleError for a value of mitogen_worker that means nothing."""
    task = job['task']
    if _wanted(job) == 'fork':
        return 'mitogen_worker is fork'
    if task.timeout:
        return 'timeout'  # by SIGALRM, which only a main thread gets
    if compat.keeps_session(job['task_vars']):
        return "the run's terminal"
    return _action(task.action, task.collections)[1] or _connection(job)


def guesses(job: dict[str, t.Any]) -> bool:
    """Whether ``reason`` has to evaluate a template."""
    names = ('mitogen_worker', 'ansible_connection', 'mitogen_enabled')
    return _is_template(job['task'].connection) or any(_is_template(job['task_vars'].get(name)) for name in names)


def plugin(name: str, collections: t.Any) -> str:
    """Which of ACTIONS an action is run by; empty for any other."""
    return _action(name, collections)[0]


def _wanted(job: dict[str, t.Any]) -> str:
    value = job['task_vars'].get('mitogen_worker')
    if value is None:
        value = os.environ.get('MITOGEN_WORKER') or 'thread'
    elif _is_template(value):
        value = _template(job, value)
    if value not in ('thread', 'fork'):
        raise AnsibleError(f'{job["host"]}: mitogen_worker is {value!r}: it must be thread or fork')
    return str(value)


def _action(name: str, collections: t.Any) -> tuple[str, str]:
    """The action plugin, as the core's task executor chooses it, if it is one of ACTIONS; or why it is none."""
    if _is_template(name):
        return '', 'the action is a template'
    key = (name, tuple(collections or ()), len(action_loader._extra_dirs), len(module_loader._extra_dirs))  # roles add folders
    known = _known.get(key)
    if known is None:
        known = _known[key] = _resolve(name, collections)
    return known


def _resolve(name: str, collections: t.Any) -> tuple[str, str]:
    module = module_loader.find_plugin_with_context(name, collection_list=collections)
    if module.resolved and module.action_plugin:
        return '', f'action plugin {module.action_plugin}'
    action = action_loader.find_plugin_with_context(name, collection_list=collections)
    if not action.resolved:
        prefix, dot, last = name.rpartition('.')
        group = last.split('_')[0]
        if group in C.NETWORK_GROUP_MODULES and action_loader.has_plugin(f'{prefix}{dot}{group}', collection_list=collections):
            return '', f'action plugin {prefix}{dot}{group}'
        action = action_loader.find_plugin_with_context('ansible.legacy.normal')
    folder, file = os.path.split(os.path.realpath(action.plugin_resolved_path or ''))
    own = os.path.splitext(file)[0]
    if folder == _FOLDER and own in ACTIONS:
        return own, ''
    return '', f'action plugin {action.plugin_resolved_path}'


def _connection(job: dict[str, t.Any]) -> str:
    """Whether the host-task's connection will be one of ours; for what cannot be told beforehand, it will not."""
    task, variables = job['task'], job['task_vars']
    try:
        if task.delegate_to:
            if _is_template(task.delegate_to) and (task.loop is not None or task.loop_with):
                return 'delegate_to may differ for each item'
            templar = Templar(loader=job['loader'], variables=variables)
            delegated, name = job['variable_manager'].get_delegated_vars_and_hostname(templar, task, variables)
            if name is not None:
                variables = delegated['ansible_delegated_vars'][name]
        plugin = variables.get('ansible_connection')
        if plugin is None:
            plugin = task.connection
        if _is_template(plugin):
            plugin = _template(job, plugin, variables)
        enabled = variables.get('mitogen_enabled', True)
        if _is_template(enabled):
            enabled = _template(job, enabled, variables)
        enabled = boolean(enabled)
    except Exception:  # whatever it is, the task itself will say it
        return 'connection variables'
    if not enabled:
        return 'mitogen_enabled is false'
    found = connection_loader.find_plugin_with_context(str(plugin))
    if (found.resolved and found.resolved_fqcn in standins.MIXINS) or os.path.dirname(os.path.realpath(found.plugin_resolved_path or '')) == _OUR_FOLDER:
        return ''
    return f'connection {plugin}'


def _is_template(value: t.Any) -> bool:
    return isinstance(value, str) and '{' in value


def _template(job: dict[str, t.Any], value: str, variables: dict[str, t.Any] | None = None) -> t.Any:
    return Templar(loader=job['loader'], variables=job['task_vars'] if variables is None else variables).template(value)
