#!/usr/bin/env python3
"""How nibble eval's judgement agrees with independent graders.

    tools/eval_agreement.sh [PROGRAM [RUN]]    makes build/eval-venv and runs this

1. 1,612 made-up pairs of a gold answer and a reply's box, of the kinds of answer that MATH-500 has, right
   ones in other forms and near misses: judged by `nibble eval score` and by Math-Verify.
2. Replies in the styles that models use for multiple choice: scored by `nibble eval score --extractor
   lm-eval` and `choice-v1`, and by the filters of lm-eval's own mmlu_pro and gpqa tasks.
3. With RUN, the folder of a run of models/suites (tools/eval_table.sh makes some): its own answers to the
   MMLU-Pro and GPQA questions, by the same filters.
4. The prompt of the lm-eval style, against the text that lm-eval's mmlu_pro makes.

What is right is known by construction. Prints counts and every disagreement; exits 1 where nibble is wrong
about a pair or its prompt differs.
"""
import argparse
import hashlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from eval_pairs import kinds


def reply_styles(rng, letters):
    """(style, reply, letter that a reader takes it for, or None)"""
    x, y = rng.sample(letters, 2)
    return rng.choice([
        ("The answer is (X).", f"Let's see. The answer is ({x}).", x), ("The answer is X.", f"The answer is {x}.", x),
        ("so the answer is X", f"so the answer is {x}", x), ("Answer: X", f"We get 12.\n\nAnswer: {x}", x),
        ("**Answer: X**", f"**Answer: {x}**", x), ("Answer: (X)", f"Answer: ({x})", x),
        ("(Y) is wrong ... (X)", f"({y}) is wrong, since it is too small. The answer is ({x}).", x),
        ("\\boxed{X}", f"\\boxed{{{x}}}", x),
        ("answer is (Y). But no ... (X)", f"First I thought the answer is ({y}). But no. The answer is ({x}).", x),
        ("X", f"{x}", x), ("Option X is correct.", f"Option {x} is correct.", x),
        ("I cannot tell.", "I cannot tell.", None), ("The correct answer is: X", f"The correct answer is: {x}", x),
        ("X) 42", f"{x}) 42", x), ("reasons, then Answer: X", f"A reason. Another one.\nAnswer: {x}\n", x),
        ("My choice: (X)", f"My choice:\n\n({x})", x),
    ])


def score(program, folder, task, rows, replies, extractor=None):
    """nibble's outcome of each reply: a run's folder, made by hand, scored by the program."""
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    manifest = {"schema": "nibble.eval.manifest/1", "identity": {
        "target": {"target": "made"}, "prompt_style": "p", "seed": 0, "limit": 0, "subset_seed": None, "only": [],
        "after": "", "before": "", "allow_count": True, "shuffle": "none", "shuffle_seed": 0, "temperature": 0,
        "top_p": 1, "max_tokens": 1,
        "tasks": [{"name": task["name"], "task": task, "samples": 1,
                   "files": [{"path": str(data), "sha256": digest}]}]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with open(folder / "samples.jsonl", "w") as out:
        for row, reply in zip(rows, replies):
            out.write(json.dumps({
                "task": task["name"], "id": row["id"], "sample": 0, "seed": 0, "cluster": row["id"],
                "prompt_sha256": "", "permutation": "", "reasoning": "", "text": reply, "unclosed": False,
                "finish_reason": "stop", "prompt_tokens": 0, "completion_tokens": 0, "ttft_ms": 0,
                "total_ms": 0, "retries": 0, "error": None}) + "\n")
    command = [program, "eval", "score", str(folder), "--progress", "none"]
    if extractor:
        command += ["--extractor", extractor]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(folder / "scores.jsonl") as lines:
        return [json.loads(line) for line in lines]


def compare_math(program, folder):
    from math_verify import parse, verify

    pairs = list(kinds(random.Random(20251122)))
    task = {"name": "pairs", "kind": "math", "fields": {"id": "id", "gold": "gold"}, "prompts": {"p": ""}}
    rows = [{"id": str(i), "gold": gold} for i, (_, gold, _, _) in enumerate(pairs)]
    found = score(program, folder / "math", task, rows, [f"So \\boxed{{{c}}}." for _, _, c, _ in pairs])
    counts = {"pairs": len(pairs), "both right": 0, "nibble differs": 0, "math-verify differs": 0, "both differ": 0}
    lines = []
    for (kind, gold, candidate, equal), one in zip(pairs, found):
        ours = one["outcome"] == "correct"
        theirs = bool(verify(parse(f"\\boxed{{{gold}}}"), parse(f"So \\boxed{{{candidate}}}.")))
        key = {(True, True): "both right", (False, True): "nibble differs", (True, False): "math-verify differs",
               (False, False): "both differ"}[ours == equal, theirs == equal]
        counts[key] += 1
        if key != "both right":
            lines.append((kind, key, gold, candidate, "equal" if equal else "unequal"))
    return counts, lines


def harness_filters():
    """lm-eval's own filters of mmlu_pro and gpqa (flexible-extract), made from its task files."""
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter

    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    pro = (tasks / "mmlu_pro/_default_template_yaml").read_text()
    gpqa = (tasks / "gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml").read_text()
    pattern = re.search(r"^ +regex_pattern: '(.*)'$", pro, re.MULTILINE).group(1)
    flexible = re.search(r'group_select: -1\n +ignore_case: true\n +ignore_punctuation: true\n +regex_pattern: (".*")',
                         gpqa).group(1)
    return (RegexFilter(regex_pattern=pattern),
            MultiChoiceRegexFilter(regex_pattern=json.loads(flexible), group_select=-1, ignore_case=True,
                                   ignore_punctuation=True))


def apply_filter(one, replies, choices):
    """The letter of each reply, without its brackets; empty for none."""
    found = [r[0] for r in one.apply([[reply] for reply in replies], [{"choices": c} for c in choices])]
    return ["" if f == "[invalid]" else f.strip("()") for f in found]


def compare_choices(program, folder):
    rng = random.Random(7)
    pro, gpqa = harness_filters()
    result = {}
    for name, letters, extractor, harness in [("mmlu-pro", "ABCDEFGHIJ", "lm-eval", pro),
                                              ("mmlu-pro", "ABCDEFGHIJ", "choice-v1", pro),
                                              ("gpqa", "ABCD", "choice-v1", gpqa)]:
        styles = [reply_styles(rng, letters) for _ in range(300)]
        replies = [reply for _, reply, _ in styles]
        # Options that are words, as in the data sets; lm-eval looks for their text too.
        options = [[f"option number {1 + i}" for i in range(len(letters))]] * len(replies)
        task = {"name": "choices", "kind": "choice", "fields": {"id": "id", "options": "options", "gold": "gold"},
                "prompts": {"p": ""}}
        rows = [{"id": str(i), "gold": letter or "A", "options": options[i]}
                for i, (_, _, letter) in enumerate(styles)]
        ours = [one["extracted"] for one in score(program, folder / f"{name}-{extractor}", task, rows, replies,
                                                  extractor)]
        theirs = apply_filter(harness, replies, options)
        read = [letter or "" for _, _, letter in styles]
        lines = {}
        for (style, _, letter), a, b in zip(styles, ours, theirs):
            if a != b:
                right = {(True, False): "nibble", (False, True): "lm-eval"}.get(
                    (a == (letter or ""), b == (letter or "")), "neither")
                key = (style, "none" if not b else "another letter", right)
                lines[key] = lines.get(key, 0) + 1
        result[f"{name}, nibble {extractor}"] = ({
            "replies": len(replies), "same as lm-eval": sum(a == b for a, b in zip(ours, theirs)),
            "nibble as a reader": sum(a == r for a, r in zip(ours, read)),
            "lm-eval as a reader": sum(b == r for b, r in zip(theirs, read))}, lines)
    return result


def compare_run(run):
    """A finished run's own answers, scored by nibble and by lm-eval's filter for letters."""
    import csv

    suites = Path(__file__).resolve().parent.parent / "models/suites"
    with open(suites / "mmlu-pro.jsonl") as lines:
        options = {str(row["question_id"]): row["options"] for row in map(json.loads, lines)}
    with open(suites / "gpqa-diamond.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            options[row["Record ID"]] = [row["Correct Answer"]] + [row[f"Incorrect Answer {i}"] for i in (1, 2, 3)]
    with open(run / "scores.jsonl") as lines:
        scores = {(one["task"], one["id"], one["sample"]): one for one in map(json.loads, lines)}
    _, harness = harness_filters()
    result = {}
    for task in ("mmlu-pro", "gpqa-diamond"):
        with open(run / "samples.jsonl") as lines:
            samples = [one for one in map(json.loads, lines) if one["task"] == task]
        choices = []
        for one in samples:
            drawn = [int(i) for i in one["permutation"]]
            choices.append([options[one["id"]][i] for i in drawn] if drawn else options[one["id"]])
        theirs = apply_filter(harness, [one["text"] for one in samples], choices)
        mine = [scores[task, one["id"], one["sample"]] for one in samples]
        # A reply that names one letter and writes out another letter's option: lm-eval goes by the text.
        torn, different = 0, []
        for sample, m, t, shown in zip(samples, mine, theirs, choices):
            if m["extracted"] == t:
                continue
            if t and sample["text"].endswith(f"Answer: {m['extracted']}") and shown[ord(t) - 65] in sample["text"]:
                torn += 1
            else:
                different.append((sample["text"][-60:], m["extracted"], t, m["gold"]))
        result[task] = ({"answers": len(samples), "same letter": len(samples) - len(different) - torn,
                         "letter and text of the reply differ": torn,
                         "nibble's score": sum(m["outcome"] == "correct" for m in mine),
                         "lm-eval's score": sum(m["gold"] == t for m, t in zip(mine, theirs))}, different)
    return result


def compare_prompt(program, folder):
    """The lm-eval style's text, through --log-prompts, against the harness's own functions."""
    spec = importlib.util.find_spec("lm_eval")
    path = Path(spec.origin).parent / "tasks/mmlu_pro/utils.py"
    module_spec = importlib.util.spec_from_file_location("mmlu_pro_utils", path)
    utils = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(utils)
    row = {"question_id": 1, "question": "Which one?", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1,
           "cot_content": "A: Let's think step by step. It is y. The answer is (B).", "category": "law", "src": "s"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    out = folder / "prompt"
    subprocess.run([program, "eval", "run", "--task", f"mmlu-pro={folder}/test.jsonl", "--examples",
                    f"{folder}/test.jsonl", "--prompt-style", "lm-eval", "--allow-count", "--log-prompts", "--k", "1",
                    "--max-tokens", "1", "--out", str(out), "--progress", "none"], check=False, stdout=subprocess.DEVNULL)
    ours = json.loads((out / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    theirs = ("The following are multiple choice questions (with answers) about law. Think step by step and then "
              "finish your answer with \"the answer is (X)\" where X is the correct letter choice.\n"
              + utils.format_cot_example(row, True) + utils.format_cot_example(row, False))
    return ours == theirs


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("program")
    arguments.add_argument("run", nargs="?", help="folder of a run of models/suites")
    given = arguments.parse_args()
    program = str(Path(given.program).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts, lines = compare_math(program, folder)
        print("equivalence, nibble and Math-Verify against what each pair was made to be:")
        for key, value in counts.items():
            print(f"  {key}: {value}")
        for line in lines:
            print("  " + " | ".join(line))
        print("letters:")
        for key, (value, lines) in compare_choices(program, folder).items():
            print(f"  {key}: {value}")
            for (style, theirs, right), count in sorted(lines.items()):
                print(f"    {count:3} x '{style}': lm-eval finds {theirs}; right: {right}")
        if given.run:
            print("answers of the run:")
            for key, (value, different) in compare_run(Path(given.run)).items():
                print(f"  {key}: {value}")
                for text, ours, theirs, gold in different:
                    print(f"    {text!r}: nibble {ours or 'none'}, lm-eval {theirs or 'none'}, gold {gold}")
        same = compare_prompt(program, folder)
        print(f"the lm-eval prompt is the harness's: {same}")
    sys.exit(0 if same and counts["nibble differs"] + counts["both differ"] == 0 else 1)


if __name__ == "__main__":
    main()
