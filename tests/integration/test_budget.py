"""What a task costs on the wire: exact counts, as the daemon and a relay between it and the host see them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import runs
from runs import WAYS, Site
from test_life import play

OURS = WAYS["linear"]
FEW, MANY = 3, 13


class Relay:
    """bench/relay between the controller and the host."""

    def __init__(self, program: Path, port: int) -> None:
        self.process = subprocess.Popen([program, "--to", f"127.0.0.1:{port}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

    def stats(self) -> dict[str, int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def relay(site: Site, binary: Path) -> Iterator[Relay]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs go to build bench/relay")
    program = site.base / "relay"
    subprocess.run([go, "build", "-o", str(program), "./bench/relay"], cwd=runs.PROJECT, check=True)
    it = Relay(program, site.sshd.port)
    line = site.sshd.known_hosts.read_text()
    site.sshd.known_hosts.write_text(line + line.replace(f"]:{site.sshd.port} ", f"]:{it.port} "))
    yield it
    it.close()


def cost(site: Site, relay: Relay, tasks: list[object], **more: object) -> tuple[dict[str, int], list[dict[str, object]]]:
    """What a run from nothing put on the wire, and the daemon's nodes after it."""
    site.stop_daemon()
    before = relay.stats()
    run = site.play(OURS, {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}, play(*tasks, **more))
    assert run.rc == 0, run.said()
    nodes = site.status()["nodes"]
    after = relay.stats()
    return {k: after[k] - before[k] for k in before}, nodes


def agent_node(nodes: list[dict[str, object]]) -> dict[str, object]:
    (found,) = [n for n in nodes if n["python"]]
    return found


TASKS = {
    "command": [{"command": "echo {{ n }}"}],
    "stat": [{"stat": {"path": "/etc/hosts"}}],
    "file": [{"file": {"path": "/etc/hosts", "state": "file"}}],
    "shell with much output": [{"shell": "seq 1 2000"}],
}


@pytest.mark.tier("smoke")
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_one_round_trip_a_task(site: Site, relay: Relay, task: list[object]) -> None:
    # The first task brings the agent and the module's blobs; what comes after it is the budget.
    first = {"command": "echo first"}
    few, nodes_few = cost(site, relay, [first, *task * FEW], vars={"n": 1})
    many, nodes_many = cost(site, relay, [first, *task * MANY], vars={"n": 1})
    a, b = agent_node(nodes_few), agent_node(nodes_many)
    assert int(b["round_trips"]) - int(a["round_trips"]) == MANY - FEW
    assert int(b["sent_bytes"]) - int(a["sent_bytes"]) <= 1024 * (MANY - FEW)
    assert many["up_bytes"] - few["up_bytes"] <= 1024 * (MANY - FEW)
    # The relay counts what TCP carries: while connecting, one turn more or less is chance.
    assert many["turns"] - few["turns"] <= MANY - FEW + 2
    assert many["connections"] == few["connections"] == 1


# As many as plain Ansible makes calls: expand, make a directory, stat, put, chmod, module, remove.
@pytest.mark.parametrize(("name", "trips"), [("copy", 7), ("template", 7)])
def test_round_trips_for_a_file(site: Site, relay: Relay, name: str, trips: int) -> None:
    site.clean(["budget"])
    source = site.base / "page.j2"
    source.write_text("a page\n")

    def tasks(count: int) -> list[object]:
        return [{name: {"src": str(source), "dest": f"{site.work}/budget/{count}-{n}"}} for n in range(count)]

    _, few = cost(site, relay, tasks(FEW))
    _, many = cost(site, relay, tasks(MANY))
    assert int(agent_node(many)["round_trips"]) - int(agent_node(few)["round_trips"]) <= trips * (MANY - FEW)
    source.unlink()


def test_a_module_crosses_once(site: Site, relay: Relay) -> None:
    """The same modules again, in a second run on a warm daemon, bring no blob."""
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}
    tasks = play({"command": "echo x"}, {"stat": {"path": "/etc/hosts"}}, {"setup": {"gather_subset": ["!all", "min"]}})
    site.stop_daemon()
    assert site.play(OURS, hosts, tasks).rc == 0
    before = relay.stats()
    assert site.play(OURS, hosts, tasks).rc == 0
    after = relay.stats()
    assert after["connections"] == before["connections"]
    assert after["up_bytes"] - before["up_bytes"] <= 3 * 1024
