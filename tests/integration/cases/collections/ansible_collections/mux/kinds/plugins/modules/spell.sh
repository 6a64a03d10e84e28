#!/bin/sh
. "$1"
printf '{"changed": false, "said": "%s", "name": "%s"}' "$word" "$(basename "$0")"
