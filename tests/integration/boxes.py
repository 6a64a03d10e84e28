"""Containers of the real tools, all made of one small Debian system, for one test session and gone after it.

It knows how to make them and to look into them. It must not know ansible, nor what a test wants to see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
from harness import Unavailable, quiet

PROJECT = Path(__file__).resolve().parent.parent.parent

APP, OPS, GUEST = (harness.Account(name, f"{name} $'s", sudo) for name, sudo in (("app", "nopasswd"), ("ops", "password"), ("guest", "no")))
"""Who is in a box besides root."""

ACCOUNTS = """
set -e
id=61000 # nobody's on this machine: who ends all that runs as one of its accounts is not to end what is in here
for name in app ops guest; do
    id=$((id + 1))
    useradd -m -s /bin/bash -u $id $name
    echo "$name:$name \\$'s" | chpasswd
done
echo "127.0.0.1 localhost $(hostname) box" >/etc/hosts
printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\\n%s ALL=(ALL:ALL) PASSWD: ALL\\n' app ops >/etc/sudoers.d/box
printf 'permit nopass keepenv %s\\npermit %s\\n' app ops >/etc/doas.conf
chmod 0440 /etc/sudoers.d/box
cat >/etc/krb5.conf <<END
[libdefaults]
 default_realm = BOX
 dns_lookup_kdc = false
 rdns = false
 dns_canonicalize_hostname = false
[realms]
 BOX = {
  kdc = 127.0.0.1:8888
 }
END
mkdir -p /var/lib/krb5kdc
printf '[kdcdefaults]\n kdc_listen = 127.0.0.1:8888\n kdc_tcp_listen = 127.0.0.1:8888\n' >/etc/krb5kdc/kdc.conf
mkdir -m 777 /work
chmod u+s /usr/lib/cargo/bin/su # Debian leaves it to whoever wants it
"""

# Everything below a folder but times, as runs.tree gives it.
LOOK = """
import grp, hashlib, json, os, pwd, stat, sys
found = {}
for folder, names, files in os.walk(sys.argv[1]):
    for name in names + files:
        path = os.path.join(folder, name)
        s = os.lstat(path)
        about = found[os.path.relpath(path, sys.argv[1])] = {"type": stat.filemode(s.st_mode)[0], "mode": "%04o" % stat.S_IMODE(s.st_mode)}
        about["owner"], about["group"] = pwd.getpwuid(s.st_uid).pw_name, grp.getgrgid(s.st_gid).gr_name
        if stat.S_ISREG(s.st_mode):
            about["size"], about["sha256"] = s.st_size, hashlib.sha256(open(path, "rb").read()).hexdigest()
        if stat.S_ISLNK(s.st_mode):
            about["target"] = os.readlink(path)
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Box:
    """A container that runs, or a folder that one can be entered in."""

    kind: str
    address: str
    enter: tuple[str, ...]  # runs a command in it
    root: Path | None = None  # its files on this machine, where they simply lie there
    variables: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a host of the inventory needs besides address and connection
    restart: tuple[tuple[str, ...], ...] = ()  # stops it, and starts it anew

    def run(self, *argv: str) -> str:
        return quiet(*self.enter, *argv)

    def empty(self) -> None:
        """As it was at first, where tests work."""
        self.run("sh", "-c", "rm -rf /work/* /work/.[!.]* /root/.ansible /root/name /home/*/.ansible /home/*/name /tmp/*; chmod 777 /work")

    def tree(self, folder: str) -> dict[str, dict[str, Any]]:
        return json.loads(self.run("python3", "-c", LOOK, folder))

    def stop(self) -> None:
        quiet(*self.restart[0])

    def start(self) -> None:
        quiet(*self.restart[1])


class Boxes:
    """One of each kind, made when the first test asks for it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bin = base / "bin"  # the tools as they are to be called here: an inventory cannot say everything to each of them
        self.name = f"mxt-{secrets.token_hex(3)}"  # what is not in a folder of our own must be nobody else's
        self.stack = contextlib.ExitStack()
        self.made: dict[str, Box | Unavailable] = {}
        self.bin.mkdir(parents=True)

    def get(self, kind: str) -> Box:
        """Raises Unavailable, the next time with the same reason."""
        if kind not in self.made:
            try:
                self.made[kind] = self.stack.enter_context(MAKERS[kind](self))
            except (Unavailable, RuntimeError) as error:
                self.made[kind] = Unavailable(f"no {kind}: {error}")
        made = self.made[kind]
        if isinstance(made, Unavailable):
            raise made
        return made

    def close(self) -> None:
        self.stack.close()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{self.base}/"):  # podman leaves one
                quiet("umount", line.split()[1])

    def system(self) -> Path:
        """A folder with the system in it, and accounts."""
        root = self.base / "root"
        if not root.exists():
            done = subprocess.run([str(PROJECT / "tools" / "system-from-debian.sh")], capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"no Debian system to make containers of: {done.stderr.strip()}")
            draft = self.base / "draft"
            quiet("cp", "-a", "--reflink=auto", f"{done.stdout.strip()}/.", str(draft))  # what it has, though it may be a link
            quiet("chroot", str(draft), "sh", "-c", ACCOUNTS)
            draft.rename(root)
        return root

    def tool(self, name: str, clean: bool = False, **environ: str) -> str:
        """A tool with a few variables in its environment, or nothing but them, under its own name in a folder for PATH."""
        words = [f"{key}={value}" for key, value in environ.items()]
        path = self.bin / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(["env", *(["-i"] if clean else []), *words, need(name)])} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def image(self, tool: str) -> None:
        """Makes an image of the system for docker or podman."""
        with subprocess.Popen(["tar", "-C", str(self.system()), "-c", "."], stdout=subprocess.PIPE) as tar:
            done = subprocess.run([tool, "import", "-", self.name], stdin=tar.stdout, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{tool} import: {done.stderr.strip()}")


def need(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{name} is not installed")
    return path


@contextlib.contextmanager
def _docker(boxes: Boxes) -> Iterator[Box]:
    """With a dockerd of its own."""
    dockerd, folder = need("dockerd"), boxes.base / "docker"
    folder.mkdir()
    socket, log = f"unix://{folder}/sock", folder / "log"
    (folder / "config").write_text("{}")
    argv = [dockerd, "--config-file", f"{folder}/config", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid"]
    argv += ["-H", socket, "--bridge", "none", "--iptables=false", "--ip6tables=false"]
    tool = boxes.tool("docker", DOCKER_HOST=socket)
    with log.open("wb") as out:
        daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:

        def ready() -> bool:
            if daemon.poll() is not None:
                raise Unavailable(f"dockerd does not start: {log.read_text(errors='replace').strip().splitlines()[-1:]}")
            return subprocess.run([tool, "version"], capture_output=True, check=False).returncode == 0

        harness.until(ready, 60, "dockerd")
        boxes.image(tool)
        quiet(tool, "run", "-d", "--init", "--name", boxes.name, "--network", "none", boxes.name, "sleep", "infinity")
        try:
            yield Box("docker", boxes.name, (tool, "exec", "-i", boxes.name), None, {"mitogen_docker_path": tool}, _stops(tool, boxes.name))
        finally:
            quiet(tool, "rm", "-f", boxes.name)
    finally:
        daemon.terminate()
        daemon.wait()


def _stops(tool: str, name: str) -> tuple[tuple[str, ...], ...]:
    return (tool, "kill", name), (tool, "start", name)


def _podman_tool(boxes: Boxes, name: str) -> str:
    """Podman or buildah with a store of their own, without a network, and with what a machine that is a container itself permits."""
    folder = boxes.base / "podman"
    folder.mkdir(exist_ok=True)
    runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""  # crun refuses where both kinds of cgroups are
    (folder / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\nnetns = "none"\n[engine]\ncgroup_manager = "cgroupfs"\n{runtime}'
    )
    (folder / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/data"\nrunroot = "{folder}/run"\n')
    environ = {"CONTAINERS_CONF": f"{folder}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf"}
    return boxes.tool(name, **environ, **({"BUILDAH_RUNTIME": "runc"} if runtime else {}))


@contextlib.contextmanager
def _podman(boxes: Boxes) -> Iterator[Box]:
    tool = _podman_tool(boxes, "podman")
    boxes.image(tool)
    quiet(tool, "run", "-d", "--name", boxes.name, boxes.name, "sleep", "infinity")
    try:
        yield Box("podman", boxes.name, (tool, "exec", "-i", boxes.name), None, {"mitogen_podman_path": tool}, _stops(tool, boxes.name))
    finally:
        quiet(tool, "rm", "-f", "-t", "0", boxes.name)


@contextlib.contextmanager
def _buildah(boxes: Boxes) -> Iterator[Box]:
    need("buildah")
    boxes.get("podman")  # its image
    tool = _podman_tool(boxes, "buildah")
    name = f"{boxes.name}-build"
    quiet(tool, "from", "--name", name, f"localhost/{boxes.name}")
    try:
        yield Box("buildah", name, (tool, "run", name, "--"), None, {"mitogen_buildah_path": tool})
    finally:
        quiet(tool, "rm", name)


@contextlib.contextmanager
def _lxc(boxes: Boxes) -> Iterator[Box]:
    need("lxc-attach")
    root, folder = boxes.system(), Path("/var/lib/lxc", boxes.name)  # where the bindings look, too
    folder.mkdir(parents=True)
    config = f"lxc.rootfs.path = dir:{root}\nlxc.uts.name = box\nlxc.net.0.type = none\nlxc.mount.auto = proc sys\nlxc.init.cmd = /usr/bin/sleep infinity\n"
    (folder / "config").write_text(config)
    start, stop = ("lxc-start", "-n", boxes.name), ("lxc-stop", "-k", "-n", boxes.name)
    try:
        quiet(*start)
        try:
            yield Box("lxc", boxes.name, ("lxc-attach", "-n", boxes.name, "--"), root, boxes.get("chroot").variables, (stop, start))
        finally:
            if "RUNNING" in quiet("lxc-info", "-s", "-n", boxes.name):
                quiet(*stop)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _lxd(boxes: Boxes) -> Iterator[Box]:
    """With an lxd of its own, and a container that needs no network and no map of accounts."""
    lxd, folder = need("lxd"), boxes.base / "lxd"
    folder.mkdir()
    tool, log = boxes.tool("lxc", LXD_DIR=str(folder)), folder / "log"
    metadata, rootfs = folder / "metadata.tar", folder / "rootfs.tar"
    (folder / "metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1\nproperties: {os: debian}\n")
    with log.open("wb") as out:
        daemon = subprocess.Popen([lxd, "--group", "root"], env={**os.environ, "LXD_DIR": str(folder)}, stdout=out, stderr=out, start_new_session=True)
    try:

        def ready() -> bool:
            if daemon.poll() is not None:
                raise Unavailable(f"lxd does not start: {log.read_text(errors='replace').strip().splitlines()[-1:]}")
            return subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0

        harness.until(ready, 60, "lxd")
        quiet("tar", "-C", str(folder), "-cf", str(metadata), "metadata.yaml")
        quiet("tar", "-C", str(boxes.system()), "-cf", str(rootfs), ".")
        quiet(tool, "storage", "create", "pool", "dir")
        quiet(tool, "image", "import", str(metadata), str(rootfs), "--alias", "system")
        config = ("-c", "security.privileged=true", "-c", "raw.lxc=lxc.init.cmd=/usr/bin/sleep infinity")
        quiet(tool, "init", "system", "box", "--storage", "pool", *config)
        quiet(tool, "start", "box")
        try:
            stops = (tool, "stop", "--force", "box"), (tool, "start", "box")
            yield Box("lxd", "box", (tool, "exec", "box", "--"), None, {"mitogen_lxc_path": tool}, stops)
        finally:
            quiet(tool, "delete", "--force", "box")
    finally:
        subprocess.run([lxd, "shutdown", "--timeout", "30"], env={**os.environ, "LXD_DIR": str(folder)}, capture_output=True, check=False)
        daemon.kill()
        daemon.wait()


@contextlib.contextmanager
def _chroot(boxes: Boxes) -> Iterator[Box]:
    """A folder and nothing more: no /proc, no terminals. Of the environment there is what no way there and no run has of its own."""
    root = boxes.system()
    tool = boxes.tool("chroot", clean=True, PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", USER="root", LOGNAME="root")
    yield Box("chroot", str(root), (tool, str(root)), root, {"ansible_chroot_exe": tool})


@contextlib.contextmanager
def _nspawn(boxes: Boxes) -> Iterator[Box]:
    need("systemd-nspawn")
    folder = boxes.get("chroot")
    root = boxes.system()
    words = "--register=no --keep-unit"  # there need be no systemd here
    enter = ("systemd-nspawn", *words.split(), "--quiet", "--pipe", "--directory", str(root), "--")
    quiet(*enter, "true")
    # It enters a folder once at a time: what looks into it goes another way.
    yield Box("nspawn", str(root), folder.enter, root, {**folder.variables, "ansible_nspawn_extra_args": words})


MAKERS: dict[str, Callable[[Boxes], contextlib.AbstractContextManager[Box]]] = {
    "docker": _docker,
    "podman": _podman,
    "buildah": _buildah,
    "lxc": _lxc,
    "lxd": _lxd,
    "chroot": _chroot,
    "nspawn": _nspawn,
}
