#!/usr/bin/env python3
"""Decodes every NVFP4 matrix of a checkpoint with ml_dtypes (its float4_e2m1fn and float8_e4m3fn) and compares
with what `nibble convert --to bf16` made of it, bit for bit.

    python3 -m venv build/reader/venv && build/reader/venv/bin/pip install numpy ml_dtypes
    nibble convert NVFP4 BF16 --to bf16
    build/reader/venv/bin/python tools/compare_with_ml_dtypes.py NVFP4 BF16
"""
import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np


def load(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = struct.unpack("<Q", data[:8].tobytes())[0]
        for name, entry in json.loads(data[8:8 + length].tobytes()).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = (entry["dtype"], entry["shape"], data[8 + length + begin:8 + length + end])
    return tensors


def main(nvfp4, bf16):
    quantized, plain = load(nvfp4), load(bf16)
    matrices = values = 0
    for name, (dtype, (rows, half), raw) in ((n, t) for n, t in quantized.items() if len(t[1]) == 2):
        if dtype != "U8":
            continue
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, half // 8, 16)
        elements = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        scales = np.asarray(quantized[name + "_scale"][2]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        scale_2 = np.asarray(quantized[name + "_scale_2"][2]).view(np.float32)[0]
        factors = (scales.reshape(rows, half // 8, 1) * scale_2).astype(np.float32)
        decoded = (elements * factors).astype(ml_dtypes.bfloat16).reshape(rows, 2 * half)
        expected = np.asarray(plain[name][2]).view(ml_dtypes.bfloat16).reshape(rows, 2 * half)
        if not np.array_equal(decoded.view(np.uint16), expected.view(np.uint16)):
            sys.exit(f"{name} differs")
        matrices += 1
        values += decoded.size
    print(f"{matrices} matrices, {values} values: equal")
    return 0 if matrices else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
