#!/usr/bin/env bash
# Compiles every CUDA source for GPUs that no machine of ours has: Blackwell (the families of sm_100 and sm_120), of which that it
# compiles is all that is known, and Ampere and Ada (sm_80, whose code was run on an H200). tools/check_blackwell.sh [ARCH...]; needs
# nvcc alone.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
NVCC=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
OBJECTS=$(mktemp -d)
export NVCC OBJECTS
trap 'rm -rf "$OBJECTS"' EXIT
archs=("$@")
if [[ $# == 0 ]]; then archs=(100f 120f 80); fi

compile() {  # compile ARCH SOURCE
  local object=$OBJECTS/$1-${2//\//_}
  if ! "$NVCC" "-arch=sm_$1" -std=c++20 -O1 --expt-relaxed-constexpr -I. -c -o "$object.o" "$2" >"$object.log" 2>&1; then
    printf '%s does not compile for sm_%s:\n%s\n' "$2" "$1" "$(cat "$object.log")" >&2
    return 1
  fi
}
export -f compile

mapfile -t sources < <(git ls-files 'nibble/*.cu')
for arch in "${archs[@]}"; do
  for source in "${sources[@]}"; do
    # Compiled for 9.0 and later alone: nibble/kernels/CMakeLists.txt.
    if [[ $arch == 8* && $source =~ /linear_(ring|stream_.*)\.cu$ ]]; then continue; fi
    printf "%s %s\n" "$arch" "$source"
  done
done |
  xargs -P "$(nproc)" -L 1 bash -c 'compile "$@"' _
echo "${#sources[@]} sources compiled for ${archs[*]}"
