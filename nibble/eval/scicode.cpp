#include "nibble/eval/scicode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "nibble/eval/extract.h"
#include "nibble/eval/sandbox.h"
#include "nibble/eval/task.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// What the tests import from the SciCode package: comparisons of results.
constexpr std::string_view kCompare = R"python(
def _nibble_modules():
    import sys, types
    import numpy as np
    def dense(value):
        return value.toarray() if hasattr(value, 'toarray') else value
    def close(a, b, **limits):
        try:
            return bool(np.allclose(dense(a), dense(b), **limits))
        except (ValueError, TypeError):
            return bool(a == b)
    def plain(mapping):
        def text(value):
            return str(value) if type(value).__module__.startswith('sympy') else value
        return {text(key): text(value) for key, value in mapping.items()}
    def are_dicts_close(dict1, dict2, atol=1e-8, rtol=1e-5):
        dict1, dict2 = plain(dict1), plain(dict2)
        if dict1.keys() != dict2.keys():
            return False
        return all(dict1[key] == dict2[key] if isinstance(dict1[key], str)
                   else close(dict1[key], dict2[key], atol=atol, rtol=rtol) for key in dict1)
    def are_csc_matrix_close(matrix1, matrix2):
        return close(matrix1, matrix2)
    def cmp_tuple_or_list(var1, var2):
        if len(var1) != len(var2):
            return False
        for a, b in zip(var1, var2):
            if isinstance(a, dict):
                same = are_dicts_close(a, b)
            elif isinstance(a, bool):
                same = a == b
            else:
                same = close(a, b)
            if not same:
                return False
        return True
    package, compare = types.ModuleType('scicode'), types.ModuleType('scicode.compare')
    cmp = types.ModuleType('scicode.compare.cmp')
    for function in (are_dicts_close, are_csc_matrix_close, cmp_tuple_or_list):
        setattr(cmp, function.__name__, function)
    package.compare, compare.cmp = compare, cmp
    sys.modules.update({'scicode': package, 'scicode.compare': compare, 'scicode.compare.cmp': cmp})
_nibble_modules()
)python";

// The groups of the HDF5 file: one variable is the target itself, several are a tuple; a group is
// a list, a sparse matrix (coo, bsr, csr) or a dict.
constexpr std::string_view kTargets = R"python(
def _nibble_targets(step, count):
    import h5py, os
    def value(data):
        data = data[()]
        return data.decode() if isinstance(data, bytes) else data
    def sparse(group):
        import scipy.sparse as s
        data, shape = group['data'][()], tuple(group['shape'][()])
        if 'row' in group and 'col' in group:
            return s.coo_matrix((data, (group['row'][()], group['col'][()])), shape=shape)
        parts = (data, group['indices'][()], group['indptr'][()])
        if 'blocksize' in group:
            return s.bsr_matrix(parts, shape=shape, blocksize=tuple(group['blocksize'][()]))
        return s.csr_matrix(parts, shape=shape)
    def mapping(group):
        result = {}
        for key, item in group.items():
            if isinstance(item, h5py.Group):
                result[key] = sparse(item['sparse_matrix'])
                continue
            entry = value(item)
            try:
                result[key if isinstance(entry, str) else float(key)] = entry
            except ValueError:
                result[key] = entry
        return result
    def variable(item):
        if isinstance(item, h5py.Dataset):
            return value(item)
        if 'list' in item:
            return [part[()] for part in item['list'].values()]
        if 'sparse_matrix' in item:
            return sparse(item['sparse_matrix'])
        return mapping(item)
    targets = []
    with h5py.File(os.environ['NIBBLE_DATA'], 'r') as file:
        for number in range(1, count + 1):
            group = file['%s/test%d' % (step, number)]
            variables = [variable(group[key]) for key in group.keys()]
            targets.append(variables[0] if len(variables) == 1 else tuple(variables))
    return targets
)python";

// Reads a program from standard input, writes the definition of `name`.
constexpr std::string_view kDefinition = R"python(
import ast, os, sys
program, name = sys.stdin.read(), {}
try:
    found = [ast.unparse(node) for node in ast.walk(ast.parse(program))
             if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
    text = found[0] if found else ''
except Exception:
    text = program
data = text.encode()
while data:
    data = data[os.write(3, data):]
)python";

}  // namespace

bool is_given_step(std::string_view step) {
  constexpr std::array<std::string_view, 3> kGiven = {"13.6", "62.1", "76.3"};
  return std::find(kGiven.begin(), kGiven.end(), step) != kGiven.end();
}

std::string name_in_header(std::string_view header) {
  const auto is_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  for (const std::string_view keyword : {"def ", "class "}) {
    size_t at = header.find(keyword);
    while (at != std::string_view::npos && at > 0 && is_word(header[at - 1])) {
      at = header.find(keyword, at + 1);
    }
    if (at == std::string_view::npos) continue;
    std::string_view rest = trim(header.substr(at + keyword.size()));
    size_t end = 0;
    while (end < rest.size() && is_word(rest[end])) ++end;
    if (end > 0) return std::string(rest.substr(0, end));
  }
  return {};
}

Result<std::string> definition_in(const std::string& program, const std::string& name,
                                  SandboxLevel level) {
  if (name.empty()) return program;
  SandboxLimits limits;
  limits.level = level;
  const SandboxResult run =
      NIBBLE_TRY(run_python(fmt::format(kDefinition, Json(name).dump()), program, limits));
  if (run.outcome == SandboxOutcome::kExited && run.exit_code == 0) return run.result;
  return program;
}

std::string scicode_program(std::string_view program, std::string_view earlier,
                            std::string_view tests) {
  const Json spec = Json::parse(tests, nullptr, false);
  const bool from_file = spec.contains("targets_file");
  std::string text(kCompare);
  text += spec.value("dependencies", "") + "\n" + std::string(earlier) + "\n" +
          std::string(program) + "\nimport json as _json, numpy as np\n";
  if (from_file) {
    text += std::string(kTargets) + fmt::format("_nibble_all = _nibble_targets({}, {})\n",
                                                Json(spec.value("step", "")).dump(),
                                                spec["test_cases"].size());
  }
  int number = 0;
  for (const Json& test : spec["test_cases"]) {
    ++number;
    if (from_file) {
      text += fmt::format("target = _nibble_all[{}]\n", number - 1);
    } else {
      const Json targets = spec["targets"].value(fmt::format("test{}", number), Json::object());
      // One variable is `target` itself, several are a tuple, as SciCode's own loader gives them.
      std::string values;
      for (size_t i = 1; targets.contains(fmt::format("var{}", i)); ++i) {
        const std::string json = targets[fmt::format("var{}", i)].dump();
        values += fmt::format("_json.loads({}), ", Json(json).dump());
      }
      text += targets.size() == 1 ? fmt::format("(target,) = ({})\n", values)
                                  : fmt::format("target = ({})\n", values);
    }
    text += (test.is_string() ? test.get<std::string>() : test.dump()) + "\n";
  }
  return text + "import os as _os\n_os.write(3, b'passed')\n";
}

std::string targets_file_of(std::string_view tests) {
  return Json::parse(tests, nullptr, false).value("targets_file", "");
}

std::string chain_prompt(const EvalItem& item, const std::vector<EarlierStep>& earlier) {
  std::string steps;
  for (const EarlierStep& one : earlier) {
    steps += fmt::format("{}{}\n\n{}", steps.empty() ? "" : "\n\n------\n\n", one.text, one.code);
  }
  // Places are found before any is filled, so that nothing in an answer is taken for one.
  std::string prompt = item.prompt;
  const std::array<std::pair<std::string_view, std::string>, 3> parts = {
      {{"{problem_steps_str}", steps},
       {"{next_step_str}", item.chain->text + "\n\n" + item.chain->code},
       {"{dependencies}", item.chain->dependencies}}};
  std::vector<std::pair<size_t, size_t>> places;
  for (size_t i = 0; i < parts.size(); ++i) {
    const size_t at = prompt.find(parts[i].first);
    if (at != std::string::npos) places.emplace_back(at, i);
  }
  std::sort(places.rbegin(), places.rend());
  for (const auto& [at, i] : places) prompt.replace(at, parts[i].first.size(), parts[i].second);
  return prompt;
}

}  // namespace nibble
