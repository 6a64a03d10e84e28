"""Modules of community.general and ansible.posix, plain and through us. They are no part of the project: a folder that has them is named by
MITOGEN_MUX_TEST_COLLECTIONS."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from oracle import Oracle
from runs import WAYS, Site, Way
from test_cases import check

FOLDER = os.environ.get("MITOGEN_MUX_TEST_COLLECTIONS", "")
WANTED = ("community/general", "ansible/posix")


def having_collections(way: Way) -> Way:
    return dataclasses.replace(way, env=(*way.env, ("ANSIBLE_COLLECTIONS_PATH", FOLDER)))


@pytest.mark.parametrize("through", ["linear", "connection"])
def test_modules_of_the_community(through: str, site: Site, oracle: Oracle, binary: Path) -> None:
    missing = [name for name in WANTED if not Path(FOLDER, "ansible_collections", name).is_dir()]
    if missing:
        pytest.skip(
            f"no collections {' and '.join(missing).replace('/', '.')}: set MITOGEN_MUX_TEST_COLLECTIONS to a folder with ansible_collections in it"
            " (ansible-galaxy, or the unpacked wheel of the package ansible)"
        )
    case = {"community": {}}
    plain = site.cases(having_collections(WAYS["plain"]), case)
    ours = site.cases(having_collections(WAYS[through]), case)
    assert len(plain.results()) > 12, plain.said()
    check(oracle.case("community", through, plain, ours) + oracle.whole(through, plain, ours))
