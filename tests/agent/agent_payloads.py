"""Stock AnsiballZ payloads as manifests: whatever ansible-core the tests' interpreter has builds one, and it is taken apart."""

import base64
import functools
import hashlib
import io
import json
import re
import zipfile

import pytest

LOADER = 'ansible.module_utils._internal._ansiballz._loader'
PRELOAD = [
    'ansible.module_utils.basic',
    'ansible.module_utils._internal._json._profiles._module_legacy_m2c',
    'ansible.module_utils._internal._json._profiles._module_legacy_c2m',
    LOADER,
]


def core():
    """(major, minor) of ansible-core, or the test is skipped."""
    release = pytest.importorskip('ansible.release', reason='no ansible-core in the interpreter of the tests')
    return tuple(int(part) for part in release.__version__.split('.')[:2])


def oldest_target():
    """The oldest Python that this core's modules run on."""
    return {(2, 16): (2, 7), (2, 17): (3, 7), (2, 18): (3, 8), (2, 19): (3, 8), (2, 20): (3, 9), (2, 21): (3, 9)}.get(core(), (3, 9))


def built(name, args):
    """The text of the stock payload of a builtin module: a program for stdin."""
    version = core()
    from ansible.executor import module_common
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader, module_loader
    from ansible.template import Templar

    init_plugin_loader()
    found = module_loader.find_plugin(name)
    templar = Templar(loader=DataLoader())
    variables = {'ansible_python_interpreter': '/usr/bin/python3'}
    if version < (2, 19):
        text, style, _ = module_common.modify_module(name, found, args, templar, task_vars=variables, module_compression='ZIP_STORED')
    else:
        module = module_common.modify_module(
            module_name=name, module_path=found, module_args=args, templar=templar, task_vars=variables, module_compression='ZIP_STORED'
        )
        text, style = module.b_module_data, module.module_style
    assert style == 'new'
    return text


@functools.cache
def stock(name):
    """The files of the module's own stock payload: [(path, bytes)]."""
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(max(re.findall(rb'[A-Za-z0-9+/=]{100,}', built(name, {})), key=len))))
    return [(info.filename, archive.read(info)) for info in archive.infolist()]


def manifest(files, module, loader=None, profile=None, real=False, preload=()):
    lines = ['module\t' + module]
    lines += ['loader\t' + loader] if loader else []
    lines += ['profile\t' + profile] if profile else []
    lines += ['real\t1'] if real else []
    lines += ['preload\t' + name for name in preload]
    lines += ['file\t%s\t%s' % (path, hashlib.sha256(body).hexdigest()) for path, body in files]
    return '\n'.join(lines).encode() + b'\n'


def of_module(name, **options):
    """(manifest, blobs) of a builtin module."""
    files = stock(name)
    paths = dict(files)
    new = LOADER.replace('.', '/') + '.py' in paths
    names = [n for n in PRELOAD if n.replace('.', '/') + '.py' in paths]
    options = dict({'loader': LOADER if new else None, 'profile': 'legacy' if new else None, 'preload': names}, **options)
    return manifest(files, 'ansible.modules.' + name, **options), [body for _, body in files]


def arguments(**args):
    """What an action gives a module, besides the task's own words."""
    common = {
        '_ansible_version': '2.0',
        '_ansible_remote_tmp': '/tmp',
        '_ansible_check_mode': False,
        '_ansible_diff': False,
        '_ansible_no_log': False,
        '_ansible_verbosity': 0,
        '_ansible_socket': None,
        '_ansible_syslog_facility': 'LOG_USER',
        '_ansible_keep_remote_files': False,
        '_ansible_selinux_special_fs': [],
        '_ansible_shell_executable': '/bin/sh',
        '_ansible_debug': False,
        '_ansible_module_name': 'probe',
        '_ansible_tmpdir': None,
    }
    if core() >= (2, 19):
        common.update(_ansible_target_log_info=None, _ansible_tracebacks_for=[])
    else:
        common.update(_ansible_string_conversion_action='warn')
    return dict(common, **args)


def params(**args):
    return json.dumps({'ANSIBLE_MODULE_ARGS': arguments(**args)}).encode()
