"""The baton: of a run's threads, one at a time runs Ansible's code. It knows nothing of Ansible.

The main thread and the worker threads hand it to each other, and a worker thread gives it away only where it waits. So nothing in Ansible
has to be safe for threads, and nothing is lost: Python's own lock lets no two of them run either. In a thread that is no worker thread,
and in a forked child, ``waiting`` does nothing."""

from __future__ import annotations

import contextlib
import sys
import threading
import typing as t

Interrupt = t.Callable[[], None]
"""Ends a wait from another thread."""

_IMPORT = '<frozen importlib._bootstrap>'

_here = threading.local()
"""``baton`` in worker threads, nothing elsewhere; ``first_wait`` until the thread gives the baton away for the first time in its job; ``turn``
of a thread that may be ahead."""


class Turn(t.Protocol):
    """Of a thread that works ahead: until its turn has come, nobody may notice what it does."""

    def has_come(self) -> bool:
        """Whether it may do anything."""

    def wait(self) -> None:
        """Waits until it may."""

    def leaving(self) -> None:
        """Is told that the thread is about to wait for something else."""

    def looking(self) -> None:
        """Is told that it would look at what others do, were its turn not still to come."""

    def supposes(self, holds: t.Callable[[], bool]) -> bool:
        """Whether the thread may go on with what was true a while ago. If so ``holds`` is called by the main thread when its turn comes."""

    def asks(self, request: t.Any, decides: t.Sequence[int], writes: str) -> None:
        """Is told of a request (jobs_pb2.Request) before it leaves, and may have it follow another one, so that it leaves before the thread's turn. Once one
        of the steps ``decides`` has been run, nothing more is asked for what the thread works on; ``writes`` is the file that they write."""

    def refused(self) -> None:
        """Is told, in its turn, that the request that was to follow another one has not been begun. It will be asked again."""


class Cancelled(BaseException):
    """The run has ended, and the worker thread in which this is raised leaves its host-task where it stands."""


class Baton:
    """Held by one thread. Its lock is reentrant only because such a lock knows its owner, in C: no signal comes between the two."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._interrupts: dict[int, Interrupt] = {}
        self._waiting: set[int] = set()

    def held(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def take(self) -> None:
        """Waits for it."""
        me = threading.get_ident()
        self._waiting.add(me)
        self._lock.acquire()
        self._waiting.discard(me)

    def wanted(self) -> bool:
        """Whether a thread waits for it."""
        return bool(self._waiting)

    def give(self) -> None:
        """Gives it away, if the calling thread holds it."""
        if self.held():
            self._lock.release()

    @contextlib.contextmanager
    def lent(self) -> t.Iterator[None]:
        """Gives it away while the main thread waits for its workers."""
        self.give()
        try:
            yield
        finally:
            self.take()

    @contextlib.contextmanager
    def job(self, first_wait: threading.Event) -> t.Iterator[None]:
        """A job of a worker thread. ``first_wait`` is set when the baton is given away for the first time, at the job's end at the latest."""
        self.take()
        _here.baton, _here.first_wait = self, first_wait
        try:
            yield
        finally:
            _here.baton = None
            self.give()
            first_wait.set()

    def end(self) -> None:
        """Ends all waits of worker threads, those to come too, with Cancelled."""
        self._ended.set()
        for interrupt in list(self._interrupts.values()):
            with contextlib.suppress(OSError):
                interrupt()

    def sleep(self, seconds: float) -> None:
        """As ``time.sleep``, in a worker thread."""
        with self.away(None):
            self._ended.wait(seconds)

    @contextlib.contextmanager
    def away(self, interrupt: Interrupt | None) -> t.Iterator[None]:
        """A wait of a worker thread."""
        turn()
        if (mine := my_turn()) is not None:
            mine.leaving()
        me = threading.get_ident()
        if interrupt is not None:
            self._interrupts[me] = interrupt
        try:
            if self._ended.is_set():
                raise Cancelled
            self.give()
            _here.first_wait.set()
            try:
                yield
            finally:
                self.take()
        finally:
            self._interrupts.pop(me, None)
            if self._ended.is_set():
                raise Cancelled


@contextlib.contextmanager
def waiting(interrupt: Interrupt | None = None) -> t.Iterator[None]:
    """Gives the baton away as long as this lasts. ``interrupt`` is called from the main thread when the run ends: it must let the wait end,
    or return at once if it has not begun."""
    baton = holder()
    if baton is None:
        yield
    else:
        with baton.away(interrupt):
            yield


@contextlib.contextmanager
def kept() -> t.Iterator[None]:
    """As long as this lasts the calling thread keeps the baton, whatever it waits for: so nobody finds what it does half done. There is no lock for
    that: whoever waited for one with the baton in hand, as the main thread must, would wait for ever."""
    turn()
    baton = holder()
    _here.baton = None
    try:
        yield
    finally:
        _here.baton = baton


def turn() -> None:
    """Before anything that others may notice: a thread that is ahead waits for its turn."""
    mine = my_turn()
    if mine is None or mine.has_come() or importing():
        return
    _here.turn = None  # this wait is not one that it has to wait for
    try:
        mine.wait()
    finally:
        _here.turn = mine


def look() -> None:
    """Before anything that tells of what others do."""
    if (mine := my_turn()) is not None and not mine.has_come():
        mine.looking()
        turn()


def suppose(holds: t.Callable[[], bool]) -> bool:
    """Whether the calling thread is ahead and may go on as if that held."""
    mine = my_turn()
    return mine is not None and not mine.has_come() and bool(mine.supposes(holds))


def my_turn() -> t.Any:
    """The Turn of the calling thread; None if it never is ahead."""
    return getattr(_here, 'turn', None)


@contextlib.contextmanager
def taking_turns(mine: Turn | None) -> t.Iterator[None]:
    """As long as this lasts, the calling thread may be ahead."""
    before = my_turn()
    _here.turn = mine
    try:
        yield
    finally:
        _here.turn = before


def holder() -> Baton | None:
    """The baton, if this is a worker thread that holds it."""
    baton: Baton | None = getattr(_here, 'baton', None)
    return baton if baton is not None and baton.held() else None


def importing() -> bool:
    """Whether the calling thread is in the middle of an import, and so has a lock that others may wait for with the baton in hand."""
    frame: t.Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False
