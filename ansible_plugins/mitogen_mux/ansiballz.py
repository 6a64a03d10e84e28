"""The way without seams: a payload that the core has built arrives whole, as the input of a command, and is taken apart again.

What is taken apart was written by this very process's ansible-core; whatever is not exactly in its form is left as it is, and the command
runs as it stands."""

from __future__ import annotations

import ast
import base64
import dataclasses
import hashlib
import io
import os
import re
import shlex
import typing as t
import zipfile

from . import compat, hops, payload

_MARK = b'\n_ANSIBALLZ_WRAPPER = True'

_TO_2_18 = {
    'zip_data': re.compile(rb'^    ZIPDATA = (.*)$', re.M),
    'module_fqn': re.compile(rb'^        runpy\.run_module\(mod_name=(\'[^\']+\'), init_globals=dict\(', re.M),
    'params': re.compile(rb'^    ANSIBALLZ_PARAMS = (.*)$', re.M),
    'ansible_module': re.compile(rb'mkdtemp\(prefix=\'ansible_\' \+ (\'[^\']+\') \+', re.M),
}
_LIMIT_TO_2_18 = re.compile(rb'requested_soft = min\(existing_hard, (\d+)\)')

_SINCE_2_19 = ('ansible_module', 'module_fqn', 'profile', 'rlimit_nofile', 'params', 'extensions', 'zip_data')
_UNUSED = ('date_time', 'secrets')

_ASSIGNMENT = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)=(.*)', re.S)


@dataclasses.dataclass(frozen=True)
class Zip:
    """The files of a payload as they came."""

    name: str
    fqn: str
    data: str  # base64

    def key(self) -> bytes:
        """The payload's name: its content."""
        return hashlib.sha256(f'zip\0{compat.CORE_ROOT}\0{self.fqn}\0{self.data}'.encode()).digest()

    def build(self) -> payload.Payload:
        """The manifest of the zip's files. It has no inputs: it is named by its content."""
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(self.data))) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        return payload.assemble(files, self.fqn, any(_shadows(path, data) for path, data in files.items()), [])


def token(connection: t.Any, in_data: bytes, cmd: str, escalation: hops.Escalation | None) -> payload.Token | None:
    """The payload as a token; None if this is no payload, or its command is more than a call of the interpreter."""
    end = in_data.find(b'\n')
    if not in_data.startswith(b'#!') or _MARK not in in_data[:4096]:
        return None
    values = _values(in_data)
    if values is None:
        return None
    interpreter = connection._shell.build_module_command('', in_data[:end].decode(), '').strip()
    environment = _environment(connection, cmd, escalation, interpreter)
    if environment is None:
        return None
    made = payload.Token()
    made.source = Zip(values['ansible_module'], values['module_fqn'], values['zip_data'])
    made.params = values['params'].encode()
    if not payload.fits(made.params):
        return None
    made.environment = environment
    made.interpreter = interpreter
    made.rlimit_nofile = values['rlimit_nofile']
    made.stock = lambda: in_data
    return made


def _values(in_data: bytes) -> dict[str, t.Any] | None:
    """What the wrapper was filled with."""
    if compat.BUILT_MODULE is None:
        if os.environ.get('_ANSIBLE_COVERAGE_CONFIG'):
            return None
        found = {name: pattern.search(in_data) for name, pattern in _TO_2_18.items()}
        limit = _LIMIT_TO_2_18.search(in_data)
        values = {name: ast.literal_eval(match[1].decode()) for name, match in found.items() if match}
        values['rlimit_nofile'] = int(limit[1]) if limit else 0
        return values if len(values) == len(_TO_2_18) + 1 else None
    _, _, call = in_data.rpartition(b'\n    _ansiballz_main(\n')
    values = {}
    for line in call.decode().removesuffix('\n)\n').split('\n'):
        name, _, value = line.partition('=')
        if name in _SINCE_2_19:
            values[name] = ast.literal_eval(value.removesuffix(','))
        elif name not in _UNUSED:
            return None
    if len(values) != len(_SINCE_2_19) or values['extensions'] or values['profile'] != compat.PROFILE:
        return None
    return values


def _environment(connection: t.Any, cmd: str, escalation: hops.Escalation | None, interpreter: str) -> list[tuple[bytes, bytes]] | None:
    """The variables before the interpreter in a command that the core built. It is taken apart only if putting it together again gives
    the same text."""
    if escalation is not None:
        inner = escalation.command
    else:
        executable = connection._play_context.executable
        words = shlex.split(cmd)
        if not executable or cmd != f'{executable} -c {shlex.quote(words[-1])}':
            return None
        inner = words[-1]
        tail = connection._shell.append_command('', 'sleep 0')  # up to 2.20
        inner = inner.removesuffix(tail.strip()).rstrip() if inner.endswith(' sleep 0') else inner
    if not inner.endswith(interpreter):
        return None
    prefix = inner[: -len(interpreter)].strip()
    result: dict[str, str] = {}
    for word in shlex.split(prefix):
        match = _ASSIGNMENT.fullmatch(word)
        if not match:
            return None
        result[match[1]] = match[2]
    if connection._shell.env_prefix(**result) != prefix:
        return None
    return payload.environment(result)


def _shadows(path: str, data: bytes) -> bool:
    """Whether a file of the core's module_utils is not the core's."""
    if not path.startswith('ansible/module_utils/') or path == 'ansible/module_utils/__init__.py':
        return False
    try:
        with open(os.path.join(compat.CORE_ROOT, path), 'rb') as file:
            return file.read() != data
    except OSError:
        return False
