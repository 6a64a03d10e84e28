"""Rehearsals: what an action would ask next if the host's answer were the expected one.

The core's own code is run with a stand-in for the connection, up to the next question. Asked along with the first one, under a guard that
lets it begin only on that very answer, it costs no round trip; and its answer is used only for exactly this question."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from . import payload


@dataclasses.dataclass(frozen=True)
class Question:
    """A module that is to be run if the module asked before it has found ``checksum``."""

    token: payload.Token
    become: bool
    checksum: str

    def same(self, token: payload.Token, become: bool) -> bool:
        """Whether the other one is this very question."""
        return become == self.become and _essence(token) == _essence(self.token)


def unchanged(action: t.Any, play: t.Callable[[t.Any], t.Any], answers: list[dict[str, t.Any]]) -> list[Question]:
    """What ``play``, which copies one file for ``action``, asks if after the stats in ``answers`` the next one finds the very file that it
    was going to copy: another stat perhaps, and the module that sets mode and owner."""
    real = action._connection
    equal = _Equal()
    questions: list[Question] = []
    stats = 0
    looking = False

    def exec_command(cmd: str, in_data: t.Any = None, **_: t.Any) -> tuple[int, bytes, bytes]:
        if not isinstance(in_data, payload.Token) or not equal.other:
            raise _Over
        questions.append(Question(in_data, real._mux_become(cmd) is not None, equal.other))
        if not looking:
            raise _Over
        return 0, json.dumps({'changed': False, 'stat': {**_FOUND, 'checksum': equal.other}}).encode(), b''

    def execute_remote_stat(*args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        nonlocal stats, looking
        stats += 1
        if stats <= len(answers):
            return dict(answers[stats - 1])
        if stats == len(answers) + 1:
            return {**_FOUND, 'checksum': equal}
        looking = True
        try:
            return t.cast(dict[str, t.Any], type(action)._execute_remote_stat(twin, *args, **kwargs))
        finally:
            looking = False

    twin = _twin(action)
    twin._connection = _twin(real)
    twin._connection.exec_command = exec_command
    twin._execute_remote_stat = execute_remote_stat
    twin._remove_tempfile_if_content_defined = lambda *_: None
    twin._loader = loader = _Loader(action._loader)
    try:
        play(twin)
    except _Over:
        return questions
    except Exception:
        return []  # the action itself will say it
    finally:
        loader.clean()
    return []


_FOUND = {'exists': True, 'isdir': False, 'islnk': False}


class _Over(BaseException):
    """The next question is known. Not an Exception: the core must not handle it."""


class _Equal(str):
    """A checksum that is equal to any other, and remembers it."""

    other = ''
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        self.other = str(other)
        return True

    def __ne__(self, other: object) -> bool:
        return not self == other


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


def _twin(obj: t.Any) -> t.Any:
    twin: t.Any = object.__new__(type(obj))
    twin.__dict__.update(obj.__dict__)
    return twin


def _essence(token: payload.Token) -> tuple[t.Any, ...]:
    return token.source.key(), token.params, token.environment, token.rlimit_nofile, token.interpreter
