#!/usr/bin/env python3
"""Runs ansible-core's own integration targets, plain and through us, and lists where the outcomes differ.

The targets come with ansible-core's source distribution and are run by its own ansible-test, each in a throw-away copy of this machine
(sandbox.sh), over SSH to an sshd there. Which targets, and what is known about them, is in targets.yml. Run by hand or by make matrix:

    tests/core_targets/run.py [--core 2.21] [--jobs N] [--again|--stale] [TARGET …]

An outcome is kept in .cache/core-targets and used again until ansible-core or, for ours, the project's code has changed. The exit code is 0
if every difference, and nothing but those, is in targets.yml.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CACHE = PROJECT / '.cache' / 'core-targets'
CORES = ('2.16', '2.21')
LIMIT = 900  # seconds for one target
WHEELS = ('passlib', 'pexpect', 'build', 'setuptools', 'wheel')  # what targets install with pip
WAYS = {'plain': '[defaults]\n', 'ours': f'[defaults]\nstrategy = mitogen_linear\nstrategy_plugins = {PROJECT}/ansible_plugins/strategy\n'}
RECAP = re.compile(r'^\S+ +: (ok=\d+ .*?) *$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Target:
    """An entry of targets.yml."""

    name: str
    over: str = 'ssh'  # or local, where the target is about the controller alone
    network: bool = False  # it needs more than the loopback
    cores: tuple[str, ...] = CORES
    fails: str = ''  # why it cannot pass here even without us
    differs: str = ''  # why it ends differently through us, or with another recap
    foreign: str = ''  # why none of its work comes to us
    random: str = ''  # why its recap is another every time


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    passed: bool
    recap: list[str]
    reached: bool  # the daemon was asked for anything
    log: str

    @staticmethod
    def read(code: int | None, log: pathlib.Path) -> Outcome:
        text, _, daemon = log.read_text(errors='replace').partition('== log of the daemon\n')
        return Outcome(code == 0, sorted(RECAP.findall(text)), bool(daemon), str(log))


def load(core: str) -> list[Target]:
    """The entries for one core; a field may be given for one core alone, as "differs-2.16"."""
    found = []
    for name, fields in yaml.safe_load((HERE / 'targets.yml').read_text()).items():
        own = {key.partition('-')[0]: value for key, value in (fields or {}).items() if key.partition('-')[2] in ('', core)}
        if core in own.pop('cores', CORES):
            found.append(Target(name, **own))
    return found


def source(core: str) -> pathlib.Path:
    """The unpacked source distribution of the very ansible-core that the virtual environment has."""
    subprocess.run([PROJECT / 'tools' / 'venv.sh', core], check=True)
    venv = PROJECT / f'.venv-{core}'
    ask = [venv / 'bin' / 'python', '-c', 'from ansible.release import __version__; print(__version__)']
    version = subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    tree = CACHE / f'ansible_core-{version}'
    if not tree.exists():
        draft = CACHE / f'draft-{version}'
        shutil.rmtree(draft, ignore_errors=True)
        pip = [venv / 'bin' / 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-binary', ':all:', '--no-deps', '--dest', draft]
        subprocess.run([*pip, f'ansible-core=={version}'], check=True)
        with tarfile.open(next(draft.glob('*.tar.gz'))) as archive:
            archive.extractall(draft, filter='tar')
        made = draft / tree.name
        if not (made / 'bin').exists():  # as in the repository
            (made / 'bin').mkdir()
            programs = {'test': 'test/lib/ansible_test/_util/target/cli/ansible_test_cli_stub', **{c: f'lib/ansible/cli/{c}' for c in commands(made)}}
            for name, module in programs.items():
                (made / 'bin' / f'ansible-{name}'.replace('-adhoc', '')).symlink_to(f'../{module}.py')
        # Sandboxes forget what they compile.
        subprocess.run([venv / 'bin' / 'python', '-m', 'compileall', '-q', 'lib/ansible', 'test/lib/ansible_test/_internal'], cwd=made, check=False)
        made.rename(tree)
        shutil.rmtree(draft)
    return tree


def wheels(core: str) -> None:
    """What pip is to find in sandboxes without a network."""
    place = CACHE / 'wheels'
    if not place.exists():
        draft = CACHE / 'draft-wheels'
        subprocess.run([PROJECT / f'.venv-{core}' / 'bin' / 'pip', 'download', '--quiet', '--disable-pip-version-check', '--dest', draft, *WHEELS], check=True)
        draft.rename(place)


def commands(tree: pathlib.Path) -> list[str]:
    """The programs of ansible-core, as their modules are called."""
    return [path.stem for path in (tree / 'lib' / 'ansible' / 'cli').glob('[a-z]*.py')]


def run(core: str, tree: pathlib.Path, way: str, target: Target, stamp: str, use: str) -> Outcome:
    """One target in one way, or what is known of it."""
    place = CACHE / core / way
    place.mkdir(parents=True, exist_ok=True)
    log, known = place / f'{target.name}.log', place / f'{target.name}.json'
    key = f'{stamp} {target.over} {target.network}'
    if known.exists() and use != 'again':
        old = json.loads(known.read_text())
        if old['stamp'] == key or (use == 'stale' and old['code'] == 0):
            return Outcome.read(old['code'], log)
    config = CACHE / f'{way}.cfg'
    config.write_text(WAYS[way])
    spaces = ['--mount', '--pid', '--uts', *([] if target.network else ['--net'])]
    argv = [
        'setpriv',
        '--pdeathsig',
        'KILL',
        'unshare',
        *spaces,
        '--fork',
        '--kill-child',
        HERE / 'sandbox.sh',
        PROJECT / f'.venv-{core}',
        tree,
        config,
        target.over,
        CACHE / 'wheels',
        target.name,
    ]
    code: int | None = None
    with log.open('wb') as out:
        try:
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=LIMIT, check=False).returncode
        except subprocess.TimeoutExpired:
            out.write(f'\n== not within {LIMIT} s\n'.encode())
    known.write_text(json.dumps({'stamp': key, 'code': code}))
    return Outcome.read(code, log)


def digest(*paths: pathlib.Path) -> str:
    """What a kept outcome depends on, as a word."""
    made = hashlib.sha256()
    for path in sorted(paths):
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def judge(target: Target, plain: Outcome, ours: Outcome) -> tuple[str, str]:
    """A word for the target, and what is wrong if targets.yml does not say so."""
    if not plain.passed:
        return 'fails plain', '' if target.fails else f'fails even without us: {plain.log}'
    if target.fails:
        return 'passes', 'targets.yml says that it fails even without us, but it passes'
    if not ours.passed or (ours.recap != plain.recap and not target.random):
        what = 'another recap' if ours.passed else 'fails'
        return 'differs', '' if target.differs else f'{what} through us: {ours.log} {plain.log}'
    if target.differs:
        return 'passes', 'targets.yml says that it differs, but it does not'
    if ours.reached == bool(target.foreign):
        return 'passes', 'targets.yml says that it does not come to us, but it does' if target.foreign else 'nothing of it came to us'
    return 'foreign' if target.foreign else 'passes', ''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--core', action='append', choices=CORES, help='default: all of them')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='targets at the same time')
    parser.add_argument('--again', action='store_true', help='run what is known, too')
    parser.add_argument('--stale', action='store_true', help="use what passed with earlier code of the project's, too")
    parser.add_argument('target', nargs='*')
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit('core-targets: needs root: it makes namespaces and mounts')
    wrong = 0
    for core in options.core or CORES:
        targets = [target for target in load(core) if not options.target or target.name in options.target]
        wrong += one_core(core, targets, options.jobs, 'again' if options.again else 'stale' if options.stale else '')
    return 1 if wrong else 0


def one_core(core: str, targets: list[Target], jobs: int, use: str) -> int:
    """Runs the targets, prints a line for each as it ends and the numbers of all; returns how many are not as targets.yml says."""
    tree = source(core)
    wheels(core)
    plain = f'{tree.name} {digest(HERE / "sandbox.sh")}'
    stamps = {'plain': plain, 'ours': f'{plain} {digest(PROJECT / "bin" / "mitogen-mux", *(PROJECT / "ansible_plugins").rglob("*.py"))}'}

    def both(target: Target) -> tuple[Target, Outcome, Outcome]:
        plain = run(core, tree, 'plain', target, stamps['plain'], use)
        return target, plain, run(core, tree, 'ours', target, stamps['ours'], use) if plain.passed else plain

    words: list[str] = []
    wrong = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for task in concurrent.futures.as_completed([pool.submit(both, target) for target in targets]):
            target, *outcomes = task.result()
            word, problem = judge(target, *outcomes)
            words.append(word)
            wrong += bool(problem)
            print(f'{core} {target.name}: {word} {problem or target.fails or target.differs or target.foreign}'.rstrip(), flush=True)
    count = {word: words.count(word) for word in ('passes', 'differs', 'fails plain', 'foreign')}
    passed = len(words) - count['fails plain']
    through = f'{passed - count["differs"]} of them through us, {count["differs"]} differences, {count["foreign"]} not our work'
    print(f'{core}: {len(words)} targets, {passed} pass plain, {through}')
    return wrong


if __name__ == '__main__':
    sys.exit(main())
