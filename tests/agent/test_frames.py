"""The pure sections against the golden files, under every interpreter: the same bytes as the Go side, whole and a byte at a time."""

import json
import os
import subprocess

from agent_driver import PATIENCE, ROOM, source_text

GOLDEN = os.path.join(ROOM, 'testdata', 'golden')

CHECK = r'''
import binascii, json, os, sys
agent = {}
exec(compile(open(sys.argv[1], 'rb').read(), 'agent', 'exec'), agent)
folder, checked, downs = sys.argv[2], 0, []
def come(inbox, raw):
    inbox.room()[:len(raw)] = raw
    return list(inbox.frames(len(raw)))
unhex = lambda text: binascii.unhexlify(text.encode('ascii'))
for case in json.load(open(os.path.join(folder, 'golden.json'))):
    raw = open(os.path.join(folder, case['file']), 'rb').read()
    payload = unhex(case.get('payload', ''))
    assert agent['encode'](case['type'], case['stream'], payload) == raw, case['name']
    fields = [(f['tag'], unhex(f.get('value', ''))) for f in case.get('fields') or []]
    if case['way'] == 'down':
        whole = [(case['type'], case['stream'], payload)]
        inbox = agent['Inbox']()
        assert come(inbox, raw) == whole, case['name']
        for at in range(len(raw)):
            assert come(inbox, raw[at:at + 1]) == whole * (at + 1 == len(raw)), case['name']
        downs.append((raw, whole))
    elif fields and all(value for _, value in fields):
        assert agent['pack'](*fields) == payload, case['name']
    if case['type'] == agent['OPEN']:
        record = payload[1:]
        if bytearray(payload)[0] & 128:
            record = record[2 + agent['SHORT'].unpack(record[:2])[0]:]
        tags = sorted(set(tag for tag, _ in fields))
        read = agent['unpack'](record, (), tags)
        assert sorted((tag, value) for tag in tags for value in read[tag]) == sorted(fields), case['name']
        for cut in range(1, len(record)):
            try:
                agent['unpack'](record[:cut], (), range(256))
            except agent['Failure'] as e:
                assert e.kind == 'bad-request'
    checked += 1
large = b'large' * 26214
downs.append((agent['encode'](agent['DATA'], 7, large), [(agent['DATA'], 7, large)]))
stream, whole = b''.join(raw for raw, _ in downs) * 9, [frame for _, frames in downs for frame in frames] * 9
for step in (1000, 65536, 100003, 131081):
    inbox, got, at = agent['Inbox'](), [], 0
    while at < len(stream):
        part = stream[at:at + min(step, len(inbox.room()))]
        assert part, step
        got += come(inbox, part)
        at += len(part)
    assert got == whole and not inbox.end - inbox.start, step
print(checked)
'''


def test_golden(python, tmp_path):
    source = tmp_path / 'source.py'
    source.write_bytes(source_text().replace(b'\0', b'\n'))
    out = subprocess.run([python, '-c', CHECK, str(source), GOLDEN], check=False, capture_output=True, timeout=PATIENCE)
    assert out.returncode == 0, out.stderr.decode()
    with open(os.path.join(GOLDEN, 'golden.json')) as f:
        assert int(out.stdout) == len(json.load(f)) > 30
