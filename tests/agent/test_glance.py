"""A glance: what the agent says of a path itself is what the core's stat says of it; all else is left to that."""

import hashlib
import json
import os

import pytest

from agent_driver import MODULE
from agent_payloads import core, of_module, oldest_target, params

GLANCED = 1 << 20

SAID = {'exists', 'isdir', 'isreg', 'islnk', 'checksum'}


@pytest.fixture
def stat(agent, python):
    """Asks for a stat with or without a process; says what was answered, and whether that took one."""
    if tuple(int(part) for part in agent.hello[2].split(b'.')[:2]) < oldest_target():
        pytest.skip('too old for modules of ansible-core %d.%d' % core())
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
