"""Which host-tasks of a step are dealt out to processes of their own, and to how many."""

from __future__ import annotations

import types
import typing as t

import pytest
from ansible.errors import AnsibleError

import core  # noqa: F401
from mitogen_mux import shares


class Member:
    def __init__(self, task: str = 'task') -> None:
        self.task = types.SimpleNamespace(_uuid=task)
        self.begun = False
        self.exitcode: int | None = None

    def arguments(self) -> dict[str, t.Any]:
        return {'task': self.task}

    def begin(self) -> None:
        self.begun = True

    def ended(self, exitcode: int) -> None:
        self.exitcode = exitcode


class Process:
    """A share that ends when told."""

    def __init__(self, strategy: t.Any, inside: t.Any, members: list[Member]) -> None:
        self.members, self.over = members, False
        self.reader = len(members)
        self.exitcode: int | None = None

    def start(self) -> None:
        running.append(self)

    def look(self) -> bool:
        return not self.over


running: list[Process] = []


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    running.clear()
    monkeypatch.setattr(shares, 'Share', Process)
    monkeypatch.delenv('MITOGEN_PROCESSES', raising=False)


def dealer(monkeypatch: pytest.MonkeyPatch, hosts: int, forks: int, processors: int) -> shares.Dealer:
    monkeypatch.setattr(shares, 'cores', lambda: processors)
    new = shares.Dealer(types.SimpleNamespace(_workers=[None] * forks), t.cast(t.Any, None))
    new.hosts = hosts
    return new


def step(the_dealer: shares.Dealer, members: list[Member]) -> None:
    for member in members:
        if not the_dealer.keeps(member):
            member.begin()
    the_dealer.rest()


@pytest.mark.parametrize(
    ('hosts', 'forks', 'processors', 'wanted', 'sizes', 'here'),
    [
        (23, 50, 2, '', [], 23),  # too few
        (40, 23, 2, '', [], 40),  # too few at once
        (24, 50, 1, '', [], 24),
        (24, 50, 2, '', [8, 8], 8),  # seven are left over, and the first
        (24, 50, 2, '1', [], 24),
        (60, 60, 2, '', [15, 15], 30),  # no processor is free for more
        (60, 60, 64, '', [8, 8, 8, 8], 28),
        (1, 5, 1, '2', [1], 0),
        (5, 5, 8, '2', [3, 2], 0),
        (7, 5, 8, '2', [3, 3], 1),
    ],
)
def test_a_step_is_dealt_out(monkeypatch: pytest.MonkeyPatch, hosts: int, forks: int, processors: int, wanted: str, sizes: list[int], here: int) -> None:
    monkeypatch.setenv('MITOGEN_PROCESSES', wanted)
    members = [Member() for _ in range(hosts)]
    step(dealer(monkeypatch, hosts, forks, processors), members)
    assert [len(process.members) for process in running] == sizes
    assert sum(member.begun for member in members) == here
    dealt = [member for process in running for member in process.members]
    assert not any(member.begun for member in dealt) and len({id(member) for member in dealt}) + here == hosts


def test_the_first_of_each_step_is_begun_here_and_processes_that_have_ended_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dealer(monkeypatch, 24, 24, 2)
    for name in ('one', 'two'):
        members = [Member(name) for _ in range(24)]
        step(mine, members)
        assert members[0].begun and len(mine.look()) == 2
        for process in running:
            process.over = True
    assert [len(process.members) for process in running] == [8, 8, 8, 8] and mine.look() == []


def test_a_process_that_has_died_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dealer(monkeypatch, 24, 24, 2)
    step(mine, [Member() for _ in range(24)])
    running[0].over, running[0].exitcode = True, 0
    assert len(mine.look()) == 1 and not mine.lost
    running[1].over, running[1].exitcode = True, -9
    assert not mine.look() and mine.lost


def test_what_still_waits_when_the_run_ends_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dealer(monkeypatch, 24, 24, 2)
    members = [Member() for _ in range(3)]
    assert [mine.keeps(member) for member in members] == [False, True, True]
    mine.drop()
    mine.rest()
    assert [member.exitcode for member in members] == [None, 0, 0] and not any(member.begun for member in members)


def test_none_is_dealt_out_in_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dealer(monkeypatch, 24, 24, 2)
    mine.forget()
    step(mine, members := [Member() for _ in range(24)])
    assert not running and all(member.begun for member in members)


@pytest.mark.parametrize('value', ['many', '-1', '2.5'])
def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv('MITOGEN_PROCESSES', value)
    with pytest.raises(AnsibleError, match='MITOGEN_PROCESSES'):
        dealer(monkeypatch, 1, 1, 1)
