"""What comes next waits on the target: it costs no round trip of its own, and nothing of it is begun if what is before it does not end as it should."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import harness
from runs import WAYS, Site
from test_bad_input import press, sleepers
from test_budget import Relay, program, relayed  # noqa: F401
from test_life import HELLO, play

OURS = WAYS["linear"]
TIMES = 10
FAR = 0.3  # seconds, each way: what the controller does in between is little against it

Tasks = Callable[[str, str], list[dict[str, object]]]

NEXT: dict[str, Tasks] = {
    "a task": lambda first, second: [{"command": first}, {"command": second}],
    "an item": lambda first, second: [{"command": "{{ item }}", "loop": [first, second]}],
}


@pytest.fixture
def stage(site: Site, binary: None) -> Site:
    site.stop_daemon()
    site.end_masters()  # sessions of plain runs are none of ours
    site.clean(["following"])
    return site


@pytest.fixture
def relay(site: Site, program: Path, request: pytest.FixtureRequest) -> Iterator[Relay]:  # noqa: F811
    with relayed(site, program, getattr(request, "param", "0s")) as it:
        yield it


@pytest.mark.tier("smoke")
@pytest.mark.parametrize("become", [False, True], ids=["login", "become"])
@pytest.mark.parametrize("relay", [f"{FAR}s"], indirect=True)
@pytest.mark.parametrize("what", ["tasks", "loop"])
def test_it_begins_sooner_than_anybody_could_ask(stage: Site, relay: Relay, what: str, become: bool) -> None:
    """Between the end of one and an answer to that there is a round trip."""
    hosts = {"h": stage.host_vars(OURS, stage.login, ansible_port=relay.port)}
    log = stage.work / "following" / "log"
    one = {"shell": f"cat {log}; echo x >> {log}; date +%s.%N", "become": become}
    tasks = [one] * TIMES if what == "tasks" else [{**one, "loop": list(range(TIMES))}]

    def gaps(more: dict[str, str] | None = None) -> list[float]:
        log.write_text("")
        log.chmod(0o666)
        run = stage.play(OURS, hosts, play(*tasks), env=more)
        assert run.rc == 0, run.said()
        assert log.read_text() == "x\n" * TIMES
        lines = said(run.results("h"))
        assert [len(one) - 1 for one in lines] == list(range(TIMES))
        return [float(after[-1]) - float(before[-1]) for before, after in itertools.pairwise(lines)]

    gaps()  # with what modules and agents cost the first time
    assert min(gaps({"MITOGEN_AHEAD": "0"})) >= 2 * FAR
    assert sum(gap < 2 * FAR for gap in gaps()) >= TIMES // 2 - 1


def said(results: list[tuple[str, dict[str, object]]]) -> list[list[str]]:
    """Lines of output of each command."""
    found = [result for _, outer in results for result in outer.get("results", [outer])]
    return [result["stdout_lines"] for result in found]


@pytest.mark.tier("smoke")
@pytest.mark.parametrize("tasks", NEXT.values(), ids=NEXT)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "Ctrl-C", "the link is cut"])
def test_what_waits_goes_with_what_it_follows(stage: Site, relay: Relay, how: str, tasks: Tasks) -> None:
    word = f"73.{os.getpid() % 1000}"
    witness = stage.work / "following" / "witness"
    hosts = {"h": stage.host_vars(OURS, stage.login, ansible_port=relay.port)}
    before = play(HELLO)  # so that nothing is wanted of the first one but that it runs
    with stage.files(hosts, before + play(*tasks(f"sleep {word}", f"touch {witness}"))) as directory:
        process = stage.start(OURS, directory)
        try:
            harness.until(lambda: bool(sleepers(word)) and [run["requests"] for run in stage.status()["runs"]] == [2], 20, "the second one waits")
            if how == "the link is cut":
                relay.close()
            elif how == "SIGKILL":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                press(process, signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
            if how != "the link is cut":  # then the job goes on to its end
                harness.until(lambda: not sleepers(word), 20, "the first one is gone")
        finally:
            harness.end(sleepers(word))
            run = stage.result(process, directory)
    stage.stop_daemon()
    harness.until(lambda: not stage.sshd.sessions() and not agents(stage), 30, "the agents have gone")
    assert not witness.exists(), run.said()
    if how == "the link is cut":
        assert [status for status, _ in run.results("h")] == ["ok", "unreachable"], run.said()


def agents(site: Site) -> list[int]:
    """Processes of the login account."""
    found = []
    for p in harness.processes():
        with contextlib.suppress(OSError):
            if p.state != "Z" and Path(f"/proc/{p.pid}").stat().st_uid == site.login.uid:
                found.append(p.pid)
    return found
