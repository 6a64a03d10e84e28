"""Workers: what runs a host-task, in a thread of this process or in a forked one, behind the face of the core's WorkerProcess."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import sys
import threading
import time
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.utils.display import Display

from . import baton, beforehand, host_task, isolation, readied, shares
from .forked import SIGNATURE, ForkedWorker

LONGEST_WAIT = 0.05
"""Seconds after which the main loop looks around, though nothing has woken it."""

LAST_WORDS = 5.0
"""Seconds that cancelled host-tasks may take to leave."""

_display = Display()


class Job(t.Protocol):
    """What a thread does."""

    def work(self) -> None:
        """In the thread, with the baton."""


class Workers:
    """The workers of one run of a strategy. Called as the class WorkerProcess would be."""

    def __init__(self, strategy: t.Any, iterator: t.Any) -> None:
        self.baton = baton.Baton()
        self.wakeup = Wakeup()
        self.dealer = shares.Dealer(strategy, self)
        self.shelf = readied.Shelf(strategy, iterator, self)
        self._strategy = strategy
        self._threads: list[_Thread] = []
        self._idle: list[_Thread] = []

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        job = SIGNATURE.bind(*args, **kwargs).arguments
        if not self.dealer.deals():
            self.shelf.begun(job)
        why = isolation.reason(job)
        if not why:
            return ThreadWorker(self, job)
        _display.vvvvv(f'mitogen-mux: task {job["task"]} has a process of its own: {why}', host=job['host'].name)
        return ForkedWorker(self._strategy, *args, **kwargs)

    def take_on(self, worker: ThreadWorker) -> None:
        """Begins a host-task, now or with others."""
        if not self.dealer.keeps(worker):
            worker.begin()

    def begin(self, job: Job) -> None:
        """Lets a thread have the baton until the host-task waits for the first time: then its target is at work, and the next can follow."""
        first_wait = self.begin_beside(job)
        with self.baton.lent():
            first_wait.wait()

    def begin_beside(self, job: Job) -> threading.Event:
        """Lets a thread have the baton once the calling one gives it away. The event is set when it gives it away in turn."""
        thread = self._idle.pop() if self._idle else _Thread(self)
        if thread not in self._threads:
            self._threads.append(thread)
        first_wait = threading.Event()
        thread.inbox.put((job, first_wait))
        return first_wait

    def awake(self) -> bool:
        """Whether the main loop has something to do."""
        return self.wakeup.progress or self.wakeup.is_set()

    def ended(self, thread: _Thread) -> None:
        """A thread has nothing to do."""
        self._idle.append(thread)
        self.wakeup.set()

    def hosts(self) -> int:
        """How many hosts the play still has."""
        return self.dealer.hosts

    def rest(self, seconds: float) -> None:
        """The main loop's pause of ``seconds``: until there is something to do. Raises AnsibleError if there never will be."""
        self.dealer.rest()
        if self.wakeup.progress:
            self.wakeup.progress = False
            return
        if not self._strategy._results_thread.is_alive():
            raise AnsibleError('the thread that reads the results of tasks has ended: a callback plugin may have ended it (see what stands on stderr)')
        forks = [worker.sentinel for worker in self._strategy._workers if isinstance(worker, ForkedWorker) and worker.is_alive()]
        told = self.dealer.look()
        if self.dealer.lost:
            raise AnsibleError('A worker was found in a dead state')  # as the core's linear strategy says; the others would wait for ever
        if not self.dealer.deals():
            beforehand.fill(lambda: self.awake() or self.baton.wanted())
            self.shelf.fill()
        with self.baton.lent():
            self.wakeup.wait([*forks, *told], LONGEST_WAIT if self._strategy._pending_results else seconds)

    def inherited(self) -> None:
        """In a process that runs a share, which has none of this one's threads."""
        self.baton, self.wakeup, self._threads, self._idle = baton.Baton(), Wakeup(), [], []
        self.baton.take()
        self.dealer.forget()
        self.shelf.forget()

    def pause(self) -> None:
        """In there: until a thread has ended."""
        with self.baton.lent():
            self.wakeup.wait((), LONGEST_WAIT)

    def finish(self, patience: float) -> None:
        """Ends the threads: those that are at work after ``patience`` seconds are cancelled. Called by the main thread."""
        self.dealer.drop()
        self.shelf.drop()
        self.baton.give()
        for thread in self._threads:
            thread.inbox.put(None)
        try:
            self._join(patience)
        finally:
            self.baton.end()
            self._join(LAST_WORDS)
            self.wakeup.close()

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class Wakeup:
    """Wakes the main loop."""

    def __init__(self) -> None:
        self.progress = False
        """Whether the main loop has something to do before it rests: only itself sets and clears this."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """From any thread."""
        with contextlib.suppress(OSError):  # full: it is set
            self._writer.send(b'\0')

    def is_set(self) -> bool:
        """Whether ``wait`` would return at once."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, sentinels: t.Iterable[int], seconds: float) -> None:
        """Waits until it is set, or one of the processes has ended."""
        poll = select.poll()
        for fd in (self._reader.fileno(), *sentinels):
            poll.register(fd, select.POLLIN)
        poll.poll(max(1, int(seconds * 1000)))
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """No more of it."""
        self._reader.close()
        self._writer.close()


class _Thread(threading.Thread):
    """Runs one host-task after the other."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(daemon=True, name='mitogen-mux worker')  # daemon: one that is stuck must not keep the process
        self.inbox: queue.SimpleQueue[tuple[Job, threading.Event] | None] = queue.SimpleQueue()
        self._workers = workers
        self.start()

    def run(self) -> None:
        while (job := self.inbox.get()) is not None:
            work, first_wait = job
            with self._workers.baton.job(first_wait):
                work.work()
                self._workers.ended(self)


class ThreadWorker:
    """A host-task in a thread of this process or, if it is dealt out, of a share's."""

    worker_queue = None

    def __init__(self, workers: Workers, job: host_task.HostTask) -> None:
        self._workers = workers
        self._job = job
        self._task = job['task']
        self._alive = False
        self._share: shares.Share | None = None
        self._turn: baton.Turn | None = None
        self.exitcode: int | None = None

    def start(self) -> None:
        """Begins the host-task, now or with others."""
        self._alive = True
        self._workers.take_on(self)

    def arguments(self) -> host_task.HostTask:
        """As the core's own worker is made from."""
        return self._job

    def begin(self) -> None:
        """Returns when the host-task waits for the first time, or has ended."""
        self._share = None
        _flush()
        if not self._workers.shelf.claim(self._job, self.ended):
            self._turn = self._workers.shelf.turn(self._job)
            self._job = host_task.own(self._job)
            self._workers.begin(self)

    def dealt(self, share: shares.Share) -> None:
        """It will be begun in there, and ends there."""
        self._share = share

    def ended(self, exitcode: int) -> None:
        """It has, wherever it ran, or it will never begin."""
        del self._job
        self._alive, self._share, self.exitcode = False, None, exitcode

    @property
    def pid(self) -> int | None:
        """For the core, which sends signals to it: a thread gets none."""
        return None if self._share is None else self._share.pid

    def is_alive(self) -> bool:
        if self._share is not None:
            self._share.look()  # the core may ask again and again, and never rest
        return self._alive

    def terminate(self) -> None:
        """As of a process; the run's end has done it to threads."""
        if self._share is not None:
            self._share.terminate()

    def close(self) -> None:
        """As of a process."""

    def work(self) -> None:
        """In the thread."""
        with baton.taking_turns(self._turn):
            self.ended(host_task.run(self._job))


def patience(error: BaseException | None) -> float:
    """Seconds that the core gives workers when the strategy has ended with ``error``."""
    if error is None or isinstance(error, Exception):
        return float(C.WORKER_SHUTDOWN_POLL_COUNT * C.WORKER_SHUTDOWN_POLL_DELAY)
    return 0.0


def _flush() -> None:
    """As before a fork: whoever reads the run's output from a pipe sees each task in time, and warnings where they belong."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # closed
            stream.flush()
