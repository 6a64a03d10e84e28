"""The child that is forked while an agent has nothing to do, and what an answer does not wait for."""

import json
import os
import signal

import pytest

from agent_driver import COMMAND, DROP, END, MODULE, WINDOW, children, eventually, gone
from agent_modules import Modules

PID = 'import json, os, sys\nprint(json.dumps(os.getpid()))\nsys.exit(0)\n'
STDIN = (10, b'1')


@pytest.fixture
def modules(agent):
    return Modules(agent, ahead=True)


def run(modules, digest, *fields):
    """One run, without a warm-up before it."""
    stream = modules.agent.open(MODULE, (1, digest), (2, b'{}'), *fields)
    if STDIN in fields:
        modules.agent.send(END, stream)
    return modules.agent.result(stream)


def pid_of(result):
    assert (result.failure, result.code, bytes(result.err)) == ('', 0, b''), result.err.decode()
    return json.loads(result.data.decode())


def test_the_child_that_waits_becomes_the_next_module(modules):
    """And another waits then."""
    digest = modules.add(PID)
    pid = modules.spare(digest)
    for _ in range(3):
        assert pid_of(run(modules, digest)) == pid
        before, pid = pid, eventually(lambda: modules.waiting() not in (None, pid) and modules.waiting())  # noqa: B023
        assert gone(before)


def test_it_can_be_any_module_that_has_run(modules):
    digests = [modules.add('n = %d\n' % n + PID) for n in range(3)]
    for digest in digests[:2]:
        pid = modules.spare(digest)
    assert pid_of(run(modules, digests[0])) == pid
    for _ in range(2):  # never seen, and not known to have all it needs
        pid = eventually(modules.waiting)
        assert pid_of(run(modules, digests[2])) != pid
    pid = modules.spare(digests[2])
    assert pid_of(run(modules, digests[2])) == pid


def test_it_has_only_what_it_should(modules):
    """Of the agent's descriptors one, on which it waits; no output of another job is kept open by it."""
    digest = modules.add(PID)
    pid = modules.spare(digest)
    assert sorted(os.listdir('/proc/%d/fd' % pid)) == ['0', '1', '2', '3']
    assert os.getsid(pid) == pid
    assert modules.agent.command('true').code == 0
    assert modules.waiting() == pid


@pytest.mark.parametrize('fields', [(STDIN,), ((4, b'LONG=' + b'x' * 40000),), ((2, b'x' * 40000),)], ids=['stdin', 'environment', 'params'])
def test_what_it_cannot_be(modules, fields):
    """It goes, and the job is forked as ever."""
    digest = modules.add(PID)
    pid = modules.spare(digest)
    stream = modules.agent.open(MODULE, (1, digest), *fields)
    if STDIN in fields:
        modules.agent.send(END, stream)
    assert pid_of(modules.agent.result(stream)) != pid
    eventually(lambda: gone(pid))


def test_a_file_of_its_payload_is_dropped(modules):
    digest = modules.add(PID)
    pid = modules.spare(digest)
    modules.agent.send(DROP, 0, b'x' * 32)
    eventually(lambda: gone(pid))
    assert pid_of(run(modules, digest)) != pid


def test_packages_have_come_meanwhile(start, tmp_path, monkeypatch):
    """It was forked before."""
    monkeypatch.setenv('HOME', str(tmp_path))
    modules = Modules(start(), ahead=True)
    digest = modules.add(
        'import json, os, site, sys\nprint(json.dumps([os.getpid(), site.ENABLE_USER_SITE and site.getusersitepackages(), sys.path]))\nsys.exit(0)'
    )
    pid = modules.spare(digest)
    same, folder, path = pid_of(run(modules, digest))
    if not folder:
        pytest.skip('this interpreter has no folder for packages of the user')
    assert pid == same and folder not in path
    pid = modules.spare(digest)
    os.makedirs(folder)
    other, _, path = pid_of(run(modules, digest))
    assert pid != other and folder in path


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_it_is_ended_by_somebody(modules, number):
    digest = modules.add(PID)
    for _ in range(2):  # at once, and when the agent has seen it
        pid = modules.spare(digest)
        os.kill(pid, number)
        assert pid_of(run(modules, digest)) != pid
        eventually(lambda: gone(pid))  # noqa: B023
    pid = modules.spare(digest)
    os.kill(pid, number)
    eventually(lambda: not children(modules.agent))
    assert pid_of(run(modules, digest)) != pid


def test_it_ends_with_the_agent(modules):
    pid = modules.spare(modules.add(PID))
    modules.agent.close()
    assert modules.agent.wait() == 0
    eventually(lambda: gone(pid))


def test_it_ends_with_the_link_though_a_job_goes_on(modules, tmp_path):
    pid = modules.spare(modules.add(PID))
    modules.agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, b'while ! test -e %s/go; do sleep 0.01; done' % str(tmp_path).encode()))
    modules.agent.ping()
    modules.agent.close()
    try:
        eventually(lambda: gone(pid))
        assert modules.agent.process.poll() is None
    finally:
        (tmp_path / 'go').touch()
    assert modules.agent.wait() == 0


def test_no_child_may_be_had(modules):
    """Then none waits; a job has what it needs later."""
    import resource

    digest = modules.add(PID)
    pid = modules.spare(digest)
    agent = modules.agent.process.pid
    before = len(os.listdir('/proc/%d/fd' % agent))
    resource.prlimit(agent, resource.RLIMIT_NOFILE, (before, 4096))
    assert pid_of(run(modules, digest)) == pid  # it has all it needs
    eventually(lambda: gone(pid))
    modules.agent.ping()
    assert not children(modules.agent)
    assert run(modules, digest).failure == 'fork'
    resource.prlimit(agent, resource.RLIMIT_NOFILE, (1024, 4096))
    pid = modules.spare(digest)
    assert pid_of(run(modules, digest)) == pid
    eventually(modules.waiting)
    assert len(os.listdir('/proc/%d/fd' % agent)) == before


SLOW_END = """
    import fcntl, os, sys, threading
    lock = open(%(folder)r + '/lock', 'w')
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    def end(code, end=os._exit, open=open):
        open(%(folder)r + '/fifo').read()
        end(code)
    os._exit = end
    sys.stdout.write(str(os.getpid()))
    sys.stderr.write('too')
    sys.exit(3)
"""


@pytest.mark.parametrize('fields', [(), (STDIN,)], ids=['forked ahead', 'forked then'])
def test_the_answer_does_not_wait_for_the_process_to_be_gone(modules, tmp_path, fields):
    """But for its exit functions, its output and its locks."""
    os.mkfifo(str(tmp_path / 'fifo'))
    digest = modules.add(SLOW_END % {'folder': str(tmp_path)})
    modules.spare(digest)
    result = run(modules, digest, *fields)
    pid = int(result.data)
    try:
        assert (result.code, bytes(result.err)) == (3, b'too')
        assert int(result.fields[6]) and int(result.fields[7]) and int(result.fields[8])
        result = Modules(modules.agent).run('import fcntl\nlock = open(%r, "w")\nfcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n' % str(tmp_path / 'lock'))
        assert (result.code, bytes(result.err)) == (1, b'')  # it did not exit itself, that is all
        assert not gone(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid))


def test_a_copy_of_the_process_says_nothing(modules, tmp_path):
    """What forks is one module; the exit status is that of the process that was it first."""
    digest = modules.add("""
        import os, sys, time
        if os.fork() == 0:
            sys.exit(7)
        os.wait()
        sys.stdout.write('x')
        sys.exit(3)
    """)
    modules.spare(digest)
    result = run(modules, digest)
    assert (result.code, bytes(result.data)) == (3, b'x')


def test_output_that_others_hold_open_is_waited_for(modules, tmp_path):
    digest = modules.add(
        """
        import os, sys, time
        if os.fork():
            sys.exit(3)
        while not os.path.exists(%r): time.sleep(0.01)
        sys.stdout.write('late')
        sys.exit(7)
    """
        % str(tmp_path / 'go')
    )
    modules.spare(digest)
    stream = modules.agent.open(MODULE, (1, digest))
    modules.agent.ping()
    assert modules.agent.streams[stream].fields is None
    (tmp_path / 'go').touch()
    result = modules.agent.result(stream)
    assert (result.code, bytes(result.data)) == (3, b'late')


def test_a_module_that_is_killed_has_said_nothing(modules):
    digest = modules.add('import os, sys\nos.close(1); os.close(2)\nos.kill(os.getpid(), 9)')
    modules.spare(digest)
    assert run(modules, digest).code == 137


def test_more_than_a_window_is_said_in_time(modules):
    """What is held back for lack of credit comes before the answer."""
    digest = modules.add('import sys\nsys.stdout.write("x" * %d)\nsys.exit(0)' % (3 * WINDOW))
    modules.spare(digest)
    result = run(modules, digest)
    assert (result.code, len(result.data)) == (0, 3 * WINDOW)


def test_the_second_module_of_a_chain_has_one_too(modules, tmp_path):
    """It is forked while the first one runs."""
    first = modules.add(
        """
        import json, os, sys, time
        print(json.dumps(os.getpid()))
        sys.stdout.flush()
        while not os.path.exists(%r): time.sleep(0.01)
        sys.exit(0)
    """
        % str(tmp_path / 'go')
    )
    second = modules.add(PID)
    modules.spare(first)
    pid = modules.spare(second)
    streams = modules.agent.chain((MODULE, [(1, first)]), (MODULE, [(1, second)]))
    eventually(lambda: len(children(modules.agent)) == 2)
    (other,) = set(children(modules.agent)) - {pid}
    (tmp_path / 'go').touch()
    assert [pid_of(modules.agent.result(stream)) for stream in streams] == [pid, other]
