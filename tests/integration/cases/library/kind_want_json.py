#!/usr/bin/python
# WANT_JSON
import json
import sys

with open(sys.argv[1]) as f:
    given = json.load(f)
print(json.dumps({"changed": False, "given": {k: v for k, v in given.items() if not k.startswith("_")}}))
