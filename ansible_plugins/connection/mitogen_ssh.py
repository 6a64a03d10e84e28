"""Ansible's connection plugin ssh, accelerated by mitogen-mux, by explicit name."""

from __future__ import annotations

import pathlib
import sys

from ansible.plugins.connection import ssh as original

_PLUGINS = str(pathlib.Path(__file__).resolve().parent.parent)
if _PLUGINS not in sys.path:
    sys.path.insert(0, _PLUGINS)

from mitogen_mux import explicit  # noqa: E402

DOCUMENTATION = explicit.documentation(original.DOCUMENTATION, 'mitogen_ssh', 'ansible.builtin.ssh')

Connection = explicit.connection('ansible.builtin.ssh', original.Connection)
