"""become_flags that keep sudo from running a command. sudo says so itself, at length and for every task: here they are named, in one warning.

What is no option of sudo as it is known here is sudo's own affair, and so are the flags of other tools."""

from __future__ import annotations

import functools
import getopt
import shlex

from . import display

_TOOLS = ('sudo', 'sudosu')

_SHORT = 'AbC:D:EeG:g:Hh:iKklnPp:R:r:SsT:t:U:u:Vv'
_LONG = {
    'askpass': '-A',
    'preserve-env': '-E',
    'edit': '-e',
    'login': '-i',
    'remove-timestamp': '-K',
    'list': '-l',
    'prompt=': '-p',
    'stdin': '-S',
    'shell': '-s',
    'user=': '-u',
    'version': '-V',
    'validate': '-v',
    'background': '',
    'bell': '',
    'close-from=': '',
    'chdir=': '',
    'group=': '',
    'set-home': '',
    'host=': '',
    'reset-timestamp': '',
    'non-interactive': '',
    'preserve-groups': '',
    'chroot=': '',
    'role=': '',
    'type=': '',
    'command-timeout=': '',
    'other-user=': '',
}

_NO_COMMAND = ('-e', '-K', '-l', '-V', '-v')
_CONFLICTS = (('-i', '-s'), ('-i', '-E'), ('-A', '-S'))


def warn(tool: str, flags: str, user: bool, password: bool) -> None:
    """For each task that becomes another account. The core says each warning once."""
    if tool.rpartition('.')[2] in _TOOLS and (found := _complaints(flags, user, password)):
        display.warning(f'become_flags {flags!r} keep {tool} from running any task: {"; ".join(found)}')


@functools.lru_cache(maxsize=64)
def _complaints(flags: str, user: bool, password: bool) -> tuple[str, ...]:
    try:
        words = ['--preserve-env' if word.startswith('--preserve-env=') else word for word in shlex.split(flags)]
        given = getopt.getopt(words, _SHORT, list(_LONG))[0]
    except (ValueError, getopt.GetoptError):
        return ()
    names = [name if not name.startswith('--') else _LONG.get(name[2:], _LONG.get(f'{name[2:]}=', '')) for name, _ in given]
    found = [f'{one} and {other} exclude each other' for one, other in _CONFLICTS if one in names and other in names]
    found += [f'with {name} it runs no command' for name in _NO_COMMAND if name in names]
    if '-u' in names and (user or names.count('-u') > 1):
        found.append('-u names another account than become_user')
    if '-p' in names and (password or names.count('-p') > 1):
        found.append('-p is in the way of the prompt that Ansible waits for')
    return tuple(found)
