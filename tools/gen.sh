#!/bin/bash
# Generates the code of proto/: Go beside it, Python into ansible_plugins. With --check it only says whether that is what stands there.
set -eu
cd "$(dirname "$0")/.."
tools/venv.sh gen
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# protoc looks for its plugins on PATH.
mkdir "$scratch/bin" "$scratch/go" "$scratch/python"
for plugin in protoc-gen-go protoc-gen-go-grpc; do
    ln -s "$(go tool -modfile=tools/go.mod -n "$plugin")" "$scratch/bin/$plugin"
done
PATH=$scratch/bin:$PATH .venv-gen/bin/python -m grpc_tools.protoc -Iproto \
    --go_out="$scratch/go" --go_opt=paths=source_relative --go-grpc_out="$scratch/go" --go-grpc_opt=paths=source_relative \
    --python_out="$scratch/python" --pyi_out="$scratch/python" proto/mitogen_mux/v1/*.proto

listing() { (cd "$1" && find mitogen_mux/v1 -name '*.pb.go' -o -name '*_pb2.py' -o -name '*_pb2.pyi' | LC_ALL=C sort); }

pairs=("$scratch/go:proto" "$scratch/python:ansible_plugins")
for pair in "${pairs[@]}"; do
    made=${pair%%:*} kept=${pair#*:}
    if [ "${1:-}" != --check ]; then
        (cd "$kept" && listing . | xargs -r rm -f)
        cp -r "$made/." "$kept"
        continue
    fi
    if [ "$(listing "$made")" != "$(listing "$kept")" ] ||
        ! (cd "$made" && listing . | while read -r file; do cmp "$file" "$OLDPWD/$kept/$file" || exit 1; done); then
        echo "the generated code in $kept is not that of proto/: run make gen" >&2
        exit 1
    fi
done
