#!/usr/bin/env bash
# The bundled model's NVFP4 checkpoints in the hands of two other projects: NVIDIA Model Optimizer and compressed-tensors.
#   tools/compare_with_readers.sh [PROGRAM [ALGORITHM...]]
# Installs both from PyPI into build/readers/venv when they are not there (with torch and what it needs: 5 GB), then
# quantizes, converts and lets tools/compare_with_readers.py compare every value.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
program=${1:-$root/build/cpu/bin/nibble}
shift || true
algorithms=("${@:-max}")
folder=$root/build/readers
python=$folder/venv/bin/python
if ! "$python" -c 'import compressed_tensors, modelopt, requests, safetensors' 2>/dev/null; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet compressed-tensors nvidia-modelopt safetensors requests
fi
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
for algorithm in "${algorithms[@]}"; do
  echo "$algorithm:"
  "$program" quantize "$root/models/demo" "$work/nvfp4" --algorithm "$algorithm" --scheme nvfp4-all --quiet
  "$program" convert "$work/nvfp4" "$work/bf16" --to bf16 --quiet >/dev/null
  "$program" convert "$work/nvfp4" "$work/compressed" --to compressed-tensors --quiet >/dev/null
  "$program" convert "$root/models/demo" "$work/source" --to bf16 --quiet >/dev/null
  "$python" "$root/tools/compare_with_readers.py" "$work/nvfp4" "$work/bf16" --compressed "$work/compressed" \
    --source "$work/source" --algorithm "$algorithm"
  rm -rf -- "${work:?}"/*
done
