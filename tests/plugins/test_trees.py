"""Which file a tree's entry is read from: what the core's loader says, which is asked only where it may say another path."""

import os
from pathlib import Path
from unittest import mock

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret

from mitogen_mux import trees

SECRETS = [('default', VaultSecret(b'secret'))]


@pytest.fixture
def loader(folder):
    made = DataLoader()
    made.set_basedir(str(folder))
    made.set_vault_secrets(SECRETS)
    yield mock.Mock(wraps=made)
    made.cleanup_all_tmp_files()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'plain').write_text('plain')
    (tmp_path / 'short').write_text('$ANSIBLE')
    (tmp_path / 'empty').touch()
    (tmp_path / 'sealed').write_bytes(VaultLib(SECRETS).encrypt(b'clear'))
    (tmp_path / 'broken').write_text('$ANSIBLE_VAULT;1.1;AES256\nnothing\n')
    (tmp_path / 'named $HOME').write_text('plain')
    (tmp_path / '~').write_text('plain')
    (tmp_path / 'link').symlink_to('plain')
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'fifo')
    monkeypatch.setenv('HOME', '/nowhere')
    return tmp_path


def outcome(call, path):
    """The content that is read, and whether it is at another path; None: an error, which the core says when it copies the file."""
    try:
        found = call()
    except (AnsibleError, OSError):
        return None
    return Path(found).read_bytes(), found == path


ASKED = ['sealed', 'broken', 'named $HOME', '~', 'folder', 'fifo', 'folder/../plain']


@pytest.mark.parametrize('name', ['plain', 'short', 'empty', 'link', *ASKED])
@pytest.mark.parametrize('decrypt', [True, False])
def test_real_file(folder, loader, name, decrypt):
    path = f'{folder}/{name}'
    found = outcome(lambda: trees.real_file(loader, path, decrypt), path)
    asked = loader.get_real_file.called
    assert found == outcome(lambda: loader.get_real_file(path, decrypt=decrypt), path)
    assert asked == (name in (ASKED if decrypt else ASKED[2:]))


def test_what_is_not_there(folder, loader):
    with pytest.raises((AnsibleError, OSError)):
        trees.real_file(loader, f'{folder}/missing', True)
