#!/bin/bash
# Runs tests/integration once for each ansible-core, and leaves the numbers as JUnit files in the folder named by RESULTS.
#
#   tools/integration.sh test           every case on 2.16 and on the newest core that this machine can run, a smoke set on the others
#   tools/integration.sh matrix         everything on every core
#   tools/integration.sh test 2.19      only that core, all of the tier's cases
set -u
cd "$(dirname "$0")/.."
tier=$1
shift
results=${RESULTS:-.cache/results/integration}
mkdir -p "$results"

cores=() newest=
for core in ${*:-2.16 2.17 2.18 2.19 2.20 2.21}; do
    why=$(tools/venv.sh "$core")
    case $? in
    0) cores+=("$core") newest=$core ;;
    77) echo "$why" >"$results/integration-$core.skipped" ;;
    *) exit 1 ;;
    esac
done

failed=0
for core in "${cores[@]}"; do
    depth=$tier
    if [ "$tier" = test ] && [ $# = 0 ] && [ "$core" != 2.16 ] && [ "$core" != "$newest" ]; then
        depth=smoke
    fi
    echo "== integration on ansible-core $core ($depth)"
    ".venv-$core/bin/python" -m pytest tests/integration -q --core="$core" --tier="$depth" --junitxml="$results/integration-$core.xml" || failed=1
done
exit $failed
