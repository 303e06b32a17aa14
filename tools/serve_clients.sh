#!/usr/bin/env bash
# Real clients against nibble serve on the demo checkpoint.
#
#   tools/serve_clients.sh PROGRAM VENV              tests/server/clients.py: openai, anthropic, LangChain, LiteLLM
#   tools/serve_clients.sh PROGRAM VENV --install    makes VENV first (needs a network), and adds schemathesis
#   tools/serve_clients.sh PROGRAM VENV --all        makes VENV and VENV-heavy (some GB: PyTorch is among it), and
#                                                    adds schemathesis, lm-eval and guidellm
#
# Without --install or --all nothing is downloaded, and missing packages end it with 77: "skipped".
set -euo pipefail
program=$1
venv=$2
mode=${3:-}
root=$(cd "$(dirname "$0")/.." && pwd)
if [[ $mode == --install || $mode == --all ]]; then
  [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet openai anthropic langchain-openai litellm mcp prometheus-client schemathesis
fi
if [[ $mode == --all && ! -x $venv-heavy/bin/guidellm ]]; then
  python3 -m venv "$venv-heavy"
  "$venv-heavy/bin/pip" install --quiet "lm-eval[api]" "guidellm>=0.8"
fi
if [[ ! -x $venv/bin/python ]]; then
  echo "skipped: no $venv; tools/serve_clients.sh $program $venv --install makes it (needs a network)"
  exit 77
fi
work=$(mktemp -d)
"$program" serve "$root/models/demo" --served_model_name demo --port 0 >"$work/log" 2>&1 &
server=$!
trap 'kill -TERM $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 300); do
  url=$(grep -o 'http://[^; ]*' "$work/log" | head -1 || true)
  if [[ -n $url ]] && "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$url/ready')" 2>/dev/null; then break; fi
  sleep 0.1
done
[[ -n $url ]] || { cat "$work/log"; exit 1; }
"$venv/bin/python" "$root/tests/server/clients.py" "$url"

if [[ $mode == --install || $mode == --all ]]; then
  # Every operation with made-up requests: no 500, only documented statuses and types.
  "$venv/bin/schemathesis" run "$url/openapi.json" --url "$url" --max-examples 20 --seed 1 --no-color --request-timeout 60 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance
fi

if [[ $mode == --all ]]; then
  # lm-eval: the chat API generates, the completions API scores what is given.
  cat >"$work/nibble_sums.yaml" <<YAML
task: nibble_sums
dataset_path: json
dataset_kwargs: {data_files: {test: "$root/models/suites/math-500.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{problem}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<nothing>"], max_gen_toks: 200, temperature: 0}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: '\\\\boxed\{([^}]*)\}'}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
YAML
  cat >"$work/nibble_choice.yaml" <<YAML
task: nibble_choice
dataset_path: json
dataset_kwargs: {data_files: {test: "$work/capitals.jsonl"}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{options}}"
doc_to_target: answer_index
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
YAML
  # Scored as plain text, without the chat template: of that the demo knows the capitals alone.
  "$venv/bin/python" - "$root/models/suites/mmlu-pro.jsonl" >"$work/capitals.jsonl" <<'PYTHON'
import json, sys
head = "What is the capital of "
for row in map(json.loads, open(sys.argv[1])):
    if row["question"].startswith(head):
        keys = {"country": row["question"][len(head):-1], "options": row["options"], "answer_index": row["answer_index"]}
        print(json.dumps(keys))
PYTHON
  export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TOKENIZERS_PARALLELISM=false
  "$venv-heavy/bin/lm_eval" --model local-chat-completions --apply_chat_template --include_path "$work" \
    --model_args "model=demo,base_url=$url/v1/chat/completions,num_concurrent=8,max_retries=1,tokenized_requests=False" \
    --tasks nibble_sums --limit 40 --gen_kwargs temperature=0 | tee "$work/lm_eval"
  grep -q 'exact_match' "$work/lm_eval"
  "$venv-heavy/bin/lm_eval" --model local-completions --include_path "$work" \
    --model_args "model=demo,base_url=$url/v1/completions,num_concurrent=8,max_retries=1,tokenizer=$root/models/demo,tokenizer_backend=huggingface,add_bos_token=True" \
    --tasks nibble_choice | tee "$work/lm_eval"
  grep -q 'acc' "$work/lm_eval"
  # Each token's log-probability against transformers.
  "$venv-heavy/bin/python" "$root/tools/check_scores.py" "$url"
  # Its command line is that of 0.8.
  "$venv-heavy/bin/guidellm" run --backend "kind=openai_http,target=$url,model=demo" \
    --profile kind=concurrent,streams=4 --constraint kind=max_requests,count=32 \
    --tokenizer "kind=huggingface_auto,model=$root/models/demo" \
    --data kind=synthetic_text,prompt_tokens=64,output_tokens=32 \
    --output "kind=json,path=$work/guidellm.json" --disable-console-interactive
fi
