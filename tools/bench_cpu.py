#!/usr/bin/env python3
"""The cpu backend's operations beside the machine's limits, as the tables of docs/performance-cpu.md.

    cmake --preset cpu -DNIBBLE_BENCH=ON && ninja -C build/cpu bench_linear bench_moe bench_mla
    tools/bench_cpu.py [--build build/cpu] [--threads 1,2] [--only PART] [--seconds 0.2]

PART is one of decode, prefill, formats, moe, attention. A row's shares are of the read bandwidth and the products that
its benchmark measured in the same process just before and after it; x1 is the time against one token. Nothing else
should run meanwhile.
"""
import argparse
import json
import re
import subprocess
from pathlib import Path

SHAPES = ["2048x7168", "7168x2048", "7168x16384", "18432x7168", "7168x18432", "129280x7168"]


def run(build, name, pattern, seconds):
    """Rows of a benchmark: name, nanoseconds and counters."""
    command = [build / "bench/kernels" / name, f"--benchmark_filter={pattern}", "--benchmark_format=json",
               f"--benchmark_min_time={seconds}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)["benchmarks"] if result.stdout.strip() else []


def percent(row, name):
    return f"{100 * row[name]:.0f} %" if name in row else ""


def time_of(row):
    return row["real_time"] if row["name"].endswith("real_time") else row["cpu_time"]


def print_rows(title, columns, rows):
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def linear(build, title, formats, shapes, tokens, threads, seconds):
    rows = []
    for form in formats:
        for shape in shapes:
            for count in threads:
                pattern = f"^{form}/avx[^/]*/{shape}/threads:{count}/({'|'.join(tokens)})(/real_time)?$"
                found = run(build, "bench_linear", pattern, seconds)
                levels = {row["name"].split("/")[1] for row in found}
                best = max(levels, key=lambda level: (len(level), level), default="")
                found = [row for row in found if row["name"].split("/")[1] == best]
                for row in found:
                    n = re.search(r"threads:\d+/(\d+)", row["name"]).group(1)
                    rows.append([form, shape.replace("x", " x "), str(count), n, f"{row['GB/s']:.1f}",
                                 percent(row, "of_read"), f"{time_of(row) / time_of(found[0]):.2f}",
                                 f"{row['GOP/s']:.0f}", percent(row, "of_peak")])
    print_rows(title, ["weights", "out x in", "threads", "tokens", "GB/s", "of read", "x1", "GOP/s", "of products"], rows)


def others(build, title, name, pattern, threads, seconds, columns):
    rows = []
    for count in threads:
        for row in run(build, name, pattern.format(threads=count), seconds):
            label = row["name"].removesuffix("/real_time").split("/")
            rows.append([" ".join(label[:-1]), label[-1], f"{row['real_time']:.2f}"] +
                        [percent(row, c) if c.startswith("of_") else f"{row[c]:.1f}" for c in columns])
    print_rows(title, ["what", "tokens or context", "ms"] + columns, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/cpu"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", choices=["decode", "prefill", "formats", "moe", "attention"])
    parser.add_argument("--seconds", default="0.2")
    options = parser.parse_args()
    threads = options.threads.split(",")

    def wanted(part):
        return options.only in (None, part)

    if wanted("decode"):
        linear(options.build, "Few tokens", ["nvfp4"], SHAPES, ["1", "2", "4", "8"], threads, options.seconds)
    if wanted("prefill"):
        linear(options.build, "Many tokens", ["nvfp4"], SHAPES[:2], ["16", "64", "256", "1024"], threads, options.seconds)
    if wanted("formats"):
        linear(options.build, "Other formats", ["nvfp4_w4a8", "nvfp4_w4a4", "fp8", "bf16"], SHAPES[:1],
               ["1", "8", "256"], threads, options.seconds)
    if wanted("moe"):
        others(options.build, "One MoE layer", "bench_moe", "threads:{threads}/", threads, options.seconds,
               ["experts", "GB/s", "of_read", "GOP/s", "of_peak"])
    if wanted("attention"):
        others(options.build, "MLA", "bench_mla", "heads:128/threads:{threads}/", threads, options.seconds,
               ["GB/s", "of_read", "GFLOP/s", "of_fma"])


if __name__ == "__main__":
    main()
