"""Options, the session's stage, the three tiers and the numbers at their end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # pytest itself imports these files without a search path

import harness
import runs
from boxes import Boxes
from oracle import Oracle

INDEX: dict[str, dict[str, Any]] = yaml.safe_load((runs.CASES / "index.yml").read_text())
TIERS = ("smoke", "cases", "whole", "matrix")
"""How much to run: a few of the playbooks; all of them by the main way; by every way, and all other tests; every kind of module by every Python."""

SMALL_WAYS = ("connection", "connection-noseams", "fork", "free", "host_pinned", "mitogen", "processes")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mitogen-mux")
    group.addoption("--core", help="the ansible-core that must be under test, as 2.16; default: whatever --ansible is")
    group.addoption("--tier", choices=TIERS, default="whole", help="how much to run")
    group.addoption("--ansible", type=Path, help="ansible-playbook to test; default: the one beside this Python")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"tier(name): the smallest tier that runs this test ({', '.join(TIERS)}); default whole")
    config.addinivalue_line("markers", "last: runs after all others")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # accounts are removed then, too


def selected(tier: str, way: str) -> list[str]:
    """The cases that a tier runs in a way. One list, so that a batch and its tests agree. "again" is plain once more."""
    if tier in ("smoke", "cases") and way != "linear":
        return []
    if tier == "smoke":
        wanted = "smoke"
    elif way == "linear-nopipelining":
        wanted = "nopipelining"
    else:
        wanted = "all" if way == "linear" or (tier == "matrix" and way in ("fork", "processes")) else "ways"
    return [c for c, about in INDEX.items() if (wanted == "all" or about.get(wanted)) and not (tier == "cases" and about.get("whole"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tier = metafunc.config.getoption("tier")
    ways = ["linear", "linear-nopipelining", *SMALL_WAYS]
    if "case" in metafunc.fixturenames:
        pairs = [(w, c) for w in ways for c in selected(tier, w)]
        metafunc.parametrize("way,case", pairs, ids=[f"{w}-{c}" for w, c in pairs])
    elif "way" in metafunc.fixturenames:
        metafunc.parametrize("way", [w for w in ways if selected(tier, w)])
    elif "twin" in metafunc.fixturenames:
        metafunc.parametrize("twin", selected(tier, "again"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reach = TIERS.index(config.getoption("tier"))

    def wanted(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("tier")
        return TIERS.index(mark.args[0] if mark else "whole") <= reach

    config.hook.pytest_deselected(items=[i for i in items if not wanted(i)])
    items[:] = [i for i in items if wanted(i)]
    items.sort(key=lambda i: i.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def tier(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("tier")


@pytest.fixture(scope="session")
def ansible(request: pytest.FixtureRequest) -> Path:
    path = request.config.getoption("ansible") or Path(sys.executable).parent / "ansible-playbook"
    path = path.absolute()
    if not path.exists():
        pytest.skip(f"no ansible-playbook at {path}")
    return path


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, ansible: Path) -> Iterator[runs.Site]:
    with _skipping(), runs.site(ansible) as stage:
        wanted = request.config.getoption("core")
        found = ".".join(map(str, stage.version()))
        if wanted and wanted != found:
            pytest.fail(f"--core={wanted}, but {ansible} is {found}")
        yield stage


class _skipping:
    """Turns Unavailable into a skip with its reason."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, harness.Unavailable):
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def binary() -> Path:
    """Tests that need the daemon ask for this."""
    if not runs.BINARY.exists():
        pytest.fail(f"{runs.BINARY} is missing: run make build")
    return runs.BINARY


@pytest.fixture
def fresh(site: runs.Site, binary: Path, request: pytest.FixtureRequest) -> Iterator[runs.Site]:
    """A site whose daemon is none of the tests before, nor of those after; its folder of the test's file is empty."""
    site.stop_daemon()
    site.clean([request.path.stem.removeprefix("test_")])
    yield site
    site.stop_daemon()


@pytest.fixture(scope="session")
def oracle(site: runs.Site) -> Oracle:
    return Oracle.load(runs.HERE / "volatile.yml", site.version())


@pytest.fixture(scope="session")
def boxes(site: runs.Site) -> Iterator[Boxes]:
    made = Boxes(site.base / "boxes")
    yield made
    made.close()


class Batches:
    """Runs batches of cases when the first test asks for one, and keeps what was seen."""

    def __init__(self, site: runs.Site, tier: str, only: dict[str, set[str]]) -> None:
        self.site, self.tier, self.only = site, tier, only
        self.seen: dict[tuple[str, tuple[str, ...]], runs.Run | BaseException] = {}

    def batch_of(self, way: str, case: str) -> tuple[str, ...]:
        """The cases that share a playbook run with this one: all that this session compares and that ask for no run of their own."""
        if INDEX[case].get("alone"):
            return (case,)
        return tuple(c for c in selected(self.tier, way) if c in self.only.get(way, set()) and not INDEX[c].get("alone"))

    def run(self, way: str, cases: tuple[str, ...], again: bool = False) -> runs.Run:
        key = (way + ("-again" if again else ""), cases)
        if key not in self.seen:
            about = {c: INDEX[c] for c in cases}
            args = [str(a) for a in about[cases[0]].get("args", [])] if len(cases) == 1 else []
            if "--become-password-file" in args:
                args[args.index("--become-password-file") + 1] = str(self.site.password_file())
            try:
                with _machine() if any(case.get("machine") for case in about.values()) else contextlib.nullcontext():
                    self.seen[key] = self.site.cases(runs.WAYS[way], about, args)
            except (Exception, pytest.fail.Exception) as error:  # the batch's other tests need not wait for it once more
                self.seen[key] = error
        seen = self.seen[key]
        if isinstance(seen, BaseException):
            raise seen
        return seen


@contextlib.contextmanager
def _machine() -> Iterator[None]:
    """No other session of this account changes the machine meanwhile."""
    with open(Path(tempfile.gettempdir(), f"mitogen-mux-tests-{os.getuid()}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def batches(request: pytest.FixtureRequest, site: runs.Site, tier: str) -> Batches:
    only: dict[str, set[str]] = {}
    for item in request.session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "case" in params:
            only.setdefault(params["way"], set()).add(params["case"])
        elif "twin" in params:
            only.setdefault("again", set()).add(params["twin"])
    return Batches(site, tier, only)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    stats = terminalreporter.stats
    passed, skipped = len(stats.get("passed", [])), len(stats.get("skipped", []))
    failed = len(stats.get("failed", [])) + len(stats.get("error", []))
    core = config.getoption("core") or "default"
    terminalreporter.write_line(f"tier {config.getoption('tier')}, core {core}: {passed + failed} run, {skipped} skipped, {failed} failed")
    for report in stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"  skipped {report.nodeid}: {reason}")
