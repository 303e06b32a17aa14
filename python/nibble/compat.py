"""python -m nibble.compat SCRIPT [ARGUMENT...]: runs a program written for TensorRT-LLM's LLM API.

Where the real ones can't be imported, modules tensorrt_llm, tensorrt_llm._torch and
tensorrt_llm.llmapi with this package's LLM, SamplingParams and configurations take their place.
"""
from __future__ import annotations

import importlib.util
import runpy
import sys
import types

import nibble

_MODULES = ("tensorrt_llm", "tensorrt_llm._torch", "tensorrt_llm.llmapi")
_NAMES = ("LLM", "KvCacheConfig", "MTPDecodingConfig", "RequestOutput", "SamplingParams")


def install() -> bool:
    """Puts the modules in place; False when the real tensorrt_llm is there."""
    if "tensorrt_llm" in sys.modules or importlib.util.find_spec("tensorrt_llm") is not None:
        return False
    for name in _MODULES:
        module = types.ModuleType(name, f"{name}, as far as nibble has it")
        for attribute in _NAMES:
            setattr(module, attribute, getattr(nibble, attribute))
        sys.modules[name] = module
    package = sys.modules["tensorrt_llm"]
    package.__path__ = []  # a package: its submodules are the two
    package.__version__ = nibble.__version__  # type: ignore[attr-defined]
    package._torch = sys.modules["tensorrt_llm._torch"]  # type: ignore[attr-defined]
    package.llmapi = sys.modules["tensorrt_llm.llmapi"]  # type: ignore[attr-defined]
    return True


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m nibble.compat SCRIPT [ARGUMENT...]", file=sys.stderr)
        raise SystemExit(2)
    install()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
