#!/usr/bin/env bash
# Gathers the programs of build/cuda with the shared libraries they need in one folder, for a machine
# that has a GPU and no development packages: tools/gpu_pack.sh DIR; there BIN=DIR tools/gpu_run.sh OUT.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
dir=${1:?usage: tools/gpu_pack.sh DIR}
mkdir -p "$dir/lib"
for name in nibble tests_cuda bench_cuda; do
  path=$(find build/cuda -type f -name "$name" -perm -u+x | head -1)
  if [[ -z $path ]]; then
    echo "no $name in build/cuda: tools/build.sh cuda $name" >&2
    continue
  fi
  # The C library and what belongs to it come with every machine.
  ldd "$path" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libpthread|libdl|librt|ld-linux.*)\.so' |
    xargs -r cp -Lu -t "$dir/lib"
  cp "$path" "$dir/$name.bin"
  strip "$dir/$name.bin"
  printf '#!/bin/sh\nhere=$(dirname "$0")\nLD_LIBRARY_PATH="$here/lib" exec "$here/%s.bin" "$@"\n' \
    "$name" >"$dir/$name"
  chmod +x "$dir/$name"
done
du -sh "$dir"
