"""Shares: steps with many hosts use several cores. A process forked for it runs a share of the step's host-tasks, each in a thread there.

It is the core's own worker process, which runs a share instead of one host-task: it inherits what this process knows, and results come back
as from any worker. What a step needs for the first time the first host-task finds out, in this process, before any other is dealt."""

from __future__ import annotations

import math
import os
import struct
import typing as t

from ansible.errors import AnsibleError

from .forked import ForkedWorker

LEAST = 24
"""Host-tasks of a step from which it is dealt out: a fork, and the pages that both processes copy after it, cost as much as some three of them."""

SMALLEST = 8
"""Host-tasks of the smallest share."""

FED = 4
"""Processes that one main thread can keep busy: nearly half of what a host-task costs the controller is done by itself."""

_ENDED = struct.Struct('<Hb')
"""What a share's process tells: which of its host-tasks has ended, and its exit code."""


class Member(t.Protocol):
    """A host-task that may be dealt out. It is in both processes."""

    exitcode: int | None

    def arguments(self) -> dict[str, t.Any]:
        """What the core's worker process would be made from."""

    def dealt(self, share: Share) -> None:
        """In the parent: it will be begun in that process."""

    def begin(self) -> None:
        """Runs it in a thread of the calling process."""

    def is_alive(self) -> bool:
        """Whether it has not ended."""

    def ended(self, exitcode: int) -> None:
        """In the parent: it has, in the share's process, or will never begin."""


class Inside(t.Protocol):
    """The workers of a share's own process."""

    def inherited(self) -> None:
        """Before anything else in there."""

    def pause(self) -> None:
        """Until a thread of the process has ended."""


class Dealer:
    """Deals out a strategy's host-tasks. In the main thread."""

    def __init__(self, strategy: t.Any, inside: Inside) -> None:
        self.hosts = 0
        """How many hosts the step has, at most."""
        self.lost = False
        """Whether a share's process has died."""
        self._strategy = strategy
        self._inside = inside
        self._wanted = _wanted()
        self._most = self._wanted or min(cores(), FED)
        self._tasks: set[str] = set()
        self._waiting: list[Member] = []
        self._shares: list[Share] = []

    def keeps(self, member: Member) -> bool:
        """Whether the host-task waits for a share; else the caller begins it."""
        if not self.deals():
            return False
        if not self._wanted and (task := member.arguments()['task']._uuid) not in self._tasks:
            self._tasks.add(task)
            return False
        self._waiting.append(member)
        hosts = self._hosts()
        size = math.ceil(hosts / self._most) if self._wanted else max(SMALLEST, math.ceil(hosts / (2 * self._most)))
        if len(self._waiting) >= size:
            self._deal()
        return True

    def deals(self) -> bool:
        """Whether the step is dealt out."""
        return self._most > 1 and (bool(self._wanted) or self._hosts() >= LEAST)

    def rest(self) -> None:
        """Nothing else is to be begun for now."""
        if self._wanted:
            self._deal()
        waiting, self._waiting = self._waiting, []
        for member in waiting:
            member.begin()

    def look(self) -> list[int]:
        """Takes notice of what has ended; returns what to wait for: readable files."""
        there = [share for share in self._shares if share.look()]
        self.lost = self.lost or any(share.exitcode for share in self._shares if share not in there)
        self._shares = there
        return [share.reader for share in self._shares]

    def drop(self) -> None:
        """The run has ended before these were begun."""
        waiting, self._waiting = self._waiting, []
        for member in waiting:
            member.ended(0)

    def forget(self) -> None:
        """In a share's process: all begins in there."""
        self._most, self._wanted, self._waiting, self._shares = 1, 0, [], []

    def _hosts(self) -> int:
        """How many host-tasks of the step may run at once."""
        return min(self.hosts, len(self._strategy._workers))

    def _deal(self) -> None:
        self.look()
        if self._waiting and len(self._shares) < self._most:
            members, self._waiting = self._waiting, []
            share = Share(self._strategy, self._inside, members)
            share.start()
            self._shares.append(share)


class Share(ForkedWorker):
    """The process."""

    def __init__(self, strategy: t.Any, inside: Inside, members: list[Member]) -> None:
        super().__init__(strategy, **members[0].arguments())
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._over = False
        self._members = dict(enumerate(members))
        self._inside = inside
        for member in members:
            member.dealt(self)

    def start(self) -> None:
        super().start()
        os.close(self._writer)

    def look(self) -> bool:
        """Whether there is more to come; members that have ended are told."""
        if self._over:
            return False
        try:
            while told := os.read(self.reader, _ENDED.size * 100):
                for number, exitcode in _ENDED.iter_unpack(told):
                    self._members.pop(number).ended(exitcode)
        except BlockingIOError:
            return True
        self._over = True
        os.close(self.reader)
        self.join()
        for member in self._members.values():
            member.ended(self.exitcode or 1)
        return False

    def _run(self) -> None:
        """In the process, in place of one host-task."""
        self._inside.inherited()
        for member in self._members.values():
            member.begin()
        while self._members:
            for number, member in list(self._members.items()):
                if not member.is_alive():
                    os.write(self._writer, _ENDED.pack(number, member.exitcode or 0))
                    del self._members[number]
            self._inside.pause()


def _wanted() -> int:
    """How many processes are asked for, whatever the step; 0 if nobody asks."""
    value = os.environ.get('MITOGEN_PROCESSES') or '0'
    if not value.isdecimal():
        raise AnsibleError(f'MITOGEN_PROCESSES is {value!r}: it must be a number')
    return int(value)


def cores() -> int:
    """Processors that this process may use at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
