#!/usr/bin/env python3
"""Writes a checkpoint with a few layers of DeepSeek-R1's shape in FP8, with a small vocabulary.

    tools/make_r1_layer.py OUT                                      one MoE layer, 256 experts, 11.5 GB
    tools/make_r1_layer.py OUT --dense 1 --moe 1 --experts 32       a slice to run, 2.2 GB

For the speed and memory of nibble quantize and of the engine at real sizes; the weights are noise from a
seed, written as they are made.
"""
import argparse
import json
import random
import struct
import sys
from pathlib import Path

HIDDEN, DENSE, WIDTH, VOCAB, HEADS = 7168, 18432, 2048, 1024, 128
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "hidden_act": "silu", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": DENSE,
    "moe_intermediate_size": WIDTH, "num_nextn_predict_layers": 0,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc", "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "moe_layer_freq": 1,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]}}


HIGH_BYTES = bytes(0x3C | (byte & 0x80) for byte in range(256))  # of BF16 +-1/64


def main(out, dense, moe, experts, seed):
    config = CONFIG | {"num_hidden_layers": dense + moe, "first_k_dense_replace": dense, "n_routed_experts": experts}
    rng = random.Random(seed)
    # A few MB of legal codes, begun at another place for each matrix.
    noise = rng.randbytes(1 << 24).translate(bytes(c if c & 0x7F != 0x7F else c - 1 for c in range(256)))
    entries = []  # name, dtype, shape, bytes of one repetition

    def linear(module, rows, cols):
        entries.append((f"{module}.weight", "F8_E4M3", [rows, cols]))
        entries.append((f"{module}.weight_scale_inv", "F32", [-(-rows // 128), -(-cols // 128)]))

    def plain(name, *shape):
        entries.append((name, "BF16", list(shape)))
    plain("model.embed_tokens.weight", VOCAB, HIDDEN)
    plain("lm_head.weight", VOCAB, HIDDEN)
    plain("model.norm.weight", HIDDEN)
    for index in range(dense + moe):
        layer = f"model.layers.{index}"
        plain(f"{layer}.input_layernorm.weight", HIDDEN)
        plain(f"{layer}.post_attention_layernorm.weight", HIDDEN)
        plain(f"{layer}.self_attn.q_a_layernorm.weight", 1536)
        plain(f"{layer}.self_attn.kv_a_layernorm.weight", 512)
        linear(f"{layer}.self_attn.q_a_proj", 1536, HIDDEN)
        linear(f"{layer}.self_attn.q_b_proj", HEADS * 192, 1536)
        linear(f"{layer}.self_attn.kv_a_proj_with_mqa", 576, HIDDEN)
        linear(f"{layer}.self_attn.kv_b_proj", HEADS * 256, 512)
        linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * 128)
        if index < dense:
            linear(f"{layer}.mlp.gate_proj", DENSE, HIDDEN)
            linear(f"{layer}.mlp.up_proj", DENSE, HIDDEN)
            linear(f"{layer}.mlp.down_proj", HIDDEN, DENSE)
            continue
        plain(f"{layer}.mlp.gate.weight", experts, HIDDEN)
        entries.append((f"{layer}.mlp.gate.e_score_correction_bias", "F32", [experts]))
        for module in [f"{layer}.mlp.shared_experts"] + [f"{layer}.mlp.experts.{e}" for e in range(experts)]:
            linear(f"{module}.gate_proj", WIDTH, HIDDEN)
            linear(f"{module}.up_proj", WIDTH, HIDDEN)
            linear(f"{module}.down_proj", HIDDEN, WIDTH)

    out = Path(out)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    entries.sort(key=lambda entry: -{"F32": 4, "BF16": 2, "F8_E4M3": 1}[entry[1]])  # keeps them aligned
    header, offset = {}, 0
    for name, dtype, shape in entries:
        size = {"F32": 4, "BF16": 2, "F8_E4M3": 1}[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in entries:
            begin, end = header[name]["data_offsets"]
            left = end - begin
            if dtype == "BF16" and len(shape) == 2:  # embeddings, router: +-1/64, so that tokens and experts differ
                while left > 0:
                    start = rng.randrange(1 << 23)
                    signs = noise[start:start + min(left // 2, 1 << 23)].translate(HIGH_BYTES)
                    piece = bytearray(b"\x80" * (2 * len(signs)))
                    piece[1::2] = signs
                    file.write(piece)
                    left -= len(piece)
                continue
            if dtype != "F8_E4M3":
                unit = struct.pack("<f", 1e-4) if dtype == "F32" else b"\x80\x3c"
                file.write(unit * (left // len(unit)))
                continue
            start = rng.randrange(1 << 23)
            while left > 0:
                piece = noise[start:start + left]
                file.write(piece)
                left -= len(piece)
    print(f"{offset / 1e9:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--dense", type=int, default=0, help="dense layers, before the others [0]")
    parser.add_argument("--moe", type=int, default=1, help="mixture-of-experts layers [1]")
    parser.add_argument("--experts", type=int, default=256, help="routed experts of a layer, a multiple of 8 [256]")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.dense < 0 or options.moe < 0 or options.dense + options.moe < 1:
        sys.exit(f"--dense {options.dense} --moe {options.moe}: expected one layer or more")
    if options.experts < 16 or options.experts % 8 != 0:
        sys.exit(f"--experts {options.experts}: expected a multiple of 8, 16 or more (8 groups of 2 or more)")
    main(**vars(options))
