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


class Inbox(object):
    """What has come and was not taken yet: put into room(), taken by frames(). Nothing else holds or copies the bytes of large frames."""

    def __init__(self):
        self.buffer = memoryview(bytearray(3 * MAX_PAYLOAD))
        self.start = self.end = 0

    def room(self):
        """Where bytes that come go."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start + HEADER.size + MAX_PAYLOAD > len(self.buffer):     # the frame that has begun would not fit
            begun = self.buffer[self.start:self.end].tobytes()
            self.start, self.end = 0, len(begun)
            self.buffer[:self.end] = begun
        return self.buffer[self.end:]

    def frames(self, n):
        """n bytes have come: yields the frames that are whole as (kind, stream, payload)."""
        self.end += n
        while self.end - self.start >= HEADER.size:
            at = self.start + HEADER.size
            length, kind, stream = HEADER.unpack(self.buffer[self.start:at].tobytes())
            least, most = DOWN.get(kind, (0, -1))
            if not least <= length <= most or (stream == 0) != (kind in ON_LINK) or (kind == DROP and length % 32):
                raise ProtocolError('a frame of type %d and %d bytes on stream %d' % (kind, length, stream))
            if self.end < at + length:
                return
            self.start = at + length
            yield kind, stream, self.buffer[at:self.start].tobytes()


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
