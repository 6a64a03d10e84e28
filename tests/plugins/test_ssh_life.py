"""Whole playbooks over a real sshd that goes away and comes back, by both SSH clients: what users do to connections, and what must never be
shown. Every play asserts for itself; the recap is the verdict."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import typing as t

import pytest

PLUGINS = pathlib.Path(__file__).resolve().parents[2] / 'ansible_plugins'
SSHD = shutil.which('sshd') or '/usr/sbin/sshd'
CANARY = 'canary-7f3a'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not pathlib.Path(SSHD).exists() or os.getuid() != 0, reason='needs sshd and root')]


class Site(t.NamedTuple):
    """A server of one's own and a daemon of one's own, below one folder."""

    dir: pathlib.Path
    environ: dict[str, str]

    def play(self, text: str, *args: str, variables: str = '', **environ: str) -> subprocess.CompletedProcess[str]:
        (self.dir / 'play.yml').write_text(text.replace('{dir}', str(self.dir)))
        (self.dir / 'inventory').write_text((self.dir / 'hosts').read_text() + variables)
        return subprocess.run(
            [sys.executable, '-c', 'from ansible.cli.playbook import main; main()', '-i', 'inventory', 'play.yml', *args],
            cwd=self.dir,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def stop_server(self) -> None:
        pid = self.dir / 'pid'
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    folder = tmp_path_factory.mktemp('s')
    for key in ('host', 'id', 'other'):
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(folder / key)], check=True)
    pathlib.Path('/run/sshd').mkdir(exist_ok=True)
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    (folder / 'sshd_config').write_text(
        f'Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/id.pub\nPidFile {folder}/pid\nStrictModes no\n'
        'PermitRootLogin yes\nUsePAM no\nPrintLastLog no\nPrintMotd no\n'
    )
    (folder / 'hosts').write_text(
        f'[all:vars]\nansible_port={port}\nansible_user=root\nansible_ssh_private_key_file={folder}/id\nansible_python_interpreter=/usr/bin/python3\n'
        f'ansible_ssh_common_args=-o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new\n[all]\nh1 ansible_host=127.0.0.1\n'
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('ANSIBLE_', 'MITOGEN_', 'SSH_'))}
    environ = {
        **clean,
        'ANSIBLE_STRATEGY': 'mitogen_linear',
        'ANSIBLE_STRATEGY_PLUGINS': str(PLUGINS / 'strategy'),
        'ANSIBLE_DEPRECATION_WARNINGS': '0',
        'MITOGEN_MUX_DIR': str(folder / 'mux'),
        'MITOGEN_LOG_LEVEL': 'trace',
    }
    here = Site(folder, environ)
    subprocess.run([SSHD, '-f', str(folder / 'sshd_config')], check=True)
    yield here
    here.stop_server()
    subprocess.run([str(PLUGINS.parent / 'bin' / 'mitogen-mux'), 'stop', '--force'], env=environ, capture_output=True, check=False)


LIFE = """
- hosts: h1
  gather_facts: false
  tasks:
  - ping:
  - shell: kill $(cat {dir}/pid); pkill -P $(cat {dir}/pid)
    delegate_to: localhost
    failed_when: false
  - {name: nobody answers, wait_for_connection: {timeout: 1}, ignore_errors: true, register: nobody}
  - assert: {that: nobody is failed}
  - {ping: , ignore_unreachable: true, register: gone}
  - assert: {that: gone.unreachable}
  - shell: (sleep 2; /usr/sbin/sshd -f {dir}/sshd_config) >/dev/null 2>&1 &
    delegate_to: localhost
  - {name: it comes back, wait_for_connection: {timeout: 60, sleep: 1}}
  - ping:
  - meta: reset_connection
  - ping:
  - name: the link is cut, and the daemon has seen it
    shell: |
      ended() { grep -r "link ended" {dir}/mux 2>/dev/null | wc -l; }
      before=$(ended)
      pkill -P $(cat {dir}/pid)
      until [ $(ended) -gt $before ]; do sleep 0.01; done
    delegate_to: localhost
  - ping:
  - set_fact: {ansible_user: no-such-user}
  - {ping: , ignore_unreachable: true, register: denied}
  - assert: {that: denied.unreachable}
  - meta: clear_host_errors
  - set_fact: {ansible_user: root}
  - ping:
  - set_fact: {ansible_ssh_private_key_file: '{dir}/other'}
  - {name: another key is another account, ping: , ignore_unreachable: true, register: denied}
  - assert: {that: denied.unreachable}
  - set_fact: {ansible_ssh_private_key_file: '{dir}/id'}
  - ping:
  - add_host: {name: added, ansible_host: 127.0.0.1}
- hosts: added
  gather_facts: false
  tasks:
  - {command: echo $SSH_CONNECTION, register: first}
  - set_fact: {ansible_host: localhost}
  - ping:
  - {include_tasks: again.yml, loop: [1, 2, 3]}
"""


@pytest.mark.parametrize('transport', ['native', 'openssh'])
def test_life(site: Site, transport: str) -> None:
    """Servers that stop, return and cut links; accounts that change; reset_connection, also in a loop."""
    (site.dir / 'again.yml').write_text('- meta: reset_connection\n- ping:\n')
    done = site.play(LIFE, MITOGEN_SSH_TRANSPORT=transport)
    recap = re.findall(r'(?m)^(\w+) +: ok=(\d+) .*unreachable=0 +failed=0 .*ignored=(\d+)', done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert recap == [('added', '9', '0'), ('h1', '23', '4')], done.stdout


def test_agent_of_a_later_run(site: Site, tmp_path: pathlib.Path) -> None:
    """The second run's ssh-agent counts, not that of the run that started the daemon."""
    play = '- hosts: h1\n  gather_facts: false\n  tasks: [{ping: }]\n'
    variables = '[all:vars]\nansible_ssh_private_key_file=\n'
    first = site.play(play, variables=variables, SSH_AUTH_SOCK='/nowhere', HOME=str(tmp_path))
    assert 'unreachable=1' in first.stdout, first.stdout
    with subprocess.Popen(['ssh-agent', '-D', '-a', str(tmp_path / 'a')], stdout=subprocess.DEVNULL) as agent:
        try:
            while subprocess.run(['ssh-add', '-q', str(site.dir / 'id')], env={**os.environ, 'SSH_AUTH_SOCK': str(tmp_path / 'a')}, check=False).returncode:
                assert agent.poll() is None
            second = site.play(play, variables=variables, SSH_AUTH_SOCK=str(tmp_path / 'a'), HOME=str(tmp_path))
        finally:
            agent.terminate()
    assert 'ok=1' in second.stdout, second.stdout


SECRETS = """
- hosts: h1
  gather_facts: false
  tasks:
  - {command: cat, args: {stdin: "{{ secret }}"}, no_log: true}
  - {copy: {content: "{{ secret }}", dest: '{dir}/out', mode: '0600'}, no_log: true, diff: false}
  - {raw: 'true', environment: {X: "{{ secret }}"}, no_log: true}
  - {shell: 'cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr "\\\\0" "\\\\n" >{dir}/seen; true', delegate_to: localhost}
  - {fail: , when: false}
"""


@pytest.mark.parametrize('transport', ['native', 'openssh'])
def test_secrets_show_nowhere(site: Site, transport: str) -> None:
    """Passwords, parameters under no_log and file bodies are in no output at -vvvv, no log at its most talkative level, no argv and no
    environment, whether a connection works or fails."""
    environ = {'MITOGEN_SSH_TRANSPORT': transport, 'MITOGEN_ROUTER_DEBUG': '1'}
    passwords = f'[all:vars]\nansible_password={CANARY}-password\nansible_become_password={CANARY}-become\nsecret={CANARY}-secret\n'
    good = site.play(SECRETS, '-vvvv', variables=passwords, **environ)
    assert good.returncode == 0, good.stdout
    bad = site.play(SECRETS, '-vvvv', variables=passwords + 'ansible_user=no-such-user\n', **environ)
    assert 'unreachable=1' in bad.stdout, bad.stdout
    shown = {'output': good.stdout + good.stderr + bad.stdout + bad.stderr, 'argv and environments': (site.dir / 'seen').read_text(errors='replace')}
    for log in (site.dir / 'mux').rglob('*'):
        if log.is_file():
            shown[str(log)] = log.read_text(errors='replace')
    assert any(name.endswith('.log') and '.contexts' not in name for name in shown), list(shown)
    assert any('.contexts/' in name and 'type=RESULT' in text for name, text in shown.items()), list(shown)
    for where, text in shown.items():
        assert CANARY not in text, f'{where}: {[line for line in text.splitlines() if CANARY in line][:3]}'


def test_stacks_of_all_threads(site: Site) -> None:
    ran = site.play("- hosts: h1\n  gather_facts: false\n  tasks:\n  - {command: sleep 2.5}\n", MITOGEN_DUMP_THREAD_STACKS='1')
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert 'Timeout (0:00:01)!' in ran.stderr and 'strategy.py' in ran.stderr, ran.stderr
    ran = site.play('- hosts: h1\n', MITOGEN_DUMP_THREAD_STACKS='often')
    assert ran.returncode != 0 and 'MITOGEN_DUMP_THREAD_STACKS=often is not a whole number' in ran.stderr, ran.stderr
