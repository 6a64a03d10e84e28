"""A small daemon's end of docs/agent-protocol.md, and the interpreters to try the shipped agent with."""

import os
import select
import shutil
import socket
import struct
import subprocess
import time
import zlib

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOM = os.path.join(HERE, '..', '..', 'internal', 'agent')
MAGIC = b'MUX\x00\x0a\x0d\xff\x11\x131\x0d\x0a'
HELLO, OPEN, DATA, ERR, TTY, END, CREDIT, CANCEL, RESULT, PING, PONG, DROP, LOG, WIDEN, KEEP, KEPT, FORGET = range(1, 18)
MODULE, COMMAND, PUT, GET, SPAWN, BLOBS, FOLDER, LOOK = range(1, 9)
WINDOW = 1 << 20
MOST_WINDOW = 4 << 20
CREDIT_AT = 128 << 10
PATIENCE = 60  # seconds after which a wait is a failure; never a measure of anything

NAMES = ['python2.7', 'python3'] + ['python3.%d' % minor for minor in range(6, 15)]


def version_of(path):
    """The interpreter's version and true path, None if it does not run (a shim without its version)."""
    try:
        out = subprocess.run(
            [path, '-c', 'import sys; print("%d.%d.%d" % sys.version_info[:3] + " " + sys.executable)'], check=False, capture_output=True, timeout=PATIENCE
        )
    except OSError:
        return None
    return tuple(out.stdout.decode().strip().split(' ', 1)) if out.returncode == 0 else None


def interpreters():
    """{version: path} of every interpreter to try, by name on PATH and in MITOGEN_MUX_TEST_PYTHONS, and the names of those that are absent."""
    found, missing = {}, []
    listed = [p for p in os.environ.get('MITOGEN_MUX_TEST_PYTHONS', '').split(os.pathsep) if p]
    for name in NAMES + listed:
        path = shutil.which(name)
        known = version_of(path) if path else None
        if known:
            found.setdefault(*known)
        elif name in listed:
            raise pytest.UsageError('MITOGEN_MUX_TEST_PYTHONS names %s, which does not run' % name)
        else:
            missing.append(name)
    have = {version.rsplit('.', 1)[0] for version in found} | {version.split('.')[0] for version in found}
    return found, [name for name in missing if name[6:] not in have]


INTERPRETERS, ABSENT = interpreters()


def one_line(name):
    """Stage 1 as internal/agent/embed.go makes it."""
    with open(os.path.join(ROOM, name)) as f:
        lines = [line.rstrip() for line in f if line.strip() and not line.lstrip().startswith('#')]
    return 'exec("""' + ''.join(line + '\\n' for line in lines) + '""")'


SECTIONS = [
    'agent_frames.py',
    'agent_payload.py',
    'agent_pages.py',
    'agent_child.py',
    'agent_fresh.py',
    'agent_streams.py',
    'agent_chain.py',
    'agent_jobs.py',
    'agent.py',
]


def source_text():
    """The agent as it is shipped."""
    texts = []
    for name in SECTIONS:
        with open(os.path.join(ROOM, name), 'rb') as f:
            texts.append(f.read())
    return b'\0'.join(texts)


LOGGED = 11  # the field of RESULT that repeats


def record(*fields):
    return b''.join(struct.pack('>BI', tag, len(value)) + value for tag, value in fields)


def read_record(data, *repeated):
    fields = {}
    while data:
        tag, n = struct.unpack('>BI', data[:5])
        value = data[5 : 5 + n]
        assert len(value) == n
        if tag in repeated:
            fields.setdefault(tag, []).append(value)
        else:
            assert tag not in fields
            fields[tag] = value
        data = data[5 + n :]
    return fields


class Result:
    """What came on a stream, up to its RESULT."""

    def __init__(self):
        self.data, self.err, self.tty = bytearray(), bytearray(), bytearray()
        self.granted = 0  # bytes of credit given back
        self.ended = False
        self.fields = None

    @property
    def code(self):
        assert self.failure == '', self.fields
        return int(self.fields.get(4, b'0'))

    @property
    def logged(self):
        return [text.decode() for text in self.fields.get(LOGGED, [])]

    @property
    def failure(self):
        assert (self.fields.get(1) == b'1') == (2 in self.fields)
        return self.fields.get(2, b'').decode()


class Agent:
    """One agent process and the daemon's end of its link."""

    def __init__(self, argv, env=None, cwd=None):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env, cwd=cwd, start_new_session=True)
        theirs.close()
        self.adopt(ours, process)

    def adopt(self, link, process):
        self.link = link
        self.process = process
        self.inbox = bytearray()
        self.streams = {}
        self.frames = []  # every frame that came: (kind, stream, length)
        self.last = self.chains = 0
        self.logs = []
        self.pongs = []
        self.hello = None
        self.grants = True  # give credit back as it is used
        self.source = zlib.compress(source_text(), 9)

    def boot(self):
        self.want(len(MAGIC))
        assert bytes(self.inbox[: len(MAGIC)]) == MAGIC
        del self.inbox[: len(MAGIC)]
        self.link.sendall(struct.pack('>I', len(self.source)) + self.source)
        self.until(lambda: self.hello)
        return self

    def want(self, n):
        while len(self.inbox) < n:
            data = self.receive()
            assert data, self.process.stderr.read()
            self.inbox += data

    def receive(self):
        assert select.select([self.link], [], [], PATIENCE)[0], 'the agent says nothing'
        return self.link.recv(1 << 18)

    def send(self, kind, stream=0, payload=b''):
        self.link.sendall(struct.pack('>IBI', len(payload), kind, stream) + payload)

    def ping(self):
        """What was sent before has been dealt with."""
        seen = len(self.pongs)
        self.send(PING, 0, b'12345678')
        self.until(lambda: len(self.pongs) > seen)

    def open(self, kind, *fields):
        self.last += 1
        self.streams[self.last] = Result()
        self.send(OPEN, self.last, bytes([kind]) + record(*fields))
        return self.last

    def chain(self, *links, follows=(), deciding=()):
        """Opens streams as one chain: (kind, fields) or (kind, fields, guard, …), a guard as (index, field, JSON, unequal). It may follow other streams."""
        self.chains += 1
        streams = []
        for index, (kind, fields, *guards) in enumerate(links):
            place = [(1, b'%d' % self.chains), (2, b'%d' % index), (3, b'%d' % len(links))]
            for at, field, value, unequal in guards:
                place.append((4, record((1, b'%d' % at), (2, field), (3, value), (4, b'1' if unequal else b'0'))))
            if index == 0:
                place += [(5, b'%d' % number) for number in follows] + [(6, b'%d' % number) for number in deciding]
            self.last += 1
            streams.append(self.last)
            self.streams[self.last] = Result()
            place = record(*place)
            self.send(OPEN, self.last, bytes([kind | 128]) + struct.pack('>H', len(place)) + place + record(*fields))
        return streams

    def take(self):
        """Takes in what came; False at the end of the link."""
        data = self.receive()
        self.inbox += data
        while len(self.inbox) >= 9:
            length, kind, number = struct.unpack('>IBI', bytes(self.inbox[:9]))
            if len(self.inbox) < 9 + length:
                break
            payload = bytes(self.inbox[9 : 9 + length])
            del self.inbox[: 9 + length]
            self.frames.append((kind, number, length))
            self.frame(kind, number, payload)
        return bool(data)

    def frame(self, kind, number, payload):
        assert self.hello or kind == HELLO
        if kind == HELLO:
            self.hello = read_record(payload)
        elif kind == PONG:
            self.pongs.append(payload)
        elif kind == LOG:
            self.logs.append((payload[0], payload[1:].decode()))
        else:
            result = self.streams[number]
            assert result.fields is None, 'a frame after RESULT'
            if kind == RESULT:
                result.fields = read_record(payload, LOGGED)
            elif kind == END:
                result.ended = True
            elif kind == CREDIT:
                result.granted += struct.unpack('>I', payload)[0]
            else:
                assert payload
                {DATA: result.data, ERR: result.err, TTY: result.tty}[kind].extend(payload)
                if self.grants:
                    self.send(CREDIT, number, struct.pack('>I', len(payload)))

    def until(self, condition):
        while not condition():
            assert self.take(), 'the agent has gone: %s' % self.process.stderr.read().decode()

    def result(self, stream):
        self.until(lambda: self.streams[stream].fields is not None)
        return self.streams[stream]

    def feed(self, stream, data, end=True, sent=0):
        """Sends data within the window, but for what has been sent of it, then END."""
        result = self.streams[stream]
        while sent < len(data) and result.fields is None:
            self.until(lambda: sent - result.granted < WINDOW - 65536 or result.fields is not None)  # noqa: B023
            self.send(DATA, stream, data[sent : sent + 65536])
            sent += 65536
        if end:
            self.send(END, stream)

    def command(self, *argv, stdin=b'', **options):
        fields = [(1, a if isinstance(a, bytes) else a.encode()) for a in argv]
        if options.get('tty'):
            fields.append((2, b'1'))
        if options.get('cwd'):
            fields.append((5, options['cwd']))
        fields += [(6, e) for e in options.get('environ', ())]
        stream = self.open(COMMAND, *fields)
        self.feed(stream, stdin)
        return self.result(stream)

    def blobs(self, *contents):
        import hashlib

        stream = self.open(BLOBS)
        body = b''.join(hashlib.sha256(c).digest() + struct.pack('>I', len(c)) + c for c in contents)
        self.feed(stream, zlib.compress(body))
        result = self.result(stream)
        assert result.failure == '', result.fields

    def close(self):
        self.link.close()

    def wait(self):
        return self.process.wait(PATIENCE)


def eventually(condition):
    """Waits for something outside the link, and returns what it is."""
    deadline = time.monotonic() + PATIENCE
    while not (met := condition()):
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.005)
    return met


def state(pid):
    """As /proc has it, one letter; none if the process is not there."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rsplit(')', 1)[1].split()[0]
    except OSError:
        return ''


def gone(pid):
    """The process has ended, whether or not anybody has asked."""
    return state(pid) in ('', 'Z')


def children(agent):
    """The agent's children: its jobs, and who waits to be one."""
    found = []
    for pid in os.listdir('/proc'):
        if pid.isdigit():
            try:
                with open('/proc/%s/stat' % pid) as f:
                    if int(f.read().rsplit(')', 1)[1].split()[1]) == agent.process.pid:
                        found.append(int(pid))
            except OSError:
                pass
    return found
