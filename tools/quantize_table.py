#!/usr/bin/env python3
"""Every scheme and algorithm of nibble quantize on one checkpoint, as a table in Markdown.

    tools/quantize_table.py NIBBLE MODEL --text HELD_OUT.txt --calibrate DATA.jsonl [--schemes a,b]
        [--algorithms a,b] [--accuracy COMMAND]

For each it converts MODEL into a temporary folder, and lets `nibble quantize --verify` compare the logits with
MODEL's over HELD_OUT.txt, with weights alone quantized (W4A16) and with activations too (W4A4). --accuracy
names a command that gets a checkpoint's folder as its last argument and prints one number. docs/quantize.md keeps the
output of a run.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

SCHEMES = "nvfp4-mlp,nvfp4-v2,nvfp4-attention,nvfp4-all"
ALGORITHMS = "max,4over6,mse,local-hessian,gptq-max,gptq-4over6,gptq-mse,gptq-local-hessian"


def run(command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--algorithms", default=ALGORITHMS)
    parser.add_argument("--accuracy")
    a = parser.parse_args()
    print("| scheme | algorithm | size | calibrated | KL W4A16 | same top-1 | perplexity | KL W4A4 | same top-1 | "
          "perplexity |" + (" accuracy |" if a.accuracy else ""))
    print("|---|---|---|---|---|---|---|---|---|---|" + ("---|" if a.accuracy else ""), flush=True)
    for scheme in a.schemes.split(","):
        for algorithm in a.algorithms.split(","):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                needs_data = "gptq" in algorithm or "hessian" in algorithm
                data = ["--calibrate", a.calibrate] if needs_data else []
                report = json.loads(run([a.nibble, "quantize", a.model, out, "--scheme", scheme, "--algorithm",
                                         algorithm, *data, "--json", "--quiet"]))
                cells = [scheme, algorithm, f"{report['output_bytes'] / 1e6:.2f} MB", "yes" if needs_data else "no"]
                for activations in ([], ["--w4a4"]):
                    result = json.loads(run([a.nibble, "quantize", "--verify", a.model, out, "--text", a.text,
                                             *activations, "--json"]))
                    cells += [f"{result['mean_kl']:.6f}", f"{100 * result['same_top1']:.2f} %",
                              f"{result['perplexity_b']:.5f}"]
                if a.accuracy:
                    cells.append(run([*a.accuracy.split(), out]).strip())
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
