"""Modules from source text, which the agent under test runs."""

import hashlib
import json
import textwrap

from agent_driver import MODULE, children, eventually, state
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


WARM_UP = b'MITOGEN_MUX_TEST_WARM_UP=1'
ENDS_IN_A_WARM_UP = '__import__("os").environ.get("MITOGEN_MUX_TEST_WARM_UP") and __import__("sys").exit(0);'


def compiles(source):
    try:
        compile(source, 'probe.py', 'exec')
    except (SyntaxError, ValueError):
        return False
    return True


class Modules:
    """Runs source text as modules. Each finds a child that was forked ahead, if that is wanted."""

    def __init__(self, agent, ahead=False):
        self.agent = agent
        self.ahead = ahead
        self.guarded = set()

    def add(self, source, preload=True, extra=(), basic=BASIC, **options):
        """Sends a payload; returns its manifest's digest."""
        source = textwrap.dedent(source)
        guarded = self.ahead and preload and not options.get('real') and compiles(ENDS_IN_A_WARM_UP + source)
        files = {
            'ansible/__init__.py': b'',
            'ansible/module_utils/__init__.py': b'',
            'ansible/module_utils/basic.py': basic,
            'ansible/module_utils/loader.py': LOADER,
            'ansible/modules/__init__.py': b'',
            'ansible/modules/probe.py': ((ENDS_IN_A_WARM_UP if guarded else '') + source).encode(),
        }
        files.update(extra)
        if preload is True:
            preload = ['ansible.module_utils.basic']
        text = manifest(files.items(), 'ansible.modules.probe', preload=preload or (), **options)
        self.agent.blobs(text, *files.values())
        if guarded:
            self.guarded.add(hashlib.sha256(text).digest())
        return hashlib.sha256(text).digest()

    def run(self, source, *fields, **options):
        return self.again(source if isinstance(source, bytes) else self.add(source, **options), *fields)

    def spare(self, digest):
        """The pid of a child that can be the module."""
        for _ in range(2):  # what the first compiles makes the second a warm one
            assert self.agent.result(self.agent.open(MODULE, (1, digest), (4, WARM_UP))).code == 0
        return eventually(self.waiting)

    def waiting(self):
        """The agent's only child, if it sleeps."""
        found = children(self.agent)
        return found[0] if len(found) == 1 and state(found[0]) == 'S' else None

    def again(self, digest, *fields):
        if digest in self.guarded:
            self.spare(digest)
        return self.agent.result(self.agent.open(MODULE, (1, digest), (2, b'{"a": 1}'), (3, b'probe'), *fields))

    def value(self, source, *fields, **options):
        """What the module printed as JSON."""
        result = self.run('import json, os, sys\n' + textwrap.dedent(source) + '\nsys.exit(0)\n', *fields, **options)
        assert (result.code, bytes(result.err)) == (0, b''), result.err.decode()
        return json.loads(result.data.decode())
