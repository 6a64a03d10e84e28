#!/bin/bash
# Times and counts: the hot paths of the daemon, and a hundred commands plain and through mitogen-mux at 1 ms of round trip. Needs root or
# sudo, as the demo.
set -eu
cd "$(dirname "$0")/.."
go test -run '^$' -bench . -benchmem ./internal/... | grep -E '^(Benchmark|pkg:)' || true
demo/run.sh bench/commands.yml
