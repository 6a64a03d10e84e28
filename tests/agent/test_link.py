"""The link: how it begins, what it refuses, how it ends."""

import contextlib
import fcntl
import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib

import pytest

from agent_driver import (
    ABSENT,
    CANCEL,
    COMMAND,
    CREDIT,
    DATA,
    DROP,
    END,
    ERR,
    FORGET,
    GET,
    HELLO,
    KEEP,
    KEPT,
    LOG,
    MAGIC,
    MODULE,
    MOST_WINDOW,
    OPEN,
    PATIENCE,
    PING,
    PONG,
    PUT,
    RESULT,
    ROOM,
    SECTIONS,
    SPAWN,
    TTY,
    WIDEN,
    WINDOW,
    Agent,
    children,
    eventually,
    one_line,
    record,
    source_text,
    state,
)


@pytest.mark.parametrize(('name', 'most'), [('stage1.py', 700), ('stage1_local.py', 1000)])
def test_stage1_fits_a_quoted_word(name, most):
    text = one_line(name)
    assert len(text) < most
    assert not re.search('[\'!$`\n]', text)
    assert set(re.findall(r'\\.', text)) == {r'\n'}


def test_stage1_local_goes_on_as_stage1():
    assert one_line('stage1_local.py').endswith(one_line('stage1.py')[len('exec("""') :])


def test_sections_are_small():
    for name in SECTIONS:
        with open(os.path.join(ROOM, name)) as f:
            assert len(f.readlines()) < 600, name


@pytest.mark.parametrize('name', ABSENT)
def test_interpreters_that_are_absent(name):
    pytest.skip('no %s on PATH or in MITOGEN_MUX_TEST_PYTHONS' % name)


def test_lowest_pythons():
    vermin = shutil.which('vermin', path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')]))
    if not vermin:
        pytest.skip('no vermin on PATH')
    files = [os.path.join(ROOM, name) for name in [*SECTIONS, 'stage1.py', 'stage1_local.py']]
    config = os.path.join(ROOM, '..', '..', 'tools', 'vermin.ini')
    subprocess.run([vermin, '--config-file', config, *files], check=True, timeout=PATIENCE)


def test_hello(agent, python):
    assert agent.hello[1] == b'1'
    assert int(agent.hello[3]) == agent.process.pid
    assert int(agent.hello[4]) == os.getuid()
    assert agent.hello[5] == hashlib.sha256(agent.source).digest()
    assert os.path.samefile(agent.hello[6], subprocess.check_output([python, '-c', 'import sys; print(sys.executable)']).strip())


def test_pipes_are_roomy(python):
    process = subprocess.Popen([python, '-c', one_line('stage1.py'), 'test'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        source = zlib.compress(source_text(), 9)
        process.stdin.write(struct.pack('>I', len(source)) + source)
        process.stdin.flush()
        assert process.stdout.read(len(MAGIC) + 9)[-5] == HELLO
        sizes = [fcntl.fcntl(pipe, 1032) for pipe in (process.stdin, process.stdout)]  # F_GETPIPE_SZ
        assert sizes == [262144, 262144]
        process.stdin.close()


def test_a_byte_at_a_time(start):
    agent = start(boot=False)
    agent.want(len(MAGIC))
    del agent.inbox[: len(MAGIC)]
    request = b'\x02' + record((1, b'cat'))
    text = struct.pack('>I', len(agent.source)) + agent.source
    for frame in ((OPEN, 1, request), (DATA, 1, b'abc'), (END, 1, b''), (PING, 0, b'12345678')):
        text += struct.pack('>IBI', len(frame[2]), frame[0], frame[1]) + frame[2]
    agent.streams[1] = type('R', (), {'data': bytearray(), 'err': bytearray(), 'tty': bytearray(), 'fields': None, 'ended': False})()
    for byte in bytearray(text):
        agent.link.sendall(bytes([byte]))
    agent.until(lambda: agent.pongs and agent.streams[1].fields is not None)
    assert agent.streams[1].data == b'abc'
    assert agent.pongs == [b'12345678']


def test_reads_of_a_byte(agent):
    """The far side takes a byte at a time from a full link."""
    agent.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    body = os.urandom(20000)
    stream = agent.open(COMMAND, (1, b'cat'))
    agent.feed(stream, body)
    agent.receive = lambda: agent.link.recv(1)
    assert agent.result(stream).data == body


def test_local_agent_attaches_itself(python, tmp_path):
    path = str(tmp_path / 's')
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    process = subprocess.Popen([python, '-c', one_line('stage1_local.py'), 'name', path, 'c0ffee'], stdin=subprocess.DEVNULL)
    link, _ = server.accept()
    agent = Agent.__new__(Agent)
    agent.adopt(link, process)
    agent.want(17)
    assert bytes(agent.inbox[:17]) == b'MUXATTACH c0ffee\n'
    del agent.inbox[:17]
    agent.boot()
    assert agent.command('echo', 'hi').data == b'hi\n'
    agent.close()
    assert agent.wait() == 0
    server.close()


HOSTILE = {
    'unknown type': struct.pack('>IBI', 0, 99, 1),
    'type zero': struct.pack('>IBI', 0, 0, 0),
    'too long': struct.pack('>IBI', 131073, DATA, 1),
    'longest': struct.pack('>IBI', 0xFFFFFFFF, DATA, 1),
    'data on stream 0': struct.pack('>IBI', 1, DATA, 0) + b'x',
    'data on no stream': struct.pack('>IBI', 1, DATA, 77) + b'x',
    'empty data': struct.pack('>IBI', 0, DATA, 1),
    'ping on a stream': struct.pack('>IBI', 8, PING, 1) + b'12345678',
    'short ping': struct.pack('>IBI', 7, PING, 0) + b'1234567',
    'uneven drop': struct.pack('>IBI', 33, DROP, 0) + b'x' * 33,
    'window on stream 0': struct.pack('>IBI', 4, WIDEN, 0) + b'xxxx',
    'credit of 3 bytes': struct.pack('>IBI', 3, CREDIT, 1) + b'xxx',
    'end with bytes': struct.pack('>IBI', 1, END, 1) + b'x',
    'open without a kind': struct.pack('>IBI', 0, OPEN, 1),
    'open of kind 0': struct.pack('>IBI', 1, OPEN, 1) + b'\0',
    'open on stream 0': struct.pack('>IBI', 1, OPEN, 0) + b'\2',
    'hello': struct.pack('>IBI', 0, HELLO, 0),
    'result': struct.pack('>IBI', 0, RESULT, 1),
    'err': struct.pack('>IBI', 1, ERR, 1) + b'x',
    'pong': struct.pack('>IBI', 8, PONG, 0) + b'12345678',
    'log': struct.pack('>IBI', 1, LOG, 0) + b'x',
    'keep on stream 0': struct.pack('>IBI', 1, KEEP, 0) + b'x',
    'keep on no stream': struct.pack('>IBI', 1, KEEP, 77) + b'x',
    'empty keep': struct.pack('>IBI', 0, KEEP, 1),
    'kept of 3 bytes': struct.pack('>IBI', 3, KEPT, 1) + b'xxx',
    'forget on a stream': struct.pack('>IBI', 4, FORGET, 1) + b'\0\0\0\1',
    'forget what never was': struct.pack('>IBI', 4, FORGET, 0) + b'\0\0\0\1',
    'cancel of what never was': struct.pack('>IBI', 0, CANCEL, 5),
}


@pytest.mark.parametrize('what', sorted(HOSTILE))
def test_hostile_frames_end_it(agent, what):
    agent.link.sendall(HOSTILE[what])
    assert agent.wait() == 0
    words = agent.process.stderr.read().decode()
    assert words.startswith('mitogen-mux: the link ends: ') and words.count('\n') == 1


@pytest.mark.parametrize(
    'frames',
    [
        lambda a, s: a.send(TTY, s, b'x'),  # a command has no controlling terminal
        lambda a, s: (a.send(END, s), a.send(END, s)),
        lambda a, s: (a.send(END, s), a.send(DATA, s, b'x')),
        lambda a, s: a.send(OPEN, s, b'\2' + record((1, b'true'))),  # a number again
        lambda a, s: [a.send(DATA, s, b'x' * 65536) for _ in range(17)],  # more than the window
        lambda a, s: [a.send(KEEP, s, b'x' * 65536) for _ in range(17)],
        lambda a, s: [a.send(KEEP, s, b'x' * 65536)] + [a.send(KEPT, s, b'\0\0\0\1') for _ in range(16)],
        lambda a, s: a.send(KEPT, s, b'\0\0\0\1'),
        lambda a, s: [a.send(KEEP, s, b'x'), a.send(FORGET, 0, b'\0\0\0\1'), a.send(KEPT, s, b'\0\0\0\1')],
        lambda a, s: [a.send(KEEP, s, b'x'), a.send(FORGET, 0, b'\0\0\0\2')],
        lambda a, s: (a.send(END, s), a.send(KEEP, s, b'x')),
        lambda a, s: a.send(WIDEN, s, struct.pack('>I', WINDOW)),
        lambda a, s: a.send(WIDEN, s, struct.pack('>I', MOST_WINDOW + 1)),
    ],
    ids=[
        'tty',
        'two ends',
        'data after end',
        'number again',
        'overrun',
        'overrun by keep',
        'overrun by kept',
        'kept that never was',
        'kept that is forgotten',
        'forget what never was',
        'keep after end',
        'window no wider',
        'window too wide',
    ],
)
def test_frames_that_a_stream_may_not_have(agent, frames):
    stream = agent.open(COMMAND, (1, b'sleep'), (1, b'1000'))
    agent.ping()
    child = children(agent)
    assert child
    with contextlib.suppress(BrokenPipeError):
        frames(agent, stream)
    agent.link.settimeout(PATIENCE)
    while agent.link.recv(1 << 16):
        pass
    assert b'the link ends' in agent.process.stderr.readline()
    for pid in child:  # a job goes on: that is the page's rule for a link that ends
        os.kill(pid, signal.SIGKILL)
    assert agent.wait() == 0


@pytest.mark.parametrize(
    ('kind', 'fields'),
    [(COMMAND, ()), (COMMAND, ((9, b'x'),)), (MODULE, ((1, b'short'), (1, b'twice'))), (PUT, ((2, b'many'),)), (GET, ())],
    ids=['no argv', 'unknown tag', 'tag twice', 'no number', 'no path'],
)
def test_bad_requests_end_their_stream_only(agent, kind, fields):
    result = agent.result(agent.open(kind, *fields))
    assert result.failure in ('bad-request', 'not-found')
    agent.send(OPEN, agent.last + 1, b'\2' + b'\1\0\0')  # a record that is cut short
    agent.last += 1
    agent.streams[agent.last] = type(result)()
    assert agent.result(agent.last).failure == 'bad-request'
    assert agent.command('echo', 'hi').data == b'hi\n'


def test_frames_for_streams_that_ended_are_ignored(agent):
    agent.command('true')
    for kind, payload in ((DATA, b'x'), (END, b''), (CREDIT, b'\0\0\0\1'), (WIDEN, b'\0\x20\0\0'), (KEEP, b'x'), (KEPT, b'\0\0\0\1'), (CANCEL, b'')):
        agent.send(kind, 1, payload)
    assert agent.command('echo', 'hi').data == b'hi\n'


def test_kept_for_others(agent):
    """What came once goes to whoever it is for, in its place, until it is forgotten; also what came for one who had gone."""
    ended, first, second = (agent.open(SPAWN, (1, name)) for name in (b'true', b'cat', b'cat'))
    agent.result(ended)
    body = os.urandom(131072)
    agent.send(KEEP, ended, b'gone ')
    agent.send(DATA, first, b'a')
    agent.send(KEEP, first, body)
    for stream in (second, first):
        agent.send(DATA, stream, b'b')
        agent.send(KEPT, stream, b'\0\0\0\2')
        agent.send(KEPT, stream, b'\0\0\0\1')
    agent.send(FORGET, 0, b'\0\0\0\1')
    agent.send(KEEP, second, b'c')
    agent.send(KEPT, first, b'\0\0\0\3')
    agent.send(KEPT, second, b'\0\0\0\2')
    agent.send(FORGET, 0, b'\0\0\0\3')
    for stream in (first, second):
        agent.send(END, stream)
    assert agent.result(first).data == b'a' + body + b'b' + body + b'gone c'
    assert agent.result(second).data == b'b' + body + b'gone c' + body
    assert agent.result(first).granted >= 262144
    assert agent.command('echo', 'hi').data == b'hi\n'


def test_what_is_kept_is_there_once(agent):
    """Children that read nothing hold no copies."""
    streams = [agent.open(SPAWN, (1, b'sleep'), (1, b'1000')) for _ in range(40)]
    agent.ping()
    before = resident(agent)
    for at in range(8):
        agent.send(KEEP, streams[0], os.urandom(131072))
        for stream in streams[1:]:
            agent.send(KEPT, stream, struct.pack('>I', at + 1))
    agent.ping()
    assert resident(agent) - before < 8 << 10
    agent.send(FORGET, 0, struct.pack('>I', 8))
    for stream in streams:
        agent.send(CANCEL, stream)
        assert agent.result(stream).failure == 'cancelled'


def resident(agent):
    """KiB"""
    with open('/proc/%d/statm' % agent.process.pid) as f:
        return int(f.read().split()[1]) * (resource.getpagesize() >> 10)


def test_control_overtakes_data(agent):
    """A PONG comes while more than a full link of data waits."""
    stream = agent.open(COMMAND, (1, b'head'), (1, b'-c'), (1, b'900000'), (1, b'/dev/zero'))
    agent.send(END, stream)
    agent.until(lambda: agent.streams[stream].data)
    agent.send(PING, 0, b'12345678')
    result = agent.result(stream)
    assert len(result.data) == 900000
    order = [kind for kind, _, _ in agent.frames]
    agent.until(lambda: agent.pongs)
    assert agent.frames[-1][0] == RESULT or PONG in order


def test_stdio_is_silent(start):
    """Nothing but frames on the link, nothing on stderr, whatever is imported."""
    agent = start()
    agent.command('sh', '-c', 'echo out; echo err >&2')
    agent.close()
    assert agent.wait() == 0
    assert agent.process.stderr.read() == b''


def test_ends_with_its_link(agent):
    agent.close()
    assert agent.wait() == 0


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_signals_are_as_the_end_of_the_link(agent, number):
    agent.process.send_signal(number)
    while agent.take():
        pass
    assert agent.wait() == 0


@pytest.mark.parametrize('how', ['close', 'term'])
def test_jobs_outlive_the_link(agent, tmp_path, how):
    """A job that is running goes on to its end, with more output than a pipe holds; then the agent exits."""
    go, done = tmp_path / 'go', tmp_path / 'done'
    script = 'while [ ! -e %s ]; do sleep 0.01; done; head -c 3000000 /dev/zero; echo x >&2; echo > %s' % (go, done)
    agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, script.encode()))
    agent.send(END, 1)
    agent.ping()
    if how == 'close':
        agent.close()
    else:
        agent.process.send_signal(signal.SIGTERM)
        while agent.take():
            pass
    assert agent.process.poll() is None
    go.write_text('')
    assert agent.wait() == 0
    assert done.exists()


def test_spawned_see_the_end_of_the_link(agent, tmp_path):
    done = tmp_path / 'done'
    agent.open(5, (1, b'sh'), (1, b'-c'), (1, ('cat; echo > %s' % done).encode()))
    agent.ping()
    agent.close()
    assert agent.wait() == 0
    eventually(done.exists)


def test_never_spins(agent):
    """Output that may not be sent, from a writer that has gone, leaves the agent asleep."""
    agent.grants = False
    stream = agent.open(COMMAND, (1, b'head'), (1, b'-c'), (1, str(WINDOW + 1000).encode()), (1, b'/dev/zero'))
    agent.send(END, stream)
    agent.until(lambda: len(agent.streams[stream].data) == WINDOW)
    agent.ping()
    eventually(lambda: not [pid for pid in children(agent) if state(pid) != 'Z'])
    for _ in range(50):
        eventually(lambda: state(agent.process.pid) == 'S')
    agent.send(CREDIT, stream, struct.pack('>I', 1001))
    assert len(agent.result(stream).data) == WINDOW + 1000
