#!/usr/bin/env python3
"""Decoding from a disk beside reads of the same disk, in turn, many times in one run.

    bench/offload_rounds.py [--share 11] [--rounds 12] [--tokens 6] [--seconds 1] [--depth 32] PACKED
        [--server "NAME: build/cpu/bin/nibble --io_depth 32"]...

A disk that others use changes its rate from second to second, so a read test before a run says little about the run.
Here short slices alternate: read test, a request to `nibble serve`, read test, a request, ... The read test is threads
with preadv and O_DIRECT: the records that a traced run used, in its order, in pieces of 1 MB of which --depth are under
way. (Records at random places are no limit: a virtual disk may remember what is read often.) A request decodes --tokens
from a prompt of its own, at temperature 0. For each request

    bound = tokens / max(time with all experts in memory, bytes that had to come from the file / rate)

in which the rate is the mean of the read tests right before and right after it, and the bytes are those of experts that
were used and not in memory before a read for this very use began: guesses that were wrong are no excuse. Printed are
the medians over the rounds, and the quartiles of the share of the bound. Each server lives in a memory cgroup of its
budget and what it needs without any expert; without the right to make one the script says so. A last server has all
experts in memory: its texts must be the same.
"""
import argparse
import atexit
import http.client
import json
import re
import shlex
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from offload_limits import MemoryCgroup, read_test

RECORD_ALIGNMENT = 4096


class Server:
    """One `nibble serve` on a port of its own."""

    def __init__(self, name, command, model, limit=None):
        self.name, self.rounds = name, []
        self.group = MemoryCgroup(limit) if limit else None
        self.limited = self.group is not None and self.group.path is not None
        self.process = subprocess.Popen([*command, "--port", "0", "--max_seq_len", "512", "--kv_cache_max_tokens", "1024",
                                         "--no-enable_block_reuse"],
                                        stdout=subprocess.PIPE, text=True,
                                        preexec_fn=self.group.enter if self.group else None)
        for line in self.process.stdout:
            found = re.search(r"http://[^:]+:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break
        else:
            raise SystemExit(f"{name}: the server ended: {shlex.join(command)}")
        atexit.register(self.close)
        while self.status("/health") != 200:  # it loads
            time.sleep(0.2)

    def status(self, path):
        connection = http.client.HTTPConnection("localhost", self.port, timeout=300)
        connection.request("GET", path)
        return connection.getresponse().status

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("localhost", self.port, timeout=300)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise SystemExit(f"{self.name}: {path}: {reply.status} {text}")
        return text

    def counters(self):
        found = re.findall(r"^(nibble_expert\w*)\{.*?(\w+=\"\w+\")\} (\S+)$", self.ask("GET", "/metrics"), re.MULTILINE)
        return {f"{name} {label}": float(value) for name, label, value in found}

    def decode(self, prompt, tokens):
        """Seconds, the text, and what the counters grew by."""
        before = self.counters()
        begin = time.monotonic()
        text = self.complete(prompt, tokens)
        seconds = time.monotonic() - begin
        after = self.counters()
        return seconds, text, {name: after[name] - before[name] for name in after}

    def complete(self, prompt, tokens):
        reply = json.loads(self.ask("POST", "/v1/completions", {
            "model": "m", "prompt": [prompt], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}))
        assert reply["usage"]["completion_tokens"] == tokens, reply["usage"]
        return reply["choices"][0]["text"]

    def close(self):
        self.process.terminate()
        self.process.wait()
        if self.group:
            self.group.close()


def traced_places(nibble, packed, record, experts):
    """Offsets in experts.nibble of the records that a run of its own uses, in the order in which it uses them."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.txt"
        subprocess.run([nibble, "run", str(packed), "-p", "The", "-n", "64", "-t", "1", "--seed", "5", "--ignore-eos",
                        "--max-seq-len", "512", "--routing-trace", str(trace)], check=True, capture_output=True)
        head, *lines = trace.read_text().splitlines()
    of_layer = int(head.split()[-1])
    begin = (packed / "experts.nibble").stat().st_size - experts * record
    steps = [line.split() for line in lines]
    first = min(int(step[0]) for step in steps)
    return [begin + ((int(step[0]) - first) * of_layer + int(use.split(":")[0])) * record
            for step in steps for use in step[2:]]


def uses(counts, found):
    return counts[f'nibble_expert_uses_total found="{found}"']


def guesses(counts, outcome):
    return counts[f'nibble_expert_guesses_total outcome="{outcome}"']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--share", type=float, default=11, help="of the experts in memory, in %%")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=6, help="of a request")
    parser.add_argument("--seconds", type=float, default=1, help="of a read test")
    parser.add_argument("--depth", type=int, default=32, help="reads of 1 MB under way in the read tests")
    parser.add_argument("--server", action="append", help="NAME: PROGRAM OPTION...; several are asked in turn")
    parser.add_argument("--verbose", action="store_true", help="print every round")
    arguments = parser.parse_args()
    file = arguments.packed / "experts.nibble"
    entries = arguments.server or ["nibble: build/cpu/bin/nibble"]

    def command(entry, *more):
        program, *options = shlex.split(entry.split(": ", 1)[1])
        return [program, "serve", str(arguments.packed), "--served_model_name", "m", *options, *more]

    resident = Server("all in memory", command(entries[0]), arguments.packed)
    experts = int(resident.counters()['nibble_experts tier="memory"'])
    record = file.stat().st_size // experts // RECORD_ALIGNMENT * RECORD_ALIGNMENT
    budget = int(experts * record * arguments.share / 100)
    limit = budget + 2 * sum(path.stat().st_size for path in arguments.packed.glob("*.safetensors")) + (400 << 20)
    servers = [Server(entry.split(": ", 1)[0], command(entry, "--expert_memory", f"{budget / 1e9}GB"), arguments.packed, limit)
               for entry in entries]
    size = sum(path.stat().st_size for path in arguments.packed.iterdir())
    print(f"{experts} experts of {record / 1e6:.2f} MB, {size / 1e9:.2f} GB in all; limit "
          f"{limit / 1e9:.2f} GB {'by a cgroup' if servers[0].limited else '(no cgroup: of the experts only)'}, "
          f"{size / limit:.1f} times less")

    places = traced_places(command(entries[0])[0], arguments.packed, record, experts)
    print(f"read test: {len(places)} reads of {len(set(places))} experts")

    def raw():
        return read_test(file, record, arguments.seconds, arguments.depth, places=places)

    in_memory, rates, same = [], [], True
    for server in servers:
        server.decode(2, arguments.tokens)  # fills the slots
    for number in range(arguments.rounds):
        for i in range(len(servers)):
            server = servers[(i + number) % len(servers)]
            # Each its own: what lies below the disk may remember what it read.
            prompt = 10 + 37 * (number * len(servers) + i) % 4000
            seconds, text, _ = resident.decode(prompt, arguments.tokens)
            in_memory.append(seconds)
            before = raw()
            took, said, counts = server.decode(prompt, arguments.tokens)
            same &= said == text
            after = raw()
            rates += [before, after]
            rate = (before + after) / 2
            asked = uses(counts, "memory") + uses(counts, "under_way") + uses(counts, "file")
            needed = uses(counts, "under_way") + uses(counts, "file") + guesses(counts, "in_time")
            by_disk = needed * record / rate
            server.rounds.append({
                "tokens/s": arguments.tokens / took, "bound": arguments.tokens / max(by_disk, seconds),
                "share": max(by_disk, seconds) / took, "raw": rate,
                "hits": 1 - needed / asked, "read": counts['nibble_expert_read_bytes_total engine="0"'] / took,
                "busy": counts['nibble_expert_read_seconds_total engine="0"'] / took,
                "waited": counts['nibble_expert_stall_seconds_total engine="0"'] / took,
                "begun": guesses(counts, "begun"), "right": guesses(counts, "in_time") + guesses(counts, "late")})
            if arguments.verbose:
                print(server.name, json.dumps({k: round(v, 3) for k, v in server.rounds[-1].items()}), flush=True)
    print(f"all in memory {arguments.tokens / statistics.median(in_memory):.1f} tokens/s; read test, GB/s: median "
          f"{statistics.median(rates) / 1e9:.2f}, {min(rates) / 1e9:.2f} to {max(rates) / 1e9:.2f}; "
          f"{'the same texts everywhere' if same else 'TEXTS DIFFER'}")
    print("server              hits  guesses right  waited  disk busy  read GB/s  tokens/s   bound  of bound (quartiles)")
    for server in servers:
        def middle(name):
            return statistics.median(r[name] for r in server.rounds)
        low, half, high = statistics.quantiles((r["share"] for r in server.rounds), n=4)
        begun, right = (sum(r[name] for r in server.rounds) for name in ("begun", "right"))
        print(f"{server.name:<18} {middle('hits'):>5.1%} {right / max(begun, 1):>14.0%} {middle('waited'):>7.0%} "
              f"{middle('busy'):>10.0%} {middle('read') / 1e9:>10.2f} {middle('tokens/s'):>9.2f} {middle('bound'):>7.2f} "
              f"{half:>9.0%} ({low:.0%} to {high:.0%})")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
