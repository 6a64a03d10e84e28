"""The controller's own account."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.utils.path import unfrackpath

from . import connection, daemon, display, errands, hops
from .client import RpcError
from .v1 import jobs_pb2, path_pb2

_TERMINAL: dict[str, dict[str, t.Any]] = {
    'worker_session_isolation': {
        'description': ["The core's own setting (since 2.21). If not, tasks on the controller have the run's terminal, which jobs of an agent have not."],
        'type': 'bool',
        'default': True,
        'vars': [{'name': 'ansible_worker_session_isolation'}],
        'env': [{'name': 'ANSIBLE_WORKER_SESSION_ISOLATION'}],
        'ini': [{'section': 'defaults', 'key': 'worker_session_isolation'}],
    }
}


class LocalConnection(connection.MuxConnection):
    """In front of ansible.builtin.local. Modules run in the agent; commands and files need no machine but this one, so that the
    original's own methods are the shortest way and exactly the plain one."""

    mux_definitions: t.ClassVar[dict[str, dict[str, t.Any]]] = {**connection.DEFINITIONS, **_TERMINAL}

    if t.TYPE_CHECKING:
        cwd: str | bytes | None

    def mux_enabled(self) -> bool:
        return super().mux_enabled() and bool(hops.option(self, 'worker_session_isolation', True))

    def mux_account(self, interpreter: str = '') -> path_pb2.Hop:
        return hops.local(interpreter)

    def mux_far(self) -> bool:
        return False

    def mux_process(self) -> jobs_pb2.Process | None:
        process = jobs_pb2.Process(cwd=to_bytes(self.cwd or ''))
        if os.environ != daemon.START_ENVIRON:
            for name, value in os.environb.items():
                process.environ.add(name=name, value=value)
        return process

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> connection.Result:
        token = self._mux_token(in_data, cmd) if self.mux_enabled() else None
        if token is None:
            self.mux_run_errands()
            return self.mux_command(cmd, connection.stock(in_data), sudoable)
        if not self._connected:
            self._connect()  # type: ignore[attr-defined]
        display.vvv(f'EXEC {to_text(cmd)}', self.mux_host())
        return self.mux_module(token, cmd)

    def mux_command(self, cmd: str, in_data: bytes | None, sudoable: bool) -> connection.Result:
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)  # type: ignore[misc,no-any-return]

    def put_file(self, in_path: str, out_path: str) -> t.Any:
        folder = self._mux_folder
        if folder is not None and folder.holds(out_path):
            source = unfrackpath(in_path, basedir=self.cwd)
            with contextlib.suppress(OSError):  # the original says it better
                file = errands.File.take(source, out_path)
                file.mode = 0o666 & ~connection.umask()
                folder.files.append(file)
                return None
            self.mux_run_errands()
        return super().put_file(in_path, out_path)  # type: ignore[misc]

    def fetch_file(self, in_path: str, out_path: str) -> t.Any:
        self.mux_run_errands()
        return super().fetch_file(in_path, out_path)  # type: ignore[misc]

    def mux_run_errands(self, ways: t.Iterable[t.Callable[[], path_pb2.Path]] = ()) -> None:
        folder = self._mux_folder
        if folder is not None and (folder.at is None or len(folder.at.hops) == 1):
            folder.run_here()
            folder.at = self.mux_path()
        super().mux_run_errands(ways)

    def mux_remove(self) -> None:
        if self._mux_folder is not None and not self._mux_folder.foreign:
            folder, self._mux_folder = self._mux_folder, None
            folder.remove_here()
        super().mux_remove()

    def reset(self) -> None:
        """The next module starts a new agent, for a reset is what a user does whose groups or limits have changed."""
        super().reset()  # type: ignore[misc]
        if self.mux_enabled():
            with contextlib.suppress(RpcError):
                connection.session().reset(self.mux_host(), self.mux_path())
