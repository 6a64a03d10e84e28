"""Reuse: what the core would work out anew is the core's own answer, and is asked for again when what it depends on has changed."""

from __future__ import annotations

import typing as t

import jinja2
import pytest
from ansible.plugins.connection import ssh
from ansible.plugins.loader import connection_loader
from ansible.vars import clean
from jinja2.nativetypes import NativeEnvironment

import core
from mitogen_mux import reuse

DEFINITIONS: dict[str, dict[str, t.Any]] = {
    'text': {'default': 'spam', 'aliases': ['words'], 'env': [{'name': 'MUX_REUSE_TEXT'}], 'vars': [{'name': 'mux_text'}], 'type': 'str'},
    'number': {'default': 3, 'env': [{'name': 'MUX_REUSE_NUMBER'}], 'type': 'int'},
    'keyed': {'default': None, 'keyword': [{'name': 'mux_keyed'}]},
    'items': {'default': [], 'type': 'list', 'env': [{'name': 'MUX_REUSE_ITEMS'}]},
    'place': {'default': 'spam', 'type': 'path'},
    'old': {'default': 'spam', 'env': [{'name': 'MUX_REUSE_OLD', 'deprecated': {'why': 'x', 'version': '9'}}]},
    'template': {'default': '{{ mux_text }}'},
}

CALLS: list[tuple[str, dict[str, t.Any], dict[str, str]]] = [
    ('text', {}, {}),
    ('text', {'variables': {'other': 1}}, {}),
    ('text', {'variables': {'mux_text': 'eggs'}}, {}),
    ('text', {'variables': {'mux_text': None}}, {}),
    ('text', {'direct': {'words': 'ham'}}, {}),
    ('text', {'direct': {'text': None}}, {}),
    ('text', {'keys': {'text': 'keyword', 'other': 1}}, {}),
    ('text', {'keys': {'text': None}}, {}),
    ('text', {}, {'MUX_REUSE_TEXT': 'from the environment'}),
    ('text', {'variables': {'mux_text': 'eggs'}}, {'MUX_REUSE_TEXT': 'from the environment'}),
    ('text', {}, {'MUX_REUSE_TEXT': 'another'}),
    ('text', {}, {}),
    ('number', {}, {'MUX_REUSE_NUMBER': '7'}),
    ('number', {}, {}),
    ('keyed', {'keys': {'mux_keyed': 'yes'}}, {}),
    ('keyed', {'keys': {'mux_keyed': None}}, {}),
    ('items', {}, {'MUX_REUSE_ITEMS': 'a,b'}),
    ('items', {}, {}),
    ('place', {}, {}),
    ('template', {'variables': {'mux_text': 'one'}}, {}),
    ('template', {'variables': {'mux_text': 'two'}}, {}),
    ('old', {}, {'MUX_REUSE_OLD': 'x'}),
]


def ask(call: tuple[str, dict[str, t.Any], dict[str, str]]) -> t.Any:
    name, arguments, environ = call
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environ.items():
            patch.setenv(key, value)
        return core.C.config.get_config_value_and_origin(name, plugin_type='connection', plugin_name='mux_reuse', **arguments)


def test_settings_have_the_cores_own_values_and_origins() -> None:
    core.C.config.initialize_plugin_configuration_definitions('connection', 'mux_reuse', DEFINITIONS)
    plain = [ask(call) for call in CALLS]
    with reuse.installed():
        for _ in range(2):
            assert [ask(call) for call in CALLS] == plain
    assert 'get_config_value_and_origin' not in vars(core.C.config)


def test_a_template_is_compiled_once() -> None:
    """Whatever environment asks, and what it gives is what that environment makes of it."""
    plain = jinja2.Environment()
    original = jinja2.Environment._compile
    with reuse.installed():
        codes = [environment.compile('{{ spam }} and eggs') for environment in (plain, plain, jinja2.Environment(), NativeEnvironment())]
        assert codes[0] is codes[1] is codes[2] and codes[0].co_flags == plain.overlay().compile('{{ spam }}').co_flags
        texts = [environment.from_string('{{ spam }}{{ eggs }}').render(spam=1, eggs=2) for environment in (plain, NativeEnvironment(), plain)]
        assert texts == ['12', 12, '12']
    assert jinja2.Environment._compile is original
    assert plain.compile('{{ spam }} and eggs').co_code == codes[0].co_code


def test_a_setting_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    core.C.config.initialize_plugin_configuration_definitions('connection', 'mux_reuse', DEFINITIONS)
    cls: t.Any = type(core.C.config)
    original, asked = cls.get_config_value_and_origin, []

    def counted(self: t.Any, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        asked.append(name)
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(cls, 'get_config_value_and_origin', counted)
    with reuse.installed():
        for name in ('text', 'number', 'items', 'text', 'number', 'items'):
            ask((name, {}, {}))
    assert asked == ['text', 'number', 'items']


def test_a_list_is_everybodys_own() -> None:
    core.C.config.initialize_plugin_configuration_definitions('connection', 'mux_reuse', DEFINITIONS)
    call: t.Any = ('items', {}, {'MUX_REUSE_ITEMS': 'a,b'})
    with reuse.installed():
        for _ in range(3):
            found = ask(call)[0]
            assert found == ['a', 'b']
            found.append('c')


def test_each_use_of_a_deprecated_setting_is_told() -> None:
    core.C.config.initialize_plugin_configuration_definitions('connection', 'mux_reuse', DEFINITIONS)
    before = list(core.C.config.DEPRECATED)
    with reuse.installed():
        for _ in range(2):
            ask(CALLS[-1])
    assert len(core.C.config.DEPRECATED) - len(before) == 2
    core.C.config.DEPRECATED[:] = before


def test_another_definition_is_another_setting() -> None:
    with reuse.installed():
        for default in ('one', 'two'):
            core.C.config.initialize_plugin_configuration_definitions('connection', 'mux_reuse', {'text': {'default': default}})
            assert ask(('text', {}, {}))[0] == default


def test_connection_plugins_are_those_of_the_folders(tmp_path: t.Any) -> None:
    plain = list(connection_loader.all(path_only=True))
    extra = list(connection_loader._extra_dirs)
    with reuse.installed():
        try:
            assert list(clean.connection_loader.all(path_only=True)) == plain == list(clean.connection_loader.all(path_only=True))
            (tmp_path / 'mux_another.py').touch()
            connection_loader.add_directory(str(tmp_path))
            assert str(tmp_path / 'mux_another.py') in clean.connection_loader.all(path_only=True)
        finally:
            connection_loader._extra_dirs[:] = extra
            connection_loader._clear_caches()
    assert clean.connection_loader is connection_loader


@pytest.mark.skipif(not hasattr(ssh, 'argparse'), reason='its ssh plugin has no parser')
def test_the_parser_of_an_ssh_connection_is_made_when_it_is_asked() -> None:
    with reuse.installed():
        parser = ssh.argparse.ArgumentParser()
        parser.add_argument('-t', action='count')
        parser.add_argument('-o', action='append')
    known, rest = parser.parse_known_args(['-t', '-t', '-o', 'a=b', '-C'])
    assert (known.t, known.o, rest) == (2, ['a=b'], ['-C'])
