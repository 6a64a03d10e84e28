"""Accounts of a machine as hosts of their own: connections that are a become tool and nothing else.

Command, prompt and success marker come from Ansible's become plugin of that name, which the connection's options are given to."""

from __future__ import annotations

import typing as t

from . import connection, hops, remote, via
from .v1 import path_pb2


def definitions(tool: str) -> dict[str, dict[str, t.Any]]:
    """The options of such a plugin."""
    return {
        **remote.account_option('The account.', default='root'),
        'password': {
            'description': ['What the tool asks for.'],
            'vars': [{'name': name} for name in ('ansible_password', f'ansible_{tool}_pass', f'ansible_{tool}_password')],
        },
        'become_exe': {'description': ['The tool.'], 'vars': [{'name': 'ansible_become_exe'}, {'name': f'ansible_{tool}_exe'}]},
        'become_flags': {'description': ['Its options.'], 'vars': [{'name': 'ansible_become_flags'}, {'name': f'ansible_{tool}_flags'}]},
        'timeout': {
            'description': ['Seconds that the tool may take.'],
            'type': 'int',
            'default': 10,
            'vars': [{'name': 'ansible_timeout'}],
            'env': [{'name': 'ANSIBLE_TIMEOUT'}],
            'ini': [{'section': 'defaults', 'key': 'timeout'}],
            'cli': [{'name': 'timeout'}],
        },
        **remote.NAME,
    }


class AccountConnection(remote.RemoteConnection):
    """Another account of the machine of mitogen_via, or of this one."""

    mux_needed = via.ANY_PYTHON
    mux_tool: t.ClassVar[str]

    _mux_plugin: t.Any = None

    def mux_start(self) -> list[path_pb2.Hop]:
        return via.controller()

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        return self.mux_become(self._mux_become_plugin(), interpreter)

    def mux_plain(self, cmd: str) -> tuple[str, path_pb2.Path]:
        wrapped = str(self._mux_become_plugin().build_become_command(cmd, self._shell))
        return wrapped, self.mux_path()

    def _mux_become_plugin(self) -> t.Any:
        if self._mux_plugin is None:
            self._mux_plugin = via.become_plugin(self.mux_tool)
            names = {'become_user': 'remote_user', 'become_pass': 'password', 'become_exe': 'become_exe', 'become_flags': 'become_flags'}
            given = {theirs: hops.option(self, ours) for theirs, ours in names.items()}
            self._mux_plugin.set_options(task_keys={}, var_options={}, direct={name: value for name, value in given.items() if value is not None})
            self._mux_plugin.build_become_command('true', self._shell)  # a path has a marker, also one to an agent that is there
        return self._mux_plugin


def connection_class(tool: str) -> type[connection.MuxConnection]:
    """The mixin for one tool."""
    return type('Connection', (AccountConnection,), {'mux_tool': tool})
