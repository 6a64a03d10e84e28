"""The next item of a loop leaves while the one before it is at work on the target, if nobody can notice."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import types
import typing as t

import pytest
from ansible.release import __version__

import stub_run
from mitogen_mux import following, order, readied
from mitogen_mux.v1 import jobs_pb2
from test_workers import VOLATILE, untimed

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = '#!/usr/bin/python\nfrom ansible.module_utils.basic import AnsibleModule\nAnsibleModule({"data": {}}).exit_json()\n'


class Played(t.NamedTuple):
    output: str
    events: list[dict[str, t.Any]]
    trace: list[str]


Play = t.Callable[..., Played]


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    """Runs a play of these tasks."""

    def run(*tasks: str, args: t.Sequence[str] = ('-i', 'h1,'), **environ: str) -> Played:
        for name in ('events', 'trace'):
            (tmp_path / name).write_text('')
        for name, text in {'a': 'A', 'b': 'B'}.items():
            (tmp_path / name).write_text(text)
        (tmp_path / 'library').mkdir(exist_ok=True)
        (tmp_path / 'library' / 'mine.py').write_text(LIBRARY)
        more = f'vars: {{here: {tmp_path}, ansible_python_interpreter: {sys.executable}, ansible_connection: mitogen_ssh}}'
        (tmp_path / 'play.yml').write_text(f'- hosts: all\n  gather_facts: false\n  {more}\n  tasks:\n' + ''.join(f'  - {task}\n' for task in tasks))
        done = stub_run.play(
            tmp_path,
            'stub_daemon.py',
            *args,
            **{
                'STUB_TRACE': str(tmp_path / 'trace'),
                'MUX_EVENTS': str(tmp_path / 'events'),
                'ANSIBLE_CALLBACK_PLUGINS': str(ROOT / 'tests' / 'integration' / 'plugins' / 'callback'),
                'ANSIBLE_CALLBACKS_ENABLED': 'mux_events',
                'ANSIBLE_DEPRECATION_WARNINGS': '0',
                'ANSIBLE_REMOTE_TEMP': '/none',  # no question for a home
                **environ,
            },
        )
        events = [json.loads(line, object_hook=untimed) for line in (tmp_path / 'events').read_text().splitlines()]
        return Played(done.stdout, events, (tmp_path / 'trace').read_text().splitlines())

    return run


def one_by_one(items: int) -> list[str]:
    return [f'{what} {n}' for n in range(1, items + 1) for what in ('left', 'answered')]


@pytest.mark.parametrize(
    ('task', 'decides'),
    [
        ('command: "echo {{ item | upper }}"', [0]),
        ('shell: "echo {{ item }}", become: true, when: item != "x"', [0]),
        ('ping: {data: "{{ item }}"}, register: r', [0]),
        ('command: "false {{ item }}", ignore_errors: true', [0]),
        ('command: "echo {{ item }}", changed_when: false, failed_when: false', [0]),
        ('copy: {content: "{{ item }}", dest: "/none/{{ item }}"}', [1, 4]),
        ('copy: {src: a, dest: "/none/{{ item }}"}', [1, 4]),
        ('template: {src: a, dest: "/none/{{ item }}"}', [1, 4]),
    ],
)
def test_an_item_leaves_before_the_one_before_it_is_answered(play: Play, task: str, decides: list[int]) -> None:
    """And begins only if that has come to one of the steps after which it asks nothing more."""
    done = play(f'{{{task}, loop: [a, b, c]}}', STUB_LEFT='3')
    later = [line for n in (2, 3) for line in (f'left {n} after {n - 1} {decides}', f'answered {n - 1}')]
    assert done.trace == ['left 1', *later, 'answered 3'], done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    'task',
    [
        'command: "echo {{ item }}", loop_control: {label: "{{ item }}"}',
        'command: "echo {{ item }}", register: r, changed_when: r.rc == 1',
        'command: "echo {{ item }}", register: r, failed_when: [false, r.rc == 1]',
        pytest.param(
            'command: "echo {{ item }}", register: {r: _task.result.stdout}',
            marks=pytest.mark.skipif(__version__ < '2.21', reason='up to 2.20 there is no such thing'),
        ),
        'command: "echo {{ item }}", become: true, become_user: "{{ item }}"',
        'command: "echo {{ item }}", vars: {ansible_user: "{{ item }}"}',
        'setup: {filter: "{{ item }}"}',
        'getent: {database: passwd, key: "{{ item }}"}',
        'mine: {data: "{{ item }}"}',
        'raw: "echo {{ item }}"',
        'copy: {src: "{{ here }}/{{ item }}", dest: "{{ here }}/b"}',
        'copy: {src: "{{ here }}/a", dest: "{{ here }}/"}',
        'copy: {src: a, dest: a}',
        'template: {src: a, dest: "{{ here }}"}',
    ],
)
def test_an_item_that_might_notice_leaves_in_its_turn(play: Play, task: str) -> None:
    done = play(f'{{{task}, loop: [a, b]}}', STUB_LEFT='1', STUB_DELAYS='500', STUB_LEAST='1')  # time enough
    assert not [line for line in done.trace if 'after' in line] and len(done.trace) >= 4, done.output
    assert done.trace == one_by_one(len(done.trace) // 2)


FIRST, SECOND = '{command: echo a}', '{command: echo b}'


def test_a_task_leaves_before_the_one_before_it_is_answered(play: Play) -> None:
    done = play(FIRST, SECOND, '{ping: {data: x}, register: r, become: true}', '{shell: echo c, become: true}', '{shell: echo d, become: true}', STUB_LEFT='5')
    after = {2: ' after 1 [0]', 4: ' after 3 [0]', 5: ' after 4 [0]'}  # the third is for another account
    trace = [line for line in done.trace if line.startswith('left')]
    assert trace == [f'left {n}{after.get(n, "")}' for n in range(1, 6)], done.output
    assert done.trace.index('left 2 after 1 [0]') < done.trace.index('answered 1')


@pytest.mark.parametrize('folder', ['/none', '~/none'])
def test_a_task_with_a_file_of_the_runs_own_leaves_too(play: Play, folder: str) -> None:
    """Once it is known where the account is at home."""
    tasks = '{copy: {content: a, dest: /none/a}}', FIRST, '{copy: {content: b, dest: /none/b}}', SECOND
    done = play(*tasks, STUB_LEFT='4', ANSIBLE_REMOTE_TEMP=folder)
    trace = [line for line in done.trace if line.startswith('left')]
    assert trace == ['left 1', 'left 2 after 1 [1, 4]', 'left 3 after 2 [0]', 'left 4 after 3 [1, 4]'], done.output


@pytest.mark.parametrize(
    ('meanwhile', 'outcome'),
    [
        (lambda _: True, 'it leaves'),
        (lambda _: False, 'it waits'),
        (lambda turn: turn.go_on(print) or True, 'it has come'),
        (lambda turn: turn.drop() or True, 'it is dropped'),
    ],
)
def test_its_turn_may_come_while_what_was_supposed_is_looked_at(meanwhile: t.Callable[[readied.Readied], bool], outcome: str) -> None:
    """Then it does not leave ahead any more, and what it has to say is said."""
    said: list[str] = []
    task = types.SimpleNamespace(action='command', collections=[], register=None, loop_control=None)
    lead = following.Lead(judged=True)
    job: t.Any = {'task': task, 'host': None, 'final_q': types.SimpleNamespace(put=said.append)}
    turn = readied.Readied(job, task, lambda *_: {}, lead, None)
    turn._outbox.hold()
    turn._outbox.put('a word')
    first, second = jobs_pb2.Request(), jobs_pb2.Request()
    lead.asks(first, [0], '')
    turn.supposes(lambda: meanwhile(turn))
    with pytest.raises(order.Dropped) if outcome == 'it is dropped' else contextlib.nullcontext():
        turn.asks(second, [0], '')
    assert second.HasField('follow') is turn.left is (outcome == 'it leaves')
    assert said == ['a word'] * (outcome == 'it has come')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('{command: echo a, register: r}', '{command: "echo {{ r.rc }}"}'),
        ('{command: echo a, register: r}', '{command: echo b, when: r is success}'),
        ('{command: echo a, register: r}', '{command: echo b, vars: {x: "{{ r }}"}}'),
        ('{command: echo a, register: r}', '{command: "echo {{ lookup(\'vars\', \'r\') }}"}'),
        ('{command: echo a, notify: none}', SECOND),
        ('{command: echo a, failed_when: true, ignore_errors: true}', SECOND),
        ('{command: echo a, failed_when: [true], ignore_errors: true}', SECOND),
        ('{command: echo a, changed_when: 1 > 2}', SECOND),
        ('{command: echo a, debugger: on_failed}', SECOND),
        ('{command: echo a, register: r, until: r is success, retries: 1}', SECOND),
        ('{command: "echo {{ item }}", loop: [a]}', SECOND),
        ('{command: "echo {{ item }}", loop: [a, b], loop_control: {pause: 0.01}}', SECOND),
        ('{command: "echo {{ item }}", with_items: [a, b], loop_control: {index_var: n}}', SECOND),
        ('{mine: {data: a}}', SECOND),
        ('{raw: echo a}', SECOND),
        ('{setup: {}}', SECOND),
        ('{debug: {msg: a}}', SECOND),
        (FIRST, '{command: echo b, become: true}'),
        (FIRST, '{command: echo b, delegate_to: h2}'),
        (FIRST, '{command: "echo {{ item }}", loop: [b]}'),
        (FIRST, '{command: "echo {{ now() is defined }}"}'),
        (FIRST, '{copy: {src: a, dest: /none/a}}'),
        (FIRST, '{template: {src: a, dest: /none/a}}'),
        (FIRST, '{name: "{{ here }}", command: echo b}'),
    ],
)
def test_a_task_that_might_notice_leaves_in_its_turn(play: Play, first: str, second: str) -> None:
    done = play(first, second, STUB_LEFT='1', STUB_DELAYS='500', STUB_LEAST='1')  # time enough
    assert len(done.trace) >= 2, done.output
    assert not [line for line in done.trace if 'after' in line]


ALONE: dict[str, dict[str, t.Any]] = {
    'two hosts': {'args': ('-i', 'h1,h2,')},
    'step by step': {'args': ('-i', 'h1,', '--step')},
    'the debugger': {'ANSIBLE_ENABLE_TASK_DEBUGGER': '1'},
    'not wanted': {'MITOGEN_AHEAD': '0'},
}


@pytest.mark.parametrize('how', ALONE.values(), ids=ALONE)
def test_tasks_leave_in_their_turn(play: Play, how: dict[str, t.Any]) -> None:
    done = play(FIRST, SECOND, SECOND, STUB_LEFT='1', STUB_DELAYS='300', STUB_LEAST='1', **how)
    assert not [line for line in done.trace if 'after' in line], done.output


@pytest.mark.parametrize('not_begun', ['', '2'])
def test_a_task_that_follows_gives_the_same_events(play: Play, not_begun: str) -> None:
    tasks = [
        FIRST,
        SECOND,
        '{command: "false", ignore_errors: true}',
        '{ping: {data: a}}',
        '{block: [{command: "false"}, {command: echo never}], rescue: [{command: echo rescued}], always: [{command: echo always}]}',
        '{command: echo c, environment: {X: "1"}}',
        '{command: echo d, environment: {X: "2"}}',
        '{command: echo e, register: r}',
        '{command: echo f}',
        '{command: "echo {{ r.stdout }}"}',
        '{command: unreachable}',
        '{command: echo never}',
    ]
    plain = play(*tasks, ANSIBLE_STRATEGY='linear', STUB_LEFT='1')
    ours = play(*tasks, STUB_LEFT='2', STUB_NOT_BEGUN=not_begun, STUB_DELAYS='20')
    assert sum('after' in line for line in ours.trace) >= 3 and ('not begun 2' in ours.trace) == bool(not_begun), ours.trace
    assert len(plain.events) > 5 and ours.events == plain.events
    assert VOLATILE.sub('', ours.output) == VOLATILE.sub('', plain.output)


def test_what_was_not_begun_is_asked_again_in_its_turn(play: Play) -> None:
    """With another name, for that one might be followed already."""
    done = play('{command: "echo {{ item }}", loop: [a, b]}', STUB_LEFT='2', STUB_NOT_BEGUN='2')
    assert done.trace == ['left 1', 'left 2 after 1 [0]', 'answered 1', 'not begun 2', 'left 3', 'answered 3'], done.output


def test_what_has_left_counts(play: Play, tmp_path: pathlib.Path) -> None:
    """Though a file that the item has seen is another now, for on the target it has begun."""
    done = play('{copy: {src: a, dest: "{{ here }}/a-grown"}, loop: [1, 2]}', STUB_LEFT='2')
    assert (tmp_path / 'a').read_text() == 'A++'
    assert 'left 2 after 1 [1, 4]' in done.trace and 'answered 2' in done.trace, done.output


@pytest.mark.parametrize('not_begun', ['', '2'])
@pytest.mark.parametrize(
    'task',
    [
        'command: "{{ item }} {{ item }}", loop: [echo, "false", echo, unreachable, garbage, echo], ignore_errors: true, ignore_unreachable: true',
        'command: "echo {{ item }}", loop: [1, 2, 3, 4, 5, 6], when: item != 4, register: r, changed_when: false',
        'ping: {data: "{{ item }}"}, loop: [a, crash, b, c, crash, d]',
        'copy: {content: "{{ item }}", dest: "/none/{{ item }}"}, loop: [a, b, c, d, e, f], diff: true',
        'command: "echo {{ item.x }}", loop: [{x: 1}, {x: 2}, {}, {x: 3}, {x: 4}, {x: 5}], ignore_errors: true',
    ],
    ids=lambda task: task.split(':')[0],
)
def test_what_follows_gives_the_same_events(play: Play, task: str, not_begun: str) -> None:
    tasks = [f'{{{task.replace(", register: r", "")}, register: r}}', 'debug: {var: r}']
    plain = play(*tasks, ANSIBLE_STRATEGY='linear', STUB_LEFT='1')
    ours = play(*tasks, STUB_LEFT='2', STUB_NOT_BEGUN=not_begun, STUB_DELAYS='20')
    assert any('after' in line for line in ours.trace) and ('not begun 2' in ours.trace) == bool(not_begun), ours.trace
    assert not any('after' in line for line in plain.trace)
    assert len(plain.events) > 5 and ours.events == plain.events
    assert VOLATILE.sub('', ours.output) == VOLATILE.sub('', plain.output)


@pytest.mark.parametrize(
    ('seen', 'path', 'may'),
    [
        ([], '', False),
        ([], 'x', False),
        ([], '{here}/a', False),
        (['{here}/a'], '', True),
        (['{here}/a'], 'relative', True),
        (['{here}/a'], '~/home', True),
        (['{here}/a'], '{here}/a', True),
        (['{here}/b', '{here}/a'], '{here}/a', True),
        (['{here}/a'], '{here}/b', False),
        (['{here}/a'], '{here}/ab', False),
        (['{here}/ab'], '{here}/a', False),
        (['{here}/a'], '{here}/', True),
        (['{here}/a'], '{here}/none/../a', True),
        (['{here}/link'], '{here}/a', True),
        (['{here}/a'], '{here}/link', True),
        (['{here}/none'], '{here}/none', True),
        (['{here}/none'], '{here}/folder/none', False),
        (['{here}/folder-link/none'], '{here}/folder/none', True),
        (['{here}/folder/none'], '{here}/folder-link/', True),
    ],
)
def test_a_file_that_was_seen_may_be_one_that_is_written(tmp_path: pathlib.Path, seen: list[str], path: str, may: bool) -> None:
    """Whatever links lead there."""
    (tmp_path / 'a').write_text('a')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('a')
    (tmp_path / 'folder-link').symlink_to('folder')
    files = order.Files()
    for name in seen:
        files.saw(name.format(here=tmp_path))
    assert files.may_be(path.format(here=tmp_path)) is may
    files.forget()
    assert files.may_be(path.format(here=tmp_path)) is False
