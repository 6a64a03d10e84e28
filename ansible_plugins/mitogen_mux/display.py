"""What the plugins say, in the shape in which Ansible's own say it."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible import constants as C
from ansible.utils.display import Display

from . import compat
from .v1 import jobs_pb2

_display = Display()

Call = tuple[str, tuple[t.Any, ...], dict[str, t.Any]]
"""A method of Display, and what it was given."""


class Listener:
    """Stands for the result queue, and only hears."""

    def __init__(self) -> None:
        self.heard: list[Call] = []

    def send_display(self, method: str, *args: t.Any, **kwargs: t.Any) -> None:
        """As of the queue."""
        self.heard.append((method, args, kwargs))


def repeat(heard: t.Iterable[Call]) -> None:
    """Says what a listener has heard. What has been said meanwhile Display leaves out."""
    for method, args, kwargs in heard:
        getattr(_display, method)(*args, **kwargs)


def vvv(text: str, host: str) -> None:
    """A line of a connection plugin at -vvv."""
    _display.vvv(text, host=host)


def result(answer: tuple[int, bytes, bytes], no_log: bool, host: str) -> None:
    """What a command gave, at -vvv, as the ssh plugin shows it: since 2.22 without what might be secret and not be known to be yet."""
    if _display.verbosity < 3:
        return
    if compat.MASKS_SECRETS:
        _display.vvv(f'rc={answer[0]}', host=host)
        _display.debug('stdout and stderr censored due to no log' if no_log else f'stdout and stderr: {answer[1:]}')
    elif no_log:
        _display.vvv(f'rc={answer[0]}, stdout and stderr censored due to no log', host=host)
    else:
        _display.vvv(str(answer), host=host)


def log(event: jobs_pb2.Log, host: str) -> None:
    """A message of the daemon or an agent."""
    who = event.host or host
    if event.level == jobs_pb2.Log.WARNING:
        _display.warning(f'{who}: {event.text}')
        return
    write: dict[int, t.Callable[..., None]] = {jobs_pb2.Log.V: _display.v, jobs_pb2.Log.VVV: _display.vvv}
    write.get(event.level, _display.vvvv)(event.text, host=who)


def warning(text: str) -> None:
    """A warning, as the core's own code gives it."""
    _display.warning(text)


def verbosity() -> int:
    """How often the user gave -v."""
    return int(_display.verbosity)


def remark(text: str) -> None:
    """A remark at -v."""
    _display.v(text)


def once_a_run(what: str, text: str) -> None:
    """A remark at -v, made by the first of a run's processes that comes to it."""
    if _display.verbosity < 1:
        return
    with contextlib.suppress(OSError):
        os.close(os.open(os.path.join(C.DEFAULT_LOCAL_TMP, f'mitogen-mux-{what}'), os.O_CREAT | os.O_EXCL, 0o600))
        _display.v(text)
