"""Payloads are the core's, byte for byte; and a change of anything that they were made from is seen."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib
import inspect
import io
import os
import pathlib
import typing as t
import zipfile

import pytest
from ansible.plugins.loader import module_utils_loader

import core
from mitogen_mux import ansiballz, compat, payload


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core keeps built payloads below DEFAULT_LOCAL_TMP; here each test has its own."""
    monkeypatch.setattr(core.C, 'DEFAULT_LOCAL_TMP', str(tmp_path))
    if compat.BUILT_MODULE is None:
        import threading

        from ansible.executor import action_write_locks

        monkeypatch.setitem(action_write_locks.action_write_locks, None, threading.Lock())


def unpack(values: dict[str, t.Any]) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(values['zip_data']))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files(made: payload.Payload) -> dict[str, bytes]:
    for entry in made.manifest.entries:
        assert hashlib.sha256(made.blobs[entry.sha256]).digest() == entry.sha256
        assert entry.size == len(made.blobs[entry.sha256])
    return {entry.path: made.blobs[entry.sha256] for entry in made.manifest.entries}


@pytest.mark.parametrize(('name', 'path'), core.builtin_modules())
def test_manifest_is_the_stock_payload(name: str, path: str) -> None:
    answer = core.stock(name, path, {'x': 'y', '_ansible_version': '2'})
    source = payload.classify(name, path)
    if source is None:
        data = answer[0] if compat.BUILT_MODULE is None else answer.b_module_data
        assert b'_ANSIBALLZ_WRAPPER' not in data
        return
    values = ansiballz._values(compat.built_data(answer))
    assert values is not None
    made = source.build()
    assert list(files(made).items()) == list(unpack(values).items())  # the same files in the same order
    assert made.manifest.module == values['module_fqn']
    assert made.manifest.profile == values.get('profile', '')
    assert compat.encode_params({'x': 'y', '_ansible_version': '2'}) == values['params'].encode()
    assert list(made.manifest.preload) == compat.preload_roots()


@pytest.mark.skipif(compat.BUILT_MODULE is None, reason='up to 2.18 a payload has no call with names')
def test_what_a_later_core_may_add_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    known = compat.built_data(core.stock('ping', core.module_path('ping'), {}))
    assert ansiballz._values(known) is not None
    assert ansiballz._values(known.replace(b'\nextensions=', b'\nnovel=1,\nextensions=')) is None
    assert compat.unknown_to_agents() == set()
    run_module = importlib.import_module(compat.LOADER).run_module
    signature = inspect.signature(run_module)
    for default, unknown in ((1, set()), (inspect.Parameter.empty, {'novel'})):
        novel = inspect.Parameter('novel', inspect.Parameter.KEYWORD_ONLY, default=default)
        monkeypatch.setattr(run_module, '__signature__', signature.replace(parameters=[*signature.parameters.values(), novel]), raising=False)
        assert compat.unknown_to_agents() == unknown


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[list[str]], None]:
    """Tells the core what is secret, and it knows of nothing else; a core that does not ask is not told."""
    if not compat.MASKS_SECRETS:
        return lambda _: None
    from ansible.module_utils._internal import _secrets

    masker = _secrets.SecretMasker()
    monkeypatch.setattr(compat, '_masker', masker)
    return t.cast('t.Callable[[list[str]], None]', masker.register_secret_texts)


def test_secrets_of_a_modules_parameters(register: t.Callable[[list[str]], None]) -> None:
    texts = ['a "quoted" w\u00f6rd', 'two\nlines', 'half\ud800']
    register(texts)
    found = compat.secrets_in(compat.encode_params({'_raw_params': ' '.join(texts), '_ansible_version': '2'}))
    assert found == ([text.encode('utf-8', 'surrogatepass') for text in texts[:1] + texts[2:] + texts[1:2]] if compat.MASKS_SECRETS else [])
    assert compat.secrets_in(b'{"_raw_params": "nothing"}') == []


def test_what_is_too_long_for_a_request(register: t.Callable[[list[str]], None]) -> None:
    long, longer = os.urandom(payload.MAX_SECRETS // 2).hex(), os.urandom(payload.MAX_SECRETS // 2 + 1).hex()
    register([long, longer])
    assert payload.fits(long.encode() * 3) and payload.fits(longer.encode()) is not compat.MASKS_SECRETS
    assert payload.fits(bytes(payload.MAX_PARAMS)) and not payload.fits(bytes(payload.MAX_PARAMS + 1))


@pytest.mark.parametrize(('name', 'real'), [('command', False), ('copy', False), ('setup', False), ('ping', False), ('apt', True), ('dnf', True)])
def test_real_path_only_where_code_wants_its_files_on_disk(name: str, real: bool) -> None:
    source = payload.classify(name, core.module_path(name))
    assert source is not None
    assert source.build().manifest.real_path is real


def role(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, utils: dict[str, str], module: str) -> str:
    """A role's ``library`` and ``module_utils``."""
    for name, text in utils.items():
        file = folder / 'module_utils' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / 'module_utils').mkdir(exist_ok=True)
    (folder / 'library').mkdir()
    path = folder / 'library' / 'mine.py'
    path.write_text(module)
    paths = [str(folder / 'module_utils')]
    monkeypatch.setattr(module_utils_loader, '_get_paths', lambda **_: list(paths))
    return str(path)


MODULE = '#!/usr/bin/python\nfrom ansible.module_utils.basic import AnsibleModule\n'


def test_a_modules_own_utils_do_not_stop_the_preload(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = role(tmp_path, monkeypatch, {'helper.py': 'x = 1\n'}, MODULE + 'from ansible.module_utils.helper import x\n')
    source = payload.classify('mine', path)
    assert source is not None and source.fqn == compat.surrogate_fqn('mine')
    made = source.build()
    assert files(made)['ansible/module_utils/helper.py'] == b'x = 1\n'
    assert list(made.manifest.preload) == compat.preload_roots()


def test_a_shadowed_file_of_the_core_stops_the_preload(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = role(tmp_path, monkeypatch, {'basic.py': 'from ansible.module_utils.common import *\n', 'common/__init__.py': ''}, MODULE)
    source = payload.classify('mine', path)
    assert source is not None
    assert list(source.build().manifest.preload) == []


def changed(inputs: list[t.Any]) -> bool:
    """What the daemon looks at before it uses a payload."""
    for item in inputs:
        try:
            info = os.stat(item.path)
        except OSError:
            if not item.absent:
                return True
            continue
        if item.absent or info.st_mtime_ns != item.mtime_ns:
            return True
        if not item.directory and (info.st_size, info.st_ino, info.st_dev, info.st_ctime_ns) != (item.size, item.ino, item.dev, item.ctime_ns):
            return True
    return False


CHANGES: dict[str, t.Callable[[pathlib.Path], object]] = {
    'the module': lambda folder: (folder / 'library' / 'mine.py').write_text(MODULE + '# \n'),
    'a helper': lambda folder: (folder / 'module_utils' / 'helper.py').write_text('x = 2\n'),
    'a file that shadows': lambda folder: (folder / 'module_utils' / 'basic.py').write_text(''),
    'a package that shadows': lambda folder: (folder / 'module_utils' / 'common').mkdir(),
    'a file in a package that was looked into': lambda folder: (folder / 'module_utils' / 'pack' / 'more.py').write_text(''),
    'a package deeper down': lambda folder: (folder / 'module_utils' / 'pack' / 'sub').mkdir(),
    'a package of the name of a helper': lambda folder: (folder / 'module_utils' / 'helper').mkdir(),
    'a helper gone': lambda folder: (folder / 'module_utils' / 'helper.py').unlink(),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_is_seen(change: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MODULE + 'from ansible.module_utils.helper import x\nfrom ansible.module_utils.pack import thing\n'
    path = role(tmp_path, monkeypatch, {'helper.py': 'x = 1\n', 'pack/__init__.py': 'thing = 1\n'}, text)
    for folder, _, names in os.walk(tmp_path):
        for entry in (folder, *(os.path.join(folder, name) for name in names)):
            os.utime(entry, ns=(1, 1))
    source = payload.classify('mine', path)
    assert source is not None
    inputs = source.build().inputs
    assert not changed(inputs)
    CHANGES[change](tmp_path)
    assert changed(inputs)


def test_what_a_helper_imports_is_what_it_imports_now(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = 'from ansible.module_utils.pack import thing\n'
    path = role(tmp_path, monkeypatch, {'helper.py': 'thing = 1\n', 'pack.py': 'thing = 1\n'}, MODULE + 'from ansible.module_utils.helper import thing\n')
    source = payload.classify('mine', path)
    assert source is not None
    for text, found in (('thing = 1\n', False), (more, True), ('thing = 1\n', False)):
        (tmp_path / 'module_utils' / 'helper.py').write_text(text)
        assert ('ansible/module_utils/pack.py' in files(source.build())) is found


@pytest.mark.skipif(not compat.FINDER_PARSES, reason='up to 2.20 the finder is given trees')
def test_what_modules_share_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, parsed = core.module_common._compile_module_ast, []
    monkeypatch.setattr(core.module_common, '_compile_module_ast', lambda name, text: parsed.append(name) or parse(name, text))
    for name in ('ping', 'stat', 'ping'):
        source = payload.classify(name, dict(core.builtin_modules())[name])
        assert source is not None
        source.build()
    assert parsed[-2:] == ['ansible.modules.stat', 'ansible.modules.ping']


def test_of_what_is_not_there_the_highest_folder_is_looked_at() -> None:
    """Names that modules import from a file could be files, too, of a folder that is not there."""
    source = payload.classify('command', core.module_path('command'))
    assert source is not None
    absent = [item.path for item in source.build().inputs if item.absent]
    assert absent and not [path for path in absent if not os.path.isdir(os.path.dirname(path))]


def test_the_key_tells_what_decides(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ping = payload.classify('ping', core.module_path('ping'))
    command = payload.classify('command', core.module_path('command'))
    assert ping is not None and command is not None
    key = ping.key()
    assert key == ping.key() and len(key) == 32 and key != command.key()
    monkeypatch.setattr(module_utils_loader, '_get_paths', lambda **_: [str(tmp_path)])
    assert key != ping.key()


@pytest.mark.parametrize(
    ('text', 'python'),
    [
        (MODULE, True),
        ('#!/usr/bin/python\n#<<INCLUDE_ANSIBLE_MODULE_COMMON>>\n', True),
        ('#!/bin/sh\necho WANT_JSON\n', False),
        ('#!/usr/bin/python\nx = """<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>"""\n', False),
        ('#!powershell\n#AnsibleRequires -CSharpUtil Ansible.Basic\n', False),
        ('#!/bin/sh\necho old\n', False),
        ('\x7fELF\x00\x01\x02', False),
    ],
)
def test_only_new_style_python_modules_are_ours(text: str, python: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'mine'
    path.write_text(text)
    assert (payload.classify('mine', str(path)) is not None) is python


def test_one_of_two_processes_builds() -> None:
    here, there = os.pipe()

    def flock(file: t.Any, how: int) -> None:
        if how == fcntl.LOCK_EX:  # the lock was taken: about to wait
            os.write(there, b'w')
        real(file, how)

    real = fcntl.flock
    with payload.building(b'k' * 32) as mine:
        assert mine
        child = os.fork()
        if child == 0:
            fcntl.flock = flock  # type: ignore[assignment]
            with payload.building(b'k' * 32) as second:
                os._exit(3 if second else 4)
        assert os.read(here, 1) == b'w'
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    with payload.building(b'k' * 32) as again:
        assert again


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, []),
        ({'A': 'b c', 'N': None, 'I': 1}, [(b'A', b'b c'), (b'N', b'None'), (b'I', b'1')]),
        ({'A': 'ü'}, [(b'A', 'ü'.encode())]),
        ({'PYTHONPATH': '/x'}, None),
        ({'LD_PRELOAD': '/x'}, None),
        ({'not-a-name': 'x'}, None),
    ],
)
def test_environment(variables: dict[str, t.Any], expected: list[tuple[bytes, bytes]] | None) -> None:
    assert payload.environment(variables) == expected
