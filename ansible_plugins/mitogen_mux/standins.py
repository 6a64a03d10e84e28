"""Which plugins we stand in front of, and how objects of ours are made."""

from __future__ import annotations

import typing as t

from ansible import constants as C

from . import containers, local, remote
from .connection import MuxConnection

MIXINS: dict[str, type[MuxConnection]] = {'ansible.builtin.ssh': remote.SshConnection, 'ansible.builtin.local': local.LocalConnection, **containers.MIXINS}
"""The plugins that we stand in front of, by full name."""

_classes: dict[tuple[type, type], type] = {}


def class_for(mixin: type, original: type) -> type:
    """The class of our objects. Its name must be that of the original, from which Ansible derives the plugin's type."""
    made = _classes.get((mixin, original))
    if made is None:
        made = _classes[mixin, original] = type(original.__name__, (mixin, original), {'__module__': original.__module__})
    return made


def substitute(obj: t.Any, mixin: type) -> t.Any:
    """An object of ours with the state of the original."""
    new: t.Any = object.__new__(class_for(mixin, type(obj)))
    new.__dict__.update(obj.__dict__)
    return new


def adopt(obj: t.Any, full_name: str) -> t.Any:
    """An object of ours for one that the loader has made; None if it is none that we stand in front of."""
    if isinstance(obj, MuxConnection):
        return obj
    mixin = MIXINS.get(full_name)
    if mixin is None or getattr(obj._shell, '_IS_WINDOWS', False):
        return None
    define_variables(obj._load_name, mixin)
    return substitute(obj, mixin)


def define_variables(load_name: str, mixin: type[MuxConnection]) -> None:
    """Adds our variables to the options of a connection plugin."""
    known = C.config.get_configuration_definitions(plugin_type='connection', name=load_name)
    for name, definition in mixin.mux_definitions.items():
        if name not in known:
            known[name] = definition
