#!/usr/bin/env python3
"""How nibble eval's judgement agrees with independent graders.

    tools/eval_agreement.sh [PROGRAM]      makes build/eval-venv and runs this

1. 624 made-up pairs of a gold answer and a reply's box, of the kinds of answer that MATH-500 has, right
   ones in other forms and near misses: judged by `nibble eval score` and by Math-Verify.
2. Replies in the styles that models use for multiple choice: scored by `nibble eval score --extractor
   lm-eval` and `choice-v1`, and by the filters of lm-eval's own mmlu_pro and gpqa tasks.
3. The prompt of the lm-eval style, against the text that lm-eval's mmlu_pro makes.

What is right is known by construction. Prints counts and every disagreement; exits 1 where nibble is wrong
about a pair or its prompt differs.
"""
import argparse
import hashlib
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

PER_KIND = 26


def frac(f, form):
    sign = "-" if f < 0 else ""
    n, d = abs(f.numerator), f.denominator
    return {"frac": f"{sign}\\frac{{{n}}}{{{d}}}", "dfrac": f"{sign}\\dfrac{{{n}}}{{{d}}}",
            "slash": f"{sign}{n}/{d}", "doubled": f"{sign}\\frac{{{2 * n}}}{{{2 * d}}}"}[form]


def some_fraction(rng):
    while True:
        f = Fraction(rng.randint(-40, 40), rng.randint(2, 19))
        if f.denominator > 1:
            return f


def kinds(rng):
    """Yields (kind, gold, candidate, equal): what is equal is so by construction."""
    def integer():
        n = rng.randint(-500, 5000)
        yield str(n), rng.choice([str(n), f"{n}.0", f"${n}$", f"\\text{{{n}}}"]), True
        yield str(n), str(n + rng.choice([-1, 1, 10])), False

    def thousands():
        n = rng.randint(1000, 9_999_999)
        yield str(n), rng.choice([f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", "\\!,")]), True
        yield f"{n:,}", str(n + 1000), False

    def fraction():
        f = some_fraction(rng)
        yield frac(f, "frac"), frac(f, rng.choice(["dfrac", "slash", "doubled"])), True
        yield frac(f, "frac"), frac(-f, "frac"), False

    def decimal():
        f = Fraction(rng.randint(1, 999), rng.choice([2, 4, 5, 8, 10, 20]))
        yield frac(f, "frac") if f.denominator > 1 else str(f), f"{float(f):g}" if f < 1e5 else str(f), True
        third = Fraction(rng.choice([1, 2, 4, 5, 7]), rng.choice([3, 9]))
        yield frac(third, "frac"), f"{float(third):.3f}", False

    def radical():
        a, b = rng.randint(2, 9), rng.choice([2, 3, 5, 7])
        yield f"{a}\\sqrt{{{b}}}", rng.choice([f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{b}"]), True
        yield f"{a}\\sqrt{{{b}}}", f"{b}\\sqrt{{{a + 11}}}", False

    def pi():
        a, b = rng.randint(2, 30), rng.choice([3, 5, 7])
        yield f"\\frac{{{a}\\pi}}{{{b}}}", rng.choice([f"\\frac{{{a}}}{{{b}}}\\pi", f"{a}\\pi/{b}"]), True
        yield f"{a}\\pi", str(a), False

    def polynomial():
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        yield f"x^2 + {a + b}x + {a * b}", f"(x+{a})(x+{b})", True
        yield f"x^2 + {a + b}x + {a * b}", f"(x-{a})(x+{b})", False

    def interval():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield f"[{a},{b})", f"\\left[{a}, {b}\\right)", True
        yield f"[{a},{b})", f"({a},{b}]", False

    def union():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield (f"(-\\infty,{a}) \\cup ({b},\\infty)", f"(-\\infty, {a})\\cup({b}, \\infty)", True)
        yield (f"(-\\infty,{a}) \\cup ({b},\\infty)", f"(-\\infty,{a}] \\cup [{b},\\infty)", False)

    def point():
        a, b = rng.randint(-9, 9), some_fraction(rng)
        yield f"({a}, {frac(b, 'frac')})", f"\\left({a},{frac(b, 'dfrac')}\\right)", True
        yield f"({a}, {a + 1})", f"({a + 1}, {a})", False

    def listed():
        values = rng.sample(range(-30, 30), 3)
        other = rng.sample(values, 3)
        yield ", ".join(map(str, values)), ",".join(map(str, other)), True
        yield ", ".join(map(str, values)), ", ".join(map(str, values[:2] + [values[2] + 1])), False

    def assignment():
        f = some_fraction(rng)
        yield frac(f, "frac"), f"x = {frac(f, 'slash')}", True
        yield frac(f, "frac"), f"x = {frac(f + 1, 'frac')}", False

    def percent():
        n = rng.randint(1, 95)
        yield f"{n}\\%", str(n), True
        yield f"{n}\\%", f"{n + 3}\\%", False

    def unit():
        n = rng.randint(2, 300)
        what = rng.choice(["cm", "meters", "square units", "degrees", "miles", "hours"])
        yield f"{n}\\text{{ {what}}}", str(n), True
        yield str(n), f"{n + 5}\\text{{ {what}}}", False

    def degree():
        n = rng.randint(1, 359)
        yield f"{n}^\\circ", rng.choice([str(n), f"{n}^{{\\circ}}"]), True
        yield f"{n}^\\circ", f"{n + 1}^\\circ", False

    def base():
        n, b = rng.randint(5, 400), rng.choice([2, 3, 5, 7, 8])
        digits = ""
        while n:
            digits, n = str(n % b) + digits, n // b
        yield f"{digits}_{b}", rng.choice([f"{digits}_{{{b}}}", digits]), True
        yield f"{digits}_{b}", f"{digits}_{b + 1}", False

    def complex_number():
        a, b = rng.randint(1, 20), rng.randint(2, 20)
        yield f"{a} + {b}i", f"{b}i+{a}", True
        yield f"{a} + {b}i", f"{a} - {b}i", False

    def power():
        a, n = rng.randint(2, 12), rng.randint(3, 9)
        yield f"{a}^{{{n}}}", str(a**n), True
        yield f"{a}^{{{n}}}", str(a**n + 1), False

    def text():
        words = ["Evelyn", "Monday", "even", "odd", "ellipse", "hyperbola", "east"]
        a, b = rng.sample(words, 2)
        yield f"\\text{{{a}}}", rng.choice([a, a.lower(), f"\\text{{{a.lower()}}}"]), True
        yield f"\\text{{{a}}}", b, False

    def letter():
        a, b = rng.sample("ABCDE", 2)
        yield f"\\text{{({a})}}", rng.choice([a, f"({a})", f"\\text{{{a}}}"]), True
        yield f"\\text{{({a})}}", b, False

    def matrix():
        v = [rng.randint(-9, 9) for _ in range(2)]
        def column(kind, values):
            return f"\\begin{{{kind}}} {values[0]} \\\\ {values[1]} \\end{{{kind}}}"
        yield column("pmatrix", v), column("bmatrix", v), True
        yield column("pmatrix", v), column("pmatrix", [v[0], v[1] + 1]), False

    def plus_minus():
        a, b = rng.randint(1, 9), rng.choice([2, 3, 5])
        yield f"{a} \\pm \\sqrt{{{b}}}", f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}", True
        yield f"{a} \\pm \\sqrt{{{b}}}", f"{a}+\\sqrt{{{b}}}", False

    def equation():
        a, b = rng.randint(2, 9), rng.randint(1, 20)
        yield f"y = {a}x + {b}", rng.choice([f"y={b}+{a}x", f"{a}x - y + {b} = 0"]), True
        yield f"y = {a}x + {b}", f"y = {a}x - {b}", False

    def mixed():
        a, f = rng.randint(1, 9), Fraction(rng.randint(1, 4), 5)
        yield f"{a}{frac(f, 'frac')}", frac(a + f, "frac"), True
        yield f"{a}{frac(f, 'frac')}", frac(a * f, "frac") if (a * f).denominator > 1 else str(a * f), False

    makers = [integer, thousands, fraction, decimal, radical, pi, polynomial, interval, union, point, listed,
              assignment, percent, unit, degree, base, complex_number, power, text, letter, matrix, plus_minus,
              equation, mixed]
    for maker in makers:
        for _ in range(PER_KIND // 2):
            for gold, candidate, equal in maker():
                yield maker.__name__, gold, candidate, equal


def reply_styles(rng, letters):
    """(reply, letter that a reader takes it for, or None)"""
    x, y = rng.sample(letters, 2)
    return rng.choice([
        (f"Let's see. The answer is ({x}).", x), (f"The answer is {x}.", x), (f"so the answer is {x}", x),
        (f"We get 12.\n\nAnswer: {x}", x), (f"**Answer: {x}**", x), (f"Answer: ({x})", x),
        (f"({y}) is wrong, since it is too small. The answer is ({x}).", x), (f"\\boxed{{{x}}}", x),
        (f"First I thought the answer is ({y}). But no. The answer is ({x}).", x), (f"{x}", x),
        (f"Option {x} is correct.", x), ("I cannot tell.", None), (f"The correct answer is: {x}", x),
        (f"{x}) 42", x), (f"A reason. Another one.\nAnswer: {x}\n", x), (f"My choice:\n\n({x})", x),
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


def compare_choices(program, folder):
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter

    rng = random.Random(7)
    result = {}
    for name, letters, extractor in [("mmlu-pro", "ABCDEFGHIJ", "lm-eval"), ("mmlu-pro", "ABCDEFGHIJ", "choice-v1"),
                                     ("gpqa", "ABCD", "choice-v1")]:
        styles = [reply_styles(rng, letters) for _ in range(300)]
        replies = [reply for reply, _ in styles]
        task = {"name": "choices", "kind": "choice", "fields": {"id": "id", "options": "options", "gold": "gold"},
                "prompts": {"p": ""}}
        rows = [{"id": str(i), "gold": letter or "A", "options": list(letters)} for i, (_, letter) in enumerate(styles)]
        found = score(program, folder / f"{name}-{extractor}", task, rows, replies, extractor)
        if name == "mmlu-pro":
            regex = RegexFilter(regex_pattern=r"answer is \(?([ABCDEFGHIJ])\)?")
            theirs = [one[0] for one in regex.apply([[r] for r in replies], [{}] * len(replies))]
        else:
            regex = MultiChoiceRegexFilter(regex_pattern=r"(\([A-Z]\))", group_select=-1, ignore_case=True,
                                           ignore_punctuation=True)
            docs = [{"choices": list(letters)}] * len(replies)
            theirs = [one[0] for one in regex.apply([[r] for r in replies], docs)]
        theirs = [t.strip("()") if t != "[invalid]" else "" for t in theirs]
        same = sum(one["extracted"] == t for one, t in zip(found, theirs))
        read = [letter or "" for _, letter in styles]
        lines = sorted({(reply.replace("\n", "\\n"), one["extracted"] or "none", t or "none")
                        for reply, one, t in zip(replies, found, theirs) if one["extracted"] != t}, key=len)
        result[f"{name}, nibble {extractor}"] = {
            "replies": len(replies), "same as lm-eval": same,
            "nibble as a reader": sum(one["extracted"] == r for one, r in zip(found, read)),
            "lm-eval as a reader": sum(t == r for t, r in zip(theirs, read)), "examples": lines[:4]}
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
    program = str(Path(arguments.parse_args().program).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts, lines = compare_math(program, folder)
        print("equivalence, nibble and Math-Verify against what each pair was made to be:")
        for key, value in counts.items():
            print(f"  {key}: {value}")
        for line in lines:
            print("  " + " | ".join(line))
        print("letters:")
        for key, value in compare_choices(program, folder).items():
            examples = value.pop("examples")
            print(f"  {key}: {value}")
            for reply, ours, theirs in examples:
                print(f"    '{reply}': nibble {ours}, lm-eval {theirs}")
        same = compare_prompt(program, folder)
        print(f"the lm-eval prompt is the harness's: {same}")
    sys.exit(0 if same and counts["nibble differs"] + counts["both differ"] == 0 else 1)


if __name__ == "__main__":
    main()
