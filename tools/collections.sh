#!/bin/bash
# Puts the collections of tests that need some where they are found, as the distribution `ansible` of an ansible-core has them, and prints
# the folder. They are some 100 MiB to fetch.
#
#   tools/collections.sh 2.16 … 2.22
set -eu
cd "$(dirname "$0")/.."
core=$1
distribution=$((${core#2.} - 7)) # 10.x goes with 2.17, and so on
[ $distribution -ge 10 ] || distribution=10 # its collections take 2.16, too, and it is the first with all become plugins
place=$PWD/.cache/collections/$distribution
if [ ! -e "$place" ]; then
    draft=$place.draft
    rm -rf "$draft"
    ".venv-$core/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$draft" "ansible==$distribution.*"
    python3 - "$draft" <<'END'
import pathlib, sys, zipfile
draft = pathlib.Path(sys.argv[1])
(wheel,) = draft.glob('*.whl')
with zipfile.ZipFile(wheel) as archive:
    wanted = ('ansible/posix', 'community/docker', 'community/general', 'containers/podman', 'kubernetes/core')
    archive.extractall(draft, [n for n in archive.namelist() if n.startswith(tuple(f'ansible_collections/{w}/' for w in wanted))])
wheel.unlink()
END
    mv "$draft" "$place"
fi
echo "$place"
