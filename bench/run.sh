#!/bin/bash
# Times and counts: the hot paths of the daemon, then workloads with plain Ansible, pipelining, Mitogen and mitogen-mux in turn. Needs root
# or sudo, as the demo. Arguments are those of bench.py (workloads, -k repeats, --only contenders), or one of transfers, trees, fan and connections
# and those of the program of that name.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=PATH,HOME,GOFLAGS,GOPROXY,PIP_INDEX_URL,PIP_FIND_LINKS,PIP_CERT "$0" "$@"
fi
if [ $# = 0 ]; then
    go test -run '^$' -bench . -benchmem ./internal/... | grep -E '^(Benchmark|pkg:)' || true
fi
go build -trimpath -o bin/ ./bench/...
tools/venv.sh bench
program=bench
case "${1:-}" in
transfers | trees | fan | connections)
    program=$1
    shift
    ;;
esac
exec .venv-bench/bin/python "bench/$program.py" "$@"
