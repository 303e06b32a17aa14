#!/usr/bin/env bash
# The accuracy table of the bundled model: tools/eval_table.sh [PROGRAM [FOLDER]]
# Quantizes it to NVFP4 and asks all six miniature suites of models/suites in FP8 (the baseline), W4A16,
# W4A4, and W4A16 with relaxed acceptance of drafts; prints the table and writes FOLDER/table.md and .json.
# Can be stopped and started again.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
program=${1:-$root/build/cpu/bin/nibble}
folder=${2:-$root/build/eval-table}
mkdir -p "$folder"
[[ -d $folder/nvfp4 ]] || "$program" quantize "$root/models/demo" "$folder/nvfp4" >/dev/null

ask() {
  local name=$1
  shift
  "$program" eval run --suite "$root/models/suites" --temperature 0 --k 1 --max-tokens 600 \
    --out "$folder/$name" "$@" >/dev/null
}
ask fp8 --model "$root/models/demo"
ask w4a16 --model "$folder/nvfp4"
ask w4a4 --model "$folder/nvfp4" --w4a4
ask relaxed --model "$folder/nvfp4" --num-drafts 1 --relaxed
cd -- "$folder"
"$program" eval report fp8 w4a16 w4a4 relaxed --markdown table.md --json table.json
