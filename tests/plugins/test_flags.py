"""become_flags that keep sudo from running a command are named in one warning."""

from __future__ import annotations

import typing as t

import pytest

from mitogen_mux import display, flags

FLAGS: dict[str, tuple[str, bool, bool, str]] = {
    # what, is there a user and a password, what is said
    "the core's own": ('-H -S -n', True, True, ''),
    'none': ('', True, True, ''),
    'many that are fine': ('-HiknPSB -g users -T 5 -C 3 --preserve-env=A,B --chdir=/tmp', True, True, ''),
    'a variable': ('A=b -l', True, True, ''),
    'after the end': ('-- -l', True, True, ''),
    'two shells': ('-Hi -s', True, False, '-i and -s exclude each other'),
    'two shells, in words': ('--login --shell', True, False, '-i and -s exclude each other'),
    'two ways to ask': ('-A -S', True, False, '-A and -S exclude each other'),
    'a list': ('-l', True, False, 'with -l it runs no command'),
    'several': ('-i -E --validate', True, False, '-i and -E exclude each other; with -v it runs no command'),
    'two users': ('-u nobody', True, False, '-u names another account than become_user'),
    'one user': ('-u nobody', False, False, ''),
    'two prompts': ('-p Secret:', True, True, '-p is in the way of the prompt that Ansible waits for'),
    'a prompt that nobody waits for': ('-p Secret:', True, False, ''),
    'unknown to us': ('-l --brand-new', True, False, ''),
    'no words': ('-l "', True, False, ''),
}


@pytest.mark.parametrize('what', FLAGS)
@pytest.mark.parametrize('tool', ['sudo', 'community.general.sudosu', 'doas'])
def test_flags(monkeypatch: pytest.MonkeyPatch, what: str, tool: str) -> None:
    said: list[str] = []
    monkeypatch.setattr(display, 'warning', said.append)
    given, user, password, complaint = FLAGS[what]
    flags.warn(tool, given, user, password)
    wanted: list[t.Any] = [f'become_flags {given!r} keep {tool} from running any task: {complaint}'] if complaint and tool != 'doas' else []
    assert said == wanted
