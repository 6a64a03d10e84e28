"""Synchronize to hosts that rsync cannot reach by itself, and ssh-exec for scp and git."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import PLUGINS, WAYS, Run, Site, Tree, tree
from test_community import FOLDER, having_collections
from test_hops import Inventory, account, play

LINEAR, PLAIN = having_collections(WAYS["linear"]), having_collections(WAYS["plain"])

synchronize = pytest.mark.skipif(
    not Path(FOLDER, "ansible_collections/ansible/posix").is_dir() or shutil.which("rsync") is None,
    reason="needs rsync (Debian: apt-get install rsync), and in the folder MITOGEN_MUX_TEST_COLLECTIONS the collection ansible.posix",
)

SOURCE = """
mkdir -p source/empty/deeper source/bin source/a/b "source/with space"
for n in 1 2 3; do seq $n 9000 >source/a/b/file$n; done
seq 900000 >source/large
: >source/nothing
printf '#!/bin/sh\\n' >source/bin/run
chmod 755 source/bin/run
chmod 600 source/a/b/file1
ln -s a/b/file2 source/link
ln -s nowhere source/dangling
"""

TASKS: list[dict[str, Any]] = [
    {"synchronize": {"src": "{{ out }}/source/", "dest": "{{ far }}", "delete": True}},
    {"synchronize": {"src": "{{ out }}/source/", "dest": "{{ far }}", "delete": True}},
    {"file": {"path": "{{ far }}/not in the source", "state": "touch"}},
    {"command": {"cmd": "truncate -s 100 large", "chdir": "{{ far }}"}},
    {"synchronize": {"src": "{{ out }}/source/", "dest": "{{ far }}", "delete": True}, "check_mode": True, "diff": True},
    {"synchronize": {"src": "{{ out }}/source/", "dest": "{{ far }}", "delete": True, "rsync_opts": "--no-motd,--exclude=bin", "use_ssh_args": True}},
    {"synchronize": {"mode": "pull", "src": "{{ far }}", "dest": "{{ out }}/{{ inventory_hostname }}/", "rsync_opts": ["--no-motd"]}},
    {"synchronize": {"mode": "pull", "src": "/no/such/folder", "dest": "{{ out }}/"}, "ignore_errors": True},
]


@dataclasses.dataclass(frozen=True)
class Stage:
    site: Site
    ours: Inventory
    plain: Inventory


@pytest.fixture
def stage(fresh: Site) -> Iterator[Stage]:
    """An account, a folder with a system in it, SSH behind SSH and an account behind that; and for plain Ansible the same accounts."""
    inside = fresh.base / "inside"
    inside.mkdir(exist_ok=True)
    outer = harness.Sshd(fresh.base / "outer", fresh.base / "keys" / "%u", inside=f"mount --rbind / {inside}")
    outer.start()
    first, second, third = fresh.accounts
    common = f"-o UserKnownHostsFile={outer.known_hosts} -o IdentitiesOnly=yes"
    login = fresh.host_vars(LINEAR, first, ansible_port=outer.port, ansible_ssh_common_args=common, ansible_connection="ssh")
    far = fresh.host_vars(LINEAR, first, mitogen_via="machine", ansible_connection="ssh")
    ours = {
        "machine": login,
        "root": account("sudo", "root"),
        "second": account("sudo", second.name),
        "box": {"ansible_connection": "mitogen_chroot", "ansible_host": str(inside), "mitogen_via": "root", "ansible_python_interpreter": "/usr/bin/python3"},
        "far": far,
        "farther": {**far, "ansible_become": True, "ansible_become_user": third.name},
    }
    users = {"root": "root", "second": second.name, "box": "root", "far": first.name, "farther": third.name}
    plain = {name: {**login, "ansible_become": user != first.name, "ansible_become_user": user} for name, user in users.items()}
    for inventory in (ours, plain):
        for name in users:
            inventory[name]["far"] = str(fresh.work / "synchronize" / name)
            inventory[name]["out"] = str(fresh.out / "synchronize")
    try:
        yield Stage(fresh, ours, plain)
    finally:
        outer.stop()


def clean(site: Site) -> None:
    site.clean(["synchronize"])
    harness.quiet("sh", "-ec", f"cd {site.out}/synchronize\n{SOURCE}")


def outcome(run: Run, host: str) -> list[Any]:
    """What a playbook could look at, but for the command line."""
    left_out = ("cmd", "invocation", "exception", "msg")
    found = []
    for status, result in run.results(host):
        if isinstance(result.get("cmd"), str):
            kept = {key: value for key, value in result.items() if key not in left_out}
            found.append((status, sorted(result), kept, result["msg"] if status == "ok" else ""))
    return found


@synchronize
@pytest.mark.parametrize("through", ["linear", "connection"])
def test_there_and_back(through: str, stage: Stage) -> None:
    """Files, results and their keys are those of plain Ansible for the same accounts reached by SSH and sudo."""
    site = stage.site
    seen: list[tuple[dict[str, Any], Tree, Tree]] = []
    hosts = "root,second,box,far,farther"
    for way, inventory in ((PLAIN, stage.plain), (having_collections(WAYS[through]), stage.ours)):
        clean(site)
        run = site.play(way, inventory, play(*TASKS, hosts=hosts))
        assert run.rc == 0, run.said()
        assert {host: sums["ok"] for host, sums in run.recap().items()} == dict.fromkeys(hosts.split(","), len(TASKS)), run.said()
        seen.append(({host: outcome(run, host) for host in hosts.split(",")}, tree(site.work / "synchronize"), tree(site.out / "synchronize")))
    (plain_results, *plain_trees), (our_results, *our_trees) = seen
    for host, results in our_results.items():
        for number, (ours, plain) in enumerate(zip(results, plain_results[host], strict=True)):
            assert ours == plain, f"{host}, synchronize number {number + 1}"
    assert our_trees == plain_trees
    assert not [p for p in harness.processes() if "ssh-exec" in p.argv and str(site.base) in " ".join(p.argv)]


@synchronize
def test_what_the_action_serves_is_left_to_it(stage: Stage) -> None:
    """Plain SSH hosts, with sudo or without: to the last key, command line and all."""
    site = stage.site
    seen = []
    for way in (PLAIN, LINEAR):
        clean(site)
        run = site.play(way, stage.plain, play(*TASKS, hosts="second,far"))
        assert run.rc == 0, run.said()
        results = [
            [(status, {**result, "invocation": None}) for status, result in run.results(host) if isinstance(result.get("cmd"), str)]
            for host in ("second", "far")
        ]
        seen.append((results, tree(site.work / "synchronize"), tree(site.out / "synchronize")))
    assert seen[1] == seen[0]


@synchronize
def test_sudo_that_asks(stage: Stage) -> None:
    """Plain Ansible's way has no password for it. Where sudo does not ask, that way is taken, whether or not there is one."""
    site, (first, second, _) = stage.site, stage.site.accounts
    login = {**stage.plain["second"], "ansible_become_user": "root"}
    inventory = {
        "asks": {**login, "ansible_user": second.name, "ansible_become_password": second.password},
        "wrong": {**login, "ansible_user": second.name, "ansible_become_password": "not this one"},
        "does_not": {**login, "ansible_become_password": first.password},
    }
    tasks = play({"synchronize": {"src": "{{ out }}/source/", "dest": f"{site.work}/synchronize/{{{{ inventory_hostname }}}}"}})
    seen = {}
    for way in (PLAIN, LINEAR):
        clean(site)
        run = site.play(way, inventory, tasks)
        seen[way] = {host: run.results(host)[0] for host in inventory}
    assert [status for status, _ in seen[PLAIN].values()] == ["failed", "failed", "ok"]
    assert [status for status, _ in seen[LINEAR].values()] == ["ok", "failed", "ok"], seen[LINEAR]
    assert seen[LINEAR]["does_not"][1]["cmd"] == seen[PLAIN]["does_not"][1]["cmd"]
    assert "Incorrect sudo password" in seen[LINEAR]["wrong"][1]["msg"]
    made = tree(site.work / "synchronize" / "asks")
    assert made == tree(site.out / "synchronize" / "source")


@synchronize
def test_failures_are_named(stage: Stage) -> None:
    """A host that is not there, an account that is refused, a program that is not there."""
    wrong = account("sudo", "root", via=f"su:{stage.site.accounts[1].name}@root", ansible_password="not this one")
    inventory = {**stage.ours, "nobody": account("sudo", "nobodyatall"), "gone": {**stage.ours["far"], "ansible_port": stage.site.closed_port}, "wrong": wrong}
    clean(stage.site)
    here = stage.site.out / "synchronize"
    tasks = play(
        {"synchronize": {"src": f"{here}/source/", "dest": f"{here}/no/such/folder", "rsync_path": "/no/such/rsync"}}, hosts="nobody,gone,wrong,second"
    )
    run = stage.site.play(LINEAR, inventory, tasks)
    found = {host: run.results(host)[0] for host in ("nobody", "gone", "wrong", "second")}
    assert {host: status for host, (status, _) in found.items()} == {"nobody": "unreachable", "gone": "unreachable", "wrong": "unreachable", "second": "failed"}
    for host, text in (("nobody", "nobodyatall"), ("gone", "Connection refused"), ("wrong", "Incorrect sudo password"), ("second", "/no/such/rsync")):
        assert text in found[host][1]["msg"], run.said()


def wrapper(folder: Path, host: str) -> dict[str, Any]:
    """The task that makes a program of the lookup's command line, for what wants one as ssh."""
    return {"copy": {"content": f"#!/bin/sh\nexec {{{{ lookup('mitogen_ssh', '{host}') }}}} \"$@\"\n", "dest": f"{folder}/ssh", "mode": "0700"}}


@pytest.mark.parametrize("kill", ["kill -TERM $ssh", "kill -KILL $ssh", "kill -KILL $parent"])
def test_what_runs_there_ends_with_it(kill: str, stage: Stage) -> None:
    """A signal, the end of ssh-exec or of the program that called it; what runs there reads nothing and says nothing."""
    clean(stage.site)
    there, here = stage.site.work / "synchronize", stage.site.out / "synchronize"
    script = f"""
        sh -c '{here}/ssh second "echo \\$\\$ >{there}/pid; exec sleep 4321" </dev/null & echo $! >{here}/pid; wait' &
        parent=$!
        until [ -s {there}/pid ]; do sleep 0.02; done
        ssh=$(cat {here}/pid) far=$(cat {there}/pid)
        kill -0 $far
        {kill}
        while kill -0 $far 2>/dev/null; do sleep 0.02; done
    """
    inventory = {**stage.ours, "localhost": {"ansible_connection": "local"}}
    run = stage.site.play(WAYS["linear"], inventory, play(wrapper(here, "second"), {"shell": f"set -e\n{script}"}, hosts="localhost"))
    assert [status for status, _ in run.results("localhost")] == ["ok", "ok"], run.said()


@pytest.mark.parametrize("through", ["linear", "connection"])
@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync (Debian: apt-get install rsync)")
def test_git_scp_and_rsync(through: str, stage: Stage) -> None:
    """The lookup gives what they need, for an account behind SSH behind SSH; what it made is good for nothing once the run has ended."""
    site, second = stage.site, stage.site.accounts[1].name
    clean(site)
    there, here = site.work / "synchronize", site.out / "synchronize"
    git = {"environment": {"GIT_SSH": f"{here}/ssh"}}
    far = f"sudo:{second}@far"
    tasks: list[dict[str, Any]] = [
        wrapper(here, far),
        {"command": f"{here}/ssh far 'git init -q --bare {there}/repo && id -un'"},
        {"command": f"git -c user.name=x -c user.email=x@y -C {here} init -q mine"},
        {"command": f"git -c user.name=x -c user.email=x@y -C {here}/mine commit -q --allow-empty -m first"},
        {"command": f"git -C {here}/mine push -q far:{there}/repo HEAD:refs/heads/main", **git},
        {"command": f"git clone -q -b main far:{there}/repo {here}/clone", **git},
        {"command": f"git clone -q -b main far:{there}/repo {here}/again", "environment": {"GIT_SSH_COMMAND": f"{{{{ lookup('mitogen_ssh', '{far}') }}}}"}},
        {"command": f"scp -q -S {here}/ssh {here}/source/large far:{there}/large"},
        {"command": f"scp -q -O -S {here}/ssh far:{there}/large {here}/back"},
        {"command": f"rsync -a --rsh=\"{{{{ lookup('mitogen_ssh', '{far}') }}}}\" {here}/source far:{there}"},
        {"command": f"{here}/ssh other true", "ignore_errors": True},
        {"command": f"{here}/ssh far 'exit 7'", "ignore_errors": True},
        {"debug": {"msg": "{{ lookup('mitogen_ssh', 'nobody') }}"}, "ignore_errors": True},
    ]
    inventory = {**stage.ours, "localhost": {"ansible_connection": "local"}}
    run = site.play(
        WAYS[through], inventory, play(*tasks, hosts="localhost"), env={"ANSIBLE_LOOKUP_PLUGINS": str(PLUGINS / "lookup")} if through == "connection" else {}
    )
    results = run.results("localhost")
    assert [status for status, _ in results] == ["ok"] * 10 + ["failed"] * 3, run.said()
    assert results[1][1]["stdout"] == second
    assert [results[n][1]["rc"] for n in (10, 11)] == [255, 7]
    assert results[10][1]["stderr"] == "mitogen-mux: other: the ticket is for far, not for \"other\""
    assert "mitogen_ssh names nobody, which is not in the inventory" in results[12][1]["msg"]
    assert (there / "large").owner() == (there / "source").owner() == second
    assert (here / "back").read_bytes() == (here / "source" / "large").read_bytes()
    assert all((here / clone / ".git").is_dir() for clone in ("clone", "again"))
    late = subprocess.run([here / "ssh", "far", "true"], capture_output=True, text=True, check=False)
    assert late.returncode == 255
    assert late.stderr == "mitogen-mux: far: the ticket is not good, or no longer: it ends with the run that got it\n"
