"""The end of a run is short, and what plugins have left open ends as it does in plain Ansible."""

from __future__ import annotations

import pathlib
import shutil
import sys
import textwrap
import typing as t

import pytest

import stub_run

pytestmark = pytest.mark.slow


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - {command: "echo {{ item }}", loop: [1, 2]}
    - {ping: {data: "{{ 'x' | upper }}"}, become: true}
"""

CALLBACK = """
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME, CALLBACK_NEEDS_ENABLED = 2.0, 'notification', 'leaves', True

    def v2_playbook_on_start(self, playbook):
        class Holder: pass
        self.cycle = Holder()
        self.cycle.cycle = self.cycle
        self.leave(self.cycle)
"""

WATCH = """
import gc, sys

def watch(phase, info, left=sys.is_finalizing, before=gc.get_freeze_count(), frozen=gc.get_freeze_count, say=open({path!r}, 'wb', 0).write):
    if left() and phase == 'stop':
        say(b'all' if frozen() == before else b'spared')
        gc.callbacks.remove(watch)

gc.callbacks.append(watch)
"""
"""What the first collection at the end had to do. Until then it keeps itself alive, and nothing of Ansible."""

LEFT = {
    'a text file': 'cycle.file = open(self.path, "w"); cycle.file.write("data")',
    'a binary file': 'cycle.file = open(self.path, "wb"); cycle.file.write(b"data")',
    'a file that is read and written': 'cycle.file = open(self.path, "w+b"); cycle.file.write(b"data")',
    'a file that another atexit writes': """
        import atexit
        cycle.file = open(self.path, "w")
        atexit.register(cycle.file.write, "data")
    """,
    'a compressed file': 'import gzip; cycle.file = gzip.GzipFile(self.path, "wb", mtime=0); cycle.file.write(b"data")',
    'a temporary file': 'import tempfile, os; cycle.file = tempfile.NamedTemporaryFile(dir=os.path.dirname(self.path), prefix="left-")',
    'an archive': 'import zipfile; cycle.file = zipfile.ZipFile(self.path, "w"); cycle.file.writestr(zipfile.ZipInfo("a"), "data")',
    'a finalizer': """
        class Last:
            def __del__(self, path=self.path, open=open):
                with open(path, 'w') as file:
                    file.write('finalized')
        cycle.last = Last()
    """,
    'an inherited finalizer': """
        import subprocess
        class Last(subprocess.Popen):
            def __del__(self, path=self.path, open=open):
                with open(path, 'w') as file:
                    file.write('finalized')
        cycle.last = Last(['true'])
        cycle.last.wait()
    """,
    'a generator in finally': """
        def last(path=self.path, open=open):
            try:
                yield
            finally:
                with open(path, 'w') as file:
                    file.write('closed')
        cycle.last = last()
        next(cycle.last)
    """,
    'a generator in with': """
        import contextlib
        def said(open=open, path=self.path):
            with open(path, 'w') as file:
                file.write('left')
        def last():
            with contextlib.ExitStack() as stack:
                stack.callback(said)
                yield
        cycle.last = last()
        next(cycle.last)
    """,
    'a coroutine that was never awaited': """
        async def last(): pass
        cycle.last = last()
    """,
    'what cannot be asked': """
        import io
        cycle.file = open(self.path, "w")
        cycle.file.write("data")
        cycle.buffer = cycle.file.detach()
    """,
}

OVER = {
    'nothing': 'pass',
    'a file that was closed': 'cycle.file = open(self.path, "w"); cycle.file.write("data"); cycle.file.close()',
    'a file that is read': 'cycle.file = open(__file__)',
    'a file in memory': 'import io; cycle.file = io.StringIO(); cycle.file.write("data")',
    'a generator that has not begun': 'cycle.last = (n for n in [1])',
    'a generator that has ended': 'cycle.last = (n for n in [1]); list(cycle.last)',
    'a socket and a process': 'import socket, subprocess; cycle.last = socket.socketpair(), subprocess.Popen(["true"])',
}


class Ended(t.NamedTuple):
    output: str
    left: dict[str, bytes]
    """The files that are there in the end, by their name."""
    collection: str


@pytest.fixture
def run(tmp_path: pathlib.Path) -> t.Callable[..., Ended]:
    def ended(strategy: str, leave: str, **more: str) -> Ended:
        folder = tmp_path / 'run'
        shutil.rmtree(folder, ignore_errors=True)
        for name in ('left', 'callbacks', 'site'):
            (folder / name).mkdir(parents=True)
        (folder / 'play.yml').write_text(PLAY)
        body = textwrap.indent(textwrap.dedent(leave).strip(), ' ' * 8)
        (folder / 'callbacks' / 'leaves.py').write_text(f'{CALLBACK}\n    path = {str(folder / "left" / "file")!r}\n\n    def leave(self, cycle):\n{body}\n')
        (folder / 'site' / 'sitecustomize.py').write_text(WATCH.format(path=str(folder / 'collection')))
        done = stub_run.play(
            folder,
            'stub_daemon.py',
            *('-i', 'h0,', '-e', f'ansible_python_interpreter={sys.executable}'),
            PYTHONPATH=str(folder / 'site'),
            ANSIBLE_STRATEGY=strategy,
            ANSIBLE_CALLBACK_PLUGINS=str(folder / 'callbacks'),
            ANSIBLE_CALLBACKS_ENABLED='leaves',
            ANSIBLE_DEPRECATION_WARNINGS='0',
            ANSIBLE_TRANSPORT='mitogen_ssh',
            ANSIBLE_LOG_PATH=str(folder / 'log'),
            **more,
        )
        assert done.returncode == 0, done.stdout
        left = {path.name: path.read_bytes() for path in (folder / 'left').iterdir()}
        return Ended(done.stdout, left, (folder / 'collection').read_text())

    return ended


@pytest.mark.parametrize('what', LEFT)
def test_what_is_left_open_ends_as_in_plain_ansible(run: t.Callable[..., Ended], what: str) -> None:
    plain, ours = run('linear', LEFT[what]), run('mitogen_linear', LEFT[what])
    assert ours == plain, (ours, plain)
    assert ours.collection == 'all'


@pytest.mark.parametrize('what', OVER)
def test_the_end_is_short_where_nothing_is_left(run: t.Callable[..., Ended], what: str) -> None:
    plain, ours = run('linear', OVER[what]), run('mitogen_linear', OVER[what])
    assert (ours.output, ours.left) == (plain.output, plain.left)
    assert (plain.collection, ours.collection) == ('all', 'spared')


def test_warnings_that_were_asked_for_are_given(run: t.Callable[..., Ended]) -> None:
    ours = run('mitogen_linear', 'cycle.file = open(__file__)', PYTHONWARNINGS='default::ResourceWarning')
    assert 'unclosed file' in ours.output and ours.collection == 'all', ours.output
