"""Our connection plugins by their own names (``ansible_connection: mitogen_ssh``), under any strategy."""

from __future__ import annotations

import json
import re
import typing as t

from . import connection as mux
from . import seams


def documentation(original: str, name: str, original_name: str) -> str:
    """The original's documentation under another name and with our variables, so that its options resolve as the original's do."""
    text = re.sub(r'(?m)^( *)name: .*$', lambda match: f'{match[1]}name: {name}', original, count=1)
    indent = (re.search(r'(?m)^( *)name: ', text) or re.match('( *)', ''))[1]  # type: ignore[index]
    if not re.search(rf'(?m)^{indent}options:', text):  # local, up to 2.18
        text = f'{text.rstrip()}\n{indent}options:\n'
    inner = re.search(rf'(?m)^{indent}options:\s*\n( *)', text)
    assert inner is not None
    inside = inner[1] if len(inner[1]) > len(indent) else f'{indent}    '
    own = ''.join(f'{inside}{option}: {json.dumps(definition)}\n' for option, definition in mux.definitions(mux.MIXINS[original_name]).items())
    return re.sub(rf'(?m)^{indent}options:\s*\n', lambda match: match[0] + own, text, count=1)


def connection(original_name: str, original: type) -> type:
    """The class of such a plugin. Loading it patches nothing; the first object installs the seams."""
    base: t.Any = mux.class_for(mux.MIXINS[original_name], original)

    def init(self: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        seams.install()
        base.__init__(self, *args, **kwargs)

    return type('Connection', (base,), {'__init__': init, '__doc__': original.__doc__})
