"""Strategies: Ansible's own linear, free and host_pinned, with the daemon at hand, the seams in place and cheap workers while they run."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import pathlib
import signal
import sys
import time
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins import strategy as core
from ansible.plugins.loader import connection_loader, strategy_loader
from ansible.utils import hashing

from . import ahead, baton, beforehand, compat, daemon, display, leaving, order, reuse, seams, successors, waits, worker
from .client import RpcError

_CONNECTIONS = pathlib.Path(__file__).resolve().parent.parent / 'connection'

_LARGE = 1 << 20
"""Bytes of a file from which reading it is a wait."""

_detach_registered = False

_batch: tuple[str, list[str]] = ('', [])
"""The play that ran last, and the hosts it ran on."""


class StrategyMixin:
    """Mixed in before a strategy of Ansible."""

    _mux_workers: worker.Workers | None = None

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        """Runs a play. What is wrong with the daemon is said here, once, before any task."""
        connection_loader.add_directory(str(_CONNECTIONS))
        if not seams.enabled():
            return super().run(iterator, play_context)  # type: ignore[misc]
        _attach()
        _release(iterator._play, self._inventory)  # type: ignore[attr-defined]
        successors.warn(successors.ENVIRONMENT, os.environ)
        seams.install()
        beforehand.foresee(lambda: seams.modules(iterator._blocks[1:]))  # the first gathers facts: it is no sooner foreseen than wanted
        compat.prewarm()
        undo = seams.substitute()
        try:
            with _cheap_workers(self, iterator):
                return super().run(iterator, play_context)  # type: ignore[misc]
        finally:
            undo()

    def get_hosts_left(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        hosts = super().get_hosts_left(*args, **kwargs)  # type: ignore[misc]
        if self._mux_workers is not None:
            self._mux_workers.dealer.hosts = len(hosts)
        return hosts

    def _execute_meta(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if self._mux_workers is not None:
            self._mux_workers.wakeup.progress = True
        return super()._execute_meta(*args, **kwargs)  # type: ignore[misc]


def strategy(name: str) -> type:
    """The strategy ``name`` of ansible.builtin as ours. The core will warn of it, as of all that are not its own."""
    compat.spare_source()
    original = strategy_loader.get(name, class_only=True)
    return type('StrategyModule', (StrategyMixin, original), {'__doc__': original.__doc__})


@contextlib.contextmanager
def _cheap_workers(strategy: t.Any, iterator: t.Any) -> t.Iterator[None]:
    """Host-tasks are run by our workers as long as this lasts, and the main thread has the baton."""
    missing = compat.missing_workers()
    if missing:
        display.remark(f'mitogen-mux: this ansible-core has changed {missing}; each task is run in a process of its own')
        yield
        return
    workers = strategy._mux_workers = worker.Workers(strategy, iterator)
    error: BaseException | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(waits.installed(compat.DETACHED, [(hashing, name, _hash(hashing.secure_hash)) for name in ('secure_hash', 'checksum')]))
        stack.enter_context(compat.display_per_thread())
        stack.enter_context(reuse.installed())
        if not compat.missing_loops():
            stack.enter_context(order.installed())
            stack.enter_context(ahead.installed(workers))
            workers.shelf.open = True
        stack.enter_context(_main_loop(strategy, workers))
        stack.enter_context(_terminated(workers))
        try:
            workers.baton.take()
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            strategy._mux_workers = None
            workers.finish(worker.patience(error))


@contextlib.contextmanager
def _main_loop(strategy: t.Any, workers: worker.Workers) -> t.Iterator[None]:
    """The core's main loop makes our workers, and its pauses end when there is something to do."""
    strategy._results = _Results(workers.wakeup, strategy._results)
    requests = getattr(strategy, '_rpc_queue', None)  # since 2.21: what workers ask of the main thread
    if requests is not None:
        put = requests.put

        def put_and_wake(*args: t.Any, **kwargs: t.Any) -> None:
            put(*args, **kwargs)
            workers.wakeup.set()

        requests.put = put_and_wake
    clock = _Clock(workers)
    names = {cls.__module__ for cls in type(strategy).__mro__ if cls.__module__.startswith(core.__name__)}
    places: list[t.Any] = [module for name in names if getattr(module := sys.modules[name], 'time', None) is time]
    original = core.WorkerProcess
    try:
        core.WorkerProcess = workers
        for module in places:
            module.time = clock
        yield
    finally:
        core.WorkerProcess = original
        for module in places:
            module.time = time
        if requests is not None:
            requests.put = put


class _Clock:
    """Stands for the module ``time`` in the core's strategies."""

    def __init__(self, workers: worker.Workers) -> None:
        self.sleep = workers.rest

    def __getattr__(self, name: str) -> t.Any:
        return getattr(time, name)


class _Results(collections.deque[t.Any]):
    """The results that the main loop has still to process."""

    def __init__(self, wakeup: worker.Wakeup, results: t.Iterable[t.Any]) -> None:
        super().__init__(results)
        self._wakeup = wakeup

    def append(self, result: t.Any) -> None:
        super().append(result)
        self._wakeup.set()

    def popleft(self) -> t.Any:
        result = super().popleft()
        self._wakeup.progress = True
        return result


@contextlib.contextmanager
def _terminated(workers: worker.Workers) -> t.Iterator[None]:
    """Where the core has a way of its own with SIGTERM (since 2.19), what our threads wait for is ended, too."""
    original = signal.getsignal(signal.SIGTERM)
    if not callable(original):
        yield
        return

    def terminate(number: int, frame: t.Any) -> None:
        workers.baton.end()
        original(number, frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, original)


def _hash(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    def secure_hash(filename: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        try:
            large = os.stat(filename).st_size >= _LARGE
        except (OSError, ValueError, TypeError):
            large = False
        if not large:
            return original(filename, *args, **kwargs)
        with baton.waiting():
            return original(filename, *args, **kwargs)

    return secure_hash


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
        leaving.install()
        atexit.register(_detach, os.getpid())


def _release(play: t.Any, inventory: t.Any) -> None:
    """Before another batch (``serial``) of a play, what only the batch before it needed may leave."""
    global _batch
    hosts = [host.name for host in inventory.get_hosts(play.hosts)] if play.serial else []
    before, _batch = _batch, (play._uuid, hosts)
    if before[0] == play._uuid:
        with contextlib.suppress(daemon.DaemonError, RpcError):  # a daemon that has gone keeps nothing, and the next task says what is wrong
            daemon.session().release(before[1])


def _detach(pid: int) -> None:
    if os.getpid() == pid:
        with contextlib.suppress(daemon.DaemonError, RpcError):
            daemon.session().detach()
