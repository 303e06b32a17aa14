#!/usr/bin/env bash
# The accuracy table of the bundled model: tools/eval_table.sh [--serve] [PROGRAM [FOLDER]]
# Quantizes it to NVFP4 and asks all six miniature suites of models/suites in FP8 (the baseline), W4A16,
# W4A4, and W4A16 with relaxed acceptance of drafts; prints the table and writes FOLDER/table.md, .json and
# .html. With --serve each row comes from nibble serve over HTTP instead of the engine in the same process.
# Can be stopped and started again.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
serve=0
if [[ ${1:-} == --serve ]]; then
  serve=1
  shift
fi
program=${1:-$root/build/cpu/bin/nibble}
folder=${2:-$root/build/eval-table}
mkdir -p "$folder"
folder=$(cd -- "$folder" && pwd -P)
[[ -d $folder/nvfp4 ]] || "$program" quantize "$root/models/demo" "$folder/nvfp4" >/dev/null

server=0
stop_server() {
  ((server == 0)) || { kill "$server" && wait "$server"; } 2>/dev/null || true
  server=0
}
trap stop_server EXIT

# ask NAME MODEL OPTIONS...: options of nibble eval run, which nibble serve has under the same names.
ask() {
  local name=$1 model=$2 target=()
  shift 2
  if ((serve)); then
    local port=$((20000 + RANDOM % 20000)) options=("${@/#--num-drafts/--num_drafts}")
    options=("${options[@]/#--relaxed/--use_relaxed_acceptance_for_thinking}")
    # What nibble eval run takes as its relaxed acceptance.
    [[ " $* " == *" --relaxed "* ]] && options+=(--relaxed_topk 10 --relaxed_delta 0.6)
    "$program" serve "$model" --host 127.0.0.1 --port "$port" --log-level error "${options[@]}" \
      </dev/null >"$folder/$name.serve.log" 2>&1 &
    server=$!
    for _ in $(seq 100); do
      (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
      sleep 0.2
    done
    target=(--base-url "http://127.0.0.1:$port" --concurrency 32)
  else
    target=(--model "$model" "$@")
  fi
  "$program" eval run --suite "$root/models/suites" --temperature 0 --k 1 --max-tokens 600 \
    --out "$folder/$name" "${target[@]}" >/dev/null
  stop_server
}
ask fp8 "$root/models/demo"
ask w4a16 "$folder/nvfp4"
ask w4a4 "$folder/nvfp4" --w4a4
ask relaxed "$folder/nvfp4" --num-drafts 1 --relaxed
cd -- "$folder"
"$program" eval report fp8 w4a16 w4a4 relaxed --markdown table.md --json table.json --html table.html
