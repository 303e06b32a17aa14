#!/usr/bin/env bash
# Checks and times the cuda backend on this machine's GPU. Build first, on any machine:
#   tools/build.sh cuda nibble tests_cuda bench_cuda
# then, on a machine with the GPU:
#   tools/gpu_run.sh OUT [tests] [sanitizer] [bench] [demo]     default: all of them
# Raw output goes to the folder OUT, a summary to stdout. BIN names the folder of the programs when it
# is not build/cuda (programs and their libraries may have been gathered with tools/gpu_pack.sh).
set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root" || exit 1
out=${1:?usage: tools/gpu_run.sh OUT [tests] [sanitizer] [bench] [demo]}
shift
parts=("$@")
((${#parts[@]})) || parts=(tests sanitizer bench demo)
mkdir -p "$out"
status=0

program() {  # the path of a program of this build
  local name=$1
  if [[ -n ${BIN:-} ]]; then echo "$BIN/$name"; return; fi
  find build/cuda -type f -name "$name" -perm -u+x | head -1
}

run() {  # run NAME COMMAND...: its output in OUT/NAME.txt, with how it ended and how long it took
  local name=$1
  shift
  local begin=$SECONDS
  "$@" >"$out/$name.txt" 2>&1
  local code=$?
  echo "== $name: exit $code, $((SECONDS - begin)) s"
  if ((code)); then status=1; fi
}

{
  date -u +%Y-%m-%d
  git rev-parse --short HEAD 2>/dev/null || true
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  nproc
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

for part in "${parts[@]}"; do
  case $part in
    tests)
      run tests "$(program tests_cuda)" --gtest_brief=0
      grep -E "FAILED|PASSED|SKIPPED|tests ran" "$out/tests.txt" | tail -40
      grep -E "largest relative" "$out/tests.txt"
      ;;
    sanitizer)
      # The small shapes: the large ones take hours under instrumentation.
      filter='Linear.Dec*:Linear.ColumnsNeed*:Mlp.IsDown*:Mlp.Gate*:Moe.Adds*:Route.*:RmsNorm.*:Add.*:Embed.*:RotaryQuery.*:MlaCacheWrite.*:MlaAttention.Weighs*:Moe.AllTokens*:Bf16Mla.*:Bf16Moe.*:CudaDevice.Copies*'
      for tool in memcheck racecheck; do
        run "sanitizer_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
          "$(program tests_cuda)" --gtest_filter="$filter"
        tail -3 "$out/sanitizer_$tool.txt"
      done
      ;;
    bench)
      run bench "$(program bench_cuda)"
      cat "$out/bench.txt"
      ;;
    demo)
      run demo "$(program nibble)" run models/demo --backend cuda --temperature 0 --max-tokens 40 \
        --prompt "Once upon a time"
      tail -5 "$out/demo.txt"
      ;;
    *)
      echo "unknown part $part, expected tests, sanitizer, bench or demo" >&2
      exit 2
      ;;
  esac
done
exit $status
