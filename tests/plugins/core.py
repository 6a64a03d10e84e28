"""What the plugins' tests share: the ansible-core of this interpreter, set up as a command line would."""

from __future__ import annotations

import os
import pathlib
import sys
import types
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'ansible_plugins'))

COLLECTIONS = os.environ.get('MITOGEN_MUX_TEST_COLLECTIONS', '')
"""A folder with ansible_collections in it, for tests of plugins that ansible-core has not."""

from ansible import constants as C  # noqa: E402
from ansible.executor import module_common  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import init_plugin_loader, module_loader  # noqa: E402
from ansible.template import Templar  # noqa: E402
from ansible.utils.collection_loader import AnsibleCollectionConfig  # noqa: E402
from ansible.utils.context_objects import CLIArgs  # noqa: E402

if AnsibleCollectionConfig.collection_finder is None:
    from ansible import context

    context.CLIARGS = CLIArgs({'connection': 'smart', 'timeout': 10})
    init_plugin_loader([COLLECTIONS] if COLLECTIONS else None)

loader = DataLoader()
VARIABLES: dict[str, t.Any] = {'ansible_python_interpreter': sys.executable, 'ansible_facts': {}}


def templar(variables: dict[str, t.Any] | None = None) -> Templar:
    return Templar(loader=loader, variables=variables or VARIABLES)


def builtin_modules() -> list[tuple[str, str]]:
    """Name and path of each module of ansible.builtin."""
    folder = pathlib.Path(module_common.__file__).parent.parent / 'modules'
    return sorted((path.stem, str(path)) for path in folder.glob('*.py') if path.stem != '__init__')


def module_path(name: str) -> str:
    found = module_loader.find_plugin_with_context(name, '')
    assert found.resolved, name
    return str(found.plugin_resolved_path)


def stock(name: str, path: str, args: dict[str, t.Any], variables: dict[str, t.Any] | None = None, environment: dict[str, t.Any] | None = None) -> t.Any:
    """What the core's own modify_module makes of a module."""
    return module_common.modify_module(
        module_name=name,
        module_path=path,
        module_args=args,
        templar=templar(variables),
        task_vars=variables or VARIABLES,
        module_compression='ZIP_DEFLATED',
        environment=environment or {},
    )


__all__ = ['COLLECTIONS', 'ROOT', 'VARIABLES', 'C', 'builtin_modules', 'loader', 'module_common', 'module_path', 'stock', 'templar', 'types']
