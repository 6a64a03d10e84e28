"""Every way to a host times every way to become another account there: where the account lies, how many hosts are in front of it, which tool,
whether it asks, whether it insists on a terminal. Plain Ansible says what comes out, for accounts behind other hosts where they can be reached
directly."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import boxes as box_accounts
import harness
from boxes import Boxes
from runs import WAYS, Event, Run, Site
from test_community import FOLDER
from test_containers import PLAIN, box_of, with_tools

CONNECTIONS = ("ssh", "local", "docker")
BECOMES = ("none", "sudo", "sudo with a password", "su", "doas")
TERMINALS = (False, True)
DEPTHS = (0, 1, 2, 3, 4)


class Point(NamedTuple):
    """One combination."""

    connection: str
    become: str
    requiretty: bool
    depth: int  # hosts in front of it, after the controller

    @property
    def host(self) -> str:
        return "-".join(map(str, self)).replace(" ", "_")

    @property
    def alike(self) -> Point:
        """The combination that plain Ansible can do and that gives the same: the tool there is content without a terminal."""
        return self._replace(depth=0, connection="ssh" if self.connection == "local" and self.depth else self.connection)


EVERYTHING = [Point(*values) for values in itertools.product(CONNECTIONS, BECOMES, TERMINALS, DEPTHS)]


def pairwise(points: list[Point]) -> list[Point]:
    """Enough of them that each two values that can meet do so somewhere. Always the same ones."""

    def pairs(point: Point) -> set[tuple[tuple[int, Any], tuple[int, Any]]]:
        return set(itertools.combinations(enumerate(point), 2))

    missing, chosen = set().union(*map(pairs, points)), []
    while missing:
        best = max(points, key=lambda point: len(pairs(point) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def accounts_of(site: Site, connection: str) -> tuple[harness.Account, harness.Account, harness.Account]:
    """Who may become anybody, who may if he gives his password, who may not."""
    return site.accounts if connection != "docker" else (box_accounts.APP, box_accounts.OPS, box_accounts.GUEST)  # type: ignore[return-value]


def become(site: Site, point: Point) -> dict[str, Any]:
    """Who logs in, and whom he becomes: one for whom sudo wants a terminal, or root."""
    free, asked, other = accounts_of(site, point.connection)
    login = asked if point.become == "sudo with a password" else free
    found: dict[str, Any] = {"ansible_user": login.name, "ansible_become": point.become != "none"}
    user, password = (other.name if point.requiretty or point.become == "su" else "root"), ""
    if point.become == "sudo with a password":
        password = asked.password
    elif point.become == "su":
        password = other.password
    method = {"doas": "community.general.doas", "su": "su"}.get(point.become, "sudo")
    return {**found, "ansible_become_method": method, "ansible_become_user": user, **({"ansible_become_password": password} if password else {})}


def chain(site: Site) -> dict[str, dict[str, Any]]:
    """Hosts that lead to each other, of which every second is root."""
    machine = site.host_vars(WAYS["plain"], site.login, ansible_connection="ssh")
    root = {"ansible_connection": "mitogen_sudo", "ansible_python_interpreter": "/usr/bin/python3"}
    return {
        "chain1": machine,
        "chain2": {**root, "mitogen_via": "chain1"},
        "chain3": {**machine, "mitogen_via": "chain2"},
        "chain4": {**root, "mitogen_via": "chain3"},
        # The same of accounts of the controller alone.
        "account1": {**root, "ansible_connection": "mitogen_su", "ansible_user": site.login.name},
        "account2": {**root, "mitogen_via": "account1"},
        "account3": {**root, "ansible_connection": "mitogen_su", "ansible_user": site.login.name, "mitogen_via": "account2"},
    }


def variables(site: Site, boxes: Boxes | None, point: Point, plain: bool) -> dict[str, Any]:
    found = {"ansible_python_interpreter": "/usr/bin/python3", "session": site.login.name, **become(site, point)}
    if point.connection == "docker":
        assert boxes is not None
        box = box_of(boxes, "docker")
        found.update(ansible_connection=PLAIN["docker"] if plain or not point.depth else "mitogen_docker", ansible_host=box.address, **box.variables)
        via = f"chain{point.depth}"
        return {**found, "mitogen_via": f"root@{via}" if point.depth % 2 else via} if point.depth else found
    if point.connection == "local" and not point.depth:
        return {**found, "ansible_connection": "local"}
    if point.connection == "local":
        tool = "mitogen_su" if point.depth % 2 else "mitogen_sudo"  # behind root, and behind one who may
        return {**found, "ansible_connection": tool, **({"mitogen_via": f"account{point.depth - 1}"} if point.depth > 1 else {})}
    found = {**site.host_vars(WAYS["plain"], site.login), **found, "ansible_connection": "ssh"}
    return {**found, "mitogen_via": f"chain{point.depth}"} if point.depth else found


TASKS: list[dict[str, Any]] = [
    {"shell": "id -un; id -gn; echo $HOME; cat; exit 3", "args": {"stdin": "given"}},
    {"copy": {"content": "{{ ansible_user }}", "dest": "/tmp/{{ session }}-{{ inventory_hostname }}"}},
    {"slurp": {"src": "/tmp/{{ session }}-{{ inventory_hostname }}"}},
    {"file": {"path": "/tmp/{{ session }}-{{ inventory_hostname }}", "state": "absent"}},
]
VOLATILE = ("start", "end", "delta", "src", "dest", "path", "source", "invocation", "_ansible_no_log")


def played(site: Site, boxes: Boxes | None, way: str, points: list[Point], tasks: list[dict[str, Any]]) -> Run:
    hosts = {point.host: variables(site, boxes, point, way == "plain") for point in points}
    env = {"ANSIBLE_FORKS": "8", "ANSIBLE_COLLECTIONS_PATH": FOLDER}
    playbook = [{"hosts": ",".join(hosts), "gather_facts": False, "ignore_errors": True, "tasks": tasks}]
    through = WAYS[way] if boxes is None else with_tools(WAYS[way], boxes)
    return site.play(through, {**chain(site), **hosts}, playbook, env=env)


def seen(run: Run, host: str) -> list[tuple[str, Event]]:
    return [(status, {key: value for key, value in result.items() if key not in VOLATILE}) for status, result in run.results(host)]


@contextlib.contextmanager
def rules(site: Site, boxes: Boxes | None) -> Iterator[None]:
    """sudo insists on a terminal for whoever becomes the third account."""
    file = Path("/etc/sudoers.d", f"mxt-tty-{site.login.name}")
    file.write_text(f"Defaults>{site.accounts[2].name} requiretty\n")
    file.chmod(0o440)
    if boxes is not None:
        box_of(boxes, "docker").run("sh", "-c", f"echo 'Defaults>{box_accounts.GUEST.name} requiretty' >/etc/sudoers.d/tty")
    try:
        yield
    finally:
        file.unlink()


@pytest.fixture
def doas(site: Site) -> Iterator[bool]:
    """Whether the machine has it, and rules for it that are ours."""
    file = Path("/etc/doas.conf")
    mark = "# of a test of mitogen-mux\n"
    theirs = file.exists() and not file.read_text().startswith(mark)
    if not shutil.which("doas") or theirs or not Path(FOLDER, "ansible_collections", "community", "general").is_dir():
        yield False
        return
    file.write_text(f"{mark}permit nopass root\npermit nopass {site.login.name}\n")
    file.chmod(0o400)
    yield True
    file.unlink()


def compare(site: Site, boxes: Boxes | None, points: list[Point], tasks: list[dict[str, Any]]) -> None:
    """Plain first: then no tool insists on a terminal yet, which plain Ansible has not for all of them."""
    site.stop_daemon()
    plain = played(site, boxes, "plain", sorted({point.alike for point in points}), tasks)
    with rules(site, boxes):
        ours = played(site, boxes, "linear", points, tasks)
    different = []
    for point in points:
        theirs, mine = seen(plain, point.alike.host), seen(ours, point.host)
        assert [status for status, _ in theirs] == ["failed", "ok", "ok", "ok"][: len(tasks)], plain.said()
        if repr(theirs).replace(point.alike.host, point.host) != repr(mine):
            different.append(f"{point}\n  plain: {theirs}\n  ours:  {mine}")
    assert not different, "\n".join([f"{len(different)} of {len(points)}", *different[:5]])


@pytest.mark.tier("cases")
def test_pairs(site: Site, binary: Path) -> None:
    """Of what every machine has."""
    compare(site, None, pairwise([point for point in EVERYTHING if point.connection != "docker" and point.become != "doas"]), TASKS[:1])


@pytest.mark.tier("matrix")
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_everything(connection: str, site: Site, boxes: Boxes, doas: bool, binary: Path) -> None:
    if connection == "docker":
        box_of(boxes, "docker").empty()
    points = [point for point in EVERYTHING if point.connection == connection]
    if connection != "docker" and not doas:
        points = [point for point in points if point.become != "doas"]
    compare(site, boxes if connection == "docker" else None, points, TASKS)


def test_pairs_are_all_there() -> None:
    chosen = pairwise(EVERYTHING)
    for one, other in itertools.combinations(range(4), 2):
        met = {(point[one], point[other]) for point in chosen}
        assert met == {(point[one], point[other]) for point in EVERYTHING}
    assert len(chosen) < len(EVERYTHING) / 4
