#!/usr/bin/env python3
"""Checks the layout of an NVFP4 checkpoint of the DeepSeek-V3/R1 family, tensor by tensor.

    tools/check_nvfp4_layout.py DIRECTORY

Written from the description of NVIDIA Model Optimizer's layout alone and with Python's standard library
alone, so that it shares no code, and no misunderstanding, with the program it checks. It reads

  - every shard's header: offsets that cover the file without holes, names that occur once;
  - every tensor that config.json implies: present, with the right dtype and shape, and no other;
  - the values that can be wrong by themselves: block scales without sign and NaN, finite positive
    scalars, scales that fused matrices must share;
  - model.safetensors.index.json, hf_quant_config.json and config.json's quantization_config, against the
    tensors and against each other.

Prints one line for each problem and exits 1 if there is any.
"""
import fnmatch
import json
import math
import struct
import sys
from pathlib import Path

DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
               "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
BLOCK = 16
LEGAL_BLOCK_SCALES = bytes(range(0x7F))  # no sign bit; 0x7F is NaN
QUANTIZED_MLP = ("gate_proj", "up_proj", "down_proj")
# The attention's linears that stay BF16 in a recipe, sorted: v1 and v2 are published, the others nibble's own
# (nvfp4-attention and nvfp4-all, which quantizes the MTP layer too).
UNQUANTIZED_ATTENTION = {
    "v1": ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"),
    "v2": ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"),
    "attention": ("kv_b_proj",),
    "all": ("kv_b_proj",)}
CHUNK = 1 << 24


class Refused(Exception):
    """The checkpoint cannot be looked at any further."""


def unique_keys(pairs):
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, ValueError) as error:
        raise Refused(f"{path.name}: {error}") from error


class Tensor:
    def __init__(self, shard, dtype, shape, begin, end):
        self.shard, self.dtype, self.shape, self.begin, self.end = shard, dtype, shape, begin, end

    def chunks(self):
        """The tensor's bytes, in pieces."""
        with open(self.shard, "rb") as file:
            file.seek(self.begin)
            left = self.end - self.begin
            while left > 0:
                data = file.read(min(left, CHUNK))
                if not data:
                    return
                left -= len(data)
                yield data

    def bytes(self):
        return b"".join(self.chunks())


def read_shard(path, problems):
    """{name: Tensor} of one safetensors file; what is wrong with its header goes to problems."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if len(prefix) < 8 or length > size - 8:
            raise Refused(f"{path.name}: {size} bytes do not hold a header")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique_keys)
            entries = {name: (entry["dtype"], list(entry["shape"]), *entry["data_offsets"])
                       for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{path.name}: bad header: {error}") from error
    data = 8 + length
    tensors, position = {}, 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if dtype not in DTYPE_BYTES:
            problems.append(f"{path.name}: {name} has the unknown dtype {dtype}")
        elif end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
            problems.append(f"{path.name}: {name} has {end - begin} bytes, but {dtype} {shape} needs "
                            f"{math.prod(shape) * DTYPE_BYTES[dtype]}")
        if begin != position:
            problems.append(f"{path.name}: {name} begins at {begin}, expected {position}")
        position = end
        tensors[name] = Tensor(path, dtype, shape, data + begin, data + end)
    if data + position != size:
        problems.append(f"{path.name}: the tensors end at byte {data + position}, the file at {size}")
    return tensors


class Model:
    """What config.json says about tensors: names, shapes, and which linears there are."""

    def __init__(self, config):
        try:
            self.hidden = config["hidden_size"]
            self.layers = config["num_hidden_layers"]
            self.mtp_layers = config.get("num_nextn_predict_layers") or 0
            self.experts = config["n_routed_experts"]
            self.dense_layers = config["first_k_dense_replace"]
            self.frequency = config.get("moe_layer_freq", 1)
            heads, nope, rope = (config[key] for key in
                                 ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"))
            value, q_rank, kv_rank = (config[key] for key in ("v_head_dim", "q_lora_rank", "kv_lora_rank"))
            self.vocabulary = config["vocab_size"]
            self.intermediate = config["intermediate_size"]
            self.moe_intermediate = config["moe_intermediate_size"]
            self.shared = config.get("n_shared_experts") or 0
            self.bias = config.get("topk_method") == "noaux_tc"
            hidden = self.hidden
            self.attention = {
                "q_a_proj": [q_rank, hidden], "q_b_proj": [heads * (nope + rope), q_rank],
                "kv_a_proj_with_mqa": [kv_rank + rope, hidden],
                "kv_b_proj": [heads * (nope + value), kv_rank], "o_proj": [hidden, heads * value]}
            self.attention_norms = {"q_a_layernorm": [q_rank], "kv_a_layernorm": [kv_rank]}
        except (KeyError, TypeError) as error:
            raise Refused(f"config.json: no usable {error}") from error

    def is_moe(self, layer):
        return layer >= self.dense_layers and layer % self.frequency == 0

    def linears(self, layer):
        """{module: [out_features, in_features]} of a layer's linears but the router."""
        prefix = f"model.layers.{layer}"
        linears = {f"{prefix}.self_attn.{name}": shape for name, shape in self.attention.items()}

        def mlp(module, width):
            linears[f"{module}.gate_proj"] = [width, self.hidden]
            linears[f"{module}.up_proj"] = [width, self.hidden]
            linears[f"{module}.down_proj"] = [self.hidden, width]
        if not self.is_moe(layer):
            mlp(f"{prefix}.mlp", self.intermediate)
            return linears
        if self.shared:
            mlp(f"{prefix}.mlp.shared_experts", self.shared * self.moe_intermediate)
        for expert in range(self.experts):
            mlp(f"{prefix}.mlp.experts.{expert}", self.moe_intermediate)
        return linears

    def plain_tensors(self):
        """{name: (dtype, shape)} of what is never quantized."""
        hidden, vocabulary = [self.hidden], [self.vocabulary, self.hidden]
        tensors = {"model.embed_tokens.weight": ("BF16", vocabulary), "model.norm.weight": ("BF16", hidden),
                   "lm_head.weight": ("BF16", vocabulary)}
        for layer in range(self.layers + self.mtp_layers):
            prefix = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = ("BF16", hidden)
            for norm, shape in self.attention_norms.items():
                tensors[f"{prefix}.self_attn.{norm}.weight"] = ("BF16", shape)
            if self.is_moe(layer):
                tensors[f"{prefix}.mlp.gate.weight"] = ("BF16", [self.experts, self.hidden])
                if self.bias:
                    tensors[f"{prefix}.mlp.gate.e_score_correction_bias"] = ("F32", [self.experts])
            if layer >= self.layers:
                for name in ("embed_tokens", "shared_head.head"):
                    tensors[f"{prefix}.{name}.weight"] = ("BF16", vocabulary)
                for name in ("enorm", "hnorm", "shared_head.norm"):
                    tensors[f"{prefix}.{name}.weight"] = ("BF16", hidden)
                tensors[f"{prefix}.eh_proj.weight"] = ("BF16", [self.hidden, 2 * self.hidden])
        return tensors

    def is_quantized(self, recipe, layer, module):
        if layer >= self.layers and recipe != "all":
            return False
        projection = module.rsplit(".", 1)[1]
        return projection in QUANTIZED_MLP or projection not in UNQUANTIZED_ATTENTION[recipe]

    def exclusions(self, recipe):
        """exclude_modules as the published checkpoints have it, for this number of layers."""
        if recipe == "v1":
            names = [f"model.layers.{layer}.self_attn*" for layer in range(self.layers)]
        else:
            names = [f"model.layers.{layer}.self_attn.{name}" for layer in range(self.layers)
                     for name in UNQUANTIZED_ATTENTION[recipe]]
        mtp = [f"model.layers.{layer}*" for layer in range(self.layers, self.layers + self.mtp_layers)]
        if recipe == "all":
            mtp = [f"model.layers.{layer}.{name}" for layer in range(self.layers, self.layers + self.mtp_layers)
                   for name in ("eh_proj", "embed_tokens", "self_attn.kv_b_proj", "shared_head*")]
        return ["lm_head"] + sorted(names) + mtp


def check_hf_quant_config(directory, model, problems):
    """The recipe, by what it excludes, and the "quantization" and "producer" parts of hf_quant_config.json."""
    config = read_json(directory / "hf_quant_config.json")
    quantization = config.get("quantization", {})
    producer = config.get("producer", {})
    if not all(isinstance(producer.get(key), str) and producer[key] for key in ("name", "version")):
        problems.append("hf_quant_config.json: producer has no name or no version")
    if set(config) != {"producer", "quantization"}:
        problems.append(f"hf_quant_config.json: keys {sorted(config)}, expected producer, quantization")
    for key, expected in {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": BLOCK}.items():
        if quantization.get(key) != expected:
            problems.append(f"hf_quant_config.json: {key} is {quantization.get(key)!r}, expected {expected!r}")
    extra = set(quantization) - {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules"}
    if extra:
        problems.append(f"hf_quant_config.json: unexpected keys {sorted(extra)}")
    excluded = quantization.get("exclude_modules")
    excluded = excluded if isinstance(excluded, list) else []
    ends = {str(name).rsplit(".", 1)[-1] for name in excluded}
    recipe = "v1" if "self_attn*" in ends else "v2" if "q_a_proj" in ends else "all" if "eh_proj" in ends else "attention"
    expected = model.exclusions(recipe)
    if excluded != expected:
        missing = [name for name in expected if name not in excluded]
        more = [name for name in excluded if name not in expected]
        problems.append(f"hf_quant_config.json: exclude_modules differs from the {recipe} list of {len(expected)} "
                        f"names: missing {missing[:4]}, not expected {more[:4]}"
                        + ("" if missing or more else ", another order"))
    return recipe, quantization, producer


def check_config(config, quantization, producer, problems):
    found = config.get("quantization_config")
    numbers = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    expected = {
        "config_groups": {"group_0": {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]}},
        "ignore": quantization.get("exclude_modules"), "quant_algo": "NVFP4",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": producer, "quant_method": "modelopt"}
    if not isinstance(found, dict):
        problems.append("config.json: no quantization_config")
        return
    for key in sorted(expected.keys() | found.keys()):
        if found.get(key) != expected.get(key):
            problems.append(f"config.json: quantization_config.{key} is {json.dumps(found.get(key))[:120]}, expected "
                            f"{json.dumps(expected.get(key))[:120]}")


def check_index(directory, tensors, problems):
    index = read_json(directory / "model.safetensors.index.json")
    listed = index.get("weight_map", {})
    for name in sorted(tensors.keys() - listed.keys())[:20]:
        problems.append(f"model.safetensors.index.json: {name} is not listed")
    for name in sorted(listed.keys() - tensors.keys())[:20]:
        problems.append(f"model.safetensors.index.json: {name} is listed, but in no shard")
    for name in sorted(tensors.keys() & listed.keys()):
        if listed[name] != tensors[name].shard.name:
            problems.append(f"model.safetensors.index.json: {name} is listed in {listed[name]}, but lies in "
                            f"{tensors[name].shard.name}")
    total = sum(tensor.end - tensor.begin for tensor in tensors.values())
    found = index.get("metadata", {}).get("total_size")
    if found != total:
        problems.append(f"model.safetensors.index.json: metadata.total_size is {found}, the tensors have {total} bytes")


def check_tensor(tensors, name, dtype, shape, problems):
    """The tensor if it is there as expected, otherwise None."""
    tensor = tensors.get(name)
    if tensor is None:
        problems.append(f"{name} is missing")
    elif (tensor.dtype, tensor.shape) != (dtype, shape):
        problems.append(f"{name} is {tensor.dtype} {tensor.shape}, expected {dtype} {shape}")
    else:
        return tensor
    return None


def check_scalar(tensors, name, problems):
    """The four bytes of a finite positive F32 scalar, or None."""
    tensor = check_tensor(tensors, name, "F32", [], problems)
    data = tensor.bytes() if tensor else b""
    if len(data) != 4:
        return None
    value = struct.unpack("<f", data)[0]
    if not (math.isfinite(value) and value > 0):
        problems.append(f"{name} is {value}, expected a finite number above 0")
    return data


def check_quantized(tensors, module, shape, problems):
    """Checks the four tensors of a quantized linear; returns the bytes of its two scalars."""
    rows, columns = shape
    if columns % BLOCK:
        problems.append(f"{module}: in_features {columns} is no multiple of {BLOCK}")
    weight = check_tensor(tensors, f"{module}.weight", "U8", [rows, columns // 2], problems)
    scale = check_tensor(tensors, f"{module}.weight_scale", "F8_E4M3", [rows, columns // BLOCK], problems)
    if scale:
        illegal = b"".join(chunk.translate(None, LEGAL_BLOCK_SCALES) for chunk in scale.chunks())
        if illegal:
            problems.append(f"{module}.weight_scale has {len(illegal)} bytes with a sign or NaN, the first is "
                            f"0x{illegal[0]:02X}")
    global_scale = check_scalar(tensors, f"{module}.weight_scale_2", problems)
    input_scale = check_scalar(tensors, f"{module}.input_scale", problems)
    for suffix in ("weight_scale", "weight_scale_2", "input_scale"):
        companion = tensors.get(f"{module}.{suffix}")
        if weight and companion and companion.shard != weight.shard:
            problems.append(f"{module}.{suffix} lies in {companion.shard.name}, its weight in {weight.shard.name}")
    return global_scale, input_scale


def check_shared_scales(scalars, problems):
    """gate_proj and up_proj share both scalars; the experts of a layer share input_scale."""
    of_experts = {}
    for module, (global_scale, input_scale) in scalars.items():
        parent, projection = module.rsplit(".", 1)
        if projection == "gate_proj":
            other = scalars.get(f"{parent}.up_proj", (None, None))
            for name, mine, its in (("weight_scale_2", global_scale, other[0]), ("input_scale", input_scale, other[1])):
                if mine is not None and its is not None and mine != its:
                    problems.append(f"{parent}: gate_proj and up_proj have different {name}")
        if ".mlp.experts." in module and input_scale is not None:
            layer = module.split(".mlp.experts.")[0]
            of_experts.setdefault((layer, projection), set()).add(input_scale)
    for (layer, projection), values in sorted(of_experts.items()):
        if len(values) > 1:
            problems.append(f"{layer}: the experts' {projection} have {len(values)} different input_scale, expected one")


def check_kv_scales(tensors, model, problems):
    """The optional k_scale and v_scale: for every layer or none. Returns their names."""
    names = [f"model.layers.{layer}.self_attn.{part}" for layer in range(model.layers)
             for part in ("k_proj.k_scale", "v_proj.v_scale")]
    if not any(name in tensors for name in names):
        return set()
    for name in names:
        check_scalar(tensors, name, problems)
    return set(names)


def check_checkpoint(directory):
    """All problems of the checkpoint in a directory, as lines of text."""
    problems = []
    config = read_json(directory / "config.json")
    model = Model(config)
    recipe, quantization, producer = check_hf_quant_config(directory, model, problems)
    check_config(config, quantization, producer, problems)

    tensors = {}
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise Refused("no *.safetensors file")
    for path in shards:
        for name, tensor in read_shard(path, problems).items():
            if name in tensors:
                problems.append(f"{name} is in {tensors[name].shard.name} and in {path.name}")
            tensors[name] = tensor
    check_index(directory, tensors, problems)

    expected = set(model.plain_tensors()) | check_kv_scales(tensors, model, problems)
    for name, (dtype, shape) in model.plain_tensors().items():
        check_tensor(tensors, name, dtype, shape, problems)
    scalars = {}
    excluded = [str(name) for name in quantization.get("exclude_modules") or []]
    for layer in range(model.layers + model.mtp_layers):
        for module, shape in model.linears(layer).items():
            quantized = model.is_quantized(recipe, layer, module)
            if quantized == any(fnmatch.fnmatchcase(module, pattern) for pattern in excluded):
                problems.append(f"{module} should {'not ' if quantized else ''}be in exclude_modules")
            expected.add(f"{module}.weight")
            if quantized:
                scalars[module] = check_quantized(tensors, module, shape, problems)
                expected |= {f"{module}.{suffix}" for suffix in ("weight_scale", "weight_scale_2", "input_scale")}
            else:
                check_tensor(tensors, f"{module}.weight", "BF16", shape, problems)
    check_shared_scales(scalars, problems)
    for name in sorted(tensors.keys() - expected):
        reason = "is left over from the FP8 checkpoint" if name.endswith("_scale_inv") else "is not expected"
        problems.append(f"{name} {reason}")
    return problems, f"{len(tensors)} tensors in {len(shards)} shards, {len(scalars)} quantized linears, recipe {recipe}"


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: tools/check_nvfp4_layout.py DIRECTORY", file=sys.stderr)
        return 2
    try:
        problems, summary = check_checkpoint(Path(arguments[0]))
    except Refused as refused:
        print(refused)
        return 1
    for problem in problems:
        print(problem)
    if not problems:
        print(f"NVFP4 layout: {summary}; no problem")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
