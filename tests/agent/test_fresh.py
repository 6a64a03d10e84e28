"""An agent that has outlived what a new process would find says so, and runs nothing."""

import os
import subprocess
import textwrap

import pytest

from agent_driver import COMMAND, END, INTERPRETERS, MODULE, ROOM, Agent, one_line
from test_modules import Modules


@pytest.fixture
def moving(python, tmp_path):
    """An agent whose interpreter is a link of ours."""
    link = tmp_path / 'python'
    link.symlink_to(os.path.realpath(python))
    agent = Agent([str(link), '-c', one_line('stage1.py'), 'mitogen-mux: test']).boot()
    yield agent, link
    agent.close()
    agent.wait()
    agent.process.stderr.close()


def test_another_interpreter(moving, tmp_path):
    agent, link = moving
    modules = Modules(agent)
    digest = modules.add('import sys\nsys.exit(4)')
    assert modules.again(digest).code == 4
    other = tmp_path / 'other'
    other.write_bytes(b'upgraded')
    link.unlink()
    link.symlink_to(other)
    for fields in ((), ((8, b'1'),)):
        refused = modules.again(digest, *fields)
        assert refused.failure == 'stale' and refused.fields[3].decode() == str(link)
    assert agent.command('echo', 'hi').data == b'hi\n'
    link.unlink()
    assert modules.again(digest).failure == 'stale'
    link.symlink_to(os.path.realpath(INTERPRETERS[min(INTERPRETERS)]))


def test_jobs_go_on_in_a_stale_agent(moving, tmp_path):
    agent, link = moving
    modules = Modules(agent)
    source = 'import os, sys, time\nwhile not os.path.exists(%r): time.sleep(0.01)\nsys.exit(5)' % str(tmp_path / 'go')
    running = agent.open(1, (1, modules.add(source)), (2, b'{}'))
    agent.ping()
    link.unlink()
    assert modules.run('pass').failure == 'stale'
    (tmp_path / 'go').write_text('')
    assert agent.result(running).code == 5


@pytest.mark.parametrize('stale', [False, True])
def test_what_follows_a_job_is_refused_if_the_agent_is_stale_when_it_would_begin(moving, tmp_path, stale):
    """Not if it was when it came."""
    agent, link = moving
    modules = Modules(agent)
    digest = modules.add('import sys\nsys.exit(4)')
    cat = COMMAND, [(1, b'cat')]
    leader = agent.chain(cat)
    here, away = os.readlink(str(link)), str(tmp_path / 'away')

    def move(to):
        link.unlink()
        link.symlink_to(to)

    move(here if stale else away)
    follower = agent.chain((MODULE, [(1, digest), (2, b'{}')]), cat, deciding=leader)
    agent.send(END, follower[1])
    agent.ping()
    move(away if stale else here)
    agent.send(END, leader[0])
    assert [agent.result(stream).failure for stream in follower] == (['stale', 'skipped'] if stale else ['', ''])


CHECK = '''
import os, sys
exec(compile(open(sys.argv[1]).read(), 'agent_fresh', 'exec'))
root = sys.argv[2]
stat, listdir, real_open = os.stat, os.listdir, open
def moved(path):
    return root + path if path.startswith(('/etc/', '/home/')) else path
os.stat = lambda path: stat(moved(path))
os.listdir = lambda path: listdir(moved(path))
open = lambda path, mode: real_open(moved(path), mode)
os.environ['HOME'] = '/home/me'
def write(path, text):
    with real_open(root + path, 'w') as f:
        f.write(text)
for folder in ('/etc', '/etc/security', '/etc/security/limits.d', '/etc/pam.d', '/home', '/home/me'):
    os.mkdir(root + folder)
write('/etc/pam.d/sudo', 'session required pam_env.so readenv=1\\n')
write('/etc/security/limits.d/90.conf', 'x')
write('/etc/group', 'root:x:0:')

# Each of these is seen, and a file that only a user may write is not looked at unless PAM is.
now = Surroundings()
assert now.changed() is None
for path in ('/etc/environment', '/etc/security/limits.conf', '/etc/security/limits.d/90.conf', '/etc/security/limits.d/95.conf'):
    write(path, 'new text')
    expected = path if not path.endswith('95.conf') else '/etc/security/limits.d'
    assert now.changed() == expected, (path, now.changed())
    now = Surroundings()
    assert now.changed() is None
write('/home/me/.pam_environment', 'A=1')
assert now.changed() is None
write('/etc/pam.d/sudo', 'session required pam_env.so user_readenv=1\\n')
now = Surroundings()
write('/home/me/.pam_environment', 'A=12')
assert now.changed() == '/home/me/.pam_environment'

# Groups are compared only when their file is another one, and with those of the process.
now = Surroundings()
groups = [set(os.getgroups() + [os.getgid()])]
calls = []
os.getgrouplist = lambda name, gid: calls.append(name) or list(groups[0])
assert now.changed() is None and not calls
write('/etc/group', 'root:x:0:somebody')
assert now.changed() is None and len(calls) == 1
assert now.changed() is None and len(calls) == 1
groups[0].add(4711)
write('/etc/group', 'root:x:0:somebody,me')
assert now.changed() == '/etc/group'
print('well')
'''


def test_what_is_looked_at(python, tmp_path):
    room = os.path.join(ROOM, 'agent_fresh.py')
    done = subprocess.run([python, '-c', textwrap.dedent(CHECK), room, str(tmp_path)], check=False, capture_output=True)
    assert done.stdout.strip() == b'well', done.stderr.decode()


def test_a_local_agent_does_not_look(python, tmp_path):
    """It is as the process is that started it, and lives no longer."""
    link = tmp_path / 'python'
    link.symlink_to(os.path.realpath(python))
    agent = Agent([str(link), '-c', one_line('stage1.py'), 'name', '/socket', 'token']).boot()
    link.unlink()
    assert Modules(agent).run('import sys\nsys.exit(6)').code == 6
    agent.close()
    agent.wait()
    agent.process.stderr.close()


ACTING = '''
import os, sys
for room in sys.argv[1:]:
    exec(compile(open(room).read(), room, 'exec'))

files, asked = [1], []
accounts = {65534: 4711}

def look(path):
    return path, files[0]

class pwd:
    @staticmethod
    def getpwuid(uid):
        asked.append(uid)
        return pwd_entry(uid)

class pwd_entry:
    def __init__(self, uid):
        self.pw_name, self.pw_gid = 'somebody', accounts[uid]

os.initgroups = lambda name, gid: os.setgroups([gid, 5])
mine = os.getuid(), os.geteuid(), os.getegid(), os.getgroups()

def act(uid):
    with Acting(uid):
        there = os.geteuid(), os.getegid(), sorted(os.getgroups())
    assert (os.getuid(), os.geteuid(), os.getegid(), os.getgroups()) == mine
    return there

assert act('65534') == act('65534') == (65534, 4711, [5, 4711]) and asked == [65534]
accounts[1] = 4712
assert act('1') == (1, 4712, [5, 4712]) and act('65534') == (65534, 4711, [5, 4711]) and asked == [65534, 1]

# Another account, or another group of the same, once the files say so.
files[0], accounts[65534] = 2, 4713
assert act('65534') == act('65534') == (65534, 4713, [5, 4713]) and asked == [65534, 1, 65534]
assert act('') == mine[1:3] + (sorted(mine[3]),) and len(asked) == 3

# One that this machine has not.
accounts[7] = 4714
becoming = os.seteuid

def refuse(uid):
    if uid:
        raise OSError(22, 'not here')
    becoming(uid)

os.seteuid = refuse
try:
    act('7')
    raise AssertionError('it is there')
except OSError:
    pass
assert (os.getuid(), os.geteuid(), os.getegid(), os.getgroups()) == mine
print('well')
'''


@pytest.mark.skipif(os.geteuid() != 0, reason='only root acts as others')
def test_an_account_is_asked_for_once(python):
    rooms = [os.path.join(ROOM, name) for name in ('agent_frames.py', 'agent_fresh.py', 'agent_streams.py')]
    done = subprocess.run([python, '-c', ACTING, *rooms], check=False, capture_output=True)
    assert done.stdout.strip() == b'well', done.stderr.decode()
