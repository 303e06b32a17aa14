#!/usr/bin/env bash
# Installs what nibble needs to build and test on Debian 12 or Ubuntu 24.04, and nothing that is there
# already: a second run changes nothing and needs neither root nor a network.
#
#   tools/setup.sh [--check] [PACKAGE...]   further packages are handled in the same way;
#                                           --check only lists what is missing (exit 1 if anything is)
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config python3
  libexpected-dev libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libpcre2-dev zlib1g-dev
  libgtest-dev libgmock-dev libssl-dev libxxhash-dev liburing-dev libboost-dev bubblewrap libyaml-cpp-dev
  libsnappy-dev libzstd-dev libseccomp-dev
  python3-dev pybind11-dev python3-numpy python3-pytest libopenmpi-dev openmpi-bin
)
check_only=0
for argument in "$@"; do
  case $argument in
    --check) check_only=1 ;;
    -*) echo "tools/setup.sh: unknown option '$argument', expected --check or package names" >&2; exit 2 ;;
    *) packages+=("$argument") ;;
  esac
done

say() { printf '== %s\n' "$*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  # Not Debian: the configuration of the build names what it cannot find.
  say "set-up: no apt-get here; these are needed under this system's names: ${packages[*]}"
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  say "set-up: everything is installed"
  exit 0
fi
if ((check_only)); then
  say "set-up: missing: ${missing[*]}"
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    say "set-up: missing: ${missing[*]}"
    say "installing them needs root, and there is no sudo here. As root:"
    say "  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  as_root=(sudo)
fi
say "set-up: installing ${missing[*]}"
"${as_root[@]}" apt-get -q -o Acquire::Retries=3 update >&2
# env: sudo drops variables that are merely exported.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -q -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}" >&2
say "set-up: done"
