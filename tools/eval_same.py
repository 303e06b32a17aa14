#!/usr/bin/env python3
"""Whether two folders of runs hold the same answers: tools/eval_same.py A B

    tools/eval_table.sh; tools/eval_table.sh --serve build/cpu/bin/nibble build/eval-table-serve
    tools/eval_same.py build/eval-table build/eval-table-serve

Compares every sample of every run that both have: outcome, extracted answer, count of tokens, and the text
without the blanks around it and without the <think> marks that a server takes away. Exits 1 on a difference.
"""
import json
import sys
from pathlib import Path


def read(folder, name):
    with open(folder / name) as lines:
        return {(one["task"], one["id"], one["sample"]): one for one in map(json.loads, lines)}


def said(sample):
    return sample["reasoning"].replace("<think>", "").strip(), sample["text"].strip(), sample["completion_tokens"]


def main():
    a, b = map(Path, sys.argv[1:3])
    names = sorted(p.parent.name for p in a.glob("*/scores.jsonl") if (b / p.parent.name / "scores.jsonl").exists())
    if not names:
        sys.exit(f"no run is in both {a} and {b}")
    differ = 0
    for name in names:
        scores = [read(folder / name, "scores.jsonl") for folder in (a, b)]
        samples = [read(folder / name, "samples.jsonl") for folder in (a, b)]
        keys = scores[0].keys() | scores[1].keys()
        both = [key for key in keys if all(key in one for one in scores + samples)]
        outcomes = sum((scores[0][k]["outcome"], scores[0][k]["extracted"]) ==
                       (scores[1][k]["outcome"], scores[1][k]["extracted"]) for k in both)
        texts = sum(said(samples[0][k]) == said(samples[1][k]) for k in both)
        print(f"{name}: {len(keys)} samples, {outcomes} equal outcomes, {texts} equal texts")
        differ += 2 * len(keys) - outcomes - texts
    sys.exit(differ != 0)


if __name__ == "__main__":
    main()
