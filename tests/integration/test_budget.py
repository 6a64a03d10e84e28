"""What a task costs on the wire: exact counts, as the daemon and a relay between it and the host see them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
import runs
from runs import WAYS, Site
from test_life import play

sys.path.insert(0, str(runs.PROJECT / "bench"))

from lab import Relay

OURS = WAYS["linear"]
FEW, MANY = 3, 10
IN_TURN = {"MITOGEN_AHEAD": "0"}  # what follows on the target would save round trips, as many as it happens to be in time for
MOST = 9  # round trips to the first result: internal/sshlink's TestRoundTripsToAJob says what each is for


@pytest.fixture(scope="module")
def program(site: Site, binary: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs go to build bench/relay")
    built = site.base / "relay"
    subprocess.run([go, "build", "-o", str(built), "./bench/relay"], cwd=runs.PROJECT, check=True)
    return built


@contextlib.contextmanager
def relayed(site: Site, program: Path, delay: str = "0s") -> Iterator[Relay]:
    """A relay in front of the site's sshd, which is known there by the same key; ``delay`` is that of each way."""
    it = Relay(site.sshd.port, delay, program=program)
    before = site.sshd.known_hosts.read_text()
    site.sshd.known_hosts.write_text(before + before.replace(f"]:{site.sshd.port} ", f"]:{it.port} "))
    try:
        yield it
    finally:
        it.close()
        site.sshd.known_hosts.write_text(before)


@pytest.fixture(scope="module")
def relay(site: Site, program: Path) -> Iterator[Relay]:
    with relayed(site, program) as it:
        yield it


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
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}

    def counts(times: int) -> tuple[dict[str, object], dict[str, int]]:
        run = site.play(OURS, hosts, play(*task * times, vars={"n": 1}), env=IN_TURN)
        assert run.rc == 0, run.said()
        return agent_node(site.status()["nodes"]), relay.ask("stats")

    site.stop_daemon()
    node, wire = counts(1)  # brings the agent and the module's blobs; what comes after it is the budget
    node_then, wire_then = counts(MANY)
    assert int(node_then["round_trips"]) - int(node["round_trips"]) == MANY
    assert int(node_then["sent_bytes"]) - int(node["sent_bytes"]) <= 1024 * MANY
    assert wire_then["up_bytes"] - wire["up_bytes"] <= 1024 * MANY
    assert wire_then["turns"] - wire["turns"] <= MANY + 2  # what TCP carries: an answer in two pieces is chance
    assert wire_then["connections"] == wire["connections"]


LITTLE = 8 << 10  # what goes along before anybody knows whether it is wanted
GIVEN = "given here "
SIZES = {"little": LITTLE - len(GIVEN), "not inline": 100_000}

FILE_TASKS: dict[str, tuple[dict[str, object], int, int, int]] = {
    # the task, and its round trips when the file is to be changed: a little one, or any other; and when it is not
    "copy": ({"copy": {"src": "SOURCE", "dest": "DEST"}}, 1, 2, 1),
    "copy with a mode": ({"copy": {"src": "SOURCE", "dest": "DEST", "mode": "0600"}}, 1, 2, 1),
    "copy that follows": ({"copy": {"src": "SOURCE", "dest": "DEST", "follow": True}}, 1, 2, 1),
    "copy into a folder": ({"copy": {"src": "SOURCE", "dest": "FOLDER/"}}, 1, 2, 1),
    "copy of content": ({"copy": {"content": GIVEN + "{{ lookup('file', 'SOURCE') }}", "dest": "DEST"}}, 1, 2, 1),
    "copy without force": ({"copy": {"src": "SOURCE", "dest": "DEST", "force": False}}, 2, 2, 1),
    "copy, validated": ({"copy": {"src": "SOURCE", "dest": "DEST", "validate": "test -r %s"}}, 1, 2, 1),
    "template": ({"template": {"src": "SOURCE", "dest": "DEST"}}, 1, 2, 1),
    "loop": ({"copy": {"src": "SOURCE", "dest": "DEST-{{ item }}"}, "loop": [1, 2, 3]}, 3, 6, 3),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("task", "little", "changed", "unchanged"), FILE_TASKS.values(), ids=FILE_TASKS)
def test_round_trips_for_a_file(site: Site, relay: Relay, task: dict[str, object], little: int, changed: int, unchanged: int, size: int) -> None:
    if size <= LITTLE:
        changed = little
    source = site.base / "page.j2"
    source.write_text("x" * size)

    def tasks(count: int, repeat: int) -> list[object]:
        text = json.dumps(task).replace("SOURCE", str(source))
        found = []
        for n in range(count):
            place = f"{site.work}/budget/{n}"
            found += [json.loads(text.replace("DEST", place).replace("FOLDER", place + ".d"))] * repeat
        return found

    site.clean(["budget"])
    for n in range(FEW):
        (site.work / "budget" / f"{n}.d").mkdir()
        os.chown(site.work / "budget" / f"{n}.d", site.login.uid, -1)
    site.stop_daemon()
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}

    def trips(*tasks: object) -> int:
        run = site.play(OURS, hosts, play(*tasks), env=IN_TURN)
        assert run.rc == 0, run.said()
        return int(agent_node(site.status()["nodes"])["round_trips"])

    # What a module's first use costs is not counted.
    warm = trips(*tasks(1, 2))
    first = trips(*tasks(FEW, 1)[1:])
    again = trips(*tasks(FEW, 1)[1:])
    assert (first - warm, again - first) == (changed * (FEW - 1), unchanged * (FEW - 1))
    source.unlink()


SEGMENTS = 10 * 1460  # bytes that TCP sends at once on a connection that has been idle (RFC 6928)


@pytest.mark.parametrize("become", [False, True], ids=["login", "become"])
def test_what_goes_along_in_vain_costs_no_round_trip(site: Site, relay: Relay, become: bool) -> None:
    """An unchanged file's request with all that a changed one would need."""
    site.clean(["budget"])
    site.stop_daemon()
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}

    def sent(size: int, times: int) -> int:
        task = {"copy": {"content": "x" * size, "dest": f"{site.work}/budget/a{size}", "mode": "0644"}, "become": become}
        before = relay.ask("stats")["up_bytes"]
        run = site.play(OURS, hosts, play(*[task] * times))
        assert run.rc == 0, run.said()
        return relay.ask("stats")["up_bytes"] - before

    sizes = (7, LITTLE)
    first = {size: [sent(size, 1), sent(size, 1)][1] for size in sizes}  # after what the agent and the modules cost
    each = {size: (sent(size, 1 + FEW) - first[size]) // FEW for size in sizes}
    assert each[7] <= 5 * 1024
    assert each[LITTLE] - each[7] <= LITTLE * 102 // 100
    assert LITTLE < each[LITTLE] <= SEGMENTS, "all of it leaves at once"


def test_a_module_crosses_once(site: Site, relay: Relay) -> None:
    """The same modules again, in a second run on a warm daemon, bring no blob."""
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}
    tasks = play({"command": "echo x"}, {"stat": {"path": "/etc/hosts"}}, {"setup": {"gather_subset": ["!all", "min"]}})
    site.stop_daemon()
    assert site.play(OURS, hosts, tasks).rc == 0
    before = relay.ask("stats")
    assert site.play(OURS, hosts, tasks).rc == 0
    after = relay.ask("stats")
    assert after["connections"] == before["connections"]
    assert after["up_bytes"] - before["up_bytes"] <= 3 * 1024


def test_a_file_for_many_accounts_crosses_once(site: Site, relay: Relay) -> None:
    """They are hosts of their own behind one login, and ask one or two at a time."""
    many, size = 6, 4 << 20
    source = site.base / "for-many"
    source.write_bytes(os.urandom(size))
    python = {"ansible_python_interpreter": "/usr/bin/python3"}
    with harness.crowd(many) as names:
        behind = {name: {**python, "ansible_connection": "mitogen_sudo", "ansible_user": name, "mitogen_via": "door"} for name in names}
        hosts = {**behind, "door": site.host_vars(OURS, site.login, ansible_port=relay.port)}

        def crossed(*tasks: object) -> int:
            before = relay.ask("stats")["up_bytes"]
            run = site.play(OURS, hosts, play(*tasks, hosts="all:!door"), args=["-f", "2"])
            assert run.rc == 0, run.said()
            return relay.ask("stats")["up_bytes"] - before

        site.stop_daemon()
        crossed({"copy": {"content": "the same", "dest": "~/first"}}, {"command": "true"})  # what modules and agents cost is not counted
        assert size < crossed({"copy": {"src": str(source), "dest": "~/file"}}) < size + size // 50 + many * 12 * 1024
        for name in names:
            assert Path("/home", name, "file").read_bytes() == source.read_bytes()
        site.stop_daemon()  # and so their agents
    source.unlink()


@pytest.mark.tier("matrix")
def test_many_hosts_take_the_round_trips_of_one(site: Site, program: Path) -> None:
    """From TCP connect to the first task's result, each on a connection of its own, so far away that what one side says in pieces is heard as one."""
    many = 20
    relay = Relay(site.sshd.port, "150ms", program=program, listen="0.0.0.0")
    known = site.base / "known-by-alias"
    known.write_text(f"many {site.sshd.known_hosts.read_text().split(' ', 1)[1]}")
    args = f"-o UserKnownHostsFile={known} -o IdentitiesOnly=yes -o HostKeyAlias=many"
    hosts = {
        f"h{n}": site.host_vars(OURS, site.login, ansible_ssh_common_args=args, ansible_host=f"127.0.0.{n + 1}", ansible_port=relay.port) for n in range(many)
    }

    def turns(on: str) -> int:
        site.stop_daemon()
        before = relay.ask("stats")
        run = site.play(OURS, hosts, play({"command": "echo hello"}, hosts=on), args=["-f", str(many)])
        assert run.rc == 0, run.said()
        after = relay.ask("stats")
        assert after["connections"] - before["connections"] == int(site.status()["counters"]["dials"]) / 2
        return after["turns"] - before["turns"]

    try:
        assert turns("h0") <= MOST
        assert turns("all") <= MOST * many
    finally:
        relay.close()
        site.stop_daemon()


def test_an_interpreter_is_found_on_the_way(site: Site, binary: Path) -> None:
    """Nothing is run to discover it: the agent is started by it. Up to 2.18 the core asks it for the distribution."""
    site.stop_daemon()
    run = site.play(OURS, {"h": site.host_vars(OURS, site.login, ansible_python_interpreter="auto_silent")}, play({"ping": None}))
    assert run.rc == 0, run.said()
    counters = site.status()["counters"]
    assert (int(counters["dials"]), int(counters["jobs"])) == (2, 1 if site.version() >= (2, 19) else 2)


def test_a_folder_goes_in_one_piece(site: Site, relay: Relay) -> None:
    """Two questions, one that looks and one that does, however many files there are; and the action's folder goes again."""
    source = site.base / "folder"
    for n in range(50):
        (source / f"{n % 5}").mkdir(parents=True, exist_ok=True)
        (source / f"{n % 5}" / f"{n}").write_text("x" * n)
    (source / "empty").mkdir()
    site.clean(["budget"])
    site.stop_daemon()
    hosts = {"h": site.host_vars(OURS, site.login, ansible_port=relay.port)}

    def trips(name: str) -> int:
        run = site.play(OURS, hosts, play({"copy": {"src": f"{source}/", "dest": f"{site.work}/budget/{name}"}}))
        assert run.rc == 0, run.said()
        return int(agent_node(site.status()["nodes"])["round_trips"])

    warm = trips("warm")  # what a module's first use costs is not counted
    first = trips("first")
    (source / "0" / "more").write_text("more")
    again = trips("first")
    assert (first - warm, again - first) == (3, 3)
    shutil.rmtree(source)
