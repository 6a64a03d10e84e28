#!/usr/bin/python
"""Fails in every way a module can."""

import os
import sys

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"how": {"type": "str"}})
    how = module.params["how"]
    if how == "raise":
        raise ValueError("on purpose")
    if how == "exit":
        sys.exit(9)
    if how == "noise":
        print("before the result")
    if how == "warn":
        module.warn("be warned")
        module.deprecate("soon gone", version="9.9")
    if how == "stderr":
        sys.stderr.write("on stderr\n")
    if how == "nothing":
        return
    if how == "fail":
        module.fail_json(msg="failed as asked", extra=[1, 2])
    if how == "kill":
        os.kill(os.getpid(), 9)
    if how == "background" and os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os._exit(0)
    module.exit_json(changed=False, how=how)


if __name__ == "__main__":
    main()
