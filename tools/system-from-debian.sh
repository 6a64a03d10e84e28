#!/bin/bash
# Makes a small Debian system in .cache and prints its folder: what the containers of the tests are made of, for there need be no registry of
# images. Besides Python it has the tools to become another account that this machine may lack, and a Kerberos of its own for one of them.
# Needs root and debootstrap.
set -eu
cd "$(dirname "$0")/.."
tree=$PWD/.cache/system

mkdir -p .cache
exec 9>"$tree.lock"
flock 9 # tests on several cores ask for it at the same time
if [ ! -e "$tree/.ready" ]; then
    # shellcheck source=tools/debian-tree.sh
    . tools/debian-tree.sh
    debian_tree trixie "$tree" python3 acl sudo sudo-rs opendoas krb5-user krb5-kdc krb5-admin-server
    rm -rf "$tree"/usr/share/{doc,locale,man,info}
    touch "$tree/.ready"
fi
echo "$tree"
