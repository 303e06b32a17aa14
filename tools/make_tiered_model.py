#!/usr/bin/env python3
"""Writes a checkpoint with many experts of a middling size, for runs whose experts do not fit in memory.

    tools/make_tiered_model.py OUT [--layers 8] [--experts 64] [--hidden 2048] [--width 1024]

One dense layer, then MoE layers in FP8 (128x128 blocks) with the demo's vocabulary and tokenizer; the weights are noise
from a seed. The defaults are 512 experts of 6.3 MB, 3.2 GB together; a token takes 8 in each layer.
"""
import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

VOCAB, HEADS, Q_RANK, KV_RANK, NOPE, ROPE, VALUE = 4096, 8, 512, 512, 128, 64, 128
DEMO = Path(__file__).resolve().parent.parent / "models/demo"


def bf16(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def main(arguments):
    rng = np.random.default_rng(11)
    hidden, width = arguments.hidden, arguments.width
    config = json.loads((DEMO / "config.json").read_text())
    config.update(hidden_size=hidden, moe_intermediate_size=width, intermediate_size=2 * width,
                  num_hidden_layers=arguments.layers + 1, num_nextn_predict_layers=0, num_attention_heads=HEADS,
                  num_key_value_heads=HEADS, n_routed_experts=arguments.experts, num_experts_per_tok=8, n_group=8,
                  topk_group=4, q_lora_rank=Q_RANK)
    # FP8 codes from -1 to 1: their bytes' upper bit is the sign, exponents stay below 8.
    noise = rng.integers(0, 256, 1 << 24, dtype=np.uint8)
    noise = ((noise & 0x80) | (noise & 0x7F) % 0x38).tobytes()
    tensors = []  # name, dtype, shape, function that makes the bytes

    def linear(module, rows, cols):
        def codes():
            start = int(rng.integers(0, 1 << 22))
            need = rows * cols
            return (noise[start:] + noise * (need // len(noise) + 1))[:need]
        scale = np.full((-(-rows // 128), -(-cols // 128)), 3 / cols ** 0.5, np.float32)
        tensors.append((f"{module}.weight", "F8_E4M3", [rows, cols], codes))
        tensors.append((f"{module}.weight_scale_inv", "F32", list(scale.shape), scale.tobytes))

    def plain(name, *shape, scale=None):
        count = int(np.prod(shape))
        tensors.append((name, "BF16", list(shape), (lambda: bf16(np.ones(count))) if scale is None else
                        (lambda: bf16(rng.standard_normal(count, np.float32) * scale))))

    def mlp(module, inner):
        linear(f"{module}.gate_proj", inner, hidden)
        linear(f"{module}.up_proj", inner, hidden)
        linear(f"{module}.down_proj", hidden, inner)
    plain("model.embed_tokens.weight", VOCAB, hidden, scale=1)
    plain("lm_head.weight", VOCAB, hidden, scale=0.05)
    plain("model.norm.weight", hidden)
    for i in range(arguments.layers + 1):
        layer = f"model.layers.{i}"
        plain(f"{layer}.input_layernorm.weight", hidden)
        plain(f"{layer}.post_attention_layernorm.weight", hidden)
        plain(f"{layer}.self_attn.q_a_layernorm.weight", Q_RANK)
        plain(f"{layer}.self_attn.kv_a_layernorm.weight", KV_RANK)
        linear(f"{layer}.self_attn.q_a_proj", Q_RANK, hidden)
        linear(f"{layer}.self_attn.q_b_proj", HEADS * (NOPE + ROPE), Q_RANK)
        linear(f"{layer}.self_attn.kv_a_proj_with_mqa", KV_RANK + ROPE, hidden)
        linear(f"{layer}.self_attn.kv_b_proj", HEADS * (NOPE + VALUE), KV_RANK)
        linear(f"{layer}.self_attn.o_proj", hidden, HEADS * VALUE)
        if i == 0:
            mlp(f"{layer}.mlp", 2 * width)
            continue
        plain(f"{layer}.mlp.gate.weight", arguments.experts, hidden, scale=0.02)
        tensors.append((f"{layer}.mlp.gate.e_score_correction_bias", "F32", [arguments.experts],
                        np.zeros(arguments.experts, np.float32).tobytes))
        for name in ["shared_experts"] + [f"experts.{e}" for e in range(arguments.experts)]:
            mlp(f"{layer}.mlp.{name}", width)

    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    tensors.sort(key=lambda entry: -sizes[entry[1]])  # keeps them aligned
    header, offset = {}, 0
    for name, dtype, shape, _ in tensors:
        size = sizes[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out = Path(arguments.out)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, out / name)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, _, make in tensors:
            data = make()
            begin, end = header[name]["data_offsets"]
            assert len(data) == end - begin, name
            file.write(data)
    print(f"{offset / 1e9:.2f} GB, {arguments.layers * arguments.experts} experts of {3 * hidden * width / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--width", type=int, default=1024)
    main(parser.parse_args())
