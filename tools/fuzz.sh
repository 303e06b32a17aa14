#!/usr/bin/env bash
# Searches for inputs that break a parser: tools/fuzz.sh [SECONDS [NAME...]]
# Builds the fuzz preset (needs clang) and runs each target of tests/fuzz, or the named ones, for SECONDS
# (60) from its seeds. What is found is written to build/fuzz/findings/NAME/; add it, made small, to
# tests/fuzz/corpus/NAME/ together with the fix.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "usage: tools/fuzz.sh [SECONDS [NAME...]]" >&2; exit 2; }
shift || true
names=("$@")
if ((${#names[@]} == 0)); then
  for source in tests/fuzz/*_fuzz.cpp; do
    [[ -e $source ]] || { echo "tests/fuzz holds no *_fuzz.cpp" >&2; exit 1; }
    name=$(basename -- "$source" _fuzz.cpp)
    names+=("$name")
  done
fi

tools/setup.sh clang
tools/build.sh fuzz "${names[@]/#/fuzz_}"
failed=()
for name in "${names[@]}"; do
  printf '== %s for %s s\n' "$name" "$seconds"
  mkdir -p "build/fuzz/findings/$name" "build/fuzz/corpus/$name"
  # New seeds go to the first folder, under build/.
  "build/fuzz/tests/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$name/" \
    "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" || failed+=("$name")
done
if ((${#failed[@]})); then
  echo "== failed: ${failed[*]} (inputs in build/fuzz/findings)" >&2
  exit 1
fi
echo "== no finding"
