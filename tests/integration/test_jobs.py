"""Jobs belong to who asked for them: they end with him and with nobody else, and async ones with nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import harness
from runs import CASES, WAYS, Run, Site
from test_bad_input import press, sleepers, statuses
from test_life import HELLO, play

OURS = WAYS["linear"]


@pytest.fixture
def stage(site: Site, binary: Path) -> Site:
    site.stop_daemon()
    return site


@contextlib.contextmanager
def sleeping(site: Site, word: str, **how: object) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run whose task sleeps under the name word."""
    tasks = play({"command": f"sleep {word}", **how}, HELLO)
    with site.files({"h": site.host_vars(OURS, site.login)}, tasks) as directory:
        process = site.start(OURS, directory)
        try:
            harness.until(lambda: sleepers(word) or process.poll() is not None, 60, "the task has begun")
            yield process, directory
        finally:
            harness.end(sleepers(word))
            site.result(process, directory)


@pytest.mark.parametrize("become", [False, True], ids=["login", "become"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["SIGKILL", "SIGTERM", "Ctrl-C"])
def test_a_run_that_ends_takes_its_jobs_along(stage: Site, how: signal.Signals, become: bool) -> None:
    """And leaves those of another run alone, which has them in the same agent."""
    mine, other = f"71.{os.getpid() % 1000}", f"72.{os.getpid() % 1000}"
    with sleeping(stage, mine, become=become) as (process, _), sleeping(stage, other, become=become) as (second, directory):
        (theirs,) = sleepers(other)
        if how == signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            press(process, how)
        harness.until(lambda: not sleepers(mine), 20, "the job of the run that ended is gone")
        assert sleepers(other) == [theirs]
        harness.end([theirs])
        run = stage.result(second, directory)
        assert run.results("h")[0][1]["rc"] == -9, "the other run heard how its own job ended"


def test_a_timeout_frees_the_account(stage: Site) -> None:
    """What the task has started is gone, with all its children, and the next task runs at once in the same agent."""
    word = f"73.{os.getpid() % 1000}"
    shell = {"shell": f"trap '' TERM HUP INT; sleep {word} & sleep {word}; sleep {word}", "timeout": 2, "ignore_errors": True}
    run = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login)}, play(HELLO, shell, HELLO))
    assert statuses(run, "h") == ["ok", "failed", "ok"], run.said()
    harness.until(lambda: not sleepers(word), 10, "the group is gone")


@pytest.mark.parametrize("become", [False, True], ids=["login", "become"])
@pytest.mark.parametrize("how", ["timeout", "SIGKILL", "Ctrl-C", "cut"])
def test_nothing_is_left_of_a_copy_that_is_ended(stage: Site, how: str, become: bool) -> None:
    """In the middle of the module, which asks for the file's own folder to be there: the agent, which lives on, removes that."""
    word = f"75.{os.getpid() % 1000}"
    base, dest = Path(stage.login.home, ".ansible/tmp"), stage.work / "ended" / "file"
    stage.clean(["ended"])
    task = {"copy": {"content": "new", "dest": str(dest), "validate": f"sh -c 'sleep {word}; true' %s"}, "become": become, "ignore_errors": True}
    with stage.files({"h": stage.host_vars(OURS, stage.login)}, play(HELLO, {**task, **({"timeout": 8} if how == "timeout" else {})}, HELLO)) as directory:
        process = stage.start(OURS, directory)
        harness.until(lambda: sleepers(word) or process.poll() is not None, 60, "the task has begun")
        assert sleepers(word) and list(base.glob("ansible-tmp-*")), stage.result(process, directory).said()
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
        elif how == "Ctrl-C":
            press(process, signal.SIGINT)
        elif how == "cut":
            cut(stage)
            harness.end(sleepers(word))
        run = stage.result(process, directory)
    harness.until(lambda: not sleepers(word), 20, "the job is gone")
    harness.until(lambda: not list(base.glob("ansible-tmp-*")), 20, "and so is the folder")
    if how == "timeout":
        assert statuses(run, "h") == ["ok", "failed", "ok"], run.said()
    if how == "cut":
        assert statuses(run, "h")[:2] == ["ok", "unreachable"], run.said()
    else:
        assert not dest.exists()


TOGETHER = """
: >started.$$; : >running.$$
ls | grep -c running >>seen
tries=0
until [ "$(ls | grep -c started)" -ge {forks} ]; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.1; done
rm running.$$
"""


def test_as_many_as_forks_run_on_one_account(stage: Site) -> None:
    """What 50 hosts delegate to the controller: the first jobs wait for each other, so that all of them must run at once; never are there more."""
    forks, folder = 10, stage.work / "together"
    stage.clean(["together"])
    hosts = {f"h{n}": {"ansible_host": "192.0.2.1"} for n in range(50)}
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    task = {"shell": TOGETHER.format(forks=forks), "args": {"chdir": str(folder)}, "delegate_to": "localhost", "vars": local}
    run = stage.play(OURS, hosts, play(task), args=["-f", str(forks)])
    assert run.rc == 0, run.said()
    seen = [int(n) for n in (folder / "seen").read_text().split()]
    assert len(seen) == 50 and max(seen) <= forks


def test_an_agent_that_does_not_answer(stage: Site) -> None:
    """As if it were stuck in the kernel: the run can be ended, and so can the daemon; when the agent comes to itself it does as told."""
    word = f"74.{os.getpid() % 1000}"
    with sleeping(stage, word) as (process, _):
        job = sleepers(word)
        chain = {p.pid: p.parent for p in harness.processes()}
        family = {p.pid for p in stage.agents(stage.login.name)}
        agents = [pid for pid in family if chain.get(pid) not in family or pid == chain.get(chain.get(job[0], 0), 0)]
        for pid in agents:
            os.kill(pid, signal.SIGSTOP)
        try:
            press(process, signal.SIGTERM)
            assert process.poll() is not None, "the run has ended"
            done = stage.tool("stop", "--force")
            assert done.returncode == 0, done.stderr
            assert stage.daemons() == []
        finally:
            for pid in agents:
                os.kill(pid, signal.SIGCONT)
        harness.until(lambda: not sleepers(word), 20, "the cancelled job is gone")
        harness.until(lambda: not {p.pid for p in stage.agents(stage.login.name)} & set(agents), 20, "and the agent")


def job_id(run: Run) -> str:
    return str(run.results("h")[0][1]["ansible_job_id"])


def cut(site: Site) -> None:
    below = set(site.sshd.sessions())
    harness.end([p.pid for p in harness.processes() if p.pid in below and p.argv and p.argv[0].startswith(harness.SESSIONS)])


ENDS: dict[str, Callable[[Site], object]] = {
    "agent": lambda site: harness.end([p.pid for p in site.agents()]),
    "daemon": lambda site: harness.end(site.daemons()),
    "stopped daemon": lambda site: site.tool("stop", "--force"),
    "connection": cut,
}


@pytest.mark.parametrize("become", [False, True], ids=["login", "become"])
@pytest.mark.parametrize("what", list(ENDS))
def test_async_outlives(stage: Site, what: str, become: bool) -> None:
    """The job goes on to its end, and a later run finds its result."""
    stage.clean(["async"])
    place = stage.work / "async"
    hosts = {"h": stage.host_vars(OURS, stage.login)}
    shell = f"touch {place}/started; while [ ! -e {place}/go ]; do sleep 0.05; done; echo the end"
    run = stage.play(OURS, hosts, play({"shell": shell, "async": 120, "poll": 0, "become": become}))
    assert run.rc == 0, run.said()
    harness.until(lambda: (place / "started").exists(), 20, "the job has begun")
    try:
        ENDS[what](stage)
    finally:
        (place / "go").touch()
    status = {"async_status": {"jid": job_id(run)}, "register": "state", "until": "state.finished", "retries": 100, "delay": 0.1, "become": become}
    later = stage.play(OURS, hosts, play(status))
    assert later.rc == 0, later.said()
    assert json.dumps(later.results("h")[-1][1]).count("the end"), later.said()


def test_what_a_module_logs_is_shown_at_vvv(stage: Site) -> None:
    """A line of its own under the host's name; without secrets, and nothing of a task with no_log."""
    tasks = play(
        {"speak": {"word": "one", "hush": "s3cr3t"}},
        {"speak": {"word": "two", "hush": "s3cr3t"}, "become": True},
        {"speak": {"word": "three", "hush": "s3cr3t"}, "no_log": True},
    )
    env = {"ANSIBLE_LIBRARY": str(CASES / "library")}
    run = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login)}, tasks, ["-vvv"], env)
    assert run.rc == 0, run.said()
    shown = [line for line in run.stdout.splitlines() if "some.library" in line]
    mask = "$REDACTED$" if stage.version() >= (2, 22) else "********"
    assert shown == [f"<h> some.library: the word is {word}, the other {mask}" for word in ("one", "two")]
    assert "s3cr3t" not in run.said()
    quiet = stage.play(OURS, {"h": stage.host_vars(OURS, stage.login)}, tasks, ["-vv"], env)
    assert quiet.rc == 0 and "some.library" not in quiet.said()
