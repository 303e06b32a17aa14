#!/usr/bin/env bash
# DeepSeek-R1 at its full size on the GPUs of this machine, with made-up weights (no checkpoint is needed):
#   tools/r1_full_size.sh OUT [TP]      TP: GPUs, 4 by default; under ten minutes on four H200
# Steps of whole batches and prompts against each other (bench_cuda), the engine (bench offline), and the
# server with the model card's configuration for low latency. Raw output goes to the folder OUT.
# BIN names the folder of the programs when it is not build/cuda (tools/gpu_pack.sh); LAYERS cuts the depth.
set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root" || exit 1
out=${1:?usage: tools/r1_full_size.sh OUT [TP]}
tp=${2:-4}
layers=${LAYERS:-61}
port=${PORT:-8123}
mkdir -p "$out"
model=$(mktemp -d)
server=
trap '[[ -n $server ]] && kill "$server" 2>/dev/null; rm -rf "$model"' EXIT
export NCCL_NVLS_ENABLE=0

program() {
  if [[ -n ${BIN:-} ]]; then echo "$BIN/$1"; return; fi
  find build/cuda -type f -name "$1" -perm -u+x | head -1
}
run() {  # run NAME SECONDS COMMAND...: its output in OUT/NAME.txt
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  echo "== $name: exit $?, $((SECONDS - begin)) s"
}

{
  date -u +%Y-%m-%d
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  nproc
} >"$out/machine.txt" 2>&1
nibble=$(program nibble)
python3 tools/make_r1_dummy.py "$model" --layers "$layers"

run steps 150 "$(program bench_cuda)" "ranks:$tp:1:0:3:$((layers - 3))"

offline=("$nibble" bench offline "$model" --backend cuda --tp-size "$tp" --max-num-tokens 2048 --input-len 1024 --output-len 64 --json -q)
run offline 150 "${offline[@]}" --batch-sizes 1,8,32 --num-requests 32
run offline_drafts 100 "${offline[@]}" --batch-sizes 1,8 --num-requests 8 --num-drafts 3 --forced-acceptance-length 2.8

cat >"$model/args.yaml" <<'YAML'
use_cuda_graph: true
moe_backend: TRTLLM
speculative_config:
  decoding_type: MTP
  num_nextn_predict_layers: 3
  use_relaxed_acceptance_for_thinking: true
  relaxed_topk: 10
  relaxed_delta: 0.6
YAML
"$nibble" serve "$model" --host 127.0.0.1 --port "$port" --device cuda --backend pytorch --max_batch_size 4 --tp_size "$tp" \
  --max_num_tokens 2048 --max_seq_len 16384 --trust_remote_code --extra_llm_api_options "$model/args.yaml" \
  --kv_cache_free_gpu_memory_fraction 0.75 >"$out/serve.txt" 2>&1 &
server=$!
begin=$SECONDS
for _ in $(seq 240); do
  if [[ $(curl -s -o "$out/ready.txt" -w '%{http_code}' "http://127.0.0.1:$port/ready") == 200 ]]; then break; fi
  kill -0 "$server" 2>/dev/null || break
  sleep 0.5
done
echo "== serve: ready after $((SECONDS - begin)) s"
load=("$nibble" bench serve --base-url "http://127.0.0.1:$port" --random-input-len 1024 --random-output-len 128 --ignore-eos)
run load_1 60 "${load[@]}" --max-concurrency 1 --num-prompts 4 --num-warmups 1
run load_4 60 "${load[@]}" --max-concurrency 4 --num-prompts 12
curl -s "http://127.0.0.1:$port/metrics" >"$out/metrics.txt"
kill -TERM "$server"
for _ in $(seq 60); do
  kill -0 "$server" 2>/dev/null || break
  sleep 0.5
done
kill -9 "$server" 2>/dev/null && echo "== serve: had to be killed"
grep -hE "tokens/s|TTFT|TPOT" "$out"/load_*.txt | head -20
