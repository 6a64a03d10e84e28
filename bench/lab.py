"""What a measurement stands on: a relay that counts what is on the wire, control groups that count CPU and memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import typing as t

PROJECT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / 'tests' / 'integration'))

import harness  # noqa: E402 - processes are found as the integration tests find them

BIN = PROJECT / 'bin'


class Machine(t.NamedTuple):
    """An sshd, and who may log in."""

    state: pathlib.Path
    login: str
    key: pathlib.Path
    sshd: harness.Sshd


def require() -> None:
    """Ends the program, with the reason, where a target cannot be had."""
    try:
        harness.require()
    except harness.Unavailable as reason:
        sys.exit(f'{pathlib.Path(sys.argv[0]).stem}: {reason}')


@contextlib.contextmanager
def machine(listen: str = '127.0.0.1') -> t.Iterator[Machine]:
    """One, for as long as it is wanted; the program ends where there can be none."""
    require()
    with contextlib.ExitStack() as stack:
        state = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mitogen-mux-bench-')))
        state.chmod(0o755)
        login, _, _ = stack.enter_context(harness.accounts())
        key = state / 'key'
        harness.quiet('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(key))
        sshd = harness.Sshd(state / 'sshd', key.with_suffix('.pub'), listen=listen)
        sshd.start()
        stack.callback(sshd.stop)
        yield Machine(state, login.name, key, sshd)


class Relay:
    """bench/relay, asked over its stdin."""

    def __init__(self, port: int, delay: str = '0s', rate: float = 0, program: pathlib.Path = BIN / 'relay', listen: str = '127.0.0.1') -> None:
        argv = [program, '--listen', f'{listen}:0', '--to', f'127.0.0.1:{port}', '--delay', delay, '--rate', str(rate)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read().rpartition(':')[2])

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, word: str) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + '\n')
        self._process.stdin.flush()
        return t.cast('dict[str, int]', json.loads(self._read()))

    def close(self) -> None:
        self._process.communicate()


class Group:
    """A control group (v2) whose CPU is counted: of processes that are gone too, and of those that left their parents."""

    def __init__(self, name: str) -> None:
        self._folder: pathlib.Path | None = None
        mounts = [line.split() for line in pathlib.Path('/proc/mounts').read_text().splitlines()]
        for mount in mounts:
            if mount[2] == 'cgroup2':
                folder = pathlib.Path(mount[1], f'mitogen-mux-{os.getpid()}-{name}')
                with contextlib.suppress(OSError):
                    folder.mkdir()
                    self._folder = folder

    def take(self, pid: int = 0) -> None:
        """Moves a process (0: the caller) into the group."""
        if self._folder:
            (self._folder / 'cgroup.procs').write_text(str(pid))

    def cpu(self) -> float:
        """Seconds so far, user and system; not a number where there are no control groups."""
        if not self._folder:
            return math.nan
        usage = dict(line.split() for line in (self._folder / 'cpu.stat').read_text().splitlines())
        return int(usage['usage_usec']) / 1e6

    def anonymous(self) -> int:
        """Bytes of anonymous memory of all its processes at this moment, shared pages counted once."""
        total = 0
        if self._folder:
            for pid in (self._folder / 'cgroup.procs').read_text().split():
                with contextlib.suppress(OSError):
                    for line in pathlib.Path('/proc', pid, 'smaps_rollup').read_text().splitlines():
                        if line.startswith('Pss_Anon:'):
                            total += int(line.split()[1]) << 10
        return total

    def close(self) -> None:
        if self._folder:
            harness.until(lambda: not (t.cast(pathlib.Path, self._folder) / 'cgroup.procs').read_text(), 20, 'processes are gone')
            self._folder.rmdir()


def left_behind(state: pathlib.Path) -> list[int]:
    """What the run leaves for the next one: ssh's control master, whose title names its socket in our folder, or the daemon."""
    return [p.pid for p in harness.processes() if p.argv[:1] and (p.argv[0].startswith(f'ssh: {state}') or p.argv == (str(BIN / 'mitogen-mux'), 'serve'))]
