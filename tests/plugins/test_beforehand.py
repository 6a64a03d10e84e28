"""A payload that a new daemon will want is made while something else is waited for, and nothing but that changes."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
import sys
import textwrap
import threading
import types
import typing as t

import pytest

import core
import stub_run
from mitogen_mux import baton, beforehand, compat, daemon, payload, seams
from test_workers import until

pytestmark = pytest.mark.slow


MODULE = """
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.one.two.plugins.module_utils.{util} import ANSWER

AnsibleModule({{}}).exit_json(answer=ANSWER)
"""

RUNTIME = """
plugin_routing:
  module_utils:
    old:
      redirect: one.two.new
      deprecation: {removal_version: 9.0.0, warning_text: it is old}
  modules:
    older:
      redirect: one.two.says
      deprecation: {removal_version: 9.0.0, warning_text: it is older}
"""

VARIABLES = {'ansible_host': '127.0.0.1', 'ansible_interpreter_python_fallback': [sys.executable]}

RECORDED = ('request', 'answer', 'build', 'built', 'upload')


class Run(t.NamedTuple):
    rc: int
    output: str
    log: list[str]


Play = t.Callable[..., Run]


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    plugins = tmp_path / 'ansible_collections' / 'one' / 'two' / 'plugins'
    for folder in ('modules', 'module_utils', '../meta'):
        (plugins / folder).mkdir(parents=True)
    (plugins / 'modules' / 'says.py').write_text(MODULE.format(util='old'))
    (plugins / 'modules' / 'fails.py').write_text(MODULE.format(util='not_there'))
    (plugins / 'module_utils' / 'new.py').write_text('ANSWER = 42\n')
    (plugins.parent / 'meta' / 'runtime.yml').write_text(RUNTIME)

    def run(tasks: str, builds: str, *, new: bool, strategy: str = 'mitogen_linear') -> Run:
        for file in [*tmp_path.glob('payload-*'), tmp_path / 'log']:
            file.unlink(missing_ok=True)
        (tmp_path / 'play.yml').write_text(f'- hosts: all\n  gather_facts: false\n  tasks:\n{tasks}')
        done = stub_run.play(
            tmp_path,
            'fake_daemon.py',
            *('-i', 'h1,', '-e', json.dumps(VARIABLES)),
            **({'FAKE_NEW': '1'} if new else {}),
            FAKE_BUILDS=builds,
            FAKE_DAEMON=str(tmp_path),
            ANSIBLE_STRATEGY=strategy,
            ANSIBLE_COLLECTIONS_PATH=str(tmp_path),
            ANSIBLE_PYTHON_INTERPRETER='auto_silent',
        )
        log = (tmp_path / 'log').read_text().splitlines()
        return Run(done.returncode, done.stdout, [line for line in log if line.startswith(RECORDED)])

    return run


PING = ['build ping', 'built ping']
SEARCH = ['request command', 'answer']
AGAIN = SEARCH if compat.BUILT_MODULE is None else []  # up to 2.18 the target is asked for its distribution, too
RAN = ['upload ansible.modules.ping', 'request module', 'answer']


@pytest.mark.parametrize('strategy', ['mitogen_linear', 'mitogen_free'])
def test_a_payload_is_made_while_the_interpreter_is_looked_for(play: Play, strategy: str) -> None:
    """That answer waits for it; without us it would be made after it."""
    old = play('  - ping:\n', '', new=False, strategy=strategy)
    new = play('  - ping:\n', 'built ping', new=True, strategy=strategy)
    assert (old.rc, new.rc, new.output) == (0, 0, old.output), (old, new)
    assert old.log == [*SEARCH, *AGAIN, *PING, *RAN]
    assert new.log == [SEARCH[0], *PING, SEARCH[1], *AGAIN, *RAN]


COMMAND = ['build {}command', 'built {}command']


@pytest.mark.parametrize('foreseen', [True, False])
def test_the_next_tasks_is_made_beforehand(play: Play, tmp_path: pathlib.Path, foreseen: bool) -> None:
    """While the first request waits, for which there is most time; or, if the strategy does not know of it yet, while the target is at work."""
    tasks = '  - ping:\n  - command: echo hi\n  - command: echo hi\n  - ping:\n'
    (tmp_path / 'more.yml').write_text(textwrap.dedent(tasks))
    tasks = tasks if foreseen else '  - include_tasks: more.yml\n'
    builds = 'built command' if foreseen else f'built ping,{"," * bool(AGAIN)}built ansible.legacy.command'
    old, new = play(tasks, '', new=False), play(tasks, builds, new=True)
    assert (old.rc, new.rc, new.output) == (0, 0, old.output), (old, new)
    command = [line.format('' if foreseen else 'ansible.legacy.') for line in COMMAND]
    in_its_turn = [line.format('ansible.legacy.') for line in COMMAND]
    ran = ['request module', 'answer']
    uploads = 'upload ansible.modules.command'
    assert old.log == [*SEARCH, *AGAIN, *PING, *RAN, *in_its_turn, uploads, *ran, *ran, *ran]
    if foreseen:
        assert new.log == [SEARCH[0], *PING, *command, SEARCH[1], *AGAIN, *RAN, uploads, *ran, *ran, *ran]
    else:
        assert [line for line in new.log if line not in command] == [SEARCH[0], *PING, SEARCH[1], *AGAIN, *RAN, uploads, *ran, *ran, *ran]
        assert [line for line in new.log if line in command] == command
        assert new.log.index(command[1]) < new.log.index('answer', new.log.index('request module'))  # at the latest


def test_modules_of_tasks_are_found_as_actions_find_them(tmp_path: pathlib.Path) -> None:
    task = collections.namedtuple('task', 'action collections')
    block = types.SimpleNamespace(
        get_tasks=lambda: [task(name, []) for name in ('shell', 'ansible.builtin.copy', 'template', 'debug', 'ping', 'ping', 'nothing')]
    )
    sources = [find() for find in seams.modules([block])]
    assert [source and source.fqn.rpartition('.')[2] for source in sources] == ['command', 'copy', 'copy', None, 'ping', None]


@pytest.mark.parametrize(('module', 'said', 'rc'), [('says', 'it is old', 0), ('fails', 'Could not find imported module support code', 2)])
def test_what_there_is_to_say_of_a_payload_is_said_in_its_place(play: Play, module: str, said: str, rc: int) -> None:
    tasks = f'  - {{ping: , name: first}}\n  - {{one.two.{module}: , name: second}}\n'
    old, new = play(tasks, '', new=False), play(tasks, 'built ping', new=True)
    assert (old.rc, new.rc, new.output) == (rc, rc, old.output), (old, new)
    assert said in ' '.join(old.output.partition('TASK [second]')[2].split())
    tasks = tasks.splitlines(keepends=True)[1]
    old, new = play(tasks, '', new=False), play(tasks, f'{"build" if rc else "built"} one.two.{module}', new=True)
    assert (old.rc, new.rc, new.output) == (rc, rc, old.output), (old, new)
    assert [log.count(f'build one.two.{module}') for log in (old.log, new.log)] == [1, 1 + bool(rc)]


@pytest.mark.parametrize(('module', 'condition', 'said'), [('warns', '', 'three.four does not support'), ('odd', '', 'invalid'), ('odd', 'when: false, ', '')])
def test_what_is_said_but_once_is_said_in_its_place(play: Play, tmp_path: pathlib.Path, module: str, condition: str, said: str) -> None:
    """A warning of a collection that is loaded for the first time; and what Python has to say of a text, which only runs say that need it."""
    four, two = (tmp_path / 'ansible_collections' / name for name in ('three/four', 'one/two'))
    for folder in (four / 'meta', four / 'plugins' / 'module_utils'):
        folder.mkdir(parents=True)
    (four / 'meta' / 'runtime.yml').write_text('requires_ansible: "<2.5"\n')
    (four / 'plugins' / 'module_utils' / 'x.py').write_text('ANSWER = 1\n')
    (two / 'plugins' / 'module_utils' / 'odd.py').write_text('ANSWER = "\\d"\n')
    text = MODULE.replace('one.two.plugins.module_utils.{util}', 'three.four.plugins.module_utils.x')
    (two / 'plugins' / 'modules' / 'warns.py').write_text(text.format())
    (two / 'plugins' / 'modules' / 'odd.py').write_text(MODULE.format(util='odd'))
    tasks = f'  - {{ping: , name: first}}\n  - {{one.two.{module}: , {condition}name: second}}\n'
    old, new = play(tasks, '', new=False), play(tasks, f'build one.two.{module}', new=True)
    assert (old.rc, new.rc, new.output) == (0, 0, old.output), (old, new)
    if said and (said != 'invalid' or sys.version_info >= (3, 12)):
        assert said in ' '.join(old.output.partition('TASK [second]')[2].split()), old.output


def test_what_there_is_to_say_of_a_module_is_said_in_its_place(play: Play) -> None:
    """Not where it is foreseen."""
    tasks = '  - {ping: , name: first}\n  - {one.two.older: , name: second}\n'
    old, new = play(tasks, '', new=False), play(tasks, 'built ping', new=True)
    assert (old.rc, new.rc, new.output) == (0, 0, old.output), (old, new)
    assert 'it is older' in ' '.join(old.output.split())


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[], None]:
    for name in ('_expected', '_made', '_said', '_seen', '_foreseen'):
        monkeypatch.setattr(beforehand, name, type(getattr(beforehand, name))())
    monkeypatch.setattr(daemon, 'started', lambda: True)

    def fill() -> None:
        with compat.display_per_thread():
            beforehand.fill(lambda: False)

    return fill


@pytest.mark.parametrize(
    ('case', 'early', 'late'),
    [
        ('as expected', 1, 0),
        ('the module has changed', 1, 1),
        ('the daemon is not new', 0, 1),
        ('no time', 0, 1),
        ('wanted first', 0, 1),
        ('wanted before', 0, 1),
    ],
)
def test_each_is_made_once_beforehand_if_at_all(
    idle: t.Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, case: str, early: int, late: int
) -> None:
    builds: list[payload.Source] = []
    original = payload.Source.build

    def build(source: payload.Source) -> payload.Payload:
        builds.append(source)
        return original(source)

    def source(more: str = '') -> payload.Source:
        (tmp_path / 'mine.py').write_text(f'from ansible.module_utils.basic import AnsibleModule{more}\n')
        found = payload.classify('mine', str(tmp_path / 'mine.py'))
        assert found is not None
        return found

    monkeypatch.setattr(payload.Source, 'build', build)
    monkeypatch.setattr(daemon, 'started', lambda: case != 'the daemon is not new')
    expected = source()
    if case == 'wanted before':
        beforehand.build(expected)
    beforehand.expect(expected)
    if case == 'wanted first':
        beforehand.build(expected)
    builds.clear()
    beforehand.fill(lambda: True)
    assert builds == []
    if case != 'no time':
        idle()
        idle()
    assert builds == [expected] * early
    wanted = source(', env_fallback') if case == 'the module has changed' else expected
    made = beforehand.build(wanted)
    assert builds == [expected] * early + [wanted] * late
    assert made.blobs == original(wanted).blobs
    beforehand.expect(wanted)
    idle()
    assert beforehand.build(wanted) is not made  # it has been given that one, and wants it anew
    assert len(builds) == early + late + 1


@pytest.mark.parametrize(
    ('case', 'made'),
    [
        ('one is about to be run', ['ping', 'stat', 'slurp']),
        ('none is', []),
        ('the daemon is not new', []),
        ('targets answer', ['ping']),
        ('they cannot be foreseen', ['ping']),
        ('one cannot be found', ['ping', 'slurp']),
        ('another play has begun', ['ping', 'slurp']),
    ],
)
def test_what_is_foreseen_is_made_while_the_first_request_waits(
    idle: t.Callable[[], None], monkeypatch: pytest.MonkeyPatch, case: str, made: list[str]
) -> None:
    def find(name: str) -> payload.Source | None:
        if case == 'one cannot be found' and name == 'stat':
            raise LookupError(name)
        return payload.classify(name, dict(core.builtin_modules())[name])

    built: list[str] = []
    build = payload.Source.build
    monkeypatch.setattr(payload.Source, 'build', lambda source: built.append(source.name) or build(source))
    if case == 'the daemon is not new':
        monkeypatch.setattr(daemon, 'started', lambda: False)
    beforehand.foresee(lambda: [functools.partial(find, name) for name in ('ping', 'stat', 'slurp')])
    if case == 'another play has begun':
        beforehand.foresee(lambda: [functools.partial(find, 'slurp')])
    ping = find('ping')
    assert ping is not None
    if case != 'none is':
        beforehand.expect(ping)
    if case == 'they cannot be foreseen':
        beforehand.foresee(lambda: [1 // 0])
    if case == 'targets answer':
        beforehand.answered()
    idle()
    assert built == made


def test_a_thread_that_has_an_answer_to_work_on_is_noticed() -> None:
    """Then nothing more is made beforehand (Workers.rest)."""
    held = baton.Baton()
    held.take()
    assert not held.wanted()
    thread = threading.Thread(target=lambda: [held.take(), held.give()])
    thread.start()
    until(held.wanted)
    held.give()
    thread.join()
    assert not held.wanted()
