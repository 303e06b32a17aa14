#!/usr/bin/env bash
# Installs what is missing, builds everything for the CPU and runs every test. Options go to ctest:
#   ./test.sh -R tokenizer      ./test.sh -LE slow --rerun-failed
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$root"
case ${1:-} in
  -h | --help) sed -n '2,3s/^# //p' "$root/test.sh"; exit 0 ;;
esac

tools/setup.sh
tools/build.sh cpu
# The preset shows the output of what failed and makes an empty selection an error.
ctest --preset cpu --parallel "$(nproc)" "$@"
