#!/usr/bin/python
"""Imports what only the target has: if it is there."""

import os

from ansible.module_utils.basic import AnsibleModule

try:
    import mux_only_there
except ImportError as error:
    mux_only_there = None
    WHY = str(error)


def main():
    module = AnsibleModule(argument_spec={})
    if mux_only_there is None:
        module.fail_json(msg="it is not there: " + WHY)
    module.exit_json(word=mux_only_there.WORD, base=os.path.basename(mux_only_there.__file__))


if __name__ == "__main__":
    main()
