#!/usr/bin/python
"""An old module that has its arguments put into its text."""

import json
import os
import sys

ARGUMENTS = '''<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>'''


def main():
    given = json.loads(ARGUMENTS)
    own = sorted(k for k in given if not k.startswith("_ansible"))
    print(json.dumps({"changed": False, "said": given["word"], "own": own, "argv": len(sys.argv), "base": os.path.basename(__file__)}))


main()
