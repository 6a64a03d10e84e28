"""Workloads: playbooks as data, each for one thing that a run pays for."""

from __future__ import annotations

import dataclasses
import typing as t

Task = dict[str, t.Any]

FOLDER = '{{ bench_root }}'


@dataclasses.dataclass(frozen=True)
class Workload:
    about: str
    tasks: list[Task]
    become: bool = False
    hosts: int = 1
    delay: str = '0'
    """One way, as the relay takes it."""
    warm: bool = False
    """Measured right after a run of the same contender, beside what that one left."""

    def play(self) -> list[dict[str, t.Any]]:
        """The playbook."""
        return [{'hosts': 'bench', 'gather_facts': False, 'become': self.become, 'tasks': self.tasks}]


def commands(count: int) -> list[Task]:
    return [{'name': f'command {n}', 'command': 'hostname', 'changed_when': False} for n in range(count)]


def pings(count: int) -> list[Task]:
    return [{'name': f'ping {n}', 'ping': {}} for n in range(count)]


def facts(count: int) -> list[Task]:
    return [{'name': f'facts {n}', 'setup': {}} for n in range(count)]


def mix(count: int) -> list[Task]:
    """What a role does that sets a machine up."""
    kinds: list[t.Callable[[int], Task]] = [
        lambda n: {'copy': {'content': f'number {n}\n' * 30, 'dest': f'{FOLDER}/copy{n}', 'mode': '0644'}},
        lambda n: {'template': {'src': 'settings.j2', 'dest': f'{FOLDER}/template{n}', 'mode': '0640'}, 'vars': {'number': n}},
        lambda n: {'file': {'path': f'{FOLDER}/folder{n}', 'state': 'directory', 'mode': '0700'}},
        lambda n: {'lineinfile': {'path': f'{FOLDER}/lines', 'line': f'key{n} = value', 'create': True, 'mode': '0644'}},
        lambda _: {'stat': {'path': f'{FOLDER}/copy0'}, 'register': 'found'},
        lambda _: {'shell': f'ls {FOLDER} | wc -l', 'register': 'counted', 'changed_when': False},
        lambda _: {'command': 'uname -a', 'changed_when': False},
    ]
    tasks: list[Task] = [{'file': {'path': FOLDER, 'state': 'directory', 'mode': '0755'}}]
    while len(tasks) < count:
        n = len(tasks) - 1
        tasks.append({'setup': {}} if n % 30 == 29 else kinds[n % len(kinds)](n))
    return [{'name': f'task {n}', **task} for n, task in enumerate(tasks)]


COPIES: list[Task] = [
    {'file': {'path': FOLDER, 'state': 'directory'}},
    {'copy': {'content': 'file {{ item }}\n', 'dest': f'{FOLDER}/file{{{{ item }}}}', 'mode': '0644'}, 'loop': '{{ range(200) | list }}'},
]

LOOP: list[Task] = [{'command': '/bin/true', 'changed_when': False, 'loop': '{{ range(100) | list }}'}]

NEAR, FAR = '0.5ms', '90ms'

WORKLOADS: dict[str, Workload] = {
    'commands': Workload('100 `command` tasks, 1 ms round trip', commands(100), delay=NEAR),
    'become': Workload('the same with become', commands(100), delay=NEAR, become=True),
    'loop': Workload('a loop of 100 with become', LOOP, delay=NEAR, become=True),
    'mix': Workload('100 mixed tasks with become', mix(100), delay=NEAR, become=True),
    'copies': Workload('a loop of 200 small copies with become', COPIES, delay=NEAR, become=True),
    'facts': Workload('10 `setup` tasks, 1 ms round trip', facts(10), delay=NEAR),
    'farm': Workload('40 hosts × 25 `command` tasks', commands(25), hosts=40),
    'ping': Workload('one `ping`, nothing connected', pings(1), delay=NEAR),
    'warm': Workload('one `ping`, right after another run', pings(1), delay=NEAR, warm=True),
    'far': Workload('100 `command` tasks, 180 ms round trip', commands(100), delay=FAR),
    **{f'hosts-{n}': Workload(f'{n} hosts × 20 `ping` tasks', pings(20), hosts=n) for n in (1, 10, 50, 100)},
}
