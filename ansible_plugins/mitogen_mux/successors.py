"""Names that users of Mitogen for Ansible know and that do nothing here: each is warned of once a run, with what does the same now.

Names that do something, or that say what is so anyway (mitogen_task_isolation), are not among them."""

from __future__ import annotations

import typing as t

from . import display

_NOTHING = 'nothing has to be set in its place'

VARIABLES = {
    'mitogen_mask_remote_name': _NOTHING,
    'mitogen_ssh_compression': 'use Compression in ssh_config, or ansible_ssh_args',
    'mitogen_ssh_debug_level': 'use MITOGEN_LOG_LEVEL',
    'mitogen_ssh_keepalive_interval': 'use ServerAliveInterval in ssh_config, or ansible_ssh_args',
    'mitogen_ssh_keepalive_count': 'use ServerAliveCountMax in ssh_config, or ansible_ssh_args',
}

ENVIRONMENT = {
    'MITOGEN_CPU_COUNT': _NOTHING,
    'MITOGEN_PROFILING': 'mitogen-mux status --stacks shows what the daemon does',
    'MITOGEN_PROFILE_FMT': 'mitogen-mux status --stacks shows what the daemon does',
    'MITOGEN_SAVE_PIDS': 'mitogen-mux status shows all contexts',
}


def warn(successors: dict[str, str], given: t.Container[str]) -> None:
    """For each host-task of its variables, and of the environment when a run begins. The core says each warning once."""
    for name, successor in successors.items():
        if name in given:
            display.warning(f'{name} has no effect with mitogen-mux: {successor}')
