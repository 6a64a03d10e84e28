#!/usr/bin/python
"""What a module sees of the process it is."""

import locale
import os
import resource
import signal
import sys
import threading

from ansible.module_utils.basic import AnsibleModule


def main():
    argv0 = sys.argv[0]
    module = AnsibleModule(argument_spec={})
    module.exit_json(
        cwd=os.getcwd(),
        umask=oct(os.umask(0o77)),
        uid=os.getuid(),
        groups=sorted(os.getgroups()),
        environ={k: v for k, v in os.environ.items()},
        argv=[os.path.basename(argv0), *sys.argv[1:]],
        file=os.path.basename(__file__),
        package=__package__,
        spec=bool(__spec__),
        encoding=[sys.stdout.encoding, sys.getfilesystemencoding(), locale.getpreferredencoding(False)],
        limits={n: resource.getrlimit(getattr(resource, n)) for n in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_NPROC")},
        signals={s.name: str(signal.getsignal(s)) for s in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)},
        threads=threading.active_count(),
        path0=os.path.basename(sys.path[0]),
        nice=os.nice(0),
        stdin=sys.stdin.read(),
        ttys=[os.isatty(n) for n in (0, 1, 2)],
        flags=list(sys.flags),
        loaded=sorted(m for m in sys.modules if m.startswith("mitogen") or m == "agent"),
        executable=sys.executable,
        version=list(sys.version_info[:2]),
    )


if __name__ == "__main__":
    main()
