"""Streams of the link, and those of them that are transfers: put, get, blobs. Nothing here blocks or holds more than a window.

A section of the agent; see agent.py.
"""
import binascii
import collections
import errno
import fcntl
import hashlib
import os
import pwd
import select
import stat
import sys
import time
import zlib

clock = getattr(time, 'monotonic', time.time)

READ_SIZE = 65536       # bytes of one read; less than CREDIT_AT, so that what is held back never stops the credit
HIGH_WATER = 262144     # bytes waiting for the link beyond which no source is read
PIPE_SIZE = 262144      # of the link, where it is a pipe: each side finds more at a time, and has to be woken less often
WRITE_SIZE = 32768      # bytes of a file at once, as of scp: with this the system has had the least work by far
TELL_EVERY = 16777216   # bytes of a file that the disk is to begin with
F_SETPIPE_SZ = 1031     # Linux; fcntl has it since 3.10


def unblocking(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    return fd


def roomy(fd):
    """Has a pipe hold more; anything else stays as it is."""
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
    except (IOError, OSError):
        pass    # a socket, a terminal, another system, or the account has too many of them
    return fd


class Source(object):
    """A descriptor whose bytes go up on a stream, as frames of one kind."""

    size = READ_SIZE

    def __init__(self, stream, fd, kind, patient=False):
        self.stream = stream
        self.fd = fd
        self.kind = kind
        self.patient = patient      # keeps small output until the stream's owner asks for it
        self.held = b''
        self.watched = False
        self.update()

    def update(self):
        """Reads only what can be sent: there is credit, and the link is not behind."""
        if self.fd is None:
            return
        agent = self.stream.agent
        wanted = agent.lost or (self.stream.credit > 0 and agent.waiting < HIGH_WATER)
        if wanted and not self.watched:
            agent.watch(self.fd, select.POLLIN, self.ready)
            agent.paused.discard(self)
        elif self.watched and not wanted:
            agent.unwatch(self.fd)
        if not wanted:
            agent.paused.add(self)
        self.watched = wanted

    def ready(self):
        self.stream.agent.guard(self.stream, self.read)

    def read(self):
        stream = self.stream
        if stream.credit <= 0 and not stream.agent.lost:
            return self.update()    # another source of the stream has used it up; to read nothing would look like the end
        try:
            data = os.read(self.fd, self.size if stream.agent.lost else min(self.size, stream.credit))
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EINTR):
                return
            if e.errno != errno.EIO or not stream.terminal:     # so ends a terminal
                raise
            data = b''
        if not stream.agent.lost:
            stream.credit -= len(data)
            self.held = self.held + data if self.held else data
            if not self.patient or len(self.held) >= READ_SIZE or stream.credit <= 0:
                self.flush()
        if data:
            return self.update()
        stream.last_look(self)
        self.close()
        stream.exhausted(self)

    def flush(self):
        if self.held:
            self.stream.produced(self.kind, self.held)
            self.held = b''

    def close(self):
        if self.fd is not None:
            if self.watched:
                self.stream.agent.unwatch(self.fd)
            self.stream.agent.paused.discard(self)
            os.close(self.fd)
            self.fd = None


class FileSource(Source):
    """One that always has as much as is asked for."""

    size = MAX_PAYLOAD


class Sink(object):
    """A descriptor that takes what comes down on a stream, in its own time."""

    def __init__(self, stream, fd):
        self.stream = stream
        self.fd = unblocking(fd)
        self.held = collections.deque()     # at most a window, and no copy of what is kept anyway
        self.ending = False
        self.watched = False

    def write(self, data):
        self.held.append(memoryview(data))
        if not self.watched:
            self.ready()

    def end(self):
        self.ending = True
        if not self.watched:
            self.ready()

    def ready(self):
        try:
            while self.held and self.fd is not None:
                n = os.write(self.fd, self.held[0][:READ_SIZE])
                self.held[0] = self.held[0][n:]
                if not self.held[0]:
                    self.held.popleft()
                self.stream.took(n)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EINTR):
                self.close()
        if self.fd is None:     # nobody reads it any more
            self.stream.took(sum(map(len, self.held)))
            self.held.clear()
        elif bool(self.held) != self.watched:
            self.watched = not self.watched
            if self.watched:
                self.stream.agent.watch(self.fd, select.POLLOUT, self.ready)
            else:
                self.stream.agent.unwatch(self.fd)
        if self.ending and not self.held:
            self.close()

    def close(self):
        if self.fd is not None:
            if self.watched:
                self.stream.agent.unwatch(self.fd)
                self.watched = False
            os.close(self.fd)
            self.fd = None


class Stream(object):
    """One stream of the link, from its OPEN to its RESULT."""

    accepts = ()        # which of DATA and TTY the daemon may send
    terminal = None     # 'stdio' or 'controlling', of jobs that have one
    chain = None        # that the stream is of
    held = None         # what came before it was its turn
    printed = None      # its DATA, for guards of the chain; None: nobody asks
    fresh = False       # it is only for an agent that is not stale
    judged = False      # those who follow it want to know whether it has succeeded

    def __init__(self, agent, number):
        self.agent = agent
        self.number = number
        self.window = self.credit = self.allowance = FIRST_WINDOW   # bytes: in all; of them we may send, the daemon may send
        self.owed = 0               # bytes taken and not yet given back as credit
        self.ended = False          # no more DATA will come
        self.done = False           # RESULT is sent
        self.opened = clock()
        self.sources = []

    def start(self, record):
        raise NotImplementedError

    def enchained(self, record):
        """It waits for its turn in a chain."""
        self.held = []

    def begin(self, record):
        """Its turn in a chain has come."""
        held, self.held = self.held, None
        self.opened = clock()
        self.start(record)
        try:
            for kind, payload in held:
                if not self.done:
                    self.frame(kind, payload)
        except ProtocolError as e:
            raise Failure('bad-request', e)

    def frame(self, kind, payload):
        """A frame of the daemon on this stream."""
        if self.held is not None and kind != CANCEL:
            self.held.append((kind, payload))
            if sum(len(waiting) for _, waiting in self.held) > self.window:
                raise ProtocolError('more than a window on stream %d, which has not begun' % self.number)
        elif kind == CREDIT:
            self.credit += NUMBER.unpack(payload)[0]
            for source in self.sources:
                source.update()
        elif kind == WINDOW:
            self.widen(NUMBER.unpack(payload)[0])
        elif kind == CANCEL:
            raise Failure('cancelled')
        elif kind == END and not self.ended:
            self.ended = True
            self.end()
        elif kind in self.accepts and not (kind == DATA and self.ended) and len(payload) <= self.allowance:
            self.allowance -= len(payload)
            self.data(kind, payload)
        else:
            raise ProtocolError('a frame of type %d and %d bytes on stream %d, which may not have it' % (kind, len(payload), self.number))

    def data(self, kind, payload):
        """DATA or TTY has come; say took() when it is consumed."""
        raise NotImplementedError

    def end(self):
        """No more DATA will come."""

    def widen(self, window):
        more = window - self.window
        if more <= 0 or window > MOST_WINDOW:
            raise ProtocolError('a window of %d bytes on stream %d, which has %d' % (window, self.number, self.window))
        self.window = window
        self.allowance += more
        self.credit += more
        for source in self.sources:
            source.update()

    def took(self, n):
        self.owed += n
        if self.owed >= CREDIT_AT:
            self.agent.owing.add(self)

    def repay(self):
        """Gives credit for what was taken, a whole number of steps."""
        if not self.done:
            credit = self.owed - self.owed % CREDIT_AT
            self.agent.send(CREDIT, self.number, NUMBER.pack(credit))
            self.allowance += credit
            self.owed -= credit

    def produced(self, kind, data):
        """A source has data."""
        if self.printed is not None and kind == DATA:
            self.printed.append(data)
            if sum(len(part) for part in self.printed) > FIRST_WINDOW:
                self.printed = None     # too much to be an answer that a guard could want
        self.agent.send(kind, self.number, data)

    def last_look(self, source):
        """A source has come to its end and is still open."""

    def exhausted(self, source):
        """A source has come to its end and is closed."""

    def finish(self, *fields):
        """Sends RESULT, the last frame."""
        if not self.done:
            self.done = True
            self.release()
            self.agent.send(RESULT, self.number, pack(*fields))
            del self.agent.streams[self.number]
            self.agent.ended(self, dict(fields))

    def abort(self, kind, text=''):
        """It cannot go on, or shall not."""
        self.finish((1, 1), (2, kind), (3, to_bytes(text)[:MAX_TEXT]))

    def lose(self):
        """The link has ended."""
        self.release()

    def release(self):
        """Gives back what the stream holds: on success, on failure, and when the link ends."""
        for source in self.sources:
            source.close()


class Acting(object):
    """Lets root do as another account would, with its files and its rights; any other account does as itself."""

    known = {}      # uid: how the files were that tell of accounts, then the account's group and all its groups

    def __init__(self, uid):
        self.uid = int(uid or 0) if os.geteuid() == 0 else 0

    def __enter__(self):
        if self.uid:
            self.before = os.getgroups(), os.getegid()
            told = look('/etc/passwd'), look('/etc/group')
            if self.known.get(self.uid, (None,))[0] != told:
                self.learn(told)
            _, gid, groups = self.known[self.uid]
            try:
                os.setgroups(groups)
                os.setegid(gid)
                os.seteuid(self.uid)
            except OSError:
                self.__exit__()
                raise

    def learn(self, told):
        """Takes the account's groups, which to ask for costs more than most of what is done as that account."""
        try:
            account = pwd.getpwuid(self.uid)
        except KeyError:
            raise Failure('io', 'There is no account %d' % self.uid)
        os.initgroups(account.pw_name, account.pw_gid)
        self.known[self.uid] = told, account.pw_gid, os.getgroups()

    def __exit__(self, *_):
        if self.uid:
            os.seteuid(0)
            os.setegid(self.before[1])
            os.setgroups(self.before[0])


class Folder(Stream):
    """A folder for what an action needs on its way: made, or removed with all that is in it."""

    removes = False     # it waits to do so

    def enchained(self, record):
        Stream.enchained(self, record)
        self.removes = unpack(record, (1, 2, 3))[2] == b'1'

    def frame(self, kind, payload):
        if kind == CANCEL and self.removes and self.chain.whole():
            return      # in its turn: what the chain has made does not stay because nobody waits for it any more
        Stream.frame(self, kind, payload)

    def start(self, record):
        fields = unpack(record, (1, 2, 3))
        path = fields[1]
        with Acting(fields[3]):
            if fields[2] == b'1':
                remove_tree(path)
                self.agent.folders.pop(path, None)
            else:
                missing = []
                parent = os.path.dirname(path)
                while parent and not os.path.isdir(parent):
                    missing.append(parent)
                    parent = os.path.dirname(parent)
                for parent in reversed(missing):
                    os.mkdir(parent, 0o700)
                os.mkdir(path, 0o700)
                self.agent.folders[path] = fields[3]
        self.finish()


def remove_tree(path):
    """As rm -rf."""
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            remove_tree(os.path.join(path, name))
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)


class Put(Stream):
    """A file comes: written beside its destination, moved there when it is whole."""

    accepts = (DATA,)
    fd = None
    temporary = None    # its name, while there is one

    def start(self, record):
        fields = unpack(record, (1, 2, 3, 4, 5))
        self.acting = Acting(fields[5])
        self.size = self.left = int(fields[2] or 0)
        self.told = 0       # bytes that are on their way to the disk
        self.digest = fields[4]
        self.trailer = b''
        self.hash = hashlib.sha256()
        self.mode = 0o666 & ~self.agent.umask
        with self.acting:
            self.path = os.path.realpath(fields[1])     # a link is followed, as open() would
            self.stays = os.path.dirname(self.path) not in self.agent.folders   # an action's file is moved on or removed at once
            self.owner = self.look()
            if fields[3]:
                self.mode = int(fields[3])
            temporary = os.path.join(os.path.dirname(self.path), b'.mitogen-mux.' + binascii.hexlify(os.urandom(8)))
            self.fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self.temporary = temporary

    def look(self):
        """Takes the mode of a file that is there already, and returns its owner. Refuses what open() would, and what it would not
        have replaced."""
        try:
            there = os.stat(self.path)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return None
            raise
        if stat.S_ISDIR(there.st_mode):
            raise Failure('io', os.strerror(errno.EISDIR))
        if not stat.S_ISREG(there.st_mode):
            raise Failure('io', 'Not a regular file')
        if not os.access(self.path, os.W_OK):
            raise Failure('io', os.strerror(errno.EACCES))
        self.mode = stat.S_IMODE(there.st_mode)
        return there.st_uid, there.st_gid

    def data(self, kind, payload):
        body, rest = payload[:self.left], payload[self.left:]
        view = memoryview(body)
        for at in range(0, len(view), WRITE_SIZE):
            write_all(self.fd, view[at:at + WRITE_SIZE])
        self.hash.update(body)
        self.left -= len(body)
        self.write_back()
        self.trailer += rest
        if len(self.trailer) > (0 if self.digest else 32):
            raise Failure('bad-request', 'more bytes than were announced')
        self.took(len(payload))

    def write_back(self):
        """Has the disk begin with what has come, so that there is less to wait for at the end. What Linux makes of the advice is that
        pages begin to be written; those that are not on disk yet are not dropped. Older Pythons cannot ask for it."""
        fresh = self.size - self.left - self.told
        if self.stays and fresh >= TELL_EVERY and sys.platform.startswith('linux') and hasattr(os, 'posix_fadvise'):
            try:
                os.posix_fadvise(self.fd, self.told, fresh, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass    # it was a wish; fsync says what is wrong with the disk
            self.told += fresh

    def end(self):
        if self.left:
            raise Failure('changed', 'only %d of %d bytes came' % (self.size - self.left, self.size))
        if self.hash.digest() != (self.digest or self.trailer):
            raise Failure('digest', 'the bytes that came are not those that were sent')
        mine = os.fstat(self.fd)
        if self.owner and self.owner != (mine.st_uid, mine.st_gid):
            try:
                os.fchown(self.fd, *self.owner)
            except OSError:
                pass    # only root may: then the new file is ours
        os.fchmod(self.fd, self.mode)
        if self.stays:
            os.fsync(self.fd)
        self.close()
        with self.acting:
            os.rename(self.temporary, self.path)
            self.temporary = None
            if self.stays:
                self.settle()
        self.finish((9, self.size), (10, self.hash.digest()))

    def settle(self):
        """Makes the new name last."""
        try:
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            pass    # not every folder can be read, not every file system knows this

    def close(self):
        """Some file systems say only here that something could not be written."""
        fd, self.fd = self.fd, None
        os.close(fd)

    def release(self):
        try:
            if self.fd is not None:
                self.close()
        except OSError:
            pass    # the file is not wanted any more
        try:
            if self.temporary:
                with self.acting:
                    os.unlink(self.temporary)
        except OSError:
            pass    # somebody else was quicker, or the disk has gone


class Get(Stream):
    """A file goes."""

    def start(self, record):
        fd = os.open(unpack(record, (1,))[1], os.O_RDONLY | os.O_NONBLOCK)
        self.before = os.fstat(fd)
        if not stat.S_ISREG(self.before.st_mode):
            os.close(fd)
            raise Failure('io', os.strerror(errno.EISDIR) if stat.S_ISDIR(self.before.st_mode) else 'Not a regular file')
        self.size = 0
        self.hash = hashlib.sha256()
        self.sources = [FileSource(self, fd, DATA)]

    def produced(self, kind, data):
        self.size += len(data)
        self.hash.update(data)
        self.agent.send(kind, self.number, data)

    def last_look(self, source):
        after = os.fstat(source.fd)
        same = all(getattr(self.before, name) == getattr(after, name) for name in ('st_size', 'st_mtime', 'st_ctime'))
        if not same or self.size != (after.st_size or self.size):   # files of /proc say 0
            raise Failure('changed', 'the file changed while it was read')

    def exhausted(self, source):
        self.agent.send(END, self.number)
        self.finish((9, self.size), (10, self.hash.digest()))


class Blobs(Stream):
    """Blobs come, in one zlib stream."""

    accepts = (DATA,)

    def start(self, record):
        self.inflate = zlib.decompressobj()
        self.buffer = bytearray()

    def data(self, kind, payload):
        self.took(len(payload))
        try:
            while payload:
                self.buffer += self.inflate.decompress(payload, FIRST_WINDOW)
                payload = self.inflate.unconsumed_tail
                self.keep()
        except zlib.error as e:
            raise Failure('bad-request', e)

    def keep(self):
        """Takes whole blobs off the buffer."""
        at = 0
        while len(self.buffer) - at >= 36:
            end = at + 36 + NUMBER.unpack(bytes(self.buffer[at + 32:at + 36]))[0]
            if end > len(self.buffer):
                break
            digest, blob = bytes(self.buffer[at:at + 32]), bytes(self.buffer[at + 36:end])
            if hashlib.sha256(blob).digest() != digest:
                raise Failure('digest', 'a blob is not what its name says')
            self.agent.blobs[digest] = blob
            at = end
        del self.buffer[:at]

    def end(self):
        self.buffer += self.inflate.flush()
        self.keep()
        if self.buffer:
            raise Failure('bad-request', 'a blob is cut short')
        self.finish()
