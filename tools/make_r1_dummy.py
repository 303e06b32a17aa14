#!/usr/bin/env python3
"""Writes a model's folder of DeepSeek-R1's size without weights: nibble makes them up when it loads it.

    tools/make_r1_dummy.py OUT [--layers 61] [--dense-layers 3] [--layout nvfp4_v2]

For times and memory of the whole model where no checkpoint is at hand: every command of nibble that loads a
model takes the folder (run, serve, bench offline). What such a model says is noise; the tokenizer is models/demo's.
"""
import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from make_r1_slice import config as r1_config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--dense-layers", type=int, default=3)
    parser.add_argument("--layout", default="nvfp4_v2", choices=["nvfp4_v2", "nvfp4_v1", "fp8", "bf16"])
    arguments = parser.parse_args()
    demo = Path(__file__).resolve().parent.parent / "models/demo"
    config = r1_config(SimpleNamespace(dense=arguments.dense_layers, layers=arguments.layers - arguments.dense_layers, mtp=True, experts=256))
    if arguments.layout == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                         "weight_block_size": [128, 128]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if arguments.layout.startswith("nvfp4"):
        (arguments.out / "hf_quant_config.json").write_text(json.dumps({
            "producer": {"name": "modelopt", "version": "0"},
            "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                             "exclude_modules": ["lm_head"]}}, indent=2) + "\n")
    (arguments.out / "dummy_weights.json").write_text(json.dumps({"layout": arguments.layout, "seed": 0}) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, arguments.out / name)


if __name__ == "__main__":
    main()
