"""A glance: what the agent says of a path itself is what the core's stat says of it; all else is left to that."""

import hashlib
import json
import os
import subprocess

import pytest

from agent_driver import MODULE, source_text
from agent_payloads import core, of_module, oldest_target, params

GLANCED = 1 << 20

SAID = {'exists', 'isdir', 'isreg', 'islnk', 'checksum'}


ASK = r"""
import contextlib, io, json, sys
agent = {}
exec(compile(sys.stdin.read(), 'agent', 'exec'), agent)
said = []
for text in json.loads(sys.argv[1]):
    def mounts(path, mode, text=text):
        assert path == '/proc/self/mounts'
        if text is None:
            raise IOError(2, 'none')
        return contextlib.closing(io.BytesIO(text.encode()))
    agent['open'] = mounts
    said.append(agent['all_at_hand']())
print(json.dumps(said))
"""


def at_hand(python, *mounted):
    """What the agent says of these tables of mounts."""
    source = source_text().replace(b'\0', b'\n')
    done = subprocess.run([python, '-c', ASK, json.dumps(mounted)], input=source, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def stat(agent, python):
    """Asks for a stat with or without a process; says what was answered, and whether that took one."""
    if tuple(int(part) for part in agent.hello[2].split(b'.')[:2]) < oldest_target():
        pytest.skip('too old for modules of ansible-core %d.%d' % core())
    with open('/proc/self/mounts') as mounts:
        if at_hand(python, mounts.read()) == [False]:
            pytest.skip('a file system is mounted here that may not answer')
    text, blobs = of_module('stat')
    agent.blobs(text, *blobs)

    def ask(glance, path, **more):
        args = {'path': path, 'follow': False, 'get_checksum': True, 'checksum_algorithm': 'sha1', **more}
        fields = [(1, hashlib.sha256(text).digest()), (2, params(**args)), (3, b'stat')]
        result = agent.result(agent.open(MODULE, *fields, *[(12, b'1')] * glance))
        assert (result.failure, bytes(result.err)) == ('', b'')
        answer = json.loads(result.data.decode())
        answer.get('stat', {}).pop('atime', None)  # each look may change it
        return result.code, answer, 5 in result.fields  # the time of a fork

    return ask


def write(path, size):
    path.write_bytes(b'x' * size)


def link(path, target):
    path.symlink_to(target)


PATHS = {
    'nothing': lambda _: None,
    'a file': lambda path: write(path, 5),
    'an empty file': lambda path: write(path, 0),
    'a file with a name': lambda path: write(path, 5),
    'as much as is read at once': lambda path: write(path, GLANCED),
    'a folder': lambda path: path.mkdir(),
}

OTHERS = {
    'more than is read at once': lambda path: write(path, GLANCED + 1),
    'a link': lambda path: link(path, '/etc/hostname'),
    'a link to nothing': lambda path: link(path, '/nothing'),
    'a fifo': lambda path: os.mkfifo(str(path)),
    'below a file': lambda path: write(path.parent, 1),
}


def there(tmp_path, what, make):
    path = tmp_path / ('f\xfc' if what == 'a file with a name' else 'f')
    if what == 'below a file':
        path = path / 'g'
    make(path)
    return str(path)


@pytest.mark.parametrize('what', PATHS)
def test_the_agent_says_what_the_module_says(stat, tmp_path, what):
    path = there(tmp_path, what, PATHS[what])
    for more in ({}, {'follow': True}, {'get_checksum': False}):
        code, answer, forked = stat(True, path, **more)
        _, plain, _ = stat(False, path, **more)
        assert (code, forked, answer['changed']) == (0, False, False)
        assert answer['stat'] == {key: value for key, value in plain['stat'].items() if key in SAID}


def test_a_link_is_followed(stat, tmp_path):
    write(tmp_path / 'f', 3)
    link(tmp_path / 'g', 'f')
    link(tmp_path / 'h', 'nothing')
    for name in 'gh':
        _, answer, forked = stat(True, str(tmp_path / name), follow=True)
        _, plain, _ = stat(False, str(tmp_path / name), follow=True)
        assert not forked and answer['stat'] == {key: value for key, value in plain['stat'].items() if key in SAID}


@pytest.mark.parametrize('what', OTHERS)
def test_what_is_not_for_the_agent_to_say_the_module_says(stat, tmp_path, what):
    path = there(tmp_path, what, OTHERS[what])
    assert stat(True, path) == stat(False, path)


@pytest.mark.parametrize('more', [{'path': '$HOME'}, {'path': '~'}, {'path': '.'}, {'checksum_algorithm': 'md5'}, {'follow': 'yes'}, {'get_checksum': 'no'}])
def test_params_that_no_copy_has_are_the_modules(stat, tmp_path, more):
    write(tmp_path / 'f', 3)
    path = os.path.join(str(tmp_path), '${X}f') if more.get('path') == '$HOME' else more.get('path', str(tmp_path / 'f'))
    assert stat(True, path, **{key: value for key, value in more.items() if key != 'path'})[2]


def test_a_file_that_is_longer_than_it_says_is_the_modules(stat):
    if not os.path.exists('/proc/kallsyms'):
        pytest.skip('no /proc/kallsyms')
    assert os.stat('/proc/kallsyms').st_size == 0
    assert stat(True, '/proc/kallsyms')[2]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_the_modules(stat, tmp_path):
    write(tmp_path / 'f', 3)
    (tmp_path / 'f').chmod(0)
    assert stat(True, str(tmp_path / 'f')) == stat(False, str(tmp_path / 'f'))


def test_a_guard_reads_it_and_judges_it(agent, stat, tmp_path):
    text, _ = of_module('stat')
    answers = []
    for checksum in (hashlib.sha1(b'x' * 3).hexdigest(), 'other'):
        write(tmp_path / 'f', 3)
        args = params(path=str(tmp_path / 'f'), follow=False, get_checksum=True, checksum_algorithm='sha1')
        module = [(1, hashlib.sha256(text).digest()), (2, args), (11, b'1'), (12, b'1')]
        first, second = agent.chain((MODULE, module), (MODULE, module, (0, b'stat.checksum', json.dumps(checksum).encode(), False)))
        answers.append((agent.result(first).fields[13], agent.result(second).failure))
    assert answers == [(b'1', ''), (b'1', 'skipped')]


LOCAL = '/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\nsystemd-1 /proc/sys/fs/binfmt_misc autofs rw 0 0\ntmpfs /run tmpfs rw 0 0\n'

MOUNTED = {
    'disks': (LOCAL, True),
    'what is of the kernel or of a disk, whatever its name': (
        LOCAL + 'fusectl /sys/fs/fuse/connections fusectl rw 0 0\n/dev/sdb1 /media/usb fuseblk rw 0 0\nlxcfs /proc/uptime fuse.lxcfs rw 0 0\n',
        True,
    ),
    'nfs': (LOCAL + 'server:/home /home nfs4 rw 0 0\n', False),
    'cifs': (LOCAL + '//server/share /mnt/a\\040b cifs rw 0 0\n', False),
    'sshfs': (LOCAL + 'me@there: /mnt fuse.sshfs rw 0 0\n', False),
    'autofs': (LOCAL + 'auto.home /home autofs rw 0 0\n', False),
    'a shared folder of a virtual machine': ('share /vagrant 9p rw 0 0\n' + LOCAL, False),
    'no /proc': (None, False),
}


def test_nothing_is_glanced_at_where_a_file_system_may_not_answer(python):
    said = at_hand(python, *(text for text, _ in MOUNTED.values()))
    assert dict(zip(MOUNTED, said)) == {name: all_of_them for name, (_, all_of_them) in MOUNTED.items()}
