#!/bin/bash
# Prints the version of what stands here: as git describes it, and with a hash of what goes into the build where that is not committed.
set -eu
cd "$(dirname "$0")/.."
inputs=(go.mod go.sum cmd internal proto)

content() {
    find "${inputs[@]}" -type f ! -name '*_test.go' ! -path '*/testdata/*' ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
        sha256sum | cut -c 1-12
}

if ! version=$(git describe --tags --always --match 'v*' 2>/dev/null); then
    echo "dev-$(content)"
elif [ -n "$(git status --porcelain -- "${inputs[@]}")" ]; then
    echo "$version-dirty-$(content)"
else
    echo "$version"
fi
