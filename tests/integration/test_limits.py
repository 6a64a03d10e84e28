"""How many interpreters a target has at the same time, and what becomes of those who wait for one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site
from test_life import play

OURS = WAYS["linear"]


def results(run: Run, hosts: list[str]) -> dict[str, list[Any]]:
    return {host: [(status, result.get("stdout"), result.get("msg")) for status, result in run.results(host)] for host in hosts}


def agents(site: Site) -> list[str]:
    return [n["name"] for n in site.status()["nodes"] if n["python"]]


@pytest.mark.tier("matrix")
def test_sixty_accounts_of_one_host(fresh: Site) -> None:
    """All at once, three times each: they share twenty interpreters, and get what they get without us."""
    tasks = [{"shell": "id -un; echo {{ n }} >>~/said; cat ~/said", "become": True, "vars": {"n": n}} for n in range(3)]
    with harness.crowd(60) as names:
        runs = {}
        for way in (WAYS["plain"], OURS):
            for name in names:
                Path("/home", name, "said").unlink(missing_ok=True)
            hosts = {name: fresh.host_vars(way, fresh.login, ansible_become_user=name) for name in names}
            runs[way.name] = fresh.play(way, hosts, play(*tasks), args=["--forks", "60"])
            assert runs[way.name].rc == 0, runs[way.name].said()
        assert results(runs["linear"], names) == results(runs["plain"], names)
        assert all(len(seen) == 3 for seen in results(runs["linear"], names).values())
        left = agents(fresh)
        assert len(left) == 20 and sum(name.startswith("ssh ") for name in left) == 1, left  # the login account's own is one of them


def test_the_least_recently_used_goes_first(fresh: Site) -> None:
    with harness.crowd(3) as names:
        hosts = {"h": fresh.host_vars(OURS, fresh.login, mitogen_max_interpreters=3)}
        order = [names[n] for n in (0, 1, 0, 2)]
        tasks = [{"command": "id -un", "become": True, "become_user": name} for name in order]
        run = fresh.play(OURS, hosts, play(*tasks))
        assert [result["stdout"] for _, result in run.results("h")] == order, run.said()
        assert sorted(agents(fresh))[1:] == [f"sudo {names[0]}", f"sudo {names[2]}"]


def test_where_all_are_busy_a_request_waits_up_to_the_timeout(fresh: Site) -> None:
    """One that gets its place in time, and one that does not."""
    place = fresh.work / "limits"
    second, third = fresh.accounts[1].name, fresh.accounts[2].name
    hosts = {name: fresh.host_vars(OURS, fresh.login, ansible_become_user=user) for name, user in (("busy", second), ("waits", third))}
    task = {
        "shell": f"touch {place}/{{{{ inventory_hostname }}}}; while [ ! -e {place}/go ]; do sleep 0.05; done; id -un",
        "become": True,
        "ignore_unreachable": True,
    }
    env = {"MITOGEN_MAX_INTERPRETERS": "2"}  # one of them is the login account's
    with fresh.files(hosts, play(task)) as directory:
        process = fresh.start(OURS, directory, env={**env, "ANSIBLE_TIMEOUT": "3"})
        events = directory / "events"
        harness.until(lambda: list(place.iterdir()) or process.poll() is not None, 60, "one has the place")
        harness.until(lambda: "runner_on_unreachable" in events.read_text() or process.poll() is not None, 60, "the other has given up")
        (place / "go").touch()
        late = fresh.result(process, directory)
    outcomes = {host: late.results(host)[0] for host in hosts}
    ((loser, (_, result)),) = [(host, found) for host, found in outcomes.items() if found[0] == "unreachable"]
    ((winner, (status, other)),) = [(host, found) for host, found in outcomes.items() if host != loser]
    assert status == "ok" and other["stdout"] == hosts[winner]["ansible_become_user"], late.said()
    assert re.search(f"{loser}: sudo {hosts[loser]['ansible_become_user']}: all interpreters of the target are busy", result["msg"]), late.said()

    again = fresh.play(OURS, hosts, play(task), env=env)  # nobody has to wait for long now
    assert sorted(r["stdout"] for h in hosts for _, r in again.results(h)) == sorted([second, third]), again.said()
