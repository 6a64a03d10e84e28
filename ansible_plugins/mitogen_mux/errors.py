"""What the daemon's typed errors are in Ansible: for each kind, the exception that Ansible's own plugin raises for it."""

from __future__ import annotations

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound

from . import compat
from .client import DEADLINE_EXCEEDED, UNAVAILABLE, RpcError
from .v1 import error_pb2

_CLASSES: dict[int, type[AnsibleError]] = {
    error_pb2.Error.UNREACHABLE: AnsibleConnectionFailure,
    error_pb2.Error.AUTH_FAILED: AnsibleAuthenticationFailure,
    error_pb2.Error.HOST_KEY_UNKNOWN: AnsibleConnectionFailure,
    error_pb2.Error.HOST_KEY_CHANGED: AnsibleConnectionFailure,
    error_pb2.Error.AGENT_VERSION: AnsibleConnectionFailure,
    error_pb2.Error.AGENT_DIED: AnsibleConnectionFailure,
    error_pb2.Error.TIMED_OUT: AnsibleConnectionFailure,
    error_pb2.Error.BECOME_TIMEOUT: compat.BECOME_TIMEOUT,
    error_pb2.Error.UNSUPPORTED: AnsibleConnectionFailure,
    error_pb2.Error.FILE_NOT_FOUND: AnsibleFileNotFound,
}
"""Every other kind is a plain AnsibleError: the task fails, the host stays."""

_PAGE = 'docs/reference/errors.md'

_PREFIX = 'Failed to connect to the host via ssh: '


_ON_THE_WAY = {
    error_pb2.Error.BECOME_PASSWORD_WRONG: AnsibleAuthenticationFailure,
    error_pb2.Error.BECOME_PASSWORD_REQUIRED: AnsibleAuthenticationFailure,
    error_pb2.Error.BECOME_TIMEOUT: AnsibleConnectionFailure,
    error_pb2.Error.BECOME_FAILED: AnsibleConnectionFailure,
    error_pb2.Error.INTERPRETER_MISSING: AnsibleConnectionFailure,
}
"""What is another class where it is not the task that becomes an account, but the connection."""


def to_ansible(error: RpcError, host: str, depth: int = 1) -> AnsibleError:
    """The exception for a failed request about ``host`` (inventory name), whose connection has ``depth`` hops. Its text names the host,
    the hop and the remedy."""
    detail = error.detail
    if detail is None:
        lost = error.code in (UNAVAILABLE, DEADLINE_EXCEEDED)
        return (AnsibleConnectionFailure if lost else AnsibleError)(f'{host}: {error.message}')
    cls = _CLASSES.get(detail.kind, AnsibleError)
    if detail.hop < depth and depth > 1:
        cls = _ON_THE_WAY.get(detail.kind, cls)
    become = detail.hop_name.split(' ', 1)[0]
    if detail.kind == error_pb2.Error.BECOME_PASSWORD_WRONG:
        text = f'Incorrect {become} password'
    elif detail.kind == error_pb2.Error.BECOME_PASSWORD_REQUIRED:
        text = f'Missing {become} password'
    else:
        where = f'{detail.host or host}: {detail.hop_name}' if detail.hop_name else detail.host or host
        text = f'{where}: {detail.message or error.message}'
        if cls is AnsibleConnectionFailure and detail.hop_name.startswith('ssh '):
            text = _PREFIX + text
    if detail.stderr and detail.stderr not in text:
        text += f'\n{detail.stderr}'
    if detail.hint:
        text += f'\n{detail.hint}'
    if cls in (AnsibleConnectionFailure, AnsibleAuthenticationFailure):
        text += f'\n({_PAGE}#{error_pb2.Error.Kind.Name(detail.kind).lower().replace("_", "-")})'
    return cls(text)
