"""Hosts that are reached through others: accounts of one machine, folders with a system in them, chains of all of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site

LINEAR = WAYS["linear"]

Inventory = dict[str, dict[str, Any]]


def play(*tasks: dict[str, Any], hosts: str = "all", **more: Any) -> list[dict[str, Any]]:
    return [{"hosts": hosts, "gather_facts": False, "tasks": list(tasks), **more}]


def logins(site: Site) -> int:
    return (site.base / "sshd" / "sshd.log").read_text(errors="replace").count("Accepted publickey")


def said(run: Run, host: str) -> list[Any]:
    return [result.get("stdout", result.get("msg")) for _, result in run.results(host)]


def account(tool: str, user: str, via: str = "machine", **more: Any) -> dict[str, Any]:
    return {"ansible_connection": f"mitogen_{tool}", "ansible_user": user, "mitogen_via": via, "ansible_python_interpreter": "/usr/bin/python3", **more}


def behind(site: Site, way: str, **hosts: dict[str, Any]) -> Inventory:
    """A machine that is reached by SSH, and what is reached through it. The machine itself is in no play."""
    machine = site.host_vars(WAYS[way], site.login)
    machine.setdefault("ansible_connection", "ssh")
    return {"machine": machine, **hosts}


@pytest.mark.parametrize("through", [pytest.param("linear", marks=pytest.mark.tier("smoke")), "connection"])
def test_accounts_of_one_machine_are_hosts(through: str, fresh: Site) -> None:
    names = [a.name for a in fresh.accounts]
    before = logins(fresh)
    inventory = behind(fresh, through, root=account("sudo", "root"), second=account("sudo", names[1]), third=account("su", names[2], via="sudo:root@machine"))
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


@pytest.mark.tier("smoke")
def test_a_chain_of_everything(fresh: Site) -> None:
    """SSH, sudo, a folder with a system in it, su, SSH again and sudo again: each task is one round trip on every link of the chain, and costs each what
    it costs where there is but one."""
    inside = fresh.base / "inside"
    inside.mkdir()
    script = f"mount --rbind / {inside}\nmount -t tmpfs none {inside}/mnt\necho inside >{inside}/mnt/where"
    outer = harness.Sshd(fresh.base / "outer", fresh.base / "keys" / "%u", inside=script)
    outer.start()
    try:
        first, _, third = fresh.accounts
        common = f"-o UserKnownHostsFile={outer.known_hosts} -o IdentitiesOnly=yes"
        ssh = {"ansible_port": outer.port, "ansible_ssh_common_args": common}
        inventory = {
            "machine": fresh.host_vars(LINEAR, first, **ssh),
            "root": account("sudo", "root"),
            "box": {"ansible_connection": "mitogen_chroot", "ansible_host": str(inside), "mitogen_via": "root"},
            "third": account("su", third.name, via="box"),
            "far": fresh.host_vars(LINEAR, first, mitogen_via="third", ansible_connection="ssh"),
            "deep": account("sudo", "root", via="far"),
        }
        task = {"command": "cat /proc/self/loginuid", "changed_when": False, "failed_when": False}
        who = fresh.play(LINEAR, inventory, play({"command": "id -un"}, {"stat": {"path": "/mnt/where"}}, hosts="box,third,deep"))
        assert [said(who, host)[0] for host in ("box", "third", "deep")] == ["root", third.name, "root"], who.said()
        exists = [who.results(host)[1][1]["stat"]["exists"] for host in ("box", "third", "deep")]
        assert exists == [True, True, False], who.said()  # the last SSH server is not in the folder
        names = [n["name"] for n in fresh.status()["nodes"]]
        assert sum(name.startswith("ssh ") for name in names) == 4, names  # two connections, an agent on each

        def costs(tasks: int, host: str) -> dict[str, dict[str, int]]:
            """Of each link that had to do with the tasks: round trips, bytes down and up."""
            before = {n["id"]: n for n in fresh.status()["nodes"]}
            done = fresh.play(LINEAR, inventory, play(*[task] * tasks, hosts=host))
            assert done.rc == 0, done.said()
            counts = ("round_trips", "sent_bytes", "received_bytes")
            found = {f"{n['name']} {n['id']}": {what: int(n[what]) - int(before[n["id"]][what]) for what in counts} for n in fresh.status()["nodes"]}
            return {name: cost for name, cost in found.items() if cost["round_trips"]}

        def costs_of_ten(host: str) -> dict[str, dict[str, int]]:
            few, many = costs(2, host), costs(12, host)
            assert list(few) == list(many), (few, many)
            return {name: {what: many[name][what] - few[name][what] for what in few[name]} for name in few}

        costs(1, "root")  # its first use brings the module
        near, deep = costs_of_ten("root"), costs_of_ten("deep")
        assert [name.split()[0] for name in deep] == ["ssh", "sudo", "chroot", "su", "ssh", "sudo"]
        assert {cost["round_trips"] for cost in (*near.values(), *deep.values())} == {10}, (near, deep)
        # Each hop costs what one hop costs, and for each task a frame's header: what is inside belongs to the next one. SSH adds its own.
        one, links = list(near.values())[-1], list(deep.values())
        for cost, behind, header, chance in zip(links, [*links[1:], one], (9, 9, 9, 100, 9, 0), (9, 9, 9, 20, 9, 10)):
            assert 0 <= cost["sent_bytes"] - behind["sent_bytes"] <= 10 * header, (near, deep)
            assert cost["received_bytes"] - behind["received_bytes"] <= 10 * (header + chance), (near, deep)  # an answer may come in two pieces
    finally:
        outer.stop()


FAULTY: dict[str, tuple[Inventory, str, str]] = {
    "a circle": ({"a": {"mitogen_via": "b"}, "b": {"mitogen_via": "a"}}, "failed", "mitogen_via goes in a circle: a -> b -> a"),
    "itself": ({"a": {"mitogen_via": "sudo:root@a"}}, "failed", "mitogen_via goes in a circle: a -> a"),
    "nobody": ({"a": {"mitogen_via": "nobody"}}, "failed", "a: mitogen_via names nobody, which is not in the inventory"),
    "no way": ({"a": {"mitogen_via": "b"}, "b": {"ansible_connection": "psrp"}}, "failed", "b, whose connection psrp is none that others can go through"),
    "switched off": ({"a": {"mitogen_via": "b"}, "b": {"ansible_connection": "ssh", "mitogen_enabled": False}}, "failed", "b, where mitogen_enabled is false"),
    "alone": ({"a": {"mitogen_enabled": False}}, "unreachable", "mitogen_sudo is a connection of mitogen-mux"),
    "no such account": ({"a": {"ansible_user": "nobodyatall"}}, "unreachable", "nobodyatall"),
    "no such tool": ({"a": {"ansible_become_exe": "/no/sudo"}}, "unreachable", "a: sudo root"),
    "no such container": (
        {"a": {"ansible_connection": "mitogen_chroot", "ansible_host": "/no/such/folder"}},
        "unreachable",
        "a: chroot /no/such/folder: chroot cannot",
    ),
    "no such program": (
        {"a": {"ansible_connection": "mitogen_jail", "mitogen_jexec_path": "/no/jexec", "mitogen_via": "b"}, "b": account("sudo", "root", via="")},
        "unreachable",
        "cannot start /no/jexec",
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_are_named(fault: str, site: Site, binary: Path) -> None:
    inventory, status, text = FAULTY[fault]
    base = {"ansible_connection": "mitogen_sudo", "ansible_python_interpreter": "/usr/bin/python3"}
    done = site.play(LINEAR, {name: {**base, **more} for name, more in inventory.items()}, play({"command": "id"}, hosts="a"))
    assert [found for found, _ in done.results("a")] == [status], done.said()
    assert text in done.results("a")[0][1]["msg"], done.said()
    assert "Traceback" not in done.said()


def test_passwords_of_accounts(fresh: Site) -> None:
    """The tool that asks gets the password of the account's host, once; a wrong one makes that host unreachable and no other."""
    second, third = fresh.accounts[1:]
    inventory = behind(
        fresh,
        "linear",
        asker=account("sudo", "root", via=f"su:{second.name}@door", ansible_password=second.password),
        wrong=account("sudo", "root", via=f"su:{second.name}@door", ansible_password="not this one"),
        none=account("sudo", "root", via=f"su:{second.name}@door"),
        door=account("sudo", "root"),
        third=account("su", third.name, ansible_password=third.password),
    )
    done = fresh.play(LINEAR, inventory, play({"command": "id -un"}, hosts="asker,wrong,none,third"))
    assert said(done, "asker") == ["root"] and said(done, "third") == [third.name], done.said()
    for host, text in (("wrong", "Incorrect sudo password"), ("none", "Missing sudo password")):
        ((status, result),) = done.results(host)
        assert status == "unreachable" and text in result["msg"], done.said()
    assert all(a.password not in done.said() for a in fresh.accounts)


def test_what_the_target_logs(fresh: Site) -> None:
    """A hundred tasks as two other accounts: one login, and sudo once for each account."""
    log = fresh.base / "sudo.log"
    rules = Path("/etc/sudoers.d", f"mxt-log-{fresh.login.name}")
    rules.write_text(f'Defaults:{fresh.login.name} logfile="{log}"\n')
    rules.chmod(0o440)
    before = logins(fresh)
    try:
        tasks = [{"command": "true", "become": True, "become_user": user} for _ in range(50) for user in ("root", fresh.accounts[2].name)]
        done = fresh.play(LINEAR, {"h": fresh.host_vars(LINEAR, fresh.login)}, play(*tasks))
        assert done.recap()["h"]["ok"] == 100, done.said()
        assert logins(fresh) == before + 1
        assert log.read_text().count("COMMAND=") == 2, log.read_text()
    finally:
        rules.unlink()
