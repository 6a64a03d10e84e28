"""A loop's second executor: what the core's loop keeps between items, twice, and the results of both as those of one."""

from __future__ import annotations

import contextlib
import copy
import typing as t

from . import compat


class Twin:
    """A second executor for a loop that is about to begin."""

    def __init__(self, executor: t.Any, task: t.Any) -> None:
        """``task`` is a copy of the executor's for the second one to write to."""
        self._executor = executor
        self.executor: t.Any = copy.copy(executor)
        self.executor._connection = None
        self._first: t.Any = compat.loop_context()
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

    def close(self) -> None:
        """As the core does when a task has ended."""
        with contextlib.suppress(Exception):
            self.executor._connection.close()

    def entered(self) -> contextlib.AbstractContextManager[t.Any]:
        """In the second one's thread: its task is the current one."""
        if self._second is None:
            return compat.current_task(self.executor._task)
        return t.cast('contextlib.AbstractContextManager[t.Any]', self._second)

    def share(self, firsts: bool) -> None:
        """The variables of one of the two, the first's if so asked, become those of the other."""
        if self._first is not None:
            mine, other = self._first._base_task_vars, self._second._base_task_vars
        else:
            mine, other = self._executor._job_vars, self.executor._job_vars
        (other if firsts else mine).update(mine if firsts else other)

    def catch_up(self, firsts: bool, names: t.Iterable[str], number: int) -> None:
        """What the other one has registered for the result of that number, the first one, if so asked, else the second, has registered too."""
        if self._first is not None:
            mine, other = (self._first, self._second) if firsts else (self._second, self._first)
            compat.register_again(mine, names, other._raw_loop_results[number])
        else:
            mine, other = (self._executor, self.executor) if firsts else (self.executor, self._executor)
            mine._job_vars.update({name: other._job_vars[name] for name in names if name in other._job_vars})

    def before_end(self, items: list[t.Any], order: Order) -> None:
        """Before the first one's loop ends: where the state knows the results, it gets all."""
        if self._executor._connection is None:
            self._executor._connection = self.executor._connection
        if self._first is None:
            return
        results = order.joined(self._first._raw_loop_results, self._second._raw_loop_results)
        if order.second_is_last():
            self._first.__dict__.update({name: value for name, value in vars(self._second).items() if name != '_task'})
        self._first._raw_loop_results, self._first._loop_items, self._first._item_index = results, items, len(items) - 1

    def after_end(self, answers: tuple[t.Any, t.Any], order: Order) -> t.Any:
        """What the loop returns: ``answers`` are those of the two."""
        mine, other = self._executor._task, self.executor._task if self._first is None else self._second._task
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
