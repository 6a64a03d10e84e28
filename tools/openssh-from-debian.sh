#!/bin/bash
# Makes the OpenSSH server of another Debian release in .cache and prints the path of its sshd: tools/openssh-from-debian.sh bullseye.
# Needs root, debootstrap and patchelf. It runs as any other program of this machine does, only with that release's own C library.
set -eu
cd "$(dirname "$0")/.."
release=$1
tree=$PWD/.cache/openssh-$release

if [ ! -e "$tree/.ready" ]; then
    # shellcheck source=tools/debian-tree.sh
    . tools/debian-tree.sh
    debian_tree "$release" "$tree" openssh-server
    for program in "$tree/usr/sbin/sshd" "$tree/usr/lib/openssh/sshd-session" "$tree/usr/lib/openssh/sshd-auth"; do
        [ ! -e "$program" ] || own_libraries "$tree" "$program"
    done
    touch "$tree/.ready"
fi
echo "$tree/usr/sbin/sshd"
