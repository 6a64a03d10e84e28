#!/usr/bin/python
"""A role's own module with the role's own module_utils."""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lengths import length


def main():
    module = AnsibleModule(argument_spec={"word": {"type": "str", "required": True}}, supports_check_mode=True)
    module.exit_json(changed=False, length=length(module.params["word"]), name=__name__, has_file="measure" in __file__)


if __name__ == "__main__":
    main()
