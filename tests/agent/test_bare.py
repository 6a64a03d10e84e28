"""An agent where there is no more than files, as chroot enters a folder with a system in it: no /proc, no terminals."""

import os
import shutil

import pytest

from agent_driver import END, SPAWN, Agent, one_line
from test_modules import Modules

BARE = 'mount -t tmpfs none /proc && mount -t tmpfs none /dev/pts && exec "$@"'


@pytest.fixture
def bare(python):
    if os.geteuid() != 0 or not shutil.which('unshare'):
        pytest.skip('needs root and unshare: it hides /proc')
    agent = Agent(['unshare', '--mount', '--propagation', 'private', 'sh', '-c', BARE, 'sh', python, '-c', one_line('stage1.py'), 'mitogen-mux: test']).boot()
    yield agent
    agent.close()
    agent.wait()
    agent.process.stderr.close()


def test_jobs(bare):
    assert bare.command('sh', '-c', 'echo hi; ls /proc; exit 3').data == b'hi\n'
    open_files = 'import os, sys\nfor fd in range(3, 200):\n    try:\n        os.fstat(fd)\n        sys.exit(9)\n    except OSError:\n        pass\nsys.exit(4)'
    assert Modules(bare).run(open_files).code == 4


def test_a_tool_does_without_a_terminal(bare):
    """And says so, if it cannot; one that is to have it as its stdio is not started."""
    stream = bare.open(SPAWN, (1, b'sh'), (1, b'-c'), (1, b'cat; (: </dev/tty) 2>/dev/null || echo none; exit 5'), (2, b'1'))
    bare.feed(stream, b'in')
    result = bare.result(stream)
    assert (bytes(result.data), result.code) == (b'innone\n', 5)
    stream = bare.open(SPAWN, (1, b'true'), (2, b'2'))
    bare.send(END, stream)
    assert bare.result(stream).failure == 'fork'
