#!/bin/bash
# Prints the path of a Python between two minor versions of Python 3, both included: the newest that is found on PATH, then in pyenv's
# folder. Fails silently if there is none.
#
#   tools/find-python.sh 12 14
set -eu
min=$1 max=$2

# A Python counts if it runs (a shim of pyenv may not) and can make virtual environments.
usable() {
    "$1" -c '
import sys, ensurepip, venv
low, high = int(sys.argv[1]), int(sys.argv[2])
sys.exit(not (sys.version_info[0] == 3 and low <= sys.version_info[1] <= high))' "$min" "$max" 2>/dev/null
}

for minor in $(seq "$max" -1 "$min"); do
    for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
        path=$(command -v "$candidate") || continue
        if usable "$path"; then
            # The path behind a shim, so that what is made of it does not depend on the shim's mood.
            exec "$path" -c 'import sys; print(sys.executable)'
        fi
    done
done
path=$(command -v python3) || exit 1
usable "$path" && exec "$path" -c 'import sys; print(sys.executable)'
exit 1
