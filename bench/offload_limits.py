#!/usr/bin/env python3
"""Measures runs whose experts do not fit in memory beside what the disk allows, all in one session.

    bench/offload_limits.py [--plain MODEL] [--nibble build/cpu/bin/nibble] [--tokens 48] [--shares 25,50,100] [--depth 16] PACKED [-- OPTION...]

PACKED is a folder of `nibble pack`, MODEL the checkpoint that it was made from. For each share of the experts in
memory: the rate of reads against a plain O_DIRECT read test (the faster of fio, where it is installed, and threads
that call preadv, before and after the run), and decoded tokens/s against

    bound = 1 / max(seconds a token takes with everything in memory, bytes read for a token / the read test's rate)

The process is kept inside a memory cgroup of its budget plus what it needs with no expert at all, where this machine
lets one be made; otherwise the script says so and the budget is nibble's own. OPTIONs go to nibble run.
"""
import argparse
import itertools
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

PROMPT = "The capital of France is"


def fio_test(path, seconds, depth, record_bytes=1 << 20, engines=("io_uring",)):
    """Bytes a second of fio's reads of 1 MB, in turn in records at random places, `depth` under way; 0 without fio."""
    if not shutil.which("fio"):
        return 0
    best = 0
    for engine in engines:
        done = subprocess.run(["fio", "--name=raw", f"--filename={path}", "--readonly", "--bs=1M",
                               f"--rw=randread:{max(1, record_bytes >> 20)}", "--randrepeat=0",
                               f"--iodepth={depth}", "--direct=1", f"--ioengine={engine}", "--time_based",
                               f"--runtime={round(1000 * seconds)}ms", "--output-format=json"],
                              capture_output=True, text=True)
        if done.returncode == 0:
            best = max(best, json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])
    return best


def read_test(path, record_bytes, seconds, depth=16, piece=1 << 20, places=None):
    """Bytes a second of O_DIRECT reads of whole records, `depth` pieces under way: of those at `places`, offsets in the
    file, in turn from one of them on, or at random places."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    records = (os.fstat(fd).st_size - (64 << 10)) // record_bytes
    lock, pieces, total = threading.Lock(), [], [0]
    rng = random.Random()
    turn = itertools.count(rng.randrange(len(places)) if places else 0)

    def next_piece():
        with lock:
            if not pieces:
                start = places[next(turn) % len(places)] if places else (64 << 10) + rng.randrange(records) * record_bytes
                start -= start % 4096
                pieces.extend((start + at, min(piece, record_bytes - at)) for at in range(0, record_bytes, piece))
            return pieces.pop(0)

    # Large pages, as nibble's: of small ones a read of 1 MB takes 256 segments, and few such fit in a disk's queue.
    memory = mmap.mmap(-1, depth * piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory.write(bytes(len(memory)))

    def work(number):
        buffer = memoryview(memory)[number * piece:(number + 1) * piece]
        while time.monotonic() < end:
            offset, count = next_piece()
            got = os.preadv(fd, [buffer[:count]], offset)
            with lock:
                total[0] += got
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(number,)) for number in range(depth)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return total[0] / (time.monotonic() - begin)


def raw_rate(path, record_bytes, seconds, depth):
    return max(fio_test(path, seconds / 2, depth, record_bytes, ("io_uring", "libaio")),
               read_test(path, record_bytes, seconds / 2, depth))


class MemoryCgroup:
    """A memory limit for one child, by cgroup version 1 or 2; `path` is None where that is not allowed."""

    count = 0

    def __init__(self, limit):
        self.path = None
        MemoryCgroup.count += 1
        for base, name in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
                           (Path("/sys/fs/cgroup"), "memory.max")):
            path = base / f"nibble_offload_{os.getpid()}_{MemoryCgroup.count}"
            try:
                path.mkdir()
                (path / name).write_text(str(limit))
                self.path = path
                return
            except OSError:
                if path.exists():
                    path.rmdir()

    def enter(self):
        if self.path:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def close(self):
        if self.path:
            self.path.rmdir()


def run(nibble, model, tokens, *options, limit=None, repeat=1):
    """The JSON of the run with the median decode rate."""
    group = MemoryCgroup(limit) if limit else None
    results = []
    for _ in range(repeat):
        done = subprocess.run([nibble, "run", model, "-p", PROMPT, "-n", str(tokens), "-t", "0", "--ignore-eos", "--json",
                               "--max-seq-len", "512", *options], capture_output=True, text=True,
                              preexec_fn=group.enter if group else None)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(options)}: {done.stderr}")
        results.append(json.loads(done.stdout))
    if group:
        group.close()
    results.sort(key=lambda result: result["decode_tokens_per_second"])
    return results[len(results) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--plain")
    parser.add_argument("--nibble", default="build/cpu/bin/nibble")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--shares", default="25,50,100")
    parser.add_argument("--seconds", type=float, default=4, help="of each read test")
    parser.add_argument("--depth", type=int, default=16, help="reads of 1 MB under way in the read tests")
    parser.add_argument("--overhead-runs", type=int, default=5)
    parser.add_argument("options", nargs="*", help="for nibble run, behind --")
    arguments = parser.parse_args()
    file = arguments.packed / "experts.nibble"
    options = arguments.options

    resident = run(arguments.nibble, arguments.packed, arguments.tokens, *options, repeat=3)
    experts = resident["experts"]
    record, total = experts["record_bytes"], experts["total"]
    print(f"{total} experts of {record / 1e6:.2f} MB, {total * record / 1e9:.2f} GB; all in memory: "
          f"{resident['decode_tokens_per_second']:.2f} tokens/s")
    if arguments.plain:
        ratios = []
        for _ in range(arguments.overhead_runs):
            plain = run(arguments.nibble, arguments.plain, arguments.tokens)
            packed = run(arguments.nibble, arguments.packed, arguments.tokens)
            assert plain["token_ids"] == packed["token_ids"]
            ratios.append(plain["decode_tokens_per_second"] / packed["decode_tokens_per_second"])
        print(f"overhead with everything in memory: {100 * (statistics.median(ratios) - 1):.1f} % "
              f"(median of {len(ratios)} pairs, {100 * (min(ratios) - 1):.1f} .. {100 * (max(ratios) - 1):.1f})")
    rest = sum(path.stat().st_size for path in arguments.packed.glob("*.safetensors"))
    print("share  limit GB  hit rate  raw GB/s  read GB/s  of raw  tokens/s   bound  of bound  waited  same tokens")
    for share in map(float, arguments.shares.split(",")):
        budget = int(total * record * share / 100)
        limit = budget + 2 * rest + (400 << 20)
        before = raw_rate(file, record, arguments.seconds, arguments.depth)
        result = run(arguments.nibble, arguments.packed, arguments.tokens, "--expert-memory", str(budget), *options,
                     limit=limit)
        # The same prompt with one token: what the prompt read, to be taken off.
        prompt = run(arguments.nibble, arguments.packed, 1, "--expert-memory", str(budget), *options, limit=limit)
        raw = max(before, raw_rate(file, record, arguments.seconds, arguments.depth))
        experts = {name: value - prompt["experts"][name] for name, value in result["experts"].items()}
        wanted = experts["hits"] + experts["misses"] + experts["guesses_late"]
        rate = result["experts"]["bytes_read"] / max(result["experts"]["read_seconds"], 1e-9)
        decoded = len(result["token_ids"]) - 1
        seconds = decoded / result["decode_tokens_per_second"]
        read = f"{rate / 1e9:>9.2f} {100 * rate / raw:>5.0f} %" if experts["misses"] else "        -       -"
        by_disk = experts["bytes_read"] / raw / decoded
        bound = 1 / max(by_disk, 1 / resident["decode_tokens_per_second"])
        print(f"{share:>4.0f} % {limit / 1e9:>9.2f} {100 * experts['hits'] / wanted:>8.1f} % {raw / 1e9:>9.2f} "
              f" {read} {result['decode_tokens_per_second']:>9.2f} {bound:>7.2f} "
              f"{100 * result['decode_tokens_per_second'] / bound:>7.0f} % "
              f"{experts['stall_seconds'] / seconds:>6.0%}  {result['token_ids'] == resident['token_ids']}")


if __name__ == "__main__":
    main()
