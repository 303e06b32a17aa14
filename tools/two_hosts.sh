#!/usr/bin/env bash
# Two hosts on one machine: network namespaces joined by a link, ranks on both, MPI over TCP between
# them. Shows that the tokens are those of one rank, and that a cut link ends the job with the
# rank's name instead of a hang. Needs root (namespaces), Open MPI and iproute2; without them it says
# so and exits 77, which ctest takes as skipped.
#
#   tools/two_hosts.sh [PROGRAM [MODEL [OPTION...]]]   default: build/cpu/bin/nibble models/demo
#   RANKS=4 tools/two_hosts.sh build/cpu/bin/nibble NVFP4_DEMO --ep-size 2
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-build/cpu/bin/nibble}")
model=$(realpath "${2:-models/demo}")
shape=("${@:3}")
ranks=${RANKS:-2}

skip() { echo "two_hosts: skipped: $*" >&2; exit 77; }
((EUID == 0)) || skip "network namespaces need root"
for tool in ip mpirun unshare; do
  command -v $tool >/dev/null || skip "no $tool here"
done
[[ -e $(dirname "$program")/libnibble_mpi.so ]] || skip "nibble was built without MPI"

a=nibble-a-$$ b=nibble-b-$$
folder=$(mktemp -d)
clean_up() {
  ip netns pids $a 2>/dev/null | xargs -r kill -9 2>/dev/null || true
  ip netns pids $b 2>/dev/null | xargs -r kill -9 2>/dev/null || true
  ip netns del $a 2>/dev/null || true
  ip netns del $b 2>/dev/null || true
  rm -rf "$folder"
}
trap clean_up EXIT
ip netns add $a 2>/dev/null || skip "this kernel gives no network namespaces"
ip netns add $b
ip link add nba netns $a type veth peer name nbb netns $b || skip "this kernel gives no veth links"
ip -n $a addr add 10.77.0.1/24 dev nba
ip -n $b addr add 10.77.0.2/24 dev nbb
for side in "$a nba" "$b nbb"; do
  # shellcheck disable=SC2086
  set -- $side
  ip -n "$1" link set lo up
  ip -n "$1" link set "$2" up
done

# What mpirun calls instead of ssh: HOST COMMAND...
cat >"$folder/agent" <<AGENT
#!/bin/bash
shift
exec ip netns exec $b unshare --uts bash -c "hostname nibble-b; \$*"
AGENT
chmod +x "$folder/agent"
# So that mpirun itself soon sees that a host is lost; the ranks do by --rank_timeout.
lost_host=(--mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 2)
ip netns exec $a sysctl -qw net.ipv4.tcp_retries2=5
ip netns exec $b sysctl -qw net.ipv4.tcp_retries2=5
# Rank traffic on the named network alone: both of MPI's own channels are told.
run_on_both() {
  ip netns exec $a unshare --uts bash -c 'hostname nibble-a; exec "$@"' _ \
    mpirun --allow-run-as-root --oversubscribe -n "$ranks" --host 10.77.0.1:$((ranks / 2)),10.77.0.2:$((ranks / 2)) --bind-to none \
    --mca plm_rsh_agent "$folder/agent" --mca plm_rsh_no_tree_spawn 1 \
    "${lost_host[@]}" --mca btl tcp,self --mca pml ob1 \
    --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
    "$program" run "$model" --threads 1 -t 0 -q "$@"
}

echo "== the same tokens on one rank and on $ranks, half of them on each host" >&2
prompt="What is 384 + 597?"
"$program" run "$model" --threads 1 -t 0 -q --json -p "$prompt" -n 24 |
  grep -o '"token_ids":\[[^]]*\]' >"$folder/one"
run_on_both --json -p "$prompt" -n 24 "${shape[@]}" | grep -o '"token_ids":\[[^]]*\]' >"$folder/many"
cmp "$folder/one" "$folder/many"

echo "== a link that is cut in the middle" >&2
run_on_both -p "$prompt" -n 3000 --ignore-eos --rank-timeout 5 "${shape[@]}" \
  >"$folder/out" 2>"$folder/err" &
job=$!
for _ in $(seq 100); do
  [[ -s $folder/out ]] && break
  sleep 0.1
done
[[ -s $folder/out ]] || { echo "two_hosts: the run did not begin" >&2; cat "$folder/err" >&2; exit 1; }
ip -n $b link set nbb down
start=$SECONDS
ranks_are_gone() {
  local side pid
  for side in $a $b; do
    for pid in $(ip netns pids "$side"); do
      [[ $(cat "/proc/$pid/comm" 2>/dev/null) == nibble ]] && return 1
    done
  done
  return 0
}
for _ in $(seq 200); do
  ranks_are_gone && break
  sleep 0.1
done
ended=$((SECONDS - start))
if ! ranks_are_gone; then
  echo "two_hosts: ranks still run 20 s after the cut" >&2
  cat "$folder/err" >&2
  exit 1
fi
grep -E "rank [0-9]+ .*(did not answer|is gone)" "$folder/err" >&2
echo "== all ranks ended $ended s after the cut" >&2
for _ in $(seq 400); do
  kill -0 $job 2>/dev/null || break
  sleep 0.1
done
kill -0 $job 2>/dev/null && { echo "two_hosts: mpirun still runs" >&2; kill -9 $job; exit 1; }
wait $job && { echo "two_hosts: the run ended well without its link" >&2; exit 1; }
echo "== mpirun ended $((SECONDS - start)) s after the cut" >&2
