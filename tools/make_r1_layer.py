#!/usr/bin/env python3
"""Writes a checkpoint with one MoE layer of DeepSeek-R1's shape: 256 experts, 11.5 GB of FP8, a small vocabulary.

    tools/make_r1_layer.py OUT

For speed and memory of nibble quantize at real sizes; the weights are noise.
"""
import json
import random
import struct
import sys
from pathlib import Path

HIDDEN, WIDTH, EXPERTS, VOCAB, HEADS = 7168, 2048, 256, 1024, 128
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "hidden_act": "silu", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 18432,
    "moe_intermediate_size": WIDTH, "num_hidden_layers": 1, "num_nextn_predict_layers": 0,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "n_shared_experts": 1,
    "n_routed_experts": EXPERTS, "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc", "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 0,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]}}


def main(out):
    rng = random.Random(1)
    # A few MB of legal codes, begun at another place for each matrix.
    noise = rng.randbytes(1 << 24).translate(bytes(c if c & 0x7F != 0x7F else c - 1 for c in range(256)))
    entries = []  # name, dtype, shape, bytes of one repetition

    def linear(module, rows, cols):
        entries.append((f"{module}.weight", "F8_E4M3", [rows, cols]))
        entries.append((f"{module}.weight_scale_inv", "F32", [-(-rows // 128), -(-cols // 128)]))

    def plain(name, *shape):
        entries.append((name, "BF16", list(shape)))
    layer = "model.layers.0"
    plain("model.embed_tokens.weight", VOCAB, HIDDEN)
    plain("lm_head.weight", VOCAB, HIDDEN)
    plain("model.norm.weight", HIDDEN)
    plain(f"{layer}.input_layernorm.weight", HIDDEN)
    plain(f"{layer}.post_attention_layernorm.weight", HIDDEN)
    plain(f"{layer}.self_attn.q_a_layernorm.weight", 1536)
    plain(f"{layer}.self_attn.kv_a_layernorm.weight", 512)
    linear(f"{layer}.self_attn.q_a_proj", 1536, HIDDEN)
    linear(f"{layer}.self_attn.q_b_proj", HEADS * 192, 1536)
    linear(f"{layer}.self_attn.kv_a_proj_with_mqa", 576, HIDDEN)
    linear(f"{layer}.self_attn.kv_b_proj", HEADS * 256, 512)
    linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * 128)
    plain(f"{layer}.mlp.gate.weight", EXPERTS, HIDDEN)
    entries.append((f"{layer}.mlp.gate.e_score_correction_bias", "F32", [EXPERTS]))
    for module in [f"{layer}.mlp.shared_experts"] + [f"{layer}.mlp.experts.{e}" for e in range(EXPERTS)]:
        linear(f"{module}.gate_proj", WIDTH, HIDDEN)
        linear(f"{module}.up_proj", WIDTH, HIDDEN)
        linear(f"{module}.down_proj", HIDDEN, WIDTH)

    out = Path(out)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1))
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
