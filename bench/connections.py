"""Reaches hosts by OpenSSH's client and by the rooms of the daemon in turn, runs `true` on each, and prints medians: seconds and CPU of this
side for a host. ssh is run as xargs would, so many at once as the daemon's pool has places."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import resource
import statistics
import subprocess
import time

import lab

POOL = 32


def address(n: int) -> str:
    return f'127.0.{n // 250}.{n % 250 + 1}'


def openssh(options: list[str], count: int) -> tuple[float, float]:
    """Seconds, and seconds of CPU."""

    def one(n: int) -> None:
        subprocess.run(['ssh', *options, address(n), 'true'], stdin=subprocess.DEVNULL, check=True)

    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(POOL) as pool:
        list(pool.map(one, range(count)))
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(options: list[str], count: int) -> tuple[float, float]:
    done = subprocess.run([lab.BIN / 'connect', *options, '--hosts', str(count)], stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout)
    return figures['seconds'], figures['cpu']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('-k', type=int, default=3, help='how often each reaches them')
    parser.add_argument('--hosts', default='1,100', help='how many, separated by commas')
    parser.add_argument('--pools', default='0', help='sizes of the pool to try, separated by commas; 0: the default')
    args = parser.parse_args()
    with lab.machine(listen='0.0.0.0') as (state, login, key, sshd):
        config = state / 'config'
        sshd.known_hosts.write_text('many ' + sshd.known_hosts.read_text().split(' ', 1)[1])
        config.write_text(f'UserKnownHostsFile {sshd.known_hosts}\nHostKeyAlias many\nIdentitiesOnly yes\n')
        common = ['--port', str(sshd.port), '--user', login, '--key', str(key), '--config', str(config)]
        print('| hosts | way | s | CPU ms a host |\n|---|---|---|---|')
        for count in map(int, args.hosts.split(',')):
            contenders = {'ssh': lambda count: openssh(['-F', str(config), '-i', str(key), '-l', login, '-p', str(sshd.port)], count)}
            for pool in args.pools.split(','):
                contenders[f'SSH alone, pool {pool}'] = lambda count, pool=pool: ours([*common, '--python', '', '--pool', pool], count)
                contenders[f'with an agent, pool {pool}'] = lambda count, pool=pool: ours([*common, '--pool', pool], count)
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
            for _ in range(args.k):
                for name, reach in contenders.items():
                    seen[name].append(reach(count))
            for name, runs in seen.items():
                wall, cpu = (statistics.median(one[n] for one in runs) for n in (0, 1))
                print(f'| {count} | {name} | {wall:.2f} | {cpu / count * 1000:.1f} |', flush=True)


if __name__ == '__main__':
    main()
