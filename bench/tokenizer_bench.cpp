// Tokenizer throughput on DeepSeek-R1's real tokenizer: bytes of UTF-8 text per second, one core.
//
//   cmake --preset cpu -DNIBBLE_BENCH=ON && ninja -C build/cpu bench_tokenizer
//   build/cpu/bench/bench_tokenizer [TEXT...]
//
// TEXT are files of English text; without any, the GPL-3 of Debian's common-licenses and
// tests/golden/perplexity.txt are taken.
#include <benchmark/benchmark.h>
#include <zlib.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {
namespace {

std::string gunzip(const char* path) {
  std::string text;
  gzFile file = gzopen(path, "rb");
  if (file == nullptr) return text;
  std::vector<char> buffer(1 << 16);
  for (int n = 0; (n = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(n));
  }
  gzclose(file);
  return text;
}

// A fresh tokenizer knows no words yet.
Tokenizer fresh_tokenizer() {
  static const std::string kJson = gunzip(NIBBLE_SOURCE_DIR "/tests/golden/r1_tokenizer.json.gz");
  auto tokenizer = Tokenizer::parse(kJson, "r1_tokenizer.json");
  if (!tokenizer) {
    (void)std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    std::exit(1);
  }
  return *std::move(tokenizer);
}

const Tokenizer& shared_tokenizer() {
  static const Tokenizer kTokenizer = fresh_tokenizer();
  return kTokenizer;
}

void encode(benchmark::State& state, const Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  if (!ids) return state.SkipWithError(ids.error().message.c_str());
  benchmark::DoNotOptimize(ids->data());
  state.counters["bytes_per_token"] =
      static_cast<double>(text.size()) / static_cast<double>(std::max<size_t>(ids->size(), 1));
}

void set_bytes(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
}

// The text's words are in the cache: every iteration but the first.
void encode_repeated(benchmark::State& state, const std::string& text) {
  for (auto _ : state) encode(state, shared_tokenizer(), text);
  set_bytes(state, text.size());
}

// Each text once through a tokenizer that has seen nothing.
void encode_cold(benchmark::State& state, const std::string& text) {
  for (auto _ : state) {
    state.PauseTiming();
    {
      const Tokenizer tokenizer = fresh_tokenizer();
      state.ResumeTiming();
      encode(state, tokenizer, text);
      state.PauseTiming();
    }
    state.ResumeTiming();
  }
  set_bytes(state, text.size());
}

// The worst case for the cache: no word comes twice. Words of English letter frequencies.
std::string distinct_words(const std::string& sample, size_t bytes) {
  std::string letters;
  for (const char c : sample) {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) letters += c;
  }
  if (letters.empty()) letters = "e";
  std::mt19937 rng(1);
  std::string text;
  while (text.size() < bytes) {
    const size_t length = 5 + rng() % 6;
    for (size_t i = 0; i < length; ++i) text += letters[rng() % letters.size()];
    text += ' ';
  }
  return text;
}

void decode(benchmark::State& state, const std::string& text) {
  const auto ids = shared_tokenizer().encode(text);
  if (!ids) return state.SkipWithError(ids.error().message.c_str());
  for (auto _ : state) {
    const std::string decoded = shared_tokenizer().decode(*ids, false);
    benchmark::DoNotOptimize(decoded.data());
  }
  set_bytes(state, text.size());
}

void load(benchmark::State& state) {
  for (auto _ : state) {
    const Tokenizer tokenizer = fresh_tokenizer();
    benchmark::DoNotOptimize(&tokenizer);
  }
}

void add_text(const std::string& name, std::string text) {
  const auto unit = benchmark::kMillisecond;
  benchmark::RegisterBenchmark(("encode_cold/" + name).c_str(),
                               [text](benchmark::State& state) { encode_cold(state, text); })
      ->Unit(unit)
      ->Iterations(5);
  benchmark::RegisterBenchmark(("encode_repeated/" + name).c_str(), [text](
                                                                        benchmark::State& state) {
    encode_repeated(state, text);
  })->Unit(unit);
  benchmark::RegisterBenchmark(("decode/" + name).c_str(), [text](benchmark::State& state) {
    decode(state, text);
  })->Unit(unit);
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::vector<std::string> paths(argv + 1, argv + argc);
  if (paths.empty()) {
    paths = {"/usr/share/common-licenses/GPL-3", NIBBLE_SOURCE_DIR "/tests/golden/perplexity.txt"};
  }
  std::string all;
  for (const std::string& path : paths) {
    const auto text = read_text_file(path);
    if (!text) {
      (void)std::fprintf(stderr, "%s\n", text.error().message.c_str());
      return 1;
    }
    add_text(path.substr(path.rfind('/') + 1), *text);
    all += *text;
  }
  add_text("1MB_of_distinct_words", distinct_words(all, 1'000'000));
  add_text("1MB_of_one_letter", std::string(1'000'000, 'a'));
  add_text("1MB_of_spaces", std::string(1'000'000, ' '));
  benchmark::RegisterBenchmark("load", load)->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::run(argc, argv); }
