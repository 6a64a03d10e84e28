"""Strategies: Ansible's own linear, free and host_pinned, with the daemon at hand and the seams in place while they run."""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.loader import connection_loader, strategy_loader

from . import compat, daemon, seams
from .client import RpcError

_CONNECTIONS = pathlib.Path(__file__).resolve().parent.parent / 'connection'

_detach_registered = False


class StrategyMixin:
    """Mixed in before a strategy of Ansible."""

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        """Runs a play. What is wrong with the daemon is said here, once, before any task."""
        connection_loader.add_directory(str(_CONNECTIONS))
        if not seams.enabled():
            return super().run(iterator, play_context)  # type: ignore[misc]
        _attach()
        seams.install()
        compat.prewarm()
        undo = seams.substitute()
        try:
            return super().run(iterator, play_context)  # type: ignore[misc]
        finally:
            undo()


def strategy(name: str) -> type:
    """The strategy ``name`` of ansible.builtin as ours."""
    original = strategy_loader.get(name, class_only=True)
    return type('StrategyModule', (StrategyMixin, original), {'__doc__': original.__doc__})


def _attach() -> None:
    global _detach_registered
    try:
        daemon.session()
    except daemon.DaemonError as error:
        raise AnsibleError(str(error)) from None
    except RpcError as error:
        raise AnsibleError(f'mitogen-mux: {error.message}') from None
    if not _detach_registered:
        _detach_registered = True
        atexit.register(_detach, os.getpid())


def _detach(pid: int) -> None:
    if os.getpid() == pid:
        with contextlib.suppress(daemon.DaemonError, RpcError):
            daemon.session().detach()
