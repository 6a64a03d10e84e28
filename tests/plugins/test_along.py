"""What goes along with a stat: under which guards, and what is made of each of its ends."""

from __future__ import annotations

import dataclasses
import importlib
import typing as t

import pytest

import core
from mitogen_mux import actions, along, errands, payload, rehearsal
from mitogen_mux.client import RpcError
from mitogen_mux.v1 import error_pb2, jobs_pb2, path_pb2

PATH = path_pb2.Path(hops=[path_pb2.Hop(), path_pb2.Hop()])
STAT, FILE, FOLDER, PUT, COPY, REMOVE = range(6)
SKIPPED = None
DONE = (0, b'', b'')


class Module:
    def __init__(self, name: str) -> None:
        self.name = self.fqn = name

    def key(self) -> bytes:
        return self.name.encode()

    def build(self) -> payload.Payload:
        raise NotImplementedError


def token(name: str, params: str = '') -> payload.Token:
    made = payload.Token()
    made.source, made.params, made.environment, made.interpreter, made.rlimit_nofile = Module(name), params.encode(), [], 'python', 0
    return made


def folder(*files: errands.File, **more: t.Any) -> errands.Folder:
    def explain(_: str) -> t.NoReturn:
        raise AssertionError

    return errands.Folder('/tmp/a', more.pop('foreign', False), True, explain, files=list(files), **more)


def file(body: bytes = b'body', mode: int = 0o600) -> errands.File:
    return errands.File('/tmp/a/source', mode, body)


def step(asked: payload.Token) -> jobs_pb2.Step:
    return jobs_pb2.Step(module=jobs_pb2.Module(name=asked.source.name))


def asked(**more: t.Any) -> along.Along:
    """Along with a stat, step 0: file if it finds the sum, else a folder, a file and copy."""
    change = rehearsal.Change(rehearsal.Question(token('copy'), True, 'sum'), folder(file(), **more))
    return along.Along(rehearsal.Outcomes([rehearsal.Question(token('file'), True, 'sum')], change), 0, PATH, step)


def test_the_steps_and_their_guards() -> None:
    it = asked()
    assert [s.WhichOneof('action') for s in it.steps] == ['module', 'folder', 'put', 'module', 'folder']
    assert [[(g.step, g.field, g.value, g.unequal) for g in s.guards] for s in it.steps] == [
        [(STAT, 'stat.checksum', '"sum"', False)],
        [(STAT, 'rc', '0', False), (STAT, 'stat.isreg', 'false', True), (STAT, 'stat.checksum', '"sum"', True)],
        [(FOLDER, 'rc', '0', False)],
        [(PUT, 'rc', '0', False)],
        [(FOLDER, 'rc', '0', False)],
    ]
    assert it.bodies == {PUT: b'body'}
    assert {n: s.source.name for n, s in it.tokens.items()} == {FILE: 'file', COPY: 'copy'}
    assert it.steps[PUT - 1].put.as_login and it.steps[REMOVE - 1].folder.remove


def test_a_folder_of_another_account_is_made_by_that_account_or_not_ahead() -> None:
    assert not asked(foreign=True).steps[PUT - 1].put.as_login
    assert [s.WhichOneof('action') for s in asked(foreign=True, depth=2).steps] == ['module']


def failed(at: int, kind: int) -> RpcError:
    return RpcError(2, 'failed', error_pb2.Error(kind=kind, step=at))  # type: ignore[arg-type]


LOST, BROKEN, OTHER = error_pb2.Error.AGENT_DIED, error_pb2.Error.FILE_FAILED, error_pb2.Error.INTERNAL
RAN = (0, b'copied', b'')
N = SKIPPED

# What the steps after the stat gave, the failure; what copy has of it, and whether the folder may be there.
ENDS: dict[str, tuple[list[t.Any], tuple[int, int] | None, str, bool]] = {
    'unchanged': ([DONE, N, N, N, N], None, 'asked', False),
    'changed': ([N, DONE, DONE, RAN, DONE], None, 'answered', False),
    'neither': ([N, N, N, N, N], None, 'asked', False),
    'no folder': ([N, N, N, N, N], (FOLDER, BROKEN), 'asked', False),
    'no file': ([N, DONE, N, N, DONE], (PUT, BROKEN), 'asked', False),
    'no file, and the folder stays': ([N, DONE, N, N, N], (PUT, BROKEN), 'asked', True),
    'it cannot be run': ([N, DONE, DONE, N, DONE], (COPY, OTHER), 'raised', False),
    'the folder stays': ([N, DONE, DONE, RAN, N], (REMOVE, BROKEN), 'answered', True),
    'cut after the stat': ([N, N, N, N, N], (FILE, LOST), 'raised', False),
    'cut after it was skipped': ([N, N, N, N, N], (FOLDER, LOST), 'raised', False),
    'cut after the folder': ([N, DONE, N, N, N], (PUT, LOST), 'raised', True),
    'cut after the file': ([N, DONE, DONE, N, N], (COPY, LOST), 'raised', True),
    'cut after the copy': ([N, DONE, DONE, RAN, N], (REMOVE, LOST), 'answered', True),
}


@pytest.mark.parametrize(('answers', 'failure', 'becomes', 'stays'), ENDS.values(), ids=ENDS)
def test_each_end(answers: list[t.Any], failure: tuple[int, int] | None, becomes: str, stays: bool) -> None:
    """Nothing is asked twice of a host that may have begun it, and a folder that may be there is one to be removed."""
    it, real = asked(), folder()
    it.learn([DONE, *answers], failed(*failure) if failure else None, real)
    assert real.at == (PATH if stays else None)
    real.files = [file()]
    if becomes == 'raised':
        with pytest.raises(RpcError):
            it.recall(token('copy'), True, real)
    else:
        assert it.recall(token('copy'), True, real) == (RAN if becomes == 'answered' else None)
    assert real.files == ([file()] if becomes == 'asked' else []), 'what waits has gone along, or is still to go'
    assert it.recall(token('copy'), True, real) is None, 'an answer is given once'


OTHERS: dict[str, tuple[payload.Token, bool, errands.Folder | None]] = {
    'module': (token('other'), True, folder(file())),
    'parameters': (token('copy', '{}'), True, folder(file())),
    'account': (token('copy'), False, folder(file())),
    'content': (token('copy'), True, folder(file(b'else'))),
    'mode': (token('copy'), True, folder(file(mode=0o700))),
    'files': (token('copy'), True, folder(file(), file())),
    'folder': (token('copy'), True, None),
    'way of the folder': (token('copy'), True, folder(file(), foreign=True)),
}


@pytest.mark.parametrize(('other', 'become', 'place'), OTHERS.values(), ids=OTHERS)
def test_another_question_has_no_answer(other: payload.Token, become: bool, place: errands.Folder | None) -> None:
    it = asked()
    it.learn([DONE, N, DONE, DONE, RAN, DONE], None, folder())
    assert it.recall(other, become, place) is None
    assert place is None or place.files, 'what waits still does'


@pytest.mark.parametrize(('answer', 'failure'), [(DONE, None), (N, (FILE, LOST)), (N, (FILE, OTHER))], ids=['answered', 'cut', 'failed'])
def test_the_question_of_an_unchanged_file(answer: t.Any, failure: tuple[int, int] | None) -> None:
    it = asked()
    it.learn([DONE, answer, N, N, N, N], failed(*failure) if failure else None, folder())
    if failure:
        with pytest.raises(RpcError):
            it.recall(token('file'), True, folder())
    else:
        assert it.recall(token('file'), True, folder()) == answer


@pytest.mark.parametrize(
    ('action', 'module', 'verbosity', 'glance'),
    [
        ('copy', 'stat', 0, True),
        ('template', 'stat', 2, True),
        ('assemble', 'stat', 0, True),
        ('unarchive', 'stat', 0, True),
        ('copy', 'stat', 3, False),
        ('copy', 'file', 0, False),
        ('fetch', 'stat', 0, False),
        ('normal', 'stat', 0, False),
    ],
)
def test_who_only_glances(monkeypatch: pytest.MonkeyPatch, action: str, module: str, verbosity: int, glance: bool) -> None:
    source = payload.classify(module, dict(core.builtin_modules())[module])
    assert source is not None
    monkeypatch.setattr(actions.display, 'verbosity', lambda: verbosity)
    kind = importlib.import_module(f'ansible.plugins.action.{action}').ActionModule
    assert actions.glances(object.__new__(kind), source) is glance
    mine = dataclasses.replace(source, path='/library/stat.py')
    stranger = type('ActionModule', (kind,), {'__module__': 'copy'})
    assert not actions.glances(object.__new__(kind), mine) and not actions.glances(object.__new__(stranger), source)
