#!/usr/bin/python
# GPL-3.0-or-later
"""Puts a folder's content where the action copy wants it: what copy and file do one by one, in one process and with their own means.

It is for the plugins of mitogen-mux alone (mitogen_mux/trees.py), which give it its stdin: a part is a size (64 bit, big-endian), so many
bytes and their SHA-256. The first part is a JSON list of entries, the following ones are the files among them that are to be written. An
entry is a dictionary of

    path     below dest, without a slash at either end
    kind     file (its content follows), same (it is there), directory, link
    size     of a file: bytes
    target   of a link
    mode     of a file, if not that of the parameters

With look=true nothing is changed, and of each entry of the kind file the answer is one of

    write    it is not there, or differs
    SHA-1    of what is there, if it is a file of that size
    leave    something is there with which the modules do more than write a file

Otherwise the answers are "changed", "same" and, from the first one on that cannot be done, "leave": the modules will say what is wrong."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import hashlib
import io
import json
import os
import stat
import struct
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule

CHUNK = 1 << 17


class Broken(Exception):
    """A part did not come as it was sent."""


class Leave(Exception):
    """The modules do more with this than we do."""


class Input(object):
    """The parts of stdin."""

    def __init__(self, stream):
        self.stream = stream

    def part(self, write):
        """Gives a part to a function, piece by piece; returns its size."""
        size = left = struct.unpack('>Q', self.exactly(8))[0]
        digest = hashlib.sha256()
        while left:
            piece = self.exactly(min(left, CHUNK))
            digest.update(piece)
            write(piece)
            left -= len(piece)
        if self.exactly(32) != digest.digest():
            raise Broken('a file changed while it was read')
        return size

    def exactly(self, size):
        data = self.stream.read(size)
        if len(data) != size:
            raise Broken('stdin ended early')
        return data


class Tree(object):
    """What is below dest."""

    def __init__(self, module, source):
        self.module = module
        self.source = source
        self.dest = module.params['dest']
        self.plain = dict((name, module.params[name]) for name in ('mode', 'owner', 'group', 'attributes', 'seuser', 'serole', 'setype', 'selevel'))
        self.folders = set()  # that are known to be there
        self.selinux = module.selinux_enabled()
        self.bare = not self.selinux and not any(value for name, value in self.plain.items() if name != 'mode')
        self.temporary = os.path.join(module.tmpdir, 'mitogen_tree')  # of a folder that is the module's own
        self.usual = None  # the mode that atomic_move gives a new file, if that and the name is all that it does
        self.learns = not self.selinux and os.stat(module.tmpdir).st_gid == os.getegid()

    def place(self, entry):
        path = entry['path']
        return os.path.join(self.dest, path if sys.version_info[0] > 2 else path.encode('utf-8'))

    def attributes(self, path, mode, changed):
        """Sets mode, owner and the like as the modules do."""
        if mode is None and self.bare:
            return changed
        arguments = self.module.load_file_common_arguments(self.module.params, path=path)
        arguments['mode'] = mode
        return self.module.set_fs_attributes_if_different(arguments, changed)

    def mode(self, entry):
        return entry.get('mode', self.plain['mode'])

    # What is there

    def look(self, entry):
        path = self.place(entry)
        try:
            there = os.lstat(path)
        except OSError:
            return 'write'
        if stat.S_ISLNK(there.st_mode):
            return 'leave' if os.path.isdir(path) else 'write'
        if not stat.S_ISREG(there.st_mode):
            return 'leave'
        if there.st_size != entry['size'] or not os.access(path, os.R_OK):
            return 'write'
        return self.module.sha1(path)

    # What is to be there

    def rehearse(self):
        """Finds out that an owner or a mode cannot be had before anything is done."""
        folder = tempfile.mkdtemp(dir=self.module.tmpdir)
        try:
            self.attributes(folder, self.module.params['directory_mode'], False)
            descriptor, temporary = tempfile.mkstemp(dir=self.module.tmpdir)
            os.close(descriptor)
            try:
                self.attributes(temporary, self.plain['mode'], False)
            finally:
                os.unlink(temporary)
        finally:
            os.rmdir(folder)

    def put(self, entry):
        return 'changed' if getattr(self, 'put_' + entry['kind'])(entry, self.place(entry)) else 'same'

    def put_file(self, entry, path):
        changed = self.make_folders(os.path.dirname(path))
        new = not os.path.lexists(path)
        known = new and self.usual is not None
        descriptor = os.open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                self.source.part(lambda piece: write_all(descriptor, piece))
                if known:
                    os.fchmod(descriptor, self.usual)
            finally:
                os.close(descriptor)
            if not (known and self.take_place(path)):
                self.replace(path)
                if new and self.learns:
                    self.usual = stat.S_IMODE(os.lstat(path).st_mode)
        except BaseException:
            if os.path.exists(self.temporary):
                os.unlink(self.temporary)
            raise
        self.attributes(path, self.mode(entry), changed)
        return True

    def take_place(self, path):
        """What atomic_move would do with a new file that has its mode, if nothing is in the way."""
        try:
            os.rename(self.temporary, path)
        except OSError:
            return False
        return True

    def replace(self, path):
        if os.path.isdir(path):
            raise Leave()
        if not os.access(os.path.dirname(path), os.W_OK):
            raise Leave()
        if os.path.islink(path):
            os.unlink(path)
            open(path, 'w').close()
        self.module.atomic_move(self.temporary, path, unsafe_writes=self.module.params['unsafe_writes'])

    def make_folders(self, folder):
        """As copy makes what a file's path lacks."""
        if folder in self.folders or os.path.exists(folder):
            self.folders.add(folder)
            return False
        missing = self.missing(folder)
        os.makedirs(folder)
        for made in missing:
            self.attributes(made, self.module.params['directory_mode'], True)
        self.folders.update(missing)
        return True

    def missing(self, folder):
        """It and the folders above it that are not there, from above."""
        found = []
        while folder and not os.path.exists(folder):
            found.insert(0, folder)
            folder = os.path.dirname(folder)
        return found

    def put_same(self, entry, path):
        return self.attributes(path, self.mode(entry), False)

    def put_directory(self, entry, path):
        """As file makes a folder."""
        if os.path.islink(path):
            raise Leave()
        mode, missing = self.module.params['directory_mode'], self.missing(path)
        for made in missing:
            os.mkdir(made)
            self.attributes(made, mode, True)
        if missing:
            return True
        if not os.path.isdir(path):
            raise Leave()
        return self.attributes(path, mode, False)

    def put_link(self, entry, path):
        """As file makes a link that nothing else is asked of."""
        target = entry['target'] if sys.version_info[0] > 2 else entry['target'].encode('utf-8')
        if any(self.plain.values()) or self.module.selinux_enabled():
            raise Leave()
        if os.path.islink(path) and os.readlink(path) == target:
            return False
        if os.path.lexists(path):
            raise Leave()
        os.symlink(target, path)
        return True


def main():
    module = AnsibleModule(
        argument_spec=dict(dest=dict(type='path', required=True), directory_mode=dict(type='raw'), look=dict(type='bool', default=False)),
        add_file_common_args=True,
    )
    source = Input(io.open(sys.stdin.fileno(), 'rb', CHUNK, closefd=False))
    tree = Tree(module, source)
    answers = []
    listing = []
    try:
        source.part(listing.append)
        entries = json.loads(b''.join(listing).decode('utf-8'))
        if module.params['look']:
            answers = [tree.look(entry) for entry in entries]
        else:
            # What the modules say when they fail, they say when they are run.
            module.fail_json = give_up
            tree.rehearse()
            for entry in entries:
                answers.append(tree.put(entry))
    except Broken as error:
        if not listing:
            sys.exit('mitogen_tree is for mitogen-mux alone: %s' % error)
        answers.append('leave')
    except Exception:
        answers.append('leave')
    print(json.dumps(dict(changed='changed' in answers, answers=answers)))
    sys.exit(0)


def write_all(descriptor, data):
    while data:
        data = data[os.write(descriptor, data) :]


def give_up(*args, **kwargs):
    raise Leave()


if __name__ == '__main__':
    main()
