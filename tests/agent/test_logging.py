"""What a module writes to Python's logging comes with its result, where it is asked for; the module cannot tell."""

import pytest

from agent_modules import BASIC

BOTH_WAYS = True

ASK = (9, b'1')
HEAD = 'import json, logging, os, sys\nlog = logging.getLogger("some.where")\n'
WITH_SECRETS = (
    BASIC
    + b"""
class AnsibleModule(object):
    def __init__(self, *values):
        self.no_log_values = set(values)
def remove_values(text, values):
    for value in values:
        text = text.replace(value, '********')
    return text
"""
)


def run(modules, lines, *fields, **options):
    return modules.run(HEAD + lines + '\nsys.exit(0)\n', *fields, **options)


RECORDS = {
    'plain': ('log.warning("a %s", 1)', ['some.where: a 1']),
    'text': ('log.error(b"h\\xc3\\xa9".decode("utf-8"))', ['some.where: h\xe9']),
    'root': ('logging.critical("no name")', ['root: no name']),
    'level': ('log.info("below the level"); log.debug("too")', []),
    'level of its own': ('log.setLevel(logging.DEBUG); log.debug("x")', ['some.where: x']),
    'filter': ('log.filters.append(type("F", (), {"filter": lambda self, record: False})()); log.error("x")', []),
    'wrong arguments': ('logging.raiseExceptions = False; log.error("%d", "x"); log.error("next")', ['some.where: next']),
    'exception': ('try:\n  1/0\nexcept Exception:\n  log.exception("odd")', None),
    'in a child': ('if not os.fork():\n  log.error("x")\n  os._exit(0)\nos.wait()', []),
    'killed': ('log.error("last words"); os.kill(os.getpid(), 9)', ['some.where: last words']),
    'nothing': ('pass', []),
}


@pytest.mark.parametrize('what', sorted(RECORDS))
def test_records(modules, what):
    lines, expected = RECORDS[what]
    result = run(modules, lines, ASK)
    if expected is None:
        (text,) = result.logged
        assert (text.startswith('some.where: odd\nTraceback') and text.endswith('ZeroDivisionError: division by zero')) or 'integer division' in text
        return
    assert result.logged == expected
    unasked = run(modules, lines)
    assert unasked.logged == []
    if what != 'exception':  # the module's own output is the same, handlers or not
        assert (bytes(result.data), bytes(result.err), result.code) == (bytes(unasked.data), bytes(unasked.err), unasked.code)


def test_threads(modules):
    lines = 'import threading\nlist(map(lambda t: (t.start(), t.join()), [threading.Thread(target=log.error, args=(str(n),)) for n in range(9)]))'
    assert run(modules, lines, ASK).logged == ['some.where: %d' % n for n in range(9)]


def test_what_is_secret_stays_so(modules):
    lines = """
from ansible.module_utils.basic import AnsibleModule
first = AnsibleModule('hush', 'psst')
log.warning('password is %s', 'hush')
second = AnsibleModule('other')
log.warning({'key': 'other psst'})
"""
    assert run(modules, lines, ASK, basic=WITH_SECRETS).logged == ['some.where: password is ********', "some.where: {'key': '******** ********'}"]


def test_a_core_that_knows_what_is_secret_is_asked(modules):
    masks = {'ansible/module_utils/secrets.py': b"def mask_secrets(text):\n    return text.replace('hush', '$REDACTED$')\n"}
    lines = "from ansible.module_utils import basic\nlog.warning('hush')\nimport ansible.module_utils.secrets\nlog.warning('hush, hush')"
    assert run(modules, lines, ASK, extra=masks).logged == ['some.where: hush', 'some.where: $REDACTED$, $REDACTED$']


def test_nothing_is_said_that_cannot_be_censored(modules):
    lines = "from ansible.module_utils import basic\nmodule = basic.AnsibleModule('hush')\ndel basic.remove_values\nlog.warning('hush')"
    assert run(modules, lines, ASK, basic=WITH_SECRETS).logged == []


def test_too_much(modules):
    result = run(modules, 'logging.lastResort = None\nfor n in range(9999): log.error("%d %s", n, "x" * 90)\nlog.error("y" * 9999)', ASK)
    assert result.logged[:2] == ['some.where: 0 ' + 'x' * 90, 'some.where: 1 ' + 'x' * 90]
    assert result.logged[-1] == 'mitogen-mux: what else the module logged is left out' and 300 < len(result.logged) < 500
    assert run(modules, 'log.error("y" * 9999)', ASK).logged == ['some.where: ' + 'y' * (4096 - 12)]


def test_a_handler_of_the_modules_own(modules):
    lines = 'logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")\nlog.warning("seen twice")'
    result = run(modules, lines, ASK)
    assert (bytes(result.data), bytes(result.err), result.logged) == (b'WARNING seen twice\n', b'', ['some.where: seen twice'])
