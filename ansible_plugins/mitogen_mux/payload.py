"""Payloads: which files a module needs, by Ansible's own finder, and under which key the daemon keeps them.

It knows nothing of connections or actions, and never decides what goes into a payload: the core's ``recursive_finder`` and
``_add_module_to_zip`` do, writing into an archive that only remembers what it was given."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import json
import os
import re
import stat
import sys
import threading
import typing as t

from ansible import constants as C
from ansible.executor import module_common
from ansible.module_utils.common.text.converters import to_bytes
from ansible.release import __version__
from ansible.utils.collection_loader import AnsibleCollectionConfig

from . import baton, compat
from .v1 import files_pb2

_RESOURCE_READER = re.compile(rb'importlib[._]resources|pkgutil\.get_data|importlib import resources')
"""Code that wants its package on disk."""

_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')

_START_OF_PYTHON = ('PYTHON', 'LD_', 'DYLD_', 'GLIBC_TUNABLES', 'MALLOC_')
"""Variables that an interpreter, or its loader, reads when it starts: too late for a warm one."""

_RESPAWN = 'ansible/module_utils/common/respawn.py'
_EMBED = 'ansible/module_utils/embed.py'

_finder_lock = threading.Lock()


class NotCovered(Exception):
    """The payload has a file whose origin is not known, so that a later change of it could not be seen."""


MAX_PARAMS = 1 << 20
"""Longest parameters, in bytes, that go in a request, which is one message. The stock payload is a command's input and has no limit."""


MAX_SECRETS = 32 << 10
"""Longest texts in parameters, in bytes together, that a module is told not to show: they go in one frame of the agent's protocol."""


def fits(params: bytes) -> bool:
    """Whether a module with these parameters can be asked for."""
    return len(params) <= MAX_PARAMS and (len(params) <= MAX_SECRETS or sum(map(len, compat.secrets_in(params))) <= MAX_SECRETS)


class Token(bytes):
    """What the build seam gives Ansible in place of a payload, and the exec seam takes back. Should anybody run its text all the same,
    it fails and says so."""

    source: Buildable
    params: bytes
    environment: list[tuple[bytes, bytes]]
    interpreter: str
    rlimit_nofile: int
    glance = False
    """Whether its action only wants to know if a file is there, and which."""
    last = False
    """Whether its action is known to ask nothing after it, and what it says concerns nobody else."""
    stock: t.Callable[[], bytes]
    """Gives the payload that the core would have built."""

    def __new__(cls) -> Token:
        return super().__new__(cls, b'raise SystemExit("this is a placeholder of mitogen-mux, not a module")\n')


class Buildable(t.Protocol):
    """A module whose payload can be made when the daemon wants it."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def fqn(self) -> str:
        """The full name by which the payload runs it."""

    def key(self) -> bytes:
        """The payload's name at the daemon."""

    def build(self) -> Payload:
        """Makes the payload."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A new-style Python module as its file has it."""

    name: str = dataclasses.field(compare=False)
    """For people: an action may call by another name what its task calls by this."""
    fqn: str
    path: str
    data: bytes

    def key(self) -> bytes:
        """The payload's name: all that decides which files the core finds, but for their content, which the inputs stand for."""
        what = [1, __version__, compat.CORE_ROOT, sys.version_info[:3], self.path, self.fqn, _search_paths(), _collection_paths()]
        return hashlib.sha256(json.dumps(what).encode()).digest()

    def build(self) -> Payload:
        """Lets the core find the files. Raises what the core raises for imports that it cannot find, and NotCovered."""
        archive, record = _Archive(), _Record()
        record.file(self.path)
        record.file(compat.ROUTING)
        with _finder_lock, record.watch():
            compat.fill_payload(archive, self.name, self.fqn, self.path, self.data)
        return assemble(archive.files, self.fqn, record.shadows(archive.files), record.inputs(self, archive.files))


@dataclasses.dataclass
class Payload:
    """A manifest with what it was made from."""

    manifest: files_pb2.Manifest
    inputs: list[files_pb2.OfferRequest.Input]
    blobs: dict[bytes, bytes]


def classify(name: str, path: str) -> Source | None:
    """Reads the module's file; None if it is no new-style Python module. The tests and their order are the core's."""
    with open(path, 'rb') as file:
        data = file.read()
    if module_common._is_binary(data):
        return None
    if module_common.REPLACER in data:
        data = data.replace(module_common.REPLACER, b'from ansible.module_utils.basic import *')
    elif not module_common.NEW_STYLE_PYTHON_MODULE_RE.search(data):
        return None
    try:
        fqn = module_common._get_ansible_module_fqn(path)
    except ValueError:
        fqn = compat.surrogate_fqn(name)
    return Source(name, fqn, path, data)


def environment(variables: t.Mapping[str, t.Any]) -> list[tuple[bytes, bytes]] | None:
    """As the shell would have it after the core's prefix ``NAME=value``; None for what only a new interpreter would see."""
    result = []
    for name, value in variables.items():
        if not _NAME.fullmatch(name) or name.startswith(_START_OF_PYTHON):
            return None
        result.append((to_bytes(name), to_bytes(str(value), errors='surrogate_or_strict')))
    return result


def assemble(files: dict[str, bytes], module: str, shadowed: bool, inputs: list[files_pb2.OfferRequest.Input]) -> Payload:
    """The manifest of these files, in their order. ``shadowed``: a file of the core's module_utils is not the core's."""
    manifest = files_pb2.Manifest(module=module, loader=compat.LOADER, profile=compat.PROFILE)
    blobs: dict[bytes, bytes] = {}
    for path, data in files.items():
        digest = hashlib.sha256(data).digest()
        manifest.entries.add(path=path, sha256=digest, size=len(data))
        blobs[digest] = data
        if path in (_RESPAWN, _EMBED) or _RESOURCE_READER.search(data):
            manifest.real_path = True
    if not shadowed:
        manifest.preload.extend(name for name in compat.preload_roots() if name.replace('.', '/') + '.py' in files)
    return Payload(manifest, inputs, blobs)


@contextlib.contextmanager
def building(key: bytes) -> t.Iterator[bool]:
    """Keeps the workers of one run from building the same payload side by side. Gives True to the one that shall build, False to one
    that had to wait: then another has, and the request is worth another try."""
    path = os.path.join(C.DEFAULT_LOCAL_TMP, f'mitogen-mux-{key.hex()[:32]}.lock')
    with open(path, 'ab') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with baton.waiting():
                fcntl.flock(lock, fcntl.LOCK_EX)
            mine = False
        else:
            mine = True
        try:
            yield mine
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # not by closing alone: a process forked meanwhile has the file open too


def silent(token: Token) -> bool:
    """Whether the task is not to be logged."""
    return bool(json.loads(token.params).get('ANSIBLE_MODULE_ARGS', {}).get('_ansible_no_log', True))


def removed_account(token: Token) -> str:
    """The account that a module is about to remove. The system refuses that while the account has processes, and one that was become
    has an agent."""
    if token.source.fqn != 'ansible.modules.user':
        return ''
    params = json.loads(token.params).get('ANSIBLE_MODULE_ARGS', {})
    if params.get('state') != 'absent' or params.get('_ansible_check_mode'):
        return ''
    return str(params.get('name') or params.get('user') or '')


class _Archive:
    """The part of zipfile.ZipFile that the core uses to write a payload."""

    compression = 0

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def writestr(self, info: t.Any, data: bytes | str) -> None:
        self.files[info.filename] = bytes(data) if isinstance(data, bytes) else data.encode()

    def namelist(self) -> list[str]:
        return list(self.files)


class _Record:
    """Which files and folders the core's finder looked at."""

    def __init__(self) -> None:
        self._origins: dict[str, str] = {}  # path in the payload: file
        self._redirected: set[str] = set()  # paths in the payload that the core made up from routing
        self._files: dict[str, os.stat_result] = {}
        self._folders: dict[str, int] = {}
        self._absent: set[str] = set()

    def file(self, path: str) -> None:
        """The file's content decides about the payload."""
        self._files[path] = os.stat(path)

    def searched(self, path: str) -> None:
        """A file in that folder would have been found; or the folder itself, would it exist."""
        if path in self._folders or path in self._absent:
            return
        try:
            info = os.stat(path)
        except OSError:
            self._absent.add(path)
        else:
            if stat.S_ISDIR(info.st_mode):
                self._folders[path] = info.st_mtime_ns

    def wanted(self, path: str) -> None:
        """A file that counts whether it is there or not."""
        try:
            self.file(path)
        except OSError:
            self._absent.add(path)

    @contextlib.contextmanager
    def watch(self) -> t.Iterator[None]:
        """Lets the core's locators tell where they look, as long as it lasts."""
        legacy, collection = module_common.LegacyModuleUtilLocator, module_common.CollectionModuleUtilLocator
        base = module_common.ModuleUtilLocatorBase
        find_legacy, find_collection, redirect = legacy._find_module, collection._find_module, base._handle_redirect

        def legacy_find(locator: t.Any, parts: tuple[str, ...]) -> bool:
            found = bool(find_legacy(locator, parts))
            self._legacy(locator._mu_paths, parts, locator._info.origin if found else None)
            return found

        def collection_find(locator: t.Any, parts: tuple[str, ...]) -> bool:
            found = bool(find_collection(locator, parts))
            self._collection(parts, found)
            return found

        def handle_redirect(locator: t.Any, parts: tuple[str, ...]) -> bool:
            if parts[0] == 'ansible_collections':
                self._collection_roots(parts)
            redirected = bool(redirect(locator, parts))
            if redirected:
                self._redirected.add('/'.join(parts) + '/__init__.py')
            return redirected

        legacy._find_module, collection._find_module, base._handle_redirect = legacy_find, collection_find, handle_redirect
        try:
            yield
        finally:
            legacy._find_module, collection._find_module, base._handle_redirect = find_legacy, find_collection, redirect

    def _legacy(self, bases: list[str], parts: tuple[str, ...], origin: str | None) -> None:
        for base in bases:
            folder = os.path.join(base, *parts[2:-1])
            self.searched(folder)
            self.searched(os.path.join(folder, parts[-1]))
            if origin is not None and origin.startswith(folder + os.sep):
                self._found(parts, origin)
                return

    def _collection(self, parts: tuple[str, ...], found: bool) -> None:
        if len(parts) < 6:
            return
        for root in self._collection_roots(parts):
            stem = os.path.join(root, *parts[3:])
            self.searched(os.path.dirname(stem))
            self.searched(stem)
            for origin in (os.path.join(stem, '__init__.py'), stem + '.py'):
                if found and os.path.isfile(origin):
                    self._found(parts, origin)
                    return

    def _collection_roots(self, parts: tuple[str, ...]) -> list[str]:
        """The folders of a collection, and all that decides which they are."""
        for path in _collection_paths():
            self.searched(os.path.join(path, *parts[:3]))
        try:
            package = importlib.import_module('.'.join(parts[:3]))
        except ImportError:
            return []
        roots = [str(path) for path in getattr(package, '__path__', ())]
        for root in roots:
            self.wanted(os.path.join(root, 'meta', 'runtime.yml'))
        return roots

    def _found(self, parts: tuple[str, ...], origin: str) -> None:
        self.file(origin)
        tail = '/__init__.py' if os.path.basename(origin) == '__init__.py' else '.py'
        self._origins['/'.join(parts) + tail] = origin

    def shadows(self, files: dict[str, bytes]) -> bool:
        """Whether a file of the core's own module_utils is replaced by another: then nothing may be imported ahead of the job."""
        for path in files:
            origin = self._origins.get(path)
            if origin is None or os.path.realpath(origin).startswith(compat.CORE_MODULE_UTILS + os.sep):
                continue
            if os.path.exists(os.path.join(compat.CORE_ROOT, path)):
                return True
        return False

    def inputs(self, source: Source, files: dict[str, bytes]) -> list[files_pb2.OfferRequest.Input]:
        """All that the payload was made from. Raises NotCovered for a file of unknown origin."""
        own = source.fqn.replace('.', '/') + '.py'
        made_up = {own, 'ansible/__init__.py', 'ansible/module_utils/__init__.py', *self._redirected}
        for path, data in files.items():
            if path not in self._origins and path not in made_up and data:
                self._embedded(path, data)
        result = []
        for path, info in self._files.items():
            result.append(
                files_pb2.OfferRequest.Input(
                    path=path, dev=info.st_dev, ino=info.st_ino, size=info.st_size, mtime_ns=info.st_mtime_ns, ctime_ns=info.st_ctime_ns
                )
            )
        for path, mtime in self._folders.items():
            result.append(files_pb2.OfferRequest.Input(path=path, mtime_ns=mtime, directory=True))
        for path in sorted({_highest_absent(path) for path in self._absent}):
            # A name that comes up in a watched folder changes that folder's time.
            if os.path.dirname(path) not in self._folders:
                result.append(files_pb2.OfferRequest.Input(path=path, absent=True))
        return result

    def _embedded(self, path: str, data: bytes) -> None:
        """A resource (2.21): the core takes it from beside its package."""
        roots = [compat.CORE_ROOT, *(os.path.dirname(root) for root in _collection_paths()), *_collection_paths()]
        for root in roots:
            origin = os.path.join(root, path)
            with contextlib.suppress(OSError), open(origin, 'rb') as file:
                if file.read() == data:
                    self.file(origin)
                    return
        raise NotCovered(path)


def _highest_absent(path: str) -> str:
    """The folder on the way to the absent path that is not there either: while it is not, nothing below it is."""
    parent = os.path.dirname(path)
    while not os.path.exists(parent):
        path, parent = parent, os.path.dirname(parent)
    return path


def _search_paths() -> list[str]:
    return [str(path) for path in module_common.module_utils_loader._get_paths(subdirs=False)]


def _collection_paths() -> list[str]:
    return [str(path) for path in AnsibleCollectionConfig.collection_paths]
