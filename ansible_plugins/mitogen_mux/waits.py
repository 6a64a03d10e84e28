"""Where Python's standard library waits: there, a worker thread gives the baton away. It knows nothing of Ansible.

What binds such a function by ``from … import`` before a run begins, or waits by other means, keeps the baton: slower, never wrong."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing.connection
import os
import selectors
import signal
import socket
import subprocess
import time
import typing as t

from . import baton

Function = t.Callable[..., t.Any]

_PLACES: tuple[tuple[t.Any, str], ...] = (
    (fcntl, 'flock'),
    (fcntl, 'lockf'),
    (socket, 'getaddrinfo'),
    (socket, 'create_connection'),
    (socket.SocketIO, 'readinto'),
    (selectors.DefaultSelector, 'select'),
    (multiprocessing.connection.Connection, 'recv'),
    (multiprocessing.connection.Connection, 'recv_bytes'),
)
"""Functions that may wait, besides time.sleep and what a Popen waits for, which end when the run does."""


@contextlib.contextmanager
def installed(detached: bool, more: t.Iterable[tuple[t.Any, str, Function]] = ()) -> t.Iterator[None]:
    """Lets them give the baton away as long as this lasts. ``detached``: processes that worker threads start are in sessions of their own.
    ``more``: owner, name and wrapper of functions elsewhere."""
    with contextlib.ExitStack() as stack:
        for owner, name in _PLACES:
            stack.enter_context(replaced(owner, name, _giving(getattr(owner, name))))
        stack.enter_context(replaced(time, 'sleep', _sleep(time.sleep)))
        for name in ('wait', 'communicate'):
            stack.enter_context(replaced(subprocess.Popen, name, _process_wait(getattr(subprocess.Popen, name), detached)))
        stack.enter_context(replaced(subprocess.Popen, '__init__', _process_start(subprocess.Popen.__init__, detached)))
        for owner, name, wrapper in more:
            stack.enter_context(replaced(owner, name, wrapper))
        yield


@contextlib.contextmanager
def replaced(owner: t.Any, name: str, new: t.Any) -> t.Iterator[None]:
    """An attribute of a module, a class or an object is another as long as this lasts."""
    own = name in vars(owner)
    old = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


def _giving(original: Function) -> Function:
    @functools.wraps(original)
    def wait(*args: t.Any, **kwargs: t.Any) -> t.Any:
        if baton.holder() is None or baton.importing():
            return original(*args, **kwargs)
        with baton.waiting():
            return original(*args, **kwargs)

    return wait


def _sleep(original: Function) -> Function:
    @functools.wraps(original)
    def sleep(seconds: float) -> None:
        mine = baton.holder()
        if mine is None or seconds < 0 or baton.importing():
            original(seconds)
        else:
            mine.sleep(seconds)

    return sleep


def _process_wait(original: Function, detached: bool) -> Function:
    @functools.wraps(original)
    def wait(self: subprocess.Popen[t.Any], *args: t.Any, **kwargs: t.Any) -> t.Any:
        if baton.holder() is None or baton.importing():
            return original(self, *args, **kwargs)

        def interrupt() -> None:
            if self.returncode is None:
                (os.killpg if detached else os.kill)(self.pid, signal.SIGTERM)

        with baton.waiting(interrupt):
            return original(self, *args, **kwargs)

    return wait


def _process_start(original: Function, detached: bool) -> Function:
    @functools.wraps(original)
    def start(self: subprocess.Popen[t.Any], *args: t.Any, **kwargs: t.Any) -> None:
        if baton.holder() is not None and len(args) < 2:
            # As in a forked worker: nothing of the run's terminal to read from, nor, if detached, to write to.
            for name in ('stdin', 'stdout', 'stderr') if detached else ('stdin',):
                if kwargs.get(name) is None:
                    kwargs[name] = subprocess.DEVNULL
            if detached:
                kwargs['start_new_session'] = True
        original(self, *args, **kwargs)

    return start
