"""The agent of mitogen-mux: what runs on a target, in memory only, while Ansible works there.

The daemon on the controller starts one for an account, sends this file over the connection and speaks docs/agent-protocol.md with
it: run this module, run this command, take or give this file. Every job is a forked child with a session of its own, so nothing a
job does to the interpreter outlives it. The agent knows no address and opens no connection; it answers, and ends with its link.

One thread, one loop: Agent.run. Stage 1 executes this text with SOURCE (its compressed bytes) and NAME (whose it is, for `ps`).
Python 2.7 and 3.6 or newer, standard library only.
"""
import binascii
import collections
import errno
import fcntl
import gc
import hashlib
import marshal
import mmap
import os
import select
import signal
import stat
import struct
import sys
import time
import zlib

PY3 = sys.version_info[0] > 2

# ---------------------------------------------------------------------------------------------------------------------------------
# Frames and records. No input or output here.

PROTOCOL = 1
MAX_PAYLOAD = 131072
WINDOW = 1048576
HEADER = struct.Struct('>IBI')
FIELD = struct.Struct('>BI')
HELLO, OPEN, DATA, ERR, TTY, END, CREDIT, CANCEL, RESULT, PING, PONG, DROP, LOG = range(1, 14)

# What the daemon may send: least and most bytes of payload.
DOWN = {OPEN: (1, MAX_PAYLOAD), DATA: (1, MAX_PAYLOAD), TTY: (1, MAX_PAYLOAD), END: (0, 0), CREDIT: (4, 4), CANCEL: (0, 0),
        PING: (8, 8), DROP: (32, MAX_PAYLOAD)}
ON_LINK = (PING, DROP)


class ProtocolError(Exception):
    """The daemon said what it may not say. The link ends."""


class Failure(Exception):
    """What was asked cannot be done. The stream ends with a failed RESULT."""

    def __init__(self, kind, text=''):
        Exception.__init__(self, kind, text)
        self.kind = kind
        self.text = text


def to_bytes(value):
    """Text or a number as it goes into a record."""
    if isinstance(value, bytes):
        return value
    return ('%s' % (value,)).encode('utf-8', 'surrogateescape' if PY3 else 'replace')


def encode(kind, stream, payload=b''):
    return HEADER.pack(len(payload), kind, stream) + payload


def decode(buffer):
    """Takes whole frames off the front of a bytearray: yields (kind, stream, payload), leaves the rest."""
    while len(buffer) >= HEADER.size:
        length, kind, stream = HEADER.unpack(bytes(buffer[:HEADER.size]))
        least, most = DOWN.get(kind, (0, -1))
        if not least <= length <= most or (stream == 0) != (kind in ON_LINK) or (kind == DROP and length % 32):
            raise ProtocolError('a frame of type %d and %d bytes on stream %d' % (kind, length, stream))
        end = HEADER.size + length
        if len(buffer) < end:
            return
        payload = bytes(buffer[HEADER.size:end])
        del buffer[:end]
        yield kind, stream, payload


def pack(*fields):
    """A record of (tag, value) pairs; what is zero or empty is left out."""
    out = []
    for tag, value in fields:
        if value:
            value = to_bytes(value)
            out += (FIELD.pack(tag, len(value)), value)
    return b''.join(out)


def unpack(data, once, repeated=()):
    """The fields of a record by tag; every tag of the table is there, as bytes or, if it may repeat, as a list."""
    fields = dict((tag, None) for tag in once)
    fields.update((tag, []) for tag in repeated)
    at = 0
    while at < len(data):
        if len(data) - at < FIELD.size:
            raise Failure('bad-request', 'a record is cut short')
        tag, length = FIELD.unpack(data[at:at + FIELD.size])
        at += FIELD.size + length
        if at > len(data):
            raise Failure('bad-request', 'a record is cut short')
        if tag in repeated:
            fields[tag].append(data[at - length:at])
        elif tag in once and fields[tag] is None:
            fields[tag] = data[at - length:at]
        else:
            raise Failure('bad-request', 'a record has field %d, unknown or once too often' % tag)
    fields.update((tag, b'') for tag in once if fields[tag] is None)
    return fields


# ---------------------------------------------------------------------------------------------------------------------------------
# Payloads: what a module is made of, imported from blobs in memory as plain Ansible's zip would be.

class Payload(object):
    """A manifest: the files of one module."""

    def __init__(self, text):
        self.module = self.loader = self.profile = self.real = None
        self.root = None    # where its files seem to be, if that is not where everybody's are
        self.preload = []
        self.files = []     # (path, digest), in order
        self.names = {}     # full module name: (path, digest, whether it is a package)
        self.warm = False   # a job found all the code it wanted compiled
        for line in text.decode('utf-8').split(u'\n'):
            if not line:
                continue
            field, value = [part if PY3 else part.encode('utf-8') for part in line.split(u'\t', 1)]
            if field == 'file':
                path, digest = value.split('\t')
                self.add(path, bytes(bytearray.fromhex(digest)))
            elif field == 'preload':
                self.preload.append(value)
            elif field in ('module', 'loader', 'profile', 'real'):
                setattr(self, field, value)
            else:
                raise Failure('bad-request', 'a manifest has the field %r' % field)
        if not self.module:
            raise Failure('bad-request', 'a manifest names no module')

    def add(self, path, digest):
        self.files.append((path, digest))
        if path.endswith('/__init__.py'):
            self.names[path[:-12].replace('/', '.')] = (path, digest, True)
        elif path.endswith('.py'):
            self.names[path[:-3].replace('/', '.')] = (path, digest, False)


class Importer(object):
    """Finder and loader for the payload in use. Its root is an entry of sys.path, as the zip's path is in plain Ansible."""

    def __init__(self, blobs):
        self.blobs = blobs
        self.virtual = '%s/ansible_mitogen_mux_payload_%d/ansible_payload.zip' % (os.environ.get('TMPDIR') or '/tmp', os.getpid())
        self.codes = {}      # (file name, digest): code object
        self.compiled = []   # keys of the above that this process made
        self.root = self.virtual
        self.names = {}
        self.digests = {}

    def use(self, payload):
        self.root = payload.root or self.virtual
        self.names = payload.names
        self.digests = dict(payload.files)

    def hook(self, path):
        """The entry of sys.path_hooks."""
        if path == self.root or path.startswith(self.root + '/'):
            return self
        raise ImportError('not a payload')

    def find_spec(self, name, target=None):
        if name not in self.names:
            return None
        from importlib.util import spec_from_file_location
        where = self.get_filename(name)
        package = [os.path.dirname(where)] if self.is_package(name) else None
        return spec_from_file_location(name, where, loader=self, submodule_search_locations=package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.get_code(module.__name__), module.__dict__)

    def find_module(self, name, path=None):
        """Python 2's find_spec."""
        return self if name in self.names else None

    def load_module(self, name):
        """Python 2's create_module and exec_module."""
        module = sys.modules.setdefault(name, type(sys)(name))
        module.__file__ = self.get_filename(name)
        module.__loader__ = self
        module.__package__ = name if self.is_package(name) else name.rpartition('.')[0]
        if self.is_package(name):
            module.__path__ = [os.path.dirname(module.__file__)]
        try:
            exec(self.get_code(name), module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return sys.modules[name]

    def entry(self, name):
        try:
            return self.names[name]
        except KeyError:
            raise ImportError('the payload has no module %s' % name)

    def is_package(self, name):
        return self.entry(name)[2]

    def get_filename(self, name):
        return self.root + '/' + self.entry(name)[0]

    def get_code(self, name):
        key = (self.get_filename(name), self.entry(name)[1])
        if key not in self.codes:
            self.codes[key] = compile(self.get_data(key[0]), key[0], 'exec', dont_inherit=True)
            self.compiled.append(key)
        return self.codes[key]

    def get_source(self, name):
        source = self.get_data(self.get_filename(name))
        if PY3:
            from importlib.util import decode_source
            return decode_source(source)
        return source.replace(b'\r\n', b'\n')

    def get_data(self, path):
        try:
            return self.blobs[self.digests[path[len(self.root) + 1:]]]
        except KeyError:
            raise IOError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def get_resource_reader(self, name):
        """Resources are asked for by payloads with a real zip only; zipimport knows how."""
        import zipimport
        return zipimport.zipimporter(self.root).get_resource_reader(name)

    def write_report(self, report):
        """In a job: leaves the code that it had to compile where the agent can read it."""
        data = marshal.dumps([(key, self.codes[key]) for key in self.compiled])
        if self.compiled and len(data) <= len(report) - 4:
            report[4:4 + len(data)] = data
            report[:4] = struct.pack('>I', len(data))

    def read_report(self, report):
        """In the agent: takes that code over; says whether there was any."""
        length = min(struct.unpack('>I', report[:4])[0], len(report) - 4)
        if length:
            self.codes.update(marshal.loads(report[4:4 + length]))
        return length > 0

    def forget(self, digests):
        for key in [key for key in self.codes if key[1] in digests]:
            del self.codes[key]


def memory_file(data):
    """A file without a name that other processes of this account can open: (descriptor, path)."""
    try:
        if hasattr(os, 'memfd_create'):
            fd = os.memfd_create('ansible_payload', 0)
        else:
            import ctypes
            fd = ctypes.CDLL(None).memfd_create(b'ansible_payload', 0)
        if fd < 0:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        name = None
    except (AttributeError, ImportError, OSError):
        import tempfile
        for folder in ('/dev/shm', os.environ.get('XDG_RUNTIME_DIR'), '/run', None):
            try:
                fd, name = tempfile.mkstemp('.zip', 'ansible_payload_', folder)
                break
            except EnvironmentError:
                if folder is None:
                    raise
    write_all(fd, data)
    path = '/proc/%d/fd/%d' % (os.getpid(), fd)
    if not os.path.exists(path):
        import atexit
        atexit.register(os.unlink, name)
        return fd, name
    if name:
        os.unlink(name)
    return fd, path


def write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data):]


def zip_of(payload, blobs):
    """The payload as the zip that plain Ansible would have left on the target; sets its root."""
    import io
    import zipfile
    fd, payload.root = memory_file(b'')
    out = io.BytesIO()
    archive = zipfile.ZipFile(out, 'w')
    for path, digest in payload.files:
        archive.writestr(zipfile.ZipInfo(path), blobs[digest])
    archive.writestr(zipfile.ZipInfo('sitecustomize.py'), b'import sys\nsys.path.insert(0, "' + to_bytes(payload.root) + b'")\n')
    archive.close()
    write_all(fd, out.getvalue())
    return fd


# ---------------------------------------------------------------------------------------------------------------------------------
# Inside a job: everything here runs in the forked child.

def enter(environ, added, cwd, nofile):
    """Makes the child's surroundings what a new process of the account would have."""
    before = dict(os.environ)
    decode_one = os.fsdecode if PY3 else bytes
    if environ:
        os.environ.clear()
    for entry in environ + added:
        name, _, value = entry.partition(b'=')
        os.environ[decode_one(name)] = decode_one(value)
    changed = [name for name in ('TZ', 'LANG', 'LC_ALL', 'LC_CTYPE', 'PYTHONPATH') if os.environ.get(name) != before.get(name)]
    if 'TZ' in changed:
        time.tzset()
    if PY3 and ('LANG' in changed or 'LC_ALL' in changed or 'LC_CTYPE' in changed):
        import locale
        try:
            locale.setlocale(locale.LC_CTYPE, '')
        except locale.Error:
            pass
    if 'PYTHONPATH' in changed:
        old = before.get('PYTHONPATH', '').split(os.pathsep)
        sys.path[:] = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p not in ('', '.')] + \
                      [p for p in sys.path if p not in old]
    try:
        if cwd:
            os.chdir(cwd)
        os.getcwd()
    except OSError:
        try:
            os.chdir(os.path.expanduser('~'))
        except OSError:
            os.chdir('/')
    if nofile:
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = nofile if hard == resource.RLIM_INFINITY else min(hard, nofile)
        if wanted != soft:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except ValueError:
                pass    # some platforms lie about their hard limit


def reseed():
    """What Python 3.7 does by itself after a fork: two jobs must not draw the same numbers."""
    if sys.version_info < (3, 7):
        if 'random' in sys.modules:
            sys.modules['random'].seed()
        if 'ssl' in sys.modules:
            sys.modules['ssl'].RAND_add(os.urandom(32), 32.0)


def execute(argv):
    """Becomes the program argv; as a shell would, says on stderr why it cannot."""
    for name in ('SIGPIPE', 'SIGXFZ', 'SIGXFSZ'):   # Python ignores these, and a program inherits it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        os.write(2, argv[0] + b': ' + to_bytes(os.strerror(e.errno)) + b'\n')
        return 127 if e.errno == errno.ENOENT else 126


def run_module(payload, params, importer):
    """What AnsiballZ's wrapper does once its zip is on sys.path."""
    from importlib import import_module
    sys.path.insert(0, importer.root)
    sys.path_importer_cache.pop(importer.root, None)
    sys.argv[:] = ['']
    sys.orig_argv = [sys.executable]
    importer.main = sys.modules['__main__']     # Python 2 empties a module that nobody holds
    sys.modules['__main__'] = type(sys)('__main__')
    if payload.loader:
        run = import_module(payload.loader).run_module
        known = run.__code__.co_varnames[:run.__code__.co_argcount + run.__code__.co_kwonlyargcount]
        given = dict(json_params=params, profile=payload.profile, module_fqn=payload.module, modlib_path=importer.root, extensions={})
        run(**dict((name, given[name]) for name in known if name in given))
        return
    import runpy
    import_module('ansible.module_utils.basic')._ANSIBLE_ARGS = params
    runpy.run_module(payload.module, dict(_module_fqn=payload.module, _modlib_path=importer.root), '__main__', True)
    print('{"msg": "New-style module did not handle its own exit", "failed": true}')
    sys.exit(1)


def complain():
    """Reports the exception in flight as the interpreter would, without this file's frames."""
    kind, value, trace = sys.exc_info()
    while trace and trace.tb_frame.f_code.co_filename == complain.__code__.co_filename:
        trace = trace.tb_next
    if PY3:
        value.__traceback__ = trace
    sys.excepthook(kind, value, trace)


def interpreter_exit(run):
    """Calls run as the interpreter calls a program, winds down as it does; returns the exit status."""
    code = 0
    try:
        run()
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        complain()
        code = 130
    except BaseException:
        complain()
        code = 1
    if not PY3:
        sys.exc_clear()
    if code is None:
        code = 0
    elif not isinstance(code, int):
        sys.stderr.write('%s\n' % (code,))
        code = 1
    for last in (lambda: sys.modules['threading']._shutdown(), lambda: __import__('atexit')._run_exitfuncs()):
        try:
            last()
        except KeyError:
            pass    # no threading, no threads
        except BaseException:
            complain()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            code = code or 120
    return code & 0xff


# ---------------------------------------------------------------------------------------------------------------------------------
# Streams, the agent's side.

clock = getattr(time, 'monotonic', time.time)
READ_SIZE = 65536      # of one read; less than a quarter of the window, so that what is held back never stops the credit
REPORT_SIZE = 8388608  # room for a job's compiled code; pages not used cost nothing
HIGH_WATER = 262144    # bytes waiting for the link beyond which nothing more is read


class Source(object):
    """A descriptor whose bytes go up on a stream as frames of one kind."""

    def __init__(self, stream, fd, kind, together=1):
        self.stream = stream
        self.fd = fd
        self.kind = kind
        self.together = together    # send when there are so many bytes, or no more
        self.held = b''
        self.watched = False
        self.update()

    def update(self):
        """Read only what can be sent: there is credit and the link is not behind."""
        agent = self.stream.agent
        wanted = self.fd is not None and (agent.lost or (self.stream.credit > 0 and agent.waiting < HIGH_WATER))
        if wanted and not self.watched:
            agent.watch(self.fd, select.POLLIN, self.ready)
        elif self.watched and not wanted:
            agent.unwatch(self.fd)
        self.watched = wanted
        if wanted:
            agent.paused.discard(self)
        elif self.fd is not None:
            agent.paused.add(self)

    def ready(self):
        self.stream.agent.guard(self.stream, self.read)

    def read(self):
        stream = self.stream
        try:
            data = os.read(self.fd, READ_SIZE if stream.agent.lost else min(READ_SIZE, stream.credit))
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EINTR):
                return
            if e.errno != errno.EIO or not isinstance(stream, Job):     # EIO is how a terminal says it
                raise
            data = b''
        if not stream.agent.lost:
            stream.credit -= len(data)
            self.held = self.held + data if self.held else data
            if self.held and (not data or len(self.held) >= self.together or stream.credit <= 0):
                stream.produced(self.kind, self.held)
                self.held = b''
        if data:
            return self.update()
        stream.last_look(self)
        self.close()
        stream.exhausted(self)

    def close(self):
        if self.fd is not None:
            if self.watched:
                self.stream.agent.unwatch(self.fd)
            os.close(self.fd)
            self.fd = None
            self.watched = False
            self.stream.agent.paused.discard(self)


class Sink(object):
    """A descriptor that takes what comes down on a stream, in its own time."""

    def __init__(self, stream, fd):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self.stream = stream
        self.fd = fd
        self.held = bytearray()     # at most a window
        self.ending = False
        self.watched = False

    def write(self, data):
        self.held += data
        if not self.watched:
            self.ready()

    def end(self):
        self.ending = True
        if not self.watched:
            self.ready()

    def ready(self):
        if self.fd is None:     # the far end has closed: nobody wants it
            self.stream.took(len(self.held))
            del self.held[:]
            return
        try:
            while self.held:
                n = os.write(self.fd, bytes(self.held[:READ_SIZE]))
                del self.held[:n]
                self.stream.took(n)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EINTR):
                self.close()
                return self.ready()
        if self.held and not self.watched:
            self.stream.agent.watch(self.fd, select.POLLOUT, self.ready)
            self.watched = True
        elif self.watched and not self.held:
            self.stream.agent.unwatch(self.fd)
            self.watched = False
        if self.ending and not self.held:
            self.close()

    def close(self):
        if self.fd is not None:
            if self.watched:
                self.stream.agent.unwatch(self.fd)
            os.close(self.fd)
            self.fd = None
            self.watched = False


class Stream(object):
    """One stream of the link, from its OPEN to its RESULT."""

    accepts = ()    # which of DATA and TTY the daemon may send

    def __init__(self, agent, number):
        self.agent = agent
        self.number = number
        self.credit = WINDOW        # bytes we may send
        self.allowance = WINDOW     # bytes the daemon may send
        self.owed = 0               # bytes taken and not yet given back as credit
        self.ended = self.done = False
        self.opened = clock()
        self.sources = []

    def start(self, record):
        raise NotImplementedError

    def frame(self, kind, payload):
        """A frame of the daemon on this stream."""
        if kind == CREDIT:
            self.credit += struct.unpack('>I', payload)[0]
            for source in self.sources:
                source.update()
        elif kind == CANCEL:
            raise Failure('cancelled')
        elif kind == END and not self.ended:
            self.ended = True
            self.end()
        elif kind in self.accepts and not (kind == DATA and self.ended) and len(payload) <= self.allowance:
            self.allowance -= len(payload)
            self.data(kind, payload)
        else:
            raise ProtocolError('a frame of type %d and %d bytes on stream %d, which may not have it'
                                % (kind, len(payload), self.number))

    def data(self, kind, payload):
        """DATA or TTY that came; took() when it is consumed."""

    def end(self):
        """There will be no more DATA."""

    def took(self, n):
        self.owed += n
        if self.owed >= WINDOW // 4 and not self.done:
            self.agent.send(CREDIT, self.number, struct.pack('>I', self.owed))
            self.allowance += self.owed
            self.owed = 0

    def produced(self, kind, data):
        """A source has data."""
        self.agent.send(kind, self.number, data)

    def last_look(self, source):
        """A source has come to its end and is still open."""

    def exhausted(self, source):
        """A source has come to its end and is closed."""

    def finish(self, *fields):
        """Sends RESULT: the last frame."""
        if not self.done:
            self.done = True
            self.release()
            self.agent.send(RESULT, self.number, pack(*fields))
            self.agent.streams.pop(self.number, None)

    def fail(self, kind, text=''):
        self.finish((1, 1), (2, kind), (3, to_bytes(text)[:4096]))

    def abort(self, kind, text=''):
        """It cannot go on, or shall not."""
        self.fail(kind, text)

    def lose(self):
        """The link has ended."""
        self.release()

    def release(self):
        """Gives back what the stream holds, on success, failure or the link's loss."""
        for source in self.sources:
            source.close()


class Job(Stream):
    """A forked child: base of module, command and spawn."""

    stays = True    # the agent outlives its link for it
    pid = status = usage = stdin = tty = None

    def launch(self, run, stdin=False, terminal=None, together=1):
        """Forks a child that calls run() for its exit status. Its stdin is a pipe or at its end, its terminal 'stdio', 'controlling'
        or None."""
        opened = []

        def pair(make):
            opened.extend(make())
            return opened[-2:]
        try:
            master, slave = pair(os.openpty) if terminal else (None, None)
            if terminal == 'stdio':
                stdio, plan, feed = (slave, slave, slave), [(master, DATA)], os.dup(master)
                opened.append(feed)
            else:
                read, feed = pair(os.pipe) if stdin else (self.agent.nothing, None)
                out, out_end = pair(os.pipe)
                err, err_end = pair(os.pipe)
                stdio, plan = (read, out_end, err_end), [(out, DATA), (err, ERR)]
            if terminal == 'controlling':
                plan.append((master, TTY))
            self.pid = os.fork()
        except OSError as e:
            for fd in opened:
                os.close(fd)
            raise Failure('fork', os.strerror(e.errno))
        if self.pid == 0:
            self.agent.turn_into(run, stdio, slave)
        self.forked = clock()
        self.agent.jobs[self.pid] = self
        for fd in set(opened) - set([feed] + [fd for fd, _ in plan]):
            os.close(fd)
        if feed is not None:
            self.stdin = Sink(self, feed)
        if terminal == 'controlling':
            self.tty = Sink(self, os.dup(master))
        self.sources = [Source(self, fd, kind, together) for fd, kind in plan]

    def data(self, kind, payload):
        (self.tty if kind == TTY else self.stdin).write(payload)

    def end(self):
        if self.stdin:
            self.stdin.end()

    def exhausted(self, source):
        self.sources.remove(source)
        self.conclude()

    def exited(self, status, usage):
        """The child has been waited for."""
        self.status = status
        self.usage = usage
        self.ran = clock() - self.forked
        self.conclude()

    def conclude(self):
        """RESULT, when the child has ended and whoever else had its output has closed it: what sshd would wait for."""
        if self.status is None or self.done or (self.sources and not self.agent.lost):
            return
        code = os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else 128 + os.WTERMSIG(self.status)
        cpu = self.usage.ru_utime + self.usage.ru_stime
        self.finish((4, code), (5, int((self.forked - self.opened) * 1e6)), (6, int(self.ran * 1e6)), (7, int(cpu * 1e6)),
                    (8, self.usage.ru_maxrss))

    def abort(self, kind, text=''):
        self.stays = False
        for kill, wanted in ((os.killpg, self.pid), (os.kill, self.pid and self.status is None)):
            try:
                if wanted:
                    kill(self.pid, signal.SIGKILL)
            except OSError:
                pass    # it is gone, or somebody else's: then the end of its stdin is what it gets
        self.fail(kind, text)

    def lose(self):
        if self.pid and self.stays:
            for sink in (self.stdin, self.tty):
                if sink:
                    sink.close()
            for source in self.sources:
                source.update()
        else:
            self.release()

    def release(self):
        for end in self.sources + [self.stdin, self.tty]:
            if end:
                end.close()


class Module(Job):
    def start(self, record):
        self.fields = unpack(record, (1, 2, 3, 5, 7, 8), (4, 6))
        self.params = [self.fields[2]]
        if self.fields[8] == b'1':
            self.accepts = (DATA,)      # the rest of the params
        else:
            self.run()

    def data(self, kind, payload):
        self.params.append(payload)
        self.took(len(payload))

    def end(self):
        if self.accepts:
            self.opened = clock()
            self.run()

    def run(self):
        agent, fields = self.agent, self.fields
        params = b''.join(self.params)
        payload = agent.payload(fields[1])
        agent.prepare(payload)
        keep = not payload.real and agent.agrees(payload)
        self.report = None if payload.warm else mmap.mmap(-1, REPORT_SIZE)
        self.of = payload

        def child():
            enter(fields[6], fields[4], fields[5], int(fields[7] or 0))
            reseed()
            if agent.resolver:
                agent.resolver()
            if not keep:
                agent.unload()
            agent.importer.use(payload)
            del agent.importer.compiled[:]
            pid = os.getpid()
            code = interpreter_exit(lambda: run_module(payload, params, agent.importer))
            if self.report and pid == os.getpid():
                agent.importer.write_report(self.report)
            return code
        self.launch(child, together=READ_SIZE)

    def exited(self, status, usage):
        if self.report:
            self.of.warm = not self.agent.importer.read_report(self.report)
            self.report.close()
            self.report = None
        Job.exited(self, status, usage)


class Command(Job):
    accepts = (DATA,)

    def start(self, record):
        fields = unpack(record, (2, 5), (1, 6))
        if not fields[1]:
            raise Failure('bad-request', 'no argv')
        self.terminal = 'stdio' if fields[2] == b'1' else None

        def child():
            enter(fields[6], [], fields[5], 0)
            return execute(fields[1])
        self.launch(child, True, self.terminal)

    def end(self):
        if self.terminal:
            self.stdin.write(b'\4\4')    # end of file, whether a line has begun or not
        else:
            self.stdin.end()


class Spawn(Job):
    accepts = (DATA,)
    stays = False

    def start(self, record):
        fields = unpack(record, (2,), (1,))
        terminals = {b'': None, b'0': None, b'1': 'controlling', b'2': 'stdio'}
        if not fields[1] or fields[2] not in terminals:
            raise Failure('bad-request', 'no argv, or no such terminal')
        self.terminal = terminals[fields[2]]
        if self.terminal == 'controlling':
            self.accepts = (DATA, TTY)
        self.launch(lambda: execute(fields[1]), True, self.terminal)

    def end(self):
        if self.terminal == 'stdio':
            self.release()      # hangs up
            del self.sources[:]
            self.conclude()
        else:
            self.stdin.end()

    def exhausted(self, source):
        if source.kind == DATA:
            self.agent.send(END, self.number)
        Job.exhausted(self, source)


class Put(Stream):
    """A file comes: written beside its destination, moved there when it is whole."""

    accepts = (DATA,)
    fd = None

    def start(self, record):
        fields = unpack(record, (1, 2, 3, 4))
        self.path = os.path.realpath(fields[1])     # a link is followed, as by open()
        self.size = self.left = int(fields[2] or 0)
        self.digest = fields[4]
        self.trailer = None if self.digest else b''
        self.hash = hashlib.sha256()
        self.mode = int(fields[3]) if fields[3] else 0o666 & ~self.agent.umask
        self.owner = None
        try:
            existing = os.stat(self.path)
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise
        else:
            if stat.S_ISDIR(existing.st_mode):
                raise Failure('io', os.strerror(errno.EISDIR))
            if not stat.S_ISREG(existing.st_mode):
                raise Failure('io', 'not a regular file')
            if not os.access(self.path, os.W_OK):
                raise Failure('io', os.strerror(errno.EACCES))
            self.owner = (existing.st_uid, existing.st_gid)
            if not fields[3]:
                self.mode = stat.S_IMODE(existing.st_mode)
        self.folder = os.path.dirname(self.path)
        self.temporary = os.path.join(self.folder, b'.mitogen-mux.' + binascii.hexlify(os.urandom(8)))
        self.fd = os.open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def data(self, kind, payload):
        body, rest = payload[:self.left], payload[self.left:]
        write_all(self.fd, body)
        self.hash.update(body)
        self.left -= len(body)
        if rest:
            if self.trailer is None or len(self.trailer) + len(rest) > 32:
                raise Failure('bad-request', 'more bytes than were announced')
            self.trailer += rest
        self.took(len(payload))

    def end(self):
        if self.left:
            raise Failure('changed', 'only %d of %d bytes came' % (self.size - self.left, self.size))
        if self.hash.digest() != (self.digest or self.trailer):
            raise Failure('digest', 'the bytes that came are not those that were sent')
        if self.owner:
            mine = os.fstat(self.fd)
            if self.owner != (mine.st_uid, mine.st_gid):
                try:
                    os.fchown(self.fd, *self.owner)
                except OSError:
                    pass    # writing into the old file would have kept its owner; a new one is ours unless we are root
        os.fchmod(self.fd, self.mode)
        os.fsync(self.fd)
        os.rename(self.temporary, self.path)
        self.temporary = None
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError:
            pass    # not every file system knows that of folders
        finally:
            os.close(folder)
        self.finish((9, self.size), (10, self.hash.digest()))

    def release(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
            if self.temporary:
                os.unlink(self.temporary)


class Get(Stream):
    """A file goes."""

    def start(self, record):
        path = unpack(record, (1,))[1]
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.before = os.fstat(fd)
        if not stat.S_ISREG(self.before.st_mode):
            os.close(fd)
            raise Failure('io', os.strerror(errno.EISDIR) if stat.S_ISDIR(self.before.st_mode) else 'not a regular file')
        self.size = 0
        self.hash = hashlib.sha256()
        self.sources = [Source(self, fd, DATA)]

    def produced(self, kind, data):
        self.size += len(data)
        self.hash.update(data)
        Stream.produced(self, kind, data)

    def exhausted(self, source):
        self.agent.send(END, self.number)
        self.finish((9, self.size), (10, self.hash.digest()))

    def last_look(self, source):
        after = os.fstat(source.fd)
        known = self.before.st_size or self.size     # files of /proc say 0
        if self.size != known or any(getattr(self.before, name) != getattr(after, name) for name in ('st_size', 'st_mtime', 'st_ctime')):
            raise Failure('changed', 'the file changed while it was read')


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
                self.buffer += self.inflate.decompress(payload, WINDOW)
                payload = self.inflate.unconsumed_tail
                self.keep()
        except zlib.error as e:
            raise Failure('bad-request', str(e))

    def keep(self):
        at = 0
        while len(self.buffer) - at >= 36:
            end = at + 36 + struct.unpack('>I', bytes(self.buffer[at + 32:at + 36]))[0]
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


KINDS = {1: Module, 2: Command, 3: Put, 4: Get, 5: Spawn, 6: Blobs}


# ---------------------------------------------------------------------------------------------------------------------------------
# The agent itself.

class SelectPoll(object):
    """select.poll where the system has none."""

    def __init__(self):
        self.masks = {}

    def register(self, fd, mask):
        self.masks[fd] = mask

    def unregister(self, fd):
        del self.masks[fd]

    def poll(self):
        wanted = [[fd for fd, mask in self.masks.items() if mask & bit] for bit in (1, 4)]
        ready = select.select(wanted[0], wanted[1], [])
        return [(fd, 1) for fd in ready[0]] + [(fd, 4) for fd in ready[1]]


class Agent(object):
    def __init__(self):
        self.umask = os.umask(0o22)
        os.umask(self.umask)
        self.blobs = {}
        self.payloads = {}      # digest of the manifest: Payload
        self.importer = Importer(self.blobs)
        self.preloaded = {}     # module name: its entry in Payload.names
        self.tried = set()      # names that were to be preloaded
        self.resolver = None
        self.streams = {}
        self.last = 0           # highest stream number seen
        self.jobs = {}          # children not yet waited for, by pid
        self.lost = self.stopping = False
        self.inbox = bytearray()
        self.urgent = collections.deque()
        self.bulk = collections.deque()     # (stream, frame)
        self.waiting = 0                    # bytes in bulk
        self.queued = {}                    # stream: its frames in bulk
        self.chunk = b''                    # being written
        self.blocked = False                # the link takes no more for now
        self.paused = set()                 # sources not read for now
        self.handlers = {}
        self.poller = select.poll() if hasattr(select, 'poll') else SelectPoll()

    def watch(self, fd, mask, handler):
        self.handlers[fd] = handler
        self.poller.register(fd, mask)

    def unwatch(self, fd):
        del self.handlers[fd]
        self.poller.unregister(fd)

    def run(self, source):
        """Lives until the link and the jobs have ended."""
        self.set_up()
        self.greet(source)
        while True:
            self.flush()
            if self.lost and not any(job.stays for job in self.jobs.values()):
                break
            try:
                events = self.poller.poll()
            except (OSError, select.error) as e:
                if e.args[0] != errno.EINTR:
                    raise
                continue
            # A handler may close what another event is about, and open something else of the same number: ask again.
            for fd, handler in [(fd, self.handlers.get(fd)) for fd, _ in events]:
                if handler and self.handlers.get(fd) is handler:
                    handler()
            if self.stopping:
                self.lose()

    def set_up(self):
        """Takes the link off stdio, so that nothing else can write into it, and the signals."""
        null = os.open(os.devnull, os.O_RDWR)
        while null < 3:
            null = os.dup(null)     # some of 0, 1, 2 were closed: now they are not
        self.link_in, self.link_out = os.dup(0), os.dup(1)
        for fd in (self.link_in, self.link_out):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        self.nothing, write = os.pipe()     # stdin of jobs: at its end
        os.close(write)
        self.alarm, alarm = os.pipe()       # a byte for every signal
        for fd in (self.alarm, alarm):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self.before = [(signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))]
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            self.before.append((number, signal.signal(number, self.stop)))
        signal.set_wakeup_fd(alarm)
        self.watch(self.alarm, select.POLLIN, self.signalled)
        self.watch(self.link_in, select.POLLIN, self.receive)
        sys.path[:] = [p for p in sys.path if p not in ('', '.')]
        sys.path_hooks.insert(0, self.importer.hook)

    def greet(self, source):
        import pwd
        try:
            account = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            account = ''
        self.send(HELLO, 0, pack((1, PROTOCOL), (2, '%d.%d.%d' % sys.version_info[:3]), (3, os.getpid()), (4, str(os.getuid())),
                                 (5, hashlib.sha256(source).digest()), (6, sys.executable), (7, account)))

    # -- The link.

    def send(self, kind, stream, payload=b''):
        """Queues a frame: data in turn, the rest ahead of it, but the end of a stream not before its data."""
        frame = encode(kind, stream, payload)
        if kind in (DATA, ERR, TTY) or (kind in (END, RESULT) and stream in self.queued):
            self.bulk.append((stream, frame))
            self.waiting += len(frame)
            self.queued[stream] = self.queued.get(stream, 0) + 1
        else:
            self.urgent.append(frame)

    def gather(self):
        """All urgent frames, and data for about one frame: what comes later has to wait for no more than that."""
        frames = list(self.urgent)
        self.urgent.clear()
        size = 0
        while self.bulk and size < MAX_PAYLOAD:
            stream, frame = self.bulk.popleft()
            frames.append(frame)
            size += len(frame)
            self.queued[stream] -= 1
            if not self.queued[stream]:
                del self.queued[stream]
        self.waiting -= size
        return b''.join(frames)

    def flush(self):
        """Writes what the link takes."""
        behind = self.waiting >= HIGH_WATER
        while not self.lost and (self.chunk or self.urgent or self.bulk):
            self.chunk = self.chunk or memoryview(self.gather())
            try:
                self.chunk = self.chunk[os.write(self.link_out, self.chunk):]
            except OSError as e:
                if e.errno == errno.EAGAIN:
                    if not self.blocked:
                        self.blocked = True
                        self.watch(self.link_out, select.POLLOUT, self.unblock)
                    break
                if e.errno != errno.EINTR:
                    self.lose()
        if behind and self.waiting < HIGH_WATER:
            for source in list(self.paused):
                source.update()

    def unblock(self):
        self.blocked = False
        self.unwatch(self.link_out)

    def receive(self):
        """Takes what the link has."""
        try:
            data = os.read(self.link_in, READ_SIZE)
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EINTR):
                return
            data = b''
        if not data:
            return self.lose()
        self.inbox += data
        try:
            for kind, number, payload in decode(self.inbox):
                self.dispatch(kind, number, payload)
        except ProtocolError as e:
            os.write(2, to_bytes('mitogen-mux: the link ends: %s\n' % e))
            self.lose()

    def dispatch(self, kind, number, payload):
        if kind == PING:
            self.send(PONG, 0, payload)
        elif kind == DROP:
            self.forget(set(payload[at:at + 32] for at in range(0, len(payload), 32)))
        elif kind == OPEN:
            kind = bytearray(payload)[0]
            if number <= self.last or kind not in KINDS:
                raise ProtocolError('stream %d opened twice or late, or of kind %d' % (number, kind))
            self.last = number
            stream = self.streams[number] = KINDS[kind](self, number)
            self.guard(stream, stream.start, payload[1:])
        elif number in self.streams:
            self.guard(self.streams[number], self.streams[number].frame, kind, payload)
        elif number > self.last:
            raise ProtocolError('a frame of type %d on stream %d, which is not open' % (kind, number))

    def guard(self, stream, call, *args):
        """What goes wrong in a stream ends that stream."""
        try:
            call(*args)
        except ProtocolError:
            raise
        except Failure as e:
            stream.abort(e.kind, e.text)
        except EnvironmentError as e:
            stream.abort('not-found' if e.errno in (errno.ENOENT, errno.ENOTDIR) else 'io', os.strerror(e.errno or errno.EIO))
        except Exception as e:
            stream.abort('bad-request', repr(e))

    def log(self, level, text):
        self.send(LOG, 0, struct.pack('>B', level) + to_bytes(text)[:4096])

    def lose(self):
        """The link has ended: transfers are dropped, jobs go on."""
        if self.lost:
            return
        self.lost = True
        self.unwatch(self.link_in)
        if self.blocked:
            self.unwatch(self.link_out)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (self.link_in, self.link_out, 2):
            os.dup2(null, fd)
        os.close(null)
        self.urgent.clear()
        self.bulk.clear()
        self.chunk = b''
        self.waiting = 0
        for stream in list(self.streams.values()):
            stream.lose()

    # -- Jobs.

    def stop(self, number, frame):
        self.stopping = True

    def signalled(self):
        """A signal has come; what it was does not matter here."""
        try:
            os.read(self.alarm, READ_SIZE)
        except OSError:
            pass
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except OSError:
                return
            if not pid:
                return
            if pid in self.jobs:
                self.jobs.pop(pid).exited(status, usage)

    def turn_into(self, run, stdio, terminal):
        """In the forked child: leaves everything of the agent behind, calls run, exits."""
        code = 255
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number, handler in self.before:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            if terminal is not None:
                import termios
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number, fd in enumerate(stdio):
                os.dup2(fd, number)
            os.closerange(3, max(int(fd) for fd in os.listdir('/dev/fd')) + 1)
            code = run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    # -- Payloads.

    def payload(self, digest):
        if digest not in self.payloads:
            self.payloads[digest] = Payload(self.blob(digest))
        payload = self.payloads[digest]
        for _, digest in payload.files:
            self.blob(digest)
        return payload

    def blob(self, digest):
        if digest not in self.blobs:
            raise Failure('blob-missing', binascii.hexlify(digest))
        return self.blobs[digest]

    def forget(self, digests):
        for digest in digests:
            self.blobs.pop(digest, None)
            payload = self.payloads.pop(digest, None)
            if payload and payload.root:
                os.close(payload.fd)
        self.importer.forget(digests)

    def agrees(self, payload):
        """Whether what is imported is what a job of this payload would import."""
        return all(payload.names.get(name) == entry for name, entry in self.preloaded.items())

    def prepare(self, payload):
        """Makes the next fork cheap and complete."""
        if payload.real and not payload.root:
            payload.fd = zip_of(payload, self.blobs)
        wanted = [name for name in payload.preload if name in payload.names and name not in self.tried]
        if wanted and not payload.real and self.agrees(payload):
            self.tried.update(wanted)
            self.preload(payload, wanted)
        if hasattr(gc, 'freeze'):
            gc.freeze()

    def preload(self, payload, names):
        """Imports modules once, for all jobs that would import the same."""
        self.importer.use(payload)
        sys.path.insert(0, self.importer.root)
        try:
            for name in names:
                __import__(name)
            import runpy
        except BaseException as e:      # a module may exit when it does not like this Python: jobs will say so themselves
            self.unload()
            self.log(2, 'cannot preload %s: %r' % (payload.module, e))
        finally:
            sys.path.remove(self.importer.root)
        self.preloaded = dict((name, entry) for name, entry in payload.names.items() if name in sys.modules)

    def unload(self):
        """Forgets every module of Ansible's, but holds them for Python 2."""
        self.unloaded = [sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] in ('ansible', 'ansible_collections')]


if 'SOURCE' in globals():
    Agent().run(globals()['SOURCE'])
