"""One ansible-playbook run and everything that can be seen of it: events, exit code, words on the terminal, what is on disk.

It knows how a run is set up, plain or through us. It must not know what a difference between two runs means (oracle.py does).
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import harness

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CASES = HERE / "cases"
PLUGINS = PROJECT / "ansible_plugins"
BINARY = Path(os.environ.get("MITOGEN_MUX_BIN") or PROJECT / "bin" / "mitogen-mux")

SILENCE = 150  # seconds without a word after which a run is taken to hang

Event = dict[str, Any]
Tree = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run a playbook: the strategy, and what inventory and environment say."""

    name: str
    strategy: str = "linear"
    connection: str = ""  # of the SSH hosts; empty: the inventory says nothing
    env: tuple[tuple[str, str], ...] = ()
    plain: str = "plain"  # the way to compare with

    @property
    def ours(self) -> bool:
        return self.strategy.startswith("mitogen") or bool(self.connection)


WAYS = {
    w.name: w
    for w in (
        Way("plain"),
        Way("plain-nopipelining", env=(("ANSIBLE_PIPELINING", "0"),)),
        Way("plain-free", "free"),
        Way("plain-host_pinned", "host_pinned"),
        Way("linear", "mitogen_linear"),
        Way("linear-nopipelining", "mitogen_linear", env=(("ANSIBLE_PIPELINING", "0"),), plain="plain-nopipelining"),
        Way("mitogen", "mitogen"),
        Way("free", "mitogen_free", plain="plain-free"),
        Way("host_pinned", "mitogen_host_pinned", plain="plain-host_pinned"),
        Way("fork", "mitogen_linear", env=(("MITOGEN_WORKER", "fork"),)),
        Way("processes", "mitogen_linear", env=(("MITOGEN_PROCESSES", "2"),)),
        Way("connection", "linear", "mitogen_ssh"),
        Way("connection-noseams", "linear", "mitogen_ssh", env=(("MITOGEN_SEAMS", "0"),)),
        Way("disabled", "mitogen_linear", env=(("MITOGEN_ENABLED", "0"),)),
    )
}


@dataclasses.dataclass
class Run:
    """What was seen of one run."""

    rc: int
    events: list[Event]
    stdout: str
    stderr: str
    work: Tree = dataclasses.field(default_factory=dict)
    homes: Tree = dataclasses.field(default_factory=dict)

    def __iadd__(self, more: Run) -> Run:
        self.rc = max(self.rc, more.rc)
        self.events += more.events
        self.stdout += more.stdout
        self.stderr += more.stderr
        return self

    def of(self, case: str) -> list[Event]:
        """The events of the plays of one case, whose names start with the case's."""
        found, mine = [], False
        for e in self.events:
            if e["event"] == "playbook_on_play_start":
                mine = e["play"].split(":")[0] == case
            if mine and e["event"] not in ("playbook_on_stats", "playbook_on_start"):
                found.append(e)
        return found

    def recap(self) -> dict[str, dict[str, int]]:
        return {host: sums for e in self.events if e["event"] == "playbook_on_stats" for host, sums in e["recap"].items()}

    def results(self, host: str = "") -> list[tuple[str, Event]]:
        """(status, result) of every task's end: "ok", "failed", "unreachable" or "skipped"."""
        return [
            (e["event"].removeprefix("runner_on_"), e["result"])
            for e in self.events
            if e["event"].startswith("runner_on_") and "result" in e and host in ("", e["host"])
        ]

    def said(self) -> str:
        return f"exit {self.rc}\n{self.stdout}\n{self.stderr}"


def tree(root: Path) -> Tree:
    """Everything below root but times: type, mode, owner, size, digest, link target."""
    found: Tree = {}
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _inode(path)
    return found


def _inode(path: Path) -> dict[str, Any]:
    s = path.lstat()
    what: dict[str, Any] = {"type": stat.filemode(s.st_mode)[0], "mode": f"{stat.S_IMODE(s.st_mode):04o}"}
    for key, look in (("owner", lambda: pwd.getpwuid(s.st_uid).pw_name), ("group", lambda: grp.getgrgid(s.st_gid).gr_name)):
        with contextlib.suppress(KeyError):
            what[key] = look()
    if stat.S_ISREG(s.st_mode):
        what["size"] = s.st_size
        what["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if stat.S_ISLNK(s.st_mode):
        what["target"] = os.readlink(path)
    return what


class Site:
    """The stage of a test session: hosts, accounts, the controller's own HOME, and the work directories of the cases."""

    def __init__(self, ansible: Path, accounts: tuple[harness.Account, ...], base: Path, url: str) -> None:
        self.ansible, self.accounts, self.base, self.url = ansible, accounts, base, url
        self.login = accounts[0]
        self.home = base / "home"
        self.work = base / "work"  # on the target
        self.out = base / "out"  # on the controller
        self.mux = base / "mux"  # the daemon's directory
        self.key = base / "id"
        self.sshd = harness.Sshd(base / "sshd", base / "keys" / "%u")
        self.closed_port = harness.free_port()
        self.counter = 0
        base.chmod(0o755)  # the accounts pass through
        for d in (self.home, self.mux, base / "keys"):
            d.mkdir(mode=0o755 if d.name == "keys" else 0o700)
        (base / "ansible.cfg").write_text("[defaults]\n")
        harness.quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        for a in accounts:
            shutil.copy(self.key.with_suffix(".pub"), base / "keys" / a.name)
        self.sshd.start()

    def close(self) -> None:
        self.stop_daemon()
        self.end_masters()
        self.sshd.stop()

    def version(self) -> tuple[int, int]:
        """(2, 16) of the core under test."""
        text = harness.quiet(str(self.ansible), "--version")
        found = re.search(r"\[core (\d+)\.(\d+)", text)
        assert found, text
        return int(found[1]), int(found[2])

    # --- the controller's side

    def environment(self, way: Way) -> dict[str, str]:
        env = {
            "HOME": str(self.home),
            "PATH": f"{self.ansible.parent}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "USER": "root",
            "LOGNAME": "root",
            "LANG": "C.UTF-8",
            "PYTHONFAULTHANDLER": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_CONFIG": str(self.base / "ansible.cfg"),
            "ANSIBLE_STRATEGY": way.strategy,
            "ANSIBLE_STRATEGY_PLUGINS": str(PLUGINS / "strategy"),
            "ANSIBLE_CONNECTION_PLUGINS": f"{PLUGINS / 'connection'}:{HERE / 'plugins' / 'connection'}",
            "ANSIBLE_COLLECTIONS_PATH": str(CASES / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "plugins" / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "mux_events",
            "ANSIBLE_VAULT_PASSWORD_FILE": str(CASES / "files" / "vault-password"),
            "ANSIBLE_TIMEOUT": "20",
            "MITOGEN_MUX_DIR": str(self.mux),
            "MITOGEN_MUX_BIN": str(BINARY),
        }
        env.update(way.env)
        return env

    def host_vars(self, way: Way, account: harness.Account, **more: Any) -> dict[str, Any]:
        found = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.sshd.port,
            "ansible_user": account.name,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.sshd.known_hosts} -o IdentitiesOnly=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
            **({"ansible_connection": way.connection} if way.connection else {}),
            **more,
        }
        return {k: v for k, v in found.items() if v is not None}

    def shared_vars(self) -> dict[str, Any]:
        names = {f"account{n}": a.name for n, a in enumerate(self.accounts, 1)}
        passwords = {f"password{n}": a.password for n, a in enumerate(self.accounts, 1)}
        return {
            **names,
            **passwords,
            "url": self.url,
            "sshd_port": self.sshd.port,
            "known_hosts": str(self.sshd.known_hosts),
            "key": str(self.key),
            "closed_port": self.closed_port,
            "extra_account": harness.extra_account(self.accounts),
        }

    @contextlib.contextmanager
    def files(self, inventory: dict[str, dict[str, Any]], playbook: Any) -> Iterator[Path]:
        """A directory with inventory.yml and playbook.yml."""
        self.counter += 1
        directory = self.base / f"run{self.counter}"
        directory.mkdir()
        inventory_file = directory / "inventory.yml"
        inventory_file.write_text(yaml.safe_dump({"all": {"hosts": inventory, "vars": self.shared_vars()}}, allow_unicode=True))
        (directory / "playbook.yml").write_text(yaml.safe_dump(playbook, sort_keys=False, allow_unicode=True))
        try:
            yield directory
        finally:
            shutil.rmtree(directory)

    def start(self, way: Way, directory: Path, args: Sequence[str] = (), env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        argv = [str(self.ansible), "-i", "inventory.yml", *args, "playbook.yml"]
        with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
            return subprocess.Popen(
                argv,
                cwd=directory,
                env={**self.environment(way), "MUX_EVENTS": str(directory / "events"), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                umask=0o022,
            )

    def result(self, process: subprocess.Popen[bytes], directory: Path) -> Run:
        said, since = -1, time.monotonic()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            size = sum(path.stat().st_size for name in ("stdout", "events") if (path := directory / name).exists())
            if size != said:
                said, since = size, time.monotonic()
            if time.monotonic() - since > SILENCE:
                family = [*harness.descendants(process.pid)[::-1], process.pid]
                ansibles = [p.pid for p in harness.processes() if p.pid in family and str(self.ansible) in p.argv]
                harness.end(ansibles, signal.SIGABRT)  # they print their stacks
                process.wait()
                harness.end(family)
                stacks = (directory / "stderr").read_text(errors="replace")[-8000:]
                pytest.fail(f"the run hangs:\n{(directory / 'stdout').read_text()[-2000:]}\n{stacks}", pytrace=False)
        rc = process.returncode
        events = directory / "events"
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        return Run(
            rc, [json.loads(line) for line in lines], (directory / "stdout").read_text(errors="replace"), (directory / "stderr").read_text(errors="replace")
        )

    def play(self, way: Way, inventory: dict[str, dict[str, Any]], playbook: Any, args: Sequence[str] = (), env: dict[str, str] | None = None) -> Run:
        """Run a playbook given as data to its end."""
        with self.files(inventory, playbook) as directory:
            return self.result(self.start(way, directory, args, env), directory)

    # --- cases

    def password_file(self) -> Path:
        """The second account's sudo password, as for --become-password-file."""
        path = self.base / "become-password"
        path.write_text(self.accounts[1].password + "\n")
        path.chmod(0o600)
        return path

    def clean(self, cases: Sequence[str]) -> None:
        """First state: empty work directories at the same paths, fresh homes."""
        for top in (self.work, self.out):
            shutil.rmtree(top, ignore_errors=True)
            top.mkdir()
            for case in cases:
                (top / case).mkdir()
        for case in cases:
            os.chown(self.work / case, self.login.uid, -1)
            (self.work / case).chmod(0o777)
        for a in self.accounts:
            harness.empty_home(a)

    def cases(self, way: Way, cases: dict[str, dict[str, Any]], args: Sequence[str] = ()) -> Run:
        """Run cases in one ansible-playbook, each on hosts of its own, and look at what they left."""
        self.clean(list(cases))
        inventory: dict[str, dict[str, Any]] = {}
        for name, about in cases.items():
            places = {"work": str(self.work / name), "out": str(self.out / name)}
            for host in about.get("hosts", [name]):
                own = {"ansible_connection": None} if about.get("own_connection") else {}
                inventory[host] = self.host_vars(way, self.login, **places, **own)
        run = Run(0, [], "", "")
        left = list(cases)
        while left:  # one run as a rule: a case that ends the playbook is not to hide those after it
            playbook = [{"import_playbook": str(CASES / f"{name}.yml")} for name in left]
            run += self.play(way, inventory, playbook, args)
            reached = [n for n, name in enumerate(left) if run.of(name)]
            left = left[max(reached, default=len(left)) + 1 :]
        harness.until(lambda: not self.async_jobs(), 60, "async jobs end")  # and clean up after themselves
        run.work = {**tree(self.work), **{f"{Path(p).parts[0]}/(controller)/{Path(*Path(p).parts[1:])}": i for p, i in tree(self.out).items()}}
        for n, a in enumerate(self.accounts, 1):
            run.homes.update({f"account{n}/{path}": inode for path, inode in tree(a.home).items()})
        return run

    def async_jobs(self) -> list[int]:
        homes = [str(a.home) for a in self.accounts]
        return [p.pid for p in harness.processes() if any("async_wrapper" in w and w.startswith((*homes, "/tmp/ansible", "/var/tmp/ansible")) for w in p.argv)]

    # --- what runs leave behind on the controller

    def end_masters(self) -> None:
        """End the ControlPersist masters of plain runs."""
        for path in (self.home / ".ansible" / "cp").glob("*"):
            subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "none"], capture_output=True, check=False)

    def tool(self, *args: str) -> subprocess.CompletedProcess[str]:
        """The mitogen-mux command, speaking to this session's daemon."""
        return subprocess.run([str(BINARY), *args], env=self.environment(WAYS["linear"]), capture_output=True, text=True, check=False)

    def status(self) -> dict[str, Any]:
        done = self.tool("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def daemons(self) -> list[int]:
        """Processes that serve from this session's directory (told by the sockets' owner, not by a name)."""
        found = []
        for p in harness.processes():
            if len(p.argv) > 1 and Path(p.argv[0]).name == BINARY.name and p.argv[1] == "serve" and p.state != "Z":
                with contextlib.suppress(OSError):
                    env = Path(f"/proc/{p.pid}/environ").read_bytes().split(b"\0")
                    if f"MITOGEN_MUX_DIR={self.mux}".encode() in env:
                        found.append(p.pid)
        return found

    def agents(self, account: str = "") -> list[harness.Process]:
        """Agents of this session, wherever they hang: what has our marker in its argv and belongs to our accounts, came from them by
        sudo, or was started by our runs. Others on this machine may have agents of their own.
        """
        signs = [f"SUDO_USER={a.name}".encode() for a in self.accounts] + [f"HOME={self.home}".encode()]
        found = []
        for p in harness.processes():
            if p.state == "Z" or not any(w.startswith("mitogen-mux:") for w in p.argv):
                continue
            with contextlib.suppress(OSError, KeyError):
                owner = Path(f"/proc/{p.pid}").owner()
                environ = Path(f"/proc/{p.pid}/environ").read_bytes().split(b"\0")
                mine = owner in [a.name for a in self.accounts] or any(s in environ for s in signs)
                if mine and account in ("", owner):
                    found.append(p)
        return found

    def stop_daemon(self) -> None:
        if BINARY.exists():
            self.tool("stop", "--force")
        harness.end(self.daemons())


@contextlib.contextmanager
def site(ansible: Path) -> Iterator[Site]:
    """A stage for one session. The path is short: sockets live in it."""
    harness.require()
    base = Path(tempfile.mkdtemp(prefix="mx"))
    try:
        with harness.accounts() as made, harness.web(CASES / "files" / "www") as url:
            stage = Site(ansible, made, base, url)
            try:
                yield stage
            finally:
                stage.close()
    finally:
        shutil.rmtree(base, ignore_errors=True)
