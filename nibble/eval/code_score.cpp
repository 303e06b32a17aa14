#include "nibble/eval/code_score.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/sandbox.h"
#include "nibble/eval/scicode.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr double kTestSeconds = 6;
constexpr double kSciCodeSeconds = 1800;
constexpr double kNearLimit = 0.8;  // of the time: another machine might decide otherwise

// What LiveCodeBench puts in front of every program.
constexpr std::string_view kHeader = R"python(
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics
import itertools, functools, operator, io, sys, json
sys.setrecursionlimit(50000)
)python";

// Arguments come as JSON, one a line; the result goes to descriptor 3 as JSON. The names it needs
// are bound before the program runs, and it writes once: what a program writes there itself makes
// the result unreadable, which counts as wrong.
constexpr std::string_view kCall = R"python(
def _nibble_call(_json, _os, _sys):
    _write, _dumps, _loads = _os.write, _json.dumps, _json.loads
    _arguments = [_loads(line) for line in _sys.stdin.read().split('\n') if line.strip()]
    def _run(scope, name):
        target = getattr(scope['Solution'](), name) if 'Solution' in scope else scope[name]
        data = _dumps(target(*_arguments)).encode()
        while data:
            data = data[_write(3, data):]
    return _run
import json as _json, os as _os, sys as _sys
_nibble_run = _nibble_call(_json, _os, _sys)
)python";

std::vector<std::string_view> trimmed_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  text = trim(text);
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(trim(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> all;
  while (!(text = trim(text)).empty()) {
    const size_t end = std::min(text.find_first_of(" \t"), text.size());
    all.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return all;
}

// "-012.50e0" is no plain decimal; "-12.50" becomes "-12.5", so that equal numbers are equal texts.
std::optional<std::string> plain_decimal(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const size_t point = std::min(text.find('.'), text.size());
  std::string whole(text.substr(0, point));
  std::string part(point < text.size() ? text.substr(point + 1) : std::string_view());
  const auto digits = [](const std::string& s) {
    return std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  if ((whole.empty() && part.empty()) || !digits(whole) || !digits(part)) return std::nullopt;
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
  while (!part.empty() && part.back() == '0') part.pop_back();
  if (whole.empty()) whole = "0";
  std::string result = whole + (part.empty() ? "" : "." + part);
  return negative && result != "0" ? "-" + result : result;
}

// Why a process that ran is no pass, or nothing.
std::string failure(const SandboxResult& run) {
  switch (run.outcome) {
    case SandboxOutcome::kTimeout:
      return "time";
    case SandboxOutcome::kOutputLimit:
      return "output_limit";
    case SandboxOutcome::kFailed:
      return "sandbox_error";
    case SandboxOutcome::kExited:
      return run.exit_code == 0 ? "" : "runtime";
  }
  return "";
}

bool same_values(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_number_integer() && b.is_number_integer()) return a == b;
    return a.get<double>() == b.get<double>();
  }
  if (a.is_array() && b.is_array()) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same_values);
  }
  if (a.is_object() && b.is_object()) {
    if (a.size() != b.size()) return false;
    return std::all_of(a.items().begin(), a.items().end(), [&](const auto& item) {
      return b.contains(item.key()) && same_values(item.value(), b[item.key()]);
    });
  }
  return a == b;
}

}  // namespace

bool same_output(std::string_view expected, std::string_view found) {
  const auto a = trimmed_lines(expected), b = trimmed_lines(found);
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const auto x = words(a[i]), y = words(b[i]);
    if (x.size() != y.size()) return false;
    for (size_t j = 0; j < x.size(); ++j) {
      if (x[j] == y[j]) continue;
      const auto p = plain_decimal(x[j]), q = plain_decimal(y[j]);
      if (!p || !q || *p != *q) return false;
    }
  }
  return true;
}

bool same_json(std::string_view expected, std::string_view found) {
  const Json a = Json::parse(expected, nullptr, false);
  const Json b = Json::parse(found, nullptr, false);
  return !a.is_discarded() && !b.is_discarded() && same_values(a, b);
}

Result<CodeScore> score_code(std::string_view program, std::string_view tests, SandboxLevel level) {
  const Json spec = Json::parse(tests, nullptr, false);
  const std::string name = spec.value("func_name", "");
  int number = 0;
  bool is_near_limit = false;
  for (const Json& test : spec["tests"]) {
    ++number;
    const std::string expected = test.value("output", "");
    const bool functional = test.value("testtype", "") == "functional" && !name.empty();
    std::string text(kHeader);
    if (functional) text += kCall;
    text.append(program);
    if (functional) text += fmt::format("\n_nibble_run(globals(), {})\n", Json(name).dump());
    SandboxLimits limits;
    limits.level = level;
    limits.seconds = kTestSeconds;
    const SandboxResult run = NIBBLE_TRY(run_python(text, test.value("input", ""), limits));
    is_near_limit |= run.seconds > kNearLimit * kTestSeconds;
    std::string why = failure(run);
    if (why.empty()) {
      const bool same =
          functional ? same_json(expected, run.result) : same_output(expected, run.out);
      if (!same) why = "wrong";
    }
    if (why == "sandbox_error") {
      return CodeScore{"sandbox_error", fmt::format("test {}", number), is_near_limit};
    }
    if (!why.empty()) {
      return CodeScore{"wrong", fmt::format("test {}: {}", number, why), is_near_limit};
    }
  }
  return CodeScore{"correct", fmt::format("{} tests", number), is_near_limit};
}

Result<CodeScore> score_scicode(std::string_view program, std::string_view earlier,
                                std::string_view tests, SandboxLevel level) {
  SandboxLimits limits;
  limits.level = level;
  limits.seconds = kSciCodeSeconds;
  limits.data_file = targets_file_of(tests);
  const SandboxResult run =
      NIBBLE_TRY(run_python(scicode_program(program, earlier, tests), "", limits));
  for (const char* module : {"numpy", "scipy", "sympy", "h5py"}) {
    if (run.err.find(fmt::format("No module named '{}'", module)) != std::string::npos) {
      return unsupported(fmt::format(
          "SciCode's tests need {0} for /usr/bin/python3: install python3-{0}", module));
    }
  }
  const bool is_near_limit = run.seconds > kNearLimit * kSciCodeSeconds;
  std::string why = failure(run);
  if (why.empty() && run.result != "passed") why = "runtime";
  if (why == "sandbox_error") return CodeScore{"sandbox_error", why, is_near_limit};
  if (!why.empty()) return CodeScore{"wrong", why, is_near_limit};
  return CodeScore{"correct", "tests passed", is_near_limit};
}

}  // namespace nibble
