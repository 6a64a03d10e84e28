#!/usr/bin/python
"""Imports a file of the core that its role has replaced."""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitter import split_args


def main():
    module = AnsibleModule(argument_spec={"text": {"type": "str"}})
    module.exit_json(parts=split_args(module.params["text"]))


if __name__ == "__main__":
    main()
