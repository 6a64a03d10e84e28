"""Ansible's connection plugin local, accelerated by mitogen-mux, by explicit name."""

from __future__ import annotations

import pathlib
import sys

from ansible.plugins.connection import local as original

_PLUGINS = str(pathlib.Path(__file__).resolve().parent.parent)
if _PLUGINS not in sys.path:
    sys.path.insert(0, _PLUGINS)

from mitogen_mux import explicit  # noqa: E402

DOCUMENTATION = explicit.documentation(original.DOCUMENTATION, 'mitogen_local', 'ansible.builtin.local')

Connection = explicit.connection('ansible.builtin.local', original.Connection)
