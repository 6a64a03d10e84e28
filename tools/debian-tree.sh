# For tools/*-from-debian.sh: a tree with a few packages of another Debian release, and programs in it that run outside it.

# debian_tree RELEASE FOLDER PACKAGE...
debian_tree() {
    local release=$1 tree=$2 need mirror
    [ "$(id -u)" = 0 ] || { echo "debootstrap needs root" >&2; exit 1; }
    PATH=$PATH:/usr/sbin
    for need in debootstrap patchelf; do
        command -v "$need" >/dev/null || { echo "$need is not installed" >&2; exit 1; }
    done
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" 2>/dev/null | grep -v security | head -n 1)
    rm -rf --one-file-system "$tree"
    mkdir -p "$tree"
    if ! debootstrap --variant=minbase --include="$(IFS=,; echo "${*:3}")" "$release" "$tree" "${mirror:-http://deb.debian.org/debian}" >"$tree.log" 2>&1; then
        echo "debootstrap failed: $(tail -n 1 "$tree.log")" >&2
        exit 1
    fi
    rm -rf "$tree/var/cache/apt" "$tree/var/lib/apt/lists"
}

# own_libraries FOLDER PROGRAM: the program takes the tree's libraries instead of the machine's.
own_libraries() {
    local libraries loader
    libraries=$(dirname "$(find "$1/usr/lib" "$1/lib/" -name libc.so.6 | head -n 1)")
    loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1)
    patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries:$1/usr/lib/${libraries##*/}" "$2"
}
