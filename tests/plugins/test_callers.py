"""Who gives a warning is found without the source of the calls: the same answer, and none of the search."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import sys
import typing as t

import pytest

import stub_run
from mitogen_mux import compat

KNOWN = compat.BUILT_MODULE is not None
"""Whether the core looks for callers: since 2.19."""

Look = t.Callable[[], t.Any]


def marked(look: Look) -> t.Any:
    _skip_stackwalk = True
    return look()


CALLS: dict[str, t.Callable[[Look], t.Any]] = {
    'plainly': lambda look: look(),
    'through a frame that is left out': marked,
    'through one on top of another': lambda look: marked(lambda: look()),
    'through a generator': lambda look: next(look() for _ in [1]),
    'from code without a file': lambda look: eval('look()', {'look': look}),
    'from code whose file is not there': lambda look: eval(compile('look()', '/not/there.py', 'eval'), {'look': look}),
}


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> t.Any:
    """The core's room for this, as it is before ours has been there."""
    if not KNOWN:
        pytest.skip('2.16 to 2.18 have no such look')
    from ansible.module_utils import _internal

    spec: t.Any = importlib.util.find_spec('ansible.module_utils._internal._stack')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(_internal, '_stack', module)
    return module


@pytest.mark.parametrize('call', CALLS)
def test_callers_are_those_that_the_core_finds(stack: t.Any, call: str) -> None:
    answers = []
    for _ in ('theirs', 'ours'):
        found: list[t.Any] = CALLS[call](lambda: [stack.caller_frame(), *stack.iter_stack()])
        answers.append([(frame.filename, frame.function, frame.lineno, frame.frame.f_code) for frame in found])
        compat.spare_source()
    assert stack.iter_stack is compat._iter_stack
    assert answers[1] == answers[0] and len(answers[0]) > 10
    assert not [found for found in answers[0] if found[1] in ('marked', 'caller_frame', 'iter_stack')]


@pytest.mark.parametrize('changed', ['iter_stack', '_inspect'])
def test_a_look_that_is_not_known_is_left_alone(stack: t.Any, changed: str) -> None:
    setattr(stack, changed, (lambda: iter(inspect.stack(2))) if changed == 'iter_stack' else object())
    before = stack.iter_stack
    compat.spare_source()
    assert stack.iter_stack is before


SITE = """
import inspect, os

original = inspect.findsource

def findsource(*args):
    with open({log!r}, 'a') as log:
        log.write('source ')
    return original(*args)

inspect.findsource = findsource
if os.environ.get('AS_IT_WAS'):
    import types
    from ansible.module_utils._internal import _stack
    _stack._inspect = types.SimpleNamespace(stack=inspect.stack)  # which ours does not know
"""


@pytest.mark.slow
def test_the_warning_of_our_strategy_has_the_same_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(SITE.format(log=str(tmp_path / 'log')))
    (tmp_path / 'play.yml').write_text('- {hosts: all, gather_facts: false, tasks: [{ping: }]}\n')

    def run(**more: str) -> tuple[str, str]:
        (tmp_path / 'log').write_text('')
        done = stub_run.play(
            tmp_path,
            'stub_daemon.py',
            *('-i', 'h0,', '-e', f'ansible_python_interpreter={sys.executable}'),
            PYTHONPATH=str(tmp_path / 'site'),
            ANSIBLE_TRANSPORT='mitogen_ssh',
            ANSIBLE_DEPRECATION_WARNINGS='1',
            ANSIBLE_DISPLAY_TRACEBACK='deprecated',
            **more,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout, (tmp_path / 'log').read_text()

    text, log = run()
    assert ('Use of strategy plugins not included in ansible.builtin' in text) == ('Traceback' in text) == KNOWN, text
    assert log == ''
    if KNOWN:
        before, log = run(AS_IT_WAS='1')
        assert text == before and log
