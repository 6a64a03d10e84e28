"""A connection plugin that nobody accelerates: what it does is local's, its name is its own."""

from __future__ import annotations

from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
name: mux_foreign
short_description: local under another name
description: For tests.
options: {}
extends_documentation_fragment:
  - connection_pipelining
"""


class Connection(Local):
    transport = "mux_foreign"
