#!/usr/bin/env python3
"""Compares what nibble serve scores with Hugging Face transformers, token by token.

    python3 tools/check_scores.py URL [--model models/demo] [--suite models/suites/mmlu-pro.jsonl] [--limit 10]

Asks as lm-eval's local-completions does: token ids of a question and one of its options, echo, logprobs 1,
max_tokens 1; the last entry is dropped. transformers computes the same from the checkpoint dequantized to
FP32. Told for each way to ask: the largest difference of a log-probability, whether all "is greedy" flags
agree, and how many questions each side answers rightly by the likeliest option. Exits with 1 when a
difference is above --tolerance or a flag differs where the two best are further apart than that. Needs torch,
transformers and safetensors: tools/serve_clients.sh --all makes an environment with them.
"""

import argparse
import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def dequantized(source: Path, target: Path) -> None:
    """DeepSeek's FP8 blocks (128 x 128, weight_scale_inv) to FP32, without the MTP layer."""
    config = json.loads((source / "config.json").read_text())
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                tensors[name] = shard.get_tensor(name)
    mtp = f"model.layers.{config['num_hidden_layers']}."
    out = {}
    for name, weight in tensors.items():
        if name.endswith("_scale_inv") or name.startswith(mtp):
            continue
        weight = weight.float()
        scale = tensors.get(name + "_scale_inv")
        if scale is not None:
            rows, cols = weight.shape
            weight *= scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]
        out[name] = weight.contiguous()
    config.pop("quantization_config", None)
    config["torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config))
    save_file(out, target / "model.safetensors", metadata={"format": "pt"})


def served(url: str, prompts: list[list[int]]) -> list[dict]:
    body = {
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
        "seed": 1234,
    }
    request = urllib.request.Request(
        url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        choices = json.load(reply)["choices"]
    return [choice["logprobs"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def ids_of(
    tokenizer, context: str, options: list[str], bos: bool
) -> tuple[list[int], list[list[int]]]:
    """Ids of the context, and of each option behind it: the whole is cut, as lm-eval does it."""

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = plain(context)
    start = [tokenizer.bos_token_id] if bos else []
    return start + head, [plain(context + " " + option)[len(head) :] for option in options]


def questions(rows: list[dict]) -> list[tuple[str, list[str], int]]:
    return [(row["question"], row["options"], row["answer_index"]) for row in rows]


def capitals(rows: list[dict]) -> list[tuple[str, list[str], int]]:
    """What the demo knows as plain text: "The capital of Brazil is"."""
    head = "What is the capital of "
    return [
        (
            f"The capital of {row['question'][len(head) : -1]} is",
            row["options"],
            row["answer_index"],
        )
        for row in rows
        if row["question"].startswith(head)
    ]


WAYS = {
    "the question, without BOS": (questions, False),
    "the question, with BOS": (questions, True),
    "'The capital of ... is', with BOS": (capitals, True),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("url")
    parser.add_argument("--model", type=Path, default=root / "models/demo")
    parser.add_argument("--suite", type=Path, default=root / "models/suites/mmlu-pro.jsonl")
    parser.add_argument("--limit", type=int, default=10)
    # Weights are the same FP8; the server's activations and KV cache are BF16, transformers' FP32.
    parser.add_argument("--tolerance", type=float, default=0.15)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.suite.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with tempfile.TemporaryDirectory() as folder:
        dequantized(args.model, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    failed = False
    for way, (select, bos) in WAYS.items():
        worst, differing, tokens, right_here, right_there = 0.0, 0, 0, 0, 0
        sizes = []
        asked = select(rows)[: args.limit]
        for text, options, right in asked:
            context, continuations = ids_of(tokenizer, text, options, bos)
            prompts = [context + continuation for continuation in continuations]
            replies = served(args.url, prompts)
            mine, theirs = [], []
            for prompt, reply in zip(prompts, replies):
                with torch.no_grad():
                    logits = model(torch.tensor([prompt])).logits[0].double()
                logprobs = torch.log_softmax(logits, -1)
                begin = max(len(context), 1)
                total_served, total_hf, greedy_served, greedy_hf, margin = 0.0, 0.0, True, True, 1e9
                assert len(reply["token_logprobs"]) == len(prompt) + 1, (
                    "an entry for each token and one more"
                )
                for at in range(begin, len(prompt)):
                    here = reply["token_logprobs"][at]
                    there = logprobs[at - 1, prompt[at]].item()
                    worst = max(worst, abs(here - there))
                    tokens += 1
                    total_served += here
                    total_hf += there
                    greedy_served &= here == max(reply["top_logprobs"][at].values())
                    best = logprobs[at - 1].topk(2).values
                    greedy_hf &= int(logprobs[at - 1].argmax()) == prompt[at]
                    margin = min(margin, (best[0] - best[1]).item())
                differing += greedy_served != greedy_hf and margin > args.tolerance
                mine.append(total_served)
                theirs.append(total_hf)
                sizes.append(total_hf / max(1, len(prompt) - begin))
            right_here += mine.index(max(mine)) == right
            right_there += theirs.index(max(theirs)) == right
        print(
            f"{way}: {tokens} tokens, largest difference {worst:.4f} (mean log-probability "
            f"{sum(sizes) / len(sizes):.1f}), greedy flags differ {differing} times; right: "
            f"nibble serve {right_here}, transformers {right_there} of {len(asked)}"
        )
        failed |= worst > args.tolerance or differing > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
