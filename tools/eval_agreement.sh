#!/usr/bin/env bash
# Compares nibble eval's graders with Math-Verify and lm-eval: tools/eval_agreement.sh [PROGRAM [RUN]]
# Their packages come from PyPI into build/eval-venv.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
program=${1:-$root/build/cpu/bin/nibble}
venv=$root/build/eval-venv
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" -q install math-verify==0.9.0
  # Its filters need none of the packages that it runs models with.
  "$venv/bin/pip" -q install --no-deps lm_eval==0.4.13
fi
exec "$venv/bin/python" "$root/tools/eval_agreement.py" "$program" ${2:+"$2"}
