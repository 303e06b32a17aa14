#!/usr/bin/env bash
# From a bare Debian or Ubuntu to answers: installs what is missing, builds nibble for the CPU, quantizes
# the bundled demo checkpoint from FP8 to NVFP4 and lets it answer the model card's four prompts.
# A second run installs and rebuilds nothing.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$root"

case ${1:-} in
  '') ;;
  -h | --help) sed -n '2,4s/^# //p' "$root/quickstart.sh"; exit 0 ;;
  *) echo "quickstart.sh: unknown argument '$1'; it takes none" >&2; exit 2 ;;
esac

tools/setup.sh
tools/build.sh cpu nibble

nibble=build/cpu/bin/nibble
source=models/demo
checkpoint=build/demo-nvfp4
# Left only by a conversion that ended well, so an interrupted one starts again.
mark=$checkpoint/.made-by-quickstart
if [[ ! -f $mark || -n $(find "$source" -newer "$mark" -print -quit) || $nibble -nt $mark ]]; then
  printf '== quantizing %s to NVFP4 in %s\n' "$source" "$checkpoint"
  rm -rf -- "$checkpoint"
  "$nibble" quantize "$source" "$checkpoint"
  touch -- "$mark"
else
  printf '== %s is up to date\n' "$checkpoint"
fi

printf '== four prompts (the demo is a toy of 31 million parameters: expect form, not facts)\n'
"$nibble" run "$checkpoint" --max-tokens 32 --temperature 0 --quiet \
  -p "Hello, my name is" \
  -p "The president of the United States is" \
  -p "The capital of France is" \
  -p "The future of AI is"
printf '\n== next: build/cpu/bin/nibble --help, ./test.sh\n'
