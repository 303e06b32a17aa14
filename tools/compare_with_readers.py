#!/usr/bin/env python3
"""NVFP4 checkpoints read by the code of two other projects, every value compared exactly.

    tools/compare_with_readers.py NVFP4 BF16 [--compressed FOLDER] [--source BF16 [--algorithm NAME]]

NVFP4 is a checkpoint of `nibble quantize`, BF16 what `nibble convert --to bf16` made of it, --compressed what
`--to compressed-tensors` made of it, --source the model before quantization in BF16.

  1. NVIDIA Model Optimizer's NVFP4QTensor.dequantize of every matrix is BF16, bit for bit.
  2. compressed-tensors' NVFP4PackedCompressor.decompress of every matrix of --compressed, with the scheme that the
     checkpoint's own config.json gives, as that library parses it, is BF16; but that layout holds reciprocals of the
     global scales and divides by them, which rounds elsewhere, so that values on the border between two BF16 numbers may be
     the neighbour. Those are counted.
  3. compressed-tensors' converter from Model Optimizer's layout makes the tensors of --compressed out of NVFP4. A
     reciprocal that differs by one unit in the last place is counted; values never do.
  4. With --algorithm max, Model Optimizer's NVFP4QTensor.quantize of --source gives NVFP4's bytes.

tools/compare_with_readers.sh makes the checkpoints and the environment. Exits 1 when something differs.
"""
import argparse
import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
try:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
    from compressed_tensors.quantization import QuantizationConfig
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    from safetensors.torch import load_file
except ImportError as error:
    sys.exit(f"skipped: {error}; tools/compare_with_readers.sh installs what is needed")


def load(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def same_bits(a, b):
    if a.dtype != b.dtype or a.numel() != b.numel():
        return False
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)))


def modules_of(tensors):
    return sorted(name[:-len(".weight_scale")] for name in tensors if name.endswith(".weight_scale"))


def check_model_optimizer(nvfp4, bf16):
    values = 0
    for module in modules_of(nvfp4):
        packed = nvfp4[module + ".weight"]
        shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
        decoded = NVFP4QTensor(shape, torch.bfloat16, packed).dequantize(
            dtype=torch.float32, scale=nvfp4[module + ".weight_scale"], double_scale=nvfp4[module + ".weight_scale_2"],
            block_sizes={-1: 16})
        if not same_bits(decoded.to(torch.bfloat16) + 0, bf16[module + ".weight"] + 0):
            sys.exit(f"Model Optimizer decodes {module} differently")
        values += decoded.numel()
    print(f"  Model Optimizer decodes {len(modules_of(nvfp4))} matrices, {values} values: equal")


def check_compressed_tensors(compressed, folder, bf16):
    config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(config)
    scheme = next(iter(config.config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry(config.format)
    modules = sorted(name[:-len(".weight_packed")] for name in compressed if name.endswith(".weight_packed"))
    values = beside = neighbours = 0
    for module in modules:
        state = {name: compressed[f"{module}.{name}"] for name in compressor.compression_param_names(scheme)
                 if f"{module}.{name}" in compressed}
        weight = compressor.decompress(state, scheme)["weight"]
        weight, expected = weight.to(torch.bfloat16) + 0, bf16[module + ".weight"] + 0  # code 8, -0, becomes 0
        different = (weight.view(torch.int16) - expected.view(torch.int16)).abs()
        if different.max() > 1:
            sys.exit(f"compressed-tensors decodes {(different > 0).sum()} of {weight.numel()} values of {module} differently")
        beside += int(different.sum()) > 0
        neighbours += int(different.sum())
        values += weight.numel()
    print(f"  compressed-tensors decodes {len(modules)} matrices, {values} values: equal but for {neighbours} in {beside} of them, "
          "which are the next BF16 number")


def check_converter(nvfp4, compressed):
    modules = modules_of(nvfp4)
    theirs = ModelOptNvfp4Converter(targets=[f"re:^{name}$" for name in modules]).process(dict(nvfp4))
    neighbours = 0
    for name in sorted(set(theirs) | set(compressed)):
        if name not in theirs or name not in compressed:
            sys.exit(f"compressed-tensors' converter and nibble convert: only one has {name}")
        a, b = theirs[name], compressed[name]
        if name.endswith("_global_scale"):
            steps = (a.reshape(-1).view(torch.int32) - b.reshape(-1).view(torch.int32)).abs().max().item()
            neighbours += steps == 1
            if steps <= 1:
                continue
        if not same_bits(a, b):
            sys.exit(f"compressed-tensors' converter makes another {name}")
    print(f"  compressed-tensors' converter from Model Optimizer's layout: the same {len(theirs)} tensors; {neighbours} "
          "global scales one unit in the last place beside")


def check_bytes(nvfp4, source):
    for module in modules_of(nvfp4):
        quantized, scale, _ = NVFP4QTensor.quantize(source[module + ".weight"].clone(), 16, None,
                                                    nvfp4[module + ".weight_scale_2"])
        if not (same_bits(quantized._quantized_data, nvfp4[module + ".weight"]) and
                same_bits(scale, nvfp4[module + ".weight_scale"])):
            sys.exit(f"Model Optimizer quantizes {module} differently")
        partner = module.replace("gate_proj", "up_proj") if "gate_proj" in module else module.replace("up_proj", "gate_proj")
        amax = torch.maximum(source[module + ".weight"].abs().amax(), source[partner + ".weight"].abs().amax())
        if not same_bits(NVFP4QTensor.get_weights_scaling_factor_2(amax.reshape(1)), nvfp4[module + ".weight_scale_2"]):
            sys.exit(f"Model Optimizer has another weight_scale_2 for {module}")
    print(f"  Model Optimizer's own quantization of {len(modules_of(nvfp4))} matrices: the same bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nvfp4")
    parser.add_argument("bf16")
    parser.add_argument("--compressed")
    parser.add_argument("--source")
    parser.add_argument("--algorithm", default="max")
    a = parser.parse_args()
    nvfp4, bf16 = load(a.nvfp4), load(a.bf16)
    check_model_optimizer(nvfp4, bf16)
    if a.compressed:
        compressed = load(a.compressed)
        check_compressed_tensors(compressed, a.compressed, bf16)
        check_converter(nvfp4, compressed)
    if a.source and a.algorithm == "max":
        check_bytes(nvfp4, load(a.source))


if __name__ == "__main__":
    main()
