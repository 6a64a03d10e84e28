"""Parameters, passwords and file bodies are nowhere but where the task wants them: not on the terminal at -vvvv, not in any log at its most talkative."""

from __future__ import annotations

from typing import Any

from runs import CASES, WAYS, Site
from test_life import play

WORD = "fnord-3141"  # in everything that is secret
SHOWN = "fnord-2718"  # in what Ansible itself shows at -vvv, no_log or not: command lines, and since 2.19 the exception of a module

LOUD = {"MITOGEN_LOG_LEVEL": "trace", "MITOGEN_ROUTER_DEBUG": "1"}

RAISES = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
raise ValueError(AnsibleModule(argument_spec={"word": {"type": "str"}}).params["word"])
"""


def tasks(site: Site) -> dict[str, dict[str, Any]]:
    source = site.base / "body"
    source.write_text(f"{WORD}\n" * 20_000)  # more than goes inline
    (site.base / "library").mkdir(exist_ok=True)
    (site.base / "library" / "raises.py").write_text(RAISES)
    dest = f"{site.work}/secrets/file"
    return {
        "parameters": {"command": f"echo {WORD}"},
        "parameters of a module that fails": {"command": f"/bin/false {WORD}"},
        "parameters of a module that ends with a traceback": {"raises": {"word": SHOWN}},
        "parameters of a module that is killed": {"shell": f"true {WORD}; kill -9 $PPID"},
        "parameters that are no JSON object of a module": {"kind_old": f"word={WORD}"},
        "what a module reads": {"shell": {"cmd": "cat; exit 3", "stdin": WORD}},
        "the environment": {"command": "true", "environment": {"WORD": SHOWN}},
        "what a module logs": {"speak": {"word": WORD, "hush": WORD}},
        "a shell's command": {"raw": f"echo {SHOWN} >&2; exit 4"},
        "a file's content": {"copy": {"content": WORD, "dest": dest}},
        "a large file": {"copy": {"src": str(source), "dest": dest}},
        "a template": {"template": {"src": str(source), "dest": dest}},
        "a file for nowhere": {"copy": {"src": str(source), "dest": f"/nowhere/{WORD}"}},
        "a file that comes": {"fetch": {"src": dest, "dest": f"{site.out}/secrets/", "flat": True}},
        "an async job": {"command": f"echo {WORD}", "async": 20, "poll": 1},
    }


def seen(site: Site) -> dict[str, str]:
    """Everything that the daemon leaves for people to read."""
    found = {"status": site.tool("status").stdout, "status, all of it": site.tool("status", "--json", "--stacks").stdout}
    for path in [p for p in site.mux.rglob("*") if p.is_file()]:
        found[path.name] = path.read_text(errors="replace")
    return found


def test_nothing_tells_what_is_secret(fresh: Site) -> None:
    way = WAYS["linear"]
    password = fresh.accounts[1].password
    hosts = {"h": fresh.host_vars(way, fresh.accounts[1], ansible_become_password=password, ansible_become_method="sudo")}
    steps = [{"name": name, **task, "no_log": True, "ignore_errors": True} for name, task in tasks(fresh).items()]
    wrong = {"command": "true", "become": True, "ignore_errors": True, "ignore_unreachable": True, "vars": {"ansible_become_password": f"{WORD}!"}}
    env = {**LOUD, "ANSIBLE_LIBRARY": f"{CASES / 'library'}:{fresh.base / 'library'}"}
    run = fresh.play(way, hosts, play(*steps, *[{**s, "become": True} for s in steps], wrong), args=["-vvvv"], env=env)
    assert len(run.results("h")) > 2 * len(steps), run.said()
    logs = seen(fresh)
    assert any("[TRACE]" in text for text in logs.values()), "the daemon logs every frame"
    everywhere = {"the terminal": run.said(), **logs}
    for secret, places in ((WORD, everywhere), (password, everywhere), (SHOWN, logs)):
        telling = {name: [line for line in text.splitlines() if secret in line] for name, text in places.items()}
        assert not any(telling.values()), {name: lines[:5] for name, lines in telling.items() if lines}
