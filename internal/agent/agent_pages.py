"""Pages of the interpreter's memory: what makes a fork, and what comes after it, cheap. Where Linux cannot be asked for it nothing happens, and
nothing is ever written.

A section of the agent; see agent.py.
"""
import os
import resource
import struct
import sys

PAGE = resource.getpagesize()
MADV_POPULATE_WRITE = 23    # Linux 5.14
MADV_COLLAPSE = 25          # Linux 6.1
MOST_HUGE = 4194304     # bytes of a huge page: larger ones would be mostly empty
OWN = 1 << 63 | 1 << 56     # of an entry of pagemap: the page is there, and no other process has it (Linux 4.2)
OF_FILE = 1 << 61           # and is the file's own (Linux 3.5)
LEAST = 2 * PAGE        # side by side: to ask for a single one costs half of what it saves
WRITABLE = b' rw-p '     # and nobody else's


class Pages(object):
    """What an agent knows of them."""

    def __init__(self):
        self.copied = None      # (start, end) of those that a job had to copy; None: not known
        self.areas = ()         # where to look for them
        self.madvise = None
        self.gathered = False

    def advise(self, start, end, advice):
        ctypes = sys.modules.get('ctypes')      # jobs import it anyway
        if ctypes and not self.madvise:
            self.madvise = ctypes.CDLL(None).madvise
            self.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        if self.madvise:
            self.madvise(start, end - start, advice)

    def gather(self):
        """Has memory that is in use put into huge pages, which a fork and the end of a child pass over in one step."""
        self.gathered = True
        try:
            with open('/sys/kernel/mm/transparent_hugepage/hpage_pmd_size') as size:
                huge = int(size.read())
            with open('/proc/self/smaps') as smaps:
                areas = [line.split() for line in smaps if '-' in line.split(' ')[0] or line.startswith('Rss:')]
        except (EnvironmentError, ValueError):
            return      # no Linux, or one without huge pages
        if huge > MOST_HUGE:
            return
        for area, rss in zip(areas[::2], areas[1::2]):
            start, end = [int(address, 16) for address in area[0].split('-')]
            if area[1] == 'rw-p' and area[5:] in ([], ['[heap]']) and int(rss[1]) << 10 >= (end - start) * 3 // 4:
                for at in range(-(-start // huge) * huge, end - huge + 1, huge):
                    self.advise(at, at + huge, MADV_COLLAPSE)

    def to_be_learnt(self):
        """In the agent, before a fork: whether that job shall say which it copies."""
        if self.copied is None:
            self.areas = writable()
        return self.copied is None

    def copy(self):
        """In a child that waits: copies what it will have to. Of what is not there any more nothing becomes."""
        for start, end in self.copied or ():
            self.advise(start, end, MADV_POPULATE_WRITE)

    def own(self):
        """In a child, at its end: what it has alone, because it has written to it."""
        entries, found = [], []
        try:
            pagemap = os.open('/proc/self/pagemap', os.O_RDONLY)
            for start, end in self.areas:   # to read first: what comes then writes to more of them
                os.lseek(pagemap, start // PAGE * 8, os.SEEK_SET)
                entries.append((start, os.read(pagemap, (end - start) // PAGE * 8)))
            os.close(pagemap)
            for start, flags in entries:
                for number, flag in enumerate(struct.unpack('=%dQ' % (len(flags) // 8), flags)):
                    at = start + number * PAGE
                    if flag & (OWN | OF_FILE) != OWN:
                        continue
                    if found and found[-1][1] == at:
                        found[-1][1] = at + PAGE
                    else:
                        found.append([at, at + PAGE])
        except Exception:
            pass    # it is hidden, or the module has taken Python apart
        return [(start, end) for start, end in found if end - start >= LEAST]


def writable():
    """(start, end) of the areas of memory that the interpreter can write to: what it has allocated, and variables of the program and its libraries."""
    try:
        with open('/proc/self/maps', 'rb') as maps:
            lines = [line.split(b' ')[0].split(b'-') for line in maps if WRITABLE in line]
    except EnvironmentError:
        lines = []      # no Linux
    return [(int(start, 16), int(end, 16)) for start, end in lines]
