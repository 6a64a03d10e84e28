"""Copies folders by rsync, by pipelining and by mitogen-mux in turn, and prints medians: what a file costs, and what the whole does.

What rsync has written is synced. A run that copies nothing tells what of each is Ansible's own start and connecting. Each run has a folder of
its own: ext4 looks for a file's inode among those that were freed in the last minutes, and passes them by one after the other."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

from bench import Bench, lab
from workloads import Workload

FEW, MANY = 100, 10_000
most = {'pipelining': FEW}


def make(folder: pathlib.Path, count: int) -> None:
    """Files of 0 to 4 KiB, a hundred in a folder; the same each time."""
    chance = random.Random(1)
    folder.mkdir()
    for n in range(count):
        path = folder / f'folder{n // 100:03}' / f'file{n % 100:02}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(4096)))
        path.chmod(0o644)


def rsync(bench: Bench, relay: lab.Relay, source: pathlib.Path, dest: pathlib.Path) -> float:
    started = time.monotonic()
    shell = f'ssh -F none -i {bench.key} -p {relay.port} -o UserKnownHostsFile={bench.known_hosts}'
    subprocess.run(['rsync', '-a', '-e', shell, f'{source}/', f'{bench.login}@127.0.0.1:{dest}/'], check=True)
    subprocess.run(['sync', '-f', str(dest)], check=True)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('-k', type=int, default=3, help='how often each copies')
    parser.add_argument('--only', default='rsync,mitogen-mux,pipelining', help='which of them, separated by commas')
    args = parser.parse_args()
    lab.require()
    with contextlib.ExitStack() as stack:
        state = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mitogen-mux-bench-')))
        bench = Bench(state, stack)
        for count in (0, FEW, MANY):
            make(state / str(count), count)
        out = state / 'out'
        out.mkdir()
        out.chmod(0o777)
        seconds: dict[str, list[float]] = {}
        for turn in range(args.k):
            for name in args.only.split(','):
                for count in (0, FEW, MANY):
                    if count > most.get(name, MANY):
                        continue
                    dest = out / f'{name}-{count}-{turn}'
                    copy = Workload('', [{'copy': {'src': f'{state}/{count}/', 'dest': str(dest)}} if count else {'ping': {}}])
                    if name == 'rsync':
                        with bench.hosts(copy) as (relay,):
                            took = rsync(bench, relay, state / str(count), dest)
                    else:
                        took = bench.measure(copy, name)['wall']
                    seconds.setdefault(f'{name}, {count:,} files', []).append(took)
        for what, all_of_it in seconds.items():
            print(f'{what}: {statistics.median(all_of_it):.2f} s')


if __name__ == '__main__':
    main()
