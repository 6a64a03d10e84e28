"""The daemon's life as a run sees it, and both ways to turn us off."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

import runs
from runs import WAYS, Site


def play(*tasks: object, **more: object) -> list[dict[str, object]]:
    return [{"name": "play", "hosts": "all", "gather_facts": False, "tasks": list(tasks), **more}]


HELLO = {"command": "echo hello"}


@pytest.mark.tier("smoke")
def test_started_on_demand_and_warm_the_second_time(fresh: Site) -> None:
    hosts = {"h": fresh.host_vars(WAYS["linear"], fresh.login)}
    assert fresh.daemons() == []
    assert fresh.play(WAYS["linear"], hosts, play(HELLO)).rc == 0
    (first,) = fresh.daemons()
    dials = int(fresh.status()["counters"]["dials"])
    second = fresh.play(WAYS["linear"], hosts, play(HELLO))
    assert second.rc == 0, second.said()
    assert fresh.daemons() == [first]
    assert int(fresh.status()["counters"]["dials"]) == dials, "the second run found the connection open"
    assert fresh.status()["runs"] == []


def test_it_leaves_with_its_last_run_if_nothing_is_to_persist(fresh: Site) -> None:
    hosts = {"h": fresh.host_vars(WAYS["linear"], fresh.login)}
    run = fresh.play(WAYS["linear"], hosts, play(HELLO), env={"MITOGEN_PERSIST": "0"})
    assert run.rc == 0, run.said()
    runs.harness.until(lambda: not fresh.daemons(), 10, "the daemon leaves")


def test_two_runs_at_once_share_a_connection(fresh: Site) -> None:
    way = WAYS["linear"]
    hosts = {"h": fresh.host_vars(way, fresh.login)}
    tasks = play(*[HELLO] * 5)
    with fresh.files(hosts, tasks) as one, fresh.files(hosts, tasks) as two:
        started = [(fresh.start(way, d), d) for d in (one, two)]
        seen = [fresh.result(p, d) for p, d in started]
    assert [r.rc for r in seen] == [0, 0], [r.said() for r in seen]
    assert len(fresh.daemons()) == 1
    nodes = fresh.status()["nodes"]
    assert len([n for n in nodes if n["name"].startswith("ssh ") and not n["python"]]) == 1
    assert all(int(n["memory_kib"]) > 5000 for n in nodes if n["python"]), "agents say how much memory they have"


@pytest.mark.tier("smoke")
def test_a_batch_releases_what_the_one_before_needed(fresh: Site) -> None:
    """With nothing to persist, a finished batch's connections are closed while the play goes on."""
    one, two, _ = fresh.accounts
    on = {"a": one, "b": one, "c": two}
    hosts = {name: fresh.host_vars(WAYS["linear"], account) for name, account in on.items()}
    look = {"command": f"{runs.BINARY} status --json", "delegate_to": "localhost", "vars": {"ansible_connection": "local"}}
    done = fresh.play(WAYS["linear"], hosts, play(HELLO, look, serial=1), env={"MITOGEN_PERSIST": "0"})
    assert done.rc == 0, done.said()
    seen = [json.loads(done.results(host)[-1][1]["stdout"]) for host in on]
    assert [{a.name for a in (one, two) for n in found["nodes"] if a.name in n["name"]} for found in seen] == [{one.name}, {one.name}, {two.name}], seen
    dials = [int(found["counters"]["dials"]) for found in seen]
    assert [after - before for before, after in itertools.pairwise(dials)] == [2, 2], "a connection and an agent each: a batch gives them back at once"


def test_a_daemon_that_goes_between_two_batches(fresh: Site) -> None:
    hosts = {name: fresh.host_vars(WAYS["linear"], fresh.login) for name in ("a", "b", "c")}
    stop = {"debug": {"msg": f"{{{{ lookup('pipe', '{runs.BINARY} stop --force') }}}}"}}
    done = fresh.play(WAYS["linear"], hosts, play(HELLO, stop, serial=1))
    assert done.rc == 0, done.said()
    assert [status for status, _ in done.results()] == ["ok"] * 6, done.said()


def test_a_stopped_daemon_comes_back_with_the_next_run(fresh: Site) -> None:
    hosts = {"h": fresh.host_vars(WAYS["linear"], fresh.login)}
    assert fresh.play(WAYS["linear"], hosts, play(HELLO)).rc == 0
    done = fresh.tool("stop")
    assert done.returncode == 0, done.stderr
    assert fresh.daemons() == []
    assert fresh.play(WAYS["linear"], hosts, play(HELLO)).rc == 0


@pytest.mark.tier("smoke")
def test_switched_off_by_environment(fresh: Site) -> None:
    way = WAYS["disabled"]
    run = fresh.play(way, {"h": fresh.host_vars(way, fresh.login)}, play(HELLO))
    assert run.rc == 0, run.said()
    assert fresh.daemons() == [], "nothing of ours was started"


def test_switched_off_by_a_variable_for_one_host(fresh: Site) -> None:
    way = WAYS["linear"]
    hosts = {"off": fresh.host_vars(way, fresh.login, mitogen_enabled=False)}
    run = fresh.play(way, hosts, play(HELLO))
    assert run.rc == 0, run.said()
    assert fresh.daemons() == [] or fresh.status()["nodes"] == []


def test_the_strategy_by_configuration_file(fresh: Site) -> None:
    """As the README says: two lines in ansible.cfg, an inventory that says nothing of us."""
    hosts = {"h": fresh.host_vars(WAYS["plain"], fresh.login)}
    with fresh.files(hosts, play(HELLO)) as directory:
        config = directory / "ansible.cfg"
        config.write_text(f"[defaults]\nstrategy_plugins = {runs.PLUGINS / 'strategy'}\nstrategy = mitogen_linear\n")
        env = fresh.environment(WAYS["plain"])
        for name in ("ANSIBLE_STRATEGY", "ANSIBLE_STRATEGY_PLUGINS", "ANSIBLE_CONNECTION_PLUGINS"):
            env.pop(name)
        env |= {"ANSIBLE_CONFIG": str(config), "MUX_EVENTS": str(directory / "events")}
        done = runs.subprocess.run(
            [str(fresh.ansible), "-i", "inventory.yml", "playbook.yml"], cwd=directory, env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(fresh.daemons()) == 1
    assert [n["name"] for n in fresh.status()["nodes"] if n["name"].startswith("ssh ")]


def test_status_tells_no_secret(fresh: Site) -> None:
    second = fresh.accounts[1]
    hosts = {"h": fresh.host_vars(WAYS["linear"], second, ansible_become_password=second.password)}
    run = fresh.play(WAYS["linear"], hosts, play(HELLO, become=True), args=["-vvvv"])
    assert run.rc == 0, run.said()
    everywhere = [fresh.tool("status").stdout, fresh.tool("status", "--json", "--stacks").stdout, run.said()]
    everywhere += [p.read_text(errors="replace") for p in fresh.mux.glob("*.log")]
    everywhere += [" ".join(p.argv) for p in runs.harness.processes()]
    for pid in [*fresh.daemons(), *fresh.sshd.sessions()]:
        everywhere.append(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace"))
    assert not [text for text in everywhere if second.password in text]


def test_everything_in_the_daemons_folder_is_private(fresh: Site) -> None:
    hosts = {"h": fresh.host_vars(WAYS["linear"], fresh.login)}
    assert fresh.play(WAYS["linear"], hosts, play(HELLO)).rc == 0
    assert os.stat(fresh.mux).st_mode & 0o777 == 0o700
    assert {p.name: oct(p.stat().st_mode & 0o077) for p in fresh.mux.iterdir()} == {p.name: "0o0" for p in fresh.mux.iterdir()}


def test_names_that_do_nothing_here_are_warned_of_once(fresh: Site) -> None:
    hosts = {f"h{n}": fresh.host_vars(WAYS["linear"], fresh.login, mitogen_ssh_compression=False, mitogen_task_isolation="fork") for n in range(3)}
    run = fresh.play(WAYS["linear"], hosts, play(HELLO, HELLO), env={"MITOGEN_SAVE_PIDS": "1"})
    assert run.rc == 0, run.said()
    said = " ".join(run.stderr.split())
    assert [said.count(word) for word in ("mitogen_ssh_compression has no effect", "MITOGEN_SAVE_PIDS has no effect", "isolation")] == [1, 1, 0], run.said()


TERMINAL = """#!{python}
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(["{ansible}", *sys.argv[1:]])))
"""


@pytest.mark.parametrize("name", ["plain", "linear"])
def test_a_task_that_wants_the_terminal_has_it(site: Site, binary: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if site.version() < (2, 21):
        pytest.skip("up to 2.20 nobody can ask for it")
    wrapper = site.base / "on-a-terminal"
    wrapper.write_text(TERMINAL.format(python=sys.executable, ansible=site.ansible))
    wrapper.chmod(0o755)
    monkeypatch.setattr(site, "ansible", wrapper)
    tasks = [
        {action: "exec 3<>/dev/tty && test -t 3", "vars": {"ansible_worker_session_isolation": isolated}, "ignore_errors": True}
        for action in ("shell", "raw")
        for isolated in (False, True)
    ]
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    run = site.play(WAYS[name], {"h": host}, play(*tasks))
    assert [status for status, _ in run.results("h")] == ["ok", "failed"] * 2, run.said()
