#!/usr/bin/env python3
"""Perplexity and KL divergence of nibble eval fidelity, computed again by NumPy: check_fidelity.py PROGRAM

1. Perplexity of a text of 900 tokens against the log-probabilities of Hugging Face transformers in FP32
   (tests/golden/demo, prompt 7).
2. KL of the bundled model and of its NVFP4 copy from transformers' own logits of three prompts: a reference
   file is written from those logits here, and what `kld` says of it is worked out again by NumPy.
3. KL of the NVFP4 copy from the bundled model on a text, over all tokens and over the likeliest 16 and 256.

Exits 1 where a number differs by more than rounding; 77 without NumPy.
"""
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit(77)

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden"
MODEL = ROOT / "models/demo"


def nibble(*arguments):
    subprocess.run([sys.argv[1], *map(str, arguments)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def golden_tensors():
    data = (GOLDEN / "demo/reference.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, one in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + at for at in one["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], np.float32).reshape(one["shape"])
    return tensors


class Reference:
    """A file of `kld-base --top-k 0`: log_probs [positions, vocab] and log_true [positions]."""

    HEADER = struct.Struct("<8s4q64s")

    def __init__(self, path):
        data = path.read_bytes()
        magic, vocab, top_k, self.context, chunks, self.tokenizer = self.HEADER.unpack_from(data)
        assert magic == b"NIBKLD01" and top_k == 0
        at = self.HEADER.size
        self.tokens = np.frombuffer(data, np.int32, self.context * chunks, at).reshape(chunks, self.context)
        records = np.frombuffer(data, np.float32, offset=at + self.tokens.nbytes).reshape(-1, vocab + 1)
        self.log_probs, self.log_true = records[:, :-1].astype(float), records[:, -1].astype(float)

    @classmethod
    def write(cls, path, tokens, log_probs, like):
        """One chunk; log_probs [rows, vocab] of all rows, of which the scored ones are kept."""
        scored = range(len(tokens) // 2, len(tokens) - 1)
        out = cls.HEADER.pack(b"NIBKLD01", log_probs.shape[1], 0, len(tokens), 1, like.tokenizer)
        out += np.asarray(tokens, np.int32).tobytes()
        for row in scored:
            out += log_probs[row].astype(np.float32).tobytes()
            out += np.float32(log_probs[row, tokens[row + 1]]).tobytes()
        path.write_bytes(out)


def worked_out(reference, log_q, true_q, top_k):
    """What `kld --json` has to say, from log-probabilities of both."""
    log_p, true_p = reference.log_probs, reference.log_true
    if top_k:
        kept = np.argsort(-log_p, axis=1, kind="stable")[:, :top_k]
        mask = np.zeros(log_p.shape, bool)
        np.put_along_axis(mask, kept, True, 1)
        def buckets(x):
            rest = np.log(np.where(mask, 0, np.exp(x)).sum(1, keepdims=True))
            return np.concatenate([np.take_along_axis(x, kept, 1), rest], 1)
        p, q = buckets(log_p), buckets(log_q)
    else:
        p, q = log_p, log_q
    kl = np.maximum((np.exp(p) * (p - q)).sum(1), 0)
    same = (log_p.argmax(1) == log_q.argmax(1)).astype(float)
    best = np.sort(np.exp(log_p), 1)[:, -2:]
    sure = best[:, 1] - best[:, 0] > 0.1
    delta = np.exp(true_q) - np.exp(true_p)
    error = lambda x: x.std(ddof=1) / np.sqrt(len(x))
    return {
        "positions": len(kl), "kl.mean": kl.mean(), "kl.se": error(kl), "kl.max": kl.max(),
        **{f"kl.{name}": np.percentile(kl, share)
           for name, share in [("median", 50), ("90", 90), ("95", 95), ("99", 99), ("99.9", 99.9)]},
        "reference.perplexity": np.exp(-true_p.mean()), "model.perplexity": np.exp(-true_q.mean()),
        "model.se": error(true_q) * np.exp(-true_q.mean()),
        "ln_ratio": (true_p - true_q).mean(), "ln_ratio_se": error(true_p - true_q),
        "same_top1": same.mean(), "same_top1_se": error(same), "num_sure": sure.sum(),
        "same_top1_sure": same[sure].mean() if sure.any() else 1,
        "delta_p.mean": delta.mean(), "delta_p.rms": np.sqrt((delta**2).mean()),
        **{f"delta_p.percentiles.{share}": np.percentile(delta, share) for share in (1, 5, 25, 50, 75, 95, 99)},
    }


def compare(said, ours):
    """The largest difference, relative to the value (or to 0.001 where it is smaller)."""
    worst = 0
    for name, value in ours.items():
        found = said
        for part in (name.split(".", 1) if name != "kl.99.9" else ["kl", "99.9"]):
            found = found[part] if part in found else found[part.split(".")[0]][part.split(".")[1]]
        difference = abs(found - value) / max(abs(value), 1e-3)
        worst = max(worst, difference)
        if difference > 2e-4:
            print(f"    {name}: nibble {found}, NumPy {value}")
    return worst


def main():
    failed = False
    tensors = golden_tensors()
    prompts = json.loads((GOLDEN / "demo/reference.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nibble("quantize", MODEL, folder / "nvfp4", "--quiet")
        models = {"fp8": MODEL, "nvfp4": folder / "nvfp4"}

        def base(model, text, context, top_k=0, chunks=0):
            out = folder / "base.kld"
            out.unlink(missing_ok=True)
            nibble("eval", "fidelity", "kld-base", "--model", model, "--text", text, "--context", context,
                   "--top-k", top_k, "--chunks", chunks, "--out", out)
            return out

        def kld(model, reference):
            nibble("eval", "fidelity", "kld", "--model", model, "--base", reference, "--json", folder / "d.json")
            return json.loads((folder / "d.json").read_text())

        def check(what, worst, extra=""):
            nonlocal failed
            failed |= worst > 2e-4
            print(f"{what}: largest relative difference {worst:.1e}{extra}")

        text = folder / "text"
        text.write_text(prompts[7]["text"])
        nibble("eval", "fidelity", "ppl", "--text", text, "--context", 900, "--json", folder / "p.json")
        said = json.loads((folder / "p.json").read_text())
        expected = np.exp(-tensors["prompt7.target_logprobs"][450:899].astype(float).mean())
        difference = abs(said["perplexity"] / expected - 1)
        failed |= difference > 2e-3 or said["tokens"] != 449
        print(f"perplexity of {said['tokens']} tokens: nibble {said['perplexity']:.5f}, transformers {expected:.5f}")

        for i in (4, 5, 6):
            tokens, logits = prompts[i]["ids"], tensors[f"prompt{i}.logits"].astype(float)
            peak = logits.max(1, keepdims=True)
            log_probs = logits - peak - np.log(np.exp(logits - peak).sum(1, keepdims=True))
            text.write_text(prompts[i]["text"])
            for label, model in models.items():
                own = Reference(base(model, text, len(tokens)))
                assert own.tokens[0].tolist() == tokens, "another tokenization"
                Reference.write(folder / "oracle.kld", tokens, log_probs, own)
                oracle = Reference(folder / "oracle.kld")
                said = kld(model, folder / "oracle.kld")
                worst = compare(said, worked_out(oracle, own.log_probs, own.log_true, 0))
                check(f"prompt {i}, transformers to {label}", worst, f"; KL {said['kl']['mean']:.6f}")
                failed |= said["kl"]["mean"] > (1e-4 if label == "fp8" else 2e-2)

        text = GOLDEN / "perplexity.txt"
        copy = Reference(base(models["nvfp4"], text, 128, chunks=8))
        original = Reference(base(MODEL, text, 128, chunks=8))
        for top_k in (0, 16, 256):
            said = kld(models["nvfp4"], base(MODEL, text, 128, top_k, chunks=8))
            worst = compare(said, worked_out(original, copy.log_probs, copy.log_true, top_k))
            check(f"text, fp8 to nvfp4, {f'top {top_k}' if top_k else 'all tokens'}", worst,
                  f"; KL {said['kl']['mean']:.6f} at {said['positions']} positions")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
