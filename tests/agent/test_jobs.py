"""Commands and spawned processes."""

import os
import re
import signal
import struct
import subprocess

import pytest

from agent_driver import CANCEL, COMMAND, CREDIT, CREDIT_AT, DATA, END, ERR, LOOK, MOST_WINDOW, RESULT, SPAWN, TTY, WIDEN, WINDOW, eventually, gone

MIB = 1 << 20


def resident(agent):
    """The agent's peak resident set in KiB."""
    with open('/proc/%d/status' % agent.process.pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmHWM'))


def sh(agent, script, **options):
    return agent.command('sh', '-c', script, **options)


def test_command(agent):
    result = sh(agent, 'cat; echo err >&2; exit 7', stdin=b'in')
    assert (result.code, bytes(result.data), bytes(result.err)) == (7, b'in', b'err\n')
    assert int(result.fields[6]) > 0 and int(result.fields[7]) > 0 and int(result.fields[8]) > 0


def test_command_that_is_not_there(agent):
    result = agent.command('no-such-command')
    assert (result.code, bytes(result.err)) == (127, b'no-such-command: No such file or directory\n')
    assert agent.command('/').code == 126


def test_command_ended_by_a_signal(agent):
    assert sh(agent, 'kill -9 $$').code == 128 + 9


def test_command_surroundings(agent, tmp_path):
    assert sh(agent, 'pwd', cwd=str(tmp_path).encode()).data.decode() == '%s\n' % tmp_path
    home = os.path.expanduser('~')
    assert sh(agent, 'pwd', cwd=b'/no/such/folder').data.decode() == '%s\n' % home
    result = agent.command('/usr/bin/env', environ=[b'A=b=c', b'PATH=/bin', b'ODD=\xff\xfe', b'EMPTY='])
    assert sorted(bytes(result.data).splitlines()) == [b'A=b=c', b'EMPTY=', b'ODD=\xff\xfe', b'PATH=/bin']
    assert agent.command('/usr/bin/env').data == agent.command('/usr/bin/env').data != result.data


@pytest.mark.parametrize('given', [{}, {'LC_CTYPE': 'C.UTF-8'}])
def test_command_does_not_see_what_python_did_to_the_locale(start, given):
    """PEP 538: Python 3.7 and newer set LC_CTYPE in the C locale. A value that was there before stays."""
    agent = start(env=dict(PATH=os.environ['PATH'], **given))
    names = [line.split(b'=')[0] for line in agent.command('/usr/bin/env').data.splitlines()]
    assert (b'LC_CTYPE' in names) == bool(given)


def test_command_has_plain_signals_and_files(agent):
    ours = sh(agent, 'grep Sig[BI] /proc/self/status').data
    assert ours == subprocess.check_output(['grep', 'Sig[BI]', '/proc/self/status'])
    assert sh(agent, 'ls /proc/self/fd').data == b'0\n1\n2\n3\n'  # 3 is that of ls


def test_command_has_a_session(agent):
    fields = sh(agent, 'cat /proc/$$/stat; :').data.decode().rsplit(')', 1)
    pid, (group, session) = fields[0].split()[0], fields[1].split()[2:4]
    assert pid == group == session


def test_command_on_a_terminal(agent):
    result = sh(agent, 'tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2; read word; echo "<$word>"; cat', tty=True, stdin=b'typed\n')
    assert result.code == 0
    assert re.search(rb'/dev/pts/\d+\r\nall\r\nerr\r\n', result.data) and b'<typed>\r\n' in result.data
    assert not result.err


def test_output_of_those_left_behind_is_waited_for(agent, tmp_path):
    """As over ssh: the result comes when nobody has the output any more."""
    go = tmp_path / 'go'
    stream = agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, ('(while [ ! -e %s ]; do sleep 0.01; done; echo late) & exit 3' % go).encode()))
    agent.send(END, stream)
    agent.ping()
    go.write_text('')
    result = agent.result(stream)
    assert (result.code, bytes(result.data)) == (3, b'late\n')


def test_much_output_in_bounded_memory(agent):
    result_of = agent.open(COMMAND, (1, b'head'), (1, b'-c'), (1, b'%d' % (100 * MIB)), (1, b'/dev/zero'))
    agent.send(END, result_of)
    result = agent.streams[result_of]
    size = 0
    while result.fields is None:
        assert agent.take()
        size += len(result.data)
        del result.data[:]
    assert size == 100 * MIB
    assert resident(agent) < 40 * 1024


def test_output_waits_for_credit(agent):
    agent.grants = False
    stream = agent.open(COMMAND, (1, b'head'), (1, b'-c'), (1, b'%d' % (8 * MIB)), (1, b'/dev/zero'))
    agent.send(END, stream)
    result = agent.streams[stream]
    agent.until(lambda: len(result.data) == WINDOW)
    agent.ping()
    assert agent.command('true').code == 0  # others are not held up
    assert len(result.data) == WINDOW
    for granted in range(1, 8):
        agent.send(CREDIT, stream, struct.pack('>I', WINDOW))
        agent.until(lambda: len(result.data) == (granted + 1) * WINDOW)  # noqa: B023
    agent.send(CREDIT, stream, struct.pack('>I', 1))  # without credit it does not look whether there is more
    assert agent.result(stream).code == 0


def test_a_wider_window_is_for_both_ways(agent, tmp_path):
    """So much more goes up at once, and so much more is taken."""
    agent.grants = False
    go = tmp_path / 'go'
    script = 'head -c %d /dev/zero; while [ ! -e %s ]; do sleep 0.01; done; wc -c >&2' % (2 * MOST_WINDOW, go)
    stream = agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, script.encode()))
    result = agent.streams[stream]
    agent.until(lambda: len(result.data) == WINDOW)
    agent.send(WIDEN, stream, struct.pack('>I', WINDOW + 1))
    agent.send(WIDEN, stream, struct.pack('>I', MOST_WINDOW))
    agent.until(lambda: len(result.data) == MOST_WINDOW)
    for _ in range(MOST_WINDOW // 65536):
        agent.send(DATA, stream, bytes(65536))
    agent.ping()
    assert len(result.data) == MOST_WINDOW and result.granted <= CREDIT_AT  # what the pipe to the job takes
    agent.send(CREDIT, stream, struct.pack('>I', MOST_WINDOW + 100))  # and for what wc says
    go.write_text('')
    agent.send(END, stream)
    assert int(agent.result(stream).err) == MOST_WINDOW


def test_look(agent):
    """What jobs are doing is told, what they were given is not."""
    nobody = agent.result(agent.open(LOOK))
    assert (bytes(nobody.data), nobody.ended) == (b'no job', True)
    stream = agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, b'sleep 1000; : secret'))
    text = ''
    while '(sleep)' not in text:
        text = agent.result(agent.open(LOOK)).data.decode()
    agent.send(CANCEL, stream)
    agent.result(stream)
    assert re.match(r'job of process \d+: a command, for \d+ s\n', text), text
    assert '(sh), ' in text and '(sleep), ' in text and 'secret' not in text and '1000' not in text


def test_output_waits_for_the_link(agent):
    """Many streams and a daemon that does not read: the agent holds little, and nothing is lost."""
    agent.grants = False
    streams = [agent.open(COMMAND, (1, b'head'), (1, b'-c'), (1, b'%d' % (WINDOW - 1)), (1, b'/dev/zero')) for _ in range(30)]
    for stream in streams:
        agent.send(END, stream)
    for stream in streams:
        assert len(agent.result(stream).data) == WINDOW - 1
    assert resident(agent) < 40 * 1024


def test_much_input_in_bounded_memory(agent):
    stream = agent.open(COMMAND, (1, b'wc'), (1, b'-c'))
    agent.feed(stream, bytes(100 * MIB))
    assert int(agent.result(stream).data) == 100 * MIB
    assert resident(agent) < 40 * 1024


def test_input_waits_for_its_reader(agent, tmp_path):
    go = tmp_path / 'go'
    stream = agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, ('while [ ! -e %s ]; do sleep 0.01; done; wc -c' % go).encode()))
    for _ in range(16):
        agent.send(DATA, stream, bytes(65536))
    agent.ping()
    assert agent.streams[stream].granted < WINDOW // 2
    go.write_text('')
    agent.send(END, stream)
    assert int(agent.result(stream).data) == WINDOW


def test_input_that_nobody_wants(agent):
    """The reader has gone: the rest is taken and thrown away."""
    assert sh(agent, 'exec <&-; sleep 0.05; echo done', stdin=bytes(5 * MIB)).data == b'done\n'


def test_two_at_once(agent, tmp_path):
    """Each waits for the other."""
    a, b = tmp_path / 'a', tmp_path / 'b'
    script = 'echo > %s; while [ ! -e %s ]; do sleep 0.01; done; echo %s'
    streams = []
    for mine, other in ((a, b), (b, a)):
        streams.append(agent.open(COMMAND, (1, b'sh'), (1, b'-c'), (1, (script % (mine, other, mine)).encode())))
        agent.send(END, streams[-1])
    assert [bytes(agent.result(s).data).decode().strip() for s in streams] == [str(a), str(b)]


@pytest.mark.parametrize('tty', [False, True])
def test_cancel_kills_the_group(agent, tty):
    fields = [(1, b'sh'), (1, b'-c'), (1, b'trap "" TERM HUP; sleep 1000 & echo $! $$; wait')] + ([(2, b'1')] if tty else [])
    stream = agent.open(COMMAND, *fields)
    agent.until(lambda: b'\n' in agent.streams[stream].data)
    pids = [int(pid) for pid in agent.streams[stream].data.split()]
    agent.send(CANCEL, stream)
    assert agent.result(stream).failure == 'cancelled'
    for pid in pids:
        eventually(lambda: gone(pid))  # noqa: B023
    assert agent.command('echo', 'hi').data == b'hi\n'


def test_cancel_at_once(agent):
    """Before the child may have its group."""
    for _ in range(20):
        stream = agent.open(COMMAND, (1, b'sleep'), (1, b'1000'))
        agent.send(CANCEL, stream)
        assert agent.result(stream).failure == 'cancelled'


def test_no_descriptor_is_left(agent):
    def count():
        agent.ping()
        return len(os.listdir('/proc/%d/fd' % agent.process.pid))

    agent.command('true')
    before = count()
    for tty in (False, True):
        agent.command('true', tty=tty)
        stream = agent.open(COMMAND, (1, b'sleep'), (1, b'1000'), (2, b'%d' % tty))
        agent.send(CANCEL, stream)
        agent.result(stream)
        for terminal in (b'0', b'1', b'2'):
            agent.result(agent.open(SPAWN, (1, b'true'), (2, terminal)))
    assert count() == before


def test_fork_that_fails(start):
    """No process may be had: an answer, and the agent lives."""
    agent = start()
    import resource

    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (len(os.listdir('/proc/%d/fd' % agent.process.pid)) + 1, 4096))
    result = agent.result(agent.open(COMMAND, (1, b'true')))
    assert result.failure == 'fork' and result.fields[3]
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    assert agent.command('true').code == 0


@pytest.mark.parametrize('terminal', [b'0', b'1', b'2'])
def test_descriptors_run_out(start, terminal):
    """Wherever in its making a job has none left, it leaves none behind."""
    agent = start()
    import resource

    def count():
        return len(os.listdir('/proc/%d/fd' % agent.process.pid))

    def outcome():
        result = agent.result(agent.open(SPAWN, (1, b'true'), (2, terminal)))
        return result.failure or result.code

    outcome()
    before = count()
    seen = []
    for room in range(12):
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (before + room, 4096))
        seen.append(outcome())
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        eventually(lambda: count() == before)
    assert (seen[0], seen[-1]) == ('fork', 0)
    assert set(seen) <= {'fork', 255, 0}, 'the child may have none left either'


def spawn(agent, terminal, script):
    return agent.open(SPAWN, (1, b'sh'), (1, b'-c'), (1, script), (2, terminal))


def test_spawn_without_a_terminal(agent):
    stream = spawn(agent, b'0', b'cat; echo err >&2; (tty </dev/tty) 2>/dev/null || echo none')
    agent.feed(stream, b'in')
    result = agent.result(stream)
    assert (bytes(result.data), bytes(result.err)) == (b'innone\n', b'err\n')
    assert result.ended


def test_spawn_with_a_controlling_terminal(agent):
    """As sudo asks for a password: on /dev/tty, while stdio are pipes."""
    stream = spawn(agent, b'1', b'stty -echo </dev/tty; printf "Password: " >/dev/tty; read word </dev/tty; echo "got $word"; test -t 0 || echo pipe; cat')
    agent.until(lambda: b'Password: ' in agent.streams[stream].tty)
    agent.send(TTY, stream, b'secret\n')
    agent.feed(stream, b'rest')
    result = agent.result(stream)
    assert bytes(result.data) == b'got secret\npipe\nrest'
    assert b'secret' not in result.tty and not result.err


def test_spawn_asks_late(agent, tmp_path):
    """Nobody has the terminal open for a while: that is not its end."""
    go = tmp_path / 'go'
    stream = spawn(agent, b'1', b'while [ ! -e %s ]; do sleep 0.01; done; echo late >/dev/tty' % str(go).encode())
    agent.ping()
    go.write_text('')
    agent.send(END, stream)
    assert bytes(agent.result(stream).tty) == b'late\r\n'


def test_spawn_on_a_terminal(agent):
    stream = spawn(agent, b'2', b'stty raw -echo; tty >/dev/null && printf ready; head -c 3; tty')
    agent.until(lambda: agent.streams[stream].data == b'ready')
    agent.send(DATA, stream, b'\x00\xff\n')
    result = agent.result(stream)
    assert bytes(result.data).startswith(b'ready\x00\xff\n/dev/') and not result.tty


def test_spawn_on_a_terminal_is_hung_up_at_the_end(agent):
    stream = spawn(agent, b'2', b'echo ready; exec sleep 1000')
    agent.until(lambda: agent.streams[stream].data)
    agent.send(END, stream)
    assert agent.result(stream).code == 128 + signal.SIGHUP


@pytest.mark.parametrize('terminal', [b'0', b'1', b'2'])
def test_an_agent_in_an_agent(agent, python, terminal):
    """What a spawn is for: the child's link runs inside the stream, byte for byte."""
    from agent_driver import Agent, one_line

    stream = agent.open(SPAWN, (1, python.encode()), (1, b'-c'), (1, one_line('stage1.py').encode()), (1, b'inner'), (2, terminal))

    class Inside:
        def sendall(self, data):
            for at in range(0, len(data), 65536):
                agent.send(DATA, stream, data[at : at + 65536])

        def close(self):
            agent.send(END, stream)

    inner = Agent.__new__(Agent)
    inner.adopt(Inside(), agent.process)

    def receive():
        result = agent.streams[stream]
        agent.until(lambda: result.data or result.fields is not None)
        data = bytes(result.data)
        del result.data[:]
        return data

    inner.receive = receive
    inner.boot()
    assert int(inner.hello[3]) != agent.process.pid
    body = os.urandom(300000)
    assert inner.command('cat', stdin=body).data == body
    inner.close()
    result = agent.result(stream)
    assert result.failure == '' and not result.err
    kinds = {kind for kind, number, _ in agent.frames if number == stream}
    assert kinds <= {DATA, END, CREDIT, RESULT, ERR, TTY}


def test_memory_is_told_when_it_has_grown(agent):
    """What the agent itself has resident, in KiB: with the first result, and again with one before which it became more."""
    with open('/proc/%d/status' % agent.process.pid) as f:
        resident = next(int(line.split()[1]) for line in f if line.startswith('VmRSS'))
    first = int(agent.command('true').fields[12])
    assert abs(first - resident) < 4096
    for _ in range(3):
        agent.command('true')
    assert 12 not in agent.command('true').fields
    agent.blobs(bytes(8 << 20))
    assert int(agent.command('true').fields[12]) > first + 7000
