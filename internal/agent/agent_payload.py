"""What a module is made of: a manifest's files, imported from blobs in memory as plain Ansible would import them from its zip.

A section of the agent; see agent.py. It knows nothing of links and jobs.
"""
import errno
import marshal
import os
import re
import sys


class Payload(object):
    """A manifest: the files of one module."""

    def __init__(self, text):
        self.module = self.loader = self.profile = self.real = None
        self.root = self.fd = None  # its zip, if it has a real one: path and descriptor
        self.preload = []
        self.files = []             # (path, digest), in order
        self.digests = {}           # the same
        self.names = {}             # full module name: (path, digest, whether it is a package)
        self.warm = False           # a job found all the code it wanted compiled
        self.whole = False          # all its files are there
        self.agrees = self.compared = None      # what Agent.agrees found, and what it compared
        for line in text.decode('utf-8').strip(u'\n').split(u'\n'):
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
        parts = self.module.split('.')
        packages = ['.'.join(parts[:end]) for end in range(1, len(parts))]
        self.packages = packages if all(name in self.names for name in packages) else []    # that the module is in, outermost first

    def add(self, path, digest):
        self.files.append((path, digest))
        self.digests[path] = digest
        if path.endswith('/__init__.py'):
            self.names[path[:-12].replace('/', '.')] = (path, digest, True)
        elif path.endswith('.py'):
            self.names[path[:-3].replace('/', '.')] = (path, digest, False)

    def materialise(self, blobs):
        """Leaves a zip of the files, as plain Ansible's, where other processes of this account can read it."""
        import io
        import zipfile
        self.fd, self.root = nameless_file()
        out = io.BytesIO()
        archive = zipfile.ZipFile(out, 'w')
        for path, digest in self.files:
            archive.writestr(zipfile.ZipInfo(path), blobs[digest])
        archive.writestr(zipfile.ZipInfo('sitecustomize.py'), 'import sys\nsys.path.insert(0, "%s")\n' % self.root)
        archive.close()
        write_all(self.fd, out.getvalue())


def nameless_file():
    """A file in memory without a name, which /proc lets others of this account open: (descriptor, path). Where there is none of
    this, a temporary file without a name; without /proc it keeps its name until the agent exits."""
    proc = os.path.isdir('/proc/self/fd')
    fd, name = -1, None
    if proc:
        try:
            if hasattr(os, 'memfd_create'):
                fd = os.memfd_create('ansible_payload', 0)
            else:
                import ctypes
                fd = ctypes.CDLL(None).memfd_create(b'ansible_payload', 0)
        except (AttributeError, ImportError, OSError):
            pass
    if fd < 0:
        import tempfile
        folders = ['/dev/shm', os.environ.get('XDG_RUNTIME_DIR', '/run'), '/run', tempfile.gettempdir()]
        folder = [folder for folder in folders if os.access(folder, os.W_OK)] + folders[3:]
        fd, name = tempfile.mkstemp('.zip', 'ansible_payload_', folder[0])
        if proc:
            os.unlink(name)
        else:
            import atexit
            atexit.register(os.unlink, name)
    return fd, '/proc/%d/fd/%d' % (os.getpid(), fd) if proc else name


def write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data):]


# What Ansible's modules import of the standard library and what only defines things when it is imported: it starts nothing, registers
# nothing, warns of nothing and draws nothing, so that to have imported it before a fork is to have imported it after.
QUIET = frozenset("""
    ast base64 binascii bz2 calendar configparser ConfigParser contextlib copy csv ctypes ctypes.util dataclasses datetime decimal difflib
    email email.message email.mime.multipart email.mime.nonmultipart email.mime.application email.parser email.utils errno fcntl filecmp
    fnmatch fractions functools getpass gettext glob grp gzip hashlib heapq hmac html http.client http.cookiejar httplib cookielib inspect
    io ipaddress itertools json locale lzma math mimetypes netrc numbers operator optparse pathlib pkgutil platform pprint pwd queue Queue
    quopri random re resource select selectors shlex shutil signal socket ssl stat string StringIO cStringIO struct subprocess tarfile
    tempfile termios textwrap threading time traceback tty types typing unicodedata urllib urllib2 urllib.error urllib.parse urllib.request
    urlparse uuid xml.dom xml.dom.minidom xml.etree.ElementTree zipfile zlib
""".split())


def standard(module):
    """Whether it comes from where this interpreter's own library is."""
    path = getattr(module, '__file__', None) or ''
    home = os.path.dirname(os.__file__) + os.sep
    return not path or (path.startswith(home) and 'site-packages' not in path and 'dist-packages' not in path)


BASIC = 'ansible.module_utils.basic'

# What run_command has its forked child do first: nothing, without a umask. (On Python 3 _restore_signal_handlers is empty.)
PREEXEC = re.compile(br'''
        def preexec\(\):
(?:            self\._restore_signal_handlers\(\)
)?            if umask:
                os\.umask\(umask\)

        kwargs = dict\(
(?:            [a-z_]+=[a-zA-Z_.]+,
)*?            preexec_fn=(preexec),
''')

# How run_command ends. A command that ends between the two times that it is asked leads to one more select(), of nothing, for a second.
ENDED_BETWEEN = re.compile(br'''
                if \(not events or not selector\.get_map\(\)\) and cmd\.poll\(\) is not None:
                    break
(?:
|                #.*
)*                elif not selector\.get_map\(\)( and cmd\.poll\(\) is None):
                    cmd\.wait\(\)
''')

LINUX = 'ansible.module_utils.facts.hardware.linux'

# How the facts of Linux wait for those of each mount, by ThreadPool or, since ansible-core 2.18, by futures: the tenth of a second is asleep.
NAP = br'''
        while results:(?:  # wait for workers and get results)?
            for mount in list\(results\):
                done = False
                res = results\[mount\]\['extra'\]
                try:
                    if res\.%s\(\):
(?:(?:                .*)?
)*?                    del results\[mount\]

            # avoid cpu churn, sleep between retrying for loop with remaining mounts
            (time\.sleep\(0\.1\))

        return \{'mounts': mounts\}
'''

# What jobs are spared: a place in a text of Ansible's, and what is compiled in place of it. Without a function to call, subprocess can start a
# program by vfork(), which spares copying the job for an instant. The wait for mounts ends when none is left; which facts there are, and in which
# order, stays the same.
SPARED = {
    BASIC: [(ENDED_BETWEEN, b'')] + [(PREEXEC, b'preexec if umask else None')] * PY3,
    LINUX: [
        (re.compile(NAP % b'ready'), b"(lambda end: [res['extra'].wait(max(0, end - time.time())) for res in list(results.values())])(time.time() + 0.1)"),
        (re.compile(NAP % b'done'), b"__import__('concurrent.futures', None, None, ['wait']).wait([res['extra'] for res in results.values()], 0.1)"),
    ],
}


def spared(name, source):
    """The text of a module, by its full name, as it is compiled."""
    for place, instead in SPARED.get(name, ()):
        found = place.search(source)
        if found:
            source = source[:found.start(1)] + instead + source[found.end(1):]
    return source


def leave(room, value):
    """Puts a value into memory that is shared, if it fits."""
    data = marshal.dumps(value)
    if len(data) <= len(room) - NUMBER.size:
        room[NUMBER.size:NUMBER.size + len(data)] = data
        room[:NUMBER.size] = NUMBER.pack(len(data))     # last: who does this may be killed between the two


def what_was_left(room):
    """The value; None if there is none."""
    length, = NUMBER.unpack(room[:NUMBER.size])
    return marshal.loads(room[NUMBER.size:NUMBER.size + length]) if length else None


class Importer(object):
    """Finder and loader of the payload in use. Its root is an entry of sys.path, as the path of the zip is in plain Ansible."""

    def __init__(self, blobs):
        self.blobs = blobs
        secret = ''.join('%02x' % byte for byte in bytearray(os.urandom(8)))     # nobody can put a file there
        self.virtual = '%s/ansible_payload_%s/ansible_payload.zip' % (os.environ.get('TMPDIR') or '/tmp', secret)
        self.codes = {}         # (file name, digest): code object
        self.compiled = []      # keys of the above that this process added
        self.standing = set()   # QUIET modules that were there when this process began
        self.learnt = []        # others of them that jobs imported
        self.root = self.virtual
        self.names = {}
        self.digests = {}

    def use(self, payload):
        self.archive = payload.root     # where importlib.resources of Python 3.9 looks
        self.root = payload.root or self.virtual
        self.names = payload.names
        self.digests = payload.digests

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
        """find_spec of Python 2."""
        return self if name in self.names else None

    def load_module(self, name):
        """create_module and exec_module of Python 2."""
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
        if name not in self.names:
            raise ImportError('the payload has no module %s' % name)
        return self.names[name]

    def is_package(self, name):
        return self.entry(name)[2]

    def get_filename(self, name):
        return self.root + '/' + self.entry(name)[0]

    def get_code(self, name):
        key = (self.get_filename(name), self.entry(name)[1])
        if key not in self.codes:
            source = spared(name, self.get_data(key[0]))
            self.codes[key] = compile(source, key[0], 'exec', dont_inherit=True)
            self.compiled.append(key)
        return self.codes[key]

    def get_source(self, name):
        source = self.get_data(self.get_filename(name))
        if PY3:
            from importlib.util import decode_source
            return decode_source(source)
        return source.replace(b'\r\n', b'\n')

    def get_data(self, path):
        digest = self.digests.get(path[len(self.root) + 1:])
        if digest not in self.blobs:
            raise IOError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.blobs[digest]

    def get_resource_reader(self, name):
        """Payloads that want resources have a real zip, and zipimport knows how."""
        if self.root == self.virtual or not self.is_package(name):
            return None
        import zipimport
        return zipimport.zipimporter(os.path.dirname(os.path.dirname(self.get_filename(name)))).get_resource_reader(name)

    def forget(self, digests):
        for key in [key for key in self.codes if key[1] in digests]:
            del self.codes[key]

    # A job compiles what it is the first to import, and leaves the code to the agent in memory that both share; and the names of what it
    # found lacking of the standard library.

    def begin_report(self):
        self.standing = QUIET.intersection(sys.modules)

    def write_report(self, report):
        lacked = [name for name in QUIET.intersection(sys.modules) - self.standing if standard(sys.modules[name])]
        if self.compiled or lacked:
            leave(report, ([(key, self.codes[key]) for key in self.compiled], lacked))

    def read_report(self, report):
        """Says whether there was any."""
        left = what_was_left(report)
        if left:
            codes, lacked = left
            self.codes.update(codes)
            self.learnt += QUIET.intersection(lacked)
        return left is not None

    def learn(self):
        """Imports what jobs found lacking, for those to come. Says whether there was any."""
        lacking = bool(self.learnt)
        while self.learnt:
            try:
                __import__(self.learnt.pop())
            except Exception:
                pass    # it was there a moment ago: jobs will say so themselves
        return lacking


def know_abstract_classes():
    """Has Python keep what the types of JSON are to abstract classes, which the first to ask has to find out for each."""
    abstract = sys.modules['_collections_abc' if PY3 else '_abcoll']
    for name in ('KeysView', 'Mapping', 'Sequence', 'Set'):
        for kind in (bool, bytes, dict, float, int, list, str, tuple, type(None), type(u'')):
            issubclass(kind, getattr(abstract, name))
