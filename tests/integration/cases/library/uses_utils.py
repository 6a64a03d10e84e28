#!/usr/bin/python
"""Imports from a package of module_utils that stands beside the playbook."""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deep import inner
from ansible.module_utils.deep.inner import answer


def main():
    module = AnsibleModule(argument_spec={})
    inner.calls.append(1)
    module.exit_json(answer=answer(), calls=len(inner.calls))


if __name__ == "__main__":
    main()
