"""Rehearsals: what an action would ask next if the host's answer were the expected one, or one that has it do its work.

The core's own code is run with a stand-in for the connection, up to the next question. Asked along with the first one, under a guard that
lets it begin only on that very answer, it costs no round trip; and its answer is used only for exactly this question."""

from __future__ import annotations

import dataclasses
import json
import os
import typing as t

from . import errands, payload

LITTLE = 8 << 10
"""Bytes of a file up to which it goes along before anybody knows whether it is wanted: then all of the request fits what TCP sends at once on
a connection that has been idle (ten segments, RFC 6928), so that in vain it costs no round trip either."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A module that is to be run if the module asked before it has found ``checksum`` or, for a change, something else."""

    token: payload.Token
    become: bool
    checksum: str

    def same(self, token: payload.Token, become: bool) -> bool:
        """Whether the other one is this very question."""
        return become == self.become and _essence(token) == _essence(self.token)


@dataclasses.dataclass(frozen=True)
class Change:
    """A module that is to be run if the one before it has found no file or another one, with what it needs."""

    question: Question
    folder: errands.Folder
    """With the files that are put there first."""

    def same(self, token: payload.Token, become: bool, folder: errands.Folder) -> bool:
        """Whether this is asked, with these very files waiting."""
        if (folder.path, folder.foreign, folder.files) != (self.folder.path, self.folder.foreign, self.folder.files):
            return False
        return self.question.same(token, become)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What is asked after a stat."""

    unchanged: t.Sequence[Question] = ()
    changed: Change | None = None

    def within(self, become: bool) -> Outcomes:
        """Those for the account that the stat is for."""
        changed = self.changed if self.changed is not None and self.changed.question.become == become else None
        return Outcomes([question for question in self.unchanged if question.become == become], changed)

    def without_change(self) -> Outcomes:
        """Those that need nothing but a module."""
        return Outcomes(self.unchanged)


Play = t.Callable[[t.Any], t.Any]


def outcomes(action: t.Any, play: Play, answers: list[dict[str, t.Any]]) -> Outcomes:
    """What ``play``, which copies one file for ``action``, asks after the stats in ``answers`` and the next one."""
    return Outcomes(_unchanged(action, play, answers), _changed(action, play, answers))


def _unchanged(action: t.Any, play: Play, answers: list[dict[str, t.Any]]) -> list[Question]:
    """If the next stat finds the very file that it was going to copy: another stat perhaps, and the module that sets mode and owner."""
    real = action._connection
    found = _Checksum(True)
    questions: list[Question] = []
    looking = False

    def exec_command(cmd: str, in_data: t.Any = None, **_: t.Any) -> tuple[int, bytes, bytes]:
        if not isinstance(in_data, payload.Token) or not found.other:
            raise _Over
        questions.append(Question(in_data, real._mux_become(cmd) is not None, found.other))
        if not looking:
            raise _Over
        return 0, json.dumps({'changed': False, 'stat': {**_FOUND, 'checksum': found.other}}).encode(), b''

    def look(twin: t.Any, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        nonlocal looking
        looking = True
        try:
            return t.cast(dict[str, t.Any], type(action)._execute_remote_stat(twin, *args, **kwargs))
        finally:
            looking = False

    twin = _twin(action)
    twin._connection.exec_command = exec_command
    return questions if _rehearse(twin, play, [*answers, {**_FOUND, 'checksum': found}], look) else []


def _changed(action: t.Any, play: Play, answers: list[dict[str, t.Any]]) -> Change | None:
    """If the next stat finds no file, or another one, and the same is asked either way."""
    folder = action._connection.mux_folder()
    if folder is None or folder.at is not None or folder.files or not folder.passing:
        return None
    other = _on_difference(action, play, answers, _FOUND)
    if other is None:
        return None
    none = _on_difference(action, play, answers, {'exists': False})
    return other if none is not None and other.same(none.question.token, none.question.become, none.folder) else None


def _on_difference(action: t.Any, play: Play, answers: list[dict[str, t.Any]], found: dict[str, t.Any]) -> Change | None:
    twin = _twin(action)
    real, connection = action._connection, twin._connection
    checksum = _Checksum(False)
    folder = connection._mux_folder = dataclasses.replace(connection._mux_folder, files=[], fixes=[])
    changes: list[Change] = []

    def put_file(in_path: str, out_path: str) -> t.Any:
        if not folder.holds(out_path) or os.path.getsize(in_path) > LITTLE:
            raise _Over
        return type(connection).put_file(connection, in_path, out_path)

    def exec_command(cmd: str, in_data: t.Any = None, **_: t.Any) -> t.NoReturn:
        if isinstance(in_data, payload.Token) and checksum.other and folder.files:
            changes.append(Change(Question(in_data, real._mux_become(cmd) is not None, checksum.other), folder))
        raise _Over

    connection.put_file, connection.exec_command = put_file, exec_command
    return changes[0] if _rehearse(twin, play, [*answers, {**found, 'checksum': checksum}]) and changes else None


_FOUND = {'exists': True, 'isdir': False, 'islnk': False}


class _Over(BaseException):
    """The next question is known. Not an Exception: the core must not handle it."""


class _Checksum(str):
    """A checksum that is equal to any other, or to none, and remembers it."""

    equal: bool
    other = ''
    __hash__ = str.__hash__

    def __new__(cls, equal: bool) -> _Checksum:
        self = super().__new__(cls)
        self.equal = equal
        return self

    def __eq__(self, other: object) -> bool:
        self.other = str(other)
        return self.equal

    def __ne__(self, other: object) -> bool:
        return not self == other


def _rehearse(twin: t.Any, play: Play, answers: list[dict[str, t.Any]], look: t.Callable[..., dict[str, t.Any]] | None = None) -> bool:
    """Whether ``play`` comes to a question with these answers to its stats. ``look`` makes a question of any more."""
    left = list(answers)

    def execute_remote_stat(*args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        if left:
            return dict(left.pop(0))
        if look is None:
            raise _Over
        return look(twin, *args, **kwargs)

    twin._execute_remote_stat = execute_remote_stat
    twin._remove_tempfile_if_content_defined = lambda *_: None
    twin._loader = loader = _Loader(twin._loader)
    try:
        play(twin)
    except _Over:
        return True
    except Exception:
        return False  # the action itself will say it
    finally:
        loader.clean()
    return False


class _Loader:
    """The core's loader, but nothing goes that the action still needs."""

    def __init__(self, real: t.Any) -> None:
        self._real = real
        self._made: list[str] = []

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._real, name)

    def get_real_file(self, path: str, decrypt: bool = True) -> str:
        """A temporary file for what is encrypted, else the path itself."""
        made = str(self._real.get_real_file(path, decrypt=decrypt))
        if made != path:
            self._made.append(made)
        return made

    def cleanup_tmp_file(self, path: str) -> None:
        """Later."""

    def clean(self) -> None:
        """Removes what was made for the rehearsal alone."""
        for path in self._made:
            self._real.cleanup_tmp_file(path)


def _twin(action: t.Any) -> t.Any:
    """The action, and its connection, with the same state."""
    twin = _copy(action)
    twin._connection = _copy(action._connection)
    return twin


def _copy(obj: t.Any) -> t.Any:
    copy: t.Any = object.__new__(type(obj))
    copy.__dict__.update(obj.__dict__)
    return copy


def _essence(token: payload.Token) -> tuple[t.Any, ...]:
    return token.source.key(), token.params, token.environment, token.rlimit_nofile, token.interpreter
