"""The way to a connection's account: hosts that are reached through other hosts (``mitogen_via``).

A host on the way is asked as Ansible would ask it: its own connection plugin with its own variables, each templated for that host."""

from __future__ import annotations

import os
import re
import shlex
import sys
import typing as t

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.loader import become_loader, connection_loader

from . import hops
from .v1 import path_pb2

ANY_PYTHON = '"$(command -v python3 || command -v python || echo /usr/libexec/platform-python)"'
"""The interpreter of an account that is only on the way, where nothing is known of it: whatever is there runs an agent."""

_SPEC = re.compile(r'(?:(?:(?P<method>[^:@]+):)?(?P<user>[^@]+)@)?(?P<host>.+)')


def controller() -> list[path_pb2.Hop]:
    """The way that begins on this machine."""
    return [hops.local(shlex.quote(sys.executable))]


def way(connection: t.Any) -> list[path_pb2.Hop]:
    """The hops that the option mitogen_via of a connection asks for; none if it is not set. Raises AnsibleError."""
    spec = str(hops.option(connection, 'mitogen_via', '')).strip()
    if not spec:
        return []
    host, account, python = reach('mitogen_via', spec, connection)
    return [*host.mux_path(python).hops, *account]


def reach(what: str, spec: str, asker: t.Any) -> tuple[t.Any, list[path_pb2.Hop], str]:
    """A connection object of ours for the host that ``spec`` names, the hop to the account there if it names one, too, and the host's
    interpreter. ``asker`` is a connection, or what does for one, and ``what`` is how it asks. Raises AnsibleError."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise AnsibleError(f'{what} is {spec!r}: it is [[method:]user@]inventory_name')
    name = match['host']
    chain = asker.mux_chain or (asker.mux_host(),)
    if name in chain:
        raise AnsibleError(f'{what} goes in a circle: {" -> ".join([*chain, name])}')
    if asker.mux_hostvars is None:
        raise AnsibleError(f'{asker.mux_host()}: {what} needs the variables of {name}, which MITOGEN_SEAMS=0 keeps from us on this ansible-core')
    if name not in asker.mux_hostvars:
        raise AnsibleError(f'{chain[-1]}: {what} names {name}, which is not in the inventory')
    variables = asker.mux_hostvars[name]
    host = _connection(what, asker, name, variables)
    host.mux_chain = (*chain, name)
    python = _python(variables)
    account = []
    if match['user']:
        account.append(_become(host, match['method'] or variables.get('ansible_become_method') or 'sudo', match['user'], variables, python))
    return host, account, python


def _connection(what: str, connection: t.Any, name: str, variables: t.Any) -> t.Any:
    """A connection object of ours for another host."""
    play = connection._play_context.copy()
    play.remote_addr = variables.get('ansible_host', name)
    play.remote_user = (context.CLIARGS or {}).get('remote_user')
    play.port = None
    kind = variables.get('ansible_connection') or (context.CLIARGS or {}).get('connection') or 'ssh'
    kind = 'ssh' if kind == 'smart' else str(kind)
    found = connection_loader.get_with_context(kind, play, os.devnull)
    host = None if found.object is None else connection.mux_adopt(found.object, found.plugin_load_context.resolved_fqcn or '')
    if host is None:
        raise AnsibleError(f'{what} leads through {name}, whose connection {kind} is none that others can go through')
    host.set_options(task_keys={}, var_options=_options(host, variables))
    host.mux_hostvars = connection.mux_hostvars
    if not host.mux_enabled():
        raise AnsibleError(f'{what} leads through {name}, where mitogen_enabled is false')
    return host


def _python(variables: t.Any) -> str:
    value = str(variables.get('ansible_python_interpreter') or 'auto')
    return ANY_PYTHON if value.startswith('auto') else value


def _options(plugin: t.Any, variables: t.Any) -> dict[str, t.Any]:
    """The variables that set options of a plugin."""
    return {key: variables[key] for key in hops.plugin_vars(plugin) if key in variables}


def _become(host: t.Any, method: str, user: str, variables: t.Any, python: str) -> path_pb2.Hop:
    plugin = become_plugin(method)
    plugin.set_options(task_keys={}, var_options=_options(plugin, variables), direct={'become_user': user})
    return t.cast(path_pb2.Hop, host.mux_become(plugin, python))


def become_plugin(method: str) -> t.Any:
    """A become plugin by its name. Raises AnsibleError."""
    plugin = become_loader.get(method)
    if plugin is None:
        raise AnsibleError(f'there is no become plugin {method} on the controller: install the collection that has it')
    return plugin
