"""Pages of the interpreter's memory: what makes a fork, and what comes after it, cheap. Where Linux cannot be asked for it nothing happens, and
never is anything written.

A section of the agent; see agent.py.
"""
import resource
import struct
import sys

PAGE = resource.getpagesize()
MADV_POPULATE_WRITE = 23    # Linux 5.14
MADV_COLLAPSE = 25          # Linux 6.1
MOST_HUGE = 4194304     # bytes of a huge page: larger ones would be mostly empty
OWN = 1 << 63 | 1 << 56     # of an entry of pagemap: the page is there, and no other process has it (Linux 4.2)
GAP = 2 * PAGE          # so few that are not wanted cost less than to ask twice


def areas():
    """[start, end, KiB that are in use] of what the interpreter has allocated."""
    with open('/proc/self/smaps') as smaps:
        lines = [line.split() for line in smaps if '-' in line.split(' ')[0] or line.startswith('Rss:')]
    return [[int(address, 16) for address in area[0].split('-')] + [int(rss[1])]
            for area, rss in zip(lines[::2], lines[1::2]) if area[1] == 'rw-p' and area[5:] in ([], ['[heap]'])]


def adviser():
    """madvise; None where there is none."""
    ctypes = sys.modules.get('ctypes')      # jobs import it anyway
    if not ctypes or not sys.platform.startswith('linux'):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise


def gather_pages():
    """Has memory that is in use put into huge pages, which a fork and the end of a child pass over in one step."""
    madvise = adviser()
    try:
        with open('/sys/kernel/mm/transparent_hugepage/hpage_pmd_size') as size:
            huge = int(size.read())
        found = areas()
    except (EnvironmentError, ValueError):
        return      # no Linux, or one without huge pages
    if not madvise or huge > MOST_HUGE:
        return
    for start, end, used in found:
        if used << 10 >= (end - start) * 3 // 4:
            for at in range(-(-start // huge) * huge, end - huge + 1, huge):
                madvise(at, huge, MADV_COLLAPSE)


def own_pages():
    """(start, end) of those that this process has alone: what it has written to since it was forked, as the next one will."""
    found = []
    try:
        with open('/proc/self/pagemap', 'rb') as pagemap:
            for start, end, _ in areas():
                pagemap.seek(start // PAGE * 8)
                entries = pagemap.read((end - start) // PAGE * 8)
                for number, entry in enumerate(struct.unpack('=%dQ' % (len(entries) // 8), entries)):
                    at = start + number * PAGE
                    if entry & OWN != OWN:
                        continue
                    if found and 0 <= at - found[-1][1] <= GAP:
                        found[-1][1] = at + PAGE
                    else:
                        found.append([at, at + PAGE])
    except Exception:
        pass    # no Linux, or the module has taken Python apart
    return found


def copy_pages(ranges):
    """Has this process its own of these, before it needs them."""
    madvise = adviser()
    for start, end in ranges if madvise else ():
        madvise(start, end - start, MADV_POPULATE_WRITE)
