#!/bin/bash
# Prints the path of a Python 3 of one of the minor versions that are named, in the order of preference, from PATH or pyenv's folder.
# Fails silently if there is none.
#
#   tools/find-python.sh 13 12
set -eu

# A Python counts if it runs (a shim of pyenv may not) and can make virtual environments. The path behind a shim is taken, so that
# what is made of it does not depend on the shim's mood.
real() {
    "$1" -c 'import sys, ensurepip, venv
if sys.version_info[:2] == (3, int(sys.argv[1])): print(sys.executable)' "$2" 2>/dev/null
}

for minor in "$@"; do
    for candidate in "python3.$minor" python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
        python=$(real "$candidate" "$minor") || continue
        if [ -n "$python" ]; then
            echo "$python"
            exit 0
        fi
    done
done
exit 1
