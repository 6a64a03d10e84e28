"""The end of a run: Python collects garbage several times then, and takes all of Ansible apart, to give back memory that the system takes
back anyway. It is spared that where nobody would notice.

What could be noticed is what objects do when they are collected: their finalizers, which have the name ``__del__`` whatever they are written
in. They write what a file has kept back, go on with the ``finally`` of a generator, or do what a plugin's author has thought of. If there is
an object whose finalizer is not known to do nothing of that kind, all stays as Python has it. Callbacks of weak references do not count:
at the end nobody is promised a call, and ``weakref.finalize`` has had its own before."""

from __future__ import annotations

import atexit
import gc
import inspect
import io
import itertools
import os
import sys
import typing as t

from . import compat


def install() -> None:
    """The look is taken when the first collection of the end begins: after all that was given to ``atexit``, whenever it was. Until then what has been
    loaded by now is left out of collections, which in forked workers would copy it."""
    gc.freeze()
    atexit.register(gc.callbacks.append, _at_collection)


def _at_collection(*_: t.Any) -> None:
    if not sys.is_finalizing():
        return
    gc.callbacks.remove(_at_collection)  # else it would keep alive what it refers to
    gc.unfreeze()
    if not sys.warnoptions and _nobody_would_notice():  # warnings that are asked for tell of files that nobody has closed
        gc.freeze()


def _nobody_would_notice() -> bool:
    objects = gc.get_objects()
    kinds = list(map(type, objects))
    try:
        known = {kind: _HARMLESS[name] for kind in set(kinds) if (name := _finalizer(kind))}
        return all(known[type(found)](found) for found in itertools.compress(objects, map(known.__contains__, kinds)))
    except Exception:  # one that is not known, or cannot even be asked
        return False


def _finalizer(kind: type) -> str:
    """Whose finalizer objects of that class have, by its full name; empty if none."""
    function = getattr(kind, '__del__', None)
    return f'{getattr(function, "__objclass__", function).__module__}.{function.__qualname__}' if function else ''


def _always(_: t.Any) -> bool:
    """It closes what the system closes when the process ends."""
    return True


def _file(found: t.Any) -> bool:
    if found.closed or type(found) in (io.StringIO, io.BytesIO, io.FileIO, io.BufferedReader):  # which keep nothing back
        return True
    if type(found) not in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):  # closing it may do anything
        return False
    return not found.writable() or found in _standard() or os.fstat(found.fileno()).st_nlink == 0  # without a name it ends with the process


def _standard() -> list[t.Any]:
    """Python itself sees to these."""
    streams = [sys.stdout, sys.stderr]
    return [*streams, *(getattr(stream, 'buffer', None) for stream in streams)]


def _generator(found: t.Any) -> bool:
    return inspect.getgeneratorstate(found) != inspect.GEN_SUSPENDED


_HARMLESS: dict[str, t.Callable[[t.Any], bool]] = {
    '_io._IOBase.__del__': _file,
    '_socket.socket.__del__': _always,
    'builtins.generator.__del__': _generator,
    'multiprocessing.connection._ConnectionBase.__del__': _always,
    'subprocess.Popen.__del__': _always,
    **compat.FINALIZERS,
}
"""Finalizers, and for which objects they do nothing that anybody would notice."""
