"""Connections that are accounts or containers: the command lines are those of the plugins that users know them by."""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys
import typing as t

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.loader import connection_loader

from core import COLLECTIONS
from mitogen_mux import connection, containers, explicit, hops, standins, via
from test_hops import make

HERE = pathlib.Path(__file__).resolve().parent
CONNECTIONS = HERE.parents[1] / 'ansible_plugins' / 'connection'

TOOLS = ('docker', 'podman', 'buildah', 'kubectl', 'lxc-attach', 'lxc', 'incus', 'chroot', 'jexec', 'jls', 'systemd-nspawn', 'machinectl')


@pytest.fixture
def ours(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our plugins by their own names, and all tools on PATH."""
    for tool in TOOLS:
        (tmp_path / tool).write_text('#!/bin/sh\n')
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    connection_loader.add_directory(str(CONNECTIONS))


def words(made: t.Any) -> str:
    """The command line of the last hop, the tool by its name."""
    tool, *rest = [word.decode() for word in made.mux_path().hops[-1].container.argv]
    return shlex.join([os.path.basename(tool), *rest])


CONTAINERS: dict[str, tuple[str, dict[str, t.Any], str]] = {
    'docker': ('docker', {}, 'docker exec -i box'),
    'docker with all': (
        'docker',
        {
            'ansible_user': 'app',
            'ansible_docker_extra_args': '-H unix:///x',
            'ansible_docker_extra_env': {'A': 'b c'},
            'ansible_docker_working_dir': '/srv',
            'ansible_docker_privileged': True,
        },
        "docker -H unix:///x exec -u app -e 'A=b c' -w /srv --privileged -i box",
    ),
    'podman': ('podman', {'ansible_user': 'app', 'ansible_podman_extra_args': '--root "/a b"'}, "podman --root '/a b' exec -i --user app box"),
    'podman with all': (
        'podman',
        {'ansible_podman_extra_env': {'A': 'b c'}, 'ansible_podman_working_directory': '/srv', 'ansible_podman_privilege_escalation': 'sudo'},
        "podman exec -i --env 'A=b c' --workdir /srv box sudo -n",
    ),
    'buildah': ('buildah', {'ansible_user': 'app'}, 'buildah run --user app box --'),
    'buildah with all': (
        'buildah',
        {'ansible_buildah_extra_args': '--root "/a b"', 'ansible_buildah_extra_env': {'A': 'b c'}, 'ansible_buildah_working_directory': '/srv'},
        "buildah --root '/a b' run --env 'A=b c' --workingdir /srv box --",
    ),
    'podman by su': ('podman', {'ansible_podman_privilege_escalation': 'su'}, "podman exec -i box su -c 'exec \"$@\"' -- root sh"),
    'kubectl': (
        'kubectl',
        {'ansible_kubectl_pod': 'pod', 'ansible_kubectl_namespace': 'ns', 'ansible_kubectl_container': 'c', 'ansible_kubectl_extra_args': '-v 1'},
        'kubectl -n ns -v 1 exec -i pod -c c --',
    ),
    'lxc': ('lxc', {}, 'lxc-attach --clear-env --set-var PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin -n box --'),
    'lxd': ('lxd', {'ansible_lxd_project': 'p'}, 'lxc --project p exec local:box --'),
    'lxd for another account': ('lxd', {'ansible_user': 'app', 'ansible_lxd_remote': 'far'}, "lxc exec far:box -- /bin/su app -c 'exec \"$@\"' -- sh"),
    'incus': ('incus', {'ansible_host': 'box.example.org'}, 'incus --project default exec local:box --'),
    'chroot': ('chroot', {'ansible_host': '/srv/box'}, 'chroot /srv/box'),
    'jail': ('jail', {}, 'jexec box'),
    'jail for another account': ('jail', {'ansible_user': 'app'}, 'jexec -U app box /bin/sh -c \'HOME=~app exec "$@"\' sh'),
    'nspawn, a folder': ('nspawn', {'ansible_host': '/srv/box'}, 'systemd-nspawn --quiet --pipe --directory /srv/box --'),
    'nspawn, a machine': ('nspawn', {'ansible_nspawn_extra_args': '--ephemeral'}, 'systemd-nspawn --ephemeral --quiet --pipe --machine box --'),
    'machinectl': ('machinectl', {'ansible_user': 'app'}, 'machinectl --quiet shell app@box'),
}


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize('case', CONTAINERS)
def test_command_lines(case: str) -> None:
    kind, variables, line = CONTAINERS[case]
    made = make(f'mitogen_{kind}', {'inventory_hostname': 'box', **variables})
    assert words(made) == line
    path = made.mux_path('/usr/bin/python3').hops
    assert [hop.WhichOneof('method') for hop in path] == ['local', 'container']
    assert path[-1].container.user == variables.get('ansible_user', '')
    assert path[-1].interpreter == '/usr/bin/python3'


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize(
    ('kind', 'argv'), [('docker', ['/bin/sh', '-c', 'echo "a  b"; id']), ('podman', ['echo', 'a  b;', 'id']), ('buildah', ['echo', 'a  b;', 'id'])]
)
def test_who_has_a_shell(kind: str, argv: list[str]) -> None:
    """Podman's and buildah's own plugins take a command line for words."""
    made = make(f'mitogen_{kind}', {'inventory_hostname': 'box'})
    line = 'echo "a  b"; id' if kind == 'docker' else 'echo "a  b;" id'
    assert [word.decode() for word in made.mux_argv(line)] == argv
    assert made.mux_plain(line)[0] == (line if kind == 'docker' else "echo 'a  b;' id")


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize(('kind', 'user'), [('chroot', ''), ('lxc', ''), ('docker', 'app')])
def test_who_is_always_root(kind: str, user: str) -> None:
    made = make(f'mitogen_{kind}', {'inventory_hostname': 'box', 'ansible_user': 'app'})
    assert made.mux_path().hops[-1].container.user == user
    assert made.default_user == (None if user else 'root')


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize(('kind', 'mode'), [('docker', 0o644), ('chroot', 0o644), ('podman', None), ('lxd', None), ('nspawn', 0o644), ('setns', 0o644)])
def test_mode_of_a_file_that_is_put(kind: str, mode: int | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / 'source'
    source.touch(0o600)
    made = make(f'mitogen_{kind}', {'inventory_hostname': 'box'})
    steps: list[t.Any] = []
    monkeypatch.setattr(made, '_mux_move', lambda given: steps.extend(given) or [None])
    made.put_file(str(source), '/there')
    assert steps[0].put.mode == (mode or 0o600)


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize('user', ['', 'app'])
@pytest.mark.parametrize('kind', ['podman', 'buildah'])
def test_mode_of_a_file_that_podmans_plugins_put(kind: str, user: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root they write into the container's folder themselves; the older ones do so without the source's mode."""
    name = f'containers.podman.{kind}'
    if not os.path.isdir(os.path.join(COLLECTIONS, 'ansible_collections', 'containers', 'podman')):
        pytest.skip(f'{name} is not among the collections')
    source = tmp_path / 'source'
    source.touch(0o600)
    variables = {'inventory_hostname': 'box', **({'ansible_user': user} if user else {})}
    original = make(name, variables)
    original._connected, original._mount_point = True, os.fsencode(tmp_path) if hasattr(original, f'_{kind}') else str(tmp_path)
    theirs = 0o600  # of podman cp and buildah copy
    if not user:
        umask = os.umask(0o022)
        original.put_file(str(source), '/there')
        os.umask(umask)
        theirs = (tmp_path / 'there').stat().st_mode & 0o777
    adopted = standins.adopt(original, name)
    assert (adopted.mux_new_mode() or 0o600) == theirs


@pytest.mark.usefixtures('ours')
def test_closing_runs_nothing_of_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs may run a program for it, or fail."""
    made = make('mitogen_buildah', {'inventory_hostname': 'box'})
    monkeypatch.setattr(explicit._Nothing, 'close', lambda _: pytest.fail('closed'))
    made._connected = True
    made.close()
    assert not made._connected


@pytest.mark.usefixtures('ours')
def test_setns() -> None:
    made = make('mitogen_setns', {'inventory_hostname': 'box', 'mitogen_kind': 'docker'})
    shell, c, script, name, box = [word.decode() for word in made.mux_path().hops[-1].container.argv]
    assert (shell, c, name, box) == ('/bin/sh', '-c', 'sh', 'box')
    assert 'docker inspect' in script and 'nsenter --target' in script
    with pytest.raises(AnsibleConnectionFailure, match='mitogen_kind is xen: it is one of docker, '):
        make('mitogen_setns', {'inventory_hostname': 'box', 'mitogen_kind': 'xen'}).mux_path()


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize(
    ('kind', 'variables', 'says'),
    [
        ('kubectl', {'ansible_kubectl_kubeconfig': {'a': 1}}, 'writes no file with secrets'),
        ('docker', {'ansible_docker_extra_env': {'A': True}}, 'takes only strings'),
        ('docker', {'mitogen_docker_path': '/no/docker'}, '/no/docker'),
    ],
)
def test_what_is_refused(kind: str, variables: dict[str, t.Any], says: str) -> None:
    with pytest.raises(AnsibleConnectionFailure, match=says):
        make(f'mitogen_{kind}', {'inventory_hostname': 'box', **variables}).mux_path()


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize('tool', ['sudo', 'su'])
def test_accounts(tool: str) -> None:
    variables = {
        'ansible_user': 'app',
        'ansible_password': 's3',
        f'ansible_{tool}_exe': f'/opt/{tool}',
        'ansible_become_exe': '/not/this',
        'ansible_become_flags': '-x',
        'ansible_become_user': 'the task has it',
        'ansible_become_password': 'the task has it',
    }
    made = make(f'mitogen_{tool}', {'inventory_hostname': 'h', **variables})
    local, account = made.mux_path().hops
    assert local.WhichOneof('method') == 'local'
    become = account.become
    assert (become.method, become.user, become.exe, become.flags, become.password.value) == (tool, 'app', f'/opt/{tool}', '-x', b's3')
    assert become.success
    wrapped, path = made.mux_plain('id')
    assert wrapped.startswith(f'/opt/{tool} ') and path.hops[-1].become.success in wrapped.encode()


@pytest.mark.usefixtures('ours')
def test_via(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make('mitogen_chroot', {'inventory_hostname': 'box', 'ansible_host': '/box', 'mitogen_via': 'su:app@inner'})
    made.mux_hostvars = {
        'inner': {
            'inventory_hostname': 'inner',
            'ansible_connection': 'ansible.builtin.ssh',
            'ansible_host': '10.0.0.5',
            'ansible_user': 'deploy',
            'ansible_su_pass': 's3',
            'mitogen_via': 'outer',
        },
        'outer': {'inventory_hostname': 'outer', 'ansible_port': 2222, 'ansible_python_interpreter': '/opt/python'},
    }
    monkeypatch.setattr(connection.MuxConnection, 'mux_become', lambda self, plugin, _: hops.become(self, own=plugin))  # no daemon here
    outer, inner, su, box = made.mux_path().hops
    assert (outer.ssh.host, outer.ssh.port, outer.interpreter) == ('outer', 2222, '/opt/python')
    assert (inner.ssh.host, inner.ssh.user, inner.interpreter) == ('10.0.0.5', 'deploy', via.ANY_PYTHON)
    assert (su.become.method, su.become.user, su.become.password.value) == ('su', 'app', b's3')
    assert [word.decode() for word in box.container.argv][1:] == ['/box']


ORIGINALS: dict[str, dict[str, dict[str, t.Any]]] = {
    'community.docker.docker': {
        'bare': {},
        'all': {
            'ansible_user': 'app',
            'ansible_docker_extra_args': '-H unix:///x',
            'ansible_docker_extra_env': {'A': 'b c'},
            'ansible_docker_privileged': True,
        },
    },
    'kubernetes.core.kubectl': {
        'bare': {'ansible_kubectl_pod': 'box'},
        'all': {
            'ansible_kubectl_pod': 'box',
            'ansible_kubectl_namespace': 'ns',
            'ansible_kubectl_container': 'c',
            'ansible_kubectl_extra_args': '-v 1',
            'ansible_kubectl_token': 'secret',
        },
    },
    'community.general.incus': {'bare': {}, 'all': {'ansible_incus_project': 'p', 'ansible_incus_remote': 'far'}},
    'community.general.lxd': {'bare': {}, 'all': {'ansible_lxd_project': 'p', 'ansible_lxd_remote': 'far'}},
    'community.general.chroot': {'bare': {'ansible_host': '/'}},
    'community.general.jail': {'bare': {}},
    'containers.podman.podman': {
        'bare': {},
        'all': {
            'ansible_user': 'app',
            'ansible_podman_extra_args': '--root "/a b"',
            'ansible_podman_extra_env': {'A': 'b c'},
            'ansible_podman_working_directory': '/srv',
        },
    },
    'containers.podman.buildah': {
        'bare': {},
        'all': {
            'ansible_user': 'app',
            'ansible_buildah_extra_args': '--root "/a b"',
            'ansible_buildah_extra_env': {'A': 'b c'},
            'ansible_buildah_working_directory': '/srv',
        },
    },
}


class _Started(BaseException):
    """In place of a process: the command line. No plugin catches it."""


def _started(original: t.Any, **options: bool) -> list[str]:
    """The command line with which a plugin starts a command: of those that build it where they need it."""

    def popen(argv: list[bytes], **_: t.Any) -> t.NoReturn:
        raise _Started([os.fsdecode(word) for word in argv])

    original._connected = True
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(original).__module__]
        patch.setattr(module if hasattr(module, 'Popen') else subprocess, 'Popen', popen)
        with pytest.raises(_Started) as started:
            original.exec_command('id', **options)
    return list(started.value.args[0])


def _theirs(original: t.Any, name: str) -> list[str]:
    """The command line that the original builds for a command."""
    if name.endswith('.docker'):
        original._set_conn_data()
        return list(original._build_exec_cmd([]))
    if name.endswith('.kubectl'):
        return list(original._build_exec_cmd([])[0])
    if name.endswith(('.incus', '.lxd')):
        return (original._build_command('id') if hasattr(original, '_build_command') else _started(original))[:-3]
    if name.endswith('.chroot'):
        return [original.get_option('chroot_exe'), original.get_option('remote_addr')]
    if name.endswith('.podman'):
        return [*(word for word in _started(original, sudoable=True)[:-1] if word != '-i'), '-i']  # the newer ones have it where there is something to read
    if name.endswith('.buildah'):
        return [*_started(original, sudoable=True)[:-1], '--']
    return [original.jexec_cmd, 'box']


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize(('name', 'case'), [(name, case) for name, cases in ORIGINALS.items() for case in cases])
def test_command_lines_are_the_originals(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not COLLECTIONS:
        pytest.skip('no collections: set MITOGEN_MUX_TEST_COLLECTIONS to a folder with ansible_collections in it')
    if not os.path.isdir(os.path.join(COLLECTIONS, 'ansible_collections', *name.split('.')[:2])):
        pytest.skip(f'{name} is not among the collections')
    if name.endswith('.jail'):
        monkeypatch.setattr('subprocess.Popen.communicate', lambda *_, **__: (b'box\n', b''))
        monkeypatch.setattr('os.geteuid', lambda: 0)
    variables = {'inventory_hostname': 'there', 'ansible_host': 'box', **ORIGINALS[name][case]}
    original = make(name, variables)
    theirs = [os.path.basename(word) if n == 0 else word for n, word in enumerate(os.fsdecode(word) for word in _theirs(original, name))]
    adopted = standins.adopt(original, name)
    assert isinstance(adopted, containers.ContainerConnection)
    assert sorted(shlex.split(words(adopted))) == sorted(theirs)


@pytest.mark.usefixtures('ours')
@pytest.mark.parametrize('sudoable', [False, True])
@pytest.mark.parametrize('user', ['', 'app', 'root'])
@pytest.mark.parametrize('kind', ['podman', 'buildah'])
def test_accounts_are_the_originals(kind: str, user: str, sudoable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of buildah's plugins leave out who was named where a task may become somebody else."""
    name = f'containers.podman.{kind}'
    if not os.path.isdir(os.path.join(COLLECTIONS, 'ansible_collections', 'containers', 'podman')):
        pytest.skip(f'{name} is not among the collections')
    original = make(name, {'inventory_hostname': 'box', 'ansible_host': 'box', **({'ansible_user': user} if user else {})})
    theirs = _started(original, sudoable=sudoable)
    adopted = standins.adopt(original, name)
    paths: list[t.Any] = []
    monkeypatch.setattr(adopted, 'mux_steps', lambda path, *_: paths.append(path) or [(0, b'', b'')])
    adopted.exec_command('id', sudoable=sudoable)
    ours = [word.decode() for word in paths[0].hops[-1].container.argv]
    assert ('--user' in ours) == ('--user' in theirs)
