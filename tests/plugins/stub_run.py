"""An ansible-playbook in a folder of its own, with a session that answers in the daemon's place."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PLUGINS = HERE.parents[1] / 'ansible_plugins'


def play(folder: pathlib.Path, program: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs ``play.yml`` in the folder by one of the programs beside this file; ``environ`` is added to what all need."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('ANSIBLE_', 'MITOGEN_', 'PYTHON'))}
    return subprocess.run(
        [sys.executable, str(HERE / program), *args, 'play.yml'],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={
            **clean,
            'HOME': str(folder),
            'ANSIBLE_STRATEGY': 'mitogen_linear',
            'ANSIBLE_STRATEGY_PLUGINS': str(PLUGINS / 'strategy'),
            'ANSIBLE_CONNECTION_PLUGINS': str(PLUGINS / 'connection'),
            'ANSIBLE_HOME': str(folder / 'home'),
            'ANSIBLE_NOCOLOR': '1',
            **environ,
        },
    )
