"""Become plugins that ansible-core has not, plain and through us. The tools are stand-ins that check how they are called and ask as theirs do;
doas is the real one. The plugins are those of community.general, named by MITOGEN_MUX_TEST_COLLECTIONS, and one of our own that nobody knows."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runs import HERE, WAYS, Run, Site
from test_community import FOLDER, having_collections

PASSWORD = "the tool's own $word"


@dataclasses.dataclass(frozen=True)
class Tool:
    """A stand-in: what it asks and where, what it says to a wrong password, and where the user and the command are in its arguments."""

    plugin: str
    ask: str = ""
    on_tty: bool = False
    refusal: str = "no"
    command: str = 'exec "$@"'
    skip: str = "shift"
    env: tuple[tuple[str, str], ...] = ()


AFTER_USER = 'while [ "$1" != -u ]; do shift; done; shift 2'
AFTER_FLAGS = 'while [ "${1#-}" != "$1" ]; do shift; done'

# The core asks for a terminal before it knows the host's variables, and 2.16 does not know that these plugins cannot pipeline.
TTY = (("ANSIBLE_SSH_EXTRA_ARGS", "-tt"), ("ANSIBLE_PIPELINING", "0"))

TOOLS = {
    "dzdo": Tool("community.general.dzdo", "[dzdo via ansible, key=$key] password:", refusal="Sorry, try again.", skip=AFTER_USER),
    "pbrun": Tool("community.general.pbrun", "Password:", skip=AFTER_USER, command='eval "$*"'),
    "pfexec": Tool("community.general.pfexec", skip=AFTER_FLAGS, command='eval "$*"'),
    "pmrun": Tool("community.general.pmrun", "Enter UPM user password:", skip=":", command='eval "$*"'),
    "sesu": Tool(
        "community.general.sesu", "Please enter your password:", refusal="Sorry, try again with sesu.", skip='while [ "$1" != -c ]; do shift; done; shift'
    ),
    "run0": Tool("community.general.run0", skip=AFTER_FLAGS, env=TTY),  # plain Ansible has no way to answer it
    "machinectl": Tool(
        "community.general.machinectl",
        "Password: ",
        on_tty=True,
        refusal="==== AUTHENTICATION FAILED ====",
        skip='while [ "${1%@}" = "$1" ]; do shift; done; shift',
        env=TTY,
    ),
    "muxdo": Tool("muxdo", "Wer da?", refusal="Falsch!", skip="shift 2"),
}


def script(tool: Tool, log: Path, asks: bool) -> str:
    """The stand-in, which becomes root by sudo."""
    lines = ["#!/bin/sh", f'printf "%s\\n" "$*" >>{log}']
    if asks and tool.ask:
        out, inp = ("/dev/tty", "</dev/tty") if tool.on_tty else ("/dev/stderr", "")
        lines += ["stty -echo </dev/tty"] if tool.on_tty else []
        lines += ['key=$(printf %s "$*" | sed -n "s/.*key=\\([a-z]*\\)\\].*/\\1/p")'] if "$key" in tool.ask else []
        lines += [f'ask="{tool.ask}"', f'printf %s "$ask" >{out}', f"IFS= read -r given {inp}"]
        lines += [f'[ "$given" = {shlex.quote(PASSWORD)} ] || {{ echo "{tool.refusal}" >{out}; exit 1; }}']
    lines += [tool.skip, f"exec sudo -n -H /bin/sh -c {shlex.quote(tool.command)} sh \"$@\""]
    return "\n".join(lines) + "\n"


@pytest.fixture
def bin_(site: Site) -> Iterator[Path]:
    folder = site.base / "tools"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def outcome(run: Run) -> list[tuple[str, Any, Any]]:
    return [(status, r.get("rc"), r.get("stdout")) for status, r in run.results("h")]


@pytest.mark.parametrize("way_of_tool", ["password", "none", "wrong"])
@pytest.mark.parametrize("name", TOOLS)
def test_any_become_plugin(name: str, way_of_tool: str, site: Site, bin_: Path, binary: Path) -> None:
    tool = TOOLS[name]
    if tool.plugin.startswith("community.") and not Path(FOLDER, "ansible_collections", "community", "general").is_dir():
        pytest.skip("no collection community.general: set MITOGEN_MUX_TEST_COLLECTIONS to a folder with ansible_collections in it")
    if way_of_tool == "wrong" and not tool.ask:
        pytest.skip("the tool never asks")
    log = bin_ / "log"
    log.touch()
    log.chmod(0o666)
    exe = bin_ / name
    exe.write_text(script(tool, log, way_of_tool != "none"))
    exe.chmod(0o755)
    password = {"password": PASSWORD, "none": None, "wrong": "another"}[way_of_tool]
    variables = {
        "ansible_become_method": tool.plugin,
        "ansible_become_user": "root",
        "ansible_become_exe": str(exe),
        **({"ansible_become_password": password} if password else {}),
    }
    tasks = [{"command": "id -un", "become": True}, {"shell": "echo again; exit 3", "become": True}]
    playbook = [{"hosts": "all", "gather_facts": False, "ignore_errors": True, "tasks": tasks}]
    runs = {}
    for through in ("plain", "linear"):
        through_way = having_collections(WAYS[through])
        env = {"ANSIBLE_BECOME_PLUGINS": str(HERE / "plugins" / "become"), **dict(tool.env)}
        runs[through] = site.play(through_way, {"h": site.host_vars(through_way, site.login, **variables)}, playbook, env=env)
    plain, ours = outcome(runs["plain"]), outcome(runs["linear"])
    assert ours == plain, runs["plain"].said() + runs["linear"].said()
    if way_of_tool == "wrong" and tool.refusal == "no":  # the plugin does not know what the tool says then
        assert ours[0][0] == "failed"
    elif way_of_tool == "wrong":
        assert "Incorrect" in runs["linear"].results("h")[0][1]["msg"], runs["linear"].said()
    else:
        assert ours[0] == ("ok", 0, "root") and ours[1] == ("failed", 3, "again"), runs["linear"].said()
    assert PASSWORD not in runs["linear"].said()
