#!/usr/bin/env bash
# Checks and times the cuda backend on this machine's GPU. Build first, on any machine:
#   tools/build.sh cuda nibble tests_cuda bench_cuda
# then, on a machine with the GPU:
#   tools/gpu_run.sh OUT [tests] [sanitizer] [bench] [demo]     default: these four
#   tools/gpu_run.sh OUT [runtime] [offline] [serve] [eval] [quantize] [slice] [offload] [offload-whole]
# runtime: the tests of sampling, engine and device alone; offline, serve, eval, quantize: the demo
# through these commands; slice: a checkpoint of R1's widths, in SLICE_DIR (default /dev/shm) with
# SLICE_LAYERS layers, loaded and run; offload: experts in GPU memory, RAM and files: tests, the demo,
# and OFFLOAD_LAYERS (20) layers of R1's widths at 100 to 25 % on the GPU, which takes 32 GB of RAM;
# offload-whole: all of R1 over OFFLOAD_GPUS (2) GPUs and OFFLOAD_RAM_GB (200) of RAM.
# Raw output goes to the folder OUT, a summary to stdout. BIN names the folder of the programs when it
# is not build/cuda (programs and their libraries may have been gathered with tools/gpu_pack.sh).
set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root" || exit 1
out=${1:?usage: tools/gpu_run.sh OUT [PART...]}
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
      # What other GPUs would run: nibble/kernels/cuda/cuda_level.h.
      run tests_level80 env NIBBLE_CUDA_LEVEL=80 "$(program tests_cuda)" \
        --gtest_filter='Linear.*:Ml*:Moe.*:Route*:Fused.*:Bf16*:Ring*:Prompt*:DemoOnCuda.*'
      run tests_level100 env NIBBLE_CUDA_LEVEL=100 "$(program tests_cuda)" --gtest_filter='Fp4*:W4a4*:Bf16*:Prompt*:DemoOnCuda.*'
      grep -E "FAILED|PASSED|tests ran" "$out/tests_level80.txt" "$out/tests_level100.txt"
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
    runtime)
      run runtime "$(program tests_cuda)" \
        --gtest_filter='DeviceSampling*:EngineOnCuda*:CudaDevice*:DemoOnCuda*'
      grep -E "FAILED|PASSED|SKIPPED|tests ran|Failure|largest relative" "$out/runtime.txt" | tail -40
      ;;
    offline)
      offline() { "$(program nibble)" bench offline models/demo --backend cuda -q "$@"; }
      offline_all() {
        for drafts in 0 1 3; do
          for graphs in "" --disable-cuda-graphs; do
            echo "drafts $drafts $graphs"
            # shellcheck disable=SC2086
            offline --num-requests 64 --num-drafts $drafts --prompts models/suites/math-500.jsonl $graphs
          done
        done
        for temperature in 0 1; do
          echo "128 requests of random tokens, temperature $temperature"
          offline --num-requests 128 --batch-sizes 1,8,32,128 --temperature $temperature
        done
      }
      run offline offline_all
      cat "$out/offline.txt"
      ;;
    serve)
      serve_some() {
        "$(program nibble)" serve models/demo --backend cuda --port 18080 --num_drafts 1 \
          --log-level info &
        local server=$!
        for _ in $(seq 100); do
          curl -sf localhost:18080/health >/dev/null && break
          sleep 0.2
        done
        local url=localhost:18080/v1/chat/completions
        local ask='"messages": [{"role": "user", "content": "What is 12 + 30?"}], "max_tokens": 60'
        curl -s $url -d "{$ask, \"temperature\": 0}"; echo
        curl -s $url -d "{$ask, \"temperature\": 0.7, \"top_p\": 0.9, \"seed\": 3, \"logprobs\": true}" | cut -c1-600; echo
        curl -s $url -d "{$ask, \"stream\": true, \"temperature\": 0}" | tail -4
        for i in 1 2 3 4 5 6 7 8; do curl -s $url -d "{$ask, \"seed\": $i}" -o /dev/null & done
        wait $(jobs -p | grep -v "^$server$")
        curl -s localhost:18080/metrics | grep -E "nibble_device_memory|nibble_graph|nibble_kv_blocks"
        kill -TERM $server
        wait $server
      }
      run serve serve_some
      cat "$out/serve.txt"
      ;;
    eval)
      # Not the suites that run programs: they need bubblewrap.
      run eval "$(program nibble)" eval run --task math-500=models/suites/math-500.jsonl \
        --task mmlu-pro=models/suites/mmlu-pro.jsonl --prompt-style demo --limit 40 --out "$(mktemp -d)/run" \
        --temperature 0 --k 1 --backend cuda --max-tokens 512
      tail -12 "$out/eval.txt"
      ;;
    quantize)
      run quantize "$(program nibble)" quantize models/demo "$(mktemp -d)/nvfp4" --backend cuda \
        --calibrate models/suites/math-500.jsonl
      tail -12 "$out/quantize.txt"
      ;;
    slice)
      slice="${SLICE_DIR:-/dev/shm}/r1-slice"
      make_slice() { rm -rf "$slice" && time tools/make_r1_slice.py "$slice" "${SLICE_LAYERS:-4}"; }
      run slice_make make_slice
      cat "$out/slice_make.txt"
      on_slice() { "$(program nibble)" "$@" --backend cuda --log-level info; }
      slice_all() {
        echo "load, twice"
        for _ in 1 2; do
          on_slice run "$slice" -v -p "Hello" -n 4 -t 0 --max-seq-len 8192 2>&1 | tail -6
        done
        for graphs in "" --disable-cuda-graphs; do
          echo "batch sizes $graphs"
          "$(program nibble)" bench offline "$slice" --backend cuda -q --num-requests 32 --batch-sizes 1,8,32 --input-len 64 \
            --output-len 64 $graphs
          "$(program nibble)" bench offline "$slice" --backend cuda -q --num-requests 16 --batch-sizes 1,8 --input-len 64 \
            --output-len 64 --num-drafts 1 $graphs
        done
      }
      run slice slice_all
      cat "$out/slice.txt"
      rm -rf "$slice"
      ;;
    offload)
      run offload_tests "$(program tests_cuda)" \
        --gtest_filter='*Offload*:StagedMoe*:HostExperts*:CudaTransferQueue*'
      grep -E "FAILED|PASSED|SKIPPED|tests ran|Failure" "$out/offload_tests.txt" | tail -40
      on_demo() {
        local packed
        packed=$(mktemp -d)/demo
        "$(program nibble)" pack models/demo "$packed" --backend cuda
        for options in "" "--gpu-expert-slots 8" "--gpu-expert-slots 1 --ram 1MB" "--gpu-expert-slots 8 --cpu-experts all"; do
          echo "options: $options"
          # shellcheck disable=SC2086
          "$(program nibble)" run "$packed" --backend cuda --temperature 0 --max-tokens 40 \
            --prompt "Once upon a time" $options
        done
      }
      run offload_demo on_demo
      cat "$out/offload_demo.txt"
      run offload "$(program bench_cuda)" "offload:${OFFLOAD_LAYERS:-20}"
      cat "$out/offload.txt"
      ;;
    offload-whole)
      run offload_whole "$(program bench_cuda)" "offload-whole:${OFFLOAD_GPUS:-2}:${OFFLOAD_RAM_GB:-200}"
      cat "$out/offload_whole.txt"
      ;;
    *)
      echo "unknown part $part, expected tests, sanitizer, bench, demo, runtime, offline, serve, eval," \
        "quantize, slice, offload or offload-whole" >&2
      exit 2
      ;;
  esac
done
exit $status
