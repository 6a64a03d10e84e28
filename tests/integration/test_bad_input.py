"""What goes wrong goes wrong as it does with plain Ansible: the same class of error, one that says where and what to do, for that host alone."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site
from test_life import HELLO, play

PLAIN, OURS = WAYS["plain"], WAYS["linear"]
Hosts = dict[str, dict[str, Any]]


@pytest.fixture
def stage(site: Site, binary: Path) -> Site:
    site.stop_daemon()
    return site


def statuses(run: Run, host: str) -> list[str]:
    return [status for status, _ in run.results(host)]


def said_of(run: Run, host: str) -> str:
    """All that the results of a host say."""
    return "\n".join(str(r.get("msg", "")) + str(r.get("module_stderr", "")) for _, r in run.results(host))


def both(site: Site, bad: dict[str, Any], tasks: list[object], **more: Any) -> Run:
    """Run the tasks on a bad and on a good host, plain and ours: the same classes of results. Returns ours."""
    seen = []
    site.end_masters()  # one that is open needs no key
    for way in (PLAIN, OURS):
        good = site.host_vars(way, site.accounts[2], ansible_become=False)
        hosts = {"bad": site.host_vars(way, site.login, **bad), "good": good}
        seen.append(site.play(way, hosts, play(*tasks), **more))
    plain, ours = seen
    assert statuses(ours, "good") == statuses(plain, "good") == ["ok"] * len(tasks), ours.said()
    assert statuses(ours, "bad") == statuses(plain, "bad"), f"{plain.said()}\n----- ours\n{ours.said()}"
    assert ours.rc == plain.rc
    assert "Traceback" not in ours.said()
    return ours


class Silent:
    """A port that takes connections and never says a word."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.listener = stack.enter_context(socket.socket())
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = int(self.listener.getsockname()[1])

    def caller(self) -> bool:
        """Whether somebody has called since the last time this was asked."""
        if not select.select([self.listener], [], [], 0)[0]:
            return False
        self.stack.enter_context(self.listener.accept()[0])
        return True


def other_key(site: Site) -> Path:
    key = site.base / "other-key"
    if not key.exists():
        harness.quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    return key


def known_hosts(site: Site, name: str, line: str) -> str:
    path = site.base / name
    path.write_text(line)
    return f"-o UserKnownHostsFile={path} -o IdentitiesOnly=yes"


# --- the host


@pytest.mark.tier("smoke")
def test_refused_connection(stage: Site) -> None:
    ours = both(stage, {"ansible_port": stage.closed_port}, [HELLO, HELLO])
    assert statuses(ours, "bad") == ["unreachable"]
    text = said_of(ours, "bad")
    assert "Failed to connect to the host via ssh" in text
    assert f"127.0.0.1:{stage.closed_port}" in text
    assert "refused" in text


def test_unknown_name(stage: Site) -> None:
    ours = both(stage, {"ansible_host": "no-such-host.invalid"}, [HELLO])
    assert "no-such-host.invalid" in said_of(ours, "bad")


def test_silent_host(stage: Site) -> None:
    with contextlib.ExitStack() as stack:
        ours = both(stage, {"ansible_port": Silent(stack).port}, [HELLO], args=["--timeout", "2"])
    assert statuses(ours, "bad") == ["unreachable"]
    assert "timed out" in said_of(ours, "bad").lower() or "timeout" in said_of(ours, "bad").lower()


@pytest.mark.tier("smoke")
def test_refused_key(stage: Site) -> None:
    ours = both(stage, {"ansible_ssh_private_key_file": str(other_key(stage))}, [HELLO])
    text = said_of(ours, "bad")
    assert "publickey" in text
    assert f"{stage.login.name}@127.0.0.1:{stage.sshd.port}" in text


def test_key_that_is_not_there(stage: Site) -> None:
    both(stage, {"ansible_ssh_private_key_file": "/nowhere/key"}, [HELLO])


@pytest.mark.tier("smoke")
def test_changed_host_key(stage: Site) -> None:
    kind, blob, *_ = other_key(stage).with_suffix(".pub").read_text().split()
    args = known_hosts(stage, "changed", f"[127.0.0.1]:{stage.sshd.port} {kind} {blob}\n")
    ours = both(stage, {"ansible_ssh_common_args": args}, [HELLO])
    text = said_of(ours, "bad")
    assert "ssh-keygen" in text and " -R " in text
    assert f"127.0.0.1:{stage.sshd.port}" in text


def test_unknown_host_key(stage: Site) -> None:
    ours = both(stage, {"ansible_ssh_common_args": known_hosts(stage, "empty", "")}, [HELLO])
    assert "ssh-keyscan" in said_of(ours, "bad")


def test_unknown_host_key_without_checking(stage: Site) -> None:
    bad = {"ansible_ssh_common_args": known_hosts(stage, "empty", ""), "ansible_host_key_checking": False}
    assert statuses(both(stage, bad, [HELLO]), "bad") == ["ok"]


@pytest.mark.parametrize("transport", [pytest.param("native", marks=pytest.mark.tier("smoke")), "openssh"])
def test_no_python(transport: str, stage: Site) -> None:
    tasks = [{"command": "echo hello", "ignore_errors": True}, {"raw": "echo raw works"}]
    ours = both(stage, {"ansible_python_interpreter": "/nowhere/python3", "mitogen_ssh_transport": transport}, tasks)
    text = said_of(ours, "bad")
    assert "/nowhere/python3" in text
    assert "ansible_python_interpreter" in text or "interpreter" in text


def test_no_python_behind_become(stage: Site) -> None:
    tasks = [{"command": "echo hello", "become": True, "ignore_errors": True}, {"raw": "id -un", "become": True}]
    ours = both(stage, {"ansible_python_interpreter": "/nowhere/python3"}, tasks)
    assert "/nowhere/python3" in said_of(ours, "bad")


def test_login_shell_that_talks(stage: Site) -> None:
    """Banners and noise of a login shell come before our first byte."""
    noisy = stage.accounts[2]
    with profile(noisy, "echo noise of a profile; echo more on stderr >&2; printf 'MU'\n"):
        assert statuses(both(stage, {"ansible_user": noisy.name}, [HELLO, {"ping": {}}]), "bad") == ["ok", "ok"]


@contextlib.contextmanager
def profile(account: harness.Account, text: str) -> Iterator[None]:
    path = account.home / ".bashrc"
    was = path.read_text()
    path.write_text(text + was)
    try:
        yield
    finally:
        path.write_text(was)


# --- the daemon


def lone(site: Site, **more: Any) -> Run:
    return site.play(OURS, {"bad": site.host_vars(OURS, site.login)}, play(HELLO), **more)


@pytest.mark.tier("smoke")
def test_no_program(stage: Site) -> None:
    run = lone(stage, env={"MITOGEN_MUX_BIN": "/nowhere/mitogen-mux"})
    assert run.rc != 0
    assert "/nowhere/mitogen-mux" in run.said()
    assert "MITOGEN_MUX_BIN" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize(
    "script",
    ["echo 'mitogen-mux 99 1.0 unix /nowhere/socket grpc'", "echo nonsense", "exit 3", "echo cannot start >&2; exit 1", "kill -9 $$"],
    ids=["another protocol", "nonsense", "fails", "fails with words", "dies"],
)
def test_wrong_program(stage: Site, script: str, tmp_path: Path) -> None:
    program = tmp_path / "mitogen-mux"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    run = lone(stage, env={"MITOGEN_MUX_BIN": str(program)})
    assert run.rc != 0
    assert str(program) in run.said()
    assert "Traceback" not in run.said()


def test_folder_of_another_user(stage: Site) -> None:
    folder = stage.base / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, stage.login.uid, -1)
    run = lone(stage, env={"MITOGEN_MUX_DIR": str(folder)})
    shutil.rmtree(folder)
    assert run.rc != 0
    assert str(folder) in run.said()
    assert "MITOGEN_MUX_DIR" in run.said() or "owner" in run.said() or "belongs" in run.said()
    assert "Traceback" not in run.said()


def test_folder_that_others_may_enter(stage: Site) -> None:
    folder = stage.base / "open"
    folder.mkdir()
    folder.chmod(0o777)
    run = lone(stage, env={"MITOGEN_MUX_DIR": str(folder)})
    mode = folder.stat().st_mode & 0o777
    shutil.rmtree(folder)
    assert run.rc != 0 or mode == 0o700, "refused, or made private first"
    assert "Traceback" not in run.said()


def test_folder_that_is_a_link(stage: Site) -> None:
    (stage.base / "real").mkdir(mode=0o700)
    link = stage.base / "link"
    link.symlink_to("real")
    run = lone(stage, env={"MITOGEN_MUX_DIR": str(link)})
    link.unlink()
    assert run.rc != 0
    assert str(link) in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("script", ["exit 1", "echo no library >&2; exit 127", "echo to stdout; exit 3"])
def test_local_interpreter_ends_by_itself(stage: Site, script: str) -> None:
    broken = stage.base / "broken-python"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    ours = both(stage, {"ansible_connection": "local", "ansible_python_interpreter": str(broken)}, [HELLO])
    assert statuses(ours, "bad") == ["failed"]
    broken.unlink()


def test_stale_socket(stage: Site) -> None:
    """A daemon that was killed leaves its socket: the next one takes its place."""
    assert lone(stage).rc == 0
    harness.end(stage.daemons())
    harness.until(lambda: not stage.daemons(), 10, "the daemon is dead")
    assert list(stage.mux.glob("*.sock"))
    run = lone(stage)
    assert run.rc == 0, run.said()


NO_FOLDER = {"copy": {"content": "x", "dest": "none"}, "vars": {"ansible_remote_tmp": "/proc/none"}}


@pytest.mark.parametrize("task", [{"command": "sleep 30", "timeout": 1}, NO_FOLDER], ids=["timeout", "no folder"])
def test_errors_are_printed_alike(stage: Site, task: dict[str, Any]) -> None:
    said = []
    for way in (PLAIN, OURS):
        run = stage.play(way, {"bad": stage.host_vars(way, stage.login)}, play({**task, "ignore_errors": True, "ignore_unreachable": True}))
        said.append(re.sub(r"/run\d+/|ansible-tmp-[\d.-]+", "", run.stdout + run.stderr))
    assert said[0] == said[1]


# --- in the middle of a task


def asleep(line: str) -> dict[str, Any]:
    """A task of host "bad" that runs a command line there."""
    return {"shell": line, "ignore_unreachable": True, "when": "inventory_hostname == 'bad'"}


@contextlib.contextmanager
def in_the_middle(site: Site, tasks: list[object], strike: Any, sleep: Callable[[str], dict[str, Any]] = asleep) -> Iterator[Run]:
    """Strike while host "bad" is asleep, after all tasks but the last; then let "good", which waits for it, go on."""
    site.clean(["middle"])
    place = site.work / "middle"
    hosts = {"bad": site.host_vars(OURS, site.login), "good": site.host_vars(OURS, site.accounts[2])}
    line = f"touch {place}/started; while [ ! -e {place}/struck ]; do sleep 0.05; done"
    with site.files(hosts, play(*tasks[:-1], sleep(line), tasks[-1])) as directory:
        process = site.start(OURS, directory)
        harness.until(lambda: (place / "started").exists() or process.poll() is not None, 60, "the task has begun")
        strike()
        (place / "struck").touch()
        yield site.result(process, directory)


@pytest.mark.tier("smoke")
def test_agent_killed(stage: Site) -> None:
    def strike() -> None:
        # The job is a child of the agent: the eldest with the marker is the agent itself.
        mine = stage.agents(stage.login.name)
        pids = {p.pid for p in mine}
        harness.end([p.pid for p in mine if p.parent not in pids])

    with in_the_middle(stage, [HELLO], strike) as run:
        assert statuses(run, "bad") == ["unreachable", "ok"], run.said()
        assert statuses(run, "good") == ["skipped", "ok"]
        assert stage.login.name in said_of(run, "bad")
        assert "Traceback" not in run.said()


def kill_daemon(site: Site, killed: list[int]) -> None:
    """Notes which it was."""
    killed.extend(site.daemons())
    harness.end(killed)


@pytest.mark.tier("smoke")
def test_daemon_killed(stage: Site) -> None:
    killed: list[int] = []
    with in_the_middle(stage, [HELLO], functools.partial(kill_daemon, stage, killed)) as run:
        assert statuses(run, "bad") == ["unreachable", "ok"], run.said()
        assert statuses(run, "good") == ["skipped", "ok"]
        assert "Traceback" not in run.said()
        assert stage.daemons(), "the next task started a new one"
        assert not set(stage.daemons()) & set(killed)


@pytest.mark.tier("smoke")
def test_daemon_killed_between_tasks(stage: Site) -> None:
    """Nobody asks it for anything then, so nobody needs to know."""
    killed: list[int] = []

    def asleep_here(line: str) -> dict[str, Any]:
        return {"debug": {"msg": "{{ lookup('pipe', '" + line + "') }}"}, "when": "inventory_hostname == 'bad'"}

    with in_the_middle(stage, [HELLO, HELLO], functools.partial(kill_daemon, stage, killed), asleep_here) as run:
        assert statuses(run, "bad") == ["ok", "ok", "ok"], run.said()
        assert statuses(run, "good") == ["ok", "skipped", "ok"]
        assert killed and not set(stage.daemons()) & set(killed)


def test_connection_cut(stage: Site) -> None:
    def strike() -> None:
        below = set(stage.sshd.sessions())
        harness.end([p.pid for p in harness.processes() if p.pid in below and p.argv and p.argv[0].startswith(harness.SESSIONS)])

    with in_the_middle(stage, [HELLO], strike) as run:
        assert statuses(run, "bad") == ["unreachable", "ok"], run.said()
        assert "Traceback" not in run.said()


def test_daemon_leaves(stage: Site) -> None:
    """What it was asked before it ends; who asks later waits for the next one."""
    leaving = threading.Thread(target=stage.tool, args=("stop", "--force"))

    def strike() -> None:
        leaving.start()
        harness.until(lambda: not list(stage.mux.glob("*.sock")), 10, "it takes no more connections")

    with in_the_middle(stage, [HELLO, HELLO], strike) as run:
        assert statuses(run, "bad") == ["ok", "ok", "ok"], run.said()
        assert statuses(run, "good") == ["ok", "skipped", "ok"]
    leaving.join()


def test_daemon_stopped_by_force(stage: Site) -> None:
    with in_the_middle(stage, [HELLO], lambda: stage.tool("stop", "--force")) as run:
        assert statuses(run, "bad") == ["unreachable", "ok"], run.said()


# --- the target's disk

PROBES: list[object] = [
    {"ping": {}, "ignore_errors": True, "ignore_unreachable": True},
    {"command": "id -un", "ignore_errors": True, "ignore_unreachable": True},
    {"stat": {"path": "/etc/hosts"}, "ignore_errors": True, "ignore_unreachable": True},
    {"setup": {"gather_subset": ["!all", "min"]}, "ignore_errors": True, "ignore_unreachable": True},
    {"command": "id -un", "become": True, "ignore_errors": True, "ignore_unreachable": True},
    {"copy": {"content": "x" * 100000, "dest": "~/big"}, "ignore_errors": True, "ignore_unreachable": True},
    {"copy": {"content": "x" * 100000, "dest": "/tmp/big"}, "ignore_errors": True, "ignore_unreachable": True, "become": True},
    {"raw": "echo raw", "ignore_errors": True, "ignore_unreachable": True},
]

READ_ONLY_ROOT = "mount -o remount,bind,ro /"
KEEP_BASE = "mount --bind {base} /mnt\nmount -t tmpfs -o size={size},mode=1777 none /tmp\nmkdir {base}\nmount --bind /mnt {base}"
FULL = (
    KEEP_BASE.replace("{size}", "64k")
    + "\nmount -t tmpfs -o size=64k,mode=777 none {home}\nfor d in /tmp {home}; do cat /dev/zero > $d/filler 2>/dev/null || true; done"
)
NO_EXEC = KEEP_BASE.replace("size={size}", "noexec") + "\nmount --bind {home} {home}\nmount -o remount,bind,noexec {home}"
NOT_WRITABLE = "for d in /tmp /var/tmp {home} /root; do mount --bind $d $d; mount -o remount,bind,ro $d; done"


DISKS = {"read-only root": READ_ONLY_ROOT, "full disk": FULL, "no writable home or tmp": NOT_WRITABLE, "nothing can be executed": NO_EXEC}


@pytest.mark.parametrize("inside", DISKS.values(), ids=DISKS)
def test_disk(stage: Site, inside: str) -> None:
    script = inside.replace("{base}", str(stage.base)).replace("{home}", str(stage.login.home))
    other = harness.Sshd(stage.base / "sshd-disk", stage.sshd.authorized, inside=script)
    try:
        other.start()
        seen = []
        for way in (PLAIN, OURS):
            reach = {"ansible_port": other.port, "ansible_ssh_common_args": f"-o UserKnownHostsFile={other.known_hosts} -o IdentitiesOnly=yes"}
            hosts = {"bad": stage.host_vars(way, stage.login, **reach), "good": stage.host_vars(way, stage.accounts[2])}
            tasks = [{**t, "when": "inventory_hostname == 'bad'"} for t in PROBES if isinstance(t, dict)]
            seen.append(stage.play(way, hosts, play(*tasks, HELLO)))
    except harness.Unavailable as reason:
        pytest.skip(f"no mount namespace here: {reason}")
    finally:
        other.stop()
        shutil.rmtree(other.directory, ignore_errors=True)
    plain, ours = (statuses(r, "bad") for r in seen)
    assert len(ours) == len(PROBES) + 1, seen[1].said()
    assert ours[:5] == ["ok"] * 5, seen[1].said()
    for n, (theirs, mine) in enumerate(zip(plain, ours)):
        assert mine in (theirs, "ok"), f"{PROBES[n]}: plain {theirs}, ours {mine}\n{seen[1].said()}"
    assert "Traceback" not in seen[1].said()
    for status, result in seen[1].results("bad"):
        if status != "ok":
            words = ("No space left", "Read-only file system", "not writable", "ermission denied", "Failed to create temporary directory")
            assert any(why in str(result) for why in words), result


def test_processors_of_the_host(stage: Site) -> None:
    """A job may run where sshd's children may, and counts the processors as they do."""
    other = harness.Sshd(stage.base / "sshd-pinned", stage.sshd.authorized, inside="taskset -pc 0 $$ >/dev/null")
    count: dict[str, object] = {"command": "sh -c 'nproc; grep Cpus_allowed_list /proc/self/status'"}
    facts: dict[str, object] = {"setup": {"gather_subset": ["!all", "!min", "hardware"], "filter": ["ansible_processor_nproc"]}}
    seen = []
    try:
        other.start()
        for way in (PLAIN, OURS):
            reach = {"ansible_port": other.port, "ansible_ssh_common_args": f"-o UserKnownHostsFile={other.known_hosts} -o IdentitiesOnly=yes"}
            run = stage.play(way, {"h": stage.host_vars(way, stage.login, **reach)}, play(count, {**count, "become": True}, facts))
            assert run.rc == 0, run.said()
            results = [result for _, result in run.results("h")]
            seen.append([*(r["stdout_lines"] for r in results[:2]), results[2]["ansible_facts"]])
    except harness.Unavailable as reason:
        pytest.skip(f"no mount namespace here: {reason}")
    finally:
        other.stop()
        shutil.rmtree(other.directory, ignore_errors=True)
    assert seen[0][:2] == [["1", "Cpus_allowed_list:\t0"]] * 2
    assert seen[1] == seen[0]


# --- the run itself is ended


def sleepers(word: str) -> list[int]:
    return [p.pid for p in harness.processes() if p.argv[:2] == ("sleep", word) and p.state != "Z"]


def press(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Do what a person does. A terminal sends Ctrl-C to every process of the foreground group, kill(1) a signal to one. Stock Ansible
    loses a KeyboardInterrupt that comes in the wrong place (a callback, a finalizer): a person presses again, but not before it is plain
    that nothing happens: a second one while the first has its effect ends a run in another way.
    """
    for _ in range(20):
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return


@pytest.mark.parametrize("moment", ["starting", "connecting", "in a task", "under become"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_ended(stage: Site, how: signal.Signals, moment: str) -> None:
    words = {PLAIN: f"62.{os.getpid() % 1000}", OURS: f"61.{os.getpid() % 1000}"}
    codes = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: harness.end(sleepers(words[PLAIN])))  # plain leaves the command running, or about to
        silent = Silent(stack)
        for way, word in words.items():
            more = {"ansible_port": silent.port} if moment == "connecting" else {}
            hosts = {"h": stage.host_vars(way, stage.login, **more)}
            directory = stack.enter_context(stage.files(hosts, play({"command": f"sleep {word}", "become": moment == "under become"}, HELLO)))
            process = stage.start(way, directory)
            events = directory / "events"
            waits = {"starting": events.exists, "connecting": silent.caller}
            harness.until(waits.get(moment, functools.partial(sleepers, word)), 60, f"the moment: {moment}")
            press(process, how)
            run = stage.result(process, directory)
            codes.append(run.rc)
    assert codes[1] == codes[0]
    harness.until(lambda: not sleepers(words[OURS]), 20, "the command on the target has ended")
    run = lone(stage)
    assert run.rc == 0, f"the next run goes well: {run.said()}"
