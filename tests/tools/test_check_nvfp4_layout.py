"""tools/check_nvfp4_layout.py accepts a checkpoint built here by hand and names each thing broken in it.

With a directory as argument it also checks that checkpoint as it is (ctest passes the demo that nibble
quantized), and with one byte of it changed."""
import copy
import json
import math
import shutil
import struct
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_nvfp4_layout as checker  # noqa: E402

REAL_CHECKPOINT = None  # set from the command line

# One dense layer, one MoE layer of two experts, one MTP layer.
CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "n_routed_experts": 2,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_attention_heads": 2, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 12, "vocab_size": 40,
    "intermediate_size": 48, "moe_intermediate_size": 16, "n_shared_experts": 1, "topk_method": "noaux_tc"}
EXCLUDED = [
    "lm_head",
    "model.layers.0.self_attn.kv_a_proj_with_mqa", "model.layers.0.self_attn.kv_b_proj",
    "model.layers.0.self_attn.q_a_proj", "model.layers.0.self_attn.q_b_proj",
    "model.layers.1.self_attn.kv_a_proj_with_mqa", "model.layers.1.self_attn.kv_b_proj",
    "model.layers.1.self_attn.q_a_proj", "model.layers.1.self_attn.q_b_proj",
    "model.layers.2*"]
PRODUCER = {"name": "modelopt", "version": "0.34.1.dev3"}
FP4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
QUANTIZATION_CONFIG = {
    "config_groups": {"group_0": {"input_activations": FP4, "weights": FP4, "targets": ["Linear"]}},
    "ignore": EXCLUDED, "quant_algo": "NVFP4",
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "producer": PRODUCER, "quant_method": "modelopt"}


def plain(dtype, *shape):
    return dtype, list(shape), bytes(math.prod(shape) * checker.DTYPE_BYTES[dtype])


def scalar(value):
    return "F32", [], struct.pack("<f", value)


def quantized(module, rows, columns):
    return {f"{module}.weight": plain("U8", rows, columns // 2),
            f"{module}.weight_scale": ("F8_E4M3", [rows, columns // 16], b"\x38" * (rows * columns // 16)),
            f"{module}.weight_scale_2": scalar(0.5), f"{module}.input_scale": scalar(0.25)}


def mlp(module, width, linear):
    return {**linear(f"{module}.gate_proj", width, 32), **linear(f"{module}.up_proj", width, 32),
            **linear(f"{module}.down_proj", 32, width)}


def bf16(module, rows, columns):
    return {f"{module}.weight": plain("BF16", rows, columns)}


def layer(number, linear, o_proj):
    """The tensors of one layer, written out by hand for CONFIG."""
    prefix = f"model.layers.{number}"
    tensors = {f"{prefix}.input_layernorm.weight": plain("BF16", 32),
               f"{prefix}.post_attention_layernorm.weight": plain("BF16", 32),
               f"{prefix}.self_attn.q_a_layernorm.weight": plain("BF16", 16),
               f"{prefix}.self_attn.kv_a_layernorm.weight": plain("BF16", 12),
               **bf16(f"{prefix}.self_attn.q_a_proj", 16, 32), **bf16(f"{prefix}.self_attn.q_b_proj", 24, 16),
               **bf16(f"{prefix}.self_attn.kv_a_proj_with_mqa", 16, 32),
               **bf16(f"{prefix}.self_attn.kv_b_proj", 32, 12), **o_proj(f"{prefix}.self_attn.o_proj", 32, 16)}
    if number == 0:
        return {**tensors, **mlp(f"{prefix}.mlp", 48, linear)}
    return {**tensors, f"{prefix}.mlp.gate.weight": plain("BF16", 2, 32),
            f"{prefix}.mlp.gate.e_score_correction_bias": plain("F32", 2),
            **mlp(f"{prefix}.mlp.shared_experts", 16, linear), **mlp(f"{prefix}.mlp.experts.0", 16, linear),
            **mlp(f"{prefix}.mlp.experts.1", 16, linear)}


class Checkpoint:
    """A good checkpoint in memory; a test breaks it and writes it out."""

    def __init__(self):
        mtp = "model.layers.2"
        self.shards = {
            "model-00001-of-00002.safetensors": {
                "model.embed_tokens.weight": plain("BF16", 40, 32), **layer(0, quantized, quantized)},
            "model-00002-of-00002.safetensors": {
                **layer(1, quantized, quantized), **layer(2, bf16, bf16),
                "model.norm.weight": plain("BF16", 32), "lm_head.weight": plain("BF16", 40, 32),
                f"{mtp}.embed_tokens.weight": plain("BF16", 40, 32),
                f"{mtp}.shared_head.head.weight": plain("BF16", 40, 32),
                f"{mtp}.shared_head.norm.weight": plain("BF16", 32), f"{mtp}.enorm.weight": plain("BF16", 32),
                f"{mtp}.hnorm.weight": plain("BF16", 32), f"{mtp}.eh_proj.weight": plain("BF16", 32, 64)}}
        self.config = copy.deepcopy({**CONFIG, "quantization_config": QUANTIZATION_CONFIG})
        self.hf_quant_config = copy.deepcopy({
            "producer": PRODUCER, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8",
                                                   "group_size": 16, "exclude_modules": EXCLUDED}})
        self.change_index = lambda index: None
        self.change_bytes = lambda shard, data: data

    def shard_of(self, name):
        return next(shard for shard in self.shards.values() if name in shard)

    def set(self, name, value):
        self.shard_of(name)[name] = value

    def remove(self, name):
        del self.shard_of(name)[name]

    def write(self, directory):
        index = {"metadata": {"total_size": 0}, "weight_map": {}}
        for file_name, tensors in self.shards.items():
            header, data = {}, b""
            for name, (dtype, shape, contents) in tensors.items():
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(contents)]}
                data += contents
                index["weight_map"][name] = file_name
            index["metadata"]["total_size"] += len(data)
            text = json.dumps(header).encode()
            (directory / file_name).write_bytes(
                self.change_bytes(file_name, struct.pack("<Q", len(text)) + text + data))
        self.change_index(index)
        for file_name, value in (("config.json", self.config), ("hf_quant_config.json", self.hf_quant_config),
                                 ("model.safetensors.index.json", index)):
            (directory / file_name).write_text(json.dumps(value), encoding="utf-8")


class CheckNvfp4Layout(unittest.TestCase):
    def setUp(self):
        self.checkpoint = Checkpoint()

    def problems(self):
        with tempfile.TemporaryDirectory() as folder:
            self.checkpoint.write(Path(folder))
            try:
                return checker.check_checkpoint(Path(folder))[0]
            except checker.Refused as refused:
                return [str(refused)]

    def expect(self, *messages):
        problems = self.problems()
        self.assertEqual(len(problems), len(messages), problems)
        for problem, message in zip(problems, messages):
            self.assertIn(message, problem)

    def test_a_good_checkpoint_has_no_problem(self):
        self.assertEqual(self.problems(), [])

    def test_the_v1_recipe_and_kv_scales_are_accepted(self):
        excluded = ["lm_head", "model.layers.0.self_attn*", "model.layers.1.self_attn*", "model.layers.2*"]
        self.checkpoint.hf_quant_config["quantization"]["exclude_modules"] = excluded
        self.checkpoint.config["quantization_config"]["ignore"] = excluded
        for number in (0, 1):
            o_proj = f"model.layers.{number}.self_attn.o_proj"
            for suffix in ("weight_scale", "weight_scale_2", "input_scale"):
                self.checkpoint.remove(f"{o_proj}.{suffix}")
            self.checkpoint.set(f"{o_proj}.weight", plain("BF16", 32, 16))
            shard = self.checkpoint.shard_of(f"{o_proj}.weight")
            shard[f"model.layers.{number}.self_attn.k_proj.k_scale"] = scalar(1)
            shard[f"model.layers.{number}.self_attn.v_proj.v_scale"] = scalar(1)
        self.assertEqual(self.problems(), [])
        self.checkpoint.remove("model.layers.1.self_attn.k_proj.k_scale")
        self.expect("model.layers.1.self_attn.k_proj.k_scale is missing")

    def test_each_of_the_four_tensors_is_needed(self):
        module = "model.layers.1.mlp.experts.1.down_proj"
        for suffix in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
            with self.subTest(suffix):
                self.checkpoint = Checkpoint()
                self.checkpoint.remove(f"{module}.{suffix}")
                self.expect(f"{module}.{suffix} is missing")

    def test_scalars_have_no_dimension_and_are_f32(self):
        name = "model.layers.0.mlp.up_proj.weight_scale_2"
        self.checkpoint.set(name, ("F32", [1], struct.pack("<f", 0.5)))
        self.expect("is F32 [1], expected F32 []")
        self.checkpoint.set(name, ("BF16", [], b"\x00\x3f"))
        self.expect("is BF16 [], expected F32 []")

    def test_scalars_are_finite_and_positive(self):
        name = "model.layers.0.mlp.down_proj.input_scale"
        for value in (0.0, -1.0, math.inf, math.nan):
            with self.subTest(value):
                self.checkpoint.set(name, scalar(value))
                self.expect(f"{name} is ")

    def test_packed_weights_are_u8_with_half_the_columns(self):
        name = "model.layers.0.mlp.gate_proj.weight"
        self.checkpoint.set(name, plain("I8", 48, 16))
        self.expect("is I8 [48, 16], expected U8 [48, 16]")
        self.checkpoint.set(name, plain("U8", 48, 32))
        self.expect("is U8 [48, 32], expected U8 [48, 16]")

    def test_block_scales_have_no_sign_and_no_nan(self):
        name = "model.layers.1.mlp.shared_experts.up_proj.weight_scale"
        self.checkpoint.set(name, ("F8_E4M3", [16, 2], b"\x38" * 31 + b"\x7f"))
        self.expect(f"{name} has 1 bytes with a sign or NaN, the first is 0x7F")
        self.checkpoint.set(name, ("F8_E4M3", [16, 2], b"\x80\xb8" + b"\x38" * 30))
        self.expect(f"{name} has 2 bytes with a sign or NaN, the first is 0x80")
        self.checkpoint.set(name, ("F8_E4M3", [16, 2], b"\x00\x7e" * 16))
        self.expect()

    def test_gate_and_up_share_their_scalars(self):
        self.checkpoint.set("model.layers.0.mlp.up_proj.weight_scale_2", scalar(0.5000001))
        self.checkpoint.set("model.layers.0.mlp.up_proj.input_scale", scalar(0.3))
        self.expect("model.layers.0.mlp: gate_proj and up_proj have different weight_scale_2",
                    "model.layers.0.mlp: gate_proj and up_proj have different input_scale")

    def test_experts_of_a_layer_share_input_scale_but_not_weight_scale_2(self):
        self.checkpoint.set("model.layers.1.mlp.experts.1.down_proj.weight_scale_2", scalar(0.75))
        self.expect()
        self.checkpoint.set("model.layers.1.mlp.experts.1.down_proj.input_scale", scalar(0.75))
        self.expect("model.layers.1: the experts' down_proj have 2 different input_scale")

    def test_companions_lie_in_the_shard_of_their_weight(self):
        name = "model.layers.0.self_attn.o_proj.weight_scale"
        first, second = self.checkpoint.shards.values()
        second[name] = first.pop(name)
        self.expect(f"{name} lies in model-00002-of-00002.safetensors, its weight in model-00001")

    def test_the_rest_is_bf16_and_the_router_bias_f32(self):
        for name, shape, dtype in (("model.layers.1.self_attn.kv_b_proj.weight", (32, 12), "F16"),
                                   ("model.layers.1.mlp.gate.weight", (2, 32), "F32"),
                                   ("model.layers.1.mlp.gate.e_score_correction_bias", (2,), "BF16"),
                                   ("model.layers.2.mlp.experts.0.up_proj.weight", (16, 32), "F16"),
                                   ("lm_head.weight", (40, 32), "F32")):
            with self.subTest(name):
                self.checkpoint = Checkpoint()
                self.checkpoint.set(name, plain(dtype, *shape))
                self.expect(f"{name} is {dtype}")

    def test_an_mtp_layer_that_was_quantized_is_found(self):
        module = "model.layers.2.mlp.experts.0.up_proj"
        self.checkpoint.shard_of(f"{module}.weight").update(quantized(module, 16, 32))
        self.expect(f"{module}.weight is U8", f"{module}.input_scale is not expected",
                    f"{module}.weight_scale is not expected", f"{module}.weight_scale_2 is not expected")

    def test_fp8_scales_and_strangers_are_found(self):
        self.checkpoint.shards["model-00001-of-00002.safetensors"].update({
            "model.layers.0.self_attn.q_a_proj.weight_scale_inv": plain("F32", 1, 1),
            "model.layers.9.mlp.down_proj.weight": plain("BF16", 4, 4)})
        self.expect("q_a_proj.weight_scale_inv is left over from the FP8 checkpoint",
                    "model.layers.9.mlp.down_proj.weight is not expected")

    def test_the_index_lists_every_tensor_in_its_shard_with_the_total(self):
        def drop(index):
            del index["weight_map"]["lm_head.weight"]
        self.checkpoint.change_index = drop
        self.expect("lm_head.weight is not listed")

        def misplace(index):
            index["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
            index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
        self.checkpoint.change_index = misplace
        self.expect("ghost is listed, but in no shard", "lm_head.weight is listed in model-00001")

        def miscount(index):
            index["metadata"]["total_size"] += 1
        self.checkpoint.change_index = miscount
        self.expect("metadata.total_size is")

    def test_a_tensor_in_two_shards_is_found(self):
        self.checkpoint.shards["model-00001-of-00002.safetensors"]["lm_head.weight"] = plain("BF16", 40, 32)
        problems = self.problems()
        self.assertTrue(any("lm_head.weight is in model-00001" in problem for problem in problems), problems)

    def test_the_exclusion_list_is_exact(self):
        excluded = self.checkpoint.hf_quant_config["quantization"]["exclude_modules"]
        excluded.insert(1, excluded.pop(2))
        self.checkpoint.config["quantization_config"]["ignore"] = excluded
        self.expect("exclude_modules differs from the v2 list of 10 names: missing [], not expected [], another order")
        excluded.remove("model.layers.1.self_attn.kv_b_proj")
        self.expect("missing ['model.layers.1.self_attn.kv_b_proj']",
                    "model.layers.1.self_attn.kv_b_proj should be in exclude_modules")

    # The published list: 1 + 4 * 61 + 1 names, sorted as text, the MTP layer last.
    def test_the_list_for_61_layers_is_the_published_one(self):
        names = checker.Model({**CONFIG, "num_hidden_layers": 61}).exclusions("v2")
        self.assertEqual(len(names), 246)
        self.assertEqual(names[:6], EXCLUDED[:6])
        self.assertEqual(names[9], "model.layers.10.self_attn.kv_a_proj_with_mqa")
        self.assertEqual(names[-1], "model.layers.61*")

    def test_values_of_hf_quant_config_are_checked(self):
        for key, value in (("quant_algo", "FP8"), ("kv_cache_quant_algo", None), ("group_size", 32)):
            with self.subTest(key):
                self.checkpoint = Checkpoint()
                self.checkpoint.hf_quant_config["quantization"][key] = value
                self.expect(f"hf_quant_config.json: {key} is ")

    def test_config_json_agrees_with_hf_quant_config(self):
        self.checkpoint.config["quantization_config"]["ignore"] = EXCLUDED[:-1]
        self.expect("config.json: quantization_config.ignore is")
        self.checkpoint = Checkpoint()
        self.checkpoint.config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3"}
        self.assertGreater(len(self.problems()), 3)
        del self.checkpoint.config["quantization_config"]
        self.expect("config.json: no quantization_config")

    def test_broken_files_are_refused_with_their_name(self):
        def change(function):
            self.checkpoint = Checkpoint()
            self.checkpoint.change_bytes = (
                lambda shard, data: function(data) if shard.startswith("model-00002") else data)
        change(lambda data: data[:-1])
        self.assertIn("the file at", self.problems()[0])
        change(lambda data: data + b"\0")
        self.assertIn("the file at", self.problems()[0])
        change(lambda data: data[:5])
        self.expect("model-00002-of-00002.safetensors: 5 bytes do not hold a header")
        change(lambda data: b"\xff" * 8 + data[8:])
        self.expect("do not hold a header")
        change(lambda data: data[:8] + b"[" + data[9:])
        self.expect("bad header")


class RealCheckpoint(unittest.TestCase):
    def setUp(self):
        if REAL_CHECKPOINT is None:
            self.skipTest("no directory was given")

    def test_it_has_no_problem(self):
        problems, summary = checker.check_checkpoint(REAL_CHECKPOINT)
        self.assertEqual(problems, [])
        print(summary)

    def test_one_changed_byte_of_a_block_scale_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / "checkpoint"
            shutil.copytree(REAL_CHECKPOINT, copied)
            index = json.loads((copied / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
            name = next(name for name in sorted(index) if name.endswith(".weight_scale"))
            tensor = checker.read_shard(copied / index[name], [])[name]
            with open(copied / index[name], "r+b") as file:
                file.seek(tensor.end - 1)
                file.write(b"\x7f")
            problems, _ = checker.check_checkpoint(copied)
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(f"{name} has 1 bytes with a sign or NaN", problems[0])


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        REAL_CHECKPOINT = Path(sys.argv.pop(1))
    unittest.main()
