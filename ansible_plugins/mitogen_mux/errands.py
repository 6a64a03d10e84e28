"""Errands: what an action wants done on its way and whose answer it does not need at once (its temporary folder, files to put there).

They wait with the connection and leave with the next request, in the order in which they were asked for. What goes wrong with one is
raised then, as the plain way would have raised it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.text.converters import to_bytes

from . import compat, payload
from .client import RpcError
from .v1 import error_pb2, jobs_pb2, path_pb2

Result = tuple[int, bytes, bytes]
"""What a step gave: exit code, stdout, stderr."""

FILE_KINDS = (error_pb2.Error.FILE_FAILED, error_pb2.Error.FILE_NOT_FOUND, error_pb2.Error.TOO_LARGE)

_NO_WAY = (error_pb2.Error.INTERPRETER_MISSING, error_pb2.Error.BECOME_FAILED)
"""Where there is no agent to be had, the plain way may do without, or says why it cannot."""


class _NoWay(Exception):
    """There is no agent of that account."""


_LEAVE_IT = frozenset(('copy', 'file', 'slurp', 'stat'))
"""Modules of the core that use their action's folder only for what was put there."""

INLINE = 32 << 10
"""Bytes up to which a file's content is taken along at once; the source of a longer one is kept."""


def core_module(token: payload.Token) -> str:
    """The name of a module of the core; empty for any other, also for one that stands in for it."""
    return core_module_of(getattr(token.source, 'path', ''))


@functools.cache
def core_module_of(path: str) -> str:
    """The same by the module's file."""
    folder, name = os.path.split(os.path.realpath(path))
    return name.removesuffix('.py') if folder == os.path.join(compat.CORE_ROOT, 'ansible', 'modules') else ''


@dataclasses.dataclass
class File:
    """A file to put. Its source may be gone when it leaves."""

    dest: str
    mode: int
    body: bytes | None = None
    path: str = ''
    kept: str = ''
    """The name that keeps the source, to be removed."""

    @classmethod
    def take(cls, source: str, dest: str, mode: int | None = None) -> File:
        """With the mode of its source, if it is to have no other. Raises OSError."""
        info = os.stat(source)
        file = cls(dest, info.st_mode & 0o777 if mode is None else mode)
        if info.st_size <= INLINE:
            with open(source, 'rb') as content:
                file.body = content.read()
            return file
        file.path = source
        if source.startswith((os.path.join(os.path.realpath(C.DEFAULT_LOCAL_TMP), ''), os.path.join(C.DEFAULT_LOCAL_TMP, ''))):
            fd, name = tempfile.mkstemp(dir=C.DEFAULT_LOCAL_TMP)  # the core removes its own temporary files as soon as they have been put
            os.close(fd)
            os.unlink(name)
            os.link(source, name)
            file.path = file.kept = name
        return file

    def step(self, as_login: bool) -> jobs_pb2.Step:
        """Puts it."""
        put = jobs_pb2.Put(dest=to_bytes(self.dest), mode=self.mode, as_login=as_login)
        if self.body is None:
            put.path = self.path
        else:
            put.has_body = True
        return jobs_pb2.Step(put=put)

    def forget(self) -> None:
        """It has left, or never will."""
        if self.kept:
            with contextlib.suppress(OSError):
                os.unlink(self.kept)
            self.kept = ''


@dataclasses.dataclass
class Folder:
    """An action's temporary folder."""

    path: str
    foreign: bool
    """It is for an account that cannot read the login account's files: then it is that account which makes it."""
    passing: bool
    """What is put there is for the action's next module alone."""
    explain: t.Callable[[str], t.NoReturn]
    """Raises what the plain way would where the folder cannot be made."""
    depth: int = 1
    """How many hops lead to the connection's account."""
    at: path_pb2.Path | None = None
    """The account that has made it; None: it is not there."""
    files: list[File] = dataclasses.field(default_factory=list)
    fixes: list[t.Callable[[], None]] = dataclasses.field(default_factory=list)
    """Calls of _fixup_perms2, for where they are needed after all."""

    def wanted(self, token: payload.Token) -> bool:
        """Whether the folder must be there for a module."""
        return bool(self.files) or (self.at is None and not self.foreign and core_module(token) not in _LEAVE_IT)

    def holds(self, path: str) -> bool:
        """Whether the path is in the folder."""
        return path.startswith(self.path + '/')

    def run_here(self) -> None:
        """Does what waits on this very machine."""
        if self.at is None:
            try:
                parents = []
                parent = os.path.dirname(self.path)
                while not os.path.isdir(parent):
                    parents.append(parent)
                    parent = os.path.dirname(parent)
                for parent in [*reversed(parents), self.path]:
                    os.mkdir(parent, 0o700)
            except OSError as error:
                self.explain(error.strerror or '')
        for file in self.files:
            with open(file.dest, 'wb', opener=lambda name, flags: os.open(name, flags, 0o600)) as dest:
                if file.body is not None:
                    dest.write(file.body)
                else:
                    with open(file.path, 'rb') as source:
                        shutil.copyfileobj(source, dest, 1 << 20)
                os.fchmod(dest.fileno(), file.mode)
        fixes = self.fixes if self.foreign else []
        self.forget_files()
        for fix in fixes:
            fix()

    def remove_here(self) -> None:
        """Removes what is there on this very machine."""
        self.forget_files()
        if self.at is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def forget_files(self) -> None:
        """They have left, or never will."""
        for file in self.files:
            file.forget()
        self.files, self.fixes = [], []


def done(step: int) -> jobs_pb2.Guard:
    """Says that a step must have come to its end."""
    return jobs_pb2.Guard(step=step, field='rc', value='0')


class Errand:
    """What leaves with a request to the account of a path: steps before it, and those after it."""

    def __init__(self, folder: Folder | None = None, path: path_pb2.Path | None = None, first: int = 0, guards: t.Sequence[jobs_pb2.Guard] = ()) -> None:
        """``first`` is the number of its first step in the request, which begins only if ``guards`` say so; then the others follow it."""
        self.folder, self.path, self.first = folder, path, first
        self.steps: list[jobs_pb2.Step] = []
        self.bodies: dict[int, bytes] = {}
        self.last: list[jobs_pb2.Step] = []
        self.makes = False
        """Whether the first step makes the folder."""
        if folder is None or path is None:
            return
        as_login = len(path.hops) > folder.depth and not folder.foreign
        name = to_bytes(folder.path)
        if folder.at is None:
            self.makes = True
            self.steps.append(jobs_pb2.Step(folder=jobs_pb2.Folder(path=name, as_login=as_login)))
        for file in folder.files:
            if file.body is not None:
                self.bodies[first + len(self.steps)] = file.body
            self.steps.append(file.step(as_login))
        if guards:
            self.steps[0].guards.extend(guards)
            for n, step in enumerate(self.steps[1:], first):
                step.guards.append(done(n))
        if folder.passing and folder.files:
            guard = done(first)
            self.last = [jobs_pb2.Step(folder=jobs_pb2.Folder(path=name, remove=True, as_login=as_login), guards=[guard])]


class Carrier:
    """What a connection does with its errands. Mixed into ours."""

    if t.TYPE_CHECKING:
        mux_path: t.Callable[[], path_pb2.Path]
        _mux_error: t.Callable[[RpcError], AnsibleError]
        mux_steps: t.Callable[[path_pb2.Path, list[jobs_pb2.Step]], list[Result]]
        _mux_run: t.Callable[[path_pb2.Path, list[jobs_pb2.Step], dict[int, bytes]], list[Result | None]]

    _mux_folder: Folder | None = None

    def mux_plan(self, folder: Folder | None) -> None:
        """Takes the errand of making a folder; what is put there before it is made waits with it."""
        self._mux_folder = folder

    def mux_folder(self, path: str | None = None) -> Folder | None:
        """The action's temporary folder, if we have it in hand, and if it is the one of that name."""
        folder = self._mux_folder
        return folder if folder is not None and path in (None, folder.path) else None

    def mux_remove(self) -> None:
        """Removes the folder, if it is there. Raises what a command would."""
        folder, self._mux_folder = self._mux_folder, None
        if folder is None:
            return
        folder.forget_files()
        if folder.at is not None:
            remove = jobs_pb2.Folder(path=to_bytes(folder.path), remove=True, as_login=len(folder.at.hops) > folder.depth and not folder.foreign)
            self.mux_steps(folder.at, [jobs_pb2.Step(folder=remove)])

    def _mux_errand(self, token: payload.Token, path: path_pb2.Path) -> Errand:
        """What has to be done for the account of ``path`` before a module runs there."""
        folder = self._mux_folder
        if folder is None or not folder.wanted(token):
            return Errand()
        if (folder.foreign and len(path.hops) == folder.depth) or (folder.at is not None and len(folder.at.hops) != len(path.hops)):
            self.mux_run_errands()
            return Errand()
        return Errand(folder, path)

    def _mux_errand_done(self, errand: Errand, answers: list[Result | None]) -> None:
        if errand.folder is not None:
            errand.folder.at = None if errand.last and answers[-1] is not None else errand.path
            errand.folder.forget_files()

    def _mux_errand_failed(self, errand: Errand, error: RpcError) -> None:
        folder = errand.folder
        if folder is None or not error.answers:
            return
        if folder.at is None and error.answers[0] is not None:
            folder.at = errand.path
        if errand.makes and error.answers[0] is None and error.at() == 0 and error.kind in FILE_KINDS:
            folder.explain(error.message)
        folder.forget_files()

    def mux_run_errands(self, ways: t.Iterable[t.Callable[[], path_pb2.Path]] = ()) -> None:
        """Does at once what waits: as the account that the first of ``ways`` leads to, or else as the plain way would have done it."""
        folder = self._mux_folder
        if folder is None or (folder.at is not None and not folder.files):
            return
        for way in () if folder.at else ways:
            path = way()
            errand = Errand(folder, path)
            with contextlib.suppress(_NoWay):
                answers = self._mux_run_errand(errand, path, _NO_WAY)
                break
        else:
            path = folder.at or self.mux_path()
            errand = Errand(folder, path)
            answers = self._mux_run_errand(errand, path)
        fixes = folder.fixes if folder.foreign and len(path.hops) == folder.depth else []
        errand.last = []
        self._mux_errand_done(errand, answers)
        for fix in fixes:
            fix()

    def _mux_run_errand(self, errand: Errand, path: path_pb2.Path, other: t.Container[int] = ()) -> list[Result | None]:
        """Raises _NoWay for the kinds of ``other``: nothing was done then."""
        try:
            return self._mux_run(path, errand.steps, errand.bodies)
        except RpcError as error:
            if error.kind in other:
                raise _NoWay from None
            self._mux_errand_failed(errand, error)
            raise self._mux_error(error) from None
