"""Chains that follow other streams: they wait in the agent until these have ended, and begin without being told."""

import os

import pytest

from agent_driver import CANCEL, COMMAND, DATA, END, MODULE, PUT, eventually
from test_chains import REMOVE, failures, folder, put, say

CAT = COMMAND, [(1, b'cat')]


def script(text, *args):
    return COMMAND, [(1, b'sh'), (1, b'-c'), (1, text), *((1, os.fsencode(arg)) for arg in args)]


def touch(path):
    """A command that leaves a trace."""
    return script(b': > "$0"', path)


def opened(agent, *links, **place):
    """A chain whose commands have no input."""
    streams = agent.chain(*links, **place)
    for stream, link in zip(streams, links):
        if link[0] == COMMAND:
            agent.send(END, stream)
    return streams


class Gate:
    """What a job waits for that nobody tells the agent of."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(str(path))

    def wait(self, then=b':'):
        """A command that goes on when the gate is opened."""
        return script(b'read x < "$0"; ' + then, self.path)

    def open(self):
        eventually(self.tried)

    def tried(self):
        try:
            os.close(os.open(str(self.path), os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False  # the job has not come so far
        return True


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / 'gate')


@pytest.mark.parametrize('tag', ['follows', 'deciding'])
def test_it_begins_when_what_it_follows_has_ended_without_a_frame_of_the_daemon(agent, gate, tmp_path, tag):
    leader = opened(agent, gate.wait())
    follower = opened(agent, touch(tmp_path / 'begun'), say(b'x'), **{tag: leader})
    agent.ping()
    assert not (tmp_path / 'begun').exists()
    agent.send = None
    gate.open()
    eventually((tmp_path / 'begun').exists)
    del agent.send
    assert failures(agent, leader + follower) == ['', '', '']
    assert [number for kind, number, _ in agent.frames if kind == 9] == leader + follower


def test_three_in_a_row(agent, gate, tmp_path):
    log = tmp_path / 'log'
    append = b'echo %s >> "$0"'
    first = opened(agent, gate.wait(), script(append % b'first', log))
    second = opened(agent, script(append % b'second', log), deciding=first[1:], follows=first[:1])
    third = opened(agent, script(append % b'third', log), deciding=second)
    agent.ping()
    assert not log.exists()
    gate.open()
    assert failures(agent, first + second + third) == ['', '', '', '']
    assert log.read_text().split() == ['first', 'second', 'third']


def test_two_may_follow_one(agent, gate, tmp_path):
    """Neither waits for the other."""
    other = Gate(tmp_path / 'other')
    leader = opened(agent, gate.wait())
    followers = opened(agent, other.wait(), deciding=leader) + opened(agent, say(b'x'), deciding=leader)
    agent.ping()
    gate.open()
    assert failures(agent, followers[1:]) == ['']
    other.open()
    assert failures(agent, followers) == ['', '']


def bad_put(path):
    return PUT, [(1, os.fsencode(path)), (2, b'1'), (4, bytes(32))]


@pytest.mark.parametrize(
    ('comes', 'begins'),
    [
        ({'deciding': [1], 'follows': [0, 2, 3]}, False),
        ({'deciding': [2], 'follows': [0, 1, 3]}, False),
        ({'deciding': [3], 'follows': [0, 1, 2]}, False),
        ({'deciding': [1, 2, 3], 'follows': [0]}, False),
        ({'deciding': [0], 'follows': [1, 2, 3]}, True),
        ({'deciding': [1, 0, 3], 'follows': [2]}, True),
        ({'follows': [1, 2, 3]}, True),
    ],
    ids=['failed', 'skipped after a failure', 'skipped by a guard', 'none of several', 'done', 'one of several', 'only waited for'],
)
def test_one_that_decides_has_to_be_done(agent, gate, tmp_path, comes, begins):
    leader = opened(agent, gate.wait(), bad_put(tmp_path / 'f'), touch(tmp_path / 'g'), (*say(b''), (0, b'rc', b'0', True)))
    agent.send(DATA, leader[1], b'x')
    agent.send(END, leader[1])
    follower = opened(agent, touch(tmp_path / 'begun'), say(b'x'), **{tag: [leader[n] for n in indices] for tag, indices in comes.items()})
    agent.ping()
    gate.open()
    assert failures(agent, leader) == ['', 'digest', 'skipped', 'skipped']
    assert failures(agent, follower) == (['', ''] if begins else ['not-begun', 'not-begun'])
    assert (tmp_path / 'begun').exists() == begins


def test_all_that_it_follows_have_to_end(agent, gate, tmp_path):
    """Though one that decides is done."""
    done, other = opened(agent, say(b'')), opened(agent, gate.wait())
    follower = opened(agent, touch(tmp_path / 'begun'), deciding=done, follows=other)
    assert failures(agent, done) == ['']
    agent.ping()
    assert not (tmp_path / 'begun').exists()
    gate.open()
    assert failures(agent, follower) == ['']


def test_a_job_that_ends_badly_is_done(agent, modules, gate):
    command = opened(agent, gate.wait(b'exit 1'))
    module = agent.chain((MODULE, [(1, modules.add('import sys\nsys.exit(1)')), (2, b'{}'), (3, b'probe')]), follows=command)
    followers = [opened(agent, say(b'x'), deciding=leader)[0] for leader in (command, module)]
    gate.open()
    assert failures(agent, followers) == ['', '']
    assert [agent.streams[stream].code for stream in command + module] == [1, 1]


@pytest.mark.parametrize(('more', 'begins'), [(0, True), (255, True), (256, False)])
def test_the_latest_that_were_done_are_known(agent, tmp_path, more, begins):
    leader = opened(agent, say(b''))
    failed = agent.open(*flat(folder(tmp_path)))
    assert failures(agent, [*leader, failed]) == ['', 'io']
    assert not any(failures(agent, [agent.open(*flat(folder(tmp_path / 'none', REMOVE))) for _ in range(more)]))
    follower = opened(agent, touch(tmp_path / 'begun'), deciding=leader)
    assert failures(agent, follower) == ['' if begins else 'not-begun']
    assert failures(agent, opened(agent, say(b''), deciding=[failed])) == ['not-begun']
    assert failures(agent, opened(agent, say(b''), follows=[failed, *leader])) == ['']
    assert (tmp_path / 'begun').exists() == begins


def flat(link):
    return (link[0], *link[1])


@pytest.mark.parametrize('tag', ['follows', 'deciding'])
@pytest.mark.parametrize('ahead', [0, 1, 100])
def test_it_follows_only_what_was_opened_before_it(agent, tmp_path, tag, ahead):
    leader = opened(agent, say(b''))
    follower = agent.chain(touch(tmp_path / 'begun'), **{tag: [*leader, agent.last + 1 + ahead]})
    assert failures(agent, follower) == ['bad-request']
    agent.ping()
    assert not (tmp_path / 'begun').exists()


def test_what_follows_is_cancelled(agent, gate, tmp_path):
    """What it follows goes on, and so does who comes later."""
    leader = opened(agent, gate.wait(b'echo led'))
    follower = opened(agent, touch(tmp_path / 'begun'), touch(tmp_path / 'begun'), deciding=leader)
    last = opened(agent, touch(tmp_path / 'last'), follows=follower)
    for stream in follower:
        agent.send(CANCEL, stream)
    assert failures(agent, follower + last) == ['cancelled', 'cancelled', '']
    gate.open()
    assert agent.result(leader[0]).data == b'led\n'
    agent.ping()
    assert not (tmp_path / 'begun').exists()


def test_the_first_of_what_follows_is_cancelled(agent, gate, tmp_path):
    """Then the others are as after any failure."""
    leader = opened(agent, gate.wait())
    follower = opened(agent, touch(tmp_path / 'a'), touch(tmp_path / 'b'), (*folder(tmp_path / 'c', REMOVE), (0, b'rc', b'0', False)), deciding=leader)
    agent.send(CANCEL, follower[0])
    agent.send(CANCEL, follower[2])  # which waits for its turn, as a removal does
    assert failures(agent, follower[:1]) == ['cancelled']
    (tmp_path / 'c').mkdir()
    gate.open()
    assert failures(agent, follower) == ['cancelled', 'skipped', 'skipped']
    assert sorted(os.listdir(str(tmp_path))) == ['c', 'gate']


@pytest.mark.parametrize(('tag', 'failure'), [('follows', ''), ('deciding', 'not-begun')])
def test_what_it_follows_is_cancelled(agent, tmp_path, tag, failure):
    """Whoever decided on it does not begin, and nor do those who were to follow that one."""
    leader = opened(agent, script(b'exec sleep 1000'))
    follower = opened(agent, touch(tmp_path / 'a'), folder(tmp_path / 'b'), **{tag: leader})
    last = opened(agent, touch(tmp_path / 'c'), **{tag: follower})
    agent.ping()
    agent.send(CANCEL, leader[0])
    assert failures(agent, leader + follower + last) == ['cancelled', failure, failure, failure]
    assert sorted(os.listdir(str(tmp_path))) == ([] if failure else ['a', 'b', 'c'])


def test_what_comes_for_it_is_held(agent, gate, tmp_path):
    leader = opened(agent, gate.wait())
    follower = agent.chain(CAT, put(tmp_path / 'f', b'file'), deciding=leader)
    for stream, body in zip(follower, (b'input', b'file')):
        agent.send(DATA, stream, body)
        agent.send(END, stream)
    agent.ping()
    assert not (tmp_path / 'f').exists()
    gate.open()
    assert failures(agent, follower) == ['', '']
    assert agent.streams[follower[0]].data == b'input' and (tmp_path / 'f').read_bytes() == b'file'


def test_without_a_link_nothing_begins(start, tmp_path):
    """What it follows goes on to its end."""
    agent, gate = start(), Gate(tmp_path / 'gate')
    leader = opened(agent, gate.wait(b': > "$0.led"'))
    opened(agent, touch(tmp_path / 'begun'), deciding=leader)
    agent.ping()
    agent.close()
    gate.open()
    agent.wait()
    assert sorted(os.listdir(str(tmp_path))) == ['gate', 'gate.led']
