"""Every case, plain and through us: the same events, results, recap, exit code and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

import runs
from oracle import Difference, Oracle

if TYPE_CHECKING:
    from conftest import Batches


def check(differences: list[Difference], shown: int = 500) -> None:
    if differences:
        more = [f"… {len(differences)} in all"] if len(differences) > shown else []
        pytest.fail("\n\n".join(["differences:", *map(str, differences[:shown]), *more]), pytrace=False)


@pytest.mark.tier("smoke")
def test_case(way: str, case: str, batches: Batches, oracle: Oracle, binary: Path) -> None:
    cases = batches.batch_of(way, case)
    plain = batches.run(runs.WAYS[way].plain, cases)
    ours = batches.run(way, cases)
    differences = oracle.case(case, way, plain, ours)
    if case == cases[0]:
        differences += oracle.whole(way, plain, ours)
    check(differences)


ELSEWHERE = {"community", "containers"}
"""Cases that tests of their own run."""


@pytest.mark.tier("smoke")
def test_every_case_is_run() -> None:
    index = yaml.safe_load((runs.CASES / "index.yml").read_text())
    assert {file.stem for file in runs.CASES.glob("*.yml")} == {"index", *index, *ELSEWHERE}


def test_plain_again(twin: str, batches: Batches, oracle: Oracle) -> None:
    """Two plain runs are the same but for what volatile.yml allows to any run: so the oracle asks for nothing that plain does not give."""
    cases = batches.batch_of("again", twin)
    first = batches.run("plain", cases)
    second = batches.run("plain", cases, again=True)
    allowed = Oracle([e for e in oracle.entries if not e.ours], oracle.core)
    differences = allowed.case(twin, "plain", first, second)
    if twin == cases[0]:
        differences += allowed.whole("plain", first, second)
    check(differences)


@pytest.mark.last
def test_every_entry_of_volatile_is_used(request: pytest.FixtureRequest, oracle: Oracle, tier: str) -> None:
    compared = {i.callspec.id for i in request.session.items if i.name.startswith("test_case[")}
    if request.session.testsfailed:
        pytest.skip("a test failed: what it would have used is not known")
    from conftest import SMALL_WAYS, selected

    everything = {f"{w}-{c}" for w in ("linear", "linear-nopipelining", *SMALL_WAYS) for c in selected(tier, w)}
    if compared != everything:
        pytest.skip("a part of the cases was run (-k)")
    unused = [f"{e.field} ({e.reason})" for e in oracle.unused()]
    assert not unused, "volatile.yml allows what never happens:\n  " + "\n  ".join(unused)
