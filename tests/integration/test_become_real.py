"""Real tools to become another account, of a Debian system that has them all, in a container that is as a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxes import APP, GUEST, OPS, Boxes
from oracle import Oracle
from runs import WAYS, Run, Site
from test_cases import check
from test_containers import PLAIN, box_of, inventory, with_tools

pytestmark = pytest.mark.tier("matrix")

METHODS: dict[str, dict[str, Any]] = {
    "sudo": {"ansible_become_method": "sudo"},
    "sudo-rs": {"ansible_become_method": "sudo", "ansible_become_exe": "sudo-rs"},
    "su": {"ansible_become_method": "su"},
    "su-rs": {"ansible_become_method": "su", "ansible_become_exe": "su-rs"},
    "doas": {"ansible_become_method": "community.general.doas"},
    "ksu": {"ansible_become_method": "community.general.ksu"},
}
ROOT_ASKS_NOBODY = ("su", "su-rs", "ksu")
TASKS: list[dict[str, Any]] = [{"shell": "id; echo $HOME; exit 3"}, {"copy": {"content": "theirs", "dest": "/work/theirs"}}]


def run(site: Site, boxes: Boxes, way: str, method: str, user: str, become_user: str, password: str = "") -> Run:
    box = box_of(boxes, "docker")
    about = {"ansible_user": user, "ansible_become_user": become_user, **METHODS[method]}
    if password:
        about["ansible_become_password"] = password
    playbook = [{"name": "containers", "hosts": "all", "gather_facts": False, "become": True, "ignore_errors": True, "tasks": TASKS}]
    box.empty()
    done = site.play(with_tools(WAYS[way], boxes), inventory(site, box, PLAIN["docker"], **about), playbook)
    site.stop_daemon()
    return done


@pytest.mark.parametrize("method", METHODS)
def test_without_a_password(method: str, site: Site, boxes: Boxes, oracle: Oracle, binary: Path) -> None:
    user, become_user = ("root", GUEST.name) if method in ROOT_ASKS_NOBODY else (APP.name, "root")
    plain, ours = (run(site, boxes, way, method, user, become_user) for way in ("plain", "linear"))
    assert [status for status, _ in plain.results()] == ["failed", "ok"], plain.said()
    check(oracle.events("containers", "linear", plain.of("containers"), ours.of("containers")), shown=12)


@pytest.fixture(scope="module")
def kdc(boxes: Boxes) -> Iterator[None]:
    """A Kerberos of the container's own, where ops may become root."""
    box = box_of(boxes, "docker")
    box.run("kdb5_util", "create", "-s", "-r", "BOX", "-P", "master")
    box.run("kadmin.local", "-q", f"addprinc -pw {KSU_PASSWORD} {OPS.name}")
    box.run("kadmin.local", "-q", "addprinc -randkey host/box")
    box.run("kadmin.local", "-q", "ktadd host/box")
    box.run("sh", "-c", f"echo {OPS.name}@BOX >/root/.k5login")
    box.run("krb5kdc", "-P", "/run/kdc.pid")
    yield
    box.run("sh", "-c", "kill $(cat /run/kdc.pid)")  # there is no pkill


KSU_PASSWORD = "ticket"

UNKNOWN = {
    ("sudo-rs", "none"): "interactive authentication is required",
    ("doas", "wrong"): "doas: Authentication failed",
    ("doas", "none"): "doas: Authentication required",
}
"""What tools say that Ansible's become plugins do not know: then there are only their words."""


@pytest.mark.parametrize("given", ["right", "wrong", "none"])
@pytest.mark.parametrize("method", METHODS)
def test_with_a_password(method: str, given: str, site: Site, boxes: Boxes, binary: Path, request: pytest.FixtureRequest) -> None:
    """Plain Ansible has no terminal to answer on in a container: what is right is known. The password is asked once, and seen by nobody."""
    if method == "ksu":
        request.getfixturevalue("kdc")
    become_user = GUEST.name if method.startswith("su-") or method == "su" else "root"
    right = {"su": GUEST.password, "su-rs": GUEST.password, "ksu": KSU_PASSWORD}.get(method, OPS.password)
    password = {"right": right, "wrong": "another", "none": ""}[given]
    ours = run(site, boxes, "linear", method, OPS.name, become_user, password)
    if given == "right":
        assert [status for status, _ in ours.results()] == ["failed", "ok"], ours.said()
        assert f"({become_user})" in ours.results()[0][1]["stdout"], ours.said()
    else:
        assert [status for status, _ in ours.results()] == ["failed", "failed"], ours.said()
        said = f"{'Incorrect' if given == 'wrong' else 'Missing'} {METHODS[method]['ansible_become_method']} password"
        result = ours.results()[0][1]
        assert UNKNOWN.get((method, given), said) in result["msg"] + result.get("module_stderr", ""), ours.said()
    assert not password or password not in ours.said()
