"""Modules that are judged: those who follow them begin only if they have succeeded."""

import os

import pytest

from agent_driver import MODULE, WINDOW
from test_chains import say

JUDGED = (11, b'1')


def printing(modules, text, code=0):
    return modules.add('import sys\nsys.stdout.write(%r)\nsys.exit(%d)' % (text, code))


TEXTS = {
    'an object': ('{"changed": true}', True),
    'with blanks around it': ('\n {"changed": true}\n\n', True),
    'no failure': ('{"failed": false, "rc": 0, "unreachable": false}', True),
    'skipped': ('{"skipped": true, "rc": 0}', True),
    'failed': ('{"failed": true}', False),
    'failed, as a word': ('{"failed": "yes"}', False),
    'rc': ('{"rc": 2}', False),
    'unreachable': ('{"unreachable": true}', False),
    'facts': ('{"ansible_facts": {}}', False),
    'secrets': ('{"_ansible_new_secrets": ["a"]}', False),
    'nothing': ('', False),
    'no object': ('[1]', False),
    'noise before it': ('noise\n{"changed": true}', False),
    'two': ('{"changed": true}\n{"changed": true}', False),
    'broken': ('{"changed": true', False),
    'deep': ('{"a": %s' % ('[' * 100000), False),
    'long': ('{"a": "%s"}' % ('x' * (2 * WINDOW)), False),
}


@pytest.mark.parametrize(('text', 'good'), TEXTS.values(), ids=TEXTS.keys())
def test_what_it_prints(modules, text, good):
    result = modules.agent.result(modules.agent.open(MODULE, (1, printing(modules, text)), JUDGED))
    assert (result.failure, result.code, result.fields.get(13)) == ('', 0, b'1' if good else None)


def test_one_that_ends_badly_has_not_succeeded(modules):
    result = modules.agent.result(modules.agent.open(MODULE, (1, printing(modules, '{"changed": true}', 3)), JUDGED))
    assert (result.code, result.fields.get(13)) == (3, None)


def test_it_is_said_only_if_it_was_asked(modules):
    assert 13 not in modules.again(printing(modules, '{"changed": true}')).fields


@pytest.mark.parametrize('judged', [True, False], ids=['judged', 'not judged'])
@pytest.mark.parametrize('late', [True, False], ids=['it has ended', 'it is under way'])
@pytest.mark.parametrize('good', [True, False], ids=['success', 'failure'])
def test_who_follows_it(modules, tmp_path, good, late, judged):
    agent = modules.agent
    source = """
        import os, sys, time
        while not os.path.exists(%r): time.sleep(0.01)
        sys.stdout.write(%r)
        sys.exit(0)
    """
    digest = modules.add(source % (str(tmp_path / 'go'), '{"failed": %s}' % str(not good).lower()))
    leader = agent.open(MODULE, (1, digest), *([JUDGED] if judged else []))
    if late:
        (tmp_path / 'go').touch()
        agent.result(leader)
    (follower,) = agent.chain(say(b'x'), deciding=[leader])
    agent.send(6, follower)
    (tmp_path / 'go').touch()
    began = good or not judged
    assert (agent.result(follower).failure, agent.streams[follower].data) == (('', b'x') if began else ('not-begun', b''))
    assert os.listdir(str(tmp_path)) == ['go']
