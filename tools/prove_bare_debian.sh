#!/usr/bin/env bash
# Proves the two commands on a bare system: makes a minimal Debian with debootstrap, clones the repository
# into a folder with a space in its name, and there runs ./quickstart.sh twice and ./test.sh from another
# working directory, with nothing of this machine's environment.
#
#   tools/prove_bare_debian.sh FOLDER [root|user]...    needs root, debootstrap, git, about 3 GB in FOLDER
#
# root: as root, the default. user: as a plain user with sudo. What is committed is what is proved. FOLDER
# keeps the bare system (FOLDER/bare), which is made once, and one copy for each run.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() { echo "tools/prove_bare_debian.sh: $*" >&2; exit 1; }
[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
folder=$1
shift
((EUID == 0)) || fail "needs root"
command -v debootstrap >/dev/null || fail "needs debootstrap (package debootstrap)"
mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd -P)
suite=${SUITE:-bookworm}

# The first Debian mirror that this machine itself uses, in either form of sources; MIRROR overrides it.
configured_mirror() {
  local files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list)
  cat -- "${files[@]}" 2>/dev/null |
    sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb \(\[[^]]*\] *\)\{0,1\}\([a-z]*:[^ ]*\).*/\2/p' |
    grep -m1 -E '/debian/?$'
}
mirror=${MIRROR:-$(configured_mirror || true)}
[[ -n $mirror ]] || fail "found no Debian mirror in this machine's sources; name one in MIRROR"

if [[ ! -e $folder/bare/.complete ]]; then
  echo "== making a bare $suite in $folder/bare"
  rm -rf --one-file-system -- "$folder/bare"
  debootstrap --variant=minbase "$suite" "$folder/bare" "$mirror" >"$folder/debootstrap.log" 2>&1 ||
    fail "debootstrap failed, see $folder/debootstrap.log"
  # How this machine reaches the mirror: name servers, proxies.
  cp -L -- /etc/resolv.conf "$folder/bare/etc/resolv.conf" 2>/dev/null || true
  apt-config dump | grep -iE '^Acquire::(http|https)::' >"$folder/bare/etc/apt/apt.conf.d/90mirror" || true
  touch -- "$folder/bare/.complete"
fi

tree=''
unmount() { [[ -z $tree ]] || ! mountpoint -q -- "$tree/proc" || umount -- "$tree/proc"; }
trap unmount EXIT

# in_tree USER COMMAND...: runs it from / with an environment of four variables (and the proxy's).
in_tree() {
  local user=$1 home=/root
  shift
  [[ $user == root ]] || home=/home/$user
  chroot --userspec="$user" "$tree" /usr/bin/env -i HOME="$home" USER="$user" LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} "$@"
}

timed() {
  local what=$1 start=$SECONDS
  shift
  "$@" || fail "$what failed"
  printf '== %s: %d s\n' "$what" $((SECONDS - start))
}

prove() {
  local user=$1 home=/root
  tree=$folder/$1
  echo "== as $user in $tree"
  rm -rf --one-file-system -- "$tree"
  cp -a -- "$folder/bare" "$tree"
  mount -t proc proc "$tree/proc"
  if [[ $user != root ]]; then
    home=/home/$user
    in_tree root apt-get -qq update
    in_tree root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends sudo >/dev/null
    in_tree root useradd --create-home "$user"
    echo "$user ALL=(ALL) NOPASSWD:ALL" >"$tree/etc/sudoers.d/$user"
  fi
  local clone="$home/a clone of nibble"
  git clone -q --no-hardlinks -- "$root" "$tree$clone"
  [[ $user == root ]] || in_tree root chown -R "$user:$user" "$clone"
  git -C "$root" log -1 --format='== commit %h %s'

  timed "quickstart.sh" in_tree "$user" "$clone/quickstart.sh"
  local before after
  before=$(in_tree root dpkg-query -W; find "$tree$clone/build" -type f -name '*.o' -newermt @0 -printf '%p %T@\n' | sort)
  timed "quickstart.sh again" in_tree "$user" "$clone/quickstart.sh"
  after=$(in_tree root dpkg-query -W; find "$tree$clone/build" -type f -name '*.o' -newermt @0 -printf '%p %T@\n' | sort)
  [[ $before == "$after" ]] || fail "the second run of quickstart.sh installed or rebuilt something"
  timed "test.sh" in_tree "$user" "$clone/test.sh"
  [[ -z $(git -c safe.directory='*' -C "$tree$clone" status --porcelain) ]] || fail "the runs left files outside build/"
  unmount
}

runs=("$@")
((${#runs[@]})) || runs=(root)
for run in "${runs[@]}"; do
  [[ $run == root || $run == user ]] || fail "unknown run '$run', expected root or user"
  prove "$run"
done
echo "== proved: ${runs[*]}"
