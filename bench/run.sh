#!/bin/bash
# Times and counts: the hot paths of the daemon, then workloads with plain Ansible, pipelining, Mitogen and mitogen-mux in turn. Needs root
# or sudo, as the demo. Arguments are those of bench.py: workloads, -k repeats, --only contenders.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=PATH,HOME,GOFLAGS,GOPROXY,PIP_INDEX_URL,PIP_FIND_LINKS,PIP_CERT "$0" "$@"
fi
if [ $# = 0 ]; then
    go test -run '^$' -bench . -benchmem ./internal/... | grep -E '^(Benchmark|pkg:)' || true
fi
go build -trimpath -o bin/relay ./bench/relay
tools/venv.sh bench
exec .venv-bench/bin/python bench/bench.py "$@"
