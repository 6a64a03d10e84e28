"""Moves files by scp and by the rooms of the daemon in turn, over lines of several kinds, and prints medians.

scp has its connection already, as the daemon has: a control master, with the cipher that the daemon takes; what it has written is synced, as
the daemon's is. Once more the daemon moves the file while commands are run one after the other: how much longer they take is in round trips and
line time of the row above."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time
import typing as t

import lab
from lab import harness

MBIT = 1e6 / 8


@dataclasses.dataclass(frozen=True)
class Line:
    about: str
    back: float = 0
    """Round trip, seconds."""
    rate: float = 0
    """Bytes a second; 0: what the machine does."""
    largest: int = 1 << 30


LINES: dict[str, Line] = {
    'loopback': Line('loopback, no relay'),
    'near': Line('20 ms', back=0.02),
    'far': Line('180 ms', back=0.18, largest=256 << 20),
    'shaped': Line('100 Mbit/s', rate=100 * MBIT, largest=128 << 20),
    'shaped-near': Line('100 Mbit/s, 20 ms', back=0.02, rate=100 * MBIT, largest=128 << 20),
    'shaped-far': Line('100 Mbit/s, 180 ms', back=0.18, rate=100 * MBIT, largest=256 << 20),
}

COLUMNS = ['size', 'way', 'scp s', 'ours s', 'scp/ours', 'of the line', 'command beside: more, ms', 'worst', 'resident MiB']

CIPHER = 'aes128-gcm@openssh.com'
"""What the daemon takes where nothing else is asked for; scp by itself takes chacha20-poly1305, which costs it twice as much."""

SIZES = [1 << 10, 32 << 10, 1 << 20, 32 << 20, 128 << 20, 256 << 20, 1 << 30]


class Ours:
    """bench/transfer."""

    def __init__(self, login: str, key: pathlib.Path, port: int, known: pathlib.Path) -> None:
        argv = [lab.BIN / 'transfer', '--port', str(port), '--user', login, '--key', str(key), '--known-hosts', str(known)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def move(self, verb: str, source: pathlib.Path, dest: pathlib.Path, *more: str) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write('\t'.join([verb, str(source), str(dest), *more]) + '\n')
        self._process.stdin.flush()
        return t.cast('dict[str, float]', json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


class Scp:
    """scp, over a control master that is there already."""

    def __init__(self, login: str, key: pathlib.Path, port: int, known: pathlib.Path, folder: pathlib.Path) -> None:
        self._options = ['-F', 'none', '-i', str(key), '-c', CIPHER]
        for option in (f'UserKnownHostsFile={known}', f'ControlPath={folder}/master-{port}', 'Compression=no'):
            self._options += ['-o', option]
        self._host, self._port = f'{login}@127.0.0.1', str(port)
        self._master = subprocess.Popen(['ssh', *self._options, '-p', self._port, '-M', '-N', self._host], stdin=subprocess.DEVNULL)
        harness.until(lambda: (folder / f'master-{port}').exists(), 20, 'ssh is connected')

    def move(self, verb: str, source: pathlib.Path, dest: pathlib.Path, *_: str) -> dict[str, float]:
        there = f'{self._host}:'
        names = [str(source), there + str(dest)] if verb == 'put' else [there + str(source), str(dest)]
        started = time.monotonic()
        subprocess.run(['scp', '-q', '-P', self._port, *self._options, *names], check=True)
        subprocess.run(['sync', str(dest)], check=True)
        return {'seconds': time.monotonic() - started}

    def close(self) -> None:
        self._master.terminate()
        self._master.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('lines', nargs='*', choices=[[], *LINES], help='all, if none is named')
    parser.add_argument('-k', type=int, default=3, help='how often each moves each file')
    parser.add_argument('--sizes', default=','.join(map(str, SIZES)), help='bytes, separated by commas')
    args = parser.parse_args()
    with lab.machine() as (state, login, key, sshd):
        host_key = sshd.known_hosts.read_text().split(' ', 1)[1]
        folder = state / 'files'
        folder.mkdir()
        folder.chmod(0o777)
        for name in args.lines or LINES:
            line = LINES[name]
            with contextlib.ExitStack() as way:
                port = sshd.port
                if line.back or line.rate:
                    relay = lab.Relay(sshd.port, f'{line.back / 2}s', line.rate)
                    way.callback(relay.close)
                    port = relay.port
                sshd.known_hosts.write_text(f'[127.0.0.1]:{port} {host_key}')
                movers: dict[str, Ours | Scp] = {'scp': Scp(login, key, port, sshd.known_hosts, state), 'ours': Ours(login, key, port, sshd.known_hosts)}
                for mover in movers.values():
                    way.callback(mover.close)
                print(f'{line.about}\n\n| {" | ".join(COLUMNS)} |\n|{"---|" * len(COLUMNS)}')
                for size in map(int, args.sizes.split(',')):
                    if size <= line.largest:
                        for verb in ('put', 'get'):
                            print(row(line, size, verb, movers, folder, args.k), flush=True)
                print()


def row(line: Line, size: int, verb: str, movers: dict[str, Ours | Scp], folder: pathlib.Path, k: int) -> str:
    source, dest = folder / 'source', folder / 'dest'
    with source.open('wb') as file:
        pattern = bytes(range(256)) * 4096
        for at in range(0, size, len(pattern)):
            file.write(pattern[: min(len(pattern), size - at)])
    source.chmod(0o644)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in movers}
    for _ in range(k):
        for name, mover in movers.items():
            dest.unlink(missing_ok=True)
            figures[name].append(mover.move(verb, source, dest))
            if dest.stat().st_size != size:
                sys.exit(f'transfers: {name} left {dest.stat().st_size} of {size} bytes')
    busy = []
    for _ in range(k):
        dest.unlink(missing_ok=True)
        busy.append(movers['ours'].move(verb, source, dest, 'busy'))
    dest.unlink()
    scp, ours = (statistics.median(one['seconds'] for one in figures[name]) for name in ('scp', 'ours'))
    used = f'{size / ours / line.rate:.0%}' if line.rate else ''
    more = statistics.median(one['beside'] - one['alone'] for one in busy) if all(one['commands'] for one in busy) else None
    worst = max(one['worst'] - one['alone'] for one in busy)
    resident = max(one['resident_kib'] for one in figures['ours']) / 1024
    beside = f'{more * 1000:.0f} | {worst * 1000:.0f}' if more is not None else '|'
    return f'| {size:,} | {verb} | {scp:.3f} | {ours:.3f} | {scp / ours:.2f} | {used} | {beside} | {resident:.0f} |'


if __name__ == '__main__':
    main()
