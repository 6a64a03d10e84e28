# What people and CI call. The steps of check, test and matrix are in tools/tier.py.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
CORES := 2.16 2.17 2.18 2.19 2.20 2.21 2.22
N ?= 50

.PHONY: help build gen check test integration core-targets matrix bench demo flake venvs fmt clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/mitogen-mux, static
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.stamp=$$(tools/version.sh)" -o bin/mitogen-mux ./cmd/mitogen-mux

gen: ## the code made from proto/
	tools/gen.sh

check: build ## lint, race, unit tests: before every commit, under 2 minutes
	@python3 tools/tier.py check

test: build ## unit tests, some 70 playbooks plain and through us, the demo; on the oldest and the newest ansible-core, some of it on another: at most 25 minutes
	@python3 tools/tier.py test

integration: build ## all tests of whole playbooks, by every way; on the oldest and the newest core, some on the others: half an hour
	@python3 tools/tier.py integration

core-targets: build ## ansible-core's own integration targets, plain and through mitogen-mux, on the oldest and the newest ansible-core: hours
	@tools/venv.sh 2.21
	.venv-2.21/bin/python tests/core_targets/run.py

matrix: build ## everything: all of it on the oldest and the newest ansible-core, unit tests and every playbook on the others: an hour or more
	@python3 tools/tier.py matrix

bench: build ## workloads with plain Ansible, pipelining, Mitogen and mitogen-mux in turn, times and counts: hours
	bench/run.sh

demo: ## one playbook, plain and through mitogen-mux, and what each cost; installs what it needs
	demo/run.sh

flake: build ## every unit test N=50 times
	@python3 tools/tier.py flake $(N)

venvs: ## .venv-2.16 to .venv-2.22, as far as this machine has a Python for them
	@for core in $(CORES); do tools/venv.sh $$core || [ $$? = 77 ] || exit 1; done

fmt: ## format everything
	@tools/venv.sh tools
	go tool -modfile=tools/go.mod gofumpt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')
	.venv-tools/bin/ruff format --quiet .
	.venv-tools/bin/ruff check --quiet --fix .

clean: ## remove all that these commands have made
	rm -rf bin .cache .venv*
	find . -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache -o -name .ruff_cache | xargs -r rm -rf
