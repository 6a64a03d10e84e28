"""Pages of the interpreter's memory: what makes a fork, and what comes after it, cheap. Where Linux cannot be asked for it nothing happens, and
nothing changes what is in them.

A section of the agent; see agent.py.
"""
import bisect
import os
import resource
import struct
import sys

PAGE = resource.getpagesize()
MADV_COLLAPSE = 25          # Linux 6.1
MOST_HUGE = 4194304     # bytes of a huge page: larger ones would be mostly empty
OWN = 1 << 63 | 1 << 56     # of an entry of pagemap: the page is there, and no other process has it (Linux 4.2)
MOST_LESSONS = 8        # of an agent whose memory does not settle
ALLOCATED = b' rw-p 00000000 00:00 0 '


def gather_pages():
    """Has memory that is in use put into huge pages, which a fork and the end of a child pass over in one step."""
    ctypes = sys.modules.get('ctypes')      # jobs import it anyway
    try:
        with open('/sys/kernel/mm/transparent_hugepage/hpage_pmd_size') as size:
            huge = int(size.read())
        with open('/proc/self/smaps') as smaps:
            areas = [line.split() for line in smaps if '-' in line.split(' ')[0] or line.startswith('Rss:')]
    except (EnvironmentError, ValueError):
        return      # no Linux, or one without huge pages
    if not ctypes or huge > MOST_HUGE:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for area, rss in zip(areas[::2], areas[1::2]):
        start, end = [int(address, 16) for address in area[0].split('-')]
        if area[1] == 'rw-p' and area[5:] in ([], ['[heap]']) and int(rss[1]) << 10 >= (end - start) * 3 // 4:
            for at in range(-(-start // huge) * huge, end - huge + 1, huge):
                madvise(at, huge, MADV_COLLAPSE)


class Pages(object):
    """Which pages a job has copied, because it wrote to them; so that a child that waits can do so before it is the next one."""

    def __init__(self):
        self.copied = []        # their addresses, ascending
        self.areas = None       # of the interpreter, as they were then
        self.lessons = 0
        self.memory = None      # all of it, byte by byte

    def to_be_learnt(self):
        """In the agent, before a fork: whether that job shall tell."""
        ctypes = sys.modules.get('ctypes')      # jobs import it anyway
        areas = allocated()
        if not ctypes or not sys.maxsize >> 32 or areas == self.areas or self.lessons == MOST_LESSONS:
            return False
        self.memory = self.memory or (ctypes.c_ubyte * sys.maxsize).from_address(0)
        self.areas = areas
        self.lessons += 1
        return True

    def copy(self):
        """In the child: those that are still there."""
        for start, end in allocated() if self.copied else ():
            for at in self.copied[bisect.bisect_left(self.copied, start):bisect.bisect_left(self.copied, end)]:
                self.memory[at] = self.memory[at]

    def own(self):
        """In the child, at its end: addresses of the pages that it has alone."""
        entries = []
        try:
            pagemap = os.open('/proc/self/pagemap', os.O_RDONLY)
            for start, end in self.areas:   # to read first: what comes then writes to more of them
                os.lseek(pagemap, start // PAGE * 8, os.SEEK_SET)
                entries.append((start, os.read(pagemap, (end - start) // PAGE * 8)))
            os.close(pagemap)
            return [start + number * PAGE for start, flags in entries
                    for number, flag in enumerate(struct.unpack('=%dQ' % (len(flags) // 8), flags)) if flag & OWN == OWN]
        except Exception:
            return []   # it is hidden, or the module has taken Python apart


def allocated():
    """(start, end) of what the interpreter has allocated, ascending, as /proc has it."""
    text = b''
    try:
        maps = os.open('/proc/self/maps', os.O_RDONLY)
        part = True
        while part:
            part = os.read(maps, 4096)      # little, so that it takes no memory that was not there
            text += part
        os.close(maps)
    except OSError:
        pass    # no Linux
    lines = [line for line in text.split(b'\n') if ALLOCATED in line]
    return [tuple(int(address, 16) for address in line.split(b' ')[0].split(b'-')) for line in lines]
