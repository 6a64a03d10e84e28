"""Runs a playbook (the demo's own, or the one named) plain and through mitogen-mux, against its own sshd behind a relay that counts, and prints the costs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

PROJECT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / 'bench'), str(PROJECT / 'tests' / 'integration')]

from lab import BIN, Group, Relay, left_behind  # noqa: E402

import harness  # noqa: E402 - the machine under test is the integration tests' own

PLAYBOOK = pathlib.Path(*sys.argv[1:2] or [PROJECT / 'demo' / 'playbook' / 'site.yml'])
DELAY = '0.5ms'  # one way: a network next door


@dataclasses.dataclass
class Cost:
    """What one run took. Seconds of CPU are user and system together."""

    wall: float
    controller: float
    target: float
    wire: dict[str, int]
    words: list[str]
    files: dict[str, str]


def listing(folder: pathlib.Path) -> dict[str, str]:
    """All that the playbook made: names, modes, owners, content."""
    found = {}
    for path in sorted(folder.rglob('*')):
        info = path.lstat()
        body = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
        found[str(path)] = f'{info.st_mode:o} {info.st_uid} {info.st_gid} {body}'
    return found


def run(state: pathlib.Path, sshd: harness.Sshd, relay: Relay, groups: tuple[Group, Group], extra: dict[str, str], variables: dict[str, str]) -> Cost:
    """One run from nothing: no control master, no daemon, no file of an earlier run."""
    root, fetched = pathlib.Path(variables['demo_root']), pathlib.Path(variables['demo_fetched'])
    for folder in (root, fetched):
        subprocess.run(['rm', '-rf', folder], check=True)
    relay.ask('reset')
    before, started = [group.cpu() for group in groups], time.monotonic()
    environ = (
        os.environ
        | {'ANSIBLE_CONFIG': str(state / 'ansible.cfg'), 'HOME': str(state), 'MITOGEN_MUX_DIR': str(state / 'mux'), 'MITOGEN_MUX_BIN': str(BIN / 'mitogen-mux')}
        | extra
    )
    done = subprocess.run(
        [pathlib.Path(sys.executable).with_name('ansible-playbook'), '-i', state / 'inventory', '-e', json.dumps(variables), PLAYBOOK],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=groups[0].take,
    )
    wall = time.monotonic() - started
    if done.returncode:
        sys.exit(f'{done.stdout}\ndemo: ansible-playbook ended with {done.returncode}')
    harness.end(left_behind(state), 15)
    harness.until(lambda: not left_behind(state) and not sshd.sessions(), 20, 'connections are closed')
    cpu = [group.cpu() - was for group, was in zip(groups, before)]
    return Cost(wall, *cpu, relay.ask('stats'), words(done.stdout), listing(root) | listing(fetched))


def words(text: str) -> list[str]:
    """Ansible's output without the width of its rulers."""
    return [line.rstrip('*').rstrip() for line in text.splitlines()]


def table(plain: Cost, ours: Cost) -> str:
    rows: list[tuple[str, str, str, float]] = []
    for name, unit, get in (
        ('wall time', 's', lambda c: c.wall),
        ('controller CPU', 's', lambda c: c.controller),
        ('target CPU', 's', lambda c: c.target),
        ('bytes on the wire', 'KiB', lambda c: (c.wire['up_bytes'] + c.wire['down_bytes']) / 1024),
        ('round trips', '', lambda c: c.wire['turns']),
    ):
        a, b = float(get(plain)), float(get(ours))
        show = '{:,.0f} {}' if unit != 's' else '{:.2f} {}'
        rows.append((name, show.format(a, unit).strip(), show.format(b, unit).strip(), a / b if b else math.nan))
    lines = [f'{"":20}{"pipelining":>14}{"mitogen-mux":>14}{"ratio":>9}']
    lines += [f'{name:20}{a:>14}{b:>14}{ratio:>8.1f}x' for name, a, b, ratio in rows]
    lines.append(f'{"same results":20}{"NO" if differences(plain, ours) else "yes":>28}')
    return '\n'.join(lines)


def differences(plain: Cost, ours: Cost) -> list[str]:
    """What the user saw, and what is on disk, where the two runs differ."""
    found = list(difflib.unified_diff(plain.words, ours.words, 'plain', 'mitogen-mux', lineterm='', n=0))
    for name in sorted(plain.files.keys() | ours.files.keys()):
        if plain.files.get(name) != ours.files.get(name):
            found.append(f'{name}: {plain.files.get(name)} / {ours.files.get(name)}')
    return found


def main() -> int:
    try:
        harness.require()
    except harness.Unavailable as reason:
        sys.exit(f'demo: {reason}')
    with contextlib.ExitStack() as stack:
        state = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mitogen-mux-demo-')))
        login, app, _ = stack.enter_context(harness.accounts())
        key = state / 'key'
        harness.quiet('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(key))
        state.chmod(0o755)
        sshd = harness.Sshd(state / 'sshd', key.with_suffix('.pub'))
        relay = Relay(sshd.port, DELAY)
        stack.callback(relay.close)
        (state / 'inventory').write_text(
            f'demo ansible_host=127.0.0.1 ansible_port={relay.port} ansible_user={login.name} ansible_ssh_private_key_file={key} '
            f'ansible_python_interpreter=/usr/bin/python3\n'
        )
        (state / 'ansible.cfg').write_text(
            f'[defaults]\nstrategy_plugins = {PROJECT}/ansible_plugins/strategy\ndeprecation_warnings = false\nlocal_tmp = {state}/tmp\n'
            f'[ssh_connection]\npipelining = true\nssh_common_args = -o UserKnownHostsFile={sshd.known_hosts}\ncontrol_path_dir = {state}/cp\n'
        )
        variables = {'demo_root': str(state / 'site'), 'demo_fetched': str(state / 'fetched'), 'demo_app': app.name}
        groups = (Group('controller'), Group('target'))
        for group in groups:
            stack.callback(group.close)
        sshd.start()
        stack.callback(sshd.stop)
        assert sshd.process is not None
        groups[1].take(sshd.process.pid)
        sshd.known_hosts.write_text(sshd.known_hosts.read_text().replace(f']:{sshd.port} ', f']:{relay.port} '))
        costs = []
        for title, extra in (('plain Ansible, pipelining', {}), ('mitogen-mux', {'ANSIBLE_STRATEGY': 'mitogen_linear'})):
            print(f'== {title}', flush=True)
            costs.append(run(state, sshd, relay, groups, extra, variables))
            print('\n'.join(costs[-1].words[-3:]), flush=True)
        print(table(*costs))
        found = differences(*costs)
        print('\n'.join(found), end='\n' if found else '')
        return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
