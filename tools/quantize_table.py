#!/usr/bin/env python3
"""Every scheme and algorithm of nibble quantize on one checkpoint, as a table in Markdown.

    tools/quantize_table.py NIBBLE MODEL --text HELD_OUT.txt --calibrate DATA.jsonl [--schemes a,b]
        [--algorithms a,b] [--suites FOLDER] [--out FOLDER] [--feed quantized] [--threads N]

For each it converts MODEL, and lets `nibble quantize --verify` compare the logits with MODEL's over HELD_OUT.txt, with weights
alone quantized (W4A16) and with activations too (W4A4). --suites also asks the four miniature suites of that folder which
need no sandbox (`nibble eval run`, greedy) and gives the correct answers of each; the first line is then MODEL's own.
What was measured lies in FOLDER (a temporary one by default) and is not measured again. docs/quantize.md keeps a run's output.
"""
import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

SCHEMES = "nvfp4-mlp,nvfp4-v2,nvfp4-attention,nvfp4-all"
ALGORITHMS = "max,4over6,mse,local-hessian,gptq-max,gptq-4over6,gptq-mse,gptq-local-hessian"
TASKS = {"math-500": "math-500.jsonl", "gpqa-diamond": "gpqa-diamond.csv", "mmlu-pro": "mmlu-pro.jsonl",
         "aime-2024": "aime-2024.jsonl"}


def run(command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def accuracy(a, model, out, options=()):
    """Correct answers of each task: "199 / 48 / 83 / 30"."""
    tasks = [part for name, file in TASKS.items() for part in ("--task", f"{name}={Path(a.suites) / file}")]
    run([a.nibble, "eval", "run", *tasks, "--model", model, "--out", out, "--prompt-style", "demo", "--temperature", 0,
         "--k", 1, "--max-tokens", 256, "--threads", a.threads, "--progress", "none", *options])
    correct = dict.fromkeys(TASKS, 0)
    for line in (out / "scores.jsonl").read_text().splitlines():
        score = json.loads(line)
        correct[score["task"]] += score["outcome"] == "correct"
    return " / ".join(str(count) for count in correct.values())


def measure(a, scheme, algorithm, folder):
    """One line's cells; kept in the folder."""
    cells_file = folder / "cells.json"
    cells = json.loads(cells_file.read_text()) if cells_file.exists() else {}
    checkpoint = folder / "checkpoint"
    needs_data = "gptq" in algorithm or "hessian" in algorithm
    data = ["--calibrate", a.calibrate, "--feed", a.feed] if needs_data else []
    common = ["--threads", a.threads, "--json"]
    wanted = [("logits", mode) for mode in ("", "--w4a4")]
    wanted += [("accuracy", mode) for mode in ("", "--w4a4")] if a.suites else []
    missing = [(kind, mode) for kind, mode in wanted if kind + mode not in cells]
    if missing:
        report = json.loads(run([a.nibble, "quantize", a.model, checkpoint, "--overwrite", "--scheme", scheme, "--algorithm",
                                 algorithm, *data, *common, "--quiet"]))
        cells["size"] = f"{report['output_bytes'] / 1e6:.2f} MB"
        cells["calibrated"] = "yes" if needs_data else "no"
    for kind, mode in missing:
        if kind == "accuracy":
            cells[kind + mode] = [accuracy(a, checkpoint, folder / f"eval{mode}", [mode] if mode else [])]
        else:
            result = json.loads(run([a.nibble, "quantize", "--verify", a.model, checkpoint, "--text", a.text,
                                     *([mode] if mode else []), *common]))
            cells[kind + mode] = [f"{result['mean_kl']:.6f}", f"{100 * result['same_top1']:.2f} %",
                                  f"{result['perplexity_b']:.5f}"]
        cells_file.write_text(json.dumps(cells))
    shutil.rmtree(checkpoint, ignore_errors=True)
    line = [scheme, algorithm, cells["size"], cells["calibrated"]]
    for mode in ("", "--w4a4"):
        line += cells["logits" + mode] + (cells["accuracy" + mode] if a.suites else [])
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--algorithms", default=ALGORITHMS)
    parser.add_argument("--suites")
    parser.add_argument("--feed", default="original")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out")
    a = parser.parse_args()
    temporary = None if a.out else tempfile.TemporaryDirectory()
    base = Path(a.out or temporary.name)
    heads = ["KL", "same top-1", "perplexity"] + ([" / ".join(TASKS)] if a.suites else [])
    heads = ["scheme", "algorithm", "size", "calibrated"] + [f"{head} {mode}" for mode in ("W4A16", "W4A4") for head in heads]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    if a.suites:
        correct = accuracy(a, a.model, base / "source")
        print("| source | | | | | | | " + correct + " | | | | |", flush=True)
    for scheme in a.schemes.split(","):
        for algorithm in a.algorithms.split(","):
            folder = base / f"{scheme}-{algorithm}-{a.feed}"
            folder.mkdir(parents=True, exist_ok=True)
            print("| " + " | ".join(measure(a, scheme, algorithm, folder)) + " |", flush=True)


if __name__ == "__main__":
    main()
