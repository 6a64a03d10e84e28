#!/usr/bin/python
"""A module of the playbook's own, with relative speech about itself."""

import os
import sys

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"word": {"type": "str", "required": True}}, supports_check_mode=True)
    module.exit_json(
        changed=True,
        said=module.params["word"],
        name=__name__,
        base=os.path.basename(__file__),
        argv=len(sys.argv),
        stdin=sys.stdin.read(),
        check=module.check_mode,
    )


if __name__ == "__main__":
    main()
