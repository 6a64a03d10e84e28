"""Loops: while the target is at work on one item, the next is made ready.

Two runners, each with the core's own loop and with copies of what it writes to, take the items by turns. An item's turn comes when the one
before it has ended. Until then nobody notices what its runner does: it stops before its first request and before whatever tells it of
what others do (see order.py), and what it says waits in its outbox. If what it has seen does not hold any more, it begins anew."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
import typing as t

from ansible.executor.task_executor import TaskExecutor

from . import baton, compat, following, host_task, isolation, loops, order, sameness
from .order import Dropped
from .outbox import Outbox
from .waits import replaced

if t.TYPE_CHECKING:
    from .worker import Workers


@contextlib.contextmanager
def installed(workers: Workers) -> t.Iterator[None]:
    """Loops are run that way as long as this lasts."""
    original = TaskExecutor._run_loop

    @functools.wraps(original)
    def run_loop(self: t.Any, items: list[t.Any]) -> t.Any:
        if len(items) < 2 or baton.holder() is None or not _independent(self):
            return original(self, items)
        return _Loop(workers, original, self, items).run()

    with replaced(TaskExecutor, '_run_loop', run_loop):
        yield


def _independent(executor: t.Any) -> bool:
    """Whether no item of the loop depends on the one before it, as far as the task itself can tell."""
    task = executor._task
    control = task.loop_control
    if task.until or task.retries is not None or task.async_val or task.delegate_to or task.timeout:
        return False
    if control.pause or control.extended or control.index_var or getattr(control, 'break_when', None):
        return False
    if isolation.plugin(task.action, task.collections) not in isolation.QUIET:
        return False
    names = sameness.registered(task)
    if not names:
        return True
    said = sameness.naming(names)
    own = {key: value for key, value in task.dump_attrs().items() if key not in ('register', 'name', 'changed_when', 'failed_when', 'loop')}
    return not sameness.says(said, own, '') and not sameness.says(said, compat.loop_variables(executor), '{')


def _may_follow(executor: t.Any) -> bool:
    """Whether nothing that an item comes to can end the loop, or be seen by the next one, as far as the task itself can tell."""
    task = executor._task
    return following.allowed() and not task.loop_control.label and not sameness.judges(task)


class _Loop:
    """A loop, its items, and who runs them. Whoever has the baton may touch it."""

    def __init__(self, workers: Workers, core: t.Callable[..., t.Any], executor: t.Any, items: list[t.Any]) -> None:
        self.core = core
        """The core's own loop."""
        self._workers = workers
        self._items = items
        self._next = 0
        self.ended = 0
        """How many items have."""
        self.over = False
        """Whether no item begins any more: one has ended the loop."""
        self.error: BaseException | None = None
        self.follows = _may_follow(executor)
        """Whether an item may begin on the target before the controller knows what the one before it has come to."""
        task = executor._task
        self.registered = sameness.registered(task)
        """The names of what an item leaves for those after it."""
        self.renders = isolation.plugin(task.action, task.collections) == 'template'
        self.first = _Runner(self, executor)
        self.second: _Second | None = None
        self._twin = loops.Twin(executor, host_task.copy_task(executor._task))

    def run(self) -> t.Any:
        """As the core's loop."""
        runner = self.first
        try:
            with runner.installed(), baton.taking_turns(runner):
                answer = self.core(runner.executor, _Items(self, self.take(runner)))
        except baton.Cancelled:
            raise
        except BaseException:
            self.end()
            self._join()
            raise
        if self.second is not None:
            answer = self._twin.after_end((answer, self.second.answer), loops.Order(runner.ran, self.second.ran))
        return answer

    def __len__(self) -> int:
        return len(self._items)

    def take(self, runner: _Runner) -> t.Iterator[t.Any]:
        """The items for a runner, one after the other; each has ended when it comes for the next."""
        while self._next < len(self._items) and not self.over:
            item = self._next
            self._next += 1
            runner.begin(item)
            yield self._items[item]
            if runner.dropped:
                self._next = item
            else:
                self.ended = item + 1
                if runner.brought:
                    self._share(runner)
            runner.finish()
            self._hand_over(runner)
        if runner is self.first:
            self._join()
            if self.error is not None:
                raise self.error
            if self.second is not None:
                self._twin.before_end(self._items, loops.Order(runner.ran, self.second.ran))

    def begin_second(self) -> None:
        """The target is at work for the first time."""
        if self.second is None and self._next < len(self._items) and not self.over:
            self.second = _Second(self, self._twin)
            self._workers.begin_beside(self.second)

    def end(self) -> None:
        """In the turn of the item that does: the next one is dropped."""
        self.over = True
        for runner in (self.first, self.second):
            if runner is not None:
                runner.wake.set()

    def _share(self, runner: _Runner) -> None:
        """What an item has brought, the next one has to see: if that has begun, then in vain."""
        self._twin.share(runner is self.first)
        if (other := self.other(runner)) is not None:
            other.outdated = True

    def catch_up(self, runner: _Runner) -> None:
        """The runner's item, which has its turn, sees what the one before it has left, whoever ran that."""
        other = self.other(runner)
        if self.registered and other is not None and runner.item - 1 in other.ran:
            self._twin.catch_up(runner is self.first, self.registered, other.ran.index(runner.item - 1))

    def other(self, runner: _Runner) -> _Runner | None:
        """The one with whom it takes turns."""
        return self.second if runner is self.first else self.first

    def _hand_over(self, runner: _Runner) -> None:
        """Lets the other one act, if its turn has come, before this one begins anything."""
        other = self.other(runner)
        if other is not None and other.item == self.ended:
            other.wake.set()
            with baton.waiting(other.acted.set):
                other.acted.wait()

    def _join(self) -> None:
        self.first.acted.set()
        if self.second is not None:
            with baton.waiting(self.second.done.set):
                self.second.done.wait()


class _Items:
    """What a runner's loop goes through."""

    def __init__(self, loop: _Loop, items: t.Iterator[t.Any]) -> None:
        self._loop, self._items = loop, items

    def __len__(self) -> int:
        return len(self._loop)

    def __iter__(self) -> t.Iterator[t.Any]:
        return self._items


class _Runner:
    """One of the two; the turn of its thread (baton.Turn)."""

    def __init__(self, loop: _Loop, executor: t.Any) -> None:
        self.executor = executor
        self.item = -1
        self.dropped = False
        self.ran: list[int | None] = []
        """Which item each of its results is for; None for one that was dropped."""
        self.files = order.Files()
        self.outbox = Outbox(executor._final_q)
        self.wake = threading.Event()
        self.acted = threading.Event()
        """Set while its item waits for something else than its turn, or it has none."""
        self.brought = False
        """Whether its item has brought variables."""
        self.outdated = False
        """Whether its item may have been made of less than there is now."""
        self.lead = following.Lead(judged=compat.MASKS_SECRETS)  # only a good result says that it tells of no secrets
        self.left = False
        """Whether its item's first request has left before its turn."""
        self._loop = loop
        self._may = False

    @contextlib.contextmanager
    def installed(self) -> t.Iterator[None]:
        """Its executor is watched, and all it says goes through the outbox."""
        executor = self.executor
        queue = executor._final_q
        executor._final_q, executor._execute = self.outbox, self._execute
        try:
            with compat.display_through(self.outbox):
                yield
        finally:
            executor._final_q = queue
            del executor._execute

    def begin(self, item: int) -> None:
        """Takes an item."""
        self.item, self._may, self.dropped, self.brought, self.outdated, self.left = item, False, False, False, False, False
        self.lead.forget()
        self.files.forget()
        self.acted.clear()
        self.wake.clear()
        self.outbox.hold()
        if item == self._loop.ended:
            self._come()

    def finish(self) -> None:
        """Has no item any more."""
        self.ran.append(None if self.dropped else self.item)
        self.item = -1
        self.outbox.mute()
        self.acted.set()

    def has_come(self) -> bool:
        return self._may or self.dropped or self.item < 0

    def leaving(self) -> None:
        self.acted.set()
        self._loop.begin_second()

    def looking(self) -> None:
        """What does not name a variable may see it all the same, and what the item before it registers it has not: it will begin anew."""
        self.outdated = self.outdated or bool(self._loop.registered)

    def supposes(self, holds: t.Callable[[], bool]) -> bool:
        """Its connection has the answers that another item got."""
        return False

    def asks(self, request: t.Any, decides: t.Sequence[int], writes: str) -> None:
        """What is to follow waits on the target."""
        if not self._loop.follows:
            return
        other = self._loop.other(self)
        if not self.has_come() and other is not None and other.item == self.item - 1 and not (self.files.may_be(other.lead.writes) or self._names_it()):
            self.left = other.lead.guides(request)
        self.lead.asks(request, decides, writes)

    def refused(self) -> None:
        """It can be made anew."""
        self.left = False
        self._look()

    def wait(self) -> None:
        """Raises Dropped if what the item has done so far was in vain."""
        loop = self._loop
        while loop.ended != self.item and not loop.over:
            with baton.waiting(self.wake.set):
                self.wake.wait()
            self.wake.clear()
        self._look()
        self._come()

    def _come(self) -> None:
        """Its turn has."""
        self._may = True
        self.outbox.release()

    def _look(self) -> None:
        """Raises Dropped if what the item was made of has changed. Of what has left nothing can be taken back."""
        if self._loop.over or self.outdated or not (self.left or (self.files.unchanged() and not self._names_it())):
            self.dropped = True
            raise Dropped

    def _names_it(self) -> bool:
        """Whether a file that it renders, or one that this includes, may see what the item before it registers: it does not matter only where it has been
        rendered and does not say so."""
        loop = self._loop
        if not loop.renders or not loop.registered:
            return False
        return not self.files.may_be('') or self.files.say(sameness.naming(loop.registered, *sameness.COMPUTED))

    def _execute(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if self.has_come():
            self._loop.catch_up(self)
        try:
            try:
                result = type(self.executor)._execute(self.executor, *args, **kwargs)
            except Exception:
                baton.turn()
                raise
            baton.turn()
        except Dropped:
            self.outbox.mute()
            return compat.skipped_item()
        self.brought = compat.brings_variables(result)
        return result


class _Second(_Runner):
    """The one with a thread and an executor of its own."""

    def __init__(self, loop: _Loop, twin: loops.Twin) -> None:
        super().__init__(loop, twin.executor)
        self.executor._loader = host_task.copy_loader(self.executor._loader)
        self.done = threading.Event()
        self.answer: t.Any = None
        self._twin = twin
        self.outbox.mute()  # the first one has said what there is to say of the loop itself

    def work(self) -> None:
        """In the thread."""
        try:
            contextvars.Context().run(self._work)  # empty: as for any host-task, what the first one's has are objects, which the two would share
        except baton.Cancelled:
            pass
        except BaseException as error:
            if self.item >= 0:
                self._loop.error = error
                self._loop.end()
        finally:
            self.executor._loader.cleanup_all_tmp_files()
            self.item = -1
            self.acted.set()
            self.done.set()

    def _work(self) -> None:
        with self.installed(), self._twin.entered(), baton.taking_turns(self):
            self.answer = self._loop.core(self.executor, _Items(self._loop, self._loop.take(self)))
        self._twin.close()
