"""Ansible's own modules, from their stock payloads, against the same payloads run the plain way."""

import hashlib
import json
import re
import subprocess

import pytest

from agent_driver import INTERPRETERS, MODULE, PATIENCE
from agent_payloads import arguments, built, core, manifest, of_module, oldest_target, params, stock

pytestmark = pytest.mark.slow

CASES = [
    ('ping', {'data': 'hello'}, True),
    ('ping', {'data': 'crash'}, False),
    ('ping', {'nonsense': 1}, False),
    ('command', {'_raw_params': 'echo "a b" c; echo', '_uses_shell': False}, True),
    ('command', {'_raw_params': 'echo $HOME; exit 3', '_uses_shell': True}, False),
    ('command', {'_raw_params': 'no-such-command'}, False),
    ('command', {'_raw_params': '/no/such/command'}, False),
    ('stat', {'path': '/etc/hosts'}, True),
    ('file', {'path': '/etc/hosts', 'state': 'file'}, True),
    ('slurp', {'src': '/etc/hostname'}, True),
    ('setup', {'gather_subset': ['!all', '!min', 'distribution', 'user', 'platform']}, True),
    ('package_facts', {'manager': ['apt']}, None),
]
VOLATILE = {'start', 'end', 'delta', 'atime'}
ROOT = re.compile(r'/tmp/[^"\s]*?\.zip|/proc/\d+/fd/\d+')


@pytest.fixture
def able(python):
    """The target's Python can run this core's modules."""
    version = next(v for v, path in INTERPRETERS.items() if path == python)
    if tuple(map(int, version.split('.')[:2])) < oldest_target():
        pytest.skip('modules of ansible-core %d.%d do not run on Python %s' % ((*core(), version)))


def settle(text):
    """A result without what differs from run to run; of a traceback, the errors. The sitecustomize.py of ansible-core 2.19 and 2.20, which
    is for a module that starts another interpreter, has a syntax error, which that one complains of: ours has none."""
    text = ROOT.sub('ROOT', text.decode())
    text = re.sub(r'Error in sitecustomize; .*\n.*SyntaxError: .*sitecustomize.py, line 1.*', '', text)
    found = re.search(r'^\{.*\}$', text, re.M)
    if not found:
        return [line for line in text.splitlines() if 'Error' in line]
    return json.loads(found.group(), object_hook=lambda d: {k: v for k, v in d.items() if k not in VOLATILE})


@pytest.mark.parametrize(('name', 'args', 'succeeds'), CASES, ids=['%s %s' % (name, '-'.join('%s' % v for v in args.values())) for name, args, _ in CASES])
def test_same_as_plain(able, agent, python, name, args, succeeds):
    """succeeds: None if it depends on what the target's Python has."""
    plain = subprocess.run([python], check=False, input=built(name, arguments(**args)), capture_output=True, timeout=PATIENCE)
    assert succeeds in (None, plain.returncode == 0), plain.stdout.decode()
    text, blobs = of_module(name, real=name == 'package_facts')
    agent.blobs(text, *blobs)
    for _ in range(2):  # the second job finds all compiled
        ours = agent.result(agent.open(MODULE, (1, hashlib.sha256(text).digest()), (2, params(**args)), (3, name.encode())))
        assert settle(ours.data) == settle(plain.stdout), ours.err.decode()
        assert settle(ours.err) == settle(plain.stderr)
        assert ours.code == plain.returncode
    assert agent.logs == []


def test_modules_share_what_they_share(able, agent):
    """Jobs of several modules keep what the first of them had preloaded, and write nothing anywhere."""
    texts = []
    for name in ('ping', 'command', 'stat'):
        text, blobs = of_module(name)
        agent.blobs(text, *blobs)
        texts.append(text)
    for text, args in zip(texts * 2, [{}, {'_raw_params': 'true'}, {'path': '/'}] * 2):
        result = agent.result(agent.open(MODULE, (1, hashlib.sha256(text).digest()), (2, params(**args))))
        assert result.code == 0, result.data.decode()
    assert agent.logs == []


RUNS = b'''
import inspect, subprocess
from ansible.module_utils.basic import AnsibleModule

named = []
start = subprocess.Popen.__init__

def spy(self, *args, **kwargs):
    named.append(kwargs['preexec_fn'] is not None)
    start(self, *args, **kwargs)

subprocess.Popen.__init__ = spy
module = AnsibleModule({})
masks = [int(module.run_command(['sh', '-c', 'umask'], umask=mask)[1], 8) for mask in (None, 0, 0o77)]
module.exit_json(named=named, masks=masks, text=inspect.getsource(AnsibleModule.run_command))
'''


def run_instead(agent, name, body):
    """What a module of that text prints as JSON, with the payload of the core's module of that name."""
    files = [(path, body if path == 'ansible/modules/%s.py' % name else stocked) for path, stocked in stock(name)]
    loader = re.search(rb'^loader\t(.*)', of_module(name)[0], re.M)
    text = manifest(files, 'ansible.modules.' + name, loader=loader and loader[1].decode(), profile='legacy' if loader else None)
    agent.blobs(text, *[body for _, body in files])
    result = agent.result(agent.open(MODULE, (1, hashlib.sha256(text).digest()), (2, params())))
    return json.loads(result.data.decode())


def test_a_command_is_started_without_a_copy_of_the_job(able, agent, python):
    """run_command gives subprocess a function to call before exec, which takes a fork, only if that has something to do."""
    mask = int(agent.command('sh', '-c', 'umask').data, 8)
    told = run_instead(agent, 'command', RUNS)
    assert told['masks'] == [mask, mask, 0o77]
    assert told['named'] == ([True] * 3 if is_python2(python) else [False, False, True])
    assert 'preexec_fn=preexec,' in told['text']  # in tracebacks it stands as Ansible wrote it


ENDS_BETWEEN = b'''
import os, selectors, subprocess
from ansible.module_utils.basic import AnsibleModule

asked, idle = [], []
poll, select = subprocess.Popen.poll, selectors.PollSelector.select


def late(self):
    if not asked and 'true' in str(self.args):
        asked.append(self)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but nobody has been told
        return None
    return poll(self)


def watched(self, timeout=None):
    if not self.get_map():
        idle.append(timeout)
        timeout = 0
    return select(self, timeout)


subprocess.Popen.poll, selectors.PollSelector.select = late, watched
code = AnsibleModule({}).run_command(['true'])[0]
AnsibleModule({}).exit_json(code=code, asked=len(asked), idle=idle)
'''


def test_the_end_of_a_command_is_not_waited_for_twice(able, agent, python):
    """Between two questions whether it has ended it may have."""
    if is_python2(python):
        pytest.skip('there is no waitid')
    told = run_instead(agent, 'command', ENDS_BETWEEN)
    assert (told['code'], told['asked'], told['idle']) == (0, 1, [])


MOUNTS = b'''
import inspect, time
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.facts.hardware import linux

TAKE = {'/a': 0.03, '/b': 0.01, '/broken': 0.01, '/c': 0.02, '/slow': 0.25, '/hung': 3}     # seconds


class Clock(object):
    def __init__(self):
        self.naps = 0

    def sleep(self, seconds):
        self.naps += 1
        time.sleep(seconds)

    def __getattr__(self, name):
        return getattr(time, name)


def get_mount_info(mount, device, uuids):
    time.sleep(TAKE[mount])
    if mount == '/broken':
        raise ValueError('broken')
    return {'size_total': len(mount)}, mount


def gather(linux):
    linux.time = clock = Clock()
    linux.timeout.GATHER_TIMEOUT = 1
    hardware = linux.LinuxHardware(module)
    hardware._find_bind_mounts = set
    hardware._lsblk_uuid = dict
    hardware._mtab_entries = lambda: [['/dev' + mount, mount, 'x', 'rw', '0', '0'] for mount in sorted(TAKE)]
    hardware.get_mount_info = get_mount_info
    return hardware.get_mount_facts(), clock.naps


module = AnsibleModule({})
text = inspect.getsource(linux)
stock = type(linux)(linux.__name__)
exec(compile(text, 'stock', 'exec'), stock.__dict__)
module.exit_json(ours=gather(linux), stock=gather(stock))
'''


def test_facts_of_mounts_are_not_slept_for(able, agent):
    """They are what they are with the core's own text, also if one is slow, broken or hung."""
    told = run_instead(agent, 'setup', MOUNTS)
    ours, stock = (sorted(map(str, told[which][0]['mounts'])) for which in ('ours', 'stock'))
    assert ours == stock and len(stock) == 6
    assert (told['ours'][1], told['stock'][1] > 2) == (0, True)


def is_python2(python):
    return next(v for v, path in INTERPRETERS.items() if path == python).startswith('2')
