"""Frames and records of docs/agent-protocol.md: bytes in, bytes out. No input or output here, and no state but a buffer.

This is the first section of the agent; agent.py says how the sections become one program.
"""
import struct
import sys

PY3 = sys.version_info[0] > 2

PROTOCOL = 1
MAX_PAYLOAD = 131072
FIRST_WINDOW = 1048576
MOST_WINDOW = 4194304
CREDIT_AT = 131072
MAX_TEXT = 4096
HEADER = struct.Struct('>IBI')
FIELD = struct.Struct('>BI')
NUMBER = struct.Struct('>I')
SHORT = struct.Struct('>H')

HELLO, OPEN, DATA, ERR, TTY, END, CREDIT, CANCEL, RESULT, PING, PONG, DROP, LOG, WINDOW, KEEP, KEPT, FORGET = range(1, 18)

# What the daemon may send: least and most bytes of payload; and which of it on stream 0.
DOWN = {OPEN: (1, MAX_PAYLOAD), DATA: (1, MAX_PAYLOAD), TTY: (1, MAX_PAYLOAD), END: (0, 0), CREDIT: (4, 4), CANCEL: (0, 0),
        PING: (8, 8), DROP: (32, MAX_PAYLOAD), WINDOW: (4, 4), KEEP: (1, MAX_PAYLOAD), KEPT: (4, 4), FORGET: (4, 4)}
ON_LINK = (PING, DROP, FORGET)


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
    """A frame."""
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
        payload = memoryview(buffer)[HEADER.size:end].tobytes()
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
    """The fields of a record by tag. Every tag of the table is there: as bytes or, if it may repeat, as a list."""
    fields = dict((tag, None) for tag in once)
    fields.update((tag, []) for tag in repeated)
    at = 0
    while at < len(data):
        tag, length = FIELD.unpack(data[at:at + FIELD.size]) if len(data) - at >= FIELD.size else (0, len(data))
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
