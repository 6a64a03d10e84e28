"""Command lines that stand for ssh: ``mitogen-mux ssh-exec`` with a ticket, for programs of the controller that are to reach a host."""

from __future__ import annotations

import shlex
import typing as t

from ansible.errors import AnsibleError
from ansible.module_utils.common.text.converters import to_text
from ansible.playbook.play_context import PlayContext

from . import connection, daemon, standins, via
from .v1 import jobs_pb2, path_pb2


def command(host: t.Any, path: path_pb2.Path, shell: list[bytes], name: str) -> str:
    """The command line that leads to the end of a path, until the run ends; ``name`` is what its callers call the host. Raises AnsibleError."""
    ((rc, ticket, text),) = host.mux_steps(path, [jobs_pb2.Step(ticket=jobs_pb2.Ticket(shell=shell, host=name))])
    if rc:
        raise AnsibleError(f'{name}: {to_text(text).strip()}')
    return shlex.join([daemon.find_binary(), 'ssh-exec', f'--socket={connection.session().path}', f'--ticket={to_text(ticket)}'])


def leading(host: t.Any, account: list[path_pb2.Hop], python: str, name: str) -> str:
    """That for a host, or for an account of it, which is another hop; ``python`` is for where only an agent can run commands."""
    path = host.mux_path(python if account else host.mux_needed and python)
    path.hops.extend(account)
    return command(host, path, connection.MuxConnection.mux_shell(host) if account else host.mux_shell(), name)


def to(spec: str, hostvars: t.Any) -> str:
    """The command line that leads to a host, given as in mitogen_via. Raises AnsibleError."""
    host, account, python = via.reach('mitogen_ssh', spec, _Asker(hostvars))
    return leading(host, account, python, host.mux_chain[-1])


class _Asker:
    """Asks for a host as a connection does that is reached through it."""

    mux_chain = ()
    mux_adopt = staticmethod(standins.adopt)

    def __init__(self, hostvars: t.Any) -> None:
        self.mux_hostvars = hostvars
        self._play_context = PlayContext()

    def mux_host(self) -> str:
        """Whom messages are about."""
        return 'the lookup'  # which is no name of a host
