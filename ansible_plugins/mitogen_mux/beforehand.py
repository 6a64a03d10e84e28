"""Payloads that a new daemon will want: they are made while a connection is, or while a target is at work, and not when the daemon asks.

Only the daemon that this run has started is known to lack them. Until a target answers for the first time those are made, too, that the play's
tasks will want later. What there is to say of a payload is said when it is wanted. If it cannot be made, it is made anew then; should its files
change meanwhile, the daemon sees it, and asks again."""

from __future__ import annotations

import collections
import contextlib
import typing as t
import warnings

from . import compat, daemon, display, payload

_expected: dict[bytes, payload.Source] = {}
"""Still to be made, by their keys."""

_made: dict[bytes, tuple[payload.Buildable, payload.Payload]] = {}

_said: dict[bytes, list[display.Call]] = {}
"""What making them has said; some of it is said but once."""

_seen: set[bytes] = set()

_foreseen: collections.deque[t.Callable[[], payload.Source | None]] = collections.deque()
"""What finds the modules of the play's tasks, in the order of these."""


def expect(source: payload.Source) -> None:
    """The module is about to be run."""
    if daemon.started() and (key := source.key()) not in _seen:
        _seen.add(key)
        _expected[key] = source


def foresee(finders: t.Callable[[], t.Iterable[t.Callable[[], payload.Source | None]]]) -> None:
    """A play begins, with tasks for these modules. Nothing comes of it before one of them is about to be run."""
    _foreseen.clear()
    if daemon.started() and not _seen:
        with contextlib.suppress(Exception):  # they will be found when they are wanted
            _foreseen.extend(finders())


def answered() -> None:
    """A target has answered: there is no time to lose for what may be skipped."""
    _foreseen.clear()


def fill(awake: t.Callable[[], bool]) -> None:
    """In the main thread, with the baton: until somebody has something to do."""
    while (_expected or (_seen and _foreseen)) and not awake():
        listener = display.Listener()
        with contextlib.suppress(Exception), compat.display_through(listener), warnings.catch_warnings():
            warnings.simplefilter('error', SyntaxWarning)  # which no listener hears: then it is made in its place
            if not _expected and (found := _foreseen.popleft()()) is not None:
                expect(found)
            if _expected:
                key, source = _expected.popitem()
                _said[key] = listener.heard
                _made[key] = source, source.build()


def build(source: payload.Buildable) -> payload.Payload:
    """Now it is wanted. Raises as ``source.build`` does."""
    key = source.key()
    _seen.add(key)
    _expected.pop(key, None)
    display.repeat(_said.pop(key, ()))
    of, made = _made.pop(key, (None, None))
    return made if made is not None and of == source else source.build()
