"""Command lines that stand for ssh to hosts of the inventory."""

from __future__ import annotations

import pathlib
import sys
import typing as t

from ansible.plugins.lookup import LookupBase

_PLUGINS = str(pathlib.Path(__file__).resolve().parent.parent)
if _PLUGINS not in sys.path:
    sys.path.insert(0, _PLUGINS)

from mitogen_mux import ssh_exec  # noqa: E402

DOCUMENTATION = """
    name: mitogen_ssh
    short_description: A command line that stands for ssh to a host of the inventory
    description:
        - For programs of the controller that call ssh (git, rsync, scp). It leads the way that tasks for the host go, until the run ends.
        - The programs have to call the host by its inventory name.
    options:
        _terms:
            description: Hosts, each as C([[method:]user@]inventory_name).
            required: true
    author: mitogen-mux
"""


class LookupModule(LookupBase):
    """The lookup."""

    def run(self, terms: list[str], variables: t.Any = None, **_: t.Any) -> list[str]:
        """One command line for each term."""
        return [ssh_exec.to(term, (variables or {}).get('hostvars')) for term in terms]
