#!/usr/bin/env python3
"""Writes a checkpoint with a few MoE layers of DeepSeek-R1's widths in NVFP4 (attention in BF16), and its MTP layer.

    tools/make_r1_slice.py OUT [LAYERS]        6.8 GB a layer, and 3.9 GB for vocabulary and projections
    tools/make_r1_slice.py OUT 1 --dense 1 --experts 32 --no-mtp --all-nvfp4        3.7 GB

For the time to load real sizes and for steps of real widths; the weights are noise, the tokenizer is models/demo's.
"""
import argparse
import json
import os
import random
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HIDDEN, WIDTH, DENSE_WIDTH, VOCAB, HEADS = 7168, 2048, 18432, 129280, 128
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
NOISE = 1 << 24


def config(options):
    root = Path(__file__).resolve().parent.parent
    demo = json.loads((root / "models/demo/config.json").read_text())
    demo.pop("quantization_config")
    demo.update(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=DENSE_WIDTH, moe_intermediate_size=WIDTH,
        num_hidden_layers=options.dense + options.layers, num_nextn_predict_layers=int(options.mtp), num_attention_heads=HEADS, num_key_value_heads=HEADS,
        n_routed_experts=options.experts, num_experts_per_tok=8, n_group=8, topk_group=4, kv_lora_rank=512, q_lora_rank=1536,
        first_k_dense_replace=options.dense, max_position_embeddings=163840,
        rope_scaling=dict(demo["rope_scaling"], factor=40, original_max_position_embeddings=4096))
    return demo


def tensors(options):
    """Name, dtype and shape of every tensor."""
    entries = []
    layers = options.dense + options.layers

    def plain(name, *shape, dtype="BF16"):
        entries.append((name, dtype, list(shape)))

    def nvfp4(module, rows, cols):
        plain(f"{module}.weight", rows, cols // 2, dtype="U8")
        plain(f"{module}.weight_scale", rows, cols // 16, dtype="F8_E4M3")
        plain(f"{module}.weight_scale_2", dtype="F32")
        plain(f"{module}.input_scale", dtype="F32")

    def linear(module, rows, cols):
        if options.all_nvfp4:
            nvfp4(module, rows, cols)
        else:
            plain(f"{module}.weight", rows, cols)

    plain("model.embed_tokens.weight", VOCAB, HIDDEN)
    linear("lm_head", VOCAB, HIDDEN)
    plain("model.norm.weight", HIDDEN)
    for index in range(layers + options.mtp):
        layer = f"model.layers.{index}"
        for name, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN),
                           ("self_attn.q_a_layernorm", 1536), ("self_attn.kv_a_layernorm", 512)):
            plain(f"{layer}.{name}.weight", size)
        for name, rows, cols in (("q_a_proj", 1536, HIDDEN), ("q_b_proj", HEADS * 192, 1536),
                                 ("kv_a_proj_with_mqa", 576, HIDDEN), ("o_proj", HIDDEN, HEADS * 128)):
            linear(f"{layer}.self_attn.{name}", rows, cols)
        plain(f"{layer}.self_attn.kv_b_proj.weight", HEADS * 256, 512)
        modules = [(f"{layer}.mlp", DENSE_WIDTH)]
        if index >= options.dense:
            plain(f"{layer}.mlp.gate.weight", options.experts, HIDDEN)
            plain(f"{layer}.mlp.gate.e_score_correction_bias", options.experts, dtype="F32")
            modules = [(f"{layer}.mlp.shared_experts", WIDTH)]
            modules += [(f"{layer}.mlp.experts.{e}", WIDTH) for e in range(options.experts)]
        for module, width in modules:
            nvfp4(f"{module}.gate_proj", width, HIDDEN)
            nvfp4(f"{module}.up_proj", width, HIDDEN)
            nvfp4(f"{module}.down_proj", HIDDEN, width)
    if not options.mtp:
        return entries
    mtp = f"model.layers.{layers}"
    for name in ("enorm", "hnorm", "shared_head.norm"):
        plain(f"{mtp}.{name}.weight", HIDDEN)
    plain(f"{mtp}.eh_proj.weight", HIDDEN, 2 * HIDDEN)
    return entries


def noise(rng):
    """For each dtype many bytes of legal values: BF16 of about 0.02, block scales around 1, any E2M1 codes."""
    raw = rng.randbytes(NOISE)
    scales = raw.translate(bytes(0x34 + c % 8 for c in range(256)))
    halves = bytearray(raw)
    halves[1::2] = raw[1::2].translate(bytes((c & 0x80) | 0x3C for c in range(256)))
    halves[0::2] = raw[0::2].translate(bytes(c & 0xBF for c in range(256)))  # up to 0.0156
    return {"U8": raw, "F8_E4M3": scales, "BF16": bytes(halves)}


def main(options):
    rng = random.Random(1)
    source = noise(rng)
    out = options.out
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config(options), indent=1))
    excluded = ["lm_head", "*self_attn*"] if not options.all_nvfp4 else ["*kv_b_proj"]
    excluded.append(f"model.layers.{options.dense + options.layers}.eh_proj")
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16,
                    "exclude_modules": excluded}
    (out / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "nibble", "version": "0.1.0"}, "quantization": quantization}))
    demo = Path(__file__).resolve().parent.parent / "models/demo"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, out / name)

    entries = sorted(tensors(options), key=lambda entry: -BYTES[entry[1]])  # keeps them aligned
    header, offset = {}, 0
    for name, dtype, shape in entries:
        size = BYTES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(start + offset)
        places = [rng.randrange(NOISE // 2) // 64 * 64 for _ in entries]

        def write(index):
            name, dtype, _ = entries[index]
            begin, end = header[name]["data_offsets"]
            if dtype == "F32":
                value = 0.0 if name.endswith("bias") else 0.004 if name.endswith("scale_2") else 0.001
                os.pwrite(file.fileno(), struct.pack("<f", value) * ((end - begin) // 4), start + begin)
                return
            if "norm" in name:
                os.pwrite(file.fileno(), b"\x80\x3f" * ((end - begin) // 2), start + begin)
                return
            view = memoryview(source[dtype])[places[index]:]
            while begin < end:
                begin += os.pwrite(file.fileno(), view[:end - begin], start + begin)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(write, range(len(entries))))
    print(f"{offset / 1e9:.2f} GB")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("layers", type=int, nargs="?", default=4, help="MoE layers [4]")
    parser.add_argument("--dense", type=int, default=0, help="dense layers before them [0]")
    parser.add_argument("--experts", type=int, default=256, help="a multiple of 8 [256]")
    parser.add_argument("--all-nvfp4", action="store_true", help="attention (but kv_b_proj) and lm_head too")
    parser.add_argument("--no-mtp", dest="mtp", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_options())
