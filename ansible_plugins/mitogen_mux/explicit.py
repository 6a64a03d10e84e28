"""Our connection plugins by their own names (``ansible_connection: mitogen_ssh``), under any strategy."""

from __future__ import annotations

import json
import re
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

from . import accounts, containers, remote, seams
from . import standins as mux


def documentation(original: str, name: str, original_name: str) -> str:
    """The original's documentation under another name and with our variables, so that its options resolve as the original's do."""
    text = re.sub(r'(?m)^( *)name: .*$', lambda match: f'{match[1]}name: {name}', original, count=1)
    indent = (re.search(r'(?m)^( *)name: ', text) or re.match('( *)', ''))[1]  # type: ignore[index]
    if not re.search(rf'(?m)^{indent}options:', text):  # local, up to 2.18
        text = f'{text.rstrip()}\n{indent}options:\n'
    inner = re.search(rf'(?m)^{indent}options:\s*\n( *)', text)
    assert inner is not None
    inside = inner[1] if len(inner[1]) > len(indent) else f'{indent}    '
    own = ''.join(f'{inside}{option}: {json.dumps(definition)}\n' for option, definition in mux.MIXINS[original_name].mux_definitions.items())
    return re.sub(rf'(?m)^{indent}options:\s*\n', lambda match: match[0] + own, text, count=1)


def connection(original_name: str, original: type) -> type:
    """The class of such a plugin. Loading it patches nothing; the first object installs the seams."""
    base: t.Any = mux.class_for(mux.MIXINS[original_name], original)

    def init(self: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        seams.install()
        base.__init__(self, *args, **kwargs)

    return type('Connection', (base,), {'__init__': init, '__doc__': original.__doc__})


class _Nothing(ConnectionBase):
    """What is left of a connection that only we have when it is switched off."""

    has_pipelining = True

    @property
    def transport(self) -> str:
        """As the plugin is called."""
        return str(self._load_name)

    def _connect(self) -> _Nothing:
        return self

    def _refuse(self, *_: t.Any, **__: t.Any) -> t.NoReturn:
        raise AnsibleConnectionFailure(f'{self._load_name} is a connection of mitogen-mux: there is nothing else to connect with if mitogen_enabled is false')

    exec_command = put_file = fetch_file = _refuse

    def close(self) -> None:
        """Nothing is open."""
        self._connected = False


def own(name: str, about: str, options: dict[str, t.Any], mixin: type) -> tuple[str, type]:
    """Documentation and class of a plugin that stands in front of nothing."""
    text = {
        'name': f'mitogen_{name}',
        'short_description': about,
        'description': [about],
        'author': 'The mitogen-mux authors',
        'options': {**options, **mixin.mux_definitions},  # type: ignore[attr-defined]
        'extends_documentation_fragment': ['connection_pipelining'],
    }
    base: t.Any = mux.class_for(mixin, _Nothing)

    def init(self: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        seams.install()
        base.__init__(self, *args, **kwargs)

    return json.dumps(text), type('Connection', (base,), {'__init__': init, '__doc__': about})


def account(tool: str) -> tuple[str, type]:
    """The plugin for accounts that a become tool leads to."""
    return own(tool, f'Accounts of a machine as hosts of their own, reached with {tool}.', accounts.definitions(tool), accounts.connection_class(tool))


def container(name: str) -> tuple[str, type]:
    """The plugin for a kind of container."""
    kind = containers.KINDS[name]
    variables = ('inventory_hostname', 'ansible_host', f'ansible_{name}_host')
    address = {'description': ['Which one.'], 'default': 'inventory_hostname', 'vars': [{'name': variable} for variable in variables]}
    account = remote.account_option('The account in the container.') if kind.accounts else {}
    text, found = own(name, f'Reached with {kind.about}.', {'remote_addr': address, **account, **remote.NAME, **kind.options}, containers.CLASSES[name])
    if not kind.accounts:
        found.default_user = 'root'  # type: ignore[attr-defined]
    return text, found
