"""The module that writes trees, alone: what it leaves where the system takes or gives less than was asked for."""

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / 'ansible_plugins' / 'modules' / 'mitogen_tree.py'

RUNNER = """
import json, os, runpy, sys
from ansible.module_utils import basic
module, args, most = sys.argv[1:]
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = args.encode(), 'legacy'
write, os.write = os.write, lambda fd, data: write(fd, bytes(data[:int(most)]))
runpy.run_path(module, run_name='__main__')
"""


def part(content, digest=None):
    return struct.pack('>Q', len(content)) + content + (digest or hashlib.sha256(content).digest())


@pytest.fixture
def put(tmp_path):
    dest, temporary = tmp_path / 'dest', tmp_path / 'temporary'
    dest.mkdir()
    temporary.mkdir()

    def run(files, bundle, most=1 << 20):
        entries = [{'kind': 'file', 'path': path, 'size': size} for path, size in files]
        args = {'ANSIBLE_MODULE_ARGS': {'dest': str(dest), '_ansible_tmpdir': str(temporary), '_ansible_remote_tmp': str(temporary)}}
        argv = [sys.executable, '-c', RUNNER, MODULE, json.dumps(args), str(most)]
        done = subprocess.run(argv, input=part(json.dumps(entries).encode()) + bundle, capture_output=True, check=True, cwd=tmp_path)
        assert list(temporary.iterdir()) == []
        return json.loads(done.stdout)['answers'], {str(p.relative_to(dest)): p.read_bytes() for p in dest.rglob('*') if p.is_file()}

    return run


def test_writes_that_take_less(put):
    contents = {'a/large': bytes(range(256)) * 1200, 'a/small': b'small', 'empty': b''}
    answers, there = put([(path, len(content)) for path, content in contents.items()], b''.join(map(part, contents.values())), most=1000)
    assert answers == ['changed'] * 3
    assert there == contents


def test_what_does_not_come_as_it_was_sent(put):
    answers, there = put([('good', 4), ('bad', 3), ('after', 5)], part(b'good') + part(b'bad', bytes(32)) + part(b'after'))
    assert answers == ['changed', 'leave']
    assert there == {'good': b'good'}


def test_an_end_too_early(put):
    answers, there = put([('good', 4), ('cut', 300000)], part(b'good') + part(bytes(300000))[:-40])
    assert answers == ['changed', 'leave']
    assert there == {'good': b'good'}
