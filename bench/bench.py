"""Runs workloads with each contender in turn, A B C A B C, so that a slow spell of the machine meets all, and prints medians and ratios."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import typing as t

import lab
from lab import harness
from workloads import WORKLOADS, Workload

STRATEGIES = f'{lab.PROJECT}/ansible_plugins/strategy'

CONTENDERS: dict[str, dict[str, str]] = {
    'plain': {},
    'pipelining': {'ANSIBLE_PIPELINING': '1'},
    'mitogen': {'ANSIBLE_STRATEGY': 'mitogen_linear', 'ANSIBLE_STRATEGY_PLUGINS': sysconfig.get_path('purelib') + '/ansible_mitogen/plugins/strategy'},
    'mitogen-mux': {'ANSIBLE_STRATEGY': 'mitogen_linear', 'ANSIBLE_STRATEGY_PLUGINS': STRATEGIES},
}
"""Their environment, besides what all have."""

SPARING = 50
"""How much longer than it takes to look at the memory it is not looked at: of many processes that takes as long as some of their tasks."""

Figures = dict[str, float]

COLUMNS: dict[str, str] = {
    'wall': 'wall s',
    'controller': 'controller CPU s',
    'target': 'target CPU s',
    'memory': 'controller MiB',
    'bytes': 'wire KiB',
    'packets': 'packets',
    'turns': 'round trips',
}
"""CPU is user and system. Memory is the peak of anonymous memory, looked at twenty times a second at most. A packet has at most 1,448 bytes. Round
trips: how often the controller spoke after the host had, over all connections."""


class Bench:
    """An sshd, and a relay in front of it for each host."""

    def __init__(self, state: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self._state = state
        self._stack = stack
        login, _, _ = stack.enter_context(harness.accounts())
        self.login = login.name
        self.key = state / 'key'
        harness.quiet('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(self.key))
        state.chmod(0o755)
        shutil.copytree(lab.PROJECT / 'bench' / 'templates', state / 'templates')
        self._groups = (lab.Group('controller'), lab.Group('target'))
        for group in self._groups:
            stack.callback(group.close)
        self._sshd = harness.Sshd(state / 'sshd', self.key.with_suffix('.pub'))
        self._sshd.start()
        stack.callback(self._sshd.stop)
        self._host_key = self._sshd.known_hosts.read_text().split(' ', 1)[1]
        self.known_hosts = self._sshd.known_hosts
        stack.callback(self._forget)
        assert self._sshd.process is not None
        self._groups[1].take(self._sshd.process.pid)

    @contextlib.contextmanager
    def hosts(self, workload: Workload) -> t.Iterator[list[lab.Relay]]:
        """The relays, and the inventory that names them."""
        relays: list[lab.Relay] = []
        try:
            for _ in range(workload.hosts):
                relays.append(lab.Relay(self._sshd.port, workload.delay))
            common = f'ansible_host=127.0.0.1 ansible_user={self.login} ansible_ssh_private_key_file={self.key}'
            lines = ['[bench]', *(f'host{n} ansible_port={relay.port} {common}' for n, relay in enumerate(relays))]
            (self._state / 'inventory').write_text('\n'.join(lines) + '\n')
            self.known_hosts.write_text(''.join(f'[127.0.0.1]:{relay.port} {self._host_key}' for relay in relays))
            (self._state / 'play.yml').write_text(json.dumps(workload.play()))
            yield relays
        finally:
            for relay in relays:
                relay.close()

    def measure(self, workload: Workload, contender: str) -> Figures:
        """One run; from nothing, unless the workload is a warm one."""
        with self.hosts(workload) as relays:
            if workload.warm:
                self._run(workload, contender)
            figures = self._run(workload, contender, relays)
            self._forget()
            return figures

    def _run(self, workload: Workload, contender: str, relays: t.Sequence[lab.Relay] = ()) -> Figures:
        root = self._state / 'root'
        shutil.rmtree(root, ignore_errors=True)
        for relay in relays:
            relay.ask('reset')
        environ = {name: value for name, value in os.environ.items() if not name.startswith(('ANSIBLE_', 'MITOGEN_', 'PYTHON'))}
        environ |= {
            'HOME': str(self._state),
            'MITOGEN_MUX_DIR': str(self._state / 'mux'),
            'ANSIBLE_SSH_COMMON_ARGS': f'-o UserKnownHostsFile={self.known_hosts}',
            'ANSIBLE_SSH_CONTROL_PATH_DIR': str(self._state / 'cp'),
            'ANSIBLE_DEPRECATION_WARNINGS': '0',
            **CONTENDERS[contender],
        }
        argv = [sys.executable, pathlib.Path(sys.executable).with_name('ansible-playbook'), '-i', 'inventory', '-f', str(workload.hosts)]
        before = [group.cpu() for group in self._groups]
        with _peak(self._groups[0]) as peak:
            started = time.monotonic()
            done = subprocess.run(
                [*argv, '-e', json.dumps({'bench_root': str(root)}), 'play.yml'],
                cwd=self._state,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                preexec_fn=self._groups[0].take,
            )
            wall = time.monotonic() - started
        cpu = [group.cpu() - was for group, was in zip(self._groups, before)]
        good = sum(int(n) for n in re.findall(r'\bok=(\d+)', done.stdout))
        if done.returncode or good != workload.hosts * len(workload.tasks):
            sys.exit(f'{done.stdout[-3000:]}\nbench: {contender} ended with {done.returncode}, {good} tasks were ok')
        stats = [relay.ask('stats') for relay in relays]
        wire = {name: sum(one[name] for one in stats) for name in (stats[0] if stats else {})}
        return {
            'wall': wall,
            'controller': cpu[0],
            'target': cpu[1],
            'memory': peak[0] / (1 << 20),
            'bytes': (wire.get('up_bytes', 0) + wire.get('down_bytes', 0)) / 1024,
            'packets': wire.get('packets', 0),
            'turns': wire.get('turns', 0),
        }

    def _forget(self) -> None:
        """Ends what a run has left for the next: masters of ssh, the daemon, agents."""
        harness.end(lab.left_behind(self._state), 15)
        harness.until(lambda: not lab.left_behind(self._state) and not self._sshd.sessions(), 60, 'connections are closed')
        shutil.rmtree(self._state / '.ansible', ignore_errors=True)


@contextlib.contextmanager
def _peak(group: lab.Group) -> t.Iterator[list[int]]:
    peak, over = [0], threading.Event()

    def look() -> None:
        pause = 0.05
        while not over.wait(pause):
            started = time.monotonic()
            peak[0] = max(peak[0], group.anonymous())
            pause = max(0.05, SPARING * (time.monotonic() - started))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def table(name: str, workload: Workload, runs: dict[str, list[Figures]]) -> str:
    """Medians, and how many times our own each other contender's are."""
    medians = {contender: {c: statistics.median(run[c] for run in all_of_it) for c in COLUMNS} for contender, all_of_it in runs.items()}
    ours = medians.get('mitogen-mux')
    lines = [f'{name}: {workload.about}', '', f'| | {" | ".join(COLUMNS.values())} |', '|---' * (len(COLUMNS) + 1) + '|']
    for contender, figures in medians.items():
        cells = []
        for column, value in figures.items():
            ratio = f' ({value / ours[column]:.1f}x)' if ours and figures is not ours and ours[column] else ''
            cells.append(f'{value:,.2f}{ratio}' if COLUMNS[column].endswith(' s') else f'{value:,.0f}{ratio}')
        lines.append(f'| {contender} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('workloads', nargs='*', choices=[[], *WORKLOADS], help='all, if none is named')
    parser.add_argument('-k', type=int, default=3, help='how often each contender runs each workload')
    parser.add_argument('--only', default=','.join(CONTENDERS), help='contenders, separated by commas')
    args = parser.parse_args()
    contenders = args.only.split(',')
    if unknown := set(contenders) - set(CONTENDERS):
        parser.error(f'there is no contender {", ".join(sorted(unknown))}')
    lab.require()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('bench: told to end'))  # accounts, cgroups and daemons are removed then, too
    with contextlib.ExitStack() as stack:
        bench = Bench(pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mitogen-mux-bench-'))), stack)
        for name in args.workloads or WORKLOADS:
            runs: dict[str, list[Figures]] = {contender: [] for contender in contenders}
            for _ in range(args.k):
                for contender in contenders:
                    runs[contender].append(bench.measure(WORKLOADS[name], contender))
            print(table(name, WORKLOADS[name], runs), flush=True)


if __name__ == '__main__':
    main()
