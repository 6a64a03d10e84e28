"""Module jobs with payloads written here: what a module sees, and that nothing it does outlives it."""

import hashlib
import json
import os
import re
import signal

import pytest

from agent_driver import CANCEL, DATA, DROP, END, INTERPRETERS, MODULE, WINDOW, eventually, gone
from agent_modules import BASIC, LOADER, Modules
from agent_payloads import manifest

BOTH_WAYS = True


@pytest.mark.parametrize('loader', [None, 'ansible.module_utils.loader'])
@pytest.mark.parametrize('preload', [True, False])
def test_what_a_module_sees(modules, loader, preload):
    seen = modules.value(
        '''
        import ansible.module_utils.basic as basic, signal
        from ..module_utils import basic as same
        assert same is basic
        main = sys.modules['__main__']
        def handler(n):
            h = signal.getsignal(n)
            return 'python' if callable(h) and h is signal.default_int_handler else int(h)
        print(json.dumps(dict(
            name=__name__, file=__file__, argv=sys.argv, path0=sys.path[0], path=sys.path, package=__package__, modlib=_modlib_path,
            fqn=_module_fqn, args=basic._ANSIBLE_ARGS.decode(), main=main._module_fqn, basic=basic.__file__,
            fds=sorted(map(int, os.listdir('/proc/self/fd'))), stdin=sys.stdin.read(), session=os.getsid(0) == os.getpid(),
            signals=list(map(handler, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE))),
            names=sorted(n for n in main.__dict__ if not n.startswith('__')), code=sys._getframe().f_code.co_filename,
            loader=__loader__ is basic.__loader__, source=__loader__.get_source('ansible.module_utils.basic'),
            data=len(__loader__.get_data(__file__)))))
    ''',
        loader=loader,
        profile='legacy' if loader else None,
        preload=preload,
    )
    root = seen['modlib']
    assert root.endswith('.zip') and not os.path.exists(root)
    assert seen['name'] == '__main__' and seen['package'] == 'ansible.modules' and seen['fqn'] == seen['main'] == 'ansible.modules.probe'
    assert seen['file'] == seen['code'] == root + '/ansible/modules/probe.py' and seen['argv'] == [seen['file']]
    assert seen['basic'] == root + '/ansible/module_utils/basic.py'
    assert seen['path0'] == root and '' not in seen['path'] and '.' not in seen['path'] and seen['path'].count(root) == 1
    assert seen['args'] == '{"a": 1}' and seen['stdin'] == ''
    assert seen['fds'][:3] == [0, 1, 2] and len(seen['fds']) == 4  # and that of listdir
    assert seen['session'] and seen['signals'] == [0, 'python', 0, 0, 1]
    assert seen['names'] == ['_modlib_path', '_module_fqn', 'basic', 'handler', 'json', 'main', 'os', 'same', 'signal', 'sys']
    assert seen['loader'] and seen['source'] == BASIC.decode() and seen['data'] > 100


@pytest.mark.parametrize('told', [[], ['two\nlines', 'été', '\ud800']], ids=['nothing', 'three'])
def test_a_loader_is_told_what_is_secret(modules, python, told):
    if dict(zip(INTERPRETERS.values(), INTERPRETERS))[python].startswith('2.'):
        pytest.skip('no loader that wants to know runs on Python 2')
    loader = LOADER.replace(b'extensions, init_globals=None', b'extensions, secrets')
    loader = loader.replace(b'json_params\n    assert', b'json_params\n    basic.secrets = secrets\n    assert')
    result = modules.run(
        'from ansible.module_utils import basic; print(ascii(sorted(basic.secrets)))',
        *[(13, secret.encode('utf-8', 'surrogatepass')) for secret in told],
        loader='ansible.module_utils.loader',
        profile='legacy',
        extra={'ansible/module_utils/loader.py': loader},
    )
    assert result.data.decode() == ascii(sorted(told)) + '\n', result.err.decode()


def test_a_whole_result_is_one_write(modules):
    """RESULT follows the output at once."""
    digest = modules.add('import sys; sys.stdout.write("x" * 1000); sys.stderr.write("y"); sys.exit(0)')
    modules.again(digest)
    modules.again(digest)
    assert [kind for kind, _, _ in modules.agent.frames[-3:]] == [DATA, 4, 9]


EXITS = [
    ('sys.exit()', 0, ''),
    ('sys.exit(None)', 0, ''),
    ('sys.exit(3)', 3, ''),
    ('sys.exit(256 + 7)', 7, ''),
    ('sys.exit(-1)', 255, ''),
    ('sys.exit(True)', 1, ''),
    ('sys.exit("words")', 1, 'words\n'),
    ('sys.exit((1, 2))', 1, '(1, 2)\n'),
    ('os._exit(9)', 9, ''),
    ('os.kill(os.getpid(), 9)', 137, ''),
    ('os.kill(os.getpid(), 15)', 143, ''),
]


@pytest.mark.parametrize(('how', 'code', 'err'), EXITS)
def test_exit(modules, how, code, err):
    result = modules.run('import os, sys\n' + how)
    assert (result.code, result.err.decode(), bytes(result.data)) == (code, err, b'')


def test_module_that_does_not_exit(modules):
    result = modules.run('pass')
    assert result.code == 1
    assert json.loads(result.data.decode()) == {'msg': 'New-style module did not handle its own exit', 'failed': True}


def test_uncaught_exception(modules):
    result = modules.run('import sys\ndef f():\n    raise ValueError("odd")\nf()\n')
    text = result.err.decode()
    assert result.code == 1 and text.startswith('Traceback (most recent call last):\n') and text.endswith('ValueError: odd\n')
    assert 'ansible/modules/probe.py", line 3, in f\n' in text
    assert 'mitogen-mux' not in text


@pytest.mark.parametrize(('last', 'code'), [('sys.exit(7)', 7), ('sys.exit(None)', 0), ('raise KeyError(1)', 1)])
def test_hook_of_the_modules_own(modules, last, code):
    """Some modules report by sys.excepthook, which may exit itself."""
    result = modules.run('import sys\ndef hook(*exception):\n    print("told")\n    %s\nsys.excepthook = hook\nraise ValueError(3)' % last)
    assert (result.code, bytes(result.data)) == (code, b'told\n')
    assert (b'KeyError' in result.err) == (code == 1)


def test_syntax_error(modules):
    result = modules.run('def f(:\n')
    assert result.code == 1 and 'SyntaxError' in result.err.decode() and 'probe.py", line 1' in result.err.decode()


def test_winding_down(modules):
    """Threads are waited for, then exit functions run, then output is flushed."""
    result = modules.run('''
        import atexit, sys, threading, time
        go = threading.Event()
        out = sys.stdout
        def work(go=go, out=out):      # Python 2 empties a module before its threads end
            go.wait()
            out.write('thread ')
        atexit.register(lambda out=out: out.write('atexit'))
        t = threading.Thread(target=work)
        t.start()
        sys.stdout.write('main ')
        go.set()
        sys.exit(4)
    ''')
    assert (result.code, bytes(result.data), bytes(result.err)) == (4, b'main thread atexit', b'')


def test_exit_function_that_fails(modules):
    result = modules.run('import atexit, sys\natexit.register(lambda: 1/0)\nsys.exit(0)')
    assert 'ZeroDivisionError' in result.err.decode() and result.code == 0


def test_surroundings(modules, tmp_path):
    ask = '''
        import resource, time
        print(json.dumps(dict(env=dict(os.environ), cwd=os.getcwd(), nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                              hour=time.localtime(0).tm_hour)))
    '''
    plain = modules.value(ask)
    seen = modules.value(ask, (4, b'ADDED=1=2'), (4, b'TZ=XYZ-7'), (5, str(tmp_path).encode()), (7, b'123'))
    assert seen['env'].pop('ADDED') == '1=2' and seen['env'].pop('TZ') == 'XYZ-7'
    plain['env'].pop('TZ', None)
    assert seen['env'] == plain['env']
    assert (seen['cwd'], seen['nofile'], seen['hour']) == (str(tmp_path), 123, 7)
    seen = modules.value(ask, (6, b'ONLY=this'), (6, b'PATH=/bin'), (4, b'AND=that'))
    assert set(seen['env']) - {'LC_CTYPE'} == {'ONLY', 'PATH', 'AND'}


def test_folder_that_is_gone(start, tmp_path):
    """As the wrapper does: home, then the root."""
    gone = tmp_path / 'gone'
    gone.mkdir()
    agent = start(cwd=str(gone))
    gone.rmdir()
    modules = Modules(agent)
    assert modules.value('print(json.dumps(os.getcwd()))') == os.path.realpath(os.path.expanduser('~'))
    assert modules.value('print(json.dumps(os.getcwd()))', (4, b'HOME=/no/such')) == '/'
    assert modules.value('print(json.dumps(os.getcwd()))', (5, b'/no/such'), (4, b'HOME=/usr')) == '/usr'


def test_nothing_outlives_a_job(modules, tmp_path):
    ask = '''
        import signal, ansible.module_utils.basic as basic
        mask = os.umask(0); os.umask(mask)
        print(json.dumps([os.getcwd(), mask, dict(os.environ), sys.path[1:], len(basic.marks), sorted(n for n in sys.modules if n == 'colorsys'),
                          [str(signal.getsignal(n)) for n in range(1, 30) if n not in (9, 19)], os.nice(0), sys.getrecursionlimit(),
                          sorted(set(os.listdir('/proc/self/fd')))]))
    '''
    digest = modules.add(
        '''
        import colorsys, os, signal, sys, threading
        import ansible.module_utils.basic as basic
        basic.marks.append(1)
        os.chdir(%r); os.umask(0o777); os.environ.clear(); sys.path[:] = []; os.nice(3); sys.setrecursionlimit(50000)
        for n in (1, 2, 15, 17, 13):
            signal.signal(n, signal.SIG_IGN)
        t = threading.Thread(target=__import__('time').sleep, args=(1000,)); t.daemon = True; t.start()
        sys.stdout.write('done'); sys.stdout.flush()
        for module in list(sys.modules.values()):
            if module is not sys:
                try: module.__dict__.clear()
                except Exception: pass
        sys.modules.clear()
        os_close = sys.modules
    '''
        % str(tmp_path)
    )
    before = modules.value(ask)
    modules.again(digest)
    assert modules.value(ask) == before
    result = modules.run('import os, sys\nos.closerange(0, 4096)\nsys.exit(0)')
    assert result.code in (0, 120)
    assert modules.value(ask) == before


def test_daemons(modules, tmp_path):
    """A job that leaves a daemon behind ends; the daemon lives, in a session of its own, and holds nothing of the agent's."""
    result = modules.run(
        '''
        import os, sys, time
        if os.fork(): sys.exit(5)
        os.setsid()
        if os.fork(): os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for n in range(3): os.dup2(null, n)
        os.closerange(3, 1000)
        open(%r, 'w').write(str(os.getpid()))
        while not os.path.exists(%r): time.sleep(0.01)
        sys.exit(0)
    '''
        % (str(tmp_path / 'pid'), str(tmp_path / 'go'))
    )
    assert result.code == 5
    eventually(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text())
    pid = int((tmp_path / 'pid').read_text())
    modules.agent.close()
    assert modules.agent.wait() == 0
    os.kill(pid, 0)
    (tmp_path / 'go').write_text('')


def test_two_at_once(modules, tmp_path):
    source = '''
        import os, sys, time
        open(%r + str(os.getpid()), 'w').close()
        while len(os.listdir(%r)) < 2: time.sleep(0.01)
        sys.exit(0)
    ''' % (str(tmp_path) + '/', str(tmp_path))
    digest = modules.add(source)
    streams = [modules.agent.open(MODULE, (1, digest)) for _ in range(2)]
    assert [modules.agent.result(s).code for s in streams] == [0, 0]


def test_random_numbers_differ(modules):
    digest = modules.add(
        '''
        import random, sys, tempfile, uuid
        sys.stdout.write('%r %r %r' % (random.random(), next(tempfile._get_candidate_names()), uuid.uuid4()))
        sys.exit(0)
    ''',
        basic=BASIC + b'import random, tempfile, uuid\nrandom.random()\n',
        preload=True,
    )
    drawn = [bytes(modules.again(digest).data).split() for _ in range(8)]
    assert all(len(set(column)) == 8 for column in zip(*drawn))


def test_ssl_random_numbers_differ(modules):
    source = '''
        import os, sys
        try:
            import ssl
        except ImportError:
            sys.exit(0)
        sys.stdout.write(repr(ssl.RAND_bytes(8) if hasattr(ssl, 'RAND_bytes') else os.urandom(8)))
        sys.exit(0)
    '''
    digest = modules.add(source, basic=BASIC + b'try:\n    import ssl\nexcept ImportError:\n    pass\n')
    drawn = [bytes(modules.again(digest).data) for _ in range(8)]
    assert len(set(drawn)) == 8 or not any(drawn)


def test_same_bytes_in_two_places(modules):
    """Code is shared by content, but each file keeps its name."""
    body = b'import sys\nwhere = sys._getframe().f_code.co_filename\n'
    seen = modules.value(
        'import ansible.module_utils.a as a, ansible.module_utils.b as b\nprint(json.dumps([a.where, b.where, a.__file__, b.__file__]))',
        extra={'ansible/module_utils/a.py': body, 'ansible/module_utils/b.py': body},
    )
    assert seen[:2] == seen[2:] and seen[0] != seen[1]


def test_params_longer_than_a_frame(modules):
    digest = modules.add('''
        import ansible.module_utils.basic as basic, hashlib, sys
        sys.stdout.write('%d %s' % (len(basic._ANSIBLE_ARGS), hashlib.sha256(basic._ANSIBLE_ARGS).hexdigest()))
        sys.exit(0)
    ''')
    params = os.urandom(3 * WINDOW // 2)
    for head in (b'', params[:1000]):
        stream = modules.agent.open(MODULE, (1, digest), (2, head), (8, b'1'))
        modules.agent.feed(stream, params[len(head) :])
        assert modules.agent.result(stream).data.decode() == '%d %s' % (len(params), hashlib.sha256(params).hexdigest())
    stream = modules.agent.open(MODULE, (1, digest), (8, b'1'))
    modules.agent.send(DATA, stream, b'some')
    modules.agent.send(CANCEL, stream)
    assert modules.agent.result(stream).failure == 'cancelled'
    stream = modules.agent.open(MODULE, (1, digest), (8, b'1'))
    modules.agent.send(END, stream)
    assert modules.agent.result(stream).data.startswith(b'0 ')


def test_stdin(modules):
    """What the daemon sends is the module's stdin, which is at its end otherwise; one that does not read it ends all the same."""
    digest = modules.add("""
        import hashlib, sys
        data = getattr(sys.stdin, 'buffer', sys.stdin).read()
        sys.stdout.write('%d %s' % (len(data), hashlib.sha256(data).hexdigest()))
        sys.exit(0)
    """)
    for body in (b'', b'some', os.urandom(3 * WINDOW)):
        stream = modules.agent.open(MODULE, (1, digest), (2, b'{}'), (10, b'1'))
        modules.agent.feed(stream, body)
        assert modules.agent.result(stream).data.decode() == '%d %s' % (len(body), hashlib.sha256(body).hexdigest())
    assert modules.again(digest).data.startswith(b'0 ')
    deaf = modules.add('import sys\nsys.stdout.write("done")\nsys.exit(0)\n')
    stream = modules.agent.open(MODULE, (1, deaf), (2, b'{}'), (10, b'1'))
    modules.agent.feed(stream, bytes(3 * WINDOW))
    assert modules.agent.result(stream).data == b'done'


def test_much_output(modules):
    result = modules.run('''
        import sys
        for _ in range(200):
            sys.stdout.write('o' * 50000); sys.stderr.write('e' * 50000)
        sys.exit(0)
    ''')
    assert (result.code, len(result.data), len(result.err)) == (0, 10000000, 10000000)


def test_very_much_output_in_bounded_memory(modules):
    """200 MB pass; neither end gathers them."""
    digest = modules.add("""
        import os
        block = b'o' * 100000
        for _ in range(2000):
            left = len(block)
            while left: left -= os.write(1, block[:left])
        os._exit(0)
    """)
    stream = modules.agent.open(MODULE, (1, digest))
    result, size = modules.agent.streams[stream], 0
    while result.fields is None:
        assert modules.agent.take()
        size += len(result.data)
        del result.data[:]
    assert (size, result.code) == (200000000, 0)
    with open('/proc/%d/status' % modules.agent.process.pid) as f:
        assert next(int(line.split()[1]) for line in f if line.startswith('VmHWM')) < 60 * 1024


def test_bytes_that_are_no_text(modules):
    result = modules.run("""
        import os, sys
        sys.stdout.write('garbage\\n'); sys.stdout.flush()
        os.write(1, b'\\xff\\xfe\\0\\r\\n{"a": 1}'); os.write(2, b'\\x80')
        sys.exit(0)
    """)
    assert (result.code, bytes(result.data), bytes(result.err)) == (0, b'garbage\n\xff\xfe\0\r\n{"a": 1}', b'\x80')


SELF = """
    import locale, resource, signal, time
    mask = os.umask(0)
    os.umask(mask)
    print(json.dumps([os.getcwd(), mask, locale.setlocale(locale.LC_ALL), time.tzname, os.nice(0), resource.getrlimit(resource.RLIMIT_NOFILE),
                      resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_AS), [str(signal.getsignal(n)) for n in (1, 2, 13, 15, 17)],
                      os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd'))), signal.alarm(0), sys.getrecursionlimit()]))
"""
ODD = {
    'limits': 'import resource\nfor n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE): resource.setrlimit(n, (9, 9))',
    'locale': 'import locale, os, time\nlocale.setlocale(locale.LC_ALL, "C")\nos.environ["TZ"] = "XYZ-5"\ntime.tzset()',
    'alarm': 'import signal\nsignal.alarm(1000)\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)',
    'descriptors': 'import os\nfor n in range(3, 64): os.dup2(0, n)',
    'standard': 'import sys\nsys.stdout = sys.stderr = sys.stdin = None',
    'closed': 'import os\nos.close(0); os.close(1); os.close(2)',
    'group': 'import os\nif os.fork(): os._exit(0)\nos.setsid()',
    'excepthook': 'import sys\nsys.excepthook = None\nraise ValueError(1)',
    'import': 'import sys, builtins as b\nb.__import__ = None'
    if False
    else 'import sys\nsys.meta_path[:] = []; sys.path_hooks[:] = []; sys.path_importer_cache.clear()',
    'threads': 'import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(3))).start()',
    'segfault': 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)',
    'child left': 'import os, signal, subprocess\nsubprocess.Popen(["true"]); os._exit(0)',
}


@pytest.mark.parametrize('what', sorted(ODD))
def test_odd_modules_change_nothing(modules, what):
    """Whatever a module does to its process, the next job is as the one before."""
    before = modules.value(SELF)
    modules.run(ODD[what])
    assert modules.value(SELF) == before
    assert modules.agent.command('echo', 'hi').data == b'hi\n'


def test_stdin_that_is_never_read(modules):
    """Params longer than any pipe reach a module that reads nothing, and what it starts finds its stdin at the end."""
    digest = modules.add("""
        import subprocess, sys
        sys.exit(subprocess.call(['sh', '-c', 'read line && exit 8; exit 9']))
    """)
    stream = modules.agent.open(MODULE, (1, digest), (8, b'1'))
    modules.agent.feed(stream, bytes(WINDOW))
    assert modules.agent.result(stream).code == 9


def test_cancel(modules, tmp_path):
    digest = modules.add(
        '''
        import os, subprocess, sys, time
        child = subprocess.Popen(['sleep', '1000'])
        open(%r, 'w').write('%%d %%d\\n' %% (os.getpid(), child.pid))
        time.sleep(1000)
    '''
        % str(tmp_path / 'pids')
    )
    stream = modules.agent.open(MODULE, (1, digest))
    eventually(lambda: (tmp_path / 'pids').exists() and (tmp_path / 'pids').read_text().endswith('\n'))
    modules.agent.send(CANCEL, stream)
    assert modules.agent.result(stream).failure == 'cancelled'
    for pid in (tmp_path / 'pids').read_text().split():
        eventually(lambda: gone(int(pid)))  # noqa: B023
    assert modules.run('import sys\nsys.exit(3)').code == 3


@pytest.mark.parametrize('how', ['close', signal.SIGHUP])
def test_the_second_half_of_a_job(modules, tmp_path, how):
    """A module that takes the link down gets to its end."""
    digest = modules.add(
        '''
        import os, sys, time
        while not os.path.exists(%r): time.sleep(0.01)
        sys.stdout.write('x' * 1000000)
        open(%r, 'w').close()
        sys.exit(0)
    '''
        % (str(tmp_path / 'go'), str(tmp_path / 'done'))
    )
    modules.agent.open(MODULE, (1, digest))
    modules.agent.ping()
    if how == 'close':
        modules.agent.close()
    else:
        modules.agent.process.send_signal(how)
        while modules.agent.take():
            pass
    (tmp_path / 'go').write_text('')
    assert modules.agent.wait() == 0
    assert (tmp_path / 'done').exists()


def test_real_payload(modules, python):
    """Another interpreter can be started on it, as respawn does, and there is no file anywhere."""
    source = '''
        import subprocess, zipfile
        import ansible.module_utils.basic as basic
        names = zipfile.ZipFile(_modlib_path).namelist()
        out = subprocess.check_output([%r, '-c', 'import sys; sys.path.insert(0, sys.argv[1]); import ansible.module_utils.basic as b; '
                                       'print(b.__file__)', _modlib_path])
        env = dict(os.environ, PYTHONPATH=_modlib_path)
        byenv = subprocess.check_output([%r, '-c', 'import ansible.modules.probe_extra as e; print(e.x)'], env=env)
        print(json.dumps(dict(modlib=_modlib_path, path0=sys.path[0], file=__file__, basic=basic.__file__, names=names, out=out.decode().strip(),
                              byenv=byenv.decode().strip(), marks=basic.marks, ppid=os.getppid())))
    ''' % (python, python)
    extra = {'ansible/modules/probe_extra.py': b'x = 42\n'}
    modules.value('print(1)')  # preloads
    files = None
    for _ in range(2):
        seen = modules.value(source, real=True, extra=extra)
        root = seen['modlib']
        assert root.startswith('/proc/%d/fd/' % modules.agent.process.pid)
        assert seen['path0'] == root and seen['file'] == root + '/ansible/modules/probe.py'
        assert seen['basic'] == seen['out'] == root + '/ansible/module_utils/basic.py' and seen['byenv'] == '42'
        assert seen['names'][-1] == 'sitecustomize.py' and len(seen['names']) == 8
        assert files in (None, root)
        files = root
    assert 'deleted' in os.readlink(root)
    assert not modules.value('print(json.dumps(os.path.exists(_modlib_path)))')


def test_resources(modules, python):
    """importlib.resources and pkgutil on a real payload."""
    version = next(v for v, path in INTERPRETERS.items() if path == python)
    seen = modules.value(
        '''
        import pkgutil, warnings
        warnings.simplefilter('ignore')
        found = [pkgutil.get_data('ansible.module_utils', 'some.txt').decode()]
        if sys.version_info >= (3, 7):
            import importlib.resources
            if hasattr(importlib.resources, 'files'):
                found.append(importlib.resources.files('ansible.module_utils').joinpath('some.txt').read_text())
            with importlib.resources.path('ansible.module_utils', 'some.txt') as path:
                found.append(path.read_text())
        print(json.dumps(found))
    ''',
        real=True,
        extra={'ansible/module_utils/some.txt': b'content'},
    )
    assert set(seen) == {'content'} and len(seen) >= (2 if tuple(map(int, version.split('.')[:2])) >= (3, 7) else 1)


def test_memory_is_given_back(modules):
    """DROP of a real payload closes its file."""
    digest = modules.add('import sys\nsys.exit(0)', real=True)
    modules.again(digest)
    before = len(os.listdir('/proc/%d/fd' % modules.agent.process.pid))
    modules.agent.send(DROP, 0, digest)
    modules.agent.ping()
    assert len(os.listdir('/proc/%d/fd' % modules.agent.process.pid)) == before - 1


@pytest.mark.parametrize(
    'text',
    [b'', b'\xff\xff', b'no tabs', b'unknown\tx\n', b'file\tno digest\n', b'module\tm\nfile\tp\tzz\n'],
    ids=['empty', 'no text', 'no tabs', 'unknown', 'no digest', 'no hex'],
)
def test_manifests_that_are_none(agent, text):
    agent.blobs(text)
    assert agent.result(agent.open(MODULE, (1, hashlib.sha256(text).digest()))).failure == 'bad-request'
    assert agent.command('true').code == 0


def test_a_blob_is_missing(agent):
    text = manifest([('ansible/modules/x.py', b'never sent')], 'ansible.modules.x')
    agent.blobs(text)
    result = agent.result(agent.open(MODULE, (1, hashlib.sha256(text).digest())))
    assert result.failure == 'blob-missing' and result.fields[3].decode() == hashlib.sha256(b'never sent').hexdigest()


def test_traceback_of_a_preloaded_module(modules):
    result = modules.run('import ansible.module_utils.basic as b\nb.fail()', basic=BASIC + b'def fail():\n    raise KeyError("k")\n')
    assert re.search(r'ansible_payload.zip/ansible/module_utils/basic.py", line \d+, in fail\n', result.err.decode())


def test_packages_that_come_meanwhile(start, tmp_path, monkeypatch):
    """A new interpreter would look into a user's folder that was made after the agent started, and follow its .pth files."""
    monkeypatch.setenv('HOME', str(tmp_path))
    modules = Modules(start())
    ask = 'import site; print(json.dumps([site.ENABLE_USER_SITE and site.getusersitepackages(), sys.path]))'
    folder, path = modules.value(ask)
    if not folder:
        pytest.skip('this interpreter has no folder for packages of the user')
    assert folder not in path
    more = tmp_path / 'more'
    more.mkdir()
    os.makedirs(folder)
    with open(os.path.join(folder, 'mux.pth'), 'w') as f:
        f.write(str(more))
    new = modules.value(ask)[1]
    assert [entry for entry in new if entry not in path] == [folder, str(more)]
    assert not [entry for entry in new[: new.index(folder)] if entry.endswith(('site-packages', 'dist-packages'))]
    assert modules.value(ask)[1] == new
