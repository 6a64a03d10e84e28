"""Become tools that are slow, talkative, silent or misleading, plain and through us. The tool is a stand-in for sudo that talks as a row says."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from runs import WAYS, Run, Site

PASSWORD = "the tool's own $word"

BEGIN = """#!/bin/sh
case "$*" in *key=*) key=${*##*key=}; key=${key%%]*} ;; esac
asks="[sudo via ansible, key=$key] password:"
ask() { printf %s "$asks" >&2; IFS= read -r given; }
check() { [ "$given" = SECRET ] || { echo "Sorry, try again." >&2; return 1; }; }
while [ "$1" != -u ]; do shift; done; shift 2
run() { exec sudo -n -H -- "$@"; }
"""


@dataclasses.dataclass(frozen=True)
class Tool:
    says: str
    status: str = "ok"
    msg: str = ""
    password: str | None = PASSWORD
    command: str = "id -un"


TOOLS = {
    "asks": Tool('ask; check && run "$@"'),
    "does not ask": Tool('run "$@"'),
    "is slow at everything": Tool('sleep 3; ask; sleep 3; check && run "$@"'),
    "never asks": Tool("sleep 30", "timeout", "Timeout (4s) waiting for privilege escalation prompt"),
    "asks for something else": Tool('printf "Verification code: " >&2; sleep 30', "timeout", "Timeout (4s) waiting for privilege escalation prompt"),
    "works, and says so": Tool('for n in 1 2 3 4 5 6; do echo "still thinking $n" >&2; sleep 1; done; ask; check && run "$@"'),
    "lectures": Tool(
        'echo; echo "We trust you have received the usual lecture. Your password: is yours."; echo) >&2; ask; check && run "$@"'.replace("echo;", "(echo;", 1)
    ),
    "stops in the middle of its prompt": Tool('printf %s "${asks%word:}" >&2; sleep 2; printf word: >&2; IFS= read -r given; check && run "$@"'),
    "refuses the password": Tool('ask; check || { ask; exit 1; }', "failed", "Incorrect sudo password", "another"),
    "asks again without a word": Tool("ask; echo >&2; ask; exit 1", "failed", "Incorrect sudo password"),
    "wants a password": Tool('echo "sudo: a password is required" >&2; exit 1', "failed", "Missing sudo password", None),
    "does not know us": Tool('ask; echo "bob is not in the sudoers file." >&2; exit 1', "failed"),
    "ends without a word": Tool("ask; exit 7", "failed"),
    "runs what looks like a tool": Tool(
        'ask; check && run "$@"', command='echo "[sudo via ansible, key=x] password:"; echo "Sorry, try again."; echo Password: >&2'
    ),
}


def outcome(run: Run) -> tuple[str, object]:
    ((status, result),) = run.results("h")
    return status, result.get("stdout") if status == "ok" else None


@pytest.mark.tier("matrix")
@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_may_do(name: str, site: Site, binary: Path) -> None:
    tool = TOOLS[name]
    exe = site.base / "dialogue"
    exe.write_text(BEGIN.replace("SECRET", shlex.quote(PASSWORD)) + tool.says + "\n")
    exe.chmod(0o755)
    variables = {"ansible_become_exe": str(exe), **({"ansible_become_password": tool.password} if tool.password else {})}
    task = {"shell": tool.command, "become": True, "ignore_errors": True, "ignore_unreachable": True}
    playbook = [{"hosts": "all", "gather_facts": False, "tasks": [task]}]
    site.stop_daemon()
    env = {"ANSIBLE_TIMEOUT": "2"}
    plain, ours = (site.play(WAYS[way], {"h": site.host_vars(WAYS[way], site.login, **variables)}, playbook, env=env) for way in ("plain", "linear"))
    assert outcome(ours) == outcome(plain), plain.said() + ours.said()
    wanted = {"timeout": "unreachable" if site.version() >= (2, 19) else "failed"}.get(tool.status, tool.status)
    for run in (plain, ours):
        ((status, result),) = run.results("h")
        assert status == wanted and tool.msg in str(result.get("msg", "")), run.said()
    exe.unlink()
