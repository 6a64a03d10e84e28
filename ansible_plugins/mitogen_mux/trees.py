"""Folders that are copied whole: what copy would ask and send file by file goes in two requests, one that looks and one that does.

The action stays the core's own: it walks its tree, and gets for each file, folder and link the answer that is already known. What is left
out here, or by the module on the other side (modules/mitogen_tree.py), it does as always."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import stat
import tempfile
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.parsing.vault import b_HEADER
from ansible.plugins.action import copy as copy_action
from ansible.plugins.loader import module_loader
from ansible.utils.hashing import checksum

from . import compat, display

Ours = t.Callable[[t.Any], bool]

MODULES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'modules')

_HANDED_ON = ('owner', 'group', 'attributes', 'attr', 'seuser', 'serole', 'setype', 'selevel', 'unsafe_writes', 'directory_mode', 'mode')
"""Arguments of copy that the module takes."""

_NEEDLESS = ('src', 'dest', 'local_follow', 'decrypt', 'force', 'follow', 'remote_src')
"""Arguments of copy that are looked at here, or that have done their work when the tree has been walked."""

_NOT_FOR_US = ('backup', 'checksum', 'content', 'validate')
"""Arguments of copy that must not be set."""

_action: contextvars.ContextVar[t.Any] = contextvars.ContextVar('mitogen_mux_copy', default=None)
"""The action whose tree is being walked: _walk_dirs is not told."""


def install(ours: Ours) -> None:
    """Lets the action copy give trees to us."""
    module_loader.add_directory(MODULES)
    action = copy_action.ActionModule
    action.run = _run(action.run, ours)
    action._copy_file = _copy_file(action._copy_file)
    copy_action._walk_dirs = _walk_dirs(copy_action._walk_dirs)


def _run(original: t.Callable[..., t.Any], ours: Ours) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def run(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if type(self) is not copy_action.ActionModule or not ours(self._connection) or not _covered(self):
            return original(self, *args, **kwargs)
        reset = _action.set(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _action.reset(reset)
            for name in ('_execute_module', 'mux_tree'):
                self.__dict__.pop(name, None)

    return run


def _covered(action: t.Any) -> bool:
    """Whether the task asks for nothing but to put files there."""
    task = action._task
    if not task.args.keys() <= {*_HANDED_ON, *_NEEDLESS, *_NOT_FOR_US} or any(task.args.get(name) for name in _NOT_FOR_US):
        return False
    if task.check_mode or task.diff or C.DEFAULT_KEEP_REMOTE_FILES:
        return False
    try:
        return boolean(task.args.get('force', True)) and not boolean(task.args.get('remote_src', False))
    except TypeError:
        return False  # the module says it better


def _walk_dirs(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def walk_dirs(*args: t.Any, **kwargs: t.Any) -> t.Any:
        found = original(*args, **kwargs)
        action = _action.get()
        if action is not None and len(found['files']) > 1 and (found['directories'] or not boolean(action._task.args.get('follow', False), strict=False)):
            action.mux_tree = Tree(action, found)
        return found

    return walk_dirs


def _copy_file(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    @functools.wraps(original)
    def copy_file(self: t.Any, source_full: str, source_rel: str, content: t.Any, content_tempfile: t.Any, dest: str, task_vars: t.Any, follow: bool) -> t.Any:
        tree = self.__dict__.get('mux_tree')
        answer = tree.file(source_rel, dest, task_vars) if tree is not None else None
        return original(self, source_full, source_rel, content, content_tempfile, dest, task_vars, follow) if answer is None else answer

    return copy_file


class Entry(dict[str, t.Any]):
    """What mitogen_tree is told of a file, folder or link; ``source`` is the file here."""

    source = ''


class Tree:
    """A folder that is copied. ``found`` is what the core has found in it.

    All goes in the core's order, and ends at the first thing that is left to the core: what comes after that is sent once the core has
    done it, for it may fail, and then nothing comes after it."""

    def __init__(self, action: t.Any, found: dict[str, t.Any]) -> None:
        self._action, self._found = action, found
        self._dest = ''
        self._answers: dict[str, dict[str, t.Any]] = {}
        self._left = ''
        """The file that is left to the core."""

    def file(self, path: str, dest: str, task_vars: t.Any) -> dict[str, t.Any] | None:
        """What copying one file came to; None: the core has to do it."""
        if path not in self._answers and path != self._left:
            self._dest = dest
            self._action._execute_module = functools.partial(self._module, type(self._action)._execute_module)
            entries, temporary = self._entries(path)
            try:
                self._send(entries, task_vars)
            finally:
                for name in temporary:
                    self._action._loader.cleanup_tmp_file(name)
            if path not in self._answers:
                self._left = path
        return self._answers.get(path)

    def _module(self, original: t.Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> t.Any:
        """_execute_module of the action, for folders and links that are there already."""
        asked = kwargs.get('module_args') or {}
        if kwargs.get('module_name') == 'ansible.legacy.file' and asked.get('state') in ('directory', 'link'):
            path = str(asked.get('path', ''))
            answer = self._answers.get(path[len(self._dest) :].strip('/')) if path.startswith(self._dest) else None
            if answer is not None:
                return answer
        return original(self._action, *args, **kwargs)

    def _send(self, entries: list[Entry], task_vars: t.Any) -> None:
        files = [entry for entry in entries if entry['kind'] == 'file']
        looked = self._run(files, [], True, task_vars).get('answers') if files else None
        if looked is None:
            return
        for number, (entry, there) in enumerate(zip(files, looked)):
            if there == 'leave':
                del entries[number:]
                break
            if there != 'write':
                entry['checksum'] = checksum(entry.source)
                if entry['checksum'] == there:
                    entry['kind'] = 'same'
        written = [entry.source for entry in entries if entry['kind'] == 'file']
        display.vvv(f'PUT {len(written)} of {len(files)} FILES TO {self._dest}', self._action._connection.mux_host())
        done = self._run(entries, written, False, task_vars)
        if 'answers' not in done:
            done.setdefault('failed', True)
            self._answers.update({entry['path']: done for entry in entries})
            return
        for entry, answer in zip(entries, done['answers']):
            if answer != 'leave':
                self._answers[entry['path']] = {'changed': answer == 'changed', 'diff': [], 'checksum': entry.get('checksum', '')}

    def _entries(self, first: str) -> tuple[list[Entry], list[str]]:
        """What the core has still to do, from the file ``first`` on up to what cannot be read here, or means more to a module than a name;
        and the temporary files made for it."""
        entries: list[Entry] = []
        temporary: list[str] = []
        above = set()
        preserve = self._action._task.args.get('mode') == 'preserve'
        decrypt = boolean(self._action._task.args.get('decrypt', True), strict=False)
        for full, path in self._found['files']:
            parent = path if compat.copy_knows_parents() else ''
            while (parent := os.path.dirname(parent)) and parent not in above:
                above.add(parent)
            if not entries and path != first:
                continue
            try:
                source = real_file(self._action._loader, full, decrypt)
                if source != full:
                    temporary.append(source)
                info = os.stat(to_bytes(source, errors='surrogate_or_strict'))
            except (AnsibleError, OSError):
                return entries, temporary
            if not stat.S_ISREG(info.st_mode) or not _is_plain(path):
                return entries, temporary
            entry = Entry(kind='file', path=path, size=info.st_size)
            entry.source = source
            if preserve:
                entry['mode'] = f'0{stat.S_IMODE(info.st_mode):03o}'
            entries.append(entry)
        entries += [Entry(kind='directory', path=path) for _, path in self._found['directories'] if path not in above and _is_plain(path)]
        entries += [Entry(kind='link', path=path, target=target) for target, path in self._found['symlinks'] if _is_plain(path)]
        return entries, temporary

    def _run(self, entries: list[Entry], sources: list[str], look: bool, task_vars: t.Any) -> dict[str, t.Any]:
        """Runs the module."""
        args: dict[str, t.Any] = {'dest': self._dest, 'look': look}
        if not look:
            args |= {name: value for name, value in self._action._task.args.items() if name in _HANDED_ON and value != 'preserve'}
        with _written(json.dumps(entries).encode()) as listing:
            index = b''.join(to_bytes(os.path.abspath(name), errors='surrogate_or_strict') + b'\0' for name in (listing, *sources))
            with _written(index) as name, self._action._connection.mux_input(name):
                execute = type(self._action)._execute_module
                return t.cast(dict[str, t.Any], execute(self._action, module_name='mitogen_tree', module_args=args, task_vars=task_vars))


def real_file(loader: t.Any, path: str, decrypt: bool) -> str:
    """get_real_file of the loader. It is asked only where the answer may be another path: it takes ten times as long to find that out."""
    name = to_bytes(path, errors='surrogate_or_strict')
    if not os.path.isabs(path) or os.path.normpath(path) != path or not _is_plain(path) or not stat.S_ISREG(os.stat(name).st_mode):
        return t.cast(str, loader.get_real_file(path, decrypt=decrypt))
    if decrypt:
        with open(name, 'rb', buffering=0) as file:
            if file.read(len(b_HEADER)) == b_HEADER:
                return t.cast(str, loader.get_real_file(path, decrypt=decrypt))
    return path


def _is_plain(path: str) -> bool:
    """Whether modules take it for what it is: they put in the values of variables and home directories."""
    return '$' not in path and '~' not in path


@contextlib.contextmanager
def _written(content: bytes) -> t.Iterator[str]:
    """A file of the controller, for a while."""
    descriptor, name = tempfile.mkstemp(dir=C.DEFAULT_LOCAL_TMP)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(content)
        yield name
    finally:
        os.unlink(name)
