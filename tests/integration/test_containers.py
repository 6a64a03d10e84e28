"""Containers of the real tools: the same playbook by the plugin that users know each kind by, and through us in every way that leads there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import boxes as making
import harness
from boxes import APP, GUEST, OPS, Box, Boxes
from oracle import Oracle
from runs import CASES, WAYS, Run, Site, Way
from test_cases import check
from test_community import FOLDER, having_collections

pytestmark = pytest.mark.tier("matrix")

PLAIN = {
    "docker": "community.docker.docker",
    "podman": "containers.podman.podman",
    "buildah": "containers.podman.buildah",
    "lxc": "community.general.lxc",
    "lxd": "community.general.lxd",
    "chroot": "community.general.chroot",
    "nspawn": "community.general.chroot",  # of the same folder
}


def box_of(boxes: Boxes, kind: str) -> Box:
    collection = PLAIN[kind].rpartition(".")[0]
    if not Path(FOLDER, "ansible_collections", *collection.split(".")).is_dir():
        pytest.skip(f"no collection {collection}: set MITOGEN_MUX_TEST_COLLECTIONS to a folder with ansible_collections in it")
    try:
        return boxes.get(kind)
    except harness.Unavailable as error:
        pytest.skip(str(error))


def with_tools(way: Way, boxes: Boxes) -> Way:
    path = f"{boxes.bin}:{os.environ['PATH']}"
    return dataclasses.replace(having_collections(way), env=(*having_collections(way).env, ("PATH", path)))


def plain_of(site: Site, box: Box) -> tuple[str, str]:
    """The plugin that plain Ansible has for a box, and the address that it takes."""
    if box.kind == "nspawn" or (box.kind == "lxc" and not bindings_work(site, box)):
        return PLAIN["chroot"], str(box.root)  # the same folder, entered in another way
    return PLAIN[box.kind], box.address


def bindings_work(site: Site, box: Box) -> bool:
    """Whether the Python of that ansible-core has liblxc's bindings, and they serve it: those that there are fail with 3.13."""
    program = f"import lxc; exit(lxc.Container({box.address!r}).attach_wait(lxc.attach_run_command, ['true']))"
    return subprocess.run([site.ansible.parent / "python", "-c", program], capture_output=True, check=False).returncode == 0


def before_1_18_1(kind: str) -> bool:
    """Whether this is a plugin of containers.podman as it was before 1.18.1: podman's cannot pipeline, and both give a file that they put another mode
    than later ones and ours by its own name do."""
    namespace, collection, name = PLAIN[kind].split(".")
    source = Path(FOLDER, "ansible_collections", namespace, collection, "plugins", "connection", f"{name}.py")
    return collection == "podman" and "copyfile(" in source.read_text()


def inventory(site: Site, box: Box, connection: str, address: str = "", **more: Any) -> dict[str, dict[str, Any]]:
    variables = {"ansible_connection": connection, "ansible_host": address or box.address, "ansible_python_interpreter": "/usr/bin/python3", **box.variables}
    return {"containers": {**variables, "out": str(site.out / "containers"), **more}}


def played(site: Site, boxes: Boxes, box: Box, way: Way, hosts: dict[str, dict[str, Any]]) -> Run:
    """The case, in a box that is as new."""
    box.empty()
    site.clean(["containers"])
    run = site.play(with_tools(way, boxes), hosts, [{"import_playbook": str(CASES / "containers.yml")}])
    site.stop_daemon()
    assert run.rc == 0, run.said()
    run.work = {f"containers/{path}": about for path, about in box.tree("/work").items()}
    return run


@pytest.mark.parametrize("accounts", ["are made", "fail"])
def test_the_system_stays_as_it_was(accounts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are made of a copy of it, though what is in the cache may be a link, and not of half a copy."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / "system-from-debian.sh"
    script.write_text(f"#!/bin/sh\necho {tmp_path}/link\n")
    script.chmod(0o755)

    def quiet(*argv: str) -> None:
        if argv[0] == "chroot":
            Path(argv[1], "account").touch()
            argv = ("true",) if accounts == "are made" else ("false",)
        harness.quiet(*argv)

    monkeypatch.setattr(making, "PROJECT", tmp_path)
    monkeypatch.setattr(making, "quiet", quiet)
    made = Boxes(tmp_path / "boxes")
    for _ in range(2):
        with contextlib.nullcontext() if accounts == "are made" else pytest.raises(RuntimeError):
            assert sorted(os.listdir(made.system())) == ["account", "file"]
    assert os.listdir(tmp_path / "tree") == ["file"]


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, Run]:
    return {}


THROUGH = [(kind, through) for kind in PLAIN for through in ("name", "plugin", "via") if (kind, through) != ("nspawn", "name")]  # which plain has not


@pytest.mark.parametrize(("kind", "through"), THROUGH)
def test_playbook(kind: str, through: str, site: Site, boxes: Boxes, plain_runs: dict[str, Run], oracle: Oracle, binary: Path) -> None:
    box = box_of(boxes, kind)
    plugin, address = plain_of(site, box)
    stand_in = plugin != PLAIN[kind] or kind == "nspawn"
    old = before_1_18_1(kind)
    more = {"same_environment": not stand_in, "pipelined": kind != "podman" or not old, "same_modes": through == "name" or not old}
    like = f"{kind} {more}"
    if like not in plain_runs:
        plain_runs[like] = played(site, boxes, box, WAYS["plain"], inventory(site, box, plugin, address, **more))
    hosts = inventory(site, box, PLAIN[kind] if through == "name" else f"mitogen_{kind}", **more)
    if through == "via":
        hosts["containers"]["mitogen_via"] = "root@machine"
        hosts["machine"] = site.host_vars(WAYS["plain"], site.login)
    ours = played(site, boxes, box, WAYS["linear" if through == "name" else "plain"], hosts)
    check(oracle.case("containers", through, plain_runs[like], ours), shown=12)


def both(kind: str, variables: dict[str, Any], tasks: list[dict[str, Any]], site: Site, boxes: Boxes, oracle: Oracle, **play: Any) -> Run:
    """A few tasks, plain and through us."""
    box = box_of(boxes, kind)
    playbook = [{"name": "containers", "hosts": "containers", "gather_facts": False, "ignore_errors": True, "tasks": tasks, **play}]
    runs = []
    for way in (WAYS["plain"], WAYS["linear"]):
        box.empty()
        site.clean(["containers"])
        runs.append(site.play(with_tools(way, boxes), inventory(site, box, PLAIN[kind], **variables), playbook))
        site.stop_daemon()
    assert runs[0].results("containers")[0][0] == "ok", runs[0].said()
    assert runs[0].rc == runs[1].rc, runs[0].said() + runs[1].said()
    check(oracle.events("containers", "linear", *(run.of("containers") for run in runs)), shown=12)
    return runs[1]


WHO: dict[str, Any] = {"shell": "id; pwd; echo $HOME $USER"}


@pytest.mark.parametrize("given", ["ansible_user", "remote_user"])
@pytest.mark.parametrize("kind", ["docker", "podman", "buildah", "lxd"])
def test_another_account(kind: str, given: str, site: Site, boxes: Boxes, oracle: Oracle, binary: Path) -> None:
    """Who is not root in the container."""
    tasks = [
        WHO,
        {"copy": {"content": "app's", "dest": "/work/app"}},
        {"copy": {"src": "/etc/hostname", "dest": "~/name"}},
        {"fetch": {"src": "/work/app", "dest": "{{ out }}/", "flat": True}},
        {**WHO, "become": True},
        {**WHO, "become": True, "become_user": GUEST.name},
        {"file": {"path": "/work/app", "owner": "root"}},
    ]
    variables = {"ansible_user": APP.name} if given == "ansible_user" else {}
    both(kind, variables, tasks, site, boxes, oracle, **({"remote_user": APP.name} if given == "remote_user" else {}))


@pytest.mark.parametrize("password", ["right", "wrong", "none"])
@pytest.mark.parametrize("method", ["sudo", "su"])
def test_passwords(method: str, password: str, site: Site, boxes: Boxes, oracle: Oracle, binary: Path) -> None:
    """Plain Ansible answers prompts in docker alone."""
    given = {"right": GUEST.password if method == "su" else OPS.password, "wrong": "another", "none": None}[password]
    variables = {"ansible_user": OPS.name, "ansible_become_method": method, "ansible_become_user": GUEST.name}
    if given:
        variables["ansible_become_password"] = given
    tasks = [{**WHO, "become": True}]
    if password == "right":
        both("docker", variables, tasks, site, boxes, oracle)
    playbook = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    for kind in ("docker", "podman"):
        run = site.play(with_tools(WAYS["linear"], boxes), inventory(site, box_of(boxes, kind), PLAIN[kind], **variables), playbook)
        ((status, result),) = run.results("containers")
        if password == "right":
            assert status == "ok" and f"({GUEST.name})" in result["stdout"], run.said()
        else:
            said = f"{'Incorrect' if given else 'Missing'} {method} password"
            assert status == "failed" and said in result["msg"], run.said()
        assert not given or given not in run.said()


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "docker": (
        "docker",
        {"ansible_docker_extra_env": {"A": "b 'c", "D": ""}, "ansible_docker_working_dir": "/srv", "ansible_docker_extra_args": "--log-level info"},
    ),
    "podman": (
        "podman",
        {
            "ansible_podman_extra_env": {"A": "b 'c", "D": ""},
            "ansible_podman_working_directory": "/srv",
            "ansible_podman_extra_args": "--log-level 'error'",
            "ansible_user": OPS.name,
        },
    ),
    "podman, sudo": ("podman", {"ansible_podman_privilege_escalation": "sudo", "ansible_user": APP.name}),
    "podman, su": ("podman", {"ansible_podman_privilege_escalation": "su"}),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options(what: str, site: Site, boxes: Boxes, oracle: Oracle, binary: Path) -> None:
    """The original's own options."""
    kind, variables = OPTIONS[what]
    both(
        kind,
        variables,
        [{"shell": "env | grep -v -e ^_= -e ^SUDO_COMMAND= | sort; pwd; id; grep CapEff /proc/self/status"}, {"raw": "id -un"}],
        site,
        boxes,
        oracle,
    )


@pytest.mark.parametrize("kind", ["docker", "podman", "buildah", "lxc", "lxd", "chroot"])
def test_none_of_that_name(kind: str, site: Site, boxes: Boxes, binary: Path) -> None:
    """The host is unreachable, and the reason says which name it is; plain Ansible has the one or the other failure, as pipelining is on or not."""
    box = box_of(boxes, kind)
    name = "/no/such/thing" if kind == "chroot" else "no-such-thing"
    playbook = [{"hosts": "all", "gather_facts": False, "tasks": [{"command": "id"}]}]
    wanted = "failed" if kind == "chroot" else "unreachable"  # the original looks when it is made, which is in both ways
    for through, statuses in (("plain", ("failed", "unreachable")), ("linear", (wanted,))):
        run = site.play(with_tools(WAYS[through], boxes), inventory(site, box, PLAIN[kind], name), playbook)
        site.stop_daemon()
        ((status, result),) = run.results("containers")
        assert status in statuses, run.said()
    assert name in result["msg"], run.said()


@pytest.mark.parametrize("through", ["plugin", "via"])
@pytest.mark.parametrize("kind", ["docker", "podman", "lxc", "lxd"])
def test_stopped_under_a_task(kind: str, through: str, site: Site, boxes: Boxes, binary: Path) -> None:
    """The host is unreachable at once, nothing is left of it, and once it runs again so do its tasks."""
    box = box_of(boxes, kind)
    hosts = inventory(site, box, f"mitogen_{kind}")
    if through == "via":
        hosts["containers"]["mitogen_via"] = "root@machine"
        hosts["machine"] = site.host_vars(WAYS["plain"], site.login)
    playbook = [{"hosts": "containers", "gather_facts": False, "tasks": [{"command": "sleep 4321"}, {"command": "id"}]}]

    def sleeping() -> bool:
        return any(p.argv == ("sleep", "4321") for p in harness.processes())

    try:
        with site.files(hosts, playbook) as directory:
            process = site.start(with_tools(WAYS["plain"], boxes), directory)
            harness.until(sleeping, 60, "the task runs")
            box.stop()
            run = site.result(process, directory)
        assert [status for status, _ in run.results("containers")] == ["unreachable"], run.said()
        assert box.address in run.results("containers")[0][1]["msg"] or "containers" in run.results("containers")[0][1]["msg"], run.said()
        assert not sleeping()
        stopped = site.play(with_tools(WAYS["plain"], boxes), hosts, [{"hosts": "containers", "gather_facts": False, "tasks": [{"command": "id"}]}])
        assert [status for status, _ in stopped.results("containers")] == ["unreachable"], stopped.said()
    finally:
        with contextlib.suppress(RuntimeError):
            box.start()
    run = site.play(with_tools(WAYS["plain"], boxes), hosts, [{"hosts": "containers", "gather_facts": False, "tasks": [{"command": "id -un"}]}])
    assert run.results("containers")[0][1]["stdout"] == "root", run.said()
    site.stop_daemon()
    harness.until(
        lambda: not [p for p in harness.processes() if any(w.startswith("mitogen-mux: ") for w in p.argv) and box.address in p.argv], 20, "no agent is left"
    )


@pytest.mark.parametrize("user", ["", APP.name])
@pytest.mark.parametrize("kind", ["docker", "podman", "lxc", "lxd", "pid"])
def test_namespaces(kind: str, user: str, site: Site, boxes: Boxes, binary: Path) -> None:
    """By way of the first process, whoever runs the container."""
    box = box_of(boxes, "podman" if kind == "pid" else kind)
    hosts = inventory(site, box, "mitogen_setns", mitogen_kind=kind, **({"ansible_user": user} if user else {}))
    if kind == "pid":
        hosts["containers"]["ansible_host"] = subprocess.check_output(
            [boxes.bin / "podman", "inspect", "--format", "{{.State.Pid}}", box.address], text=True
        ).strip()
    box.empty()
    tasks = [{"command": "id -un"}, {"copy": {"content": "x", "dest": "/work/there"}}, {"raw": "id -un"}]
    run = site.play(with_tools(WAYS["plain"], boxes), hosts, [{"hosts": "all", "gather_facts": False, "tasks": tasks}])
    assert run.rc == 0, run.said()
    assert [str(result.get("stdout")).strip() for _, result in run.results("containers")] == [user or "root", "None", user or "root"]
    assert box.tree("/work")["there"]["owner"] == (user or "root")
