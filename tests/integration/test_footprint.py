"""What we leave on a target: nothing on its disk, and soon no process."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
import runs
from runs import WAYS, Site
from test_bad_input import KEEP_BASE
from test_life import play

OURS = WAYS["linear"]
SOON = 5.0  # seconds after which nothing of ours may be left

READERS: list[object] = [
    {"ping": {}},
    {"command": "id -un"},
    {"shell": "id -un | cat"},
    {"stat": {"path": "/etc/hosts"}},
    {"setup": {}},
    {"command": "id -un", "become": True},
    {"slurp": {"src": "/etc/hosts"}},
]


@pytest.fixture
def stage(site: Site, binary: Path) -> Site:
    site.stop_daemon()
    site.end_masters()  # sessions of plain runs are none of ours
    harness.until(lambda: not site.sshd.sessions(), 20, "earlier connections are closed")
    return site


@pytest.fixture
def sealed(stage: Site) -> Iterator[harness.Sshd]:
    """A host whose disk cannot be written but for the usual places, which are its own: so that others' doings are not taken for ours."""
    base, home = str(stage.base), str(stage.login.home)
    script = f"{KEEP_BASE.format(base=base, size='16m')}\nfor d in /var/tmp /dev/shm /run/lock /run/sudo {home} /root; do\n"
    script += "  [ -d $d ] && mount -t tmpfs -o mode=1777 none $d || true\ndone\n"
    script += f"chown {stage.login.name} {home}; chmod 755 {home}; chmod 700 /root /run/sudo\nmount -o remount,bind,ro /"
    sshd = harness.Sshd(stage.base / "sshd-sealed", stage.sshd.authorized, inside=script)
    try:
        sshd.start()
        yield sshd
    except harness.Unavailable as reason:
        pytest.skip(f"no mount namespace here: {reason}")
    finally:
        stage.stop_daemon()
        sshd.stop()
        shutil.rmtree(sshd.directory, ignore_errors=True)


def places(stage: Site, sshd: harness.Sshd) -> dict[str, runs.Tree]:
    assert sshd.process is not None
    root = Path(f"/proc/{sshd.process.pid}/root")
    spots = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", str(stage.login.home), "/root")
    return {s: {p: i for p, i in runs.tree(root / s[1:]).items() if not (root / s[1:] / p).is_relative_to(root / str(stage.base)[1:])} for s in spots}


def reach(stage: Site, sshd: harness.Sshd) -> dict[str, dict[str, object]]:
    known = f"-o UserKnownHostsFile={sshd.known_hosts} -o IdentitiesOnly=yes"
    return {"h": stage.host_vars(OURS, stage.login, ansible_port=sshd.port, ansible_ssh_common_args=known)}


def test_readers_write_nothing(stage: Site, sealed: harness.Sshd) -> None:
    before = places(stage, sealed)
    run = stage.play(OURS, reach(stage, sealed), play(*READERS))
    assert run.rc == 0, run.said()
    assert places(stage, sealed) == before


# Calls that change a file system, and opens that may; each with the path it names first.
CHANGES = re.compile(
    r"(?:creat|mkdir(?:at)?|rename(?:at2?)?|(?:sym)?link(?:at)?|unlink(?:at)?|rmdir|mknod(?:at)?|truncate|l?ch(?:mod|own)|fch(?:mod|own)at2?|utimensat|setxattr)"
    r"\([^\"]*\"(?P<changed>[^\"]*)\".*\)\s+= 0"
    r"|open(?:at)?\([^\"]*\"(?P<opened>[^\"]*)\", [^)]*O_(?:WRONLY|RDWR|CREAT|TRUNC)[^)]*\)\s+= \d"
)
# Devices; and the semaphores of setup's own thread pool, which are RAM.
HARMLESS = re.compile(r"/dev/(null|tty|ptmx|pts/\d+)$|/dev/shm/sem\.|/proc/")


def writes(stage: Site, directory: Path, tasks: list[object]) -> list[str]:
    """The calls that would write, as strace sees them, by anything that runs below our login while the tasks run."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    assert stage.sshd.process is not None
    calls = "trace=%file,execve,clone,clone3,fork,vfork"
    argv = [strace, "-f", "-ff", "-qq", "-e", calls, "-o", str(directory / "t"), "-p", str(stage.sshd.process.pid)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            attached = f"TracerPid:\t{tracer.pid}\n"
            table = Path(f"/proc/{stage.sshd.process.pid}/status")
            harness.until(lambda: attached in table.read_text() or tracer.poll() is not None, 20, "strace attaches")
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"strace may not trace here: {tracer.stderr.read().strip()}")
            run = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login)}, play(*tasks))
            stage.stop_daemon()
            harness.until(lambda: not stage.sshd.sessions(), 20, "the connection is closed")
        finally:
            tracer.terminate()
    assert run.rc == 0, run.said()
    traced = {int(p.suffix[1:]): p.read_text(errors="replace") for p in directory.glob("t.*")}
    ours = below_login(traced)
    assert len(ours) > len(tasks), "it saw the jobs"
    seen = [(pid, line, CHANGES.match(line)) for pid in sorted(ours) for line in traced[pid].splitlines()]
    return [f"{pid}: {line}" for pid, line, m in seen if m and not HARMLESS.match(m["changed"] or m["opened"] or "")]


def test_readers_are_seen_to_write_nothing(stage: Site, tmp_path: Path) -> None:
    """The same, from the kernel's side."""
    wrote = writes(stage, tmp_path, READERS)
    assert not wrote, "\n".join(wrote)


def test_a_writer_is_seen(stage: Site, tmp_path: Path) -> None:
    stage.clean(["seen"])
    touch = {"file": {"path": f"{stage.work}/seen/other", "state": "touch"}}
    assert any(f"{stage.work}/seen/other" in line for line in writes(stage, tmp_path, [touch]))


@pytest.mark.tier("matrix")
def test_between_unprivileged_accounts_nothing_is_for_others_to_read(stage: Site, tmp_path: Path) -> None:
    """No access list, and nothing that the world may read: what is on its way is in a folder of its account alone."""
    if stage.version() < (2, 17):
        pytest.skip("the module copy of 2.16 takes access lists off a file, and would show that there were none")
    stage.clean(["between"])
    place = f"{stage.work}/between"
    tasks = [
        {"script": str(runs.CASES / "files" / "report.sh")},  # also as the first thing that the account does
        {"copy": {"content": "theirs", "dest": f"{place}/copy", "mode": "0600"}},
        {"template": {"src": str(runs.CASES / "templates" / "people.j2"), "dest": f"{place}/template", "mode": "0600"}, "vars": {"people": []}},
        {"script": str(runs.CASES / "files" / "report.sh")},
        {"command": "id -un"},
    ]
    other = {"become": True, "become_user": stage.accounts[2].name}
    wrote = writes(stage, tmp_path, [{**task, **other} for task in tasks])
    assert {p.name: (p.owner(), oct(p.stat().st_mode & 0o777)) for p in Path(place).iterdir()} == dict.fromkeys(
        ("copy", "template"), (stage.accounts[2].name, "0o600")
    )
    private = re.compile(r"/var/tmp/ansible-tmp-[^/\"]+[/\"]")
    assert len([line for line in wrote if "mkdir" in line]) == 4, "\n".join(wrote)  # a folder for each, which only its account can enter
    for line in wrote:
        assert place in line or private.search(line), "\n".join(wrote)
        assert "mkdir" not in line or line.endswith(", 0700) = 0"), "\n".join(wrote)
        assert "setxattr" not in line, "\n".join(wrote)


def below_login(traced: dict[int, str]) -> set[int]:
    """The processes that are not sshd any more (from the login shell on), sudo's own book-keeping aside."""
    found: set[int] = set()
    queue = [pid for pid, text in traced.items() if re.search(r'^execve\("/bin/bash"', text, re.M)]
    while queue:
        pid = queue.pop()
        if pid not in found and pid in traced:
            found.add(pid)
            queue += [int(n) for n in re.findall(r"^(?:clone3?|v?fork)\(.*\)\s+= (\d+)$", traced[pid], re.M)]
    return {pid for pid in found if 'execve("/usr/bin/sudo"' not in traced[pid]}


# --- processes


@contextlib.contextmanager
def job_under_way(stage: Site) -> Iterator[Path]:
    """A run with an idle agent (root's), an async job, and a job in its first half."""
    stage.clean(["job"])
    place = stage.work / "job"
    long = {"shell": f"touch {place}/first; while [ ! -e {place}/go ]; do sleep 0.05; done; touch {place}/second"}
    asynchronous = {"shell": f"while [ ! -e {place}/go ]; do sleep 0.05; done; touch {place}/async", "async": 60, "poll": 0}
    tasks = play({"command": "id -un", "become": True}, asynchronous, long)
    with stage.files({"h": stage.host_vars(OURS, stage.login)}, tasks) as directory:
        process = stage.start(OURS, directory)
        try:
            harness.until(lambda: (place / "first").exists() or process.poll() is not None, 60, "the job has begun")
            yield place
        finally:
            (place / "go").touch()
            stage.result(process, directory)
    harness.until(lambda: (place / "async").exists(), 20, "the async job comes to its end")


def pids(found: list[harness.Process]) -> set[int]:
    return {p.pid for p in found}


def test_after_the_daemons_death_only_jobs_are_left(stage: Site) -> None:
    with job_under_way(stage) as place:
        idle, busy = pids(stage.agents("root")), pids(stage.agents(stage.login.name))
        assert idle and busy
        harness.end(stage.daemons())
        harness.until(lambda: not idle & pids(stage.agents()), SOON, "idle agents are gone")
        assert busy & pids(stage.agents()), "the agent with a job waits for it"
        assert not (place / "second").exists()
        (place / "go").touch()
        harness.until(lambda: (place / "second").exists(), 10, "the job comes to its end")
        harness.until(lambda: not busy & pids(stage.agents()), SOON, "then its agent is gone, too")


@pytest.mark.tier("smoke")
def test_a_job_that_takes_the_link_down_finishes(stage: Site) -> None:
    with job_under_way(stage) as place:
        below = set(stage.sshd.sessions())
        harness.end([p.pid for p in harness.processes() if p.pid in below and p.argv and p.argv[0].startswith(harness.SESSIONS)])
        harness.until(lambda: not stage.sshd.sessions(), 10, "the link is down")
        (place / "go").touch()
        harness.until(lambda: (place / "second").exists(), 10, "the second half")


@pytest.mark.tier("smoke")
def test_after_stop_nothing_is_left(stage: Site) -> None:
    tasks = play({"command": "id -un"}, {"command": "id -un", "become": True}, {"command": "id -un", "delegate_to": "localhost"})
    run = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login)}, tasks)
    assert run.rc == 0, run.said()
    assert stage.agents(), "agents persist after the run"
    done = stage.tool("stop")
    assert done.returncode == 0, done.stderr
    assert stage.daemons() == []
    harness.until(lambda: not stage.agents(), SOON, "no agent is left")
    harness.until(lambda: not stage.sshd.sessions(), SOON, "no connection is left")
    assert [p.name for p in stage.mux.iterdir() if p.suffix == ".sock"] == []
