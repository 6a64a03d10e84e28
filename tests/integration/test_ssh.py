"""SSH as the user's inventory has it: where passwords come from, addresses and accounts that change during a run, hosts that go and come back."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site, Way
from test_bad_input import both, known_hosts, lone, said_of, statuses
from test_life import HELLO, play

PLAIN, OURS = WAYS["plain"], WAYS["linear"]
PASSWORDS = "Match all\nPasswordAuthentication yes\n"
NO_KEYS = "-o PubkeyAuthentication=no"


@pytest.fixture
def stage(site: Site, binary: Path) -> Site:
    site.stop_daemon()
    site.end_masters()
    return site


@contextlib.contextmanager
def other_sshd(site: Site, name: str, extra: str = "") -> Iterator[harness.Sshd]:
    """One more host."""
    it = harness.Sshd(site.base / f"sshd-{name}", site.sshd.authorized, extra=extra)
    try:
        it.start()
        yield it
    finally:
        it.stop()
        shutil.rmtree(it.directory, ignore_errors=True)


@pytest.fixture
def guarded(stage: Site) -> Iterator[harness.Sshd]:
    """A host that takes passwords."""
    with other_sshd(stage, "passwords", PASSWORDS) as it:
        yield it


def reach(it: harness.Sshd, more: str = "") -> dict[str, Any]:
    return {"ansible_port": it.port, "ansible_ssh_common_args": f"-o UserKnownHostsFile={it.known_hosts} -o IdentitiesOnly=yes {more}"}


def by_password(site: Site, it: harness.Sshd, way: Way, account: harness.Account, **more: Any) -> dict[str, dict[str, Any]]:
    return {"h": site.host_vars(way, account, **reach(it, NO_KEYS), ansible_ssh_private_key_file=None, **more)}


class Typist:
    """A run on a terminal of its own, and who answers its questions."""

    def __init__(self, site: Site, way: Way, directory: Path, args: list[str], answers: list[str]) -> None:
        self.site, self.directory = site, directory
        master, self.slave = os.openpty()
        with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                # The first terminal that the leader of a session opens is its own.
                ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(self.slave), str(site.ansible), "-i", "inventory.yml", *args, "playbook.yml"],
                cwd=directory,
                env={**site.environment(way), "MUX_EVENTS": str(directory / "events")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.thread = threading.Thread(target=self._answer, args=(master, answers))
        self.thread.start()

    def _answer(self, master: int, answers: list[str]) -> None:
        seen = b""
        with contextlib.suppress(OSError):  # so ends a terminal
            while part := os.read(master, 1024):
                seen += part
                if answers and seen.rstrip(b" ").endswith(b":"):
                    os.write(master, answers.pop(0).encode() + b"\n")
                    seen = b""
        os.close(master)

    def result(self) -> Run:
        run = self.site.result(self.process, self.directory)
        os.close(self.slave)  # the last: the typist sees the end
        self.thread.join(20)
        assert not self.thread.is_alive()
        return run


WHO: dict[str, object] = {"command": "id -un"}


def who(run: Run) -> list[str]:
    return [str(result.get("stdout")) for _, result in run.results("h")]


@pytest.mark.parametrize("source", ["variable", "file", "typed", "typed for both"])
def test_passwords(stage: Site, guarded: harness.Sshd, source: str) -> None:
    """The login's password, and for become the same one if no other is given."""
    account = stage.accounts[1]
    tasks = play(WHO, {**WHO, "become": True})
    for way in (PLAIN, OURS):
        if way is PLAIN and not shutil.which("sshpass"):
            continue
        hosts = by_password(stage, guarded, way, account, **({"ansible_password": account.password} if source == "variable" else {}))
        args = {"file": ["--connection-password-file", str(stage.password_file())], "typed": ["-k"], "typed for both": ["-k", "-K"]}.get(source, [])
        if source != "typed for both":
            hosts["h"]["ansible_become_password"] = account.password
        answers = {"typed": [account.password], "typed for both": [account.password, ""]}.get(source, [])
        with stage.files(hosts, tasks) as directory:
            run = Typist(stage, way, directory, args, answers).result()
        assert run.rc == 0, f"{way.name}: {run.said()}"
        assert who(run) == [account.name, "root"]
        assert account.password not in run.said()


def test_wrong_password(stage: Site, guarded: harness.Sshd) -> None:
    account = stage.accounts[1]
    wrong = {"ansible_user": account.name, "ansible_password": "not it", "ansible_ssh_private_key_file": "/nowhere", **reach(guarded, NO_KEYS)}
    if not shutil.which("sshpass"):
        pytest.skip("plain Ansible needs sshpass")
    ours = both(stage, wrong, [HELLO, HELLO])
    assert statuses(ours, "bad") == ["unreachable"]
    assert "password" in said_of(ours, "bad") and f"{account.name}@127.0.0.1" in said_of(ours, "bad")


def test_passwords_of_two_runs_side_by_side(stage: Site, guarded: harness.Sshd) -> None:
    """One daemon, two people: each has what belongs to his own passwords, and a wrong one gets nothing of the other's."""
    second, third = stage.accounts[1:]
    tasks = play(WHO, {"command": "sleep 1"}, {**WHO, "become": True, "ignore_errors": True})
    with contextlib.ExitStack() as stack:
        typists = []
        for account, login, become in ((second, second.password, ""), (third, third.password, ""), (second, second.password, "wrong"), (second, "wrong", "")):
            directory = stack.enter_context(stage.files(by_password(stage, guarded, OURS, account), tasks))
            typists.append(Typist(stage, OURS, directory, ["-k", "-K"], [login, become]))
        runs = [typist.result() for typist in typists]
    assert len(stage.daemons()) == 1
    assert who(runs[0])[::2] == [second.name, "root"], runs[0].said()
    assert statuses(runs[1], "h") == ["ok", "ok", "failed"] and who(runs[1])[0] == third.name, runs[1].said()
    assert statuses(runs[2], "h") == ["ok", "ok", "failed"], runs[2].said()
    assert statuses(runs[3], "h") == ["unreachable"], runs[3].said()


def test_what_changes_during_a_run(stage: Site, guarded: harness.Sshd) -> None:
    """Account, password and address are those that the variables have at each task."""
    first, second = stage.accounts[:2]
    tasks: list[object] = [
        WHO,
        {"set_fact": {"ansible_user": second.name}},
        WHO,
        {"set_fact": {"ansible_port": guarded.port, "ansible_ssh_common_args": reach(guarded)["ansible_ssh_common_args"]}},
        {"shell": "echo $SSH_CONNECTION | cut -d' ' -f4"},
        {**WHO, "vars": {"ansible_user": first.name}},
        {"meta": "reset_connection"},
        WHO,
    ]
    seen = []
    for way in (PLAIN, OURS):
        run = stage.play(way, {"h": stage.host_vars(way, first)}, play(*tasks))
        assert run.rc == 0, run.said()
        seen.append(who(run))
    assert seen[0] == seen[1]
    assert seen[1][4] == str(guarded.port)


def test_a_key_agent_of_a_later_run(stage: Site, guarded: harness.Sshd) -> None:
    """The daemon asks the agent of the run that connects, not that of the run that started it."""
    for it in (stage.sshd, guarded):
        agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"SSH_AUTH_SOCK=([^;]+);.*SSH_AGENT_PID=(\d+);", agent, re.DOTALL)
        assert found
        try:
            subprocess.run(["ssh-add", "-q", str(stage.key)], env={**os.environ, "SSH_AUTH_SOCK": found[1]}, check=True)
            common = f"-o UserKnownHostsFile={it.known_hosts}"
            hosts = {"h": stage.host_vars(OURS, stage.login, ansible_ssh_private_key_file=None, ansible_port=it.port, ansible_ssh_common_args=common)}
            run = stage.play(OURS, hosts, play(HELLO), env={"SSH_AUTH_SOCK": found[1]})
            assert run.rc == 0, run.said()
        finally:
            os.kill(int(found[2]), 15)
    assert len(stage.daemons()) == 1


class Restarts:
    """Stops a host with all that runs on it when its file says so, and starts it anew. The host ends with this object's thread."""

    def __init__(self, it: harness.Sshd, work: Path) -> None:
        self.it, self.word, self.boot = it, work / "go-down", work / "boot"
        self.over = threading.Event()
        self.boot.write_text("1")
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            if self.word.exists():
                self.it.stop()
                self.word.unlink()
                self.over.wait(1)
                self.boot.write_text(str(int(self.boot.read_text()) + 1))
                self.it.start()

    def close(self) -> None:
        self.over.set()
        self.thread.join()


def test_reboot(stage: Site) -> None:
    """The module waits until the host has gone and come back; what comes after that finds it."""
    stage.clean(["reboot"])
    work = stage.work / "reboot"
    more = {"reboot_command": f"touch {work}/go-down", "boot_time_command": f"cat {work}/boot", "reboot_timeout": 60}
    seen = []
    with other_sshd(stage, "reboot") as it, contextlib.closing(Restarts(it, work)):
        for way in (PLAIN, OURS):
            hosts = {"h": stage.host_vars(way, stage.login, **reach(it))}
            run = stage.play(way, hosts, play(WHO, {"reboot": {**more, "post_reboot_delay": 0}, "become": True}, WHO, {**WHO, "become": True}))
            assert run.rc == 0, run.said()
            results = [result for _, result in run.results("h")]
            assert results[1]["rebooted"] is True
            seen.append([statuses(run, "h"), who(run)[2:], sorted(results[1])])
    assert seen[0] == seen[1]


def test_wait_for_connection(stage: Site) -> None:
    """timeout: 1 is a second, for a host that never comes too."""
    never = {"wait_for_connection": {"timeout": 1, "sleep": 1}, "ignore_errors": True}
    ours = both(stage, {"ansible_port": stage.closed_port}, [never])
    assert statuses(ours, "bad") == ["failed"] and "timed out waiting for ping module test" in said_of(ours, "bad")


def test_wait_for_a_host_that_comes(stage: Site) -> None:
    stage.clean(["wait"])
    with other_sshd(stage, "wait") as it, contextlib.closing(Restarts(it, stage.work / "wait")) as restarts:
        down: dict[str, object] = {"command": f"touch {restarts.word}", "ignore_unreachable": True}
        tasks = [WHO, down, {"wait_for_connection": {"timeout": 60, "sleep": 1, "delay": 1}}, WHO]
        run = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login, **reach(it))}, play(*tasks))
    assert statuses(run, "h")[2:] == ["ok", "ok"], run.said()


def test_errors_of_a_host_are_cleared(stage: Site) -> None:
    unknown = {"ansible_ssh_common_args": known_hosts(stage, "empty", "")}
    mend = {"set_fact": {"ansible_ssh_common_args": "{{ hostvars.good.ansible_ssh_common_args }}"}, "delegate_to": "bad", "delegate_facts": True}
    seen = []
    for way in (PLAIN, OURS):
        hosts = {"bad": stage.host_vars(way, stage.login, **unknown), "good": stage.host_vars(way, stage.accounts[2])}
        run = stage.play(way, hosts, play(HELLO, mend, {"meta": "clear_host_errors"}, HELLO))
        seen.append({host: statuses(run, host) for host in hosts})
    assert seen[0] == seen[1]
    assert seen[1]["bad"][0] == "unreachable" and seen[1]["bad"][-1] == "ok"


def test_reset_in_a_loop(stage: Site) -> None:
    with stage.files({"h": stage.host_vars(OURS, stage.login)}, play({"include_tasks": "reset.yml", "loop": [1, 2, 3]}, WHO)) as directory:
        (directory / "reset.yml").write_text("- meta: reset_connection\n- command: id -un\n")
        run = stage.result(stage.start(OURS, directory), directory)
    assert run.rc == 0 and who(run)[-1] == stage.login.name, run.said()
    assert int(stage.status()["counters"]["dials"]) == 6  # three times a connection and its agent


def test_a_lost_link_is_made_again(stage: Site) -> None:
    """Between two runs: the second one's first task finds out."""
    assert lone(stage).rc == 0
    harness.end(stage.sshd.sessions())
    run = lone(stage)
    assert run.rc == 0, run.said()


@pytest.mark.tier("matrix")
def test_many_hosts(stage: Site) -> None:
    """500 hosts, each with a connection and an agent of its own, under the limits that a login has by default."""
    many = 500
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    it = harness.Sshd(stage.base / "sshd-many", stage.sshd.authorized, listen="0.0.0.0")
    try:
        it.start()
        it.known_hosts.write_text(f"many {it.known_hosts.read_text().split(' ', 1)[1]}")
        reached = {**reach(it), "ansible_ssh_common_args": f"-o UserKnownHostsFile={it.known_hosts} -o IdentitiesOnly=yes -o HostKeyAlias=many"}
        hosts = {f"h{n}": stage.host_vars(OURS, stage.login, **reached, ansible_host=f"127.0.{n // 250}.{n % 250 + 1}") for n in range(many)}
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        run = stage.play(OURS, hosts, play(HELLO, HELLO), args=["-f", "50"])
        assert not [result for status, result in run.results() if status != "ok"]
        assert {status for status, _ in run.results()} == {"ok"} and len(run.results()) == 2 * many
        assert int(stage.status()["counters"]["dials"]) == 2 * many
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        stage.stop_daemon()
        it.stop()
        shutil.rmtree(it.directory, ignore_errors=True)


LOUD: list[object] = [
    {"command": "echo hello"},
    {"copy": {"content": "some words", "dest": "~/there"}},
    {"fetch": {"src": "/etc/hostname", "dest": "{{ out }}/", "flat": True}},
    {"command": "id -un", "become": True},
    {"raw": "echo raw"},
]

OWN_WORDS = {
    "a program": r"(?<= SSH: EXEC ).*",  # plain names ssh with its arguments, or sftp: we have neither
    "a temporary name": r"(ansible-local-|ansible-tmp-|tmp)[\w.-]+(/[\w.]*)?",
    "a time": r"\d+:\d\d:\d\d\.\d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+",
    "a success marker": r"BECOME-SUCCESS-\w+",
    "a folder of this run": r"/run\d+/",
    "what ssh -vvv says": r"(?<=, )b(''|['\"](OpenSSH_|debug\d|\\r\\nOpenSSH).*)(?=\)$)",
}


@pytest.mark.parametrize("level", ["-v", "-vv", "-vvv", "-vvvv"])
def test_what_is_said(stage: Site, level: str) -> None:
    """Line by line what plain Ansible says, in its order, without the trips that are not made; nothing of our own below -vvvv."""
    seen = []
    for way in (PLAIN, OURS):
        stage.clean([])
        tasks = LOUD[:-1] if level == "-vvvv" else LOUD  # what ssh itself says goes into the result of raw there
        run = stage.play(way, {"h": stage.host_vars(way, stage.login, out=str(stage.out))}, play(*tasks), args=[level])
        assert run.rc == 0, run.said()
        text = run.stdout
        for words in OWN_WORDS.values():
            text = re.sub(words, "…", text, flags=re.MULTILINE)
        seen.append([line for line in text.splitlines() if line.strip() and "ansible-playbook [core" not in line])
    plain, ours = seen
    if level in ("-v", "-vv"):
        assert ours == plain
        return
    verbs = [line.split()[1] for line in ours if line.startswith("<127.0.0.1> ")]
    assert {"ESTABLISH", "SSH:", "PUT", "FETCH"} <= set(verbs)
    left = iter(plain)  # what is looked for in it is taken from it, with all before
    new = [line for line in ours if line not in left]
    assert not new, "\n".join(new)
