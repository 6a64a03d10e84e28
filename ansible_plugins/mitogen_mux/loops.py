"""The core's loop as two executors can share it: what it keeps between items, with the versions that differ in it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import typing as t

from ansible.executor.task_executor import TaskExecutor

try:
    from ansible._internal import _task  # since 2.19
except ImportError:
    _task = None

_STATE = ('_loop_items', '_item_index', '_raw_loop_results', '_base_task_vars', '_active_task_vars', '_templar')


def _context() -> t.Any:
    """What keeps a loop's state since 2.21; None in cores where it is the executor itself."""
    if _task is None or not hasattr(_task.TaskContext, 'create'):
        return None
    return _task.TaskContext.current()


def missing() -> str:
    """What this core lacks of what two runners stand on; empty if they fit."""
    if list(inspect.signature(TaskExecutor._run_loop).parameters) != ['self', 'items'] or not callable(getattr(TaskExecutor, '_execute', None)):
        return 'TaskExecutor._run_loop'
    if _task is not None and hasattr(_task.TaskContext, 'create'):
        fields = getattr(_task.TaskContext, '__dataclass_fields__', {})
        if not all(name in fields for name in _STATE):
            return 'TaskContext'
    return ''


def variables(executor: t.Any) -> t.Any:
    """Those of the task."""
    context = _context()
    return executor._job_vars if context is None else context.task_vars


def skipped() -> t.Any:
    """The result of an item that was not run."""
    if _context() is None:
        return {'skipped': True, 'changed': False}
    with _task.UnifiedTaskResult.create_and_record() as result:
        result.set_skipped('dropped')
    return result


def brings_variables(result: t.Any) -> bool:
    """Whether the next item may see something new after this result."""
    if isinstance(result, dict):
        return 'ansible_facts' in result
    return bool(result.ansible_facts) or any(result.pending_changes.register_host_variables.values())


def close(executor: t.Any) -> None:
    """As the core does when a task has ended."""
    with contextlib.suppress(Exception):
        executor._connection.close()


class Twin:
    """A second executor for a loop that is about to begin."""

    def __init__(self, executor: t.Any, task: t.Any) -> None:
        """``task`` is a copy of the executor's for the second one to write to."""
        self.executor: t.Any = object.__new__(type(executor))
        self.executor.__dict__.update(executor.__dict__)
        self.executor._connection = None
        self._first: t.Any = _context()
        self._second: t.Any = None
        if self._first is not None:
            self._second = copy.copy(self._first)
            self._second._task = task
            self._second._base_task_vars = self._second._active_task_vars = dict(self._first._base_task_vars)
            self._second._raw_loop_results = []
            self._second._templar = None
        else:
            self.executor._task = task
            self.executor._job_vars = dict(executor._job_vars)
            if _task is not None:
                self._second = _task.TaskContext(task)

    def entered(self) -> contextlib.AbstractContextManager[t.Any]:
        """In the second one's thread: its task is the current one."""
        return contextlib.nullcontext() if self._second is None else t.cast('contextlib.AbstractContextManager[t.Any]', self._second)

    def before_end(self, executor: t.Any, items: list[t.Any], order: Order) -> None:
        """Before the first one's loop ends: where the state knows the results, it gets all."""
        if executor._connection is None:
            executor._connection = self.executor._connection
        if self._first is None:
            return
        results = order.joined(self._first._raw_loop_results, self._second._raw_loop_results)
        if order.second_is_last():
            self._first.__dict__.update({name: value for name, value in vars(self._second).items() if name != '_task'})
        self._first._raw_loop_results, self._first._loop_items, self._first._item_index = results, items, len(items) - 1

    def after_end(self, executor: t.Any, answers: tuple[t.Any, t.Any], order: Order) -> t.Any:
        """What the loop returns: ``answers`` are those of the two."""
        mine, other = executor._task, self.executor._task if self._first is None else self._second._task
        if order.second_is_last():
            mine.run_once, mine.action = other.run_once, other.action
        if self._first is not None:
            return answers[0]
        mine.no_log = mine.no_log or other.no_log
        return order.joined(*answers)


class Order(t.NamedTuple):
    """Which items the results of the two are for; None for one that does not count."""

    first: list[int | None]
    second: list[int | None]

    def joined(self, first: list[t.Any], second: list[t.Any] | None) -> list[t.Any]:
        """All results in the order of the items."""
        pairs = [*zip(self.first, first), *zip(self.second, second or ())]
        return [result for _, result in sorted(((item, result) for item, result in pairs if item is not None), key=lambda pair: pair[0])]

    def second_is_last(self) -> bool:
        """Whether the last item was the second one's."""
        return max((item for item in self.second if item is not None), default=-1) > max(item for item in self.first if item is not None)
