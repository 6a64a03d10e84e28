"""Hosts that are reached through others: accounts of one machine, folders with a system in them, chains of all of that."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site

LINEAR = WAYS["linear"]
WAYS_IN = ("linear", "connection")

Inventory = dict[str, dict[str, Any]]


def play(*tasks: dict[str, Any], hosts: str = "all", **more: Any) -> list[dict[str, Any]]:
    return [{"hosts": hosts, "gather_facts": False, "tasks": list(tasks), **more}]


def logins(site: Site) -> int:
    return (site.base / "sshd" / "sshd.log").read_text(errors="replace").count("Accepted publickey")


def said(run: Run, host: str) -> list[Any]:
    return [result.get("stdout", result.get("msg")) for _, result in run.results(host)]


@pytest.fixture
def fresh(site: Site, binary: Path) -> Iterator[Site]:
    """A site whose daemon is none of the tests before."""
    site.stop_daemon()
    site.clean(["hops"])
    yield site
    site.stop_daemon()


def account(tool: str, user: str, via: str = "machine", **more: Any) -> dict[str, Any]:
    return {"ansible_connection": f"mitogen_{tool}", "ansible_user": user, "mitogen_via": via, "ansible_python_interpreter": "/usr/bin/python3", **more}


def behind(site: Site, way: str, **hosts: dict[str, Any]) -> Inventory:
    """A machine that is reached by SSH, and what is reached through it. The machine itself is in no play."""
    machine = site.host_vars(WAYS[way], site.login)
    machine.setdefault("ansible_connection", "ssh")
    return {"machine": machine, **hosts}


@pytest.mark.parametrize("through", WAYS_IN)
def test_accounts_of_one_machine_are_hosts(through: str, fresh: Site) -> None:
    names = [a.name for a in fresh.accounts]
    before = logins(fresh)
    inventory = behind(
        fresh,
        through,
        root=account("sudo", "root"),
        second=account("sudo", names[1]),
        third=account("su", names[2], via="sudo:root@machine"),
    )
    where = fresh.work / "hops"
    tasks = (
        {"command": "id -un"},
        {"command": "id -un", "become": True, "become_user": names[0]},
        {"raw": "echo $USER; pwd >/dev/null"},
        {"copy": {"content": "{{ inventory_hostname }}", "dest": f"{where}/{{{{ inventory_hostname }}}}"}},
        {"command": "id -un"},
    )
    done = fresh.play(WAYS[through], inventory, play(*tasks, hosts="root,second,third", become_method="sudo", ignore_errors=True))
    for host, user in (("root", "root"), ("second", names[1]), ("third", names[2])):
        results = done.results(host)
        assert [status for status, _ in results] == ["ok", "ok" if host == "root" else "failed", "ok", "ok", "ok"], done.said()
        assert said(done, host)[0] == said(done, host)[4] == user, done.said()
        assert (where / host).read_text() == host
        assert (where / host).owner() == user
    assert logins(fresh) == before + 1
    shown = [(n["name"], n["state"]) for n in fresh.status()["nodes"]]
    assert sorted(name for name, _ in shown if name.startswith(("sudo", "su "))) == sorted(
        ["sudo root", f"sudo {names[1]}", f"su {names[2]}", f"sudo {names[0]}"]
    ), shown
