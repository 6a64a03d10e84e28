"""What a forked child does between the fork and its exit: a module as AnsiballZ's wrapper would run it, or another program.

A section of the agent; see agent.py. It knows nothing of links and streams.
"""
import errno
import mmap
import os
import resource
import signal
import struct
import sys
import time

WORDS = struct.Struct('>BBQQ')      # what a job leaves to the agent: one of these, exit status, CPU microseconds, KiB
BEGUN, ENDED = 1, 2
DIARY_SIZE = 49152      # bytes of records of one module; RESULT has room for them
# What these have called when a process forks is idle where the agent forks: it has one thread, which holds no lock, and draws a new seed itself.
IDLE = frozenset(['logging', 'random', 'threading'])
MANY_FILES = 65536      # more than an agent has open


class Hooks(object):
    """os.register_at_fork of the agent: what a module of IDLE would have called when a process forks is called only where jobs fork."""

    def __init__(self):
        self.job = False
        self.stock = getattr(os, 'register_at_fork', None)      # of Python 3.7
        if self.stock:
            os.register_at_fork = self.register

    def register(self, **hooks):
        known = [getattr(hook, '__module__', None) for hook in hooks.values()]
        if IDLE.issuperset(known) and all(standard(sys.modules[name]) for name in known):
            hooks = dict((when, self.idle(hook)) for when, hook in hooks.items())
        self.stock(**hooks)

    def idle(self, hook):
        return lambda: self.job and hook()

    def leave(self):
        """In the child."""
        self.job = True
        if self.stock:
            os.register_at_fork = self.stock


def enter(cwd, nofile):
    """Puts the child where a new process of the account would be."""
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
        limit_files(nofile)


def surround(environ, added):
    """Gives the child its environment. Says whether the locale is to be another."""
    settings = ('TZ', 'LANG', 'LC_ALL', 'LC_CTYPE')
    before = [os.environ.get(name) for name in settings]
    decode_name = os.fsdecode if PY3 else bytes
    if environ:
        os.environ.clear()
    for entry in environ + added:
        name, _, value = entry.partition(b'=')
        os.environ[decode_name(name)] = decode_name(value)
    changed = set(name for name, value in zip(settings, before) if os.environ.get(name) != value)
    if 'TZ' in changed:
        time.tzset()
    return bool(changed - set(['TZ']))


def say_last(words, code):
    """Leaves the exit status and what was used to the agent, which looks when stdout and stderr have been closed. So is all that the process
    has open, and with it the locks that it has: the next job may need them before the system has taken this one apart."""
    try:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        words[:] = WORDS.pack(ENDED, code, int(cpu * 1e6), max(usage.ru_maxrss for usage in usages))
        null = os.open(os.devnull, os.O_RDWR)   # a thread may go on printing
        for number in range(3):
            os.dup2(null, number)
        os.closerange(3, 1 + last_descriptor())
    except Exception:
        pass    # modules may take Python apart; the end of the process says the same


def last_descriptor():
    """No descriptor of this process is higher."""
    try:
        return max([63] + [int(fd) for fd in os.listdir('/dev/fd')])    # not every system lists them
    except OSError:     # a folder with a system in it need have no /proc
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return soft if 0 < soft < MANY_FILES else MANY_FILES


def limit_files(nofile):
    """As AnsiballZ's wrapper does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nofile if hard == resource.RLIM_INFINITY else min(hard, nofile)
    try:
        if wanted != soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except ValueError:
        pass    # some systems lie about their hard limit


def choose_locale(given):
    """As Python 3 does when it starts; 3.7 and newer choose again if that is the C locale, unless they are told so (PEP 538). given: the
    environment of the task."""
    import locale
    if not any(entry.startswith(b'LC_CTYPE=') for entry in given):
        uncoerce()
    locale.setlocale(locale.LC_CTYPE, 'C')      # that of a process that begins
    names = ['']
    if sys.version_info >= (3, 7) and not os.environ.get('LC_ALL'):
        names += ['C.UTF-8', 'C.utf8', 'UTF-8']
    for name in names:
        try:
            locale.setlocale(locale.LC_CTYPE, name)
        except locale.Error:
            pass
        if locale.setlocale(locale.LC_CTYPE) != 'C':
            if name:
                os.environ['LC_CTYPE'] = name
            return


def draw_seed():
    """Has what is random in the next job be so: its fork copies the state of generators."""
    random = sys.modules.get('random')
    if random and standard(random):
        if PY3:
            super(random.Random, random._inst).seed()   # all that random.seed() does to one that was never asked for more
        else:
            random.seed()
    if 'ssl' in sys.modules and sys.version_info < (3, 7):  # newer ones do it themselves
        sys.modules['ssl'].RAND_add(os.urandom(32), 32.0)


def leave_out(names):
    """Takes back that these packages, outermost first, were imported."""
    for name in names:
        parent, _, last = name.rpartition('.')
        del sys.modules[name]
        if parent in sys.modules:
            delattr(sys.modules[parent], last)


def package_folders():
    """Where an interpreter looks for packages and .pth files when it starts, first found first."""
    import site
    folders = getattr(site, 'getsitepackages', list)()
    return [site.getusersitepackages()] + folders if site.ENABLE_USER_SITE else folders


def dated(folders):
    """Pairs of a folder and the time when something came into it or went (seconds; None where it is not there)."""
    found = []
    for folder in folders:
        try:
            found.append((folder, os.stat(folder).st_mtime))
        except OSError:
            found.append((folder, None))
    return found


def look_again(folders, packages):
    """Adds to sys.path what an interpreter that starts now would have there: folders that have come, and what .pth files name."""
    import site
    for number, (folder, changed) in enumerate(folders):
        if changed is None or (folder, changed) in packages:
            continue
        end = len(sys.path)
        site.addsitedir(folder)
        added, sys.path[end:] = sys.path[end:], []
        later = [sys.path.index(after) for after, _ in folders[number + 1:] if after in sys.path]
        place = min(later + [end])
        sys.path[place:place] = added


def find_resolver():
    """res_init, where the C library reads resolv.conf but once: glibc before 2.26."""
    try:
        version = os.confstr('CS_GNU_LIBC_VERSION').split()[1].split('.')
        if (int(version[0]), int(version[1])) >= (2, 26):
            return None
    except (AttributeError, IndexError, OSError, ValueError):
        pass    # not told: ask the library itself
    try:
        import ctypes
        return getattr(ctypes.CDLL(None), '__res_init')
    except (AttributeError, ImportError, OSError):
        return None


def load_locale():
    """Has the C library read the account's locale, which it keeps and every module asks for (AnsibleModule), and leaves the one in use."""
    import locale
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, '')
    except locale.Error:
        pass
    locale.setlocale(locale.LC_ALL, before)


def uncoerce():
    """Takes back the LC_CTYPE that Python 3.7 and newer give themselves in the C locale (PEP 538): no program was to see it."""
    if os.environ.get('LC_CTYPE') in ('C.UTF-8', 'C.utf8', 'UTF-8'):
        try:
            with open('/proc/self/environ', 'rb') as first:
                if b'\0LC_CTYPE=' not in b'\0' + first.read():
                    del os.environ['LC_CTYPE']
        except EnvironmentError:
            pass    # not told


def execute(argv):
    """Becomes the program argv; as a shell would, says on stderr why it cannot."""
    for name in ('SIGPIPE', 'SIGXFZ', 'SIGXFSZ'):   # Python ignores these, and a program would inherit it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        os.write(2, argv[0] + b': ' + to_bytes(os.strerror(e.errno)) + b'\n')
        return 127 if e.errno == errno.ENOENT else 126


def run_module(payload, params, secrets, importer):
    """What AnsiballZ's wrapper does once its zip is on sys.path."""
    from importlib import import_module
    sys.path.insert(0, importer.root)
    sys.path_importer_cache.pop(importer.root, None)
    if payload.loader:
        run = import_module(payload.loader).run_module
        code = run.__code__
        known = code.co_varnames[:code.co_argcount + getattr(code, 'co_kwonlyargcount', 0)]
        given = dict(json_params=params, profile=payload.profile, module_fqn=payload.module, modlib_path=importer.root, extensions={},
                     secrets=frozenset(secret.decode('utf-8', 'surrogatepass') for secret in secrets))
        return run(**dict((name, given[name]) for name in given if name in known))
    import runpy
    import_module('ansible.module_utils.basic')._ANSIBLE_ARGS = params
    runpy.run_module(payload.module, dict(_module_fqn=payload.module, _modlib_path=importer.root), '__main__', True)
    print('{"msg": "New-style module did not handle its own exit", "failed": true}')
    sys.exit(1)


def complain():
    """Reports the exception in flight as the interpreter would, without the agent's frames; returns the exit status, which a hook of the
    module's own may choose by exiting itself."""
    kind, value, trace = sys.exc_info()
    while trace and trace.tb_frame.f_code.co_filename == complain.__code__.co_filename:
        trace = trace.tb_next
    if PY3:
        value.__traceback__ = trace
    try:
        sys.excepthook(kind, value, trace)
    except SystemExit as e:
        return e.code
    except BaseException:
        sys.__excepthook__(*sys.exc_info())
    return 1


def wind_down():
    """The first steps of the interpreter's own exit: threads, then exit functions."""
    import atexit
    steps = [atexit._run_exitfuncs]
    if 'threading' in sys.modules:
        steps.insert(0, sys.modules['threading']._shutdown)
    for step in steps:
        try:
            step()
        except BaseException:
            complain()


def interpret(run):
    """Calls run as the interpreter runs a program, up to the end of its output; returns the exit status."""
    code = 0
    try:
        run()
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        complain()
        code = 128 + signal.SIGINT
    except BaseException:
        code = complain()
    if not PY3:
        sys.exc_clear()
    if code is None:
        code = 0
    elif not isinstance(code, int):
        sys.stderr.write('%s\n' % (code,))
        code = 1
    wind_down()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            code = code or 120
    return code & 0xff


class Diary(object):
    """What a module writes to logging, in memory that outlives its process. Its own handlers, levels and filters are as they would be."""

    def __init__(self):
        self.room = mmap.mmap(-1, DIARY_SIZE)
        self.end = 0

    def keep(self):
        """In the child: from now on records that reach handlers are written down."""
        import copy
        import logging
        import threading
        pid, lock, original = os.getpid(), threading.RLock(), logging.Logger.callHandlers
        line = logging.Formatter('%(name)s: %(message)s')

        def call_handlers(logger, record):
            if os.getpid() == pid:
                try:
                    with lock:
                        self.write(lambda: self.censor(line.format(copy.copy(record))))
                except Exception:
                    pass    # logging says so itself, if the record is to blame
            return original(logger, record)
        logging.Logger.callHandlers = call_handlers

    def write(self, text):
        left = DIARY_SIZE - self.end - NUMBER.size
        if left < MAX_TEXT:
            return
        data = to_bytes(text())[:MAX_TEXT]
        if left - len(data) < MAX_TEXT:
            data = b'mitogen-mux: what else the module logged is left out'
        start, self.end = self.end, self.end + NUMBER.size + len(data)
        self.room[start + NUMBER.size:self.end] = data
        self.room[start:start + NUMBER.size] = NUMBER.pack(len(data))   # last: the module may be killed between the two

    def censor(self, text):
        """Without the values that are no_log to the module, and since 2.22 without all that it knows to be secret, by Ansible's own function."""
        import gc
        masks = sys.modules.get('ansible.module_utils.secrets')
        if masks:
            return masks.mask_secrets(text)
        basic = sys.modules.get('ansible.module_utils.basic')
        secrets = set()
        for module in gc.get_objects():
            if issubclass(type(module), getattr(basic, 'AnsibleModule', ())):
                secrets |= getattr(module, 'no_log_values', set())
        return basic.remove_values(text, secrets) if secrets else text

    def read(self):
        """The entries, in the agent."""
        at, entries = 0, []
        while at + NUMBER.size < DIARY_SIZE:
            length, = NUMBER.unpack(self.room[at:at + NUMBER.size])
            at += NUMBER.size + length
            if not 0 < length <= MAX_TEXT or at > DIARY_SIZE:
                break
            entries.append(self.room[at - length:at])
        self.room.close()
        return entries
