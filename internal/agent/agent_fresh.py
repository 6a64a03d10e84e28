"""What only a new process would find: what logins, become tools and interpreters read once, when they start.

A section of the agent; see agent.py.
"""
import os
import pwd
import sys


def look(path):
    """What tells a file from a later one of its name; None where there is none."""
    try:
        there = os.stat(path)
    except OSError:
        return None
    return there.st_ino, there.st_size, there.st_mtime


def watched():
    """The files. Nothing in a home folder without need: it may be on a server that does not answer."""
    limits = '/etc/security/limits.d'
    paths = [sys.executable, os.__file__, '/etc/environment', '/etc/default/locale', '/etc/security/pam_env.conf', '/etc/security/limits.conf',
             limits, '/usr/lib/locale', '/usr/lib/locale/locale-archive']
    for folder, take in ((limits, paths.append), ('/etc/pam.d', lambda path: paths.extend(of_the_user(path)))):
        try:
            for name in os.listdir(folder):
                take(os.path.join(folder, name))
        except OSError:
            pass    # not every system has it
    return paths


def of_the_user(path):
    """~/.pam_environment, if this file of PAM's lets users have one."""
    with open(path, 'rb') as f:
        return [os.path.expanduser('~/.pam_environment')] if b'user_readenv=1' in f.read() else []


class Surroundings(object):
    """How the files were when the agent started, and which groups it has."""

    def __init__(self):
        self.files = [(path, look(path)) for path in watched() if path]
        self.members = look('/etc/group')

    def changed(self):
        """The path of what is another now; None if a new process would find what this one found."""
        for path, before in self.files:
            if look(path) != before:
                return path
        members = look('/etc/group')
        if members != self.members:
            self.members = members
            if self.regrouped():
                return '/etc/group'
        return None

    def regrouped(self):
        """Whether the account is in other groups than this process."""
        try:
            account = pwd.getpwuid(os.getuid())
        except KeyError:
            return False
        if hasattr(os, 'getgrouplist'):
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
        else:
            import grp
            groups = [account.pw_gid] + [group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem]
        return set(groups) != set(os.getgroups() + [os.getgid()])
