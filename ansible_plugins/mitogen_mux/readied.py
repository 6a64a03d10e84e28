"""Tasks: while a host's target is at work on one, its next is made ready.

What the strategy will probably queue next for the host is run up to its first request, by the core's own code, in a thread of its own and
with variables of its own. Until its turn comes, nobody notices (see order.py). Its turn comes when the strategy queues it: if the task and
its variables are what they were, it goes on; if not, it is dropped, and the task begins as any other."""

from __future__ import annotations

import threading
import time
import typing as t

from ansible.plugins.loader import vars_loader

from . import baton, compat, display, following, host_task, isolation, order, sameness
from .host_task import HostTask
from .order import Dropped
from .outbox import Outbox

OLDEST = 1.0
"""Seconds after which a ``template`` that was made ready is dropped: it tells its file when it was rendered (template_run_date)."""

MOST = 32
"""Hosts that are kept in mind for it, with their variables."""

_VARS_PLUGIN = 'ansible.builtin.host_group_vars'
"""The one that may be asked once more without anybody noticing."""


class Workers(t.Protocol):
    """What begins threads."""

    baton: baton.Baton

    def begin(self, job: Readied) -> None:
        """Returns when the thread waits for the first time."""

    def awake(self) -> bool:
        """Whether the main loop has something to do."""

    def hosts(self) -> int:
        """How many hosts the play still has."""


class Shelf:
    """What was made ready, one task for each host at most. In the main thread, with the baton."""

    def __init__(self, strategy: t.Any, iterator: t.Any, workers: Workers) -> None:
        self.open = False
        """Whether anything is made ready: only where order.py keeps it from being noticed."""
        self._strategy, self._iterator, self._workers = strategy, iterator, workers
        self._begun: dict[str, HostTask] = {}
        """The last host-task of each host after which nothing was made ready yet."""
        self._there: dict[str, Readied] = {}
        self._leads: dict[str, following.Lead | None] = {}
        """What the latest host-task of a host asks, where the next may follow it."""
        self._in_vain: set[str] = set()
        """Tasks after which the next one's variables were not what they had been."""

    def begun(self, job: HostTask) -> None:
        """A host-task has been queued: the one after it may be made ready."""
        name = job['host'].name
        self._leads.pop(name, None)
        if self.open and (name in self._begun or len(self._begun) < MOST):
            self._begun[name] = job

    def fill(self) -> None:
        """Until the main loop has something to do."""
        while self._begun and not self._workers.awake():
            self._ready_after(next(iter(self._begun)))

    def _ready_after(self, host: str) -> None:
        if (readied := self._next(self._begun.pop(host))) is not None:
            self._drop(host)
            self._there[host] = readied
            self._workers.begin(readied)

    def claim(self, job: HostTask, ended: t.Callable[[int], None]) -> bool:
        """Whether the host-task was made ready. It goes on then, until it waits again; ``ended`` is called in its thread with its exit code."""
        readied = self._there.get(job['host'].name)
        if readied is None:
            return False
        if not readied.fits(job):
            if readied.in_vain:
                self._in_vain.add(readied.before._uuid)
            if readied.left and readied.is_for(job) and readied.failures == self._failures(job['host'].name):
                display.warning(
                    f'mitogen-mux: task {job["task"]} had been sent to {job["host"].name} when what it is made of changed, and is run once more; with '
                    'MITOGEN_AHEAD=0 nothing is sent ahead'
                )
            self._drop(job['host'].name)
            return False
        del self._there[job['host'].name]
        self._leads[job['host'].name] = readied.lead
        readied.go_on(ended)
        with self._workers.baton.lent():
            readied.acted.wait()
        if readied.ended and job['host'].name in self._begun:
            self._ready_after(job['host'].name)  # its answer was there: the target need not wait until somebody has looked at that
        return True

    def turn(self, job: HostTask) -> baton.Turn | None:
        """For the thread of a host-task that was not made ready."""
        lead = self._leads[job['host'].name] = self._lead(job['task'])
        return following.InTurn(lead) if lead is not None else None

    def _lead(self, task: t.Any) -> following.Lead | None:
        """For a host-task, if the next one of its host begins whenever its last module has succeeded."""
        strategy = self._strategy
        if not self.open or not following.allowed() or self._workers.hosts() != 1 or strategy._step or getattr(strategy, 'debugger_active', True):
            return None
        if task.loop is not None or task.loop_with or task.debugger or task.notify or _is_true(task.failed_when) or sameness.judges(task):
            return None  # a handler that is not there ends the run
        return following.Lead(judged=True)

    def drop(self) -> None:
        """All of it."""
        self._begun.clear()
        for host in list(self._there):
            self._drop(host)

    def forget(self) -> None:
        """In a process that was forked, where the threads are not."""
        self._begun.clear()
        self._there.clear()

    def _drop(self, host: str) -> None:
        if (readied := self._there.pop(host, None)) is not None:
            readied.drop()

    def _next(self, before: HostTask) -> Readied | None:
        host = before['host']
        if before['task']._uuid in self._in_vain or set(getattr(vars_loader, '_plugin_instance_cache', None) or ()) != {_VARS_PLUGIN}:
            return None
        _, task = self._iterator.get_next_task_for_host(host, peek=True)
        if task is None or not _independent(task):
            return None
        readied = Readied({**before, 'task': task}, before['task'], self._variables, self._leads.get(host.name), self._lead(task))
        readied.failures = self._failures(host.name)
        return readied

    def _failures(self, host: str) -> int:
        """How many tasks have failed there, whatever has become of it."""
        stats = self._strategy._tqm._stats
        return sum(count.get(host, 0) for count in (stats.failures, stats.dark, stats.rescued, stats.ignored))

    def _variables(self, job: HostTask, before: t.Any) -> dict[str, t.Any]:
        """What the strategy will give the host-task, if nothing changes them: those of the task before, if the two have all in common that
        decides about variables, or new ones."""
        strategy, play, host, task = self._strategy, self._iterator._play, job['host'], job['task']
        alike = task._parent is before._parent and task._role is before._role and task.environment == before.environment
        if alike and not (task.vars or before.vars or before.delegate_to):
            return dict(job['task_vars'])
        hosts, all_hosts = strategy._hosts_cache, strategy._hosts_cache_all
        variables: dict[str, t.Any] = strategy._variable_manager.get_vars(play=play, host=host, task=task, _hosts=hosts, _hosts_all=all_hosts)
        strategy.add_tqm_variables(variables, play=play)
        return variables


def _independent(task: t.Any) -> bool:
    """Whether the task itself stands in no way of being made ready."""
    return not (
        task.loop is not None
        or task.loop_with
        or task.delegate_to
        or task.async_val
        or task.run_once
        or '{' in (task.name or '')  # the strategy evaluates it first, and what there is to say of it
        or isolation.plugin(task.action, task.collections) not in isolation.QUIET
    )


def _is_true(condition: t.Any) -> bool:
    return True in condition if isinstance(condition, list) else bool(condition)


class Readied:
    """A host-task that was made ready; the turn of its thread (baton.Turn)."""

    def __init__(
        self,
        job: HostTask,
        before: t.Any,
        variables: t.Callable[[HostTask, t.Any], dict[str, t.Any]],
        leader: following.Lead | None,
        lead: following.Lead | None,
    ) -> None:
        self.before = before
        """The task that the host is at work on meanwhile."""
        self.acted = threading.Event()
        """Set, once it goes on, when it waits for something else than its turn, or has ended."""
        self.left = False
        """Whether it waits on the target."""
        self.ended = False
        """Whether its thread has nothing to do any more."""
        self.failures = 0
        """How many tasks of the host had failed when it was made ready."""
        self.in_vain = False
        """Whether its variables were not what they should have been."""
        self.lead = lead
        """What it asks, where others may follow it."""
        self._leader = leader
        """What the task before asks, where this one may follow it."""
        self._job = job
        self._task = job['task']
        self._attributes = dict(job['task'].__dict__)
        self._get_variables = variables
        self._variables: dict[str, t.Any] | None = None
        self._made = time.monotonic()
        self._renders = isolation.plugin(self._task.action, self._task.collections) == 'template'
        self.files = order.Files()
        self._outbox = Outbox(job['final_q'])
        self._wake = threading.Event()
        self._looks = False
        """Whether it waits for its turn to look at what is not among its variables, by code that may look at all of them, too."""
        self._supposed: list[t.Callable[[], bool]] = []
        self._dropped = False
        self._ended: t.Callable[[int], None] | None = None

    def work(self) -> None:
        """In the thread."""
        exitcode = 1
        try:
            with baton.taking_turns(self):
                if not self._prepare():
                    return
                exitcode = host_task.run(self._job)
                baton.turn()  # it may have asked nobody anything
        except (baton.Cancelled, Dropped):
            pass
        finally:
            self.ended = True
            self.acted.set()
            if self._ended is not None:
                self._ended(exitcode)

    def _prepare(self) -> bool:
        """Makes the variables. What there is to say of them, the strategy will say."""
        self._outbox.mute()
        job = self._job
        try:
            with compat.display_through(self._outbox):
                variables = self._get_variables(job, self.before)
                self._job = job = host_task.own({**job, 'task_vars': variables, 'final_q': self._outbox})
                if isolation.guesses(job) or isolation.reason(job):
                    return False
        except Exception:  # the strategy will come to it, and say it
            return False
        self._variables = variables
        self._outbox.hold()
        return True

    def has_come(self) -> bool:
        return self._ended is not None

    def leaving(self) -> None:
        self.acted.set()

    def looking(self) -> None:
        self._looks = True

    def supposes(self, holds: t.Callable[[], bool]) -> bool:
        self._supposed.append(holds)
        return True

    def asks(self, request: t.Any, decides: t.Sequence[int], writes: str) -> None:
        """It waits on the target, if nothing that it was made of can change until its turn."""
        if self._leader is not None and not self.has_come():
            settled = self._is_settled()
            if self.has_come() or self._dropped:
                self.wait()  # not any more
            elif settled:
                self.left = self._leader.guides(request)
        if self.lead is not None:
            self.lead.asks(request, decides, writes)

    def refused(self) -> None:
        """It was looked at when its turn came."""

    def _is_settled(self) -> bool:
        if self.files.may_be('') or self._renders or self._looks:
            return False
        with baton.taking_turns(None):  # what is remembered of a connection is so until that ends, and what leads this one with it
            if not all(holds() for holds in self._supposed):
                return False
        names = sameness.registered(self.before)
        return not names or self._ignores(names, t.cast('dict[str, t.Any]', self._variables))

    def wait(self) -> None:
        """Raises Dropped if all was in vain."""
        while self._ended is None and not self._dropped:
            with baton.waiting(self._wake.set):
                self._wake.wait()
            self._wake.clear()
        if self._dropped:
            raise Dropped
        self._outbox.release()

    def drop(self) -> None:
        """In the main thread: its turn will not come."""
        self._dropped = True
        self._outbox.mute()
        self._wake.set()

    def go_on(self, ended: t.Callable[[int], None]) -> None:
        """In the main thread: its turn has come."""
        self._ended = ended
        self._wake.set()

    def is_for(self, job: HostTask) -> bool:
        """Whether this is the task that the strategy has queued, as far as its name goes."""
        return job['task'] is self._task and job['host'] is self._job['host']

    def fits(self, job: HostTask) -> bool:
        """Whether this is what the strategy has queued, and it would have done nothing else so far."""
        task = job['task']
        if self._variables is None or not self.is_for(job) or job['play_context'] is not self._job['play_context']:
            return False
        attributes = task.__dict__
        if sameness.differing(self._attributes, attributes) - {'_name'} or not self.files.unchanged():
            return False
        if self._renders and time.monotonic() - self._made > OLDEST:
            return False
        self.in_vain = not self._sees(job['task_vars'])
        if self.in_vain or not all(holds() for holds in self._supposed):
            return False
        if '_name' in attributes:  # not the same object since the strategy has looked for a template in it
            self._job['task'].__dict__['_name'] = attributes['_name']
        return True

    def _sees(self, variables: dict[str, t.Any]) -> bool:
        """Whether these variables would have been the same for it: only what has been registered meanwhile may differ, if it never looks at that."""
        names = sameness.differing(t.cast('dict[str, t.Any]', self._variables), variables)
        return not names or (names <= set(sameness.registered(self.before)) and self._ignores(names, variables))

    def _ignores(self, names: t.Iterable[str], variables: dict[str, t.Any]) -> bool:
        """Whether it never looks at variables of these names: neither the task nor a template of the variables mentions them."""
        if self._renders or self._looks or sameness.judges(self._task):
            return False
        said = sameness.naming(names, *sameness.COMPUTED)
        task = host_task.copy_task(self._task)  # to be asked leaves traces on it
        own = {key: value for key, value in task.dump_attrs().items() if key != 'register'}
        return not sameness.says(said, own, '') and not sameness.says(said, variables, '{')
