"""Fixtures of the agent's tests. The driver stands beside this file."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from agent_driver import INTERPRETERS, Agent, one_line
from agent_modules import Modules


def pytest_addoption(parser):
    parser.addoption('--pythons', choices=('all', 'ends'), default='all', help='every interpreter found, or the oldest and newest Python 3 and Python 2')


def pytest_generate_tests(metafunc):
    if 'python' in metafunc.fixturenames:
        chosen = sorted(INTERPRETERS, key=lambda version: [int(part) for part in version.split('.')])
        if metafunc.config.getoption('pythons') == 'ends':
            threes = [version for version in chosen if version > '3']
            chosen = [version for version in chosen if version not in threes[1:-1]]
        metafunc.parametrize('python', [INTERPRETERS[version] for version in chosen], ids=chosen)
    if 'modules' in metafunc.fixturenames and getattr(metafunc.module, 'BOTH_WAYS', False):
        metafunc.parametrize('modules', [False, True], indirect=True, ids=['forked then', 'forked ahead'])


@pytest.fixture
def start(python):
    """Starts agents of the interpreter under test; ends what is left of them."""
    agents = []

    def go(boot=True, **options):
        agent = Agent([python, '-c', one_line('stage1.py'), 'mitogen-mux: test'], **options)
        agents.append(agent)
        return agent.boot() if boot else agent

    yield go
    for agent in agents:
        agent.close()
        if agent.process.poll() is None:
            agent.process.kill()
        agent.process.wait()
        agent.process.stderr.close()


@pytest.fixture
def agent(start):
    return start()


@pytest.fixture
def modules(agent, request):
    """Where a module says so, in a child that was forked for it and in one that was there."""
    return Modules(agent, ahead=getattr(request, 'param', False))
