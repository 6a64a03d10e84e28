"""SSH by the ssh program of the account that a host is reached through: whose keys, files and questions count there, and what goes wrong how."""

from __future__ import annotations

import itertools
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from oracle import Oracle
from runs import WAYS, Site
from test_bad_input import statuses
from test_cases import check
from test_hops import Inventory, account, logins, play, said

PLAIN, OURS = WAYS["plain"], WAYS["linear"]
WHO: dict[str, Any] = {"command": "id -un"}


class Far:
    """A host that takes the keys of accounts on another one, and passwords."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.sshd = harness.Sshd(site.base / name, site.base / name / "keys" / "%u", extra="Match all\nPasswordAuthentication yes\n")
        shutil.rmtree(self.sshd.directory, ignore_errors=True)
        (self.sshd.directory / "keys").mkdir(parents=True, mode=0o755)
        self.sshd.start()

    def __call__(self, login: harness.Account, via: str = "near", **more: Any) -> dict[str, Any]:
        """The host as an inventory has it."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.sshd.port,
            "ansible_user": login.name,
            "ansible_python_interpreter": "/usr/bin/python3",
            "mitogen_via": via,
            "mitogen_ssh_transport": "via",
            **more,
        }

    def knows(self, key: Path, login: harness.Account) -> None:
        with (self.sshd.directory / "keys" / login.name).open("a") as keys:
            keys.write(Path(f"{key}.pub").read_text())

    def log(self) -> str:
        return (self.sshd.directory / "sshd.log").read_text(errors="replace")

    def accepted(self) -> list[tuple[str, str]]:
        """Account and key, or "password", of each login."""
        return re.findall(r"Accepted (?:publickey|(?=password)) ?(?:password )?for (\S+) from .* ssh2(?:: \S+ (\S+))?", self.log())


def own(a: harness.Account, name: str, text: str | None = None) -> Path:
    """A file in the .ssh of an account, with that text, or a new key."""
    path = a.home / ".ssh" / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if text is None:
        harness.quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    else:
        path.write_text(text)
    for each in (path.parent, path, *path.parent.glob(f"{name}.pub")):
        os.chown(each, a.uid, pwd.getpwnam(a.name).pw_gid)
    return path


def fingerprint(key: Path) -> str:
    return harness.quiet("ssh-keygen", "-lf", f"{key}.pub").split()[1]


@pytest.fixture
def far(fresh: Site) -> Iterator[Far]:
    it = Far(fresh, "far")
    own(fresh.login, "known_hosts", it.sshd.known_hosts.read_text())
    yield it
    fresh.stop_daemon()
    it.sshd.stop()


def near(site: Site, **more: Any) -> dict[str, Any]:
    return site.host_vars(OURS, site.login, ansible_connection="ssh", **more)


TASKS: list[dict[str, Any]] = [
    WHO,
    {"copy": {"content": "words\n", "dest": "~/there"}},
    {"fetch": {"src": "~/there", "dest": "{{ out }}/", "flat": True}},
    {"shell": "echo out; echo err >&2; exit 3", "ignore_errors": True},
    {"raw": "echo raw; test -t 0 && echo terminal"},
    {"raw": "cat ~/there; exit 4", "ignore_errors": True},
    {"command": "cat", "args": {"stdin": "in"}},
    {**WHO, "become": True},
    {"copy": {"src": "{{ out }}/there", "dest": "~/again", "mode": "0600"}},
    {"file": {"path": "~/again", "state": "absent"}},
    {"copy": {"src": "{{ large }}", "dest": "~/large"}},
    {"fetch": {"src": "~/large", "dest": "{{ out }}/", "flat": True}},
    {"command": "sleep 1", "async": 20, "poll": 1},
]


def test_results_and_logins(far: Far, fresh: Site, oracle: Oracle) -> None:
    """Plain Ansible that logs in from here, the forwarded way and the host's own ssh give the same; the last logs in with its own account's key, and once."""
    login = fresh.accounts[1]
    own_key = own(fresh.login, "id_ed25519")
    far.knows(own_key, login)
    far.knows(fresh.key, login)
    from_here = {"ansible_ssh_private_key_file": str(fresh.key), "ansible_ssh_common_args": f"-o UserKnownHostsFile={far.sshd.known_hosts}"}
    large = fresh.base / "large"
    large.write_bytes(os.urandom(3 << 20))
    both: dict[str, Any] = {"ansible_become_password": login.password, "out": str(fresh.out), "large": str(large)}
    runs = []
    for way, more in (
        (PLAIN, {"mitogen_via": None, "mitogen_ssh_transport": None, **from_here}),
        (OURS, {"mitogen_ssh_transport": "native", **from_here}),
        (OURS, {}),
    ):
        harness.empty_home(login)
        for name in ("there", "large"):
            (fresh.out / name).unlink(missing_ok=True)
        hosts = {"near": near(fresh), "far": {k: v for k, v in far(login, **both, **more).items() if v is not None}}
        runs.append(fresh.play(way, hosts, play(*TASKS, hosts="far")))
        assert statuses(runs[-1], "far").count("ok") == len(TASKS) - 2, runs[-1].said()
    for ours in runs[1:]:
        check(oracle.events("via", "linear", runs[0].events, ours.events))
    keys = [key for user, key in far.accepted() if user == login.name]
    assert keys == [fingerprint(fresh.key)] * 2 + [fingerprint(own_key)], far.log()


def test_what_counts_is_the_other_account(far: Far, fresh: Site) -> None:
    """Its ssh_config, a key that it has by another name, and the key agent that it was given; of an account that is become there, and here, too."""
    first, second, third = fresh.accounts
    key, become, carried = own(first, "some key"), own(second, "id_ed25519"), fresh.base / "carried"
    harness.quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(carried))
    far.knows(key, second)
    far.knows(carried, third)
    far.knows(become, first)
    far.knows(fresh.key, first)
    own(second, "known_hosts", far.sshd.known_hosts.read_text())
    own(first, "config", f"Host elsewhere\nHostName 127.0.0.1\nPort {far.sshd.port}\nUser {third.name}\n")
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"SSH_AUTH_SOCK=([^;]+);.*SSH_AGENT_PID=(\d+);", agent, re.DOTALL)
    assert found
    try:
        subprocess.run(["ssh-add", "-q", str(carried)], env={**os.environ, "SSH_AUTH_SOCK": found[1]}, check=True)
        args = f"{near(fresh)['ansible_ssh_common_args']} -o ForwardAgent=yes"
        python = {"ansible_python_interpreter": "/usr/bin/python3", "ansible_connection": "ssh"}
        hosts: Inventory = {
            "near": near(fresh, ansible_ssh_common_args=args),
            "named": far(second, ansible_ssh_private_key_file="~/.ssh/some key", ansible_ssh_extra_args="-o IdentitiesOnly=yes"),
            "configured": {"ansible_host": "elsewhere", "mitogen_via": "near", "mitogen_ssh_transport": "via", **python},
            "become": far(first, via=f"{second.name}@near"),
            "me": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"},
            "here": fresh.host_vars(OURS, first, **far(first, via="me"), ansible_ssh_common_args=f"-o UserKnownHostsFile={far.sshd.known_hosts}"),
        }
        done = fresh.play(OURS, hosts, play(WHO, hosts="named,configured,become,here"), env={"SSH_AUTH_SOCK": found[1]})
    finally:
        os.kill(int(found[2]), 15)
    expected = {"named": (second, key), "configured": (third, carried), "become": (first, become), "here": (first, fresh.key)}
    assert {host: said(done, host) for host in expected} == {host: [login.name] for host, (login, _) in expected.items()}, done.said()
    assert sorted(far.accepted()) == sorted((login.name, fingerprint(used)) for login, used in expected.values()), far.log()


def test_passwords(far: Far, fresh: Site) -> None:
    """It is the program there that asks, and it gets the password once; a wrong one is sent once."""
    second, third = fresh.accounts[1:]
    hosts = {
        "near": near(fresh),
        "right": far(second, ansible_password=second.password, ansible_become_password=second.password),
        "wrong": far(third, ansible_password="not this one"),
        "none": far(third),
    }
    done = fresh.play(OURS, hosts, play(WHO, {**WHO, "become": True, "when": "inventory_hostname == 'right'"}, hosts="right,wrong,none"), ["-vvv"])
    assert said(done, "right") == [second.name, "root"], done.said()
    for host, text in (("wrong", "The password was refused."), ("none", "Permission denied (")):
        ((status, result),) = done.results(host)
        assert status == "unreachable" and text in result["msg"], done.said()
        assert f"It is ssh of the hop before (ssh {fresh.login.name}@127.0.0.1" in result["msg"], done.said()
    assert far.log().count(f"Failed password for {third.name}") == 1, far.log()
    assert [user for user, _ in far.accepted()] == [second.name], far.log()
    assert second.password not in done.said() and "not this one" not in done.said()
    logs = [path.read_text(errors="replace") for path in fresh.mux.glob("*.log")]
    assert logs and not any(second.password in text for text in (*logs, fresh.tool("status").stdout))


def faulty(far: Far, site: Site) -> dict[str, tuple[dict[str, Any], str]]:
    third = site.accounts[2]
    return {
        "an unknown host key": (far(third, ansible_host="localhost"), "Host key verification failed: the ED25519 key SHA256:"),
        "nobody listens": (far(third, ansible_port=site.closed_port), f"connect to host 127.0.0.1 port {site.closed_port}: Connection refused"),
        "no such name": (far(third, ansible_host="nowhere.invalid"), "Could not resolve hostname nowhere.invalid"),
        "no such program": (far(third, ansible_ssh_executable="/no/ssh"), "There is no program /no/ssh"),
        "no such option": (far(third, ansible_ssh_extra_args="-o NoSuchOption=1"), "Bad configuration option: nosuchoption"),
        "nobody before": (far(third, via=""), "Set mitogen_via, or unset mitogen_ssh_transport."),
        "a key as content": (
            far(third, ansible_private_key=site.key.read_text()),
            "A private key that is given as content cannot be used by ssh of the hop before (ssh" if site.version() >= (2, 19) else "Permission denied (",
        ),
        "another program of the user's": (far(third, mitogen_ssh_transport="openssh"), "mitogen_ssh_transport: via has the ssh program of that host connect"),
    }


def test_faults_are_named(far: Far, fresh: Site) -> None:
    """Each by the host, the hop and the remedy, and none of them in the way of another."""
    faults = faulty(far, fresh)
    before = logins(fresh)
    hosts = {"near": near(fresh), **{f"h{n}": host for n, (host, _) in enumerate(faults.values())}}
    done = fresh.play(OURS, hosts, play(WHO, hosts="h*"))
    for n, (name, (host, text)) in enumerate(faults.items()):
        ((status, result),) = done.results(f"h{n}")
        assert status == "unreachable" and text in result["msg"], f"{name}: {done.said()}"
        assert f"h{n}: ssh {host['ansible_user']}@{host['ansible_host']}:{host['ansible_port']}: " in result["msg"], done.said()
        assert "docs/reference/errors.md#" in result["msg"], done.said()
    assert "Traceback" not in done.said()
    assert logins(fresh) == before + 1


def test_a_machine_without_ssh(far: Far, fresh: Site) -> None:
    bare = harness.Sshd(fresh.base / "bare", fresh.sshd.authorized, inside=f"mount --bind /dev/null {shutil.which('ssh')}")
    bare.start()
    try:
        without = near(fresh, ansible_port=bare.port, ansible_ssh_common_args=f"-o UserKnownHostsFile={bare.known_hosts} -o IdentitiesOnly=yes")
        done = fresh.play(OURS, {"near": without, "far": far(fresh.accounts[2])}, play(WHO, hosts="far"))
        ((status, result),) = done.results("far")
        assert status == "unreachable" and "There is no program ssh\n" in result["msg"] and "Install OpenSSH's client" in result["msg"], done.said()
    finally:
        fresh.stop_daemon()
        bare.stop()


def test_further_hops(far: Far, fresh: Site) -> None:
    """SSH, two accounts' own ssh, sudo: every task is one round trip on every link, and costs each what it costs where there is but one."""
    first, second, _ = fresh.accounts
    deeper = Far(fresh, "deeper")
    try:
        keys = own(first, "id_ed25519"), own(second, "id_ed25519")
        far.knows(keys[0], second)
        deeper.knows(keys[1], first)
        own(second, "known_hosts", deeper.sshd.known_hosts.read_text())
        hosts: Inventory = {"near": near(fresh), "far": far(second), "deep": deeper(first, via="far"), "root": account("sudo", "root", via="deep")}
        task = {"command": "cat /proc/self/loginuid", "changed_when": False, "failed_when": False}
        done = fresh.play(OURS, hosts, play(WHO, {"command": "cat /etc/shadow"}, hosts="near,far,deep,root", ignore_errors=True))
        assert [said(done, host)[0] for host in hosts] == [first.name, second.name, first.name, "root"], done.said()
        assert statuses(done, "root") == ["ok", "ok"], done.said()

        def costs(tasks: int) -> list[tuple[str, dict[str, int]]]:
            counts = ("round_trips", "sent_bytes", "received_bytes")
            before = {n["id"]: n for n in fresh.status()["nodes"]}
            assert fresh.play(OURS, hosts, play(*[task] * tasks, hosts="root")).rc == 0
            found = [(n["name"], {what: int(n[what]) - int(before[n["id"]][what]) for what in counts}) for n in fresh.status()["nodes"]]
            return [(name, cost) for name, cost in found if cost["round_trips"]]

        costs(1)
        few, many = costs(2), costs(12)
        links = [{what: cost[what] - less[what] for what in cost} for (_, less), (_, cost) in zip(few, many, strict=True)]
        assert [name.split()[0] for name, _ in many] == ["ssh", "ssh", "ssh", "sudo"]
        assert {cost["round_trips"] for cost in links} == {10}, links
        for cost, inner in itertools.pairwise(links):
            assert cost["sent_bytes"] - inner["sent_bytes"] == 10 * 9, links
            assert 90 <= cost["received_bytes"] - inner["received_bytes"] <= 10 * 18, links  # an answer may come in two pieces
        assert [len(it.accepted()) for it in (far, deeper)] == [1, 1]
    finally:
        fresh.stop_daemon()
        deeper.sshd.stop()


def test_its_life(far: Far, fresh: Site) -> None:
    """It is there for the next run; a task that is out of time leaves it; reset_connection logs in anew there and nowhere else; so does the task after
    the connection was lost."""
    second = fresh.accounts[1]
    far.knows(own(fresh.login, "id_ed25519"), second)
    hosts = {"near": near(fresh), "far": far(second)}
    before = logins(fresh)

    def counts() -> tuple[int, int]:
        return logins(fresh) - before, len(far.accepted())

    assert fresh.play(OURS, hosts, play(WHO, hosts="far")).rc == 0
    slow: dict[str, Any] = {"command": "sleep 100", "timeout": 1, "ignore_errors": True}
    done = fresh.play(OURS, hosts, play(WHO, slow, WHO, {"raw": "id -un"}, hosts="far"))
    assert statuses(done, "far") == ["ok", "failed", "ok", "ok"], done.said()
    assert counts() == (1, 1), done.said()
    done = fresh.play(OURS, hosts, play(WHO, {"meta": "reset_connection"}, WHO, hosts="far"))
    assert statuses(done, "far") == ["ok", "ok"] and counts() == (1, 2), done.said()
    harness.end(far.sshd.sessions())
    done = fresh.play(OURS, hosts, play(WHO, WHO, hosts="far"))
    assert statuses(done, "far") == ["ok", "ok"] and counts() == (1, 3), done.said()
    done = fresh.play(OURS, hosts, play(WHO, hosts="far"), env={"MITOGEN_PERSIST": "0"})
    harness.until(lambda: not far.sshd.sessions(), 20, "the connection is closed with the run")
    harness.until(lambda: not programs(fresh), 20, "no ssh program is left")


def programs(site: Site) -> list[int]:
    """The ssh programs that our accounts run."""
    names = [a.name for a in site.accounts]
    return [p.pid for p in harness.processes() if p.state != "Z" and p.argv[:1] and Path(p.argv[0]).name == "ssh" and _owner(p.pid) in names]


def _owner(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}").owner()
    except (OSError, KeyError):
        return ""


def test_without_an_interpreter(far: Far, fresh: Site, oracle: Oracle) -> None:
    """Plain commands need no Python there: each is a program, and a login, of its own."""
    second, own_key = fresh.accounts[1], own(fresh.login, "id_ed25519")
    far.knows(own_key, second)
    far.knows(fresh.key, second)
    tasks = play({"raw": "id -un; echo err >&2; exit 3"}, {"raw": "test -t 0 && echo $TERM"}, {"raw": "true"}, WHO, hosts="far", ignore_errors=True)
    runs = []
    for way, more in ((PLAIN, fresh.host_vars(PLAIN, second, ansible_ssh_common_args=f"-o UserKnownHostsFile={far.sshd.known_hosts}")), (OURS, {})):
        it = {**more, **far(second, ansible_python_interpreter="/no/python")}
        runs.append(fresh.play(way, {"near": near(fresh), "far": it}, tasks))
    check(oracle.events("via", "linear", *(run.events for run in runs)))
    assert statuses(runs[1], "far") == ["failed", "ok", "ok", "failed"], runs[1].said()
    assert {key for _, key in far.accepted()} == {fingerprint(fresh.key), fingerprint(own_key)}


def test_the_host_before_goes(far: Far, fresh: Site) -> None:
    """What ends with it says so, and the next task finds the way again."""
    second = fresh.accounts[1]
    far.knows(own(fresh.login, "id_ed25519"), second)
    hosts = {"near": near(fresh), "far": far(second)}
    with fresh.files(hosts, play(WHO, {"command": f"sh -c 'touch {fresh.work}/via/on; sleep 100'", "ignore_unreachable": True}, WHO, hosts="far")) as directory:
        running = fresh.start(OURS, directory)
        harness.until(lambda: (fresh.work / "via" / "on").exists(), 60, "the task runs")
        harness.end(fresh.sshd.sessions())
        done = fresh.result(running, directory)
    assert statuses(done, "far") == ["ok", "unreachable", "ok"], done.said()
    assert f"far: ssh {fresh.login.name}@127.0.0.1:{fresh.sshd.port}: " in done.results("far")[1][1]["msg"], done.said()
