"""Whole playbooks against a session that runs everything on this machine: which requests are made, and that results come back."""

from __future__ import annotations

import collections
import getpass
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

USER = getpass.getuser()
HERE = pathlib.Path(__file__).resolve().parent
PLUGINS = HERE.parents[1] / 'ansible_plugins'

INVENTORY = f"""
[all:vars]
ansible_host=127.0.0.1
ansible_user={USER}
ansible_python_interpreter={sys.executable}
[all]
"""


class Run(t.NamedTuple):
    rc: int
    output: str
    log: collections.Counter[str]
    requests: list[str]
    """The kinds of the steps of each."""


Play = t.Callable[..., Run]


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    """Runs a playbook for one host; without ``fake`` it is the real ansible-playbook with the real session."""

    def run(
        tasks: str,
        host: str = 'h1',
        fake: bool = True,
        environ: dict[str, str] | None = None,
        strategy: str = 'mitogen_linear',
        facts: str = 'false',
        then: str = '',
    ) -> Run:
        (tmp_path / 'inventory').write_text(INVENTORY + host + '\n')
        body = ''.join(f'    {line}\n' for line in tasks.splitlines() if line.strip())
        after = f'- hosts: all\n  gather_facts: false\n  strategy: linear\n  tasks:\n    - {then}\n' if then else ''
        (tmp_path / 'play.yml').write_text(f'- hosts: all\n  gather_facts: {facts}\n  tasks:\n{body}{after}')
        program = [str(HERE / 'fake_daemon.py')] if fake else ['-c', 'from ansible.cli.playbook import main; main()']
        clean = {k: v for k, v in os.environ.items() if not k.startswith(('ANSIBLE_', 'MITOGEN_'))}
        done = subprocess.run(
            [sys.executable, *program, '-i', 'inventory', 'play.yml', '-v'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={
                **clean,
                'HOME': str(tmp_path),
                'FAKE_DAEMON': str(tmp_path),
                'ANSIBLE_STRATEGY': strategy,
                'ANSIBLE_STRATEGY_PLUGINS': str(PLUGINS / 'strategy'),
                'ANSIBLE_CONNECTION_PLUGINS': str(PLUGINS / 'connection'),
                'ANSIBLE_DEPRECATION_WARNINGS': '0',
                'ANSIBLE_HOME': str(tmp_path / 'home'),
                'ANSIBLE_ASYNC_DIR': str(tmp_path / 'async'),
                **(environ or {}),
            },
        )
        noted = tmp_path / 'log'
        lines = noted.read_text().splitlines() if noted.exists() else []
        requests = [line.removeprefix('request ') for line in lines if line.startswith('request ')]
        log = collections.Counter(line for line in lines if not line.startswith(('upload', 'detach', 'request', 'answer')))
        return Run(done.returncode, done.stdout + done.stderr, log, requests)

    return run


COMMAND = """
- command: echo hi
  register: r
- assert: {that: r.stdout == 'hi'}
"""

MODULE_ON_SSH = {f'module ssh {USER}@127.0.0.1': 1}


@pytest.mark.parametrize('strategy', ['mitogen', 'mitogen_linear', 'mitogen_free', 'mitogen_host_pinned'])
def test_a_module_is_one_request(play: Play, strategy: str) -> None:
    done = play(COMMAND, strategy=strategy)
    assert (done.rc, done.log) == (0, MODULE_ON_SSH), done.output


@pytest.mark.parametrize(
    ('connection', 'log'),
    [('ssh', MODULE_ON_SSH), ('ansible.builtin.ssh', MODULE_ON_SSH), ('local', {'module local': 1}), ('ansible.builtin.local', {'module local': 1})],
)
@pytest.mark.slow
def test_connections_by_every_name(play: Play, connection: str, log: dict[str, int]) -> None:
    done = play(COMMAND, host=f'h1 ansible_connection={connection}')
    assert (done.rc, done.log) == (0, log), done.output


@pytest.mark.parametrize('environ', [{}, {'MITOGEN_SEAMS': '0', 'ANSIBLE_PIPELINING': '1'}], ids=['seams', 'none'])
@pytest.mark.parametrize(('connection', 'log'), [('mitogen_ssh', MODULE_ON_SSH), ('mitogen_local', {'module local': 1})])
@pytest.mark.slow
def test_under_the_stock_strategy(play: Play, environ: dict[str, str], connection: str, log: dict[str, int]) -> None:
    tasks = """
- shell: echo $A; pwd
  environment: {A: "{{ value }}"}
  vars: &vars {value: "b 'c' $HOME"}
  register: r
- assert: {that: "r.stdout_lines[0] == value"}
  vars: *vars
"""
    done = play(tasks, host=f'h1 ansible_connection={connection}', environ=environ, strategy='linear')
    assert (done.rc, done.log) == (0, log), done.output


@pytest.mark.parametrize(
    ('host', 'environ'),
    [
        ('h1 ansible_connection=local mitogen_enabled=false', {}),
        ('h1 ansible_connection=mitogen_local mitogen_enabled="{{ 1 == 2 }}"', {}),
        ('h1 ansible_connection=local', {'MITOGEN_ENABLED': '0'}),
        ('h1 ansible_connection=mitogen_local', {'MITOGEN_ENABLED': '0'}),
    ],
)
@pytest.mark.slow
def test_switched_off(play: Play, host: str, environ: dict[str, str]) -> None:
    done = play(COMMAND, host=host, environ=environ)
    assert (done.rc, done.log) == (0, {}), done.output


@pytest.mark.slow
def test_a_play_after_ours_is_plain_again(play: Play) -> None:
    done = play(COMMAND, host='h1 ansible_connection=local', then='command: echo plain')
    assert (done.rc, done.log) == (0, {'module local': 1}), done.output


@pytest.mark.slow
def test_loops_reuse_the_connection(play: Play) -> None:
    done = play("""
- command: echo {{ item }}
  loop: [1, 2, 3]
  register: r
- assert: {that: "r.results | map(attribute='stdout') | list == ['1', '2', '3']"}
""")
    assert (done.rc, done.log) == (0, {f'module ssh {USER}@127.0.0.1': 3}), done.output


@pytest.mark.parametrize(
    'task',
    [
        'command: {cmd: echo hi}\n  async: 20\n  poll: 1',  # two files and the core's async_wrapper
        'command: echo hi\n  environment: {PYTHONDONTWRITEBYTECODE: "1"}',  # a variable that only a new interpreter sees
        'command: echo hi\n  environment: {LD_BIND_NOW: "1"}',
    ],
    ids=['async', 'python variable', 'loader variable'],
)
@pytest.mark.slow
def test_what_is_not_covered_goes_the_cores_way(play: Play, task: str) -> None:
    done = play(f"- {task}\n  register: r\n- assert: {{that: r.stdout == 'hi'}}")
    assert done.rc == 0, done.output
    assert done.log[f'command ssh {USER}@127.0.0.1'] > 0


FACTS = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
AnsibleModule(argument_spec={}).exit_json(ansible_facts={NAME: 'here'})
"""


@pytest.mark.slow
def test_parallel_fact_gathering_gets_real_payloads(play: Play, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'library').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'library' / f'{name}.py').write_text(FACTS.replace('NAME', repr(name)))
    done = play("- assert: {that: ansible_facts.one == 'here' and ansible_facts.two == 'here'}", facts='true', environ={'ANSIBLE_FACTS_MODULES': 'one,two'})
    assert done.rc == 0, done.output
    assert done.log[f'put ssh {USER}@127.0.0.1'] == 4, done.log  # each module and its async_wrapper


def test_raw_copy_fetch(play: Play, tmp_path: pathlib.Path) -> None:
    done = play(f"""
- raw: echo raw
  register: r
- assert: {{that: "r.stdout_lines == ['raw']"}}
- copy: {{content: "text\\n", dest: {tmp_path}/out}}
- fetch: {{src: {tmp_path}/out, dest: {tmp_path}/fetched, flat: true}}
- meta: reset_connection
""")
    assert done.rc == 0, done.output
    assert (tmp_path / 'fetched').read_text() == 'text\n'
    assert done.log[f'put ssh {USER}@127.0.0.1'] == done.log[f'get ssh {USER}@127.0.0.1'] == done.log['reset h1'] == 1


LOOK, CHANGE = 'module module', 'folder put module folder'
BOTH = f'{LOOK} {CHANGE}'
COPIES: dict[str, tuple[str, list[str]]] = {
    'new': ('content: new', [BOTH]),
    'as it is': ('content: new', [BOTH]),
    'changed': ('content: changed', [BOTH]),
    'with a mode and a backup': ('content: again, mode: "0600", backup: true', [BOTH]),
    'that follows': ('content: followed, follow: true', [f'module {LOOK} {CHANGE}']),
    'as long as may be': ("content: \"{{ 'x' * 8192 }}\"", [BOTH]),
    'too long': ("content: \"{{ 'x' * 8193 }}\"", [LOOK, CHANGE]),
    'not to be replaced': ('content: kept, force: false', ['module']),
    'into a folder': ('src: FOLDER/source, dest: FOLDER', [BOTH, BOTH]),
    'checked': ('content: never}\n  check_mode: true\n  vars: {x: 1', [LOOK]),
    'shown': ('content: seen}\n  diff: true\n  vars: {x: 1', [LOOK, 'module', 'module', CHANGE]),
}


@pytest.mark.slow
def test_what_copy_asks(play: Play, tmp_path: pathlib.Path) -> None:
    """A little file goes along with the first question; and what went along is not sent again."""
    (tmp_path / 'source').write_text('source')
    tasks = [f'- copy: {{{args if "dest" in args else args.replace("content", f"dest: {tmp_path}/out, content", 1)}}}' for args, _ in COPIES.values()]
    done = play('\n'.join(tasks).replace('FOLDER', str(tmp_path)))
    assert done.rc == 0, done.output
    assert [request for request in done.requests if request != 'command'] == [request for _, requests in COPIES.values() for request in requests]
    assert (tmp_path / 'out').read_text() == 'seen'
    assert not list(tmp_path.glob('.ansible/tmp/*')), 'folders go as they came'


@pytest.mark.slow
def test_an_untouched_type_is_said_once(play: Play) -> None:
    done = play('- command: echo hi\n- command: echo hi\n  ignore_unreachable: true', host='h1 ansible_connection=psrp')
    assert done.output.count('mitogen-mux leaves connections of type ansible.builtin.psrp as they are') == 1, done.output


def test_no_daemon_is_one_line_with_the_remedy(play: Play) -> None:
    done = play(COMMAND, fake=False, environ={'MITOGEN_MUX_BIN': '/no/such/mitogen-mux'})
    assert done.rc != 0
    assert 'MITOGEN_MUX_BIN names /no/such/mitogen-mux' in done.output
    assert 'Traceback' not in done.output


@pytest.mark.slow
def test_a_daemon_that_keeps_no_code_is_given_it_a_few_times(play: Play, tmp_path: pathlib.Path) -> None:
    done = play('- command: echo hi', environ={'FAKE_FORGETS': '1'})
    assert done.rc != 0
    assert 'h1: the mitogen-mux daemon still lacks the code of module ansible.legacy.command, which it was given 5 times' in done.output
    assert 'Traceback' not in done.output
    assert (tmp_path / 'log').read_text().count('upload') == 5
