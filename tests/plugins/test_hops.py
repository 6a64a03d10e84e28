"""A connection of ours resolves every option as the original does, and a path says what the original would tell ssh and sudo."""

from __future__ import annotations

import pathlib
import shlex
import sys
import typing as t

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader

import core
from mitogen_mux import connection, hops, local, remote, seams
from mitogen_mux.v1 import path_pb2


@pytest.fixture
def substituted() -> t.Iterator[None]:
    undo = seams.substitute()
    yield
    undo()


def make(name: str, variables: dict[str, t.Any], task: dict[str, t.Any] | None = None) -> t.Any:
    """A connection as TaskExecutor makes it."""
    context = PlayContext()
    context.remote_addr = variables.get('ansible_host', 'h1')
    context.remote_user = variables.get('ansible_user')
    made = connection_loader.get(name, context, '/dev/null')
    known = core.C.config.get_plugin_vars('connection', made._load_name)
    made.set_options(task_keys=task or {}, var_options={key: value for key, value in variables.items() if key in known})
    return made


@pytest.mark.parametrize(('value', 'sent'), [(None, ''), ('auto', ''), ('native', 'native'), ('openssh', 'openssh'), ('via', 'via')])
def test_transport(substituted: None, value: str | None, sent: str) -> None:
    variables = {'inventory_hostname': 'h1'} if value is None else {'inventory_hostname': 'h1', 'mitogen_ssh_transport': value}
    assert hops.ssh(make('ssh', variables)).ssh.transport == sent


SSH_CASES: dict[str, dict[str, t.Any]] = {
    'nothing': {'inventory_hostname': 'h1'},
    'all': {
        'inventory_hostname': 'h1',
        'ansible_host': '10.0.0.1',
        'ansible_port': 2222,
        'ansible_user': 'deploy',
        'ansible_password': 'pä ss',
        'ansible_ssh_private_key_file': '~/key',
        'ansible_ssh_args': '-C -o "A=b c"',
        'ansible_ssh_common_args': '-o X=y',
        'ansible_ssh_extra_args': '-v',
        'ansible_ssh_executable': '/opt/ssh',
        'ansible_ssh_timeout': 33,
        'ansible_ssh_retries': 2,
        'ansible_host_key_checking': False,
        'ansible_control_path': '%(directory)s/x',
        'ansible_control_path_dir': '/tmp/cp',
    },
    'older names': {'ansible_ssh_host': '10.0.0.2', 'ansible_ssh_port': '23', 'ansible_ssh_user': 'u', 'ansible_ssh_pass': 'p'},
    'off': {'mitogen_enabled': 'no'},
}


@pytest.mark.parametrize('case', SSH_CASES)
@pytest.mark.parametrize('name', ['ssh', 'ansible.builtin.ssh'])
def test_options_are_the_originals(case: str, name: str) -> None:
    theirs = make(name, SSH_CASES[case])
    undo = seams.substitute()
    try:
        ours = make(name, SSH_CASES[case])
    finally:
        undo()
    assert isinstance(ours, remote.SshConnection) and isinstance(ours, type(theirs)) and not isinstance(theirs, remote.SshConnection)
    mine = set(remote.SshConnection.mux_definitions)
    assert {k: v for k, v in ours.get_options().items() if k not in mine} == {k: v for k, v in theirs.get_options().items() if k not in mine}
    for attribute in ('_load_name', 'ansible_name', 'ansible_aliases', 'transport', 'plugin_type', '_original_path'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.mux_enabled() is (case != 'off')


@pytest.mark.usefixtures('substituted')
def test_ssh_hop() -> None:
    hop = hops.ssh(make('ssh', SSH_CASES['all']), '/usr/bin/python3')
    assert hop.interpreter == '/usr/bin/python3'
    ssh = hop.ssh
    assert (ssh.host, ssh.port, ssh.user, ssh.ssh_executable) == ('10.0.0.1', 2222, 'deploy', '/opt/ssh')
    assert ssh.password.value == 'pä ss'.encode()
    assert ssh.private_key_file == str(pathlib.Path('~/key').expanduser())
    assert (list(ssh.args), list(ssh.late_args)) == (['-C', '-o', 'A=b c'], ['-o', 'X=y', '-v'])
    assert (ssh.timeout_seconds, ssh.reconnection_retries, ssh.host_key_checking) == (33, 2, False)
    assert ssh.control_path == '/tmp/cp/x'


@pytest.mark.usefixtures('substituted')
def test_a_key_of_another_machine() -> None:
    ssh = hops.ssh(make('ssh', {**SSH_CASES['all'], 'mitogen_ssh_transport': 'via'})).ssh
    assert ssh.private_key_file == '~/key'  # that machine's ssh knows whose home it is


@pytest.mark.usefixtures('substituted')
def test_ssh_hop_of_defaults() -> None:
    ssh = hops.ssh(make('ssh', SSH_CASES['nothing'])).ssh
    assert (ssh.host, ssh.port, ssh.user, ssh.ssh_executable, ssh.control_path) == ('h1', 0, '', '', '')
    assert not ssh.password.value and ssh.host_key_checking and ssh.timeout_seconds == 10


def becoming(method: str, variables: dict[str, t.Any], name: str = 'ssh') -> t.Any:
    made = make(name, {})
    plugin = become_loader.get(method)
    made.set_become_plugin(plugin)
    plugin.set_options(var_options=variables)
    return made


@pytest.mark.usefixtures('substituted')
def test_become_hop_for_an_agent() -> None:
    made = becoming('sudo', {'ansible_become_user': 'app', 'ansible_become_password': 's3'})
    before = made.become.build_become_command('id', made._shell)
    kept = dict(made.become.__dict__)
    hop = hops.become(made, '/usr/bin/python3', 'print(1)', "mitogen-mux: it's me")
    assert made.become.__dict__ == kept  # the action strips the marker of its own command
    become = hop.become
    assert (become.method, become.user, become.password.value) == ('sudo', 'app', b's3')
    assert become.prompt.startswith(b'[sudo via ansible, key=') and become.success.startswith(b'BECOME-SUCCESS-')
    assert become.success.decode() not in before
    shell, dash_c, text = become.argv
    assert (shell, dash_c) == (b'/bin/sh', b'-c')
    words = shlex.split(text.decode())
    assert words[0] == 'sudo' and words[words.index('-u') + 1] == 'app' and '-n' not in words
    inner = shlex.split(words[-1])
    assert inner[:2] == ['echo', become.success.decode()] and inner[-4:] == ['/usr/bin/python3', '-c', 'print(1)', "mitogen-mux: it's me"]
    assert b'Sorry, try again.' in become.wrong_password and b'sudo: a password is required' in become.missing_password


@pytest.mark.usefixtures('substituted')
def test_become_hop_for_a_command() -> None:
    made = becoming('sudo', {'ansible_become_password': 's3'})
    made.become.build_become_command('id', made._shell)
    become = hops.become(made).become
    assert become.success.decode() == made.become.success and become.prompt.decode() == made.become.prompt and not become.argv


@pytest.mark.usefixtures('substituted')
@pytest.mark.parametrize(('variables', 'prompt'), [({}, 'Mot de passe : '), ({}, 'PASSWORD:'), ({'ansible_su_prompt_l10n': ['Geheim']}, 'geheim：')])
def test_su_prompts(variables: dict[str, t.Any], prompt: str) -> None:
    import re

    made = becoming('su', variables)
    made.become.build_become_command('id', made._shell)
    become = hops.become(made).become
    assert not become.prompt
    assert re.search(become.prompt_patterns[0], prompt, re.IGNORECASE)
    assert not re.search(become.prompt_patterns[0], 'nothing of the kind')


@pytest.mark.usefixtures('substituted')
def test_become_is_in_force_for_its_own_command_only() -> None:
    made = becoming('sudo', {})
    assert made._mux_become("/bin/sh -c 'id'") is None
    first = made.become.build_become_command('id -u', made._shell)
    found = made._mux_become(f'/bin/sh -c {shlex.quote(first)}')
    assert found == hops.Escalation(made.become.success, 'id -u', '/bin/sh')
    made.become.build_become_command('id -g', made._shell)
    assert made._mux_become(f'/bin/sh -c {shlex.quote(first)}') is None
    made.set_become_plugin(None)
    assert made._mux_become(f'/bin/sh -c {shlex.quote(first)}') is None


@pytest.mark.usefixtures('substituted')
def test_other_types_and_classes_are_left_alone() -> None:
    assert isinstance(make('local', {}), local.LocalConnection)
    assert not issubclass(connection_loader.get('ssh', class_only=True), connection.MuxConnection)
    assert not isinstance(make('psrp', {}), connection.MuxConnection)


def test_undone() -> None:
    before = connection_loader.get_with_context
    undo = seams.substitute()
    assert connection_loader.get_with_context is not before
    undo()
    assert connection_loader.get_with_context == before and 'get_with_context' not in connection_loader.__dict__


@pytest.mark.usefixtures('substituted')
def test_local_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make('local', {})
    made.cwd = '/tmp'
    assert made.mux_account('/usr/bin/python3') == path_pb2.Hop(local=path_pb2.LocalHop(), interpreter='/usr/bin/python3')
    assert made.mux_process().cwd == b'/tmp'
    monkeypatch.setattr(connection.daemon, 'START_ENVIRON', dict(sys.modules['os'].environ))
    assert not made.mux_process().environ
    monkeypatch.setenv('CHANGED', 'by a plugin')
    assert (b'CHANGED', b'by a plugin') in [(v.name, v.value) for v in made.mux_process().environ]


@pytest.mark.parametrize(
    ('listing', 'mode'),
    [
        (b'-rw-r--r-- 1 a b 3 Jan 1 00:00 /x\n', 0o644),
        (b'-r--r----- 1 a b 3 Jan 1 00:00 /x\n', 0o640),
        (b'-rwsr-x--T+ 1 a b 3 Jan 1 00:00 /x\n', 0o750),
        (b'', 0o666),
    ],
)
def test_mode_of_a_fetched_file(listing: bytes, mode: int) -> None:
    assert remote._listed_mode(listing) == mode


@pytest.mark.parametrize('there', [True, False])
def test_a_file_that_never_came_leaves_what_was(there: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    if there:
        path.write_text('kept')

    def fail() -> None:
        with remote._private_file(str(path)):
            assert there or path.stat().st_mode & 0o777 == 0o600
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.exists() is there and (not there or path.read_text() == 'kept')
