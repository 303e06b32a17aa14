#!/usr/bin/env python3
"""Writes a checkpoint of ours (FP8 blocks, BF16 or NVFP4) as GGUF, for comparisons with llama.cpp on the same weights.

    python3 -m venv build/llama && build/llama/bin/pip install gguf llama-cpp-python
    build/llama/bin/python tools/make_gguf.py models/demo demo-q4_0.gguf --type q4_0
    build/llama/bin/python tools/bench_llama.py demo-q4_0.gguf --threads 1,2

Matrices that the checkpoint keeps in 8 or 4 bits get --type; lm_head gets it with --head; router, norms and
embed_tokens stay F32, F32 and BF16, kv_b_proj's two halves BF16 (llama.cpp v0.5.0 aborts on 4-bit ones). The MTP layer
is left out. NVFP4 is not offered: v0.5.0 ignores weight_scale_2 of DeepSeek's experts, so its texts would be wrong.
The whole file is made in memory before it is written.
"""
import argparse
import json
import multiprocessing
import os
from pathlib import Path

import gguf
import numpy as np

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0,
         "f16": gguf.GGMLQuantizationType.F16}
FILE_TYPES = {"q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
              "f16": gguf.LlamaFileType.MOSTLY_F16}
BF16 = gguf.GGMLQuantizationType.BF16
F32 = gguf.GGMLQuantizationType.F32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
LINEARS = {"self_attn.q_a_proj": "attn_q_a", "self_attn.q_b_proj": "attn_q_b",
           "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.o_proj": "attn_output"}
NORMS = {"input_layernorm": "attn_norm", "self_attn.q_a_layernorm": "attn_q_a_norm",
         "self_attn.kv_a_layernorm": "attn_kv_a_norm", "post_attention_layernorm": "ffn_norm"}
PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
CHUNK = 1 << 24  # weights that a process converts at a time


def e4m3_table():
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32)


E4M3 = e4m3_table()


class Checkpoint:
    """Tensors of a directory of safetensors as binary32, dequantized."""

    def __init__(self, directory):
        self.entries = {}
        for path in sorted(directory.glob("*.safetensors")):
            data = np.memmap(path, np.uint8, "r")
            start = 8 + int(data[:8].view("<u8")[0])
            for name, entry in json.loads(data[8:start].tobytes()).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    self.entries[name] = (entry["dtype"], entry["shape"], data[start + begin:start + end])

    def plain(self, name):
        dtype, shape, data = self.entries[name]
        if dtype == "F32":
            return data.view("<f4").reshape(shape)
        if dtype == "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        raise SystemExit(f"{name} is {dtype}, expected F32 or BF16")

    def is_quantized(self, module):
        return self.entries[f"{module}.weight"][0] in ("F8_E4M3", "U8")

    def row_ranges(self, module):
        """(first, end) of ranges of rows of about CHUNK weights, the last maybe smaller."""
        dtype, (rows, width), _ = self.entries[f"{module}.weight"]
        step = max(1, CHUNK // (width * (2 if dtype == "U8" else 1)))
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]

    def linear(self, module, first=0, end=None):
        """Rows first..end of the module's matrix [out, in]."""
        name = f"{module}.weight"
        dtype, shape, data = self.entries[name]
        if dtype == "F8_E4M3":
            scale = self.plain(f"{name}_scale_inv").repeat(128, 0)[first:end].repeat(128, 1)
            return E4M3[data.reshape(shape)[first:end]] * scale[:shape[0], :shape[1]]
        if dtype == "U8":
            packed = data.reshape(shape)[first:end]
            codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1, 16)
            scales = E4M3[self.entries[f"{name}_scale"][2].reshape(shape[0], -1, 1)[first:end]]
            values = E2M1[codes] * (scales * np.float32(self.plain(f"{name}_scale_2")))
            return values.reshape(len(packed), -1)
        return self.plain(name)[first:end]


SOURCE = None  # the checkpoint, for the processes of Packer


def pack_rows(task):
    module, first, end, kind = task
    return gguf.quants.quantize(np.ascontiguousarray(SOURCE.linear(module, first, end)), kind)


class Packer:
    """Matrices in GGUF's formats, made by several processes."""

    def __init__(self, source, jobs):
        global SOURCE
        SOURCE = source
        self.pool = multiprocessing.get_context("fork").Pool(jobs) if jobs > 1 else None

    def matrices(self, modules, kind):
        """[modules, rows, bytes of a row]; all have one shape."""
        tasks = [(module, first, end, kind) for module in modules for first, end in SOURCE.row_ranges(module)]
        parts = list(self.pool.imap(pack_rows, tasks) if self.pool else map(pack_rows, tasks))
        packed = np.concatenate(parts)
        return packed.reshape(len(modules), -1, packed.shape[-1])


def add_parameters(writer, config, file_type):
    rope = config["rope_scaling"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)  # llama.cpp runs MLA as one group of wide heads
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_file_type(file_type)


def add_vocabulary(writer, directory, config):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    size = config["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--head", action="store_true", help="lm_head gets --type too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that convert [all processors]")
    options = parser.parse_args()
    config = json.loads((options.checkpoint / "config.json").read_text())
    source = Checkpoint(options.checkpoint)
    writer = gguf.GGUFWriter(options.out, "deepseek2", use_temp_file=False)
    packer = Packer(source, options.jobs)
    add_parameters(writer, config, FILE_TYPES[options.type])
    add_vocabulary(writer, options.checkpoint, config)

    def add(name, values, kind):
        data = values.astype(np.float32) if kind == F32 else gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(name, data, raw_dtype=kind)

    def add_linear(name, module, quantize=False):
        kind = TYPES[options.type] if quantize or source.is_quantized(module) else BF16
        writer.add_tensor(name, packer.matrices([module], kind)[0], raw_dtype=kind)

    dtype, shape, data = source.entries["model.embed_tokens.weight"]
    if dtype == "BF16":
        writer.add_tensor("token_embd.weight", data.reshape(shape[0], -1), raw_dtype=BF16)
    else:
        add("token_embd.weight", source.plain("model.embed_tokens.weight"), BF16)
    add("output_norm.weight", source.plain("model.norm.weight"), F32)
    add_linear("output.weight", "lm_head", options.head)
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    for index in range(config["num_hidden_layers"]):
        layer, block = f"model.layers.{index}", f"blk.{index}"
        for theirs, ours in NORMS.items():
            add(f"{block}.{ours}.weight", source.plain(f"{layer}.{theirs}.weight"), F32)
        for theirs, ours in LINEARS.items():
            add_linear(f"{block}.{ours}.weight", f"{layer}.{theirs}")
        kv_b = source.linear(f"{layer}.self_attn.kv_b_proj").reshape(heads, nope + value, -1)
        add(f"{block}.attn_k_b.weight", kv_b[:, :nope].transpose(0, 2, 1), BF16)
        add(f"{block}.attn_v_b.weight", kv_b[:, nope:], BF16)
        if index < config["first_k_dense_replace"]:
            for theirs, ours in PARTS.items():
                add_linear(f"{block}.ffn_{ours}.weight", f"{layer}.mlp.{theirs}")
            continue
        add(f"{block}.ffn_gate_inp.weight", source.plain(f"{layer}.mlp.gate.weight"), F32)
        add(f"{block}.exp_probs_b.bias", source.plain(f"{layer}.mlp.gate.e_score_correction_bias"), F32)
        for theirs, ours in PARTS.items():
            add_linear(f"{block}.ffn_{ours}_shexp.weight", f"{layer}.mlp.shared_experts.{theirs}")
            experts = [f"{layer}.mlp.experts.{e}.{theirs}" for e in range(config["n_routed_experts"])]
            kind = TYPES[options.type] if source.is_quantized(experts[0]) else BF16
            writer.add_tensor(f"{block}.ffn_{ours}_exps.weight", packer.matrices(experts, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
