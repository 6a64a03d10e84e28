"""A connection object's options, which Ansible has resolved, as the hops of a path; and become plugins as become hops.

No option is resolved here, no become command, prompt or success marker is made up: the plugins of Ansible are asked."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gettext
import os
import re
import shlex
import typing as t

from ansible import constants as C
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.utils.path import unfrackpath

from . import flags
from .v1 import path_pb2


@dataclasses.dataclass(frozen=True)
class Escalation:
    """What a become plugin made of a command: kept so that nobody has to take it apart again."""

    success: str
    command: str
    """The command before the become plugin wrapped it."""
    executable: str
    """The shell that runs it in the other account."""


def option(plugin: t.Any, name: str, default: t.Any = None) -> t.Any:
    """An option of a connection, become or shell plugin; the default where this core's plugin has no such option."""
    if name not in C.config.get_configuration_definitions(plugin_type=plugin.plugin_type, name=plugin._load_name):
        return default
    try:
        value = plugin.get_option(name)
    except KeyError:
        return default
    return default if value is None else value


def plugin_vars(plugin: t.Any) -> list[str]:
    """The names of the variables that set a plugin's options."""
    return list(C.config.get_plugin_vars(plugin.plugin_type, plugin._load_name))


def ssh(connection: t.Any, interpreter: str = '') -> path_pb2.Hop:
    """The account that an ssh plugin's options name."""
    context = connection._play_context
    transport = _unless(option(connection, 'mitogen_ssh_transport', ''), 'auto')
    key = to_text(option(connection, 'private_key_file', ''))
    hop = path_pb2.SshHop(
        host=to_text(option(connection, 'host') or context.remote_addr),
        port=int(option(connection, 'port', 0)),
        user=to_text(option(connection, 'remote_user', '')),
        private_key_file=key if transport == 'via' else os.path.expanduser(key),
        host_key_checking=option(connection, 'host_key_checking', True) is not False,
        args=_ssh_args(connection, 'ssh_args'),
        late_args=_ssh_args(connection, 'ssh_common_args', 'ssh_extra_args'),
        ssh_executable=_unless(option(connection, 'ssh_executable', ''), 'ssh'),
        pkcs11_provider=to_text(option(connection, 'pkcs11_provider', '')),
        control_path=_control_path(connection),
        timeout_seconds=int(option(connection, 'timeout', 10)),
        reconnection_retries=int(option(connection, 'reconnection_retries', 0)),
        verbosity=int(option(connection, 'verbosity', 0)),
        password_mechanism=to_text(option(connection, 'password_mechanism', '')),
        transport=transport,
    )
    _secret(hop.password, option(connection, 'password') or context.password)
    _secret(hop.private_key, option(connection, 'private_key'))
    _secret(hop.private_key_passphrase, option(connection, 'private_key_passphrase'))
    return path_pb2.Hop(ssh=hop, interpreter=interpreter)


def local(interpreter: str = '') -> path_pb2.Hop:
    """The controller's own account."""
    return path_pb2.Hop(local=path_pb2.LocalHop(), interpreter=interpreter)


def container(method: str, name: str, user: str, argv: list[str], interpreter: str = '') -> path_pb2.Hop:
    """What a tool that runs a command there leads to."""
    hop = path_pb2.ContainerHop(method=method, name=name, user=user, argv=[to_bytes(word, errors='surrogate_or_strict') for word in argv])
    return path_pb2.Hop(container=hop, interpreter=interpreter)


def become(connection: t.Any, interpreter: str = '', stage1: str = '', agent_name: str = '', own: t.Any = None) -> path_pb2.Hop:
    """The account that the connection's become plugin leads to, or that of a plugin of its ``own``. With an interpreter: with the
    command line that starts an agent there. Without: as the plugin's latest command has it, whose prompt and
    success marker are then those to wait for."""
    plugin = connection.become if own is None else own
    argv: list[bytes] = []
    if interpreter:
        plugin = copy.copy(plugin)  # the original keeps the id, prompt and marker of its latest command
        agent = f'{interpreter} -c {shlex.quote(stage1)} {shlex.quote(agent_name)}'
        wrapped = type(plugin).build_become_command(plugin, agent, connection._shell)
        shell = shlex.split(connection._play_context.executable or '/bin/sh')
        argv = [to_bytes(word) for word in (*shell, '-c', wrapped)]
    context = connection._play_context if own is None else None
    password = _become_option(plugin, 'become_pass', context)
    hop = path_pb2.BecomeHop(
        method=to_text(plugin.name),
        user=to_text(_become_option(plugin, 'become_user', context) or ''),
        exe=to_text(_become_option(plugin, 'become_exe', context) or ''),
        flags=to_text(_become_option(plugin, 'become_flags', context) or ''),
        argv=argv,
        success=to_bytes(plugin.success),
        wrong_password=_texts(plugin, plugin.fail),
        missing_password=_texts(plugin, plugin.missing),
        timeout_seconds=_become_timeout(connection),
    )
    _secret(hop.password, password)
    flags.warn(hop.method, hop.flags, bool(hop.user), bool(password))
    if isinstance(plugin.prompt, (str, bytes)):
        hop.prompt = to_bytes(plugin.prompt)
    elif plugin.prompt:
        hop.prompt_patterns.append(_prompt_pattern(plugin))
    return path_pb2.Hop(become=hop, interpreter=interpreter)


def watch(plugin: t.Any, remember: t.Callable[[Escalation], None]) -> None:
    """Lets this one become plugin object tell of the commands that it wraps."""
    original = plugin.build_become_command

    def build_become_command(cmd: str, shell: t.Any) -> str:
        wrapped = str(original(cmd, shell))
        executable = getattr(shell, 'executable', None) or '/bin/sh'
        remember(Escalation(plugin.success, cmd, executable))
        return wrapped

    plugin.build_become_command = build_become_command


def _ssh_args(connection: t.Any, *names: str) -> list[str]:
    words: list[str] = []
    for name in names:
        words += _split(connection._split_ssh_args, to_text(option(connection, name, '')))
    return words


@functools.lru_cache(maxsize=64)
def _split(split: t.Callable[[str], list[str]], text: str) -> tuple[str, ...]:
    """Each task asks again, and a lexer in Python is slow."""
    return tuple(split(text))


def _control_path(connection: t.Any) -> str:
    path = str(to_text(option(connection, 'control_path', '')))
    if not path:
        return ''
    return str(path) % {'directory': unfrackpath(to_text(option(connection, 'control_path_dir', '~/.ansible/cp')))}


def _become_timeout(connection: t.Any) -> int:
    """What the connection plugin itself would wait for the become tool."""
    local_timeout = int(option(connection, 'become_success_timeout', 0))
    return local_timeout if local_timeout > 0 else 2 + int(option(connection, 'timeout', connection._play_context.timeout))


def _become_option(plugin: t.Any, name: str, context: t.Any) -> t.Any:
    try:
        return plugin.get_option(name, playcontext=context)
    except KeyError:
        return None


def _prompt_pattern(plugin: t.Any) -> str:
    """For tools whose prompt is translated: the plugin's own list. That of su has words, to which the core adds the colon; those of other
    plugins have expressions. Where a plugin keeps its list to itself: what ends like a question for a password."""
    words = [to_text(word) for word in option(plugin, 'prompt_l10n') or getattr(plugin, 'SU_PROMPT_LOCALIZATIONS', ())]
    if words and plugin.name.rpartition('.')[2] == 'su':
        return rf'(?:{"|".join(re.escape(word) for word in words)})\s*[:：]'
    return '|'.join(f'(?:{word})' for word in words) or r'password[^:：]*[:：]'


def _texts(plugin: t.Any, messages: t.Iterable[str]) -> list[bytes]:
    """The tool's messages, as the become plugin itself translates them."""
    return [text for text in (to_bytes(gettext.dgettext(plugin.name, message)) for message in messages) if text]


def _secret(field: path_pb2.Secret, value: t.Any) -> None:
    if value:
        field.value = to_bytes(value, errors='surrogate_or_strict')


def _unless(value: t.Any, default: str) -> str:
    text = to_text(value)
    return '' if text == default else text
