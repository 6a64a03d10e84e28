#!/bin/bash
# The main job on a fresh Debian 12 machine: installs what is needed, builds, and runs one playbook plain and through mitogen-mux against an
# sshd of its own. Needs root or sudo, Go 1.26 and Python 3.10 or newer; leaves bin/ and .venv-demo/ behind, nothing else.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "demo: run as root, or install sudo" >&2; exit 1; }
    # The demo makes two accounts and an sshd: root's work. The environment names Go and Python.
    exec sudo --preserve-env=PATH,HOME,GOFLAGS,GOPROXY,PIP_INDEX_URL,PIP_FIND_LINKS,PIP_CERT "$0" "$@"
fi

missing=
for need in sshd:openssh-server ssh:openssh-client sudo:sudo useradd:passwd make:make; do
    PATH=$PATH:/usr/sbin command -v "${need%%:*}" >/dev/null || missing="$missing ${need#*:}"
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    echo "== installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
fi
command -v go >/dev/null || { echo "demo: Go 1.26 or newer is needed on PATH" >&2; exit 1; }

echo "== building"
make -s build
go build -trimpath -o bin/relay ./bench/relay

if [ ! -x .venv-demo/bin/ansible-playbook ]; then
    echo "== ansible-core"
    core=$(python3 -c 'import sys
v = sys.version_info[:2]
if v < (3, 10): sys.exit("demo: Python 3.10 or newer is needed")
print("2.17.14" if v < (3, 11) else "2.19.14" if v < (3, 12) else "2.21.5")')
    python3 -m venv .venv-demo
    .venv-demo/bin/pip install -q "ansible-core==$core" -r ansible_plugins/requirements.txt
fi
exec .venv-demo/bin/python demo/demo.py "$@"
