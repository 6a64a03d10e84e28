"""Chains: streams that begin one after the other, so that what belongs together costs one round trip.

A section of the agent; see agent.py.
"""
import json


def printed_object(out):
    """The JSON object in what a module printed, which may have garbage around it, as Ansible allows; ValueError if there is none."""
    at = 0
    for line in out.split(b'\n'):
        if line.lstrip(b' \t\r').startswith(b'{'):
            return json.JSONDecoder().raw_decode(out[at:].decode('utf-8', 'replace').lstrip(' \t\r'))[0]
        at += len(line) + 1
    raise ValueError('no object')


def same(a, b):
    """As Python compares, except that a truth value is no number."""
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b


def succeeded(out):
    """Whether what a module printed is one JSON object that tells of no failure and brings neither facts nor secrets (since 2.22): whatever
    comes next may begin."""
    try:
        found = json.loads(out.decode('utf-8'))
    except (ValueError, RuntimeError):      # no JSON, or nested too deep
        return False
    return isinstance(found, dict) and not (found.get('failed') or found.get('unreachable') or found.get('rc') or 'ansible_facts' in found or
                                           '_ansible_new_secrets' in found)


class Chain(object):
    """So many streams. When all have come the first begins, and each other when the one before it has ended: if all its guards say so or,
    without one, if none before it has failed. What comes for a stream that has not begun is held. A chain that follows other streams does not
    begin before they have ended."""

    def __init__(self, agent, number, length):
        self.agent = agent
        self.number = number
        self.length = length
        self.places = {}        # index: (stream, record, guards)
        self.next = 0
        self.current = None     # the stream under way
        self.follows = set()    # streams whose end it waits for
        self.deciding = set()   # those of them of which one has to be done
        self.failed = self.moving = self.begun = False
        self.outcomes = {}      # index: exit code

    def add(self, stream, place, record):
        index = int(place[2] or 0)
        guards = [unpack(guard, (1, 2, 3, 4)) for guard in place[4]]
        guards = [(int(guard[1] or 0), guard[2].decode('ascii'), json.loads(guard[3].decode('utf-8')), guard[4] == b'1') for guard in guards]
        follows = list(map(int, place[5] + place[6]))
        if index >= self.length or index in self.places or any(guard[0] >= index for guard in guards) or any(n >= stream.number for n in follows):
            raise Failure('bad-request', 'no such place in a chain')
        self.places[index] = stream, record, guards
        self.follows.update(follows)
        self.deciding.update(map(int, place[6]))
        stream.chain = self
        stream.enchained(record)
        if self.whole():
            for _, _, guards in self.places.values():
                for guard in guards:
                    if guard[1] != 'rc':
                        self.places[guard[0]][0].printed = []
            self.move()

    def whole(self):
        """Whether all have come."""
        return len(self.places) == self.length

    def begin(self):
        """What it follows has ended. Nothing begins if that did not come to what it should have; nor, with a module, if the agent is stale."""
        self.begun = True
        streams = [stream for stream, _, _ in self.places.values()]
        blamed = streams
        try:
            if self.deciding and not self.deciding.intersection(self.agent.done):
                raise Failure('not-begun')
            blamed = [stream for stream in streams if stream.fresh]
            if blamed:
                self.agent.refuse_if_stale()
        except Failure as e:
            for stream in streams:
                if not stream.done:
                    stream.abort(*((e.kind, e.text) if stream in blamed else ('skipped',)))

    def move(self):
        """Begins what is next, until something takes its time."""
        if self.moving or not self.whole() or self.agent.lost or self.follows.intersection(self.agent.streams):
            return
        self.moving = True
        if not self.begun:
            self.begin()
        while self.current is None and self.next < self.length:
            stream, record, guards = self.places[self.next]
            self.next += 1
            if stream.done:
                continue    # cancelled while it waited
            self.current = stream
            if all(self.allows(guard) for guard in guards) if guards else not self.failed:
                self.agent.guard(stream, stream.begin, record)
            else:
                stream.abort('skipped')
        self.moving = False
        if self.next == self.length and self.current is None:
            self.agent.chains.pop(self.number, None)

    def allows(self, guard):
        """As internal/moduleexec/guard.go: what is not known allows nothing."""
        index, field, value, unequal = guard
        if index not in self.outcomes:
            return False
        if field == 'rc':
            return same(self.outcomes[index], value) != unequal
        try:
            found = printed_object(b''.join(self.places[index][0].printed or []))
        except ValueError:
            return False
        for name in field.split('.'):
            if not isinstance(found, dict) or name not in found:
                return unequal
            found = found[name]
        return same(found, value) != unequal

    def ended(self, stream, fields):
        """One of the streams has its RESULT."""
        for index, place in self.places.items():
            if place[0] is stream and 1 not in fields:
                self.outcomes[index] = int(fields.get(4, 0))
        if fields.get(2, 'skipped') != 'skipped':
            self.failed = True
        if stream is self.current:
            self.current = None
            self.move()
        elif all(place[0].done for place in self.places.values()):
            self.agent.chains.pop(self.number, None)    # given up before all had come
