#!/usr/bin/env python3
"""nibble and llama.cpp in turns on one machine: tokens per second of prefill and decode on the same weights.

    tools/make_r1_slice.py slice 1 --dense 1 --experts 32 --no-mtp --all-nvfp4
    build/llama/bin/python tools/make_gguf.py slice slice.gguf
    build/llama/bin/python tools/compare_llama.py slice --gguf slice.gguf --threads 1,2

Each round asks every program for every measurement with every number of threads, one at a time, on the first --cpus;
the table has each one's best and all rounds. prefill:N is one prompt of N tokens with logits for its last one, in a
process whose memory was used before; decode:B is a token a step for B sequences, --steps steps behind prompts of 8
tokens, which are not counted.
What fails is told and left out, and then the exit status is 1. llama.cpp stays loaded (tools/bench_llama.py --commands), nibble starts each time and maps --weight-cache.
Programs: llama, nibble, nibble-int8 (--cpu-int8-activations), nibble-exact (--cpu-exact-activations).
"""
import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PROGRAMS = {"llama": [], "nibble": [], "nibble-int8": ["--cpu-int8-activations"],
            "nibble-exact": ["--cpu-exact-activations"]}
KINDS = ("prefill", "decode")


class ProgramFailed(Exception):
    pass


class Llama:
    def __init__(self, options):
        if options.gguf is None:
            raise SystemExit("llama needs --gguf")
        command = [sys.executable, TOOLS / "bench_llama.py", options.gguf, "--commands", "--steps", str(options.steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = False

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ProgramFailed(f"bench_llama.py ended with {self.process.wait()}")
        return line.strip()

    def measure(self, cpus, kind, n):
        if self.process.poll() is not None:
            raise ProgramFailed(f"bench_llama.py ended with {self.process.returncode}")
        if not self.ready:
            self.ready = self.answer() == "ready"
        print(",".join(map(str, cpus)), kind, n, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


class Nibble:
    def __init__(self, options, *extra):
        self.options, self.extra = options, extra

    def measure(self, cpus, kind, n):
        lengths = [n, 1] if kind == "prefill" else [8, self.options.steps + 1]
        requests, sizes = (1, "1,1") if kind == "prefill" else (n, n)
        command = [self.options.nibble.absolute(), "bench", "offline", self.options.checkpoint, "--json", "--num-requests", requests,
                   "--input-len", lengths[0], "--output-len", lengths[1], "--batch-sizes", sizes,
                   "--threads", len(cpus), *self.extra]
        if self.options.weight_cache:
            command += ["--weight-cache", self.options.weight_cache]
        result = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE,
                                preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        if result.returncode != 0:
            raise ProgramFailed(f"nibble ended with {result.returncode}")
        row = json.loads(result.stdout)["rows"][-1]
        return n / row["seconds"] if kind == "prefill" else row["decode_tokens_per_second"]

    def close(self):
        pass


def start(name, options):
    if name == "llama":
        return Llama(options)
    return Nibble(options, *PROGRAMS[name])


def table(results, programs, measures, threads):
    print("\n| threads | | " + " | ".join(f"{kind} {n}" for kind, n in measures) + " |")
    print("|---|---|" + "---|" * len(measures))
    for count in threads:
        best = {}
        for program in programs:
            cells = []
            for measure in measures:
                rates = results.get((program, count, measure), [])
                best[program, measure] = max(rates, default=math.nan)
                cells.append(f"{max(rates):.1f} ({', '.join(f'{rate:.1f}' for rate in rates)})" if rates else "failed")
            print(f"| {count} | {program} | " + " | ".join(cells) + " |")
        for program in programs:
            if program != "llama" and "llama" in programs:
                ratios = [f"{best[program, m] / best['llama', m]:.2f}x" for m in measures]
                print(f"| {count} | {program} / llama | " + " | ".join(ratios) + " |")


def parse_measures(text):
    measures = []
    for measure in text.split(","):
        kind, _, n = measure.partition(":")
        if kind not in KINDS or not n.isdecimal() or int(n) < 1:
            raise argparse.ArgumentTypeError(f"{measure!r} is neither prefill:TOKENS nor decode:SEQUENCES")
        measures.append((kind, int(n)))
    return measures


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory for nibble")
    parser.add_argument("--gguf", type=Path, help="file for llama.cpp")
    parser.add_argument("--nibble", type=Path, default=TOOLS.parent / "build/cpu/bin/nibble", help="program [%(default)s]")
    parser.add_argument("--programs", default="llama,nibble", help=f"of {', '.join(PROGRAMS)} [%(default)s]")
    parser.add_argument("--threads", default="1,2", help="[%(default)s]")
    parser.add_argument("--measures", default="prefill:512,decode:1,decode:8,decode:32", type=parse_measures, help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=32, help="of a decode measurement [%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--cpus", help="processors to use, as many as the most threads [those of the affinity mask]")
    parser.add_argument("--weight-cache", type=Path, help="directory where nibble keeps its packed weights")
    parser.add_argument("--out", type=Path, help="file for every measurement, one JSON object a line")
    return parser.parse_args()


def main():
    options = parse_options()
    programs = options.programs.split(",")
    unknown = [name for name in programs if name not in PROGRAMS]
    if unknown:
        raise SystemExit(f"--programs {', '.join(unknown)}: there are {', '.join(PROGRAMS)}")
    threads = [int(count) for count in options.threads.split(",")]
    measures = options.measures
    cpus = sorted(os.sched_getaffinity(0))
    if options.cpus:
        cpus = [int(cpu) for cpu in options.cpus.split(",")]
    if max(threads) > len(cpus):
        raise SystemExit(f"--threads {max(threads)} needs as many processors, there are {len(cpus)}")
    runners = {name: start(name, options) for name in programs}
    results, failed = {}, False
    out = open(options.out, "a") if options.out else None
    for number in range(options.rounds):
        for count in threads:
            for kind, n in measures:
                for name, runner in runners.items():
                    begin = time.time()
                    try:
                        rate = runner.measure(cpus[:count], kind, n)
                    except ProgramFailed as error:
                        print(f"{name}, {kind} {n} on {count} threads: {error}", file=sys.stderr, flush=True)
                        failed = True
                        continue
                    results.setdefault((name, count, (kind, n)), []).append(rate)
                    line = {"round": number, "threads": count, "measure": f"{kind}:{n}", "program": name,
                            "tokens_per_second": round(rate, 3), "seconds": round(time.time() - begin, 2)}
                    print(json.dumps(line), file=sys.stderr, flush=True)
                    if out:
                        print(json.dumps(line), file=out, flush=True)
    for runner in runners.values():
        runner.close()
    table(results, programs, measures, threads)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
