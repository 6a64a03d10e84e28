"""What a kind of error is in Ansible: what plain Ansible raises for it."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError

from mitogen_mux import client, compat, errors
from mitogen_mux.v1 import error_pb2

KINDS = {
    'UNREACHABLE': AnsibleConnectionFailure,
    'AUTH_FAILED': AnsibleAuthenticationFailure,
    'BECOME_PASSWORD_WRONG': AnsibleError,
    'BECOME_TIMEOUT': AnsibleError if compat.BUILT_MODULE is None else AnsibleConnectionFailure,
    'BECOME_FAILED': AnsibleError,
    'TIMED_OUT': AnsibleConnectionFailure,
}


@pytest.mark.parametrize('kind', KINDS)
def test_class(kind: str) -> None:
    detail = error_pb2.Error(kind=error_pb2.Error.Kind.Value(kind), host='h', hop_name='sudo root', message='it went wrong', hint='look there')
    error = errors.to_ansible(client.RpcError(2, 'it went wrong', detail), 'h')
    assert type(error) is KINDS[kind]
    assert 'look there' in str(error)
