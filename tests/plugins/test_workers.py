"""Workers: the same playbook in threads, in forks, and under Ansible's own strategy with its own workers, gives the same events."""

from __future__ import annotations

import collections
import difflib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import typing as t

import pytest
import yaml

from mitogen_mux import isolation

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLAYS = HERE / 'workers'

Event = dict[str, t.Any]

VOLATILE = re.compile(
    r'ansible-tmp-[\d.]+-\d+-\d+|tmp[\w.]{8}\b|BECOME-SUCCESS-[a-z]{32}|/tmp/[\w/.-]*ansible-local-[\w/.-]*|j\d+\.\d+'
    r'|Paused for [\d.]+|20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d+'
)
"""What is drawn by chance, has a process number or is the time."""


SILENCE = 300
"""Seconds without an event after which a run is taken to hang: sixty thousand tasks may take an hour on a machine with much else to do."""


class Ran(t.NamedTuple):
    rc: int
    events: list[Event]
    output: str

    def by_host(self) -> dict[str, list[Event]]:
        """The events of each host in their order: between hosts it is free, and so is whose variables are in a task's name."""
        hosts: dict[str, list[Event]] = collections.defaultdict(list)
        for event in self.events:
            hosts[event.get('host', '')].append({**event, 'task': ''})
        return hosts

    def words(self) -> str:
        """What is on the terminal, warnings among it, in its order."""
        return VOLATILE.sub('VOLATILE', self.output)


Run = t.Callable[..., Ran]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    def environ(strategy: str, worker: str, **more: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(('ANSIBLE_', 'MITOGEN_', 'PYTHONUNBUFFERED'))}
        return {
            **clean,
            'HOME': str(tmp_path),
            'MUX_EVENTS': str(tmp_path / 'events'),
            **({'MITOGEN_PROCESSES': '2'} if worker == 'processes' else {'MITOGEN_WORKER': worker}),
            'ANSIBLE_STRATEGY': strategy,
            'ANSIBLE_STRATEGY_PLUGINS': str(ROOT / 'ansible_plugins' / 'strategy'),
            'ANSIBLE_CONNECTION_PLUGINS': str(ROOT / 'ansible_plugins' / 'connection'),
            'ANSIBLE_CALLBACK_PLUGINS': str(ROOT / 'tests' / 'integration' / 'plugins' / 'callback'),
            'ANSIBLE_CALLBACKS_ENABLED': 'mux_events',
            'ANSIBLE_DEPRECATION_WARNINGS': '0',
            'ANSIBLE_PIPELINING': '1',
            'ANSIBLE_HOME': str(tmp_path / 'home'),
            'ANSIBLE_NOCOLOR': '1',
            **more,
        }

    def start(
        play: str | pathlib.Path, hosts: int = 1, forks: int = 5, strategy: str = 'mitogen_linear', worker: str = 'thread', **more: str
    ) -> subprocess.Popen[str]:
        (tmp_path / 'events').unlink(missing_ok=True)
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        names = ''.join(f'h{n}\n' for n in range(hosts))
        (tmp_path / 'inventory').write_text(
            f'[all:vars]\nout={tmp_path}/out\nansible_python_interpreter={sys.executable}\nansible_connection=mitogen_ssh\n[all]\n{names}'
        )
        if isinstance(play, str):
            (tmp_path / 'play.yml').write_text(play)
            play = tmp_path / 'play.yml'
        argv = [sys.executable, str(HERE / 'stub_daemon.py'), '-i', 'inventory', '-f', str(forks), str(play)]
        return subprocess.Popen(
            argv, cwd=tmp_path, env=environ(strategy, worker, **more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(process: subprocess.Popen[str]) -> Ran:
        log, size = tmp_path / 'events', -1
        while True:
            try:
                output = process.communicate(timeout=SILENCE)[0]
                break
            except subprocess.TimeoutExpired:
                before, size = size, log.stat().st_size if log.exists() else 0
                if size == before:
                    process.kill()
                    raise
        lines = VOLATILE.sub('VOLATILE', log.read_text()).splitlines() if log.exists() else []
        return Ran(process.returncode, [json.loads(line, object_hook=untimed) for line in lines], output)

    def ran(*args: t.Any, **kwargs: t.Any) -> Ran:
        return finish(start(*args, **kwargs))

    ran.start, ran.finish = start, finish  # type: ignore[attr-defined]
    return ran


def untimed(found: Event) -> Event:
    """How long a host was waited for is no result."""
    return {key: value for key, value in found.items() if key != 'elapsed'}


def compare(plain: Ran, ours: Ran, whole: bool) -> None:
    assert ours.rc == plain.rc, ours.output
    assert len(plain.events) > 10, plain.output
    sides = {'': (plain.events, ours.events)}
    if not whole:
        sides = {host: (events, ours.by_host()[host]) for host, events in plain.by_host().items() if host}
    for left, right in sides.values():
        for one, other in zip(left, right):
            assert other == one
        assert len(left) == len(right), ours.output


def same_words(plain: Ran, ours: Ran) -> None:
    different = difflib.unified_diff(plain.words().splitlines(), ours.words().splitlines(), 'plain', 'ours', lineterm='')
    assert ours.words() == plain.words(), '\n'.join(different)


@pytest.fixture(params=['thread', 'fork', 'processes'])
def worker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_one_host_gives_the_same_events_in_the_same_order(run: Run, worker: str) -> None:
    tags = {'ANSIBLE_SKIP_TAGS': 'bypasses'}  # the play with several hosts
    plain, ours = run(PLAYS / 'mix.yml', strategy='linear', **tags), run(PLAYS / 'mix.yml', worker=worker, **tags)
    compare(plain, ours, whole=True)
    same_words(plain, ours)


@pytest.mark.parametrize('play', ['loops', 'tasks'])
@pytest.mark.parametrize('hosts', [1, pytest.param(4, marks=pytest.mark.stress)])
def test_what_is_made_ready_gives_the_same_events(run: Run, play: str, hosts: int, tmp_path: pathlib.Path) -> None:
    """Items and tasks are made ready while the one before them is at work, but for what they may see of it."""

    def ran(strategy: str) -> Ran:
        shutil.rmtree(tmp_path / 'plays', ignore_errors=True)
        plays = shutil.copytree(PLAYS, tmp_path / 'plays')  # for files beside the play that change
        return run(plays / f'{play}.yml', hosts, strategy=strategy, STUB_DELAYS='40', STUB_LEAST='0.5')

    plain, ours = ran('linear'), ran('mitogen_linear')
    compare(plain, ours, whole=hosts == 1)
    if hosts == 1:
        same_words(plain, ours)


@pytest.mark.parametrize(
    ('task', 'ahead'),
    [
        ('command: "echo {{ item | upper }}"', True),
        ('{become: true, ping: {data: "{{ item }}"}, register: r}', True),
        ('{command: "echo {{ r }}", register: r, vars: {r: 1}}', False),
        ('command: "echo {{ lookup(\'env\', item) }}"', False),
        ('{command: "echo {{ item }}", loop_control: {pause: 0.01}}', False),
    ],
)
def test_an_item_is_ready_when_its_turn_comes(run: Run, tmp_path: pathlib.Path, task: str, ahead: bool) -> None:
    task = task if task.startswith('{') else f'{{{task}}}'
    play = f'- hosts: all\n  gather_facts: false\n  tasks:\n  - {task[:-1]}, loop: [a, b, c]}}\n'
    check_order(run(play, STUB_ITEMS='3' if ahead else '1', STUB_TRACE=str(tmp_path / 'trace')), tmp_path / 'trace', ahead)


@pytest.mark.parametrize('strategy', ['linear', pytest.param('free', marks=pytest.mark.stress)])
@pytest.mark.parametrize(
    ('tasks', 'ahead'),
    [
        (['command: echo', '{ping: {data: x}, become: true, when: 1 == 1}', 'command: "echo {{ out | upper }}"'], True),
        (['{command: echo, register: r}', 'command: "echo {{ out }}"', '{command: echo, register: r}'], True),
        (['{command: echo, register: r}', 'command: "echo {{ r.stdout }}"', 'command: echo'], False),
        (['command: echo', 'command: "echo {{ lookup(\'env\', \'HOME\') }}"', 'command: "echo {{ hostvars | length }}"'], False),
        (['command: echo', '{command: echo, run_once: true}', 'command: "echo {{ now() }}"'], False),
    ],
)
def test_a_task_is_ready_when_its_turn_comes(run: Run, tmp_path: pathlib.Path, strategy: str, tasks: list[str], ahead: bool) -> None:
    play = '- hosts: all\n  gather_facts: false\n  tasks:\n' + ''.join(f'  - {task}\n' for task in tasks)
    trace = tmp_path / 'trace'
    check_order(run(play, strategy=f'mitogen_{strategy}', STUB_ITEMS='3' if ahead else '1', STUB_TRACE=str(trace)), trace, ahead)


@pytest.mark.parametrize(
    ('homes', 'then'),
    [('/a', ['home /a', 'asked 2']), ('/a,/b', ['home /b', 'home /b', 'ready 3', 'asked 2']), ('/a,gone,/a', ['home gone', 'home /a', 'ready 3', 'asked 2'])],
)
def test_a_home_that_was_supposed_is_asked_for_in_its_turn(run: Run, tmp_path: pathlib.Path, homes: str, then: list[str]) -> None:
    """A task that needs it is made ready with the one that the account had. If it is another, or nobody can say, the task begins anew."""
    play = '- hosts: all\n  gather_facts: false\n  tasks:\n' + "  - copy: {content: x, dest: '~/x'}\n" * 2
    trace = tmp_path / 'trace'
    done = run(play, STUB_ITEMS='2', STUB_TRACE=str(trace), STUB_HOMES=homes, MITOGEN_AHEAD='0')  # else it is also asked before it leaves
    assert done.rc == 0, done.output
    assert trace.read_text().splitlines() == ['home /a', 'ready 1', 'asked 1', 'ready 2', 'answered 1', *then, 'answered 2']


def check_order(done: Ran, trace: pathlib.Path, ahead: bool) -> None:
    assert done.rc == 0, done.output
    one_by_one = [f'{what} {n}' for n in (1, 2, 3) for what in ('ready', 'asked', 'answered')]
    early = ['ready 1', 'asked 1', 'ready 2', 'answered 1', 'asked 2', 'ready 3', 'answered 2', 'asked 3', 'answered 3']
    assert trace.read_text().splitlines() == (early if ahead else one_by_one)


@pytest.mark.parametrize('strategy', ['linear', 'free', pytest.param('host_pinned', marks=pytest.mark.stress)])
def test_several_hosts_give_the_same_events(run: Run, strategy: str) -> None:
    tags = {} if strategy == 'linear' else {'ANSIBLE_SKIP_TAGS': 'bypasses'}  # add_host, which free refuses
    ways = [(strategy, 'thread'), (f'mitogen_{strategy}', 'thread'), (f'mitogen_{strategy}', 'processes')]
    plain, *ours = (run(PLAYS / 'mix.yml', 4, strategy=name, worker=worker, STUB_DELAYS='5', **tags) for name, worker in ways)
    for one in ours:
        compare(plain, one, whole=False)


WAITS = {
    'an answer': ('- command: echo slow', 600_000),
    'a pause between tries': ('- {command: echo again, register: r, until: false, retries: 3, delay: 600}', 0),
    'a pipe': ("- debug: {msg: \"{{ lookup('pipe', 'sleep 600; true') }}\"}", 0),
    'an item of a loop': ('- {command: "echo {{ item }}", loop: [1, 2, 3]}', 600_000),
    'a share': ('- command: echo slow', 600_000),
    'a forked worker': ('- {command: echo slow, vars: {mitogen_worker: fork}}', 600_000),
}


@pytest.mark.parametrize(
    ('wait', 'number'),
    [
        *((wait, signal.SIGINT) for wait in WAITS),
        *(pytest.param(wait, signal.SIGTERM, marks=() if wait in ('an answer', 'a share') else pytest.mark.stress) for wait in WAITS),
    ],
)
def test_a_signal_ends_the_run_as_it_does_without_us(run: Run, number: signal.Signals, wait: str, tmp_path: pathlib.Path) -> None:
    if not DETACHED and (wait == 'a pipe' or (wait in ('a share', 'a forked worker') and number == signal.SIGTERM)):
        pytest.skip('up to 2.18 processes are left that only a terminal would end')
    task, delay = WAITS[wait]
    play = f'- hosts: all\n  gather_facts: false\n  tasks:\n    {task}\n'

    def ended(strategy: str) -> int:
        worker = 'processes' if wait == 'a share' else 'thread'
        process = run.start(play, 3, strategy=strategy, worker=worker, STUB_DELAYS=str(delay), STUB_LEAST='1', WORKERS_TEST=str(tmp_path))  # type: ignore[attr-defined]
        while started(tmp_path) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        time.sleep(2)  # what the core's own forks do first is no matter of ours
        process.send_signal(number)
        done = run.finish(process)  # type: ignore[attr-defined]
        assert 'Traceback' not in done.output, done.output
        return done.rc

    ours = ended('mitogen_linear')
    until(lambda: not left(tmp_path))
    assert ours == (ended('linear') if DETACHED or number == signal.SIGINT else -number)


@pytest.mark.parametrize('strategy', ['mitogen_linear', 'mitogen_free'])
def test_a_share_that_dies_ends_the_run_as_a_dead_worker_does(run: Run, tmp_path: pathlib.Path, strategy: str) -> None:
    play = '- hosts: all\n  gather_facts: false\n  tasks:\n  - command: echo slow\n'
    more = {'STUB_DELAYS': '600000', 'STUB_LEAST': '1', 'WORKERS_TEST': str(tmp_path)}
    process = run.start(play, 3, strategy=strategy, worker='processes', **more)  # type: ignore[attr-defined]
    until(lambda: len(left(tmp_path)) == 3)  # the run and two shares
    os.kill(next(pid for pid in left(tmp_path) if pid != process.pid), signal.SIGKILL)
    done = run.finish(process)  # type: ignore[attr-defined]
    assert done.rc != 0 and 'A worker was found in a dead state' in done.output, done.output
    until(lambda: not left(tmp_path))


def test_an_error_among_host_tasks_that_wait_to_be_dealt_out_ends_the_run(run: Run) -> None:
    play = '- hosts: all\n  gather_facts: false\n  tasks:\n  - {command: echo, throttle: "{{ \'x\' if inventory_hostname == \'h1\' else 0 }}"}\n'
    more = {'ANSIBLE_WORKER_SHUTDOWN_POLL_COUNT': '2', 'ANSIBLE_WORKER_SHUTDOWN_POLL_DELAY': '0.1'}
    plain, ours = run(play, 4, strategy='linear', **more), run(play, 4, worker='processes', **more)
    assert ours.rc == plain.rc != 0 and 'throttle' in ours.output, ours.output
    assert 'still running' not in ours.output, ours.output


DETACHED = not __import__('ansible.release').release.__version__.startswith(('2.16', '2.17', '2.18'))


def started(folder: pathlib.Path) -> int:
    events = folder / 'events'
    return events.read_text().count('"runner_on_start"') if events.exists() else 0


def left(folder: pathlib.Path) -> list[int]:
    """Processes of a run that are still there, told by their environment."""
    found = []
    for environ in pathlib.Path('/proc').glob('[0-9]*/environ'):
        try:
            if f'WORKERS_TEST={folder}'.encode() in environ.read_bytes().split(b'\0'):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


MANY_FORKS = """
- hosts: all
  gather_facts: false
  tasks:
    - {command: "echo {{ inventory_hostname }}", register: first}
    - command: "echo {{ first.stdout }}"
      vars: {mitogen_worker: "{{ 'fork' if inventory_hostname[-1] in '02468' else 'thread' }}"}
      register: second
    - assert: {that: second.stdout == inventory_hostname, quiet: true}
"""


ENDS_ITS_THREAD = """
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME, CALLBACK_NEEDS_ENABLED = 2.0, 'notification', 'ends_its_thread', True

    def v2_runner_item_on_ok(self, result):
        raise SystemExit
"""


def test_a_run_whose_results_nobody_reads_ends(run: Run, tmp_path: pathlib.Path, worker: str) -> None:
    (tmp_path / 'callbacks').mkdir()
    (tmp_path / 'callbacks' / 'ends_its_thread.py').write_text(ENDS_ITS_THREAD)
    play = '- hosts: all\n  gather_facts: false\n  tasks:\n  - {command: "echo {{ item }}", loop: [1, 2]}\n'
    more = {'ANSIBLE_CALLBACK_PLUGINS': str(tmp_path / 'callbacks'), 'ANSIBLE_CALLBACKS_ENABLED': 'ends_its_thread'}
    done = run(play, 2, worker=worker, **more)
    assert done.rc != 0 and 'the thread that reads the results of tasks has ended' in done.output, done.output
    assert 'Traceback' not in done.output, done.output


@pytest.mark.parametrize(('hosts', 'times'), [(40, 10), pytest.param(50, 400, marks=pytest.mark.stress)])
def test_forks_among_busy_threads_do_not_deadlock(run: Run, hosts: int, times: int) -> None:
    """Hundreds of them; ten thousand with -m stress."""
    lines = MANY_FORKS.strip().splitlines()
    play = '\n'.join(lines[:3] + lines[3:] * times)
    done = run(play, hosts, forks=20, strategy='mitogen_free', STUB_DELAYS='20')
    assert done.rc == 0, done.output[-3000:]
    assert sum(event['event'] == 'runner_on_ok' for event in done.events) == 3 * hosts * times
    assert sum(event['event'] == 'runner_on_failed' for event in done.events) == 0


def test_the_stress_play_has_every_action_that_threads_run() -> None:
    tasks = yaml.safe_load((PLAYS / 'stress.yml').read_text())[0]['tasks']
    used = {action for task in tasks for action in task}
    assert isolation.ACTIONS.keys() - {'normal'} <= used
    assert 'ping' in used  # a module without an action plugin of its own: normal


STRESS = {'STUB_DELAYS': '50', 'STUB_FAILS': '0.15'}


@pytest.mark.stress
def test_stress_gives_the_same_results_ten_times(run: Run) -> None:
    """Fifty hosts, forty tasks, delays and failures at random: each time what plain Ansible gives."""
    plain = run(PLAYS / 'stress.yml', 50, forks=50, strategy='linear', **STRESS)
    failed = sum(event['event'] == 'runner_on_failed' for event in plain.events)
    unreachable = sum(event['event'] == 'runner_on_unreachable' for event in plain.events)
    assert failed > 100 and unreachable > 20, (failed, unreachable)
    for forks, worker in [(50, 'thread'), (50, 'processes'), (50, 'fork'), (13, 'thread'), (13, 'processes')] * 2:
        compare(plain, run(PLAYS / 'stress.yml', 50, forks=forks, worker=worker, **STRESS), whole=False)


@pytest.mark.stress
def test_stress_of_two_hundred_hosts_and_two_hundred_tasks(run: Run) -> None:
    """Five times the forty: the first ten hosts' results are what plain Ansible gives, and each host's are the same from the second time on."""
    five = f'- import_playbook: {PLAYS}/stress.yml\n' * 5
    plain = run(five, 10, forks=10, strategy='linear', **STRESS)
    ours = run(five, 200, forks=200, worker='processes', **STRESS)
    compare(plain, ours, whole=False)
    by_host = ours.by_host()
    for host in [f'h{n}' for n in range(200)]:
        events = by_host[host]
        once = len(events) // 5
        assert once > 40 and events[once:] == 4 * events[once : 2 * once], host  # the first time groups are made


@pytest.mark.stress
def test_mix_of_fifty_hosts(run: Run) -> None:
    """Many hosts, random delays, failures: the same each time."""
    first = run(PLAYS / 'mix.yml', 50, forks=50, STUB_DELAYS='50')
    for forks, worker in ((13, 'thread'), (50, 'processes')):
        compare(first, run(PLAYS / 'mix.yml', 50, forks=forks, worker=worker, STUB_DELAYS='10'), whole=False)
