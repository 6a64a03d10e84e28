#!/usr/bin/env python3
"""Runs a tier of checks and tests, all of it even where something fails, and ends with one line of numbers.

    tools/tier.py check|test|matrix
    tools/tier.py integration  whole playbooks: every case on the oldest and the newest core, a smoke set on the others
    tools/tier.py flake N      every Go and Python unit test N times

A runner of tests counts its tests, any other step counts as one. A step that fails without a failed test counts as one too, so that the
numbers never look better than the exit code. Every skip is named with its reason.
"""

from __future__ import annotations

import collections
import collections.abc
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / '.cache' / 'results'
GO_TOOL = ('go', 'tool', '-modfile=tools/go.mod')
CORES = ('2.16', '2.17', '2.18', '2.19', '2.20', '2.21', '2.22')
COMING = ('2.22',)  # not released yet: never the newest
OTHER_OPENSSH = ('bullseye', 'trixie')  # Debian releases: 8.4 and 10.0
CROSS = ('linux/amd64', 'linux/arm64', 'darwin/amd64', 'darwin/arm64')
LONG_GO = '^(TestModel|TestFaultAtEachFrameForTwo)$'
"""Go tests that check or matrix runs, and test has no time for."""
Work = collections.abc.Callable[[], None]
PYTHON_CODE = ('ansible_plugins', 'internal/agent', 'tests', 'tools', 'demo', 'bench')


@dataclasses.dataclass
class Numbers:
    """What one step came to."""

    passed: int = 0
    failed: int = 0
    skips: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # test, reason
    said: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return f'{self.passed} passed, {self.failed} failed, {len(self.skips)} skipped'


class Tier:
    """Steps, one after the other, and their numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.results = RESULTS / name
        self.lock = threading.Lock()
        self.steps: list[tuple[str, Numbers]] = []
        shutil.rmtree(self.results, ignore_errors=True)
        self.results.mkdir(parents=True)

    def check(self, name: str, *argv: str, env: dict[str, str] | None = None, quiet: bool = False) -> None:
        """A step that succeeds or not; a quiet one must print nothing, except that Go may say on stderr what it downloads first."""
        with Step(self, name) as numbers:
            done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **(env or {})}, check=False, capture_output=True, text=True)
            ok = done.returncode == 0 and not (quiet and done.stdout.strip())
            numbers.passed, numbers.failed = int(ok), int(not ok)
            if not ok:
                numbers.said.append(done.stdout + done.stderr)

    def go_test(self, name: str, *args: str, env: dict[str, str] | None = None) -> None:
        """``go test``, of which the failures are shown."""
        with Step(self, name) as numbers:
            run = subprocess.Popen(('go', 'test', '-json', *args), cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)
            assert run.stdout is not None
            said: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
            parents: set[tuple[str, str]] = set()
            for line in run.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    numbers.said.append(line)
                    continue
                self._go_event(event, said, parents, numbers)
            if run.wait() != 0 and not numbers.failed:
                numbers.failed = 1

    @staticmethod
    def _go_event(event: dict[str, str], said: dict[tuple[str, str], list[str]], parents: set[tuple[str, str]], numbers: Numbers) -> None:
        package, test = event.get('Package', event.get('ImportPath', '')), event.get('Test', '')
        key = (package, test)
        match event['Action']:
            case 'run':
                parents.add((package, test.rpartition('/')[0]))
            case 'output' | 'build-output':
                said[key].append(event['Output'])
            case 'fail':
                numbers.said += said[key]
                numbers.failed += bool(test) and key not in parents
            case 'pass':
                numbers.passed += bool(test) and key not in parents
            case 'skip' if test:
                reason = ''.join(line for line in said[key] if not line.startswith(('=== ', '--- '))).split(': ', 1)[-1].strip()
                numbers.skips.append((f'{package.rpartition("/")[2]} {test}', reason))
            case 'build-fail':
                numbers.said += said[key]
        if event['Action'] in ('pass', 'fail', 'skip'):
            said.pop(key, None)

    def pytest(self, name: str, venv: str, *args: str, env: dict[str, str] | None = None) -> None:
        """pytest in a virtual environment."""
        with Step(self, name) as numbers:
            if why := make_venv(venv):
                numbers.skips.append((name, why))
                return
            report = self.results / f'{name.replace(" ", "-")}.xml'
            argv = (f'.venv-{venv}/bin/python', '-m', 'pytest', '-q', f'--junitxml={report}', *args)
            done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **(env or {})}, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            read_junit(report, numbers)
            if done.returncode != 0:
                numbers.said.append(done.stdout)
            if done.returncode != 0 and not numbers.failed:
                numbers.failed = 1

    def end(self) -> int:
        """Prints the numbers; returns the exit code."""
        total = Numbers()
        print(f'\n== {self.name}: numbers')
        for name, numbers in self.steps:
            print(f'{name:32} {numbers}')
            total.passed += numbers.passed
            total.failed += numbers.failed
            total.skips += numbers.skips
        reasons: dict[str, list[str]] = collections.defaultdict(list)
        for test, reason in total.skips:
            reasons[reason].append(test)
        for reason, tests in reasons.items():
            print(f'skipped: {reason} ({tests[0]}{f" and {len(tests) - 1} more" if tests[1:] else ""})')
        print(total, flush=True)
        (self.results / 'numbers').write_text(f'{total}\n')
        return int(total.failed > 0 or total.passed == 0)


class Step:
    """Times a step, keeps its numbers, and shows what it has said when it ends: steps may run side by side."""

    def __init__(self, tier: Tier, name: str) -> None:
        self.tier, self.name, self.numbers = tier, name, Numbers()

    def __enter__(self) -> Numbers:
        print(f'-- {self.name} …', flush=True)
        self.start = time.monotonic()
        return self.numbers

    def __exit__(self, *_: object) -> None:
        text = ''.join(self.numbers.said)
        with self.tier.lock:
            print(f'== {self.name}\n{text}   {self.numbers} ({time.monotonic() - self.start:.0f} s)', flush=True)
            self.tier.steps.append((self.name, self.numbers))


def make_venv(name: str) -> str:
    """Returns why there is none, if there is a reason; other failures end the program."""
    done = subprocess.run(('tools/venv.sh', name), cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 77):
        sys.exit(f'cannot make .venv-{name}')
    return done.stdout.strip() if done.returncode else ''


def newest_core() -> str:
    """The newest core that has been released and that this machine can run."""
    for core in reversed(CORES):
        if core not in COMING and not make_venv(core):
            return core
    sys.exit('no ansible-core can be installed here')


def agent_environ() -> dict[str, str]:
    """Names the interpreters that are not on PATH, pyenv's and the one of tools/python-from-debian.sh, and adds vermin to PATH."""
    make_venv('tools')
    pyenv = pathlib.Path(os.environ.get('PYENV_ROOT') or pathlib.Path.home() / '.pyenv')
    pythons = [*sorted(pyenv.glob('versions/*/bin/python')), ROOT / '.cache/trixie/usr/bin/python3.13']
    return {
        'MITOGEN_MUX_TEST_PYTHONS': os.pathsep.join(str(path) for path in pythons if path.exists()),
        'PATH': f'{os.environ["PATH"]}{os.pathsep}{ROOT / ".venv-tools/bin"}',
    }


def read_junit(report: pathlib.Path, numbers: Numbers) -> None:
    """Adds what pytest wrote down."""
    if not report.exists():
        return
    for case in xml.etree.ElementTree.parse(report).iter('testcase'):
        name = f'{case.get("classname", "")} {case.get("name", "")}'
        if case.find('failure') is not None or case.find('error') is not None:
            numbers.failed += 1
        elif (skip := case.find('skipped')) is not None:
            numbers.skips.append((name, skip.get('message', '')))
        else:
            numbers.passed += 1


def tracked(*patterns: str) -> list[str]:
    """Files of the project, without what is generated."""
    listed = subprocess.run(('git', 'ls-files', '-co', '--exclude-standard', '--', *patterns), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [f for f in listed.splitlines() if not f.endswith(('.pb.go', '_pb2.py', '_pb2.pyi')) and (ROOT / f).exists()]


def make_cores(cores: collections.abc.Iterable[str] = CORES) -> None:
    """One after the other, before steps run side by side that want the same."""
    for core in cores:
        make_venv(core)


def side_by_side(works: list[Work], at_once: int = 2) -> None:
    """Runs steps, so many at a time, in their order: the longest should come first."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=at_once) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def check(tier: Tier) -> None:
    """What must hold before every commit. The steps run side by side, the longest first."""
    newest = newest_core()
    works: list[Work] = [
        lambda: tier.go_test('go test -short', '-race', '-short', './...'),
        lambda: tier.pytest('plugins', newest, 'tests/plugins', '-m', 'not slow and not stress'),
        lambda: tier.pytest('agent', newest, 'tests/agent', '-m', 'not slow'),
    ]
    side_by_side([*works, *lint(tier)], at_once=3)


def lint(tier: Tier) -> list[Work]:
    """All that looks at the code without running it."""
    make_venv('tools')
    make_venv('gen')
    code = [folder for folder in PYTHON_CODE if (ROOT / folder).exists()]
    works: list[Work] = [
        lambda: tier.check('gofumpt', *GO_TOOL, 'gofumpt', '-l', *tracked('*.go'), quiet=True),
        lambda: tier.check('generated code', 'tools/gen.sh', '--check'),
        lambda: tier.check('golangci-lint', *GO_TOOL, 'golangci-lint', 'run', './...'),
        lambda: tier.check('ruff', '.venv-tools/bin/ruff', 'check', '--quiet', *code),
        lambda: tier.check('ruff format', '.venv-tools/bin/ruff', 'format', '--check', '--quiet', *code),
        lambda: tier.check('mypy', '.venv-tools/bin/mypy'),
        lambda: tier.check(
            'vermin', '.venv-tools/bin/vermin', '--config-file', 'tools/vermin.ini', *tracked('internal/agent/*.py', 'ansible_plugins/modules/*.py')
        ),
    ]
    for target in CROSS:
        system, _, machine = target.partition('/')
        env = {'GOOS': system, 'GOARCH': machine, 'CGO_ENABLED': '0'}
        works.append(functools.partial(tier.check, f'build {target}', 'go', 'build', '-o', os.devnull, './cmd/...', env=env))
    return works


def collections_environ(core: str) -> dict[str, str]:
    """Names a folder with the collections that go with a core, fetched."""
    if make_venv(core):
        return {}
    done = subprocess.run(('tools/collections.sh', core), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {'MITOGEN_MUX_TEST_COLLECTIONS': done.stdout.strip()}


def units(tier: Tier, marks: dict[str, str], pythons: str, collections: frozenset[str] = frozenset(), go: tuple[str, ...] = ()) -> list[Work]:
    """Every test but those of the whole chain. ``marks``: which of tests/plugins on which core; ``pythons``: all or ends, for tests/agent;
    ``go``: further arguments of go test."""
    environ = agent_environ()
    cores = list(marks)
    works: list[Work] = [lambda: tier.go_test('go test', '-race', '-count=1', *go, './...')]
    # The agent meets an ansible-core only in the stock modules that it runs.
    works.append(lambda: tier.pytest('agent', cores[0], 'tests/agent', f'--pythons={pythons}', env=environ))
    for core in cores[1:]:
        works.append(functools.partial(tier.pytest, f'agent {core}', core, 'tests/agent/test_stock.py', f'--pythons={pythons}', env=environ))
    for core in cores:
        more = collections_environ(core) if core in collections else None
        works.append(functools.partial(tier.pytest, f'plugins {core}', core, 'tests/plugins', '-m', marks[core], env=more))
    return works


def chain(tier: Tier, depths: dict[str, str], *which: str) -> list[Work]:
    """tests/integration: how much of it on which core; ``which``: arguments for pytest."""
    works: list[Work] = []
    for core, depth in depths.items():
        more = collections_environ(core) if depth == 'matrix' else None
        works.append(functools.partial(tier.pytest, f'integration {core}', core, 'tests/integration', f'--core={core}', f'--tier={depth}', *which, env=more))
    return works


def other_openssh(tier: Tier, release: str) -> None:
    """What meets an SSH server, with that of another Debian release."""
    done = subprocess.run(('tools/openssh-from-debian.sh', release), cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        with Step(tier, f'OpenSSH of {release}') as numbers:
            numbers.skips.append((f'OpenSSH of {release}', done.stderr.strip()))
        return
    env = {'MITOGEN_MUX_TEST_SSHD': done.stdout.strip()}
    tier.go_test(f'go test, OpenSSH of {release}', '-count=1', './internal/sshlink', env=env)
    newest = newest_core()
    tier.pytest(f'integration, OpenSSH of {release}', newest, 'tests/integration', f'--core={newest}', '--tier=smoke', env=env)


def ends() -> tuple[str, str]:
    """The newest core that this machine can run, and the oldest."""
    return newest_core(), CORES[0]


def between() -> list[str]:
    """The other cores."""
    known = ends()
    return [core for core in CORES if core not in known]


def main(argv: list[str]) -> int:
    match argv:
        case ['check']:
            tier = Tier('check')
            check(tier)
        case ['test']:
            tier = Tier('test')
            middle = [*between()[2:3], *COMING]  # 2.19, the first with what is common to all newer ones
            make_cores((*middle, *ends()))
            coming = dict.fromkeys(COMING, 'not stress and not slow')
            works = units(tier, {ends()[1]: 'not stress and not slow', ends()[0]: 'not stress', **coming}, 'ends', go=('-skip', LONG_GO))
            smoke = chain(tier, dict.fromkeys(middle, 'smoke'), '-k', 'test_case')
            side_by_side([*chain(tier, dict.fromkeys(ends(), 'cases')), *works, *smoke])
            tier.check('demo', 'demo/run.sh')
        case ['integration']:
            tier = Tier('integration')
            make_cores()
            side_by_side(chain(tier, {**dict.fromkeys(ends(), 'whole'), **dict.fromkeys(between(), 'smoke')}))
        case ['matrix']:
            tier = Tier('matrix')
            make_cores()
            whole = chain(tier, {**dict.fromkeys(ends(), 'matrix'), **dict.fromkeys(between(), 'cases')})
            others = [functools.partial(other_openssh, tier, release) for release in OTHER_OPENSSH]
            # Some thirty operations a check.
            model = functools.partial(
                tier.go_test, 'go test, 60,000 operations on files', '-run', '^TestModel$', './internal/fileservice', '-rapid.checks=2000'
            )
            side_by_side(
                [
                    *whole,
                    *units(tier, {**dict.fromkeys(CORES, 'not stress'), **dict.fromkeys(ends(), '')}, 'all', frozenset(ends())),
                    model,
                    *others,
                    *lint(tier),
                ]
            )
            tier.check('demo', 'demo/run.sh')
        case ['flake', count] if count.isdigit():
            tier = Tier('flake')
            tier.go_test('go test', '-race', f'-count={count}', './...')
            for n in range(int(count)):
                tier.pytest(f'agent {n + 1}', newest_core(), 'tests/agent', env=agent_environ())
                tier.pytest(f'plugins {n + 1}', newest_core(), 'tests/plugins')
        case _:
            sys.exit(__doc__)
    return tier.end()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
