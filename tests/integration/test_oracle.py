"""The oracle itself: whatever is changed in what was seen of a run, it must see."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

import runs
from oracle import Entry, Oracle
from runs import Event, Run

CASES = ("copy", "rescue", "handlers", "loops")


@pytest.fixture(scope="module")
def seen(site: runs.Site) -> Run:
    import conftest

    return site.cases(runs.WAYS["plain"], {c: conftest.INDEX[c] for c in CASES})


def one(run: Run, event: str, host: str) -> Event:
    return next(e for e in run.events if e["event"] == event and e.get("host") == host)


def drop(run: Run, event: str, host: str) -> None:
    run.events.remove(one(run, event, host))


def swap_tasks(run: Run) -> None:
    starts = [i for i, e in enumerate(run.events) if e["event"] == "runner_on_ok" and e["host"] == "rescue"]
    a, b = starts[0], starts[-1]
    run.events[a], run.events[b] = run.events[b], run.events[a]


def change_file(run: Run, key: str, value: object) -> None:
    run.work["copy/plain.txt"][key] = value


MUTATIONS: dict[str, Callable[[Run], object]] = {
    "a result's value": lambda r: one(r, "runner_on_ok", "copy")["result"].update(size=1),
    "a value's type": lambda r: one(r, "runner_on_ok", "copy")["result"].update(changed=1),
    "a key more": lambda r: one(r, "runner_on_ok", "copy")["result"].update(more=None),
    "a key less": lambda r: one(r, "runner_on_ok", "copy")["result"].pop("checksum"),
    "a deep value": lambda r: one(r, "runner_on_ok", "loops")["result"]["results"][1].update(stdout="x"),
    "an item less": lambda r: one(r, "runner_on_ok", "loops")["result"]["results"].pop(),
    "text without shape where a time stood": lambda r: one(r, "runner_on_failed", "rescue")["result"].update(start="yesterday"),
    "a key that may differ, gone": lambda r: one(r, "runner_on_failed", "rescue")["result"].pop("start"),
    "an event less": lambda r: drop(r, "runner_on_ok", "rescue"),
    "an event twice": lambda r: r.events.insert(len(r.events) // 2, copy.deepcopy(one(r, "runner_on_ok", "rescue"))),
    "a notification less": lambda r: drop(r, "playbook_on_notify", "handlers"),
    "another order": swap_tasks,
    "another class of failure": lambda r: one(r, "runner_on_failed", "rescue").update(event="runner_on_unreachable"),
    "the exit code": lambda r: setattr(r, "rc", 1),
    "the recap": lambda r: r.recap()["copy"].update(changed=0),
    "a warning": lambda r: setattr(r, "stderr", r.stderr + "[WARNING]: something\n"),
    "a file's content": lambda r: change_file(r, "sha256", "0" * 64),
    "a file's mode": lambda r: change_file(r, "mode", "0644"),
    "a file's owner": lambda r: change_file(r, "owner", "nobody"),
    "a file more": lambda r: r.work.update({"copy/left-behind": {"type": "-", "mode": "0600"}}),
    "a file less": lambda r: r.work.pop("copy/again.txt"),
    "a file in a home": lambda r: r.homes.update({"account2/left-behind": {"type": "-", "mode": "0600"}}),
}


def differences(oracle: Oracle, plain: Run, ours: Run) -> list[str]:
    fresh = Oracle([Entry(**{k: v for k, v in vars(e).items() if k not in ("used", "path")}) for e in oracle.entries], oracle.core)
    return [str(d) for c in CASES for d in fresh.case(c, "plain", plain, ours)] + [str(d) for d in fresh.whole("plain", plain, ours)]


def test_a_run_equals_itself(seen: Run, oracle: Oracle) -> None:
    assert differences(oracle, seen, copy.deepcopy(seen)) == []


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_it_sees(mutation: Callable[[Run], object], seen: Run, oracle: Oracle) -> None:
    changed = copy.deepcopy(seen)
    mutation(changed)
    assert differences(oracle, seen, changed) != []


@pytest.mark.parametrize(
    ("given", "plain", "ours", "same"),
    [
        ({"pattern": r"\d+"}, "1", "22", True),
        ({"pattern": r"\d+"}, "1", "x", False),
        ({"pattern": r"\d+"}, 1, 2, True),
        ({"pattern": r"\d+"}, 1, "2", True),
        ({"cut": r"\d+"}, "a1b", "a22b", True),
        ({"cut": r"\d+"}, "a1b", "a22c", False),
        ({"unordered": True}, [1, 2], [2, 1], True),
        ({"unordered": True}, [1, 2], [2, 2], False),
    ],
)
def test_entries(given: dict[str, object], plain: object, ours: object, same: bool) -> None:
    entry = Entry("runner_on_ok.result.**.x", "a test", **given)  # type: ignore[arg-type]
    oracle = Oracle([entry], (2, 16))
    events = [[{"event": "runner_on_ok", "host": "h", "task": "t", "action": "a", "result": {"y": {"x": v}}}] for v in (plain, ours)]
    assert (oracle.events("c", "linear", *events) == []) is same
    assert entry.used is same


def test_entries_hold_where_they_say() -> None:
    entry = Entry("*.result.x", "a test", pattern=".*", case="c", cores="2.16-2.18", ways="linear|free")
    assert entry.applies("c", (2, 17), "free", "runner_on_ok.result.x")
    assert not entry.applies("d", (2, 17), "free", "runner_on_ok.result.x")
    assert not entry.applies("c", (2, 19), "free", "runner_on_ok.result.x")
    assert not entry.applies("c", (2, 17), "mitogen", "runner_on_ok.result.x")
    assert not entry.applies("c", (2, 17), "free", "runner_on_ok.result.y.x")
