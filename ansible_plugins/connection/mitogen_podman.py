"""What is reached with podman exec."""

from __future__ import annotations

import pathlib
import sys

_PLUGINS = str(pathlib.Path(__file__).resolve().parent.parent)
if _PLUGINS not in sys.path:
    sys.path.insert(0, _PLUGINS)

from mitogen_mux import explicit  # noqa: E402

DOCUMENTATION, Connection = explicit.container('podman')
