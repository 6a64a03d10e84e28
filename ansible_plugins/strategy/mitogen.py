"""Ansible's strategy linear, accelerated by mitogen-mux."""

from __future__ import annotations

import pathlib
import sys

_PLUGINS = str(pathlib.Path(__file__).resolve().parent.parent)
if _PLUGINS not in sys.path:
    sys.path.insert(0, _PLUGINS)

from mitogen_mux.strategy import strategy  # noqa: E402

DOCUMENTATION = """
    name: mitogen
    short_description: Executes tasks as the strategy linear does, through mitogen-mux
    description:
        - The strategy P(ansible.builtin.linear#strategy), with connections that are kept by the mitogen-mux daemon.
    author: mitogen-mux
"""

StrategyModule = strategy('linear')
