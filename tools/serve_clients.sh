#!/usr/bin/env bash
# Real clients against nibble serve on the demo checkpoint: the openai and anthropic packages, and
# schemathesis on /openapi.json.
#
#   tools/serve_clients.sh PROGRAM VENV [--install]
#
# Without --install nothing is downloaded, and missing packages end it with 77: "skipped".
set -euo pipefail
program=$1
venv=$2
root=$(cd "$(dirname "$0")/.." && pwd)
if [[ ${3:-} == --install && ! -x $venv/bin/schemathesis ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet openai anthropic schemathesis
fi
if [[ ! -x $venv/bin/python ]]; then
  echo "skipped: no $venv; tools/serve_clients.sh $program $venv --install makes it (needs a network)"
  exit 77
fi
log=$(mktemp)
"$program" serve "$root/models/demo" --served_model_name demo --port 0 >"$log" 2>&1 &
server=$!
trap 'kill -TERM $server 2>/dev/null; wait $server 2>/dev/null; rm -f "$log"' EXIT
for _ in $(seq 300); do
  url=$(grep -o 'http://[^; ]*' "$log" || true)
  if [[ -n $url ]] && "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$url/ready')" 2>/dev/null; then break; fi
  sleep 0.1
done
[[ -n $url ]] || { cat "$log"; exit 1; }
"$venv/bin/python" "$root/tests/server/clients.py" "$url"
if [[ ${3:-} == --install ]]; then
  # Every operation with made-up requests: no 500, only documented statuses and types.
  "$venv/bin/schemathesis" run "$url/openapi.json" --url "$url" --max-examples 20 --seed 1 --no-color \
    --checks not_a_server_error,status_code_conformance,content_type_conformance
fi
