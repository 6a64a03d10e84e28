#!/bin/sh
echo "report of $(id -un) in $(pwd): $#: $*"
echo err >&2
