#!/usr/bin/env python3
"""Checks every #include under nibble/ against the table of layers.

    tools/check_layers.py [ROOT]     ROOT is the repository, by default the one this file is in

Two kinds of rule: which folder may include which and link which (LAYERS), and where the headers of
other people may appear (FOREIGN). Prints each violation as file:line: message and exits 1 if there is
any.
"""
import re
import sys
from pathlib import Path

ALL = "*"

# folder: what it may include besides itself. "model(config.h)" is one header only.
LAYERS = {
    "base": [],
    "numeric": ["base"],
    "tensor": ["base"],
    "device": ["base", "tensor"],
    "checkpoint": ["base", "numeric", "tensor"],
    "tokenizer": ["base"],
    "kernels": ["base", "numeric", "tensor", "device"],
    "comm": ["base", "tensor", "device"],
    "model": ["base", "numeric", "tensor", "device", "checkpoint", "kernels", "comm"],
    "plan": ["base", "tensor", "checkpoint", "model(config.h)"],
    "quantize": ["base", "numeric", "tensor", "device", "checkpoint", "kernels", "model"],
    "offload": ["base", "tensor", "device", "checkpoint", "kernels", "model(expert_store.h)",
                "model(linear_format.h)"],
    "grammar": ["base", "tokenizer"],
    "engine": ["base", "numeric", "tensor", "device", "checkpoint", "tokenizer", "kernels", "comm",
               "model", "offload", "grammar"],
    "eval": ["base", "tokenizer", "engine"],
    # grammar: a tool's schema is refused before its reply begins.
    "server": ["base", "tokenizer", "grammar", "engine"],
    "api": ["base", "checkpoint", "tokenizer", "grammar", "engine"],
    "cli": [ALL],
}
# The public headers of include/nibble/: nothing inside may build on them but their implementation.
PUBLIC_HEADERS_FOR = ("api",)

SOURCE = {".cpp", ".cu", ".c"}
HEADER = {".h", ".cuh", ".hpp"}
JSON_FOLDERS = ("checkpoint", "tokenizer", "grammar", "eval", "server", "quantize", "cli")


def in_folders(*folders):
    return lambda path: any(path.startswith(f"nibble/{folder}/") for folder in folders)


def source_in(*folders):
    return lambda path: in_folders(*folders)(path) and Path(path).suffix in SOURCE


def named_after_isa(path):
    return re.search(r"_(avx2|avx512|avx512vnni|avx512bf16|amx)$", Path(path).stem) is not None


# (pattern of the included name, who may include it, the rule in words)
FOREIGN = [
    (r"cuda.*\.h|cublas.*\.h|nv.*\.h|cub/.*|thrust/.*|mma\.h|cooperative_groups.*",
     in_folders("device/cuda", "kernels/cuda", "comm/cuda"),
     "only device/cuda/, kernels/cuda/ and comm/cuda/"),
    (r"nccl\.h|mpi\.h", in_folders("comm"), "only comm/"),
    (r"nlohmann/json\.hpp", source_in(*JSON_FOLDERS),
     "only .cpp files of " + ", ".join(f"{folder}/" for folder in JSON_FOLDERS)),
    (r"nlohmann/json_fwd\.hpp", in_folders(*JSON_FOLDERS),
     "only " + ", ".join(f"{folder}/" for folder in JSON_FOLDERS)),
    (r"CLI/.*", source_in("cli"), "only .cpp files of cli/"),
    (r"httplib\.h|sys/socket\.h|netinet/.*|arpa/inet\.h|netdb\.h|sys/un\.h", in_folders("server"),
     "only server/"),
    # http_connection.h is what two .cpp files of the server share, and nobody else includes it.
    (r"boost/(asio|beast)(/.*|\.hpp)",
     lambda path: source_in("server", "cli", "eval")(path) or path == "nibble/server/http_connection.h",
     "only .cpp files of server/, cli/ and eval/, and http_connection.h"),
    (r"(pcre2\.h|regex)", lambda path: Path(path).suffix in SOURCE, "only .cpp files"),
    (r"(imm|x86|amm|emm|xmm|pmm|tmm|smm|nmm|wmm)intrin\.h|.*avx.*intrin\.h", named_after_isa,
     "only files named _avx2, _avx512, _avx512vnni, _avx512bf16 or _amx"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def without_block_comments(text):
    """The text with block comments blanked, line numbers kept."""
    return re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.S)


def check_own(folder, included):
    """What is wrong with folder including "nibble/...", or None."""
    parts = included.split("/")
    if len(parts) < 3:
        return f'"{included}" is in no folder of nibble/'
    other, rest = parts[1], "/".join(parts[2:])
    if other not in LAYERS:
        return f"{other}/ has no line in the table of layers"
    allowed = LAYERS[folder]
    if other == folder or ALL in allowed or other in allowed or f"{other}({rest})" in allowed:
        return None
    single = [entry for entry in allowed if entry.startswith(other + "(")]
    if single:
        return f"{folder}/ may include only {single[0]} of {other}/"
    return f"{folder}/ may not include {other}/ (its line: {' '.join(allowed) or 'nothing'})"


def check_file(root, path):
    """Yields (line number, message) for a file under root/nibble."""
    name = path.relative_to(root).as_posix()
    parts = name.split("/")
    if len(parts) < 3:
        yield 1, "a source file belongs in a folder of nibble/"
        return
    folder = parts[1]
    if folder not in LAYERS:
        yield 1, f"{folder}/ has no line in the table of layers"
        return
    text = without_block_comments(path.read_text(encoding="utf-8", errors="replace"))
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, included = match.group(1) == '"', match.group(2)
        if included.startswith("nibble/"):
            if included.count("/") == 1 and (root / "include" / included).is_file():
                if folder not in PUBLIC_HEADERS_FOR:
                    yield number, f"public {included} may be included by {' '.join(PUBLIC_HEADERS_FOR)} only"
                continue
            message = check_own(folder, included)
            if message:
                yield number, message
            elif not (root / included).is_file():
                yield number, f"{included} does not exist"
            continue
        if included.startswith(("tests/", "bench/", "tools/")):
            yield number, f"{included}: the program may not depend on its tests or tools"
            continue
        if quoted and (path.parent / included).is_file():
            yield number, f'include "{included}" from the repository root'
            continue
        for pattern, allowed, rule in FOREIGN:
            if re.fullmatch(pattern, included) and not allowed(name):
                yield number, f"{included} may be included by {rule}"


def check_links(root, path):
    """Yields (line number, message) for the nibble_... targets that a folder's CMakeLists.txt links."""
    folder = path.relative_to(root).parts[1]
    allowed = LAYERS.get(folder, [ALL])
    # The target of a folder of which one header may be included is needed to link that header's part.
    linkable = {folder} | {entry.split("(")[0] for entry in allowed}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for other in re.findall(r"\bnibble_(\w+)", line.split("#")[0]):
            first = other.split("_")[0]
            if first in LAYERS and first not in linkable and ALL not in allowed:
                yield number, f"{folder}/ may not link nibble_{other} (its line: {' '.join(allowed) or 'nothing'})"


def check_tree(root):
    """All violations under root/nibble as 'file:line: message', in order of file and line."""
    problems = []
    for path in sorted((root / "nibble").rglob("*")):
        if path.suffix in SOURCE | HEADER and path.is_file():
            for number, message in check_file(root, path):
                problems.append(f"{path.relative_to(root).as_posix()}:{number}: {message}")
    for path in sorted((root / "nibble").glob("*/**/CMakeLists.txt")):
        for number, message in check_links(root, path):
            problems.append(f"{path.relative_to(root).as_posix()}:{number}: {message}")
    return problems


def main(arguments):
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: tools/check_layers.py [ROOT]", file=sys.stderr)
        return 2
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    if not (root / "nibble").is_dir():
        print(f"tools/check_layers.py: {root} has no folder nibble/", file=sys.stderr)
        return 2
    problems = check_tree(root)
    print("\n".join(problems) if problems else "layers: every include is permitted")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
