"""Synchronize: rsync to hosts that it has no way of its own to. It gets ``mitogen-mux ssh-exec`` as its remote shell, with a ticket for the
path.

The action stays that of ansible.posix, and what it serves by itself is left to it: plain SSH hosts, with sudo by ``--rsync-path``, and the
containers that it knows. Only where that sudo wants a password, which nobody gives it, is the action asked again with our way. Nothing is
imported from the collection: it need not be there."""

from __future__ import annotations

import shlex
import typing as t

from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.loader import action_loader

from . import connection, hops, remote, ssh_exec, standins, via

Ours = t.Callable[[t.Any], bool]

_NAME = 'ansible.posix.synchronize'

_SERVED = frozenset(
    'ssh paramiko docker community.general.docker community.docker.docker podman ansible.builtin.podman containers.podman.podman'
    ' buildah containers.podman.buildah'.split()
)
"""The transports that the action finds its own way with."""

_NOT_STARTED = 12
"""The exit code of an rsync that does not hear from the other one."""


def install(ours: Ours) -> None:
    """Gives the action another class where its connection is ``ours`` and it would refuse it, or not find the way."""
    loader = t.cast(t.Any, action_loader)
    original = loader.get_with_context

    def get_with_context(*args: t.Any, **kwargs: t.Any) -> t.Any:
        found = original(*args, **kwargs)
        action = found.object
        if found.plugin_load_context.resolved_fqcn != _NAME or action is None or isinstance(action, type) or not ours(action._connection):
            return found
        mixin = _mixin(action)
        return found if mixin is None else found._replace(object=standins.substitute(action, mixin))

    loader.get_with_context = get_with_context


def _mixin(action: t.Any) -> type | None:
    host = action._connection
    transport = host.transport
    if action._task.delegate_to is not None or not isinstance(host, remote.RemoteConnection):
        return None
    if transport not in _SERVED or hops.option(host, 'mitogen_via'):
        return Synchronize
    play = action._play_context
    may_ask = transport == 'ssh' and play.become and play.become_method == 'sudo' and host.become.get_option('become_pass', playcontext=play)
    return Insistent if may_ask and not action._task.args.get('rsync_path') else None


class _LikeSsh:
    """Mixed in before a connection that the action would refuse."""

    transport = 'ssh'


class Synchronize:
    """Mixed in before the action."""

    if t.TYPE_CHECKING:
        _connection: t.Any
        _play_context: t.Any
        _task: t.Any
        _templar: t.Any
        _format_rsync_rsh_target: t.Callable[..., str]

    _mux_name = ''
    _mux_rsh = ''

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> t.Any:
        """The action, which takes the host for one that SSH leads to."""
        host, asked = self._connection, self._task.args
        self._mux_name = str(task_vars['inventory_hostname'])
        self._mux_rsh = self._mux_remote_shell(host, task_vars)
        self._connection = standins.substitute(host, _LikeSsh)
        self._task.args = {name: value for name, value in asked.items() if name != 'use_ssh_args'}
        try:
            return super().run(tmp, task_vars)  # type: ignore[misc]
        finally:
            self._task.args = asked

    def _execute_module(self, module_name: str | None = None, module_args: dict[str, t.Any] | None = None, **more: t.Any) -> t.Any:
        """Of the module, whose arguments are for SSH."""
        if module_name == _NAME and module_args is not None and self._mux_rsh:
            module_args = self._mux_args(module_args)
        return super()._execute_module(module_name=module_name, module_args=module_args, **more)  # type: ignore[misc]

    def _mux_args(self, made: dict[str, t.Any]) -> dict[str, t.Any]:
        asked = self._task.args
        far = 'src' if asked.get('mode') == 'pull' else 'dest'
        options = asked.get('rsync_opts') or []
        if not isinstance(options, list):
            options = to_text(options).split(',')  # as the module would
        if not any('--rsh' in option for option in options):
            options = [*options, f'--rsh={shlex.quote(self._mux_rsh)}']
        own = {
            far: self._format_rsync_rsh_target(self._mux_name, asked[far], None),
            'rsync_opts': options,
            'rsync_path': asked.get('rsync_path'),
            '_local_rsync_password': None,
            '_substitute_controller': False,
        }
        return {**made, **own}

    def _mux_remote_shell(self, host: t.Any, task_vars: dict[str, t.Any]) -> str:
        """The command line that rsync gets in place of ssh's. Raises AnsibleError."""
        python = self._mux_python(task_vars)
        account = []
        if self._play_context.become and not self._task.args.get('rsync_path'):  # which says itself how rsync is run there
            attach = connection.session().attach
            account.append(hops.become(host, python, attach.stage1, attach.agent_name))
        return ssh_exec.leading(host, account, python, self._mux_name)

    def _mux_python(self, task_vars: dict[str, t.Any]) -> str:
        """The interpreter that tasks have there, so that rsync needs no agent of its own; where it is not known yet, any."""
        value = str(self._templar.template(task_vars.get('ansible_python_interpreter') or 'auto'))
        if not value.startswith('auto'):
            return value
        return str((task_vars.get('ansible_facts') or {}).get('discovered_interpreter_python') or via.ANY_PYTHON)


class Insistent(Synchronize):
    """For where sudo may ask."""

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> t.Any:
        """The action; if rsync was not started there, once more by our way."""
        host, play, variables = self._connection, self._play_context, dict(task_vars)
        self._play_context = play.copy()
        result = super(Synchronize, self).run(tmp, task_vars)  # type: ignore[misc]
        if result.get('rc') != _NOT_STARTED:
            return result
        self._connection, self._play_context = host, play
        return super().run(tmp, variables)
