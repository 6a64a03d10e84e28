"""The agent of mitogen-mux: what runs on a target, in memory only, while Ansible works there.

The daemon on the controller starts one for an account, sends this program over the connection and speaks docs/agent-protocol.md with
it: run this module, run this command, take or give this file. Every job is a forked child with a session of its own, so nothing a
job does to the interpreter outlives it. The agent knows no address and opens no connection; it answers, and ends with its link.

Python 2.7 and 3.6 or newer, standard library only, one thread: Agent.run below is its one loop. What is sent are these sections in
this order: agent_frames.py, agent_payload.py, agent_pages.py, agent_child.py, agent_fresh.py, agent_streams.py, agent_chain.py, agent_jobs.py,
agent.py. They share their names, and each can be read knowing those before it. Stage 1 executes one after the other, for compiling
takes memory by the text's length; with SOURCE (all, compressed) and NAME (whose it is, for people who look at the process).
"""
import binascii
import collections
import errno
import fcntl
import gc
import hashlib
import os
import pwd
import resource
import select
import signal
import sys
from _io import FileIO
try:
    from _signal import SIG_DFL, signal as handle   # without the enumerations of Python 3, whose pages each job would copy
except ImportError:
    from signal import SIG_DFL, signal as handle


class SelectPoll(object):
    """select.poll where the system has none."""

    def __init__(self):
        self.masks = {}

    def register(self, fd, mask):
        self.masks[fd] = mask

    def unregister(self, fd):
        del self.masks[fd]

    def poll(self, timeout=None):
        wanted = [[fd for fd, mask in self.masks.items() if mask & bit] for bit in (1, 4)]
        ready = select.select(wanted[0], wanted[1], [], timeout)
        return [(fd, 1) for fd in ready[0]] + [(fd, 4) for fd in ready[1]]


def spare_memory():
    """KiB that the system can give; 0 where it is not told."""
    told = []
    try:
        with open('/proc/meminfo') as meminfo:
            told = [int(line.split()[1]) for line in meminfo if line.startswith('MemAvailable:')]
        with open('/sys/fs/cgroup/memory.max') as limit:
            told.append(int(limit.read()) >> 10)
    except (EnvironmentError, ValueError):
        pass    # no Linux, or no limit
    return min(told or [0])


KINDS = {1: Module, 2: Command, 3: Put, 4: Get, 5: Spawn, 6: Blobs, 7: Folder, 8: Look}
CHAINED = 128           # a bit of the kind
GROWTH = 64             # KiB that are worth a word
WORTH_GATHERING = 90    # children that wait, which spare together what it takes to gather pages (docs/decisions/0003-what-a-job-costs.md)
MOST_DONE = 256         # streams: who follows one that ended before these is not begun, and asked again
MOST_URGENT = 1024      # frames: a daemon that asks without listening is not read any further


class Agent(object):
    """The link, the streams on it, the jobs."""

    def __init__(self):
        self.umask = os.umask(0o22)
        os.umask(self.umask)
        self.blobs = {}
        self.passed = {}        # number of a KEEP: what was in it
        self.passes = self.forgotten = 0    # the highest such numbers
        self.payloads = {}      # digest of the manifest: Payload
        self.importer = Importer(self.blobs)
        self.preloaded = {}     # module name: its entry in Payload.names
        self.empty = {}         # the same of packages without code
        self.tried = set()      # names that were to be preloaded
        self.hooks = Hooks()
        self.surroundings = None    # of agents that have not inherited theirs
        self.resolver = None    # res_init, if it has to be called
        self.packages = dated(package_folders())    # as this interpreter found them when it started
        self.streams = {}
        self.owing = set()      # streams that are to give credit
        self.chains = {}
        self.done = collections.deque(maxlen=MOST_DONE)     # streams whose RESULT is no failure, the latest
        self.folders = {}       # made and not removed: whose they are
        self.last = 0           # highest stream number seen
        self.jobs = {}          # children not yet waited for, by pid
        self.latest = None      # the payload of the last job that found everything compiled
        self.spare = None       # a child for the next one
        self.pages = Pages()
        self.spares = 0         # so many there were
        self.memory = 0         # KiB, as the daemon knows
        self.lost = self.stopping = False
        self.inbox = Inbox()
        self.urgent = collections.deque()
        self.bulk = collections.deque()     # (stream, frame)
        self.waiting = 0                    # bytes in bulk
        self.queued = {}                    # stream: its frames in bulk
        self.chunk = b''                    # being written
        self.paused = set()                 # sources not read for now
        self.handlers = {}
        self.poller = select.poll() if hasattr(select, 'poll') else SelectPoll()

    def watch(self, fd, mask, handler):
        self.handlers[fd] = handler
        self.poller.register(fd, mask)

    def unwatch(self, fd):
        del self.handlers[fd]
        self.poller.unregister(fd)

    def attend(self, fd, mask, handler, wanted):
        """Watches or not, whatever it was before."""
        if wanted and fd not in self.handlers:
            self.watch(fd, mask, handler)
        elif not wanted and fd in self.handlers:
            self.unwatch(fd)

    def run(self, source):
        """Lives until the link and the jobs have ended."""
        self.set_up()
        self.greet(source)
        while True:
            self.flush()
            if self.lost and not any(job.stays for job in self.jobs.values()):
                return self.tidy()
            idle = self.latest is not None and not self.spare and not self.lost and self.expecting()
            try:
                events = self.poller.poll(0) if idle else self.poller.poll()
            except (OSError, select.error) as e:
                if e.args[0] != errno.EINTR:
                    raise
                continue
            if idle and not events:
                self.fork_ahead()
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
        self.link_in, self.link_out = [roomy(unblocking(os.dup(fd))) for fd in (0, 1)]
        self.link_file = FileIO(self.link_in, closefd=False)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        self.nothing, write = os.pipe()     # stdin of jobs: at its end
        os.close(write)
        self.alarm, alarm = [unblocking(fd) for fd in os.pipe()]    # a byte for every signal
        self.before = [(signal.SIGCHLD, handle(signal.SIGCHLD, lambda *_: None))]
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            self.before.append((number, handle(number, self.stop)))
        signal.set_wakeup_fd(alarm)
        self.watch(self.alarm, select.POLLIN, self.signalled)
        sys.path[:] = [p for p in sys.path if p not in ('', '.')]
        sys.path_hooks.insert(0, self.importer.hook)
        if len(sys.argv) < 3:   # stage1_local.py has more: that one is as its run's process is
            self.surroundings = Surroundings()
        sys.argv[:] = ['']      # of jobs: as of a program on stdin; runpy makes it the module's file
        if hasattr(sys, 'orig_argv'):
            sys.orig_argv = [sys.executable]
        self.main = sys.modules['__main__']     # Python 2 empties a module that nobody holds
        sys.modules['__main__'] = type(sys)('__main__')

    def greet(self, source):
        try:
            account = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            account = ''
        self.send(HELLO, 0, pack((1, PROTOCOL), (2, '%d.%d.%d' % sys.version_info[:3]), (3, os.getpid()), (4, str(os.getuid())),
                                 (5, hashlib.sha256(source).digest()), (6, sys.executable), (7, account), (8, spare_memory())))

    # -- The link.

    def send(self, kind, stream, payload=b''):
        """Queues a frame, until flush(): data in turn, the rest ahead of it, but the end of a stream not before its data."""
        if self.lost:
            return
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
        while self.owing:
            self.owing.pop().repay()
        behind = self.waiting >= HIGH_WATER
        while not self.lost and (self.chunk or self.urgent or self.bulk):
            self.chunk = self.chunk or memoryview(self.gather())
            try:
                self.chunk = self.chunk[os.write(self.link_out, self.chunk):]
            except OSError as e:
                if e.errno == errno.EAGAIN:
                    break
                if e.errno != errno.EINTR:
                    self.lose()
        self.attend(self.link_out, select.POLLOUT, self.flush, bool(self.chunk))
        self.attend(self.link_in, select.POLLIN, self.receive, len(self.urgent) < MOST_URGENT and not self.lost)
        if behind and self.waiting < HIGH_WATER:
            for source in list(self.paused):
                source.update()

    def receive(self):
        """Takes what the link has, and if that was much, what has come meanwhile: one frame gives credit for both."""
        for _ in range(2):
            try:
                n = self.link_file.readinto(self.inbox.room())
            except EnvironmentError as e:
                n = None if e.errno == errno.EINTR else 0
            if n is None:
                return
            if not n:
                return self.lose()
            try:
                for kind, number, payload in self.inbox.frames(n):
                    self.dispatch(kind, number, payload)
            except ProtocolError as e:
                os.write(2, to_bytes('mitogen-mux: the link ends: %s\n' % e))
                return self.lose()
            if n < READ_SIZE:
                return

    def dispatch(self, kind, number, payload):
        if kind == KEEP:
            self.passes += 1
            self.passed[self.passes] = payload
            kind = DATA
        elif kind == KEPT:
            payload, kind = self.again(NUMBER.unpack(payload)[0]), DATA
        if kind == PING:
            self.send(PONG, 0, payload)
        elif kind == DROP:
            self.forget(set(payload[at:at + 32] for at in range(0, len(payload), 32)))
        elif kind == FORGET:
            last, = NUMBER.unpack(payload)
            self.again(last)
            while self.forgotten < last:
                self.forgotten += 1
                del self.passed[self.forgotten]
        elif kind == OPEN:
            kind = bytearray(payload)[0] & ~CHAINED
            if number <= self.last or kind not in KINDS:
                raise ProtocolError('stream %d opened twice or late, or of kind %d' % (number, kind))
            self.last = number
            stream = self.streams[number] = KINDS[kind](self, number)
            if kind == bytearray(payload)[0]:
                self.guard(stream, stream.start, payload[1:])
            else:
                self.guard(stream, self.enchain, stream, payload[1:])
        elif number in self.streams:
            self.guard(self.streams[number], self.streams[number].frame, kind, payload)
        elif number > self.last:
            raise ProtocolError('a frame of type %d on stream %d, which is not open' % (kind, number))

    def again(self, number):
        if number not in self.passed:
            raise ProtocolError('what is asked for as number %d is not kept' % number)
        return self.passed[number]

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

    def enchain(self, stream, payload):
        """Puts a stream in its chain."""
        end = 2 + SHORT.unpack(payload[:2])[0] if len(payload) > 1 else 0
        place = unpack(payload[2:end], (1, 2, 3), (4, 5, 6))
        number = int(place[1] or 0)
        if number not in self.chains:
            self.chains[number] = Chain(self, number, int(place[3] or 0))
        self.chains[number].add(stream, place, payload[end:])

    def ended(self, stream, fields):
        """A stream has its RESULT."""
        if 1 not in fields and (13 in fields or not stream.judged):
            self.done.append(stream.number)
        if stream.chain:
            stream.chain.ended(stream, fields)
        followers = [chain for chain in self.chains.values() if chain.follows]
        if followers:
            self.flush()    # nobody need wait for it until these have begun
        for chain in followers:
            chain.move()

    def tidy(self):
        """Removes the folders of actions that nobody will come back to."""
        for path, uid in list(self.folders.items()):
            try:
                with Acting(uid):
                    remove_tree(path)
            except (Failure, OSError):
                pass    # somebody else was quicker, or the disk has gone

    def log(self, level, text):
        self.send(LOG, 0, bytes(bytearray([level])) + to_bytes(text)[:MAX_TEXT])

    def lose(self):
        """The link has ended: transfers are dropped, jobs go on."""
        if self.lost:
            return
        self.lost = True
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (self.link_in, self.link_out, 2):
            os.dup2(null, fd)
        os.close(null)
        self.urgent.clear()
        self.bulk.clear()
        self.chunk = b''
        self.waiting = 0
        self.queued.clear()
        self.passed.clear()
        self.dismiss()
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
                return  # there is no child
            if not pid:
                return
            if pid in self.jobs:
                self.jobs.pop(pid).exited(status, usage)

    def turn_into(self, run, stdio, terminal, last):
        """In the forked child: leaves everything of the agent behind, calls run, exits. last: no descriptor is higher."""
        code = 255
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number, handler in self.before:
                handle(number, SIG_DFL if handler is None else handler)
            if terminal is not None:
                import termios
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number, fd in enumerate(stdio):
                os.dup2(fd, number)
            os.closerange(len(stdio), 1 + last)
            code = run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def expecting(self):
        """Whether there is nothing to do, or nothing but what another module waits for in its chain."""
        if self.streams:
            return any(stream.fresh and stream.held is not None for stream in self.streams.values())
        return all(job.done for job in self.jobs.values())

    def fork_ahead(self):
        """Has a child ready for the next job."""
        latest, self.latest = self.latest, None     # until another has run, if it cannot be
        try:
            self.prepare(latest)
            self.spares += 1
            if self.spares > WORTH_GATHERING and not self.pages.gathered:
                self.pages.gather()
            self.spare = Spare(self)
            self.latest = latest
        except OSError:
            pass    # jobs will say so themselves

    def dismiss(self):
        """The child that waits is not what a job should be."""
        if self.spare:
            self.spare.close()
            self.spare = None

    def growth(self):
        """The field of RESULT for the memory that the agent itself has resident, where that has become more."""
        try:
            statm = os.open('/proc/self/statm', os.O_RDONLY)    # with no object of Python's around it, whose pages the next job would copy
            memory = int(os.read(statm, 100).split()[1]) * PAGE >> 10
            os.close(statm)
        except OSError:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss     # with what was before the interpreter
        if memory < self.memory + GROWTH:
            return ()
        self.memory = memory
        return (12, memory),

    # -- Payloads.

    def refuse_if_stale(self):
        """A job that needs a fresh agent does not start."""
        changed = self.surroundings and self.surroundings.changed()
        if changed:
            raise Failure('stale', changed)

    def payload(self, digest):
        if digest not in self.payloads:
            self.payloads[digest] = Payload(self.blob(digest))
        payload = self.payloads[digest]
        if not payload.whole:
            for _, digest in payload.files:
                self.blob(digest)
            payload.whole = True
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
        for payload in self.payloads.values():
            if not digests.isdisjoint(digest for _, digest in payload.files):
                payload.whole = payload.warm = False    # what its jobs compiled goes too
        self.importer.forget(digests)
        self.latest = None
        self.dismiss()

    def agrees(self, payload):
        """Whether what is imported is what a job of this payload would import."""
        if payload.compared is not self.preloaded:
            payload.compared = self.preloaded
            payload.agrees = all(payload.names.get(name) == entry for name, entry in self.preloaded.items())
        return payload.agrees

    def inherits(self, payload):
        """Whether a job of this payload can do with what the agent has."""
        return not payload.real and self.agrees(payload)

    def prepare(self, payload):
        """Makes the next fork cheap and complete."""
        collects = gc.isenabled()
        gc.disable()    # what is imported stays: to look through it for garbage takes a tenth of the time that importing does
        try:
            self.complete(payload)
        finally:
            if hasattr(gc, 'freeze'):
                gc.freeze()
            if collects:
                gc.enable()

    def complete(self, payload):
        """Has here what jobs of this payload would each have to make or import."""
        if payload.real and not payload.root:
            payload.materialise(self.blobs)
        wanted = [name for name in payload.preload if name in payload.names and name not in self.tried]
        if wanted and self.inherits(payload):
            if not self.tried:
                self.resolver = find_resolver()
                load_locale()
            self.tried.update(wanted)
            self.preload(payload, wanted)
            there = set(sys.modules).difference(self.empty)
            self.preloaded = dict((name, entry) for name, entry in payload.names.items() if name in there)
        self.importer.use(payload)
        if self.preloaded and self.inherits(payload):
            empty = [name for name in payload.packages if name not in sys.modules]
            if empty and not any(self.blob(payload.names[name][1]) for name in empty):
                self.preload(payload, empty)
                self.empty.update((name, payload.names[name]) for name in empty if name in sys.modules)
        if self.importer.learn() or wanted:
            know_abstract_classes()
            self.pages.copied = None
        draw_seed()

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
            self.empty.clear()
            self.log(2, 'cannot preload %s: %r' % (payload.module, e))
        finally:
            sys.path.remove(self.importer.root)
            del self.importer.compiled[:]   # jobs inherit this code

    def foreign(self, payload):
        """The packages without code that a job of this payload would not find, or not without code."""
        return [name for name, entry in self.empty.items() if payload.names.get(name) != entry]

    def unload(self):
        """Forgets every module of Ansible's, but holds them for Python 2."""
        self.unloaded = [sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] in ('ansible', 'ansible_collections')]


if 'SOURCE' in globals():
    Agent().run(globals()['SOURCE'])
