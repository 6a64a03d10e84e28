"""What an agent keeps for the jobs to come: imported modules, compiled code, the standard library, the locale; and that no job can tell."""

import hashlib
import json
import os
import platform
import re
import subprocess

import pytest

from agent_driver import DROP, MODULE, eventually, source_text
from agent_modules import BASIC, Modules
from agent_payloads import manifest

PID = 'import ansible.module_utils.basic as basic\nprint(json.dumps([basic.born, os.getpid(), basic.kind]))'


def test_preloaded_once_and_kept_by_those_that_agree(modules):
    """A job whose files are others imports its own."""

    def basic(kind):
        return BASIC + ('import os\nborn = os.getpid()\nkind = %r\n' % kind).encode()

    agent = modules.agent.process.pid
    for _ in range(2):
        born, pid, kind = modules.value(PID, basic=basic('first'))
        assert born == agent != pid and kind == 'first'
    born, pid, kind = modules.value(PID, basic=basic('other'))
    assert born == pid and kind == 'other'
    born, pid, kind = modules.value(PID, basic=basic('third'), preload=False)
    assert born == pid and kind == 'third'
    assert modules.value(PID, basic=basic('first'), preload=False)[0] == agent
    assert modules.value(PID, basic=basic('first'))[0] == agent


@pytest.mark.parametrize('what', ['sys.exit("not on this Python")', 'raise ValueError("odd")', '1 +', 'print("noise")\nimport nowhere'])
def test_preload_that_fails_fails_in_the_job(modules, what):
    """And leaves the agent, its link and its stdio alone."""
    result = modules.run('import sys\nsys.exit(0)', basic=b'import sys\n' + what.encode())
    assert result.code == 1 and result.err
    assert 'noise' not in result.err.decode() and (b'noise' in result.data) == ('noise' in what)
    assert [level for level, _ in modules.agent.logs] == [2]
    assert modules.agent.command('true').code == 0


COMPILED = '''
    import ansible.module_utils.extra
    frames = sys._getframe()
    while frames.f_code.co_name != 'turn_into': frames = frames.f_back
    print(json.dumps(len(frames.f_locals['self'].importer.compiled)))
'''


def test_code_is_compiled_once(modules):
    """The first job leaves what it compiled to the next ones."""
    extra = {'ansible/module_utils/extra.py': b'x = 1\n', 'ansible/module_utils/unused.py': b'this is no Python'}
    counts = [modules.value(COMPILED, extra=extra) for _ in range(3)]
    assert counts[0] > 0 and counts[1:] == [0, 0]


def test_code_is_forgotten_with_its_blob(modules):
    """DROP, and the blob comes again: one job compiles it, and leaves it to the next ones."""
    extra = {'ansible/module_utils/extra.py': b'x = 1\n'}
    counts = []
    for _ in range(3):
        modules.agent.send(DROP, 0, hashlib.sha256(b'x = 1\n').digest())
        counts.append([modules.value(COMPILED, extra=extra) for _ in range(3)])
    assert counts[0][0] > 1 and counts == [[counts[0][0], 0, 0], [1, 0, 0], [1, 0, 0]]


IDLE = '''
    import logging, os, random, sys, threading
    import ansible.module_utils.basic as basic
    found = [threading._active_limbo_lock is basic.lock, basic.calls == [os.getpid()], type(os.register_at_fork) is type(os.getpid)]
    there, here = os.pipe()
    if os.fork() == 0:
        os.write(here, ('%r %r' % (threading._active_limbo_lock is basic.lock, random.random())).encode())
        os._exit(0)
    os.wait()
    renewed, drawn = os.read(there, 100).decode().split()
    print(json.dumps(found + [renewed, float(drawn) == random.random()]))
'''
HOOKED = b'''
import logging, os, random, threading
lock = threading._active_limbo_lock
calls = []
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: calls.append(os.getpid()))
'''


def test_what_the_library_has_called_at_a_fork_is_called_at_those_of_jobs(modules, python):
    """Not at the agent's own, which finds it idle; what another module has called is."""
    if subprocess.check_output([python, '-c', 'import os, sys; print(hasattr(os, "register_at_fork") and "threading" not in sys.modules)']) != b'True\n':
        pytest.skip('this Python calls nothing at a fork, or its site-packages have had it do so before the agent began')
    for _ in range(2):
        assert modules.value(IDLE, basic=BASIC + HOOKED) == [True, True, True, 'False', False]


AGENT = '''
frames = sys._getframe()
while frames.f_code.co_name != 'turn_into': frames = frames.f_back
agent = frames.f_locals['self']
'''


def test_packages_without_code_are_there_before_the_job(modules):
    """But not for a job whose payload has code in them, or has none of them."""
    ask = AGENT + 'import ansible.modules\nprint(json.dumps([sorted(agent.empty), getattr(ansible.modules, "kind", 0)]))'
    assert modules.value(ask) == [['ansible.modules'], 0]
    assert modules.value(ask, extra={'ansible/modules/__init__.py': b'kind = 1\n'}) == [['ansible.modules'], 1]
    assert modules.value(ask) == [['ansible.modules'], 0]

    source = b'import ansible, json, sys\nprint(json.dumps(["ansible.modules" in sys.modules, hasattr(ansible, "modules")]))\nsys.exit(0)\n'
    files = {'ansible/__init__.py': b'', 'ansible/module_utils/__init__.py': b'', 'ansible/module_utils/basic.py': BASIC, 'probe.py': source}
    text = manifest(files.items(), 'probe', preload=['ansible.module_utils.basic'])
    modules.agent.blobs(text, *files.values())
    assert json.loads(modules.again(hashlib.sha256(text).digest()).data.decode()) == [False, False]


KNOWN = '''
    try:
        from collections.abc import Mapping
    except ImportError:
        from collections import Mapping
    try:
        from _abc import _get_dump
        known = [kind() for kind in _get_dump(Mapping)[2]]
    except ImportError:
        known = list(Mapping._abc_negative_cache)
    print(json.dumps([kind in known for kind in (bool, int, list, str, tuple)]))
'''


def test_abstract_classes_are_known(modules):
    assert modules.value(KNOWN) == [True] * 5


def test_memory_is_gathered_once_many_jobs_have_had_a_child_that_waited(modules):
    ask = AGENT + 'print(json.dumps([agent.spares, agent.pages.gathered]))'
    spares = 0
    while spares <= 90:  # an agent that is asked at once has none
        spares, gathered = modules.value(ask)
        assert gathered == (spares > 90)


def test_garbage_is_collected_in_jobs_but_not_while_the_agent_imports_for_them(modules):
    basic = BASIC + b'import gc\ncollects = gc.isenabled()\n'
    assert modules.value('import gc\nimport ansible.module_utils.basic as b\nprint(json.dumps([b.collects, gc.isenabled()]))', basic=basic) == [False, True]


GATHER = '''
import sys
for text in sys.stdin.read().split(chr(0)):
    exec(compile(text, 'agent', 'exec'))
block = b'x' * (16 << 20)
Pages().gather()
import ctypes
asked = []
class Library(object):
    def __init__(self, name):
        self.madvise = lambda *what: asked.append(what)
library, ctypes.CDLL = ctypes.CDLL, Library
Pages().gather()
ctypes.CDLL = library
Pages().gather()
assert block == b'x' * (16 << 20)
print(asked)
'''


def test_memory_is_gathered_by_whole_huge_pages(python):
    """Whether the kernel has any to give is its own affair."""
    try:
        with open('/sys/kernel/mm/transparent_hugepage/hpage_pmd_size') as f:
            size = int(f.read())
    except OSError:
        pytest.skip('this kernel has no huge pages')
    asked = json.loads(subprocess.check_output([python, '-c', GATHER], input=source_text()).decode().replace('(', '[').replace(')', ']').replace('L', ''))
    assert asked and all((at % size, length, advice) == (0, size, 25) for at, length, advice in asked)


PAGES = """
import os, sys
for text in sys.stdin.read().split(chr(0)):
    exec(compile(text, 'agent', 'exec'))
import ctypes
block = bytearray(b'x' * (8 << 20))
at = ctypes.addressof((ctypes.c_char * 1).from_buffer(block))
first = -at % PAGE
at += first
pages = Pages()
assert pages.to_be_learnt()
def owns(*numbers):
    own = pages.own()
    return [any(start <= at + number * PAGE < end for start, end in own) for number in numbers]
if os.fork() == 0:
    for number in (10, 40, 41, 70, 71):
        block[first + number * PAGE] = 65
    print(owns(10, 40, 41, 71, 1000, 1200, 1201))
    pages.copied = [(at + 1200 * PAGE, at + 1202 * PAGE), (PAGE, 2 * PAGE)]     # there is nothing at the second
    assert not pages.to_be_learnt()
    pages.copy()
    print(owns(10, 40, 41, 71, 1000, 1200, 1201))
    print(bytes(block[first + 1200 * PAGE:first + 1202 * PAGE]) == b'x' * 2 * PAGE)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def kernel():
    """Of Linux; nothing elsewhere."""
    return tuple(int(part) for part in re.findall(r'\d+', platform.release())[:2]) if platform.system() == 'Linux' else ()


def test_pages_that_a_job_writes_to_are_known_and_can_be_copied_ahead(python):
    """Those that stand together."""
    lines = subprocess.check_output([python, '-c', PAGES], input=source_text()).decode().splitlines()
    if kernel() < (5, 14):
        pytest.skip('this kernel copies no pages ahead')
    written = [False, True, True, True, False]
    assert lines == [str([*written, False, False]), str([*written, True, True]), 'True']


def test_the_next_child_copies_the_pages_that_a_job_has_copied(agent):
    """Once they are known, which the first one that was forked ahead says; and again when other things are imported."""
    if kernel() < (5, 14):
        pytest.skip('this kernel copies no pages ahead')
    modules = Modules(agent, ahead=True)
    basic = BASIC + b'import ctypes\n'
    ask = modules.add('import json, sys\n' + AGENT.strip() + '\nprint(json.dumps(agent.pages.copied))\nsys.exit(0)\n', basic=basic)
    other = modules.add('import sys\nsys.exit(0)\n', basic=basic, extra={'ansible/module_utils/more.py': b''}, preload=['ansible.module_utils.more'])

    def own():
        """KiB of the child that waits."""
        with open('/proc/%d/smaps_rollup' % eventually(modules.waiting)) as f:
            return sum(int(line.split()[1]) for line in f if line.startswith('Private_Dirty'))

    def known():
        return json.loads(agent.result(agent.open(MODULE, (1, ask))).data.decode())

    modules.spare(ask)
    before = own()
    assert known() is None
    pages = eventually(known)
    size = sum(end - start for start, end in pages) >> 10
    assert size > 400
    eventually(lambda: own() > before + size // 2)
    assert agent.result(agent.open(MODULE, (1, other))).code == 0  # imports more in the agent
    eventually(modules.waiting)
    assert known() is None


def test_a_file_that_was_dropped_is_missed(modules):
    """By a payload that ran before, too."""
    digest = modules.add('import sys\nsys.exit(0)', extra={'ansible/module_utils/extra.py': b'x = 1\n'})
    assert modules.again(digest).code == 0
    modules.agent.send(DROP, 0, hashlib.sha256(b'x = 1\n').digest())
    assert modules.again(digest).failure == 'blob-missing'


LACKING = '''
    there = [name for name in ('netrc', 'colorsys') if name in sys.modules]
    import netrc, colorsys
    print(json.dumps([there, netrc.__file__]))
'''


def test_the_standard_library_is_learnt(modules):
    """What one job imports, the next ones find; only what does nothing but define things."""
    seen = [modules.value(LACKING)[0] for _ in range(3)]
    assert seen == [[], ['netrc'], ['netrc']]


def test_nobody_elses_library_is_learnt(start, tmp_path):
    """A module of the same name from another place is imported by each job, as it is there then."""
    (tmp_path / 'netrc.py').write_text('kind = 1\n')
    modules = Modules(start(env=dict(os.environ, PYTHONPATH=str(tmp_path))))
    for _ in range(3):
        there, path = modules.value(LACKING)
        assert there == [] and path.startswith(str(tmp_path))


def test_the_locale_is_that_of_a_new_process(start, python):
    ask = 'import locale, sys; sys.stdout.write(repr([locale.setlocale(locale.LC_ALL), locale.setlocale(locale.LC_ALL, "")])); sys.exit(0)'
    for given in ({}, {'LANG': 'C.UTF-8'}, {'LC_ALL': 'C.UTF-8'}, {'LC_TIME': 'C.UTF-8'}):
        env = dict(PATH=os.environ['PATH'], **given)
        plain = subprocess.check_output([python, '-c', ask], env=env)
        modules = Modules(start(env=env))
        for _ in range(2):
            assert bytes(modules.run(ask).data) == plain


CHOSEN = 'import locale, os, sys; sys.stdout.write(repr([os.environ.get("LC_CTYPE"), locale.setlocale(locale.LC_CTYPE)])); sys.exit(0)'


@pytest.mark.parametrize('login', [{}, {'LANG': 'C.UTF-8'}, {'LC_ALL': 'C'}, {'LC_CTYPE': 'C.UTF-8'}], ids=lambda login: '-'.join(login) or 'none')
def test_the_locale_of_a_task_is_chosen_anew(start, python, login):
    """What `environment:` says of it, as an interpreter that starts with it would take it."""
    login = dict(PATH=os.environ['PATH'], **login)
    modules = Modules(start(env=login))
    digest = modules.add(CHOSEN)
    for task in (
        {},
        {'LANG': 'C'},
        {'LANG': 'C.UTF-8'},
        {'LANG': 'none.such'},
        {'LC_ALL': 'C.UTF-8'},
        {'LC_ALL': 'C'},
        {'LC_ALL': ''},
        {'LC_CTYPE': 'C'},
        {'LC_CTYPE': 'C.UTF-8'},
        {'LC_ALL': 'C', 'LANG': 'C.UTF-8'},
    ):
        plain = subprocess.check_output([python, '-c', CHOSEN], env=dict(login, **task))
        ours = modules.again(digest, *[(4, ('%s=%s' % entry).encode()) for entry in task.items()])
        assert (task, bytes(ours.data)) == (task, plain)
