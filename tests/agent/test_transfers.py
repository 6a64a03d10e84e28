"""Files in and out, and blobs."""

import hashlib
import os
import stat
import struct
import subprocess
import zlib

import pytest

from agent_driver import BLOBS, CANCEL, DATA, END, GET, MODULE, PUT, ROOM, WINDOW

SIZE = 300000


def put(agent, path, body, size=None, mode=None, digest=None, trailer=None):
    """Opens a put and sends it whole; digest: in the request, otherwise as the trailer."""
    fields = [(1, str(path).encode()), (2, b'%d' % (len(body) if size is None else size))]
    fields += [(3, b'%d' % mode)] if mode is not None else []
    fields += [(4, digest)] if digest else []
    stream = agent.open(PUT, *fields)
    agent.feed(stream, body + (b'' if digest else hashlib.sha256(body).digest() if trailer is None else trailer))
    return agent.result(stream)


def get(agent, path):
    return agent.result(agent.open(GET, (1, os.fsencode(path))))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'folder'
    path.mkdir()
    return path


@pytest.mark.parametrize('size', [0, 1, 32, 65535, 131072, SIZE, 5 * WINDOW])
@pytest.mark.parametrize('trailer', [True, False])
def test_there_and_back(agent, folder, size, trailer):
    body = os.urandom(size)
    digest = hashlib.sha256(body).digest()
    result = put(agent, folder / 'f', body, digest=None if trailer else digest)
    assert result.failure == '' and result.fields.get(9, b'0') == b'%d' % size and result.fields[10] == digest
    assert (folder / 'f').read_bytes() == body
    result = get(agent, folder / 'f')
    assert result.failure == '' and result.data == body and result.ended
    assert result.fields.get(9, b'0') == b'%d' % size and result.fields[10] == digest
    assert os.listdir(str(folder)) == ['f']


def test_more_than_the_disk_waits_for(agent, folder):
    body = os.urandom(1 << 20) * 17 + b'and a rest'
    assert put(agent, folder / 'f', body).failure == ''
    assert (folder / 'f').read_bytes() == body


@pytest.mark.parametrize(
    ('old', 'asked', 'new'), [(None, None, 0o640), (None, 0o755, 0o755), (0o600, None, 0o600), (0o4711, None, 0o4711), (0o644, 0o600, 0o600), (0o644, 0, 0)]
)
def test_mode(start, folder, old, asked, new):
    umask = os.umask(0o027)
    try:
        agent = start()
    finally:
        os.umask(umask)
    if old is not None:
        (folder / 'f').write_bytes(b'old')
        (folder / 'f').chmod(old)
    assert put(agent, folder / 'f', b'new', mode=asked).failure == ''
    assert stat.S_IMODE(os.stat(str(folder / 'f')).st_mode) == new


def test_owner_is_kept(agent, folder):
    if os.getuid() != 0:
        pytest.skip('only root may give files away')
    (folder / 'f').write_bytes(b'old')
    os.chown(str(folder / 'f'), 12345, 23456)
    assert put(agent, folder / 'f', b'new').failure == ''
    assert os.stat(str(folder / 'f'))[4:6] == (12345, 23456)


def test_links_are_followed(agent, folder):
    """As open() would: the file they lead to is written, also where there was none."""
    (folder / 'there').write_bytes(b'old')
    for name, target in (('a', 'there'), ('b', 'not-yet')):
        (folder / name).symlink_to(target)
        assert put(agent, folder / name, name.encode()).failure == ''
        assert (folder / name).is_symlink() and (folder / target).read_bytes() == name.encode()


def test_odd_names(agent, folder):
    name = os.fsencode(str(folder)) + b'/\xff \n"x'
    stream = agent.open(PUT, (1, name), (2, b'1'))
    agent.feed(stream, b'x' + hashlib.sha256(b'x').digest())
    assert agent.result(stream).failure == ''
    assert os.listdir(os.fsencode(str(folder))) == [b'\xff \n"x']
    assert get(agent, name).data == b'x'


REFUSED = [
    ('a folder', lambda f: (f / 'f').mkdir(), 'io', b'Is a directory'),
    ('no folder', lambda f: f.rmdir(), 'not-found', b'No such file or directory'),
    ('a file for a folder', lambda f: (f.rmdir(), f.write_bytes(b'')), 'not-found', b'Not a directory'),
    ('a loop', lambda f: (f / 'f').symlink_to('f'), 'io', b'Too many levels of symbolic links'),
    ('a pipe', lambda f: os.mkfifo(str(f / 'f')), 'io', b'Not a regular file'),
]


@pytest.mark.parametrize(('spoil', 'kind', 'text'), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_destinations_that_are_refused(agent, folder, spoil, kind, text):
    spoil(folder)
    result = put(agent, folder / 'f', os.urandom(SIZE))
    assert (result.failure, result.fields[3]) == (kind, text)
    assert agent.command('true').code == 0


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / 'disk'
    path.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(path)], check=False, capture_output=True).returncode:
        pytest.skip('no right to mount')
    yield path
    subprocess.run(['umount', str(path)], check=True)


def test_full_disk(agent, small_disk):
    (small_disk / 'f').write_bytes(b'old')
    result = put(agent, small_disk / 'f', os.urandom(SIZE))
    assert (result.failure, result.fields[3]) == ('io', b'No space left on device')
    assert (small_disk / 'f').read_bytes() == b'old' and os.listdir(str(small_disk)) == ['f']


def test_read_only_disk(agent, small_disk):
    (small_disk / 'f').write_bytes(b'old')
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    for name in ('f', 'g'):
        result = put(agent, small_disk / name, b'new')
        assert result.failure == 'io'
        assert result.fields[3] in (b'Read-only file system', b'Permission denied')
    assert get(agent, small_disk / 'f').data == b'old'


WRONG = [
    ('digest in the request', {'digest': bytes(31) + b'1'}, 'digest'),
    ('trailer', {'trailer': bytes(32)}, 'digest'),
    ('no trailer', {'trailer': b''}, 'digest'),
    ('trailer too long', {'trailer': bytes(33)}, 'bad-request'),
    ('too much', {'size': 10}, 'bad-request'),
    ('too little', {'size': 1000}, 'changed'),
]


@pytest.mark.parametrize(('wrong', 'kind'), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_comes_is_wrong(agent, folder, wrong, kind):
    (folder / 'f').write_bytes(b'old')
    assert put(agent, folder / 'f', b'x' * 100, **wrong).failure == kind
    assert (folder / 'f').read_bytes() == b'old' and os.listdir(str(folder)) == ['f']


# What a Put asks of the disk, and what becomes of a disk that refuses. Arguments: a folder, and the agent's rooms.
DISK = r'''
import hashlib, os, sys
place = sys.argv[1]
for room in sys.argv[2:]:
    exec(compile(open(room).read(), room, 'exec'))

synced, broken = [], []

def fsync(fd):
    synced.append(os.path.basename(os.readlink('/proc/self/fd/%d' % fd))[:5])

def close(fd, close=os.close):
    name = os.readlink('/proc/self/fd/%d' % fd)
    close(fd)
    if broken and place in name:
        raise OSError(errno.EDQUOT, 'Disk quota exceeded')

os.fsync, os.close = fsync, close

class agent:
    folders, streams, umask = {}, {}, 0o22
    send = ended = staticmethod(lambda *_: None)

def put(name, body=b'body'):
    agent.streams[1] = stream = Put(agent, 1)
    try:
        stream.start(pack((1, os.path.join(place, name)), (2, len(body)), (4, hashlib.sha256(body).digest())))
        stream.frame(DATA, body)
        stream.frame(END, b'')
    except EnvironmentError as e:
        stream.abort('io', os.strerror(e.errno))
    assert stream.done and not agent.streams
    return open(os.path.join(place, name), 'rb').read()

# What stays is on the disk before it has its name, and its name with it; what an action moves on is not waited for.
assert put('f') == b'body' and synced == ['.mito', os.path.basename(place)[:5]], synced
agent.folders[to_bytes(place)] = b''
assert put('g') == b'body' and len(synced) == 2

# What a disk refuses at the very end leaves what was there.
broken.append(True)
assert put('g', b'other') == b'body' and sorted(os.listdir(place)) == ['f', 'g']
print('well')
'''


def test_only_what_stays_is_waited_for(python, folder):
    rooms = [os.path.join(ROOM, name) for name in ('agent_frames.py', 'agent_payload.py', 'agent_fresh.py', 'agent_streams.py')]
    done = subprocess.run([python, '-c', DISK, str(folder), *rooms], check=False, capture_output=True)
    assert done.stdout.strip() == b'well', done.stderr.decode()


@pytest.mark.parametrize('how', ['cancel', 'end', 'link'])
@pytest.mark.parametrize('old', [True, False])
def test_cut_at_every_byte(start, folder, how, old):
    """Wherever a put is cut, the destination is whole or as it was, and nothing else is left."""
    body = os.urandom(20)
    whole = body + hashlib.sha256(body).digest()
    agent = start()
    for cut in range(0, len(whole) + 1, 13 if how == 'link' else 1):
        if old:
            (folder / 'f').write_bytes(b'old')
        stream = agent.open(PUT, (1, str(folder / 'f').encode()), (2, b'%d' % len(body)))
        if cut:
            agent.send(DATA, stream, whole[:cut])
        if how == 'link':
            agent.close()
            assert agent.wait() == 0
            agent = start()
        else:
            agent.send(CANCEL if how == 'cancel' else END, stream)
            done = agent.result(stream).failure == ''
            assert done == (how == 'end' and cut == len(whole))
        if how == 'end' and cut == len(whole):
            assert (folder / 'f').read_bytes() == body
        else:
            assert os.listdir(str(folder)) == (['f'] if old else [])
            assert not old or (folder / 'f').read_bytes() == b'old'


def test_get_what_cannot_be_had(agent, folder):
    os.mkfifo(str(folder / 'pipe'))
    for path, kind, text in (
        (folder / 'no', 'not-found', b'No such file or directory'),
        (folder, 'io', b'Is a directory'),
        (folder / 'pipe', 'io', b'Not a regular file'),
        ('/dev/zero', 'io', b'Not a regular file'),
    ):
        result = get(agent, path)
        assert (result.failure, result.fields[3]) == (kind, text)


def test_get_what_has_no_size(agent):
    assert get(agent, '/proc/self/status').data.startswith(b'Name:')
    with open('/proc/version', 'rb') as f:
        assert get(agent, '/proc/version').data == f.read()


@pytest.mark.parametrize(
    'change', [lambda f: f.write(b'more'), lambda f: f.truncate(WINDOW + 5), lambda f: (f.seek(0), f.write(b'other'))], ids=['longer', 'shorter', 'other']
)
def test_get_sees_a_change(agent, folder, change):
    (folder / 'f').write_bytes(bytes(3 * WINDOW))
    os.utime(str(folder / 'f'), (1, 1))
    agent.grants = False
    stream = agent.open(GET, (1, str(folder / 'f').encode()))
    agent.until(lambda: len(agent.streams[stream].data) == WINDOW)
    with open(str(folder / 'f'), 'r+b') as f:
        f.seek(0, 2)
        change(f)
    agent.grants = True
    agent.send(7, stream, struct.pack('>I', 3 * WINDOW))
    assert agent.result(stream).failure == 'changed'


def test_transfers_and_jobs_take_turns(agent, folder):
    """A large file on the way does not hold up what is small."""
    (folder / 'f').write_bytes(bytes(64 * WINDOW))
    large = agent.open(GET, (1, str(folder / 'f').encode()))
    agent.until(lambda: agent.streams[large].data)
    assert agent.command('true').code == 0
    assert agent.streams[large].fields is None
    agent.send(CANCEL, large)
    assert agent.result(large).failure == 'cancelled'


def blobs(agent, stream_bytes, end=True):
    stream = agent.open(BLOBS)
    agent.feed(stream, stream_bytes, end)
    return agent.result(stream)


def one(content, digest=None):
    return (digest or hashlib.sha256(content).digest()) + struct.pack('>I', len(content)) + content


def test_blobs_are_checked(agent):
    assert blobs(agent, zlib.compress(b'')).failure == ''
    assert blobs(agent, zlib.compress(one(b'') + one(b'a' * 5000000))).failure == ''
    assert blobs(agent, zlib.compress(one(b'right') + one(b'wrong', bytes(32)))).failure == 'digest'
    assert blobs(agent, zlib.compress(one(b'cut')[:-1])).failure == 'bad-request'
    assert blobs(agent, b'this is no zlib stream').failure == 'bad-request'
    assert agent.command('true').code == 0


def test_drop_forgets(agent):
    text = b'module\tansible.modules.x\n'
    digest = hashlib.sha256(text).digest()
    missing = agent.result(agent.open(MODULE, (1, digest)))
    assert missing.failure == 'blob-missing' and missing.fields[3].decode() == digest.hex()
    agent.blobs(text)
    assert agent.result(agent.open(MODULE, (1, digest))).failure == ''
    agent.send(12, 0, digest + bytes(32))
    assert agent.result(agent.open(MODULE, (1, digest))).failure == 'blob-missing'
