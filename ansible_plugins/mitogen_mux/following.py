"""Requests that follow others: what is asked next waits on the target until what is under way has ended there, and begins without a word from here."""

from __future__ import annotations

import functools
import itertools
import os
import typing as t

from .v1 import jobs_pb2, path_pb2

_numbers = itertools.count(1)


def allowed() -> bool:
    """Whether the user lets anything begin before what came before it has been reported."""
    return os.environ.get('MITOGEN_AHEAD') != '0'


class Lead:
    """The latest request for an item or a host-task, for whoever may follow it."""

    def __init__(self, judged: bool) -> None:
        """``judged``: it has to succeed."""
        self._judged = judged
        self._name = ''
        self._decides: t.Sequence[int] = ()
        self._node = b''
        self.writes = ''
        """The file that it writes."""

    def asks(self, request: jobs_pb2.Request, decides: t.Sequence[int], writes: str) -> None:
        """It is about to leave. When one of the steps ``decides`` has been run, nothing more is asked; without any, nobody can follow."""
        self._name, self._decides, self.writes = '', decides, writes
        if decides:
            self._node = _node(request.path)
            self._name = request.name = f'{os.getpid()}.{next(_numbers)}'
            request.judged = self._judged

    def forget(self) -> None:
        """There is none, or none any more."""
        self._name = ''

    def guides(self, request: jobs_pb2.Request) -> bool:
        """Makes another request follow this one, if it can. One to another account cannot: that may not be there before."""
        follows = bool(self._name) and self._node == _node(request.path)
        if follows:
            request.follow.request = self._name
            request.follow.steps.extend(self._decides)
        return follows


def _node(path: path_pb2.Path) -> bytes:
    """What makes a path lead to a node: without what a become plugin makes up anew each time."""
    return _key(path.SerializeToString())


@functools.lru_cache(maxsize=64)
def _key(path: bytes) -> bytes:
    key = path_pb2.Path.FromString(path)
    for hop in key.hops:
        method = getattr(hop, str(hop.WhichOneof('method')))
        for field, _ in method.ListFields():
            if not field.GetOptions().Extensions[path_pb2.identity]:
                method.ClearField(field.name)
    return key.SerializeToString(deterministic=True)


class InTurn:
    """The turn of a thread that is never ahead (baton.Turn)."""

    def __init__(self, lead: Lead) -> None:
        self.asks = lead.asks

    def has_come(self) -> bool:
        return True

    def wait(self) -> None:
        """It never has to."""

    def leaving(self) -> None:
        """Nobody waits for it."""

    def looking(self) -> None:
        """It may."""

    def refused(self) -> None:
        """It follows nobody."""

    def supposes(self, holds: t.Callable[[], bool]) -> bool:
        """It knows."""
        return False
