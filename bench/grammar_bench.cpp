// Token masks over DeepSeek-R1's real vocabulary of 129,280, one core.
//
//   cmake --preset cpu -DNIBBLE_BENCH=ON && ninja -C build/cpu bench_grammar
//   build/cpu/bench/bench_grammar
//
// "Document" is what a request pays: per token, the mask and the acceptance, over a document of
// the schema, with the grammar new (the first request) or used before (every later one).
#include <benchmark/benchmark.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "nibble/grammar/compile_guided.h"
#include "nibble/grammar/grammar_matcher.h"

namespace nibble {
namespace {

constexpr const char* kPerson = R"({"type":"object","properties":{
  "name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},
  "tags":{"type":"array","items":{"type":"string"}},
  "address":{"type":"object","properties":{"street":{"type":"string"},"city":{"type":"string"}},
             "required":["street","city"]},
  "kind":{"enum":["employee","customer","other"]}},
  "required":["name","age","tags","address","kind"]})";
constexpr const char* kBounded = R"({"type":"array","items":{"type":"string","maxLength":40}})";

const Tokenizer& tokenizer() {
  static const Tokenizer kTokenizer = [] {
    std::string text;
    gzFile file = gzopen(NIBBLE_SOURCE_DIR "/tests/golden/r1_tokenizer.json.gz", "rb");
    if (file == nullptr) std::abort();
    std::vector<char> buffer(1 << 16);
    for (int n = 0; (n = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0;) {
      text.append(buffer.data(), static_cast<size_t>(n));
    }
    gzclose(file);
    auto parsed = Tokenizer::parse(text, "r1_tokenizer.json");
    if (!parsed) std::abort();
    return *std::move(parsed);
  }();
  return kTokenizer;
}

const std::shared_ptr<const TokenTrie>& trie() {
  static const std::shared_ptr<const TokenTrie> kTrie =
      std::make_shared<TokenTrie>(tokenizer(), 129280, std::vector<int32_t>{1});
  return kTrie;
}

std::shared_ptr<CompiledGrammar> grammar_of(const char* schema) {
  Guided guided;
  guided.kind = Guided::Kind::kJsonSchema;
  guided.text = schema;
  return std::make_shared<CompiledGrammar>(guided_grammar(guided).value(), trie());
}

void BM_Trie(benchmark::State& state) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(TokenTrie(tokenizer(), 129280, {1}).num_nodes());
  }
}
BENCHMARK(BM_Trie)->Unit(benchmark::kMillisecond);

void BM_Compile(benchmark::State& state) {
  (void)trie();
  for (auto _ : state) benchmark::DoNotOptimize(grammar_of(kPerson));
}
BENCHMARK(BM_Compile)->Unit(benchmark::kMicrosecond);

// Runs the document's tokens once; the time of each step in microseconds.
std::vector<double> step_times(const std::shared_ptr<CompiledGrammar>& grammar,
                               const std::vector<int32_t>& ids) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  GrammarMatcher matcher(grammar);
  TokenMask mask(129280);
  for (const int32_t id : ids) {
    const auto start = Clock::now();
    matcher.fill_mask(&mask);
    if (!matcher.accept(id)) {
      (void)std::fprintf(stderr, "token %d is not allowed\n", id);
      std::exit(1);
    }
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  return times;
}

void document(benchmark::State& state, const char* schema, const std::string& text) {
  const auto ids = tokenizer().encode(text).value();
  const bool is_new = state.range(0) == 0;
  auto grammar = grammar_of(schema);
  if (!is_new) (void)step_times(grammar, ids);
  std::vector<double> all;
  for (auto _ : state) {
    if (is_new) grammar = grammar_of(schema);
    const auto times = step_times(grammar, ids);
    all.insert(all.end(), times.begin(), times.end());
  }
  std::sort(all.begin(), all.end());
  double sum = 0;
  for (const double time : all) sum += time;
  state.counters["tokens"] = static_cast<double>(ids.size());
  state.counters["us_mean"] = sum / static_cast<double>(all.size());
  state.counters["us_p50"] = all[all.size() / 2];
  state.counters["us_p99"] = all[all.size() * 99 / 100];
  state.counters["us_max"] = all.back();
}

void BM_PersonDocument(benchmark::State& state) {
  document(state, kPerson,
           R"({"name": "Ada Lovelace, Countess of Something Long", "age": 36, "tags": ["poetical )"
           R"(science", "engines", "mathematik", "日本語のタグ"], "address": {"street": "12 St )"
           R"(James's Square", "city": "London"}, "kind": "other"})");
}
BENCHMARK(BM_PersonDocument)->ArgName("used")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void BM_BoundedStrings(benchmark::State& state) {
  document(state, kBounded,
           R"(["a string of less than forty letters", "and another one of the same kind"])");
}
BENCHMARK(BM_BoundedStrings)->ArgName("used")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace nibble

BENCHMARK_MAIN();
