"""Containers, jails and folders with a system in them: what is entered with a tool that runs a command there.

For each kind the tool's command line is made from the options of the plugin that Ansible's users know it by, under the names that this
plugin gives them; so it serves that plugin's objects and those of our own plugin alike."""

from __future__ import annotations

import json
import re
import shlex
import types
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.common.process import get_bin_path
from ansible.module_utils.common.text.converters import to_bytes, to_text

from . import connection, hops, remote, via
from .v1 import path_pb2

Definitions = dict[str, dict[str, t.Any]]


class ContainerConnection(remote.RemoteConnection):
    """In front of a container plugin."""

    mux_kind: t.ClassVar[Kind]

    _mux_sudoable = True
    _mux_forgets: bool | None = None

    def mux_start(self) -> list[path_pb2.Hop]:
        return via.controller()

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        kind = self.mux_kind
        return hops.container(kind.name, self.mux_address(), self.mux_user(), kind.argv(self), interpreter)

    def mux_plain(self, cmd: str) -> tuple[str, path_pb2.Path]:
        return super().mux_plain(cmd if self.mux_kind.shell else shlex.join(shlex.split(cmd)))

    def mux_argv(self, cmd: str) -> list[bytes]:
        return super().mux_argv(cmd) if self.mux_kind.shell else [to_bytes(word) for word in shlex.split(cmd)]

    def mux_option(self, name: str) -> t.Any:
        """An option's value; None if it is not set, or there is no such option."""
        value = hops.option(self, name)
        return None if value == '' else value

    def mux_address(self) -> str:
        """The container's name."""
        if theirs := getattr(self, '_container_id', None):  # podman's and buildah's, whose option may have the inventory's name instead
            return str(to_text(theirs))
        for name in (f'{self.mux_kind.name}_pod', 'remote_addr'):
            if value := self.mux_option(name):
                return str(to_text(value))
        return str(to_text(self._play_context.remote_addr))

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> connection.Result:
        with self._mux_meanwhile('_mux_sudoable', sudoable):
            return super().exec_command(cmd, in_data, sudoable)

    def mux_user(self) -> str:
        """The account in the container; empty: whom the tool chooses."""
        if not self.mux_kind.accounts:
            return ''
        user = str(to_text(self.mux_option('remote_user') or self._play_context.remote_user or ''))
        return '' if user not in ('', 'root') and self._mux_sudoable and self._mux_forgotten() else user

    def _mux_forgotten(self) -> bool:
        """Whether the original leaves out the account that was named: buildah's does since 1.18.1, but for commands that may not become another one. It
        is asked, for that may change."""
        if not hasattr(self, '_run_buildah_command'):
            return False
        if self._mux_forgets is None:
            said: list[str] = []

            def heard(words: list[str], **_: t.Any) -> connection.Result:
                said.extend(words)
                return 1, b'', b''

            with self._mux_meanwhile('_run_buildah_command', heard), self._mux_meanwhile('_connected', True):
                super(remote.RemoteConnection, self).exec_command('true', sudoable=True)  # type: ignore[misc]
            self._mux_forgets = '--user' not in said
        return self._mux_forgets

    def mux_new_mode(self) -> int | None:
        """That of a new file, where the original has one written: containers.podman's did before 1.18.1, but for an account that was named."""
        new = self.mux_kind.dd or (hasattr(self, f'_{self.mux_kind.name}') and not self._play_context.remote_user)
        return 0o644 if new else None

    def mux_program(self, program: str, option: str = '') -> str:
        """The path of a tool; its name, where it is for a via host to find."""
        program = str(self.mux_option(f'mitogen_{program.replace("-", "_")}_path') or (option and self.mux_option(option)) or program)
        if not self.mux_option('mitogen_via'):
            try:
                return str(get_bin_path(program))
            except ValueError as error:
                raise AnsibleConnectionFailure(f'{self.mux_host()}: {error}') from None
        return program


class Kind(t.NamedTuple):
    """A kind of container."""

    name: str
    about: str
    argv: t.Callable[[ContainerConnection], list[str]]
    options: t.Mapping[str, t.Any] = types.MappingProxyType({})
    """Those of our own plugin, besides the address and the account."""
    tools: tuple[str, ...] = ()
    originals: tuple[str, ...] = ()
    """The plugins that we stand in front of, by full name."""
    shell: bool = True
    """Whether those give a command line to a shell; else what it says are words, as C(raw) shows."""
    accounts: bool = True
    """Whether one can enter as somebody else than root."""
    dd: bool = False
    """Whether those have a program there write a file, which then has a new file's mode and not that of its source. Where there is no original, too:
    most have."""


def _options(kind: str, *names: str, **defaults: t.Any) -> Definitions:
    """Options that are set by a variable each."""
    found: Definitions = {}
    for name in (*names, *defaults):
        variable = name if name.startswith((f'{kind}_', 'mitogen_')) else f'{kind}_{name}'
        found[name] = {'description': ['As the original plugin has it.'], 'vars': [{'name': f'ansible_{variable}'}]}
        if name in defaults:
            found[name]['default'] = defaults[name]
    return found


def _podmans(kind: str) -> Definitions:
    """What podman's plugin and, since 1.18.1, buildah's have."""
    extra_env = {'description': ['As the original plugin has it.'], 'type': 'dict', 'vars': [{'name': f'ansible_{kind}_extra_env'}]}
    return {**_options(kind, f'{kind}_extra_args', f'{kind}_executable', 'working_directory'), 'extra_env_vars': extra_env}


_PODMAN = {
    **_podmans('podman'),
    'privilege_escalation_method': {
        'description': ['As the original plugin has it.'],
        'choices': ['auto', 'sudo', 'su', 'none'],
        'default': 'auto',
        'vars': [{'name': 'ansible_podman_privilege_escalation'}],
    },
}


def _words(value: t.Any) -> list[str]:
    return shlex.split(to_text(value or ''))


_ANY_WORDS = 'exec "$@"'
"""For tools that take one text for a shell: it runs the words behind it."""


def _docker(c: ContainerConnection) -> list[str]:
    argv = [c.mux_program('docker'), *(to_text(c.mux_option('docker_extra_args') or '').split()), 'exec']
    if user := c.mux_user():
        argv += ['-u', user]
    for name, value in (c.mux_option('extra_env') or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise AnsibleConnectionFailure(f'{c.mux_host()}: extra_env has {name!r}: {value!r}, and docker takes only strings: put them in quotes')
        argv += ['-e', f'{name}={value}']
    if folder := c.mux_option('working_dir'):
        argv += ['-w', to_text(folder)]
    if c.mux_option('privileged'):
        argv.append('--privileged')
    return [*argv, '-i', c.mux_address()]


def _podman_surroundings(c: ContainerConnection, folder_option: str) -> list[str]:
    argv = []
    for name, value in (c.mux_option('extra_env_vars') or {}).items():
        argv += ['--env', f'{name}={value}']
    if folder := c.mux_option('working_directory'):
        argv += [folder_option, to_text(folder)]
    return argv


def _podman(c: ContainerConnection) -> list[str]:
    argv = [c.mux_program('podman', 'podman_executable'), *_words(c.mux_option('podman_extra_args')), 'exec', '-i']
    if user := c.mux_user():
        argv += ['--user', user]
    before = {'sudo': ['sudo', '-n'], 'su': ['su', '-c', _ANY_WORDS, '--', 'root', 'sh']}
    return [*argv, *_podman_surroundings(c, '--workdir'), c.mux_address(), *before.get(str(c.mux_option('privilege_escalation_method')), [])]


def _buildah(c: ContainerConnection) -> list[str]:
    argv = [c.mux_program('buildah', 'buildah_executable'), *_words(c.mux_option('buildah_extra_args')), 'run']
    if c.mux_user() not in ('', 'root'):
        argv += ['--user', c.mux_user()]
    return [*argv, *_podman_surroundings(c, '--workingdir'), c.mux_address(), '--']


_KUBECTL = {
    'kubectl_kubeconfig': '--kubeconfig',
    'kubectl_namespace': '-n',
    'kubectl_context': '--context',
    'kubectl_host': '--server',
    'kubectl_username': '--username',
    'kubectl_password': '--password',
    'kubectl_token': '--token',
    'client_cert': '--client-certificate',
    'client_key': '--client-key',
    'ca_cert': '--certificate-authority',
}


def _kubectl(c: ContainerConnection) -> list[str]:
    name = c.mux_kind.name
    argv = []
    if variables := c.mux_option(f'{name}_local_env_vars'):
        if not isinstance(variables, dict):
            variables = json.loads(variables)
        argv = ['env', *(f'{key}={value}' for key, value in variables.items())]
    argv.append(c.mux_program(name))
    for option, flag in _KUBECTL.items():
        value = c.mux_option(option.replace('kubectl_', f'{name}_'))
        if isinstance(value, dict):
            raise AnsibleConnectionFailure(f'{c.mux_host()}: {option} is a dictionary, and mitogen-mux writes no file with secrets: name a file')
        if value:
            argv += [flag, to_text(value)]
    verify = c.mux_option('validate_certs')
    if verify is not None:
        argv.append(f'--insecure-skip-tls-verify={str(not verify).lower()}')
    argv += [*to_text(c.mux_option(f'{name}_extra_args') or '').split(), 'exec', '-i', c.mux_address()]
    if inside := c.mux_option(f'{name}_container'):
        argv += ['-c', to_text(inside)]
    return [*argv, '--']


def _lxc(c: ContainerConnection) -> list[str]:
    return [
        c.mux_program('lxc-attach'),
        '--clear-env',
        '--set-var',
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        '-n',
        c.mux_address(),
        '--',
    ]


def _instance(tool: str) -> t.Callable[[ContainerConnection], list[str]]:
    def argv(c: ContainerConnection) -> list[str]:
        project = c.mux_option('project')
        user = str(c.mux_option('remote_user') or 'root')
        words = [c.mux_program(tool), *(['--project', to_text(project)] if project else []), 'exec']
        words += [f'{c.mux_option("remote") or "local"}:{c.mux_address().split(".")[0]}', '--']
        if user == 'root':
            return words
        become = to_text(c.mux_option(f'{c.mux_kind.name}_become_method') or '/bin/su')
        return [*words, become, user, '-c', _ANY_WORDS, '--', 'sh']

    return argv


def _chroot(c: ContainerConnection) -> list[str]:
    return [c.mux_program('chroot', 'chroot_exe'), c.mux_address()]


def _jail(c: ContainerConnection) -> list[str]:
    user = c.mux_user()
    if not user:
        return [c.mux_program('jexec'), c.mux_address()]
    home = ['/bin/sh', '-c', f'HOME=~{user} exec "$@"', 'sh'] if re.fullmatch(r'[A-Za-z0-9._-]+', user) else []  # jexec leaves root's
    return [c.mux_program('jexec'), '-U', user, c.mux_address(), *home]


def _nspawn(c: ContainerConnection) -> list[str]:
    user = ['--user', c.mux_user()] if c.mux_user() else []
    argv = [c.mux_program('systemd-nspawn'), *_words(c.mux_option('nspawn_extra_args')), '--quiet', '--pipe', *user]
    where = c.mux_address()
    return [*argv, '--directory' if where.startswith('/') else '--machine', where, '--']


def _machinectl(c: ContainerConnection) -> list[str]:
    return [c.mux_program('machinectl'), '--quiet', 'shell', f'{c.mux_user() or "root"}@{c.mux_address()}']


def _setns(c: ContainerConnection) -> list[str]:
    """The namespaces of a container's first process, whoever runs the container."""
    leaders = {
        'docker': 'docker inspect --format "{{.State.Pid}}" "$1"',
        'podman': 'podman inspect --format "{{.State.Pid}}" "$1"',
        'lxc': 'lxc-info -n "$1" -p -H',
        'lxd': 'lxc query "/1.0/instances/$1/state" | sed -n \'s/.*"pid": *\\([0-9]*\\).*/\\1/p\'',
        'incus': 'incus query "/1.0/instances/$1/state" | sed -n \'s/.*"pid": *\\([0-9]*\\).*/\\1/p\'',
        'machinectl': 'machinectl show "$1" --property Leader --value',
        'pid': 'echo "$1"',
    }
    kind = str(c.mux_option('mitogen_kind') or 'pid')
    if kind not in leaders:
        raise AnsibleConnectionFailure(f'{c.mux_host()}: mitogen_kind is {kind}: it is one of {", ".join(leaders)}')
    enter = f'p=$({leaders[kind]}) && [ "$p" -gt 0 ] && shift && exec nsenter --target "$p" --mount --uts --ipc --net --pid --root --wd "$@"'
    user = ['su', '-s', '/bin/sh', c.mux_user(), '-c', _ANY_WORDS, '--', 'sh'] if c.mux_user() not in ('', 'root') else []
    return ['/bin/sh', '-c', enter, 'sh', c.mux_address(), *user]


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            'docker',
            'docker exec',
            _docker,
            _options('docker', 'docker_extra_args', 'extra_env', 'working_dir', privileged=False),
            ('docker',),
            ('community.docker.docker',),
            dd=True,
        ),
        Kind('podman', 'podman exec', _podman, _PODMAN, ('podman',), ('containers.podman.podman',), shell=False),
        Kind('buildah', 'buildah run', _buildah, _podmans('buildah'), ('buildah',), ('containers.podman.buildah',), shell=False),
        Kind(
            'kubectl',
            'kubectl exec',
            _kubectl,
            _options('kubectl', 'kubectl_pod', 'kubectl_container', 'kubectl_extra_args', 'kubectl_local_env_vars', 'validate_certs', *_KUBECTL),
            ('kubectl',),
            ('kubernetes.core.kubectl',),
            dd=True,
        ),
        Kind('oc', 'oc exec', _kubectl, {}, (), ('community.okd.oc',), dd=True),
        Kind('lxc', 'lxc-attach', _lxc, {}, ('lxc-attach',), ('community.general.lxc',), accounts=False, dd=True),
        Kind('lxd', 'lxc exec', _instance('lxc'), _options('lxd', 'remote', 'project'), ('lxc',), ('community.general.lxd',)),
        Kind('incus', 'incus exec', _instance('incus'), _options('incus', 'remote', project='default'), ('incus',), ('community.general.incus',)),
        Kind('chroot', 'chroot', _chroot, _options('chroot', 'chroot_exe'), (), ('community.general.chroot',), accounts=False, dd=True),
        Kind('jail', 'jexec', _jail, {}, ('jexec',), ('community.general.jail',), dd=True),
        Kind('nspawn', 'systemd-nspawn', _nspawn, _options('nspawn', 'nspawn_extra_args'), ('systemd-nspawn',), dd=True),
        Kind('machinectl', 'machinectl shell', _machinectl, {}, ('machinectl',), dd=True),
        Kind('setns', 'the namespaces of its first process', _setns, dd=True),
    )
}


def _class(kind: Kind) -> type[ContainerConnection]:
    paths = {f'mitogen_{tool.replace("-", "_")}_path': f'The program {tool}.' for tool in kind.tools}
    own: Definitions = {name: {'description': [text], 'vars': [{'name': name}]} for name, text in paths.items()}
    if kind.name == 'setns':
        own['mitogen_kind'] = {'description': ['Who runs the container.'], 'default': 'pid', 'vars': [{'name': 'mitogen_kind'}]}
    return type('Connection', (ContainerConnection,), {'mux_kind': kind, 'mux_definitions': {**ContainerConnection.mux_definitions, **own}})


CLASSES = {name: _class(kind) for name, kind in KINDS.items()}

MIXINS = {original: CLASSES[name] for name, kind in KINDS.items() for original in kind.originals}
"""For the plugins that we stand in front of."""
