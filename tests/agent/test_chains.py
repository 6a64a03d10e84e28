"""Chains: streams that begin one after the other; and the folders that come and go with them."""

import hashlib
import os
import stat
import struct

import pytest

from agent_driver import CANCEL, COMMAND, DATA, END, FOLDER, OPEN, PUT, WINDOW, Result, eventually, record

SAY = b'printf \'%s\' "$0"'


def say(text, code=0):
    """A command that prints a text."""
    return COMMAND, [(1, b'sh'), (1, b'-c'), (1, SAY + b'; exit %d' % code), (1, text)]


def put(path, body, *more):
    return PUT, [(1, os.fsencode(path)), (2, b'%d' % len(body)), (4, hashlib.sha256(body).digest()), *more]


def folder(path, *more):
    return FOLDER, [(1, os.fsencode(path)), *more]


REMOVE = (2, b'1')


def failures(agent, streams):
    return [agent.result(stream).failure for stream in streams]


def test_what_copy_needs(agent, tmp_path):
    base = tmp_path / 'a' / 'b'
    work = base / 'work'
    body = b'body'
    streams = agent.chain(
        folder(work),
        put(work / 'f', body),
        (COMMAND, [(1, b'sh'), (1, b'-c'), (1, b'cat "$0/f"; stat -c %a "$0" "$0/.."; ls "$0"'), (1, os.fsencode(work))]),
        (*folder(work, REMOVE), (1, b'rc', b'0', False)),
    )
    agent.send(DATA, streams[1], body)
    agent.send(END, streams[1])
    agent.send(END, streams[2])
    assert failures(agent, streams) == ['', '', '', '']
    assert bytes(agent.streams[streams[2]].data).split() == [b'body700', b'700', b'f']
    assert base.is_dir() and stat.S_IMODE(base.stat().st_mode) == 0o700 and not work.exists()
    order = [number for kind, number, _ in agent.frames if kind == 9 and number in streams]
    assert order == streams


def test_nothing_begins_before_all_have_come(agent, tmp_path):
    place = record((1, b'1'), (3, b'2'))
    agent.last = 1
    agent.streams[1] = Result()
    agent.send(OPEN, 1, bytes([FOLDER | 128]) + struct.pack('>H', len(place)) + place + record(*folder(tmp_path / 'x')[1]))
    agent.ping()
    assert not (tmp_path / 'x').exists()
    agent.send(CANCEL, 1)
    assert agent.result(1).failure == 'cancelled'
    agent.ping()
    assert not (tmp_path / 'x').exists()


def test_a_removal_whose_chain_is_not_whole_can_be_cancelled(agent, tmp_path):
    place = record((1, b'1'), (3, b'2'))
    agent.last = 1
    agent.streams[1] = Result()
    agent.send(OPEN, 1, bytes([FOLDER | 128]) + struct.pack('>H', len(place)) + place + record(*folder(tmp_path, REMOVE)[1]))
    agent.send(CANCEL, 1)
    assert agent.result(1).failure == 'cancelled'
    assert tmp_path.exists()


PRINTED = b'{"stat": {"checksum": "ab", "exists": true, "n": 1}, "l": [1, {"x": null}]}'


@pytest.mark.parametrize(
    ('out', 'field', 'value', 'equal'),
    [
        (PRINTED, b'stat.checksum', b'"ab"', True),
        (PRINTED, b'stat.checksum', b'"AB"', False),
        (PRINTED, b'stat.exists', b'true', True),
        (PRINTED, b'stat.exists', b'1', False),
        (PRINTED, b'stat.n', b'1.0', True),
        (PRINTED, b'stat.n', b'true', False),
        (PRINTED, b'l', b'[1, {"x": null}]', True),
        (PRINTED, b'l', b'[1, {"x": false}]', False),
        (PRINTED, b'stat.none', b'"ab"', False),
        (PRINTED, b'stat.checksum.deeper', b'"ab"', False),
        (b'noise\n \t' + PRINTED + b'\nnoise', b'stat.checksum', b'"ab"', True),
        (PRINTED, b'rc', b'0', True),
        (PRINTED, b'rc', b'1', False),
    ],
)
@pytest.mark.parametrize('unequal', [False, True])
def test_guards(agent, out, field, value, equal, unequal):
    streams = agent.chain(say(out), (*say(b'x'), (0, field, value, unequal)), say(b'y'))
    for stream in streams:
        agent.send(END, stream)
    assert failures(agent, streams) == ['', '' if equal != unequal else 'skipped', '']


@pytest.mark.parametrize(('said', 'begins'), [(b'00', True), (b'01', False), (b'10', False), (b'11', False)])
def test_all_guards_have_to_say_so(agent, said, begins):
    guards = [(at, b'rc', b'0', False) for at in range(2)]
    streams = agent.chain(say(b'', int(said[:1])), say(b'', int(said[1:])), (*say(b'x'), *guards))
    for stream in streams:
        agent.send(END, stream)
    assert failures(agent, streams) == ['', '', '' if begins else 'skipped']


@pytest.mark.parametrize('out', [b'', b'no object', b'{broken', b'[1]', b'{"a": "' + b'x' * WINDOW + b'"}'], ids=['empty', 'text', 'broken', 'list', 'long'])
def test_what_is_not_known_allows_nothing(agent, out):
    streams = agent.chain(
        (COMMAND, [(1, b'cat')]), (*say(b'x'), (0, b'a', b'"x"', False)), (*say(b'x'), (0, b'a', b'"x"', True)), (*say(b'x'), (1, b'rc', b'0', True))
    )
    agent.feed(streams[0], out)
    assert failures(agent, streams) == ['', 'skipped', 'skipped', 'skipped']


def test_after_a_failure_only_guards_let_begin(agent, tmp_path):
    streams = agent.chain(folder(tmp_path / 'x'), folder(tmp_path / 'x'), say(b'y'), (*folder(tmp_path / 'x', REMOVE), (0, b'rc', b'0', False)))
    agent.send(END, streams[2])
    assert failures(agent, streams) == ['', 'io', 'skipped', '']
    assert os.listdir(str(tmp_path)) == []


def test_a_module_that_ends_badly_is_no_failure(agent):
    streams = agent.chain(say(b'x', 3), say(b'y'))
    for stream in streams:
        agent.send(END, stream)
    assert failures(agent, streams) == ['', '']
    assert agent.streams[streams[0]].code == 3 and agent.streams[streams[1]].data == b'y'


def test_more_than_a_window_waits(agent, tmp_path):
    body = os.urandom(3 * WINDOW)
    streams = agent.chain((COMMAND, [(1, b'cat')]), put(tmp_path / 'f', body))
    agent.send(DATA, streams[1], body[:65536])
    agent.ping()
    agent.send(END, streams[0])
    agent.feed(streams[1], body, sent=65536)
    assert failures(agent, streams) == ['', '']
    assert (tmp_path / 'f').read_bytes() == body


def test_cancelled_while_it_waits(agent, tmp_path):
    streams = agent.chain((COMMAND, [(1, b'cat')]), folder(tmp_path / 'x'), folder(tmp_path / 'y'))
    agent.send(CANCEL, streams[1])
    assert agent.result(streams[1]).failure == 'cancelled'
    agent.send(END, streams[0])
    assert failures(agent, streams) == ['', 'cancelled', 'skipped']
    assert os.listdir(str(tmp_path)) == []


def test_cancelled_while_it_runs(agent, tmp_path):
    streams = agent.chain(folder(tmp_path / 'x'), (COMMAND, [(1, b'sleep'), (1, b'1000')]), (*folder(tmp_path / 'x', REMOVE), (0, b'rc', b'0', False)))
    agent.result(streams[0])
    agent.send(CANCEL, streams[1])
    assert failures(agent, streams) == ['', 'cancelled', '']
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('order', [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)], ids=['first to last', 'last to first'])
def test_what_a_chain_has_made_goes_though_all_of_it_is_cancelled(agent, tmp_path, order):
    links = [folder(tmp_path / 'x'), put(tmp_path / 'x' / 'f', b''), (COMMAND, [(1, b'sleep'), (1, b'1000')]), say(b'y')]
    streams = agent.chain(*links, (*folder(tmp_path / 'x', REMOVE), (0, b'rc', b'0', False)))
    agent.send(END, streams[1])
    agent.result(streams[1])
    for n in order:
        agent.send(CANCEL, streams[n])
    assert failures(agent, streams) == ['', '', 'cancelled', 'cancelled' if order[0] else 'skipped', '']
    assert os.listdir(str(tmp_path)) == []


def test_nothing_is_removed_that_the_chain_has_not_made(agent, tmp_path):
    (tmp_path / 'x').mkdir()
    guard = (1, b'rc', b'0', False)
    streams = agent.chain((COMMAND, [(1, b'sleep'), (1, b'1000')]), folder(tmp_path / 'x'), (*folder(tmp_path / 'x', REMOVE), guard))
    for stream in reversed(streams):
        agent.send(CANCEL, stream)
    assert failures(agent, streams) == ['cancelled', 'cancelled', 'skipped']
    assert os.listdir(str(tmp_path)) == ['x']


@pytest.mark.parametrize('places', [[(0, 2), (0, 2)], [(2, 2)], [(0, 2), (1, 3)]], ids=['twice', 'too far', 'another length'])
def test_bad_places(agent, places):
    for index, length in places:
        agent.last += 1
        agent.streams[agent.last] = Result()
        place = record((1, b'7'), (2, b'%d' % index), (3, b'%d' % length))
        agent.send(OPEN, agent.last, bytes([FOLDER | 128]) + struct.pack('>H', len(place)) + place + record((1, b'/x')))
    if places[-1] != (1, 3):
        assert agent.result(agent.last).failure == 'bad-request'
    agent.ping()


def test_folders_leave_with_the_agent(start, tmp_path):
    agent = start()
    stream = agent.open(*_flat(folder(tmp_path / 'x')))
    assert agent.result(stream).failure == ''
    (tmp_path / 'x' / 'y').mkdir()
    (tmp_path / 'x' / 'y' / 'z').write_text('z')
    (tmp_path / 'x' / 'link').symlink_to('/etc')
    agent.close()
    agent.wait()
    assert os.listdir(str(tmp_path)) == []


def _flat(link):
    return (link[0], *link[1])


@pytest.mark.skipif(os.geteuid() != 0, reason='only root acts as others')
def test_root_acts_as_another(agent, tmp_path):
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(0o755)
    home = tmp_path / 'home'
    home.mkdir()
    os.chown(str(home), 65534, 65534)
    tmp_path.chmod(0o755)
    uid = (5, b'65534')
    streams = agent.chain(folder(home / 'a' / 'b', (3, b'65534')), put(home / 'a' / 'b' / 'f', b'', uid), put(tmp_path / 'f', b'', uid))
    for stream in streams[1:]:
        agent.send(END, stream)
    assert failures(agent, streams) == ['', '', 'io']
    for path in (home / 'a', home / 'a' / 'b', home / 'a' / 'b' / 'f'):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    assert agent.command('id', '-u').data == b'0\n' and agent.command('id', '-G').data.split()[0] == b'0'
    assert agent.result(agent.open(*_flat(folder(home / 'a' / 'b', REMOVE, (3, b'65534'))))).failure == ''
    eventually(lambda: not (home / 'a' / 'b').exists())
