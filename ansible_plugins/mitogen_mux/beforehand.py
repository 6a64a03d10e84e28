"""Payloads that a new daemon will want: they are made while a connection is, or while a target is at work, and not when the daemon asks.

Only the daemon that this run has started is known to lack them. What there is to say of a payload is said when it is wanted: if making it
says anything, or fails, it is made anew then. Should its files change meanwhile, the daemon sees it, and asks again."""

from __future__ import annotations

import contextlib
import typing as t

from . import compat, daemon, payload

_expected: dict[bytes, payload.Source] = {}
"""Still to be made, by their keys."""

_made: dict[bytes, tuple[payload.Buildable, payload.Payload]] = {}

_seen: set[bytes] = set()


def expect(source: payload.Source) -> None:
    """The module is about to be run."""
    if daemon.started() and (key := source.key()) not in _seen:
        _seen.add(key)
        _expected[key] = source


def fill(awake: t.Callable[[], bool]) -> None:
    """In the main thread, with the baton: until the main loop has something to do."""
    while _expected and not awake():
        key, source = _expected.popitem()
        listener = _Listener()
        with contextlib.suppress(Exception), compat.display_through(listener):
            made = source.build()
            if not listener.heard:
                _made[key] = source, made


def build(source: payload.Buildable) -> payload.Payload:
    """Now it is wanted. Raises as ``source.build`` does."""
    key = source.key()
    _seen.add(key)
    _expected.pop(key, None)
    of, made = _made.pop(key, (None, None))
    return made if made is not None and of == source else source.build()


class _Listener:
    """Stands for the result queue."""

    heard = False

    def send_display(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.heard = True
