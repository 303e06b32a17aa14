#!/usr/bin/env bash
# Checks two GPUs of this machine against one: tests_cuda's TwoGpus, and the demo model under load.
#   tools/two_gpus.sh OUT        about a minute on two H200
# Raw output goes to the folder OUT, a summary to stdout. BIN names the folder of the programs when it
# is not build/cuda (tools/gpu_pack.sh); REQUESTS (256) is the load of each server.
set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root" || exit 1
out=${1:?usage: tools/two_gpus.sh OUT}
port=${PORT:-8124}
requests=${REQUESTS:-256}
mkdir -p "$out"
status=0
server=
trap '[[ -n $server ]] && kill "$server" 2>/dev/null' EXIT
export NCCL_NVLS_ENABLE=0

program() {
  if [[ -n ${BIN:-} ]]; then echo "$BIN/$1"; return; fi
  find build/cuda -type f -name "$1" -perm -u+x | head -1
}
run() {  # run NAME SECONDS COMMAND...: its output in OUT/NAME.txt
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  echo "== $name: exit $code, $((SECONDS - begin)) s"
  if ((code)); then status=1; fi
}

{
  date -u +%Y-%m-%d
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  nproc
} >"$out/machine.txt" 2>&1
nibble=$(program nibble)
run tests 150 "$(program tests_cuda)" --gtest_filter='TwoGpus*'
grep -E "^\[  (FAILED|PASSED|SKIPPED)|largest relative|^TP2|ms\)$" "$out/tests.txt" | cut -c1-220

# serve NAME OPTION...: a server of the demo under load; every request must be answered.
serve() {
  local name=$1 begin=$SECONDS
  shift
  "$nibble" serve models/demo --backend cuda --port "$port" --max_batch_size 32 "$@" >"$out/serve_$name.txt" 2>&1 &
  server=$!
  for _ in $(seq 120); do
    [[ $(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/ready") == 200 ]] && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.25
  done
  echo "== serve $name: ready after $((SECONDS - begin)) s"
  run "load_$name" 60 "$nibble" bench serve --base-url "http://127.0.0.1:$port" --random-input-len 256 \
    --random-output-len 128 --random-range-ratio 0.5 --ignore-eos --max-concurrency 32 --num-prompts "$requests" --num-warmups 4
  grep -iE "successful|failed|throughput|median|mean" "$out/load_$name.txt" | head -20
  curl -s "http://127.0.0.1:$port/metrics" >"$out/metrics_$name.txt"
  kill -TERM "$server"
  wait "$server"
  echo "== serve $name: ended with exit code $?"
  server=
}
serve one
serve tp2 --tp_size 2
serve tp2_drafts --tp_size 2 --num_drafts 3
serve dp2 --tp_size 2 --enable_attention_dp
exit "$status"
