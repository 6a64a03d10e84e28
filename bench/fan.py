"""Copies a file to many accounts of one host, which all are behind one slow line, and says how often it has crossed that.

Each account is a host of its own (mitogen_sudo), reached through one login; they ask as Ansible has them ask, --forks at a time. Bytes are
exact, also on a machine that has much else to do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import lab
from bench import CONTENDERS
from lab import harness

MBIT = 1e6 / 8


def agents() -> list[int]:
    """Agents of this machine."""
    return [p.pid for p in harness.processes() if p.argv[-1:] and p.argv[-1].startswith('mitogen-mux: ')]


def resident(pid: int) -> float:
    """The most memory that a process has had, MiB."""
    with contextlib.suppress(OSError):  # it has just ended
        for line in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) / 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--contexts', type=int, default=40)
    parser.add_argument('--size', type=int, default=100 << 20, help='bytes')
    parser.add_argument('--rate', type=float, default=10, help='Mbit/s')
    parser.add_argument('--forks', type=int, default=5)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        state, login, key, sshd = stack.enter_context(lab.machine())
        names = stack.enter_context(harness.crowd(args.contexts))
        relay = lab.Relay(sshd.port, rate=args.rate * MBIT)
        stack.callback(relay.close)
        sshd.known_hosts.write_text(f'[127.0.0.1]:{relay.port} {sshd.known_hosts.read_text().split(" ", 1)[1]}')
        source = state / 'source'
        source.write_bytes(os.urandom(args.size))
        source.chmod(0o644)
        gate = {'ansible_host': '127.0.0.1', 'ansible_port': relay.port, 'ansible_user': login, 'ansible_ssh_private_key_file': str(key)}
        behind = {name: {'ansible_connection': 'mitogen_sudo', 'ansible_user': name, 'mitogen_via': 'gate'} for name in names}
        python = {'ansible_python_interpreter': '/usr/bin/python3'}
        (state / 'inventory.json').write_text(json.dumps({'all': {'hosts': {'gate': gate}, 'children': {'behind': {'hosts': behind}}, 'vars': python}}))
        play = [{'hosts': 'behind', 'gather_facts': False, 'tasks': [{'copy': {'src': str(source), 'dest': '~/fanned'}}]}]
        (state / 'play.yml').write_text(json.dumps(play))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(('ANSIBLE_', 'MITOGEN_'))}
        environ |= {
            'HOME': str(state),
            'MITOGEN_MUX_DIR': str(state / 'mux'),
            'ANSIBLE_SSH_COMMON_ARGS': f'-o UserKnownHostsFile={sshd.known_hosts}',
            'ANSIBLE_DEPRECATION_WARNINGS': '0',
            **CONTENDERS['mitogen-mux'],
        }
        stack.callback(lambda: harness.end(lab.left_behind(state), 15))
        argv = [sys.executable, str(pathlib.Path(sys.executable).with_name('ansible-playbook')), '-i', 'inventory.json', '-f', str(args.forks), 'play.yml']
        started = time.monotonic()
        done = subprocess.run(argv, cwd=state, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        took = time.monotonic() - started
        if done.returncode:
            sys.exit(f'{done.stdout[-3000:]}\nfan: the play ended with {done.returncode}')
        for name in names:
            subprocess.run(['cmp', str(source), f'/home/{name}/fanned'], check=True)
        up = relay.ask('stats')['up_bytes']
        most = max(map(resident, agents()), default=0)
        print(f'{args.size:,} bytes to {args.contexts} contexts, {args.forks} at a time, behind {args.rate:g} Mbit/s')
        print(f'{took:.0f} s, {up:,} bytes up the line: {up / args.size:.3f} times; the largest agent had {most:.0f} MiB')


if __name__ == '__main__':
    main()
