"""The machine under test: a real sshd on loopback and real accounts, made for one test session and gone after it.

It knows how to make hosts and accounts. It must not know ansible, nor what a test wants to see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SSHD = os.environ.get("MITOGEN_MUX_TEST_SSHD") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
SESSIONS = ("sshd:", "sshd-session:")  # what a connection's processes call themselves, since 9.8 the latter
GECOS = "mitogen-mux test of process "  # marks our accounts, and says whose they are


class Unavailable(Exception):
    """This machine cannot play the part; the text is the reason for the skip."""


def require() -> None:
    """Raise Unavailable unless this process can make hosts and accounts."""
    if os.geteuid() != 0:
        raise Unavailable("needs root: it starts a real sshd and makes real accounts")
    if SSHD is None:
        raise Unavailable("needs sshd (Debian: apt-get install openssh-server)")
    for tool in ("ssh", "ssh-keygen", "sudo", "useradd", "userdel", "chpasswd"):
        if shutil.which(tool) is None:
            raise Unavailable(f"needs {tool}")


def quiet(*argv: str, stdin: str | None = None) -> str:
    """Run a command of the harness itself; its failure is the test's failure."""
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# --- processes


@dataclasses.dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    argv: tuple[str, ...]


def processes() -> list[Process]:
    """The process table. A process that ends while it is read is left out."""
    table = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
            argv = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        words = tuple(w.decode(errors="replace") for w in argv.split(b"\0") if w)
        table.append(Process(int(entry), int(fields[1]), fields[0], words))
    return table


def descendants(root: int) -> list[int]:
    """Every living process below root, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for p in processes():
        children.setdefault(p.parent, []).append(p.pid)
    found, queue = [], [root]
    while queue:
        for pid in children.get(queue.pop(0), []):
            found.append(pid)
            queue.append(pid)
    return found


def end(pids: list[int], sig: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition. The deadline is there to end a test that is broken, not to time it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


# --- accounts


@dataclasses.dataclass(frozen=True)
class Account:
    name: str
    password: str
    sudo: str  # "nopasswd", "password" or "no"

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.name).pw_dir)

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid


def forget_account(name: str) -> None:
    with contextlib.suppress(KeyError):
        end([p.pid for p in processes() if _uid_of(p.pid) == pwd.getpwnam(name).pw_uid])
        subprocess.run(["userdel", "-r", name], capture_output=True, check=False)
    for trace in ("/var/lib/sudo/lectured/" + name, "/run/sudo/ts/" + name, "/var/mail/" + name):
        Path(trace).unlink(missing_ok=True)


def _uid_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def forget_orphans() -> None:
    """Remove the accounts of test sessions that were killed before they could."""
    for entry in pwd.getpwall():
        owner = entry.pw_gecos.removeprefix(GECOS)
        if owner != entry.pw_gecos and not Path("/proc", owner).exists():
            forget_account(entry.pw_name)
            suffix = entry.pw_name[4:]
            Path(f"/etc/sudoers.d/mxt-{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def accounts() -> Iterator[tuple[Account, Account, Account]]:
    """Three accounts: sudo without a password, sudo with one, no sudo."""
    forget_orphans()
    suffix = secrets.token_hex(2)
    wanted = tuple(Account(f"mxt{n}{suffix}", secrets.token_urlsafe(9) + f" '{n}$", sudo) for n, sudo in ((1, "nopasswd"), (2, "password"), (3, "no")))
    rules = Path(f"/etc/sudoers.d/mxt-{wanted[0].name[4:]}")
    try:
        for a in wanted:
            quiet("useradd", "-m", "-s", "/bin/bash", "-c", f"{GECOS}{os.getpid()}", "-p", "*", a.name)
            quiet("chpasswd", stdin=f"{a.name}:{a.password}\n")
            a.home.chmod(0o755)
        text = f"{wanted[0].name} ALL=(ALL:ALL) NOPASSWD: ALL\n{wanted[1].name} ALL=(ALL:ALL) PASSWD: ALL\n"
        draft = rules.with_suffix(".tmp")  # sudo ignores names with a dot
        draft.write_text(text)
        draft.chmod(0o440)
        draft.rename(rules)
        yield wanted
    finally:
        rules.unlink(missing_ok=True)
        for name in (*(a.name for a in wanted), extra_account(wanted)):
            forget_account(name)


def extra_account(made: tuple[Account, ...]) -> str:
    """The name of an account that a test itself may make."""
    return f"mxu{made[0].name[4:]}"


@contextlib.contextmanager
def crowd(count: int) -> Iterator[list[str]]:
    """So many more accounts, which have no password."""
    suffix = secrets.token_hex(2)
    names = [f"mxc{n}x{suffix}" for n in range(count)]
    try:
        for name in names:
            quiet("useradd", "-m", "-s", "/bin/bash", "-c", f"{GECOS}{os.getpid()}", "-p", "*", name)
        yield names
    finally:
        for name in names:
            forget_account(name)


def empty_home(a: Account) -> None:
    """Bring an account back to its first state."""
    for entry in a.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in Path("/etc/skel").iterdir():
        copy = a.home / entry.name
        shutil.copy(entry, copy)
        os.chown(copy, a.uid, pwd.getpwnam(a.name).pw_gid)
    Path("/var/lib/sudo/lectured", a.name).unlink(missing_ok=True)


# --- sshd


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def own_programs() -> str:
    """Lines of sshd_config that keep an sshd that stands elsewhere to its own parts; none before 9.8, which is one program."""
    folder = Path(SSHD or "").parent.parent / "lib" / "openssh"
    parts = {"SshdSessionPath": folder / "sshd-session", "SshdAuthPath": folder / "sshd-auth"}
    return "".join(f"{option} {path}\n" for option, path in parts.items() if path.exists())


class Sshd:
    """One sshd on loopback with a host key and a configuration of its own.

    `inside` is a shell script run as root in a mount namespace of its own before sshd starts: what a host with a read-only root or
    a full disk looks like.
    """

    def __init__(self, directory: Path, authorized: Path, inside: str = "", extra: str = "", listen: str = "127.0.0.1") -> None:
        self.directory, self.authorized, self.inside, self.extra, self.listen = directory, authorized, inside, extra, listen
        self.port = free_port()
        self.known_hosts = directory / "known_hosts"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        key = self.directory / "host_key"
        if not key.exists():
            quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        words = key.with_suffix(".pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n")
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress {self.listen}:{self.port}\nHostKey {key}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.authorized}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nChallengeResponseAuthentication no\n"
            f"MaxStartups 200\nPrintMotd no\nSubsystem sftp internal-sftp\n{own_programs()}{self.extra}"
        )
        assert SSHD is not None
        argv = [SSHD, "-D", "-e", "-f", str(config)]
        if self.inside:
            script = f"set -e\n{self.inside}\nexec \"$@\""
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv]
        if setpriv := shutil.which("setpriv"):  # a test session that is killed takes its sshd with it
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        log = (self.directory / "sshd.log").open("ab")
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()
        until(self._answers, 20, f"sshd on port {self.port}")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            text = (self.directory / "sshd.log").read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"sshd does not start: {' '.join(text[-3:])}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                return s.recv(4) == b"SSH-"
        except OSError:
            return False

    def sessions(self) -> list[int]:
        """Everything that runs below this sshd. What left its process tree (daemons, async jobs) is not in it."""
        return descendants(self.process.pid) if self.process else []

    def stop(self) -> None:
        if self.process is None:
            return
        below = self.sessions()
        self.process.kill()
        self.process.wait()
        end(below)
        self.process = None


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def web(directory: Path) -> Iterator[str]:
    """A web server on loopback that serves a directory."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
