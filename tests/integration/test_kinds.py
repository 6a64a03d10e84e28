"""Kinds of modules × Pythons of the target × with and without become, on whatever core runs the tests: plain and through us, the same.

The matrix tier takes all of it, smaller ones a tenth in which every kind, every Python and both accounts occur."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import harness
from oracle import Oracle
from runs import CASES, WAYS, Run, Site
from test_cases import check
from test_life import play

OURS, PLAIN = WAYS["linear"], WAYS["plain"]

KINDS: dict[str, dict[str, Any]] = {
    "new": {"kind_new": {"word": "one"}},
    "new, wrong": {"kind_new": {"nonsense": True}},
    "old": {"kind_old": "word=one"},
    "want json": {"kind_want_json": {"word": "one", "list": [1, {"a": "b"}]}},
    "json args": {"kind_json_args": {"word": "one", "list": [1, 2]}},
    "shell": {"kind_script": {"word": "one"}},
    "perl": {"kind_perl": {"word": "one"}},
    "its own interpreter": {"kind_own_interpreter": {"word": "one"}},
    "binary": {"kind_binary": {"word": "one"}},  # an ELF file for x86-64
    "utils": {"uses_utils": {}},
    "collection": {"mux.kinds.tell": {"word": "one"}},
    "redirected": {"mux.kinds.old_tell": {"word": "one"}},
    "collection, shell": {"mux.kinds.spell": "word=one"},
    "fails": {"faulty": {"how": "fail"}},
    "command": {"command": "sh -c 'id -un; umask; pwd'"},
    "stat": {"stat": {"path": "/etc/hosts"}},
    "facts": {"setup": {"gather_subset": ["!all", "!min", "python", "user", "env"]}},
    "copy": {"copy": {"content": "{{ ansible_play_name }}\n", "dest": "{{ work }}/{{ inventory_hostname }}-{{ ansible_play_name | replace(' ', '-') }}"}},
}
OLDEST = {(2, 16): (2, 7), (2, 17): (3, 7), (2, 18): (3, 8), (2, 19): (3, 8), (2, 20): (3, 9), (2, 21): (3, 9)}
"""Pythons on which a core's modules run."""


@functools.cache
def pythons() -> dict[tuple[int, int], tuple[str, str]]:
    """Version: path and prefix of every interpreter here, by name on PATH and of pyenv."""
    found = {}
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for name in ["/usr/bin/python3", *map(str, sorted(root.glob("versions/*/bin/python"))), *(f"python3.{n}" for n in range(15))]:
        ask = "import sys; print('%d %d %s %s' % (sys.version_info[:2] + (sys.executable, sys.prefix)))"
        if path := shutil.which(name):
            done = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                major, minor, executable, prefix = done.stdout.split()
                found.setdefault((int(major), int(minor)), (executable, prefix))
    return found


def open_to_all(prefixes: list[str]) -> str:
    """A script that lets every account reach folders which lie in somebody's closed home."""
    closed = {str(above): [] for prefix in prefixes for above in Path(prefix).parents if not above.stat().st_mode & 1}
    for home, inside in closed.items():
        inside += [prefix for prefix in prefixes if prefix.startswith(home + "/")]
    lines = ["mount -t tmpfs none /mnt"]
    for number, prefix in enumerate(prefixes):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(prefix)} /mnt/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(home)}" for home in closed]
    for number, prefix in enumerate(prefixes):
        if any(prefix in inside for inside in closed.values()):
            lines += [f"mkdir -p {shlex.quote(prefix)}", f"mount --bind /mnt/{number} {shlex.quote(prefix)}"]
    return "\n".join(lines)


def plays(hosts: list[str], tenth: bool) -> list[dict[str, Any]]:
    """A play for every kind and account on all hosts; of a tenth, one for every kind, in which each Python meets both accounts."""
    made = []
    for number, (kind, task) in enumerate(KINDS.items()):
        turn = number % len(hosts)
        for become in [bool((number + number // len(hosts)) % 2)] if tenth else [False, True]:
            play = {"name": f"kinds: {kind}{', become' * become}", "hosts": [hosts[turn]] if tenth else hosts, "tasks": [task]}
            made.append({**play, "gather_facts": False, "become": become, "ignore_errors": True})
    return made


@pytest.mark.tier("smoke")
def test_kinds(site: Site, tier: str, oracle: Oracle, binary: Path) -> None:
    found = {f"python{major}.{minor}": where for (major, minor), where in pythons().items() if (major, minor) >= OLDEST.get(site.version(), (3, 9))}
    playbook = plays(list(found), tier != "matrix")
    seen: list[Run] = []
    other = harness.Sshd(site.base / "sshd-kinds", site.sshd.authorized, inside=open_to_all([prefix for _, prefix in found.values()]))
    try:
        other.start()
        env = {name: str(CASES / folder) for name, folder in (("ANSIBLE_LIBRARY", "library"), ("ANSIBLE_MODULE_UTILS", "module_utils"))}
        for way in (PLAIN, OURS):
            site.clean(["kinds"])
            reach = {
                "ansible_port": other.port,
                "ansible_ssh_common_args": f"-o UserKnownHostsFile={other.known_hosts} -o IdentitiesOnly=yes",
                "work": str(site.work / "kinds"),
            }
            hosts = {name: site.host_vars(way, site.login, **reach, ansible_python_interpreter=path) for name, (path, _) in found.items()}
            seen.append(site.play(way, hosts, playbook, ["-f", "4"], env))
    except harness.Unavailable as reason:
        pytest.skip(f"no mount namespace here: {reason}")
    finally:
        other.stop()
        shutil.rmtree(other.directory, ignore_errors=True)
    plain, ours = seen
    recap = plain.recap()
    assert sum(host["ok"] for host in recap.values()) == sum(len(play["hosts"]) for play in playbook), plain.said()
    assert set(recap) == set(found)
    check(oracle.case("kinds", OURS.name, plain, ours))


SAYS = "#!/usr/bin/python\nfrom ansible.module_utils.basic import AnsibleModule\nAnsibleModule({{}}).exit_json(word={word!r})\n"


@pytest.mark.tier("smoke")
def test_a_module_that_changes_is_another_one_for_the_next_run(site: Site, binary: Path, tmp_path: Path) -> None:
    """A run goes on with what it has used before, as plain Ansible does."""
    module = tmp_path / "kind_says.py"
    rewrite = {"copy": {"content": SAYS.format(word="new"), "dest": str(module)}, "delegate_to": "localhost", "vars": {"ansible_connection": "local"}}
    for way in (PLAIN, OURS):
        module.write_text(SAYS.format(word="old"))
        hosts = {"h": site.host_vars(way, site.login)}
        said = []
        for tasks in ([{"kind_says": {}}, rewrite, {"kind_says": {}}], [{"kind_says": {}}]):
            run = site.play(way, hosts, play(*tasks), env={"ANSIBLE_LIBRARY": str(tmp_path)})
            assert run.rc == 0, run.said()
            said.append([result["word"] for _, result in run.results() if "word" in result])
        assert said == [["old", "old"], ["new"]], way.name
