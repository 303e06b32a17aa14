#!/usr/bin/env python3
"""What an independent implementation of NVFP4 makes of the demo checkpoint's matrices in modes max, 4over6
and mse.

    tools/golden/make_nvfp4_modes.py NVFP4_REF.PY models/demo tests/golden/demo/nvfp4_modes.json

NVFP4_REF.PY is the reference in pure Python (tests/golden/nvfp4_vectors.json comes from it too); FP8 is
rounded to BF16 first, gate and up share their global scale. For each of the 160 matrices of nvfp4-v2:
SHA-256 of codes and block scales for max and 4over6, and for four rows, evenly spaced, the squared error that
mse leaves (its 126 candidates take pure Python too long for more). Takes about half an hour on one core.
"""
import hashlib
import importlib.util
import json
import struct
import sys
from pathlib import Path


def load_tensors(directory):
    tensors = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                tensors[name] = (entry["shape"], data[begin:end])
    return tensors


def main(reference, model, out):
    spec = importlib.util.spec_from_file_location("ref", reference)
    ref = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ref)
    tensors = load_tensors(model)
    config = json.loads((Path(model) / "config.json").read_text())

    def matrix(module):
        (rows, cols), codes = tensors[f"{module}.weight"]
        _, scales = tensors[f"{module}.weight_scale_inv"]
        blocks = (cols + 127) // 128
        values = struct.unpack(f"<{len(scales) // 4}f", scales)
        return ref.fp8_block_dequant([list(codes[r * cols:(r + 1) * cols]) for r in range(rows)],
                                     [list(values[i:i + blocks]) for i in range(0, len(values), blocks)])

    modules = sorted({name[:-len(".weight")] for name in tensors if name.endswith(
        ("o_proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"))
        and int(name.split(".")[2]) < config["num_hidden_layers"]})
    result = {}
    for module in modules:
        rows = matrix(module)
        amax = max(max(map(abs, row)) for row in rows)
        for mine, other in (("gate_proj", "up_proj"), ("up_proj", "gate_proj")):
            if module.endswith(mine):
                partner = matrix(module[:-len(mine)] + other)
                amax = max(amax, max(max(map(abs, row)) for row in partner))
        entry = {}
        for mode in ("max", "4over6"):
            q = ref.quantize_tensor(rows, amax, mode)
            entry[mode] = {"weight": hashlib.sha256(b"".join(q["weight"])).hexdigest(),
                           "weight_scale": hashlib.sha256(b"".join(q["weight_scale"])).hexdigest(),
                           "weight_scale_2": struct.unpack("<I", struct.pack("<f", q["weight_scale_2"]))[0]}
        chosen = list(range(0, len(rows), len(rows) // 4))[:4]
        few = [rows[r] for r in chosen]
        back = ref.dequantize_tensor(ref.quantize_tensor(few, amax, "mse"))
        entry["mse"] = {"rows": chosen, "squared_error": sum(
            (a - b) ** 2 for row, got in zip(few, back) for a, b in zip(row, got))}
        result[f"{module}.weight"] = entry
        print(module, flush=True)
    Path(out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
