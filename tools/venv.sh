#!/bin/bash
# Makes a virtual environment, if it is not there as it should be. Prints nothing unless something is wrong; if no Python can be had it
# prints why and exits 77.
#
#   tools/venv.sh 2.16 … 2.22   .venv-2.16: that ansible-core at its newest patch, with what plugins and tests need
#   tools/venv.sh tools         .venv-tools: ruff, mypy, vermin
#   tools/venv.sh bench         .venv-bench: the newest ansible-core and Mitogen, for make bench
#   tools/venv.sh gen           .venv-gen: protoc
set -eu
cd "$(dirname "$0")/.."
name=$1

# name, minor versions of Python 3 that the packages support in order of preference, packages
case $name in
2.16) pythons="10 11 12" packages="ansible-core==2.16.19" ;; # the oldest of everything
2.17) pythons="12 11 10" packages="ansible-core==2.17.14" ;;
2.18) pythons="13 12 11" packages="ansible-core==2.18.19" ;;
2.19) pythons="13 12 11" packages="ansible-core==2.19.14" ;;
2.20) pythons="14 13 12" packages="ansible-core==2.20.9" ;;
2.21) pythons="14 13 12" packages="ansible-core==2.21.5" ;;
2.22) pythons="14 13" packages="ansible-core==2.22.0rc1" ;;
tools) pythons="13 12 11 10" packages="-r tools/requirements.txt" ;;
bench) pythons="13 14 12" packages="ansible-core==2.21.5 mitogen==0.3.54 -r ansible_plugins/requirements.txt" ;;
gen) pythons="12 11 10 9 8" packages="grpcio-tools==1.65.5 setuptools<81" ;;
*) echo "venv.sh: no environment is called $name" >&2; exit 2 ;;
esac
case $name in
2.16) packages="$packages h2==4.1.0 protobuf==5.26.1 -r tools/test-requirements.txt" ;; # the oldest that the plugins take
2.*) packages="$packages -r ansible_plugins/requirements.txt -r tools/test-requirements.txt" ;;
esac

venv=.venv-$name
stamp=$({ echo "$PWD"; cat tools/*requirements.txt ansible_plugins/requirements.txt tools/venv.sh; } | sha256sum)
[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0

# shellcheck disable=SC2086 # words
if ! python=$(tools/find-python.sh $pythons); then
    if [[ " $pythons " != *" 13 "* ]] || ! python=$(tools/python-from-debian.sh 2>&1); then
        echo "$name needs one of Python 3.{${pythons// /,}} on PATH or in pyenv's folder${python:+, and none can be made: $python}"
        exit 77
    fi
fi
rm -rf "$venv"
"$python" -m venv "$venv"
# shellcheck disable=SC2086 # words
"$venv/bin/pip" install --quiet --disable-pip-version-check $packages
echo "$stamp" >"$venv/.stamp"
