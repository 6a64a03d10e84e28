#!/usr/bin/python
import json
import sys

with open(sys.argv[1]) as f:
    print(json.dumps({"changed": False, "args": f.read()}))
