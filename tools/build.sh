#!/usr/bin/env bash
# Configures (once) and builds with a preset: tools/build.sh cpu [TARGET...]. A second run rebuilds nothing.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
preset=${1:?usage: tools/build.sh PRESET [TARGET...]}
shift
build=build/$preset

configured_for() { sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" 2>/dev/null || true; }
if [[ ! -f $build/build.ninja ]]; then
  cmake --preset "$preset"
elif [[ $(configured_for) != "$root" ]]; then
  echo "== $build was configured in another place; starting it afresh" >&2
  cmake --fresh --preset "$preset"
fi

# A compiler of this size takes up to about 1.5 GB; more of them than fit would be killed.
jobs=$(nproc)
available_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null || true)
if [[ -n $available_kib ]]; then
  fitting=$((available_kib / 1500000))
  ((fitting >= jobs)) || jobs=$((fitting > 0 ? fitting : 1))
fi
targets=()
for target in "$@"; do targets+=(--target "$target"); done
cmake --build "$build" --parallel "$jobs" ${targets[@]+"${targets[@]}"}
