"""Modules from source text, which the agent under test runs."""

import hashlib
import json
import textwrap

from agent_driver import MODULE
from agent_payloads import manifest

BASIC = b'_ANSIBLE_ARGS = None\nmarks = []\n'
LOADER = b'''
import runpy, sys
def run_module(json_params, profile, module_fqn, modlib_path, extensions, init_globals=None):
    from ansible.module_utils import basic
    basic._ANSIBLE_ARGS = json_params
    assert profile == 'legacy' and extensions == {}
    runpy.run_module(module_fqn, dict(_module_fqn=module_fqn, _modlib_path=modlib_path), '__main__', True)
    raise RuntimeError('did not exit')
'''


class Modules:
    """Runs source text as modules."""

    def __init__(self, agent):
        self.agent = agent

    def add(self, source, preload=True, extra=(), basic=BASIC, **options):
        """Sends a payload; returns its manifest's digest."""
        files = {
            'ansible/__init__.py': b'',
            'ansible/module_utils/__init__.py': b'',
            'ansible/module_utils/basic.py': basic,
            'ansible/module_utils/loader.py': LOADER,
            'ansible/modules/__init__.py': b'',
            'ansible/modules/probe.py': textwrap.dedent(source).encode(),
        }
        files.update(extra)
        if preload is True:
            preload = ['ansible.module_utils.basic']
        text = manifest(files.items(), 'ansible.modules.probe', preload=preload or (), **options)
        self.agent.blobs(text, *files.values())
        return hashlib.sha256(text).digest()

    def run(self, source, *fields, **options):
        return self.again(source if isinstance(source, bytes) else self.add(source, **options), *fields)

    def again(self, digest, *fields):
        return self.agent.result(self.agent.open(MODULE, (1, digest), (2, b'{"a": 1}'), (3, b'probe'), *fields))

    def value(self, source, *fields, **options):
        """What the module printed as JSON."""
        result = self.run('import json, os, sys\n' + textwrap.dedent(source) + '\nsys.exit(0)\n', *fields, **options)
        assert (result.code, bytes(result.err)) == (0, b''), result.err.decode()
        return json.loads(result.data.decode())
