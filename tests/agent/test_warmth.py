"""What an agent keeps for the jobs to come: imported modules, compiled code, the standard library, the locale; and that no job can tell."""

import hashlib
import os
import subprocess

import pytest

from agent_driver import DROP
from agent_modules import BASIC, Modules

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
