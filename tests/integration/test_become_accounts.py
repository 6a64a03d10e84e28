"""Accounts that are not as one would wish, and sudo's rules and flags, plain and through us."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from runs import WAYS, Run, Site

OURS = WAYS["linear"]
PASSWORD = "its own $word"

pytestmark = pytest.mark.tier("matrix")


TASKS: dict[str, dict[str, Any]] = {
    "module": {"shell": "id -un; pwd; echo $HOME $USER; umask"},
    "raw": {"raw": "id -un; pwd"},
    "copy": {"copy": {"content": "x", "dest": "~/copied"}},
    "again": {"command": "id -un"},
}


def outcomes(run: Run, host: str) -> list[tuple[str, object, object]]:
    """What cannot differ. On raw's terminal a tool's words are mixed into the output, and we run the tool once for all tasks: there the end counts."""
    found = []
    for status, result in run.results(host):
        out = re.sub("ansible-moduletmp-.*", "<folder of the module>", result.get("stdout", ""))
        found.append((status, result.get("rc"), out if "\n" in out and "\r" not in out else out.split()[-2:]))
    return found


def both(site: Site, hosts: dict[str, dict[str, Any]], tasks: list[dict[str, Any]], env: dict[str, str] | None = None) -> tuple[Run, Run]:
    """Hosts are the login account, unless they say something else."""
    playbook = [{"hosts": "all", "gather_facts": False, "become": True, "ignore_errors": True, "ignore_unreachable": True, "tasks": tasks}]
    args = ["--forks", "1"]  # ssh itself talks when several make its master at the same time
    plain, ours = (
        site.play(way, {h: {**site.host_vars(way, site.login), **v} for h, v in hosts.items()}, playbook, args, env) for way in (WAYS["plain"], OURS)
    )
    return plain, ours


# What makes an account odd: {u} is its name, {h} its home, {l} the home of the login account.
ODD = {
    "as it should be": "true",
    "expired": "chage -E 1 {u}",
    "locked": "usermod -L {u}",
    "password expired": "chage -d 0 {u}",
    "no home": "rm -r {h}",
    "home of another": "chown -R root {h}; chmod 700 {h}",
    "no readable cwd": "chmod 700 {l}",
    "no login": "usermod -s /usr/sbin/nologin {u}",
    "false as its shell": "usermod -s /bin/false {u}",
    "no shell at all": "usermod -s /no/such/shell {u}",
    "noisy": "echo 'echo noise; echo noise >&2' | tee {h}/.profile {h}/.bashrc >{h}/.bash_profile",
}


TOOLS = {"sudo": ("sudo", "-H -S -n"), "sudo -i": ("sudo", "-H -S -n -i"), "su": ("su", ""), "su -l": ("su", "-l")}

NO_SHELL = {"no login", "false as its shell", "no shell at all"}
REFUSED = {"sudo": set(), "sudo -i": NO_SHELL, "su": {"expired", "locked", "password expired", *NO_SHELL}}
REFUSED["su -l"] = REFUSED["su"]


@pytest.mark.parametrize("odd", ODD)
def test_odd_accounts(odd: str, fresh: Site) -> None:
    with harness.crowd(1) as (user,):
        harness.quiet("chpasswd", stdin=f"{user}:{PASSWORD}\n")
        subprocess.run(["sh", "-c", ODD[odd].format(u=user, h=f"/home/{user}", l=fresh.login.home)], check=True, stderr=subprocess.DEVNULL)
        hosts = {
            tool: {
                "ansible_become_user": user,
                "ansible_become_method": method,
                "ansible_become_flags": flags,
                **({"ansible_become_password": PASSWORD} if method == "su" else {}),
            }
            for tool, (method, flags) in TOOLS.items()
        }
        try:
            plain, ours = both(fresh, hosts, list(TASKS.values()), {"ANSIBLE_TIMEOUT": "6"})
        finally:
            fresh.login.home.chmod(0o755)
    for tool in TOOLS:
        assert outcomes(ours, tool) == outcomes(plain, tool), plain.said() + ours.said()
        assert any(status == "ok" for status, _, _ in outcomes(ours, tool)) == (odd not in REFUSED[tool]), ours.said()
    assert "BECOME-SUCCESS" not in ours.said() and PASSWORD not in ours.said()


def test_oneself(fresh: Site) -> None:
    """An account that becomes itself, with the tool's own view of home and environment."""
    me = fresh.login
    hosts = {
        "sudo": {"ansible_become_user": me.name},
        "su": {"ansible_become_user": me.name, "ansible_become_method": "su", "ansible_become_password": me.password},
    }
    plain, ours = both(fresh, hosts, [{"shell": "id -un; pwd; echo $HOME $USER $SUDO_USER"}, *list(TASKS.values())[1:]])
    for host in hosts:
        assert outcomes(ours, host) == outcomes(plain, host), plain.said() + ours.said()
        assert ours.recap()[host]["ok"] == len(TASKS), ours.said()


@dataclasses.dataclass(frozen=True)
class Rule:
    """What sudoers says of the third account, {u}; {o} is the second."""

    text: str
    password: bool = False
    says: str = ""  # in the result, and why
    better: bool = False  # we get along where plain Ansible does not


RULES = {
    "any command": Rule("{u} ALL=(ALL) NOPASSWD: ALL"),
    "some commands without a password": Rule("{u} ALL=(ALL) NOPASSWD: /usr/bin/id", says="a rule that lets some commands run without one must name the shell"),
    "some commands, password given": Rule("{u} ALL=(ALL) NOPASSWD: /usr/bin/id", True, "is not allowed to execute '/bin/sh"),
    "some without, others with a password": Rule("{u} ALL=(ALL) PASSWD: ALL, NOPASSWD: /usr/bin/id", says="sudo: a password is required"),
    "some without, others with a password that is given": Rule("{u} ALL=(ALL) PASSWD: ALL, NOPASSWD: /usr/bin/id", True),
    "the shell": Rule("{u} ALL=(ALL) NOPASSWD: /bin/sh"),
    "another account": Rule("{u} ALL=({o}) NOPASSWD: ALL", says="sudo: a password is required"),
    "nothing": Rule("", True, "is not in the sudoers file"),
    "a terminal": Rule("Defaults:{u} requiretty\n{u} ALL=(ALL) NOPASSWD: ALL", better=True),
    "a terminal of its own": Rule("Defaults:{u} use_pty\n{u} ALL=(ALL) NOPASSWD: ALL"),
    "a prompt of its own": Rule('Defaults:{u} passprompt="Geheim bitte: "\n{u} ALL=(ALL) PASSWD: ALL', True),
    "a record of what is said": Rule("Defaults:{u} log_output\n{u} ALL=(ALL) NOPASSWD: ALL"),
    "commands that start no others": Rule("{u} ALL=(ALL) NOPASSWD: NOEXEC: ALL", says="Permission denied"),
}


@pytest.fixture
def sudoers(fresh: Site) -> Iterator[Path]:
    path = Path("/etc/sudoers.d", f"mxt-rule-{fresh.login.name}")
    yield path
    path.unlink(missing_ok=True)


def test_rules_of_sudo(fresh: Site, sudoers: Path) -> None:
    """Each rule is that of a login account of its own."""
    with harness.crowd(len(RULES)) as names:
        accounts = dict(zip(RULES, names))
        for user in names:
            shutil.copy(fresh.key.with_suffix(".pub"), fresh.base / "keys" / user)
        harness.quiet("chpasswd", stdin="".join(f"{user}:{PASSWORD}\n" for user in names))
        sudoers.write_text("".join(rule.text.format(u=accounts[name], o=fresh.accounts[1].name) + "\n" for name, rule in RULES.items()))
        sudoers.chmod(0o440)
        hosts = {name: {"ansible_user": accounts[name], **({"ansible_become_password": PASSWORD} if rule.password else {})} for name, rule in RULES.items()}
        plain, ours = both(fresh, hosts, [TASKS["again"], TASKS["copy"]])
    for name, rule in RULES.items():
        # Where a tool refuses at once, ssh may be gone before plain Ansible has written the module.
        broken = any("Data could not be sent to remote host" in str(result.get("msg")) for _, result in plain.results(name))
        assert outcomes(ours, name) == outcomes(plain, name) or rule.better or broken, plain.said() + ours.said()
        for status, result in ours.results(name):
            assert status == ("failed" if rule.says else "ok"), ours.said()
            assert rule.says in result.get("msg", "") + result.get("module_stderr", ""), ours.said()
    assert "import" not in ours.said() and PASSWORD not in ours.said()


FLAGS = {
    "-H -S -n -E": "",
    "-i": "",
    "-s": "",
    "-k -B -P": "",
    "-g users": "",
    "--preserve-env=HOME --set-home": "",
    "-i -s": "-i and -s exclude each other",
    "-i -E": "-i and -E exclude each other",
    "-A -S": "-A and -S exclude each other",
    "-u nobody": "-u names another account than become_user",
    "-K": "with -K it runs no command",
    "-v -e": "with -e it runs no command; with -v it runs no command",
    "--no-such-flag": "",
}


def test_flags_of_sudo(fresh: Site) -> None:
    """As sudo takes them; those that keep it from running anything are named, once."""
    hosts = {flags: {"ansible_become_flags": flags} for flags in FLAGS}
    plain, ours = both(fresh, hosts, [TASKS["module"], TASKS["again"]])
    said = " ".join(ours.stderr.split())
    for flags, complaint in FLAGS.items():
        found = [[(status, r.get("rc"), r.get("stdout"), r.get("module_stderr")) for status, r in run.results(flags)] for run in (ours, plain)]
        assert found[0] == found[1], plain.said() + ours.said()
        if complaint:
            assert said.count(f"become_flags {flags!r}") == 1 and complaint in said, ours.stderr
            assert all(status == "failed" for status, _ in ours.results(flags)), ours.said()
    assert said.count("become_flags") == len([c for c in FLAGS.values() if c]), ours.stderr
