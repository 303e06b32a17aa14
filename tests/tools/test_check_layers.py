"""tools/check_layers.py finds planted violations and passes what is permitted."""
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_layers  # noqa: E402


class CheckLayers(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)
        for name in ("base/result.h", "model/config.h", "model/weights.h", "engine/engine.h",
                     "checkpoint/config.h"):
            self.write(f"nibble/{name}", "#pragma once\n")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def problems(self):
        return check_layers.check_tree(self.root)

    def expect(self, name, text, *messages):
        self.write(name, text)
        problems = self.problems()
        self.assertEqual(len(problems), len(messages), problems)
        for problem, message in zip(problems, messages):
            self.assertIn(message, problem)
            self.assertTrue(problem.startswith(f"{name}:"), problem)

    def test_a_permitted_include_passes(self):
        self.expect("nibble/engine/engine.cpp",
                    '#include "nibble/engine/engine.h"\n#include "nibble/base/result.h"\n'
                    '#include "nibble/model/config.h"\n#include <vector>\n')

    def test_an_upward_include_is_found_with_its_line(self):
        self.expect("nibble/model/forward.cpp",
                    '#include "nibble/base/result.h"\n\n#include "nibble/engine/engine.h"\n',
                    "forward.cpp:3: model/ may not include engine/")

    def test_an_indented_include_is_found(self):
        self.expect("nibble/base/text.cpp", ' #  include "nibble/model/config.h"\n',
                    "base/ may not include model/ (its line: nothing)")

    def test_a_commented_include_is_none(self):
        self.expect("nibble/base/text.cpp",
                    '// #include "nibble/model/config.h"\n/*\n#include "nibble/model/config.h"\n*/\n')

    def test_a_single_permitted_header_is_only_that_one(self):
        self.expect("nibble/plan/plan.cpp", '#include "nibble/model/config.h"\n')
        self.expect("nibble/plan/plan.cpp", '#include "nibble/model/weights.h"\n',
                    "plan/ may include only model(config.h) of model/")

    def test_a_folder_without_a_line_is_found(self):
        self.expect("nibble/utils/misc.h", "#pragma once\n", "utils/ has no line")

    def test_a_header_that_does_not_exist_is_found(self):
        self.expect("nibble/base/text.cpp", '#include "nibble/base/txt.h"\n', "does not exist")

    def test_a_public_header_is_for_its_implementation_alone(self):
        self.write("include/nibble/llm.h", "#pragma once\n")
        self.expect("nibble/api/llm.cpp", '#include "nibble/llm.h"\n')
        self.expect("nibble/engine/engine.cpp", '#include "nibble/llm.h"\n',
                    "public nibble/llm.h may be included by api only")

    def test_a_relative_include_is_found(self):
        self.expect("nibble/base/text.cpp", '#include "result.h"\n', "from the repository root")

    def test_tests_are_not_included(self):
        self.expect("nibble/base/text.cpp", '#include "tests/base/temporary_folder.h"\n',
                    "may not depend on its tests")

    def test_foreign_headers_stay_in_their_places(self):
        permitted = {
            "nibble/kernels/cuda/a.cu": "cuda_runtime.h", "nibble/device/cuda/a.cpp": "cuda_runtime.h",
            "nibble/checkpoint/a.cpp": "nlohmann/json.hpp", "nibble/cli/a.cpp": "CLI/CLI.hpp",
            "nibble/server/a.cpp": "httplib.h", "nibble/kernels/cpu/a_avx2.cpp": "immintrin.h",
            "nibble/comm/a.cpp": "nccl.h"}
        for name, header in permitted.items():
            self.write(name, f"#include <{header}>\n")
        self.assertEqual(self.problems(), [])
        refused = {
            "nibble/kernels/cpu/b.cpp": "immintrin.h", "nibble/engine/b.cpp": "cuda_runtime.h",
            "nibble/kernels/b.h": "cuda_fp8.h", "nibble/model/b.cpp": "nlohmann/json.hpp",
            "nibble/checkpoint/b.h": "nlohmann/json.hpp", "nibble/engine/c.cpp": "CLI/CLI.hpp",
            "nibble/cli/b.cpp": "sys/socket.h", "nibble/model/c.cpp": "nccl.h",
            "nibble/tokenizer/b.h": "regex", "nibble/plan/b.cpp": "boost/asio/ip/tcp.hpp"}
        for name, header in refused.items():
            self.write(name, f"#include <{header}>\n")
        found = [problem.split(":")[0] for problem in self.problems()]
        self.assertEqual(found, sorted(refused))

    def test_a_forbidden_link_is_found(self):
        self.write("nibble/model/CMakeLists.txt", "nibble_library(model LINKS nibble_base nibble_engine)\n")
        self.assertEqual(len(self.problems()), 1)
        self.assertIn("model/ may not link nibble_engine", self.problems()[0])

    def test_the_table_has_no_cycle(self):
        def reach(folder, path):
            self.assertNotIn(folder, path)
            for entry in check_layers.LAYERS[folder]:
                if entry != check_layers.ALL:
                    reach(entry.split("(")[0], path + [folder])
        for folder in check_layers.LAYERS:
            reach(folder, [])

    def test_this_repository_passes(self):
        self.assertEqual(check_layers.check_tree(ROOT), [])


if __name__ == "__main__":
    unittest.main()
