"""Where what a thread says waits for its turn, if it works ahead."""

from __future__ import annotations

import functools
import typing as t


class Outbox:
    """Stands for the result queue."""

    def __init__(self, queue: t.Any) -> None:
        self._queue = queue
        self._held: list[t.Callable[[], None]] | None = None
        self._muted = False

    def hold(self) -> None:
        """What comes from now on waits."""
        self._held, self._muted = [], False

    def release(self) -> None:
        """What waits goes, and what comes from now on goes at once."""
        held, self._held = self._held or (), None
        for send in held:
            send()

    def mute(self) -> None:
        """What waits, and what comes from now on, is forgotten."""
        self._held, self._muted = None, True

    def __getattr__(self, name: str) -> t.Any:
        return functools.partial(self._send, getattr(self._queue, name))

    def _send(self, send: t.Callable[..., None], *args: t.Any, **kwargs: t.Any) -> None:
        if self._muted:
            return
        if self._held is None:
            send(*args, **kwargs)
        else:
            self._held.append(functools.partial(send, *args, **kwargs))
