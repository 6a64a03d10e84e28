"""Connections whose commands and files all go through the daemon."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import stat
import types
import typing as t

from ansible.errors import AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_native, to_text

from . import baton, connection, display, errands, hops, via
from .client import RpcError
from .v1 import error_pb2, jobs_pb2, path_pb2

AT_ONCE = 1.0
"""Seconds."""

MOST_LATEST = 64
"""Answers of this process that are kept: twice as many as hosts for which something is made ready."""

VIA: dict[str, dict[str, t.Any]] = {
    'mitogen_via': {
        'description': ['The host that this one is reached through, as C([[method:]user@]inventory_name).'],
        'default': '',
        'vars': [{'name': 'mitogen_via'}],
    }
}

NAME: dict[str, dict[str, t.Any]] = {'mitogen_inventory_name': {'description': ['For messages only.'], 'default': '', 'vars': [{'name': 'inventory_hostname'}]}}


def account_option(about: str, **more: t.Any) -> dict[str, dict[str, t.Any]]:
    """The option remote_user of a plugin that only we have."""
    return {
        'remote_user': {
            'description': [about],
            'vars': [{'name': 'ansible_user'}],
            'env': [{'name': 'ANSIBLE_REMOTE_USER'}],
            'ini': [{'section': 'defaults', 'key': 'remote_user'}],
            'cli': [{'name': 'user'}],
            'keyword': [{'name': 'remote_user'}],
            **more,
        }
    }


_SSH: dict[str, dict[str, t.Any]] = {
    **NAME,
    'mitogen_ssh_transport': {
        'description': [
            "Who connects: the daemon's own client (native), the user's ssh program (openssh), or whichever can do it (auto).",
            'The ssh program of the account that the host is reached through (via), with the keys and files of that account.',
        ],
        'choices': ['auto', 'native', 'openssh', 'via'],
        'default': 'auto',
        'vars': [{'name': 'mitogen_ssh_transport'}],
        'env': [{'name': 'MITOGEN_SSH_TRANSPORT'}],
    },
}
"""For ssh alone. Its plugin knows inventory_hostname already: a new variable shows in the results of delegated tasks that set it."""


class RemoteConnection(connection.MuxConnection):
    """What they have in common."""

    mux_definitions: t.ClassVar[dict[str, dict[str, t.Any]]] = {**connection.DEFINITIONS, **VIA}
    mux_word = ''

    _mux_via: list[path_pb2.Hop] | None = None
    _mux_remembered: t.Mapping[bytes, connection.Result] = types.MappingProxyType({})
    """The latest answer that does not change while the connection lives: the next item of a loop asks again."""

    mux_latest: t.ClassVar[dict[bytes, connection.Result]] = {}
    """Such answers to any connection of this process; to be supposed, for hosts may have been connected to anew since."""

    def mux_way(self) -> list[path_pb2.Hop]:
        if self._mux_via is None:
            self._mux_via = via.way(self) or self.mux_start()
        return self._mux_via

    def mux_adopt(self, obj: t.Any, full_name: str) -> t.Any:
        """A connection object of another host as one of ours; None if it is none that we stand in front of."""
        from . import standins  # which knows this module

        return standins.adopt(obj, full_name)

    def mux_start(self) -> list[path_pb2.Hop]:
        """The hops before the account where no via host is named."""
        return []

    def mux_display_host(self) -> str:
        """Whom -vvv is about, as the original says it."""
        return self.mux_host()

    def _mux_introduce(self, aloud: bool = True) -> None:
        pass

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> connection.Result:
        if not self.mux_enabled():
            return super().exec_command(cmd, in_data=connection.stock(in_data), sudoable=sudoable)  # type: ignore[misc,no-any-return]
        self._mux_introduce()
        display.vvv(f'{self.mux_word}EXEC {to_text(cmd)}', self.mux_display_host())
        token = self._mux_token(in_data, cmd)
        answer = self.mux_command(cmd, in_data, sudoable) if token is None else self.mux_module(token, cmd)
        display.result(answer, self._play_context.no_log, self.mux_display_host())
        return answer

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> connection.Result:
        escalation = self._mux_become(cmd)
        if self._mux_folder and (self._mux_folder.files or self._mux_folder.path in cmd):
            self.mux_run_errands(self._mux_owners() if escalation and self._mux_folder.foreign else ())
        if escalation is None:
            plain, path = self.mux_plain(cmd)
            argv = self.mux_argv(cmd)
        else:
            plain, path = cmd, self.mux_path(self.mux_needed)
            path.hops.append(hops.become(self))
            argv = [*(to_bytes(word) for word in shlex.split(escalation.executable)), b'-c', to_bytes(escalation.command)]
        tty = not in_data and sudoable and self.mux_tty()
        command = jobs_pb2.Command(argv=argv, plain=to_bytes(plain), has_body=bool(in_data), tty=tty, remember=self._mux_remembers)
        if self._mux_discovery and not in_data:
            command.discovery.CopyFrom(self._mux_discovery)
        key = b''
        if command.remember and not in_data:
            key = path.SerializeToString(deterministic=True) + command.SerializeToString(deterministic=True)
            if key in self._mux_remembered:
                return self._mux_remembered[key]
        steps = [jobs_pb2.Step(command=command)]
        if key in self.mux_latest and baton.suppose(functools.partial(self._mux_still, path, steps, self.mux_latest[key])):
            self._mux_remembered = {key: self.mux_latest[key]}
            return self._mux_remembered[key]
        rc, stdout, stderr = self.mux_steps(path, steps, in_data, tty)[0]
        if tty:
            stderr += self._mux_farewell()
        if key and rc == 0:
            self._mux_remembered = {key: (rc, stdout, stderr)}
            self.mux_latest.update(self._mux_remembered)
            while len(self.mux_latest) > MOST_LATEST:
                del self.mux_latest[next(iter(self.mux_latest))]
        return rc, stdout, stderr

    def _mux_still(self, path: path_pb2.Path, steps: list[jobs_pb2.Step], answer: connection.Result) -> bool:
        """Whether that is the answer. The main thread asks, so it must come at once."""
        try:
            return self._mux_run(path, steps, {}, AT_ONCE) == [answer]
        except (RpcError, AnsibleError):
            return False  # whoever asks in earnest will say it

    def _mux_owners(self) -> t.Iterator[t.Callable[[], path_pb2.Path]]:
        """The ways to the account that a folder is for, which cannot read what the login account writes: to an agent that is there, or to a new
        one."""
        run = connection.session()
        for python in ('', via.ANY_PYTHON):

            def way(python: str = python) -> path_pb2.Path:
                path = self.mux_path(python or self.mux_needed)
                path.hops.append(hops.become(self, python, run.attach.stage1, run.attach.agent_name))
                return path

            yield way

    def mux_plain(self, cmd: str) -> tuple[str, path_pb2.Path]:
        """A command line for where the account has no agent, and the path to that account."""
        return cmd, self.mux_path()

    def mux_argv(self, cmd: str) -> list[bytes]:
        """A command line for the account's agent."""
        return [*self.mux_shell(), to_bytes(cmd)]

    def mux_tty(self) -> bool:
        """Whether a command without input gets a terminal."""
        return False

    def _mux_farewell(self) -> bytes:
        return b''

    def mux_new_mode(self) -> int | None:
        """The mode of a file that is put; None: that of its source."""
        return None

    def put_file(self, in_path: str, out_path: str) -> t.Any:
        if not self.mux_enabled():
            return super().put_file(in_path, out_path)  # type: ignore[misc]
        self._mux_introduce(False)
        display.vvv(f'PUT {in_path} TO {out_path}', self.mux_display_host())
        source = os.path.abspath(to_bytes(in_path, errors='surrogate_or_strict'))
        try:
            mode = stat.S_IMODE(os.stat(source).st_mode) & 0o777
        except OSError:
            raise AnsibleFileNotFound(f'file or module does not exist: {to_native(in_path)}') from None
        new_mode = self.mux_new_mode()
        mode = mode if new_mode is None else new_mode
        if self._mux_folder and self._mux_folder.holds(out_path):
            with contextlib.suppress(OSError):  # the daemon says it better
                self._mux_folder.files.append(errands.File.take(os.fsdecode(source), out_path, new_mode))
                return 0, b'', b''
            self.mux_run_errands()
        put = jobs_pb2.Put(path=os.fsdecode(source), dest=to_bytes(out_path), mode=mode)
        return self._mux_move([jobs_pb2.Step(put=put)])[0]

    def fetch_file(self, in_path: str, out_path: str) -> t.Any:
        if not self.mux_enabled():
            return super().fetch_file(in_path, out_path)  # type: ignore[misc]
        self._mux_introduce(False)
        display.vvv(f'FETCH {in_path} TO {out_path}', self.mux_display_host())
        if self._mux_folder and self._mux_folder.holds(in_path):
            self.mux_run_errands()
        source, dest = to_bytes(in_path), os.path.abspath(to_text(out_path))
        listing = jobs_pb2.Command(argv=[b'ls', b'-dlL', b'--', source], plain=to_bytes(f'ls -dlL -- {shlex.quote(to_text(in_path))}'))
        steps = [jobs_pb2.Step(command=listing), jobs_pb2.Step(get=jobs_pb2.Get(source=source, path=dest))]
        # A new file gets the mode of the remote one, as from sftp, and nobody else can read it before that.
        with _private_file(dest) as grant:
            listed, answer = self._mux_move(steps)
            grant(_listed_mode(listed[1]))
        return answer

    def _mux_move(self, steps: list[jobs_pb2.Step]) -> list[connection.Result]:
        """Runs steps that an account without an agent may have no way for: then one is started."""
        try:
            return t.cast('list[connection.Result]', self._mux_run(self.mux_path(), steps, {}))
        except RpcError as error:
            if error.kind != error_pb2.Error.INTERPRETER_MISSING or not self.mux_needed:
                raise self._mux_error(error) from None
        return self.mux_steps(self.mux_path(self.mux_needed), steps)

    def reset(self) -> None:
        if not self.mux_enabled():
            super().reset()  # type: ignore[misc]
            return
        self._mux_introduce(False)
        try:
            connection.session().reset(self.mux_host(), self.mux_path())
        except RpcError as error:
            raise self._mux_error(error) from None
        self._mux_remembered = {}
        self.close()

    def close(self) -> None:
        """Nothing is open here; the originals that run a program for it would do so after each task."""
        if self.mux_enabled():
            self._connected = False
        else:
            super().close()  # type: ignore[misc]


class SshConnection(RemoteConnection):
    """In front of ansible.builtin.ssh."""

    mux_definitions: t.ClassVar[dict[str, dict[str, t.Any]]] = {**connection.DEFINITIONS, **VIA, **_SSH}
    mux_word = 'SSH: '

    if t.TYPE_CHECKING:
        host: str
        user: str
        port: int | None

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        return hops.ssh(self, interpreter)

    def mux_display_host(self) -> str:
        return self.host

    def mux_shell(self) -> list[bytes]:
        return [b'/bin/sh', b'-c', _LOGIN_SHELL]

    def mux_tty(self) -> bool:
        return bool(hops.option(self, 'use_tty', True))

    def _mux_farewell(self) -> bytes:
        """What ssh itself adds to stderr when it ends a session that has a terminal."""
        ssh = self.mux_account().ssh
        words = ' '.join([*ssh.args, *ssh.late_args]).lower()
        if ' -q ' in f' {words} ' or any(f'loglevel{sep}{level}' in words for sep in '= ' for level in ('quiet', 'fatal', 'error')):
            return b''
        shared = 'Shared connection' if 'controlpersist' in words else 'Connection'
        return bytes(to_bytes(f'{shared} to {self.host} closed.\r\n'))

    def _mux_introduce(self, aloud: bool = True) -> None:
        self.host = str(to_text(hops.option(self, 'host') or self._play_context.remote_addr))
        self.port = hops.option(self, 'port')
        self.user = hops.option(self, 'remote_user')
        if aloud:
            display.vvv(f'ESTABLISH SSH CONNECTION FOR USER: {self.user}', self.host)


_LOGIN_SHELL = b'exec "${SHELL:-/bin/sh}" -c "$0"'
"""sshd hands a command line to the account's login shell; so does this."""


@contextlib.contextmanager
def _private_file(path: str) -> t.Iterator[t.Callable[[int], None]]:
    """Makes a new file that only its owner can read, for a content to come; gives the function that sets its final mode, less the umask.
    Without a content it goes again; a file that is there already is left as it is."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError:
        yield lambda _: None
        return
    umask = connection.umask()
    try:
        yield lambda mode: os.chmod(path, mode & ~umask)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _listed_mode(listing: bytes) -> int:
    """The mode in a line of ``ls -l``, writable for the owner; that of a new file where there is none."""
    letters = listing[1:10]
    if len(letters) < 9:
        return 0o666
    bits = ''.join('0' if letter in b'-ST' else '1' for letter in letters)
    return int(bits, 2) | 0o200
