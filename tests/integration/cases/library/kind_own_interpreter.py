#!/usr/bin/env python3
# WANT_JSON
"""A script that names its interpreter by env; not of the new style, for it has no module_utils."""

import json
import sys

with open(sys.argv[1]) as file:
    given = json.load(file)
print(json.dumps({"changed": True, "said": given["word"], "name": __name__}))
