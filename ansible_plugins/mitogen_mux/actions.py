"""Actions in few round trips: the helpers of ActionBase whose answer is known beforehand, or is not needed at once, become errands; and
an action that copies a file asks its second question with the first.

The actions themselves stay the core's own. Each of these functions gives what the original would; where it cannot tell, it calls it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins import action as action_plugins
from ansible.plugins.action import copy as copy_action

from . import compat, display, errands, payload, rehearsal

_PLAIN_PATH = re.compile(r'/[A-Za-z0-9_./@:+,=-]+')
"""Paths that are the same before and after a shell has seen them."""

_PASSING = frozenset(f'ansible.plugins.action.{name}' for name in ('copy', 'template', 'assemble', 'unarchive'))
"""Actions of the core that put files for their very next module, and for nothing else."""

_ONE_MODULE = frozenset(f'ansible.plugins.action.{name}' for name in ('command', 'normal'))
"""Those that run one module, and ask nothing after it. ``shell`` is ``command``."""

Ours = t.Callable[[t.Any], bool]


def install(ours: Ours) -> None:
    """Replaces the helpers, for actions whose connection is ``ours``."""
    base = action_plugins.ActionBase
    for replace in (_make_tmp_path, _remove_tmp_path, _fixup_perms2, _remote_expand_user):
        setattr(base, replace.__name__, replace(getattr(base, replace.__name__), ours))
    action_plugins.discover_interpreter = _discover_interpreter(action_plugins.discover_interpreter, ours)
    copy_action.ActionModule._copy_file = _copy_file(copy_action.ActionModule._copy_file, ours)


def _make_tmp_path(original: t.Callable[..., str], ours: Ours) -> t.Callable[..., str]:
    @functools.wraps(original)
    def make_tmp_path(self: t.Any, remote_user: str | None = None) -> str:
        shell = self._connection._shell
        if not ours(self._connection) or C.DEFAULT_KEEP_REMOTE_FILES or self._task.async_val or self._connection.mux_folder() is not None:
            return original(self, remote_user)
        if getattr(self._connection, '_remote_is_local', False):
            tmpdir = C.DEFAULT_LOCAL_TMP
        else:
            tmpdir = self._remote_expand_user(self.get_shell_option('remote_tmp', default='~/.ansible/tmp'), sudoable=False)
        foreign = bool(self._is_become_unprivileged())
        if foreign and compat.COPY_CLEARS_ACLS:
            return original(self, remote_user)
        name = shell._generate_temp_dir_name()
        path = _made_by(shell, name, foreign, tmpdir)
        if path is None:
            return original(self, remote_user)

        def explain(message: str) -> t.NoReturn:
            shell.tmpdir = None
            self._connection.mux_plan(None)
            try:
                original(self, remote_user)  # raises what there is to say
            except AnsibleError as error:
                raise error from None
            self._remove_tmp_path(shell.tmpdir)
            raise AnsibleConnectionFailure(f'Failed to create temporary directory. {message}') from None

        self._connection.mux_plan(errands.Folder(path, foreign, _is_core(self, _PASSING), explain, self._connection.mux_depth()))
        self._cleanup_remote_tmp = True
        shell.tmpdir = path
        return path

    return make_tmp_path


def _made_by(shell: t.Any, name: str, foreign: bool, tmpdir: str) -> str | None:
    """The folder that the shell plugin's command would make; None if that cannot be told without running it."""
    try:
        command = shell.mkdtemp(basefile=name, system=foreign, tmpdir=tmpdir)
        bases = [tmpdir, tmpdir.rstrip('/'), *(shell.get_option('system_tmpdirs') if foreign else [])]
    except (KeyError, TypeError, AttributeError):
        return None
    for base in bases:
        path = shell.join_path(base, name)
        if f'mkdir "` echo {path} `"' in command and _PLAIN_PATH.fullmatch(path) and os.path.normpath(path) == path:
            return str(path)
    return None


def _remove_tmp_path(original: t.Callable[..., None], ours: Ours) -> t.Callable[..., None]:
    @functools.wraps(original)
    def remove_tmp_path(self: t.Any, tmp_path: str | None, force: bool = False) -> None:
        shell = self._connection._shell
        name = tmp_path if tmp_path is not None else shell.tmpdir
        if not ours(self._connection) or self._connection.mux_folder(name) is None or not (force or self._should_remove_tmp_path(name)):
            return original(self, tmp_path, force)
        try:
            self._connection.mux_remove()
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            display.warning(f'Error deleting remote temporary files (rc: 1, stderr: {error}}})')
            return None
        shell.tmpdir = None
        return None

    return remove_tmp_path


def _fixup_perms2(original: t.Callable[..., t.Any], ours: Ours) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def fixup_perms2(self: t.Any, remote_paths: t.Any, remote_user: str | None = None, execute: bool = True) -> t.Any:
        folder = self._connection.mux_folder() if ours(self._connection) else None
        waiting = {file.dest: file for file in folder.files} if folder is not None else {}
        if folder is None or not all(path in waiting or path == folder.path for path in remote_paths):
            return original(self, remote_paths, remote_user, execute)
        if folder.at is not None and not waiting.keys() & set(remote_paths):
            return original(self, remote_paths, remote_user, execute)
        if execute or folder.foreign:
            for path in waiting.keys() & set(remote_paths):
                waiting[path].mode |= 0o700
        folder.fixes.append(lambda: original(self, remote_paths, remote_user, execute))
        return remote_paths

    return fixup_perms2


def _remote_expand_user(original: t.Callable[..., str], ours: Ours) -> t.Callable[..., str]:
    @functools.wraps(original)
    def remote_expand_user(self: t.Any, path: str, *args: t.Any, **kwargs: t.Any) -> str:
        remember = self._connection.mux_remembering if ours(self._connection) else contextlib.nullcontext
        with remember():
            return original(self, path, *args, **kwargs)

    return remote_expand_user


def _discover_interpreter(original: t.Callable[..., str], ours: Ours) -> t.Callable[..., str]:
    @functools.wraps(original)
    def discover_interpreter(action: t.Any, interpreter_name: str, discovery_mode: str, task_vars: t.Any) -> str:
        if not ours(action._connection):
            return original(action, interpreter_name, discovery_mode, task_vars)
        with action._connection.mux_discovering(compat.likely_interpreters(discovery_mode)):
            return original(action, interpreter_name, discovery_mode, task_vars)

    return discover_interpreter


def _copy_file(original: t.Callable[..., t.Any], ours: Ours) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def copy_file(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        connection = self._connection
        if not ours(connection) or not connection.mux_far() or not _is_core(self, _PASSING) or display.verbosity() > 2:
            return original(self, *args, **kwargs)
        answers: list[dict[str, t.Any]] = []
        stat = self._execute_remote_stat

        def execute_remote_stat(*stat_args: t.Any, **stat_kwargs: t.Any) -> dict[str, t.Any]:
            connection.mux_rehearse(lambda: rehearsal.outcomes(self, lambda twin: original(twin, *args, **kwargs), answers))
            try:
                answer = t.cast(dict[str, t.Any], stat(*stat_args, **stat_kwargs))
            finally:
                connection.mux_rehearse(None)
            answers.append(dict(answer))
            return answer

        self._execute_remote_stat = execute_remote_stat
        try:
            with connection.mux_last_file(_last_file(self, *args, **kwargs)):
                return original(self, *args, **kwargs)
        finally:
            del self._execute_remote_stat
            connection.mux_forget()

    return copy_file


def _last_file(action: t.Any, _source: str, source_rel: str, content: t.Any, _tempfile: t.Any, dest: str, *_: t.Any, **__: t.Any) -> str:
    """The destination, if there is one file only: those of a folder have its name before theirs, or are of a source that ends with a slash."""
    return dest if content is not None or source_rel == os.path.basename(str(action._task.args.get('src') or '/')) else ''


def glances(action: t.Any, source: payload.Source) -> bool:
    """Whether this module is the core's stat, of which the action wants no more than copying needs: these run it for nothing else."""
    return errands.core_module_of(source.path) == 'stat' and _is_core(action, _PASSING) and display.verbosity() <= 2


def asks_one_module(action: t.Any, source: payload.Source) -> bool:
    """Whether the action asks nothing after this module, and nobody else has to know what came of it: it is one of the core's whose text has nothing
    of facts."""
    return _is_core(action, _ONE_MODULE) and bool(errands.core_module_of(source.path)) and b'ansible_facts' not in source.data


def _is_core(action: t.Any, modules: frozenset[str]) -> bool:
    """Whether the action is one of the core's own, not one that stands in for it."""
    name = type(action).__module__
    return name in modules and _in_core(getattr(sys.modules.get(name), '__file__', None) or '')


@functools.cache
def _in_core(file: str) -> bool:
    return os.path.realpath(file).startswith(os.path.join(compat.CORE_ROOT, 'ansible', 'plugins', 'action', ''))
