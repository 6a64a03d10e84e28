"""Streams that are jobs, forked children of the agent: module, command and spawn.

A section of the agent; see agent.py.
"""
import errno
import hashlib
import json
import mmap
import os
import signal
import stat

REPORT_SIZE = 8388608   # room for the code a job compiled; pages that are not used cost nothing
PAGES_SIZE = 131072     # the same for the places of the pages it copied
GLANCED = 1048576       # bytes of a file that can be read while all else waits


class Look(Stream):
    """What the agent's jobs are doing, for people: never what they were given."""

    def start(self, record):
        unpack(record, ())
        lines = []
        table = process_table()
        for pid, job in sorted(self.agent.jobs.items()):
            lines.append('job of process %d: %s, for %d s' % (pid, job.name, clock() - job.forked))
            lines += ['  process %s (%s), %s' % (other[0], other[1], waiting_for(other[0])) for other in table if other[5] == str(pid)]
        text = to_bytes('\n'.join(lines or ['no job']))[:MAX_PAYLOAD]
        self.agent.send(DATA, self.number, text)
        self.agent.send(END, self.number)
        self.finish()


def process_table():
    """Of every process: pid, name, state, parent, group, session and so on, as /proc/PID/stat has them; nothing where there is no /proc."""
    table = []
    for pid in os.listdir('/proc') if os.path.isdir('/proc/self') else ():
        try:
            with open('/proc/%d/stat' % int(pid)) as stat:
                before, _, after = stat.read().rpartition(')')
        except (EnvironmentError, ValueError):
            continue    # it has ended, or is none
        table.append([pid, before.partition('(')[2]] + after.split())
    return table


def waiting_for(pid):
    """What the kernel says that a process waits for."""
    try:
        with open('/proc/%s/wchan' % pid) as wchan:
            name = wchan.read().strip('\0\n')
    except EnvironmentError:
        name = ''
    return 'waits in %s' % name if name not in ('', '0') else 'runs, or waits for what is not told'


class Job(Stream):
    """A forked child in a session of its own."""

    name = ''       # for people

    stays = True    # the agent outlives its link for it
    pid = outcome = stdin = tty = slave = None
    logged = ()     # fields of RESULT

    def launch(self, run, stdin=True, patient=False):
        """Forks the child, which calls run() for its exit status. Its stdin is fed by the stream, or at its end."""
        opened = []
        master = slave = None

        def pair(make):
            opened.extend(make())
            return opened[-2:]
        try:
            if self.terminal == 'controlling':
                try:
                    master, slave = pair(os.openpty)
                except OSError:     # a folder with a system in it need have none, and a tool that must have one says so
                    self.terminal, self.accepts = None, (DATA,)
            elif self.terminal:
                master, slave = pair(os.openpty)
            if self.terminal == 'stdio':
                stdio, plan, feed = (slave, slave, slave), [(master, DATA)], os.dup(master)
                opened.append(feed)
            else:
                read, feed = pair(os.pipe) if stdin else (self.agent.nothing, None)
                out, out_end = pair(os.pipe)
                err, err_end = pair(os.pipe)
                stdio, plan = (read, out_end, err_end), [(out, DATA), (err, ERR)]
            if self.terminal == 'controlling':
                plan.append((master, TTY))
            last = last_descriptor()
            pid = os.fork()
        except OSError as e:
            for fd in opened:
                os.close(fd)
            raise Failure('fork', os.strerror(e.errno))
        if pid == 0:
            self.agent.turn_into(run, stdio, slave, last)
        self.begun(pid)
        ours = [feed] + [fd for fd, _ in plan]
        if self.terminal == 'controlling':
            self.slave = slave      # a terminal that nobody has open would be at its end; a tool opens it only when it asks
            ours.append(slave)
        for fd in set(opened) - set(ours):
            os.close(fd)
        if feed is not None:
            self.stdin = Sink(self, feed)
        if self.terminal == 'controlling':
            self.tty = Sink(self, os.dup(master))
        self.listen(plan, patient)

    def begun(self, pid):
        """It has a process."""
        self.pid = pid
        self.forked = clock()
        self.agent.jobs[pid] = self

    def listen(self, plan, patient=False):
        self.open = self.sources = [Source(self, fd, kind, patient) for fd, kind in plan]

    def data(self, kind, payload):
        (self.tty if kind == TTY else self.stdin).write(payload)

    def exhausted(self, source):
        self.open = [other for other in self.open if other is not source]
        self.conclude()

    def exited(self, status, usage):
        """The child has been waited for."""
        self.let_go()
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        self.over(code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)

    def over(self, code, cpu, memory):
        """The child has come to its end: CPU in seconds, memory in KiB."""
        if self.outcome is None:
            self.outcome = (4, code), (6, int((clock() - self.forked) * 1e6)), (7, int(cpu * 1e6)), (8, memory)
        self.conclude()

    def conclude(self):
        """RESULT, once the child has ended and whoever else had its output has closed it: what sshd would wait for."""
        if self.outcome is None or self.done or (self.open and not self.agent.lost):
            return
        for source in self.sources:
            source.flush()
        self.finish((5, int((self.forked - self.opened) * 1e6)), *self.outcome + tuple(self.logged) + self.agent.growth() + self.verdict())

    def verdict(self):
        """The field of RESULT for what came of it, where that is asked."""
        return ()

    def abort(self, kind, text=''):
        self.stays = False
        if self.pid:
            self.kill(os.killpg)
            if self.outcome is None:    # it may not have its group yet
                self.kill(os.kill)
        Stream.abort(self, kind, text)

    def kill(self, how):
        try:
            how(self.pid, signal.SIGKILL)
        except OSError:
            pass    # gone, or of another account: the end of its stdin is what that one gets

    def lose(self):
        if not (self.pid and self.stays):
            return self.release()
        for sink in (self.stdin, self.tty):
            if sink:
                sink.close()
        for source in self.sources:
            source.update()     # to read and throw away

    def let_go(self):
        if self.slave is not None:
            os.close(self.slave)
            self.slave = None

    def release(self):
        self.let_go()
        for end in self.sources + [self.stdin, self.tty]:
            if end:
                end.close()


# Types of file systems that wait for another machine, or for another process.
ELSEWHERE = b'nfs', b'cifs', b'smb', b'9p', b'ceph', b'afs', b'lustre', b'gpfs', b'beegfs', b'gfs2', b'ocfs2', b'fuse', b'autofs'
AT_HAND = b'fusectl', b'fuseblk', b'fuse.lxcfs'


def all_at_hand():
    """Whether no path can lead to a file system that may not answer. (binfmt_misc of systemd is an autofs; nobody copies to /proc.)"""
    try:
        with open('/proc/self/mounts', 'rb') as mounts:
            kinds = [line.split(b' ')[1:3] for line in mounts]
    except EnvironmentError:
        return False    # not told
    return not any(kind.startswith(ELSEWHERE) and kind not in AT_HAND for path, kind in kinds if not path.startswith(b'/proc/'))


def glance(params):
    """What the core's stat would print of a path, as far as an action that copies to it wants to know; None where that is not for the agent to say."""
    try:
        args = json.loads(params.decode('utf-8'))['ANSIBLE_MODULE_ARGS']
        path, follow, checksum = args['path'].encode('utf-8'), args['follow'], args['get_checksum']
        if path[:1] != b'/' or b'$' in path or {follow, checksum} - {True, False} or args['checksum_algorithm'] != 'sha1' or not all_at_hand():
            return None
        there = os.stat(path) if follow else os.lstat(path)
        found = {'exists': True, 'isdir': stat.S_ISDIR(there.st_mode), 'isreg': stat.S_ISREG(there.st_mode), 'islnk': False}
        if not found['isdir'] and not (found['isreg'] and there.st_size <= GLANCED):
            return None
        if found['isreg'] and checksum:
            with open(path, 'rb') as f:
                text = f.read(GLANCED + 1)
            if len(text) > GLANCED:
                return None     # files of /proc say 0, and others grow
            found['checksum'] = hashlib.sha1(text).hexdigest()
    except EnvironmentError as e:
        if e.errno != errno.ENOENT:
            return None
        found = {'exists': False}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None     # params of another stat, or no SHA-1 here
    return to_bytes(json.dumps({'changed': False, 'stat': found}) + '\n')


class Module(Job):
    report = diary = words = pages = None
    lent = False        # its child was there before it
    fresh = True

    def start(self, record):
        if not self.chain:
            self.agent.refuse_if_stale()
        self.fields = unpack(record, (1, 2, 3, 5, 7, 8, 9, 10, 11, 12), (4, 6, 13))
        self.judged = self.fields[11] == b'1'
        if self.judged:
            self.printed = []
        self.params = [self.fields[2]]
        if self.fields[8] == b'1':
            self.accepts = (DATA,)      # the rest of the params
        else:
            self.run()
            if self.stdin:
                self.accepts = (DATA,)

    def data(self, kind, payload):
        if self.stdin:
            return self.stdin.write(payload)
        self.params.append(payload)
        self.took(len(payload))

    def end(self):
        if self.stdin:
            self.stdin.end()
        elif self.accepts:
            self.opened = clock()
            self.run()

    def run(self):
        agent, fields = self.agent, self.fields
        self.fields[2], self.params = b''.join(self.params), None
        found = glance(self.fields[2]) if fields[12] == b'1' else None
        if found:
            return self.tell(found)
        self.payload = payload = agent.payload(fields[1])
        self.name = payload.module
        self.folders = dated([folder for folder, _ in agent.packages])
        if agent.spare and self.folders == agent.packages and agent.spare.take(self):
            agent.spare = None
            return
        agent.dismiss()
        self.fork()

    def tell(self, found):
        """There is nothing to run for it."""
        self.forked, self.open = self.opened, []
        self.produced(DATA, found)
        self.over(0, 0, 0)

    def fork(self):
        self.agent.prepare(self.payload)
        if self.payload.warm:
            self.words = mmap.mmap(-1, WORDS.size)
        else:
            self.report = mmap.mmap(-1, REPORT_SIZE)
        if self.fields[9] == b'1':
            self.diary = Diary()
        self.launch(self.be, stdin=self.fields[10] == b'1', patient=True)
        self.fields = None      # params may be long

    def be(self):
        """In the child: the module, from its environment to its exit status."""
        agent, fields, payload = self.agent, self.fields, self.payload
        agent.hooks.leave()
        given = fields[6] + fields[4]
        if given and surround(fields[6], fields[4]) and PY3:
            choose_locale(given)
        enter(fields[5], int(fields[7] or 0))
        if agent.resolver:
            agent.resolver()
        if self.folders != agent.packages:
            look_again(self.folders, agent.packages)
        leave_out(agent.foreign(payload))
        if not agent.inherits(payload):
            agent.unload()
        if self.diary:
            self.diary.keep()
        if self.report:
            agent.importer.begin_report()
        pid = os.getpid()
        code = interpret(lambda: run_module(payload, fields[2], fields[13], agent.importer))
        if pid == os.getpid():
            if self.report:
                agent.importer.write_report(self.report)
            if self.words:
                say_last(self.words, code)
            if self.pages:
                leave(self.pages, agent.pages.own())
        return code

    def conclude(self):
        """What the module says last need not wait for the end of its process, which gives back memory."""
        if self.outcome is None and self.words and not self.open:
            state, code, cpu, memory = WORDS.unpack(self.words[:])
            if state == ENDED:
                return self.over(code, cpu / 1e6, memory)
        Job.conclude(self)

    def verdict(self):
        good = self.judged and dict(self.outcome)[4] == 0 and succeeded(b''.join(self.printed or ()))
        return ((13, 1),) if good else ()

    def over(self, code, cpu, memory):
        if self.diary:
            self.logged = [(11, entry) for entry in self.diary.read()]
            self.diary = None
        Job.over(self, code, cpu, memory)

    def exited(self, status, usage):
        if self.report:
            self.payload.warm = not self.agent.importer.read_report(self.report) and os.WIFEXITED(status)
            self.report.close()
        if self.payload.warm and self.agent.inherits(self.payload):
            self.agent.latest = self.payload
        if self.lent and not self.done and not WORDS.unpack(self.words[:])[0]:
            self.lent = False
            for source in self.sources:
                source.close()
            return self.agent.guard(self, self.fork)    # somebody has ended who was to be it, and it has not begun
        if self.pages:
            self.agent.pages.copied = what_was_left(self.pages) or []
        Job.exited(self, status, usage)
        self.words = self.pages = None


class Spare(object):
    """A child that is forked while there is nothing else to do. It waits to be told which module it is; so a job need not wait for a fork. It is
    as any child of that time is, so that it can be only what would find the same now."""

    room = 32768    # bytes that a pipe takes for certain from one who would wait

    def __init__(self, agent):
        self.agent = agent
        self.payloads = [payload for payload in agent.payloads.values() if payload.warm and agent.inherits(payload)]
        self.words = mmap.mmap(-1, WORDS.size)
        self.pages = mmap.mmap(-1, PAGES_SIZE) if agent.pages.to_be_learnt() else None
        self.diary = Diary()
        pipes = []
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            last = last_descriptor()
            self.pid = os.fork()
        except OSError:
            for fd in sum(pipes, ()):
                os.close(fd)
            raise
        (out, out_end), (err, err_end), (orders, self.orders) = pipes
        if self.pid == 0:
            agent.turn_into(self.wait, (agent.nothing, out_end, err_end, orders), None, last)
        self.plan = (out, DATA), (err, ERR)
        for fd in (out_end, err_end, orders):
            os.close(fd)

    def wait(self):
        """In the child, which has its orders as the descriptor after stdio."""
        self.agent.pages.copy()
        with os.fdopen(3, 'rb') as orders:
            size = orders.read(NUMBER.size)
            order = orders.read(NUMBER.unpack(size)[0]) if size else b''
        if not order:
            os._exit(0)     # it is not needed, or the agent has gone
        self.words[:] = WORDS.pack(BEGUN, 0, 0, 0)
        job = Module(self.agent, 0)
        job.fields = unpack(order, (1, 2, 5, 7, 9), (4, 6, 13))
        job.payload = self.agent.payloads[job.fields[1]]
        job.folders = self.agent.packages
        self.equip(job)
        self.agent.importer.use(job.payload)
        return job.be()

    def equip(self, job):
        """Gives it the memory that both processes share."""
        job.words, job.pages = self.words, self.pages
        if job.fields[9] == b'1':
            job.diary = self.diary

    def take(self, job):
        """Becomes the job; False if it cannot."""
        fields = job.fields
        order = pack((5, fields[5]), (7, fields[7]), (9, fields[9]), (1, fields[1]), (2, fields[2]), *[(n, one) for n in (4, 6, 13) for one in fields[n]])
        if job.payload not in self.payloads or fields[10] == b'1' or len(order) > self.room:
            return False
        try:
            write_all(self.orders, NUMBER.pack(len(order)) + order)
        except OSError:
            return False    # somebody has ended it
        self.equip(job)
        job.lent = True
        job.begun(self.pid)
        job.listen(self.plan, patient=True)
        os.close(self.orders)
        return True

    def close(self):
        """It is not wanted: it ends by itself."""
        for fd in (self.orders, self.plan[0][0], self.plan[1][0]):
            os.close(fd)


class Command(Job):
    name = 'a command'
    accepts = (DATA,)

    def start(self, record):
        fields = unpack(record, (2, 5), (1, 6))
        if not fields[1]:
            raise Failure('bad-request', 'no argv')
        self.terminal = 'stdio' if fields[2] == b'1' else None

        def child():
            if not fields[6]:
                uncoerce()
            surround(fields[6], [])
            enter(fields[5], 0)
            return execute(fields[1])
        self.launch(child)

    def end(self):
        if self.terminal:
            self.stdin.write(b'\4\4')   # end of file to a reader, whether a line has begun or not
        else:
            self.stdin.end()


class Spawn(Job):
    name = 'another account'
    accepts = (DATA,)
    stays = False       # it has a link of its own, which ends with ours

    def start(self, record):
        fields = unpack(record, (2,), (1,))
        terminals = {b'': None, b'0': None, b'1': 'controlling', b'2': 'stdio'}
        if not fields[1] or fields[2] not in terminals:
            raise Failure('bad-request', 'no argv, or no such terminal')
        self.terminal = terminals[fields[2]]
        if self.terminal == 'controlling':
            self.accepts = (DATA, TTY)

        def child():
            uncoerce()      # sudo keeps LC_CTYPE: the next account's Python would start in another locale
            return execute(fields[1])
        self.launch(child)

    def end(self):
        if self.terminal == 'stdio':
            self.release()      # hangs up: a raw terminal knows no other end
            self.open = []
            self.conclude()
        else:
            self.stdin.end()

    def exhausted(self, source):
        if source.kind == DATA:
            self.agent.send(END, self.number)
        Job.exhausted(self, source)
