"""What the core works out anew for each host-task although nothing that it depends on has changed.

Each is the core's own answer, given again only as long as a look at all that decides about it shows no difference."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import types
import typing as t

import jinja2
from ansible import constants as C
from ansible import context
from ansible.plugins.connection import ssh
from ansible.plugins.loader import connection_loader
from ansible.vars import clean

from .waits import replaced

_UNCHANGING = frozenset((None, 'str', 'string', 'bool', 'boolean', 'int', 'integer', 'float', 'none', 'list'))
"""Types of settings whose value depends on nothing but where it is set: not on the working directory, as a path does."""

Answer = tuple[t.Any, t.Any]


@contextlib.contextmanager
def installed() -> t.Iterator[None]:
    """As long as this lasts, and in the workers that are forked meanwhile."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_settings())
        if getattr(clean, 'connection_loader', None) is connection_loader:
            stack.enter_context(replaced(clean, 'connection_loader', _ConnectionPaths()))
        if getattr(ssh, 'argparse', None) is argparse:
            stack.enter_context(replaced(ssh, 'argparse', _Argparse()))
        stack.enter_context(replaced(jinja2.Environment, '_compile', lambda _, source, filename: _code(source, filename)))
        yield


@functools.lru_cache(maxsize=512)
def _code(source: str, filename: str) -> types.CodeType:
    """The code of the Python text that Jinja has made of a template, which an item of a loop or another host's task makes again."""
    return compile(source, filename, 'exec', dont_inherit=True)


@contextlib.contextmanager
def _settings() -> t.Iterator[None]:
    """Settings that neither variables, keywords nor arguments give: their values come from the environment, the configuration file, which
    is read once a run, or the definition."""
    manager: t.Any = C.config
    original = manager.get_config_value_and_origin
    known: dict[tuple[t.Any, t.Any, str], _Setting] = {}

    def get_config_value_and_origin(
        config: str,
        cfile: t.Any = None,
        plugin_type: t.Any = None,
        plugin_name: t.Any = None,
        keys: t.Any = None,
        variables: t.Any = None,
        direct: t.Any = None,
        **more: t.Any,
    ) -> Answer:
        if cfile is None and not more.get('templar'):
            definition = manager.get_configuration_definitions(plugin_type, plugin_name).get(config)
            setting = known.get((plugin_type, plugin_name, config))
            if setting is None or setting.definition is not definition:
                setting = known[plugin_type, plugin_name, config] = _Setting(config, definition)
            if setting.reusable and not setting.given(keys, variables, direct):
                environment = setting.environment()
                if setting.answer is None or setting.condition != environment:
                    answer = original(config, cfile, plugin_type, plugin_name, keys, variables, direct, **more)
                    setting.remember(answer, environment)
                    return t.cast(Answer, answer)
                return setting.again()
        return t.cast(Answer, original(config, cfile, plugin_type, plugin_name, keys, variables, direct, **more))

    manager.get_config_value_and_origin = get_config_value_and_origin
    try:
        yield
    finally:
        del manager.get_config_value_and_origin


class _Setting:
    """One setting, by its definition."""

    __slots__ = ('_aliases', '_environment', '_keys', '_variables', 'answer', 'condition', 'definition', 'reusable')

    def __init__(self, name: str, definition: t.Any) -> None:
        self.definition = definition
        self.answer: Answer | None = None
        self.condition: t.Any = None
        self.reusable = isinstance(definition, dict) and _reusable(definition)
        if self.reusable:
            self._aliases = (name, *definition.get('aliases', ()))
            self._keys = (*self._aliases, *_names(definition, 'keyword'))
            self._variables = _names(definition, 'vars')
            self._environment = _names(definition, 'env')

    def given(self, keys: t.Any, variables: t.Any, direct: t.Any) -> bool:
        """Whether something other than the run's own configuration gives it a value, or may."""
        return (
            bool(direct and any(name in direct for name in self._aliases))
            or bool(variables and any(name in variables for name in self._variables))
            or bool(keys and any(keys.get(name) is not None for name in self._keys))
        )

    def environment(self) -> t.Any:
        """What decides about the value and may change during a run."""
        return context.CLIARGS, [os.environ.get(name) for name in self._environment]

    def remember(self, answer: Answer, condition: t.Any) -> None:
        """Keeps what cannot be changed by whoever gets it, or can be copied."""
        value = answer[0]
        if value is None or isinstance(value, (str, int, float)) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            self.answer, self.condition = (copy.copy(value), answer[1]), condition
        else:
            self.reusable = False

    def again(self) -> Answer:
        """What it remembers."""
        value, origin = t.cast(Answer, self.answer)
        return copy.copy(value) if isinstance(value, list) else value, origin


def _reusable(definition: dict[str, t.Any]) -> bool:
    default = definition.get('default')
    kind = definition.get('type')
    sources = [entry for kind in ('vars', 'keyword', 'cli', 'env', 'ini') for entry in definition.get(kind) or ()]
    return (
        (kind.lower() if isinstance(kind, str) else kind) in _UNCHANGING
        and not (isinstance(default, str) and '{' in default)  # a template
        and not any('deprecated' in entry for entry in (definition, *sources))  # each use is to be told
    )


def _names(definition: dict[str, t.Any], kind: str) -> tuple[str, ...]:
    return tuple(entry['name'] for entry in definition.get(kind) or ())


class _ConnectionPaths:
    """Stands for the loader of connection plugins where only their paths are asked for, which takes a look into every folder."""

    def __init__(self) -> None:
        self._known: dict[t.Any, list[str]] = {}

    def all(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """As PluginLoader.all."""
        if args or kwargs != {'path_only': True}:
            return connection_loader.all(*args, **kwargs)
        folders = tuple(connection_loader._extra_dirs)  # roles and collections add some
        if folders not in self._known:
            self._known[folders] = list(connection_loader.all(path_only=True))
        return iter(self._known[folders])

    def __getattr__(self, name: str) -> t.Any:
        return getattr(connection_loader, name)


class _Argparse:
    """Stands for the module ``argparse`` in the core's ssh plugin, which makes a parser for each connection and seldom asks it."""

    ArgumentParser: t.Any

    def __getattr__(self, name: str) -> t.Any:
        return getattr(argparse, name)


class _Parser:
    """Makes the parser when it is asked for the first time."""

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self._made = (args, kwargs)
        self._arguments: list[t.Any] = []
        self._parser: argparse.ArgumentParser | None = None

    def add_argument(self, *args: t.Any, **kwargs: t.Any) -> None:
        """As ArgumentParser.add_argument."""
        self._arguments.append((args, kwargs))

    def __getattr__(self, name: str) -> t.Any:
        if name.startswith('_'):
            raise AttributeError(name)
        if self._parser is None:
            args, kwargs = self._made
            self._parser = argparse.ArgumentParser(*args, **kwargs)
            for args, kwargs in self._arguments:
                self._parser.add_argument(*args, **kwargs)
        return getattr(self._parser, name)


_Argparse.ArgumentParser = _Parser
