#!/bin/bash
# Makes a Python 3.13 of Debian trixie in .cache/trixie and prints its path: for machines whose own Python is too old for the newest
# ansible-core. Needs root, debootstrap and patchelf. It runs as any other program of this machine does, only with trixie's own C library.
set -eu
cd "$(dirname "$0")/.."
tree=$PWD/.cache/trixie
python=$tree/usr/bin/python3.13

if [ ! -e "$tree/.ready" ]; then
    # shellcheck source=tools/debian-tree.sh
    . tools/debian-tree.sh
    debian_tree trixie "$tree" python3 python3-venv
    own_libraries "$tree" "$python"
    # ensurepip looks for pip where Debian has put it: in this tree.
    sed -i "s|'/usr/share/python-wheels/*'|'$tree/usr/share/python-wheels'|" "$tree"/usr/lib/python3.13/_sysconfigdata*.py
    touch "$tree/.ready"
fi
echo "$python"
