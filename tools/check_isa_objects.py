#!/usr/bin/env python3
"""Checks that code for newer processors stays in the files that are named after it.

    tools/check_isa_objects.py BUILD_DIR     for instance build/cpu

A file named _avx2, _avx512, _avx512vnni, _avx512bf16 or _amx is built with flags of its own. If it defines an inline function,
the linker may keep that copy for the whole program, which then dies on an older processor. So:

  1. no such object may define a weak symbol (nm: W, V or u),
  2. no other source may be built with such flags (compile_commands.json).

Prints problems and exits 1 if there is any.
"""
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

ISA_NAME = re.compile(r"_(avx2|avx512|avx512vnni|avx512bf16|amx)$")
ISA_FLAG = re.compile(r"-m(avx|fma|f16c|bmi|amx|sse[34]|ssse3|arch=|cpu=|popcnt|lzcnt).*")


def weak_symbols(object_path):
    """Names of the weak symbols that an object file defines, demangled."""
    lines = subprocess.run(["nm", "--defined-only", "-C", str(object_path)], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    matches = (re.match(r"^[0-9a-f]*\s+([WVu])\s+(.*)$", line) for line in lines)
    return [match.group(2) for match in matches if match]


def check_build(build):
    """(problems, number of objects looked at) for a build tree with a compile_commands.json."""
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    problems, checked = [], 0
    for entry in commands:
        source = Path(entry["file"])
        arguments = entry.get("arguments") or shlex.split(entry["command"])
        if not ISA_NAME.search(source.stem):
            flags = [argument for argument in arguments if ISA_FLAG.fullmatch(argument)]
            if flags:
                problems.append(f"{source}: built with {' '.join(flags)}, but its name ends in none of "
                                "_avx2, _avx512, _avx512vnni, _amx")
            continue
        output = entry.get("output") or arguments[arguments.index("-o") + 1]
        object_path = Path(entry["directory"]) / output
        if not object_path.is_file():
            problems.append(f"{object_path}: not built, so not checked; build everything first")
            continue
        checked += 1
        for symbol in weak_symbols(object_path):
            problems.append(f"{source}: defines the weak symbol {symbol}; the linker may keep this copy "
                            "for every caller")
    return problems, checked


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: tools/check_isa_objects.py BUILD_DIR", file=sys.stderr)
        return 2
    build = Path(arguments[0])
    if not (build / "compile_commands.json").is_file():
        print(f"tools/check_isa_objects.py: {build} has no compile_commands.json: configure it with a "
              "preset", file=sys.stderr)
        return 2
    problems, checked = check_build(build)
    print("\n".join(problems) if problems else f"ISA objects: no weak symbol in {checked} objects")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
