"""tools/check_isa_objects.py finds an inline function in an ISA file and flags where they don't belong.

The compiler comes from the environment variable CXX, g++ by default."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_isa_objects  # noqa: E402

CLEAN = """
namespace { float twice(float x) { return x + x; } }
void kernel_avx2(float* out) { out[0] = twice(out[0]); }
"""
PLANTED = """
#pragma GCC optimize("no-inline")
inline float twice(float x) { return x + x; }
float (*address)(float) = twice;
void kernel_avx2(float* out) { out[0] = address(out[0]); }
"""


class CheckIsaObjects(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.build = Path(self.folder.name)
        self.commands = []

    def add(self, name, text, flags=(), compiled=True):
        source, output = self.build / name, name + ".o"
        source.write_text(text, encoding="utf-8")
        arguments = [os.environ.get("CXX", "g++"), "-O2", *flags, "-c", name, "-o", output]
        if compiled:
            subprocess.run(arguments, cwd=self.build, check=True)
        self.commands.append({"directory": str(self.build), "file": str(source), "output": output,
                              "command": " ".join(arguments)})
        (self.build / "compile_commands.json").write_text(json.dumps(self.commands), encoding="utf-8")

    def test_an_object_with_local_helpers_passes(self):
        self.add("kernel_avx2.cpp", CLEAN)
        self.assertEqual(check_isa_objects.check_build(self.build), ([], 1))

    def test_an_inline_function_is_found_by_name(self):
        self.add("kernel_avx2.cpp", PLANTED)
        problems, checked = check_isa_objects.check_build(self.build)
        self.assertEqual((len(problems), checked), (1, 1))
        self.assertIn("weak symbol twice(float)", problems[0])

    def test_an_inline_function_elsewhere_is_no_problem(self):
        self.add("kernel.cpp", PLANTED)
        self.assertEqual(check_isa_objects.check_build(self.build), ([], 0))

    def test_a_flag_on_an_ordinary_file_is_found(self):
        self.add("kernel.cpp", CLEAN, flags=["-mavx2"], compiled=False)
        problems, _ = check_isa_objects.check_build(self.build)
        self.assertEqual(len(problems), 1)
        self.assertIn("built with -mavx2", problems[0])

    def test_an_object_that_was_not_built_is_a_problem(self):
        self.add("kernel_avx512.cpp", CLEAN, compiled=False)
        problems, checked = check_isa_objects.check_build(self.build)
        self.assertEqual((len(problems), checked), (1, 0))
        self.assertIn("not built", problems[0])


if __name__ == "__main__":
    unittest.main()
