"""A host-task in a thread: what the thread gets of its own of whatever a forked worker would change in its memory, and how it is run."""

from __future__ import annotations

import contextvars
import copy
import traceback
import typing as t

from ansible.utils.display import Display

from . import baton, compat, order

HostTask = dict[str, t.Any]
"""What the core's WorkerProcess would be made from, by the names of its parameters."""

_display = Display()


def own(job: HostTask) -> HostTask:
    """The same host-task with copies of its own."""
    return {**job, 'task': copy_task(job['task']), 'task_vars': dict(job['task_vars']), 'loader': copy_loader(job['loader'])}


def run(job: HostTask) -> int:
    """In the thread, with the baton. Returns the exit code that a forked worker would have."""
    try:
        with compat.display_through(job['final_q']):
            context = contextvars.Context()  # empty: what other threads' have are objects, which the two would share
            context.run(compat.run_host_task, job)
        return 0
    except (baton.Cancelled, order.Dropped):
        return 1
    except BaseException:
        _display.error(traceback.format_exc(), wrap_text=False)
        return 1
    finally:
        job['loader'].cleanup_all_tmp_files()


def copy_task(task: t.Any) -> t.Any:
    """For a host-task, or a runner of its loop, that writes to its own."""
    new = task.copy(exclude_parent=True, exclude_tasks=True)
    new._parent = copy.copy(task._parent)  # the task's post_validate writes to it, too, though no further up
    if new.loop_control is not None:
        new.loop_control = copy.copy(new.loop_control)
    return new


def copy_loader(loader: t.Any) -> t.Any:
    """With temporary files of its own."""
    new = copy.copy(loader)
    new._FILE_CACHE = dict(loader._FILE_CACHE)
    new._tempfiles = set()
    return new
