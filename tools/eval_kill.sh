#!/usr/bin/env bash
# A run that is killed again and again gives the report of one that was left alone:
#   tools/eval_kill.sh [PROGRAM [KILLS]]
# Runs 480 samples once in peace and once with SIGKILL at KILLS (10) random moments, compares the two reports
# field for field, and prints the resident memory that 64 samples a question take beside 4.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
program=${1:-$root/build/cpu/bin/nibble}
kills=${2:-10}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

ask() {
  "$program" eval run --task "math-500=$root/models/suites/math-500.jsonl" \
    --task "gpqa-diamond=$root/models/suites/gpqa-diamond.csv" --prompt-style demo --limit 30 --k 8 \
    --temperature 0.6 --max-tokens 200 --progress none --out "$folder/$1" >/dev/null 2>&1
}
SECONDS=0
ask whole
whole_seconds=$SECONDS
echo "whole run: $whole_seconds s, $(wc -l <"$folder/whole/samples.jsonl") samples"
done_kills=0
tries=0
while ((done_kills < kills && tries < 20 * kills)); do
  tries=$((tries + 1))
  before=$(wc -l 2>/dev/null <"$folder/killed/samples.jsonl" || echo 0)
  ask killed 2>/dev/null & # the shell's word on each kill
  child=$!
  # On average most of the run's length is spent by all kills together, so that they fit into one run.
  sleep "$(awk -v w="$whole_seconds" -v k="$kills" -v r="$RANDOM" 'BEGIN{print 0.5 + r / 32768 * 1.6 * w / k}')"
  # The program itself, the shell's child: the shell ends with it.
  if pkill -KILL -P "$child" -x nibble 2>/dev/null; then
    done_kills=$((done_kills + 1))
  fi
  wait "$child" 2>/dev/null || true
  after=$(wc -l 2>/dev/null <"$folder/killed/samples.jsonl" || echo 0)
  echo "kill $done_kills: $before -> $after samples"
  [[ -e $folder/killed/report.json ]] && break
done
ask killed
python3 - "$folder" <<'END'
import json, sys
a, b = (json.load(open(f"{sys.argv[1]}/{name}/report.json"))["runs"][0]["tasks"] for name in ("whole", "killed"))
print("the reports are the same" if a == b else "THE REPORTS DIFFER")
sys.exit(a != b)
END

# 64 samples a question: the answers stay on disk.
python3 "$root/tools/eval_memory.py" "$program"
