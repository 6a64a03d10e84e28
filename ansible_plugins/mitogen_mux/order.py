"""What tells a thread that is ahead of what others do: before it looks, it waits for its turn; or what it saw is looked at again then."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import stat
import typing as t

import jinja2
from ansible import constants as C
from ansible.parsing import dataloader
from ansible.parsing.vault import is_encrypted
from ansible.plugins.loader import lookup_loader
from ansible.vars import hostvars

from . import baton, compat
from .waits import replaced

_PLUGINS = os.path.join(compat.CORE_ROOT, 'ansible', 'plugins', '')

_PURE = (
    os.path.join(os.path.dirname(jinja2.__file__), ''),
    f'{_PLUGINS}filter/',
    f'{_PLUGINS}test/core.py',
    f'{_PLUGINS}test/mathstuff.py',
    f'{_PLUGINS}test/uri.py',
    os.path.join(compat.CORE_ROOT, 'ansible', 'utils', 'unicode.py'),
)
"""Where filters and tests are written whose answers depend on their arguments alone …"""

_IMPURE = frozenset(('expanduser', 'expandvars', 'fileglob', 'mask_secrets', 'normpath', 'realpath', 'register_secret', 'relpath', 'strftime', 'vaulted_file'))
"""… but for these."""

_Identity = tuple[int, ...] | None


class Dropped(BaseException):
    """What a thread has done before its turn does not count. Not an Exception: the core must not handle it."""


@contextlib.contextmanager
def installed() -> t.Iterator[None]:
    """As long as this lasts: lookups, the time, variables of other hosts, and filters and tests that are not known to be pure."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(lookup_loader, 'get', _in_turn(lookup_loader.get)))
        for module in (dataloader, jinja2.loaders):
            stack.enter_context(replaced(module, 'os', _Os()))
        intercept, owner, name = compat.template_plugins()
        stack.enter_context(replaced(intercept, '__getitem__', _plugin(intercept.__getitem__)))
        for looks in ('raw_get', '__contains__', '__iter__', '__len__'):
            stack.enter_context(replaced(hostvars.HostVars, looks, _in_turn(getattr(hostvars.HostVars, looks))))
        clock = getattr(owner, name)
        stack.enter_context(replaced(owner, name, _in_turn(clock) if callable(clock) else _Dates(clock)))
        yield


def _in_turn(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
        baton.look()
        return original(*args, **kwargs)

    return call


def _plugin(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    def getitem(self: t.Any, key: t.Any) -> t.Any:
        function = original(self, key)
        if (mine := baton.my_turn()) is not None and not mine.has_come() and not _is_pure(str(key), function):
            baton.look()
        return function

    return getitem


def _is_pure(name: str, function: t.Any) -> bool:
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, '__code__', None)
    if code is None:
        return getattr(function, '__module__', None) in ('builtins', '_operator', 'math')
    return code.co_filename.startswith(_PURE) and name.rpartition('.')[2] not in _IMPURE


def _noting(original: t.Callable[..., bool]) -> t.Callable[..., bool]:
    def look(path: t.Any) -> bool:
        if (mine := baton.my_turn()) is not None and not mine.has_come():
            mine.files.saw(path)
        return original(path)

    return look


class _Dates:
    """Stands for the module ``datetime`` where the core answers ``now()``."""

    def __init__(self, real: t.Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> t.Any:
        baton.look()
        return getattr(self._real, name)


class _Os:
    """Stands for the module ``os`` where the core and Jinja look for files. No error ever passes through it, for its lines would be in what users see."""

    def __init__(self) -> None:
        self.path = _Path()

    def __getattr__(self, name: str) -> t.Any:
        if name == 'listdir':
            baton.turn()
        return getattr(os, name)


class _Path:
    """And for ``os.path``: what is looked at is noted, whether it is there or not."""

    exists, isdir, isfile = (staticmethod(_noting(look)) for look in (os.path.exists, os.path.isdir, os.path.isfile))

    def __getattr__(self, name: str) -> t.Any:
        return getattr(os.path, name)


class Files:
    """The controller's files that a thread has looked at before its turn."""

    def __init__(self) -> None:
        self._seen: dict[str, _Identity] = {}

    def saw(self, path: t.Any) -> None:
        """Notes a file; waits for the turn before what is in a folder is looked at."""
        path = os.fsdecode(path)
        if path.startswith(os.path.join(C.DEFAULT_LOCAL_TMP, '')):
            return  # the run's own: nobody is told the name
        if os.path.isdir(path):
            baton.turn()
        self._seen.setdefault(path, _identity(path))

    def forget(self) -> None:
        """Another item begins."""
        self._seen.clear()

    def may_be(self, path: str) -> bool:
        """Whether one of them could be that file of a target, were this the controller; for an empty path, or one that only the target can tell, whether
        there is any."""
        if not os.path.isabs(path) or not self._seen:
            return bool(self._seen)
        real = os.path.realpath(path)
        return any(os.path.realpath(seen) == real or os.path.realpath(seen).startswith(real + '/') for seen in self._seen)

    def say(self, what: re.Pattern[str]) -> bool:
        """Whether one of them says that; one that nobody but the core can read may."""
        return any(_says(path, what) for path, identity in self._seen.items() if identity is not None)

    def unchanged(self) -> bool:
        """Whether all are what they were."""
        return all(_identity(path) == identity for path, identity in self._seen.items())


def _says(path: str, what: re.Pattern[str]) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
    except (OSError, UnicodeError):
        return True
    return is_encrypted(text) or bool(what.search(text))


def _identity(path: str) -> _Identity:
    try:
        info = os.stat(path)
    except OSError:
        return None
    if stat.S_ISDIR(info.st_mode):
        return (info.st_dev, info.st_ino)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
