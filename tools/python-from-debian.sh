#!/bin/bash
# Makes a Python 3.13 of Debian trixie in .cache/trixie and prints its path: for machines whose own Python is too old for the newest
# ansible-core. Needs root, debootstrap and patchelf. It runs as any other program of this machine does, only with trixie's own C library.
set -eu
cd "$(dirname "$0")/.."
tree=$PWD/.cache/trixie
python=$tree/usr/bin/python3.13

if [ ! -e "$tree/.ready" ]; then
    [ "$(id -u)" = 0 ] || { echo "debootstrap needs root" >&2; exit 1; }
    for need in debootstrap patchelf; do
        command -v "$need" >/dev/null || PATH=$PATH:/usr/sbin command -v "$need" >/dev/null || { echo "$need is not installed" >&2; exit 1; }
    done
    rm -rf --one-file-system "$tree"
    mkdir -p "$tree"
    if ! PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include=python3,python3-venv trixie "$tree" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$tree.log" 2>&1; then
        echo "debootstrap failed: $(tail -n 1 "$tree.log")" >&2
        exit 1
    fi
    libraries=$(dirname "$(find "$tree/usr/lib" -name 'libc.so.6' | head -n 1)")
    loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1)
    patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$python"
    # ensurepip looks for pip where Debian has put it: in this tree.
    sed -i "s|'/usr/share/python-wheels/*'|'$tree/usr/share/python-wheels'|" "$tree"/usr/lib/python3.13/_sysconfigdata*.py
    rm -rf "$tree/var/cache/apt" "$tree/var/lib/apt/lists"
    touch "$tree/.ready"
fi
echo "$python"
