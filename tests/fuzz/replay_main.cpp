// A fuzz target as a test: runs every seed of a folder and a fixed number of changes to each, the
// same ones on every machine. The search for new inputs is libFuzzer's (tools/fuzz.sh); this keeps
// what it found from coming back, and finds the shallow cases in seconds.
//
//   fuzz_NAME CORPUS_FOLDER      or, to look at one input again:  fuzz_NAME FILE
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kMaxRuns = 20'000;               // over all seeds
constexpr uint64_t kMaxBytes = uint64_t{24} << 20;  // so that large seeds take seconds, too

// What runs now, for the signal handler.
const uint8_t* g_input = nullptr;
size_t g_input_size = 0;

// Leaves the input that ended the process in a file. Only what a signal handler may call.
extern "C" void keep_input(int signal_number) {
  const int fd = ::open("fuzz-crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0) {
    const ssize_t written = ::write(fd, g_input, g_input_size);
    constexpr char kMessage[] = "the input is in fuzz-crash-input\n";
    if (written >= 0 && ::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1) < 0) ::_exit(3);
  }
  ::signal(signal_number, SIG_DFL);
  ::raise(signal_number);
}

void run(const Bytes& input) {
  // A copy of exactly this size, so that a sanitizer sees a read past the end.
  const std::vector<uint8_t> exact(input.begin(), input.end());
  g_input = exact.data();
  g_input_size = exact.size();
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

class Mutator {
 public:
  explicit Mutator(const std::vector<Bytes>& seeds) : seeds_(seeds) {}

  // A copy of `seed` with one to four changes.
  Bytes change(const Bytes& seed) {
    Bytes input = seed;
    for (uint64_t left = 1 + below(4); left > 0; --left) change_once(input);
    return input;
  }

 private:
  // mt19937_64 gives the same numbers everywhere; the standard's distributions do not.
  uint64_t below(uint64_t limit) { return limit == 0 ? 0 : rng_() % limit; }

  static auto at(Bytes& input, uint64_t place) {
    return input.begin() + static_cast<std::ptrdiff_t>(place);
  }

  void change_once(Bytes& input) {
    static const std::vector<std::string> kWords = {"-1",
                                                    "0",
                                                    "18446744073709551615",
                                                    "9223372036854775808",
                                                    "1e999",
                                                    "null",
                                                    "true",
                                                    "[",
                                                    "]",
                                                    "{",
                                                    "}",
                                                    "\"",
                                                    "\\",
                                                    "\\ud800",
                                                    "[[[[[[[[[[[[[[[[",
                                                    "{\"a\":{\"a\":{\"a\":",
                                                    "{{",
                                                    "}}",
                                                    "{%",
                                                    "%}",
                                                    std::string(1, '\0'),
                                                    "\xff\xfe",
                                                    "\xf0\x9f\x98",
                                                    ","};
    const uint64_t place = below(input.size() + 1);
    const uint64_t length = std::min<uint64_t>(1 + below(16), input.size() - place);
    switch (below(7)) {
      case 0:  // flip a bit
        if (place < input.size()) input[place] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:  // another byte
        if (place < input.size()) input[place] = static_cast<uint8_t>(rng_());
        break;
      case 2:  // remove a piece
        input.erase(at(input, place), at(input, place + length));
        break;
      case 3: {  // repeat a piece
        const Bytes piece(at(input, place), at(input, place + length));
        input.insert(at(input, place), piece.begin(), piece.end());
        break;
      }
      case 4:  // cut the end off
        input.resize(place);
        break;
      case 5: {  // a word that parsers stumble over
        const std::string& word = kWords[below(kWords.size())];
        input.insert(at(input, place), word.begin(), word.end());
        break;
      }
      default: {  // a piece of another seed
        const Bytes& other = seeds_[below(seeds_.size())];
        const uint64_t from = below(other.size() + 1);
        const uint64_t count = std::min<uint64_t>(below(64), other.size() - from);
        const auto begin = other.begin() + static_cast<std::ptrdiff_t>(from);
        input.insert(at(input, place), begin, begin + static_cast<std::ptrdiff_t>(count));
      }
    }
  }

  const std::vector<Bytes>& seeds_;
  std::mt19937_64 rng_{20250528};
};

Bytes read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !std::filesystem::exists(argv[1])) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER or FILE, which has to exist\n", argv[0]);
    return 2;
  }
  for (const int signal_number : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) {
    std::signal(signal_number, keep_input);
  }
  const std::filesystem::path path = argv[1];
  if (!std::filesystem::is_directory(path)) {
    run(read_bytes(path));
    return 0;
  }
  std::vector<std::filesystem::path> names;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.is_regular_file()) names.push_back(entry.path());
  }
  std::sort(names.begin(), names.end());
  if (names.empty()) {
    std::fprintf(stderr, "%s holds no seed\n", path.c_str());
    return 1;
  }
  std::vector<Bytes> seeds;
  for (const auto& name : names) seeds.push_back(read_bytes(name));

  uint64_t runs = 0;
  uint64_t bytes = 0;
  run({});
  for (const Bytes& seed : seeds) run(seed);
  Mutator mutator(seeds);
  while (runs < kMaxRuns && bytes < kMaxBytes) {
    for (const Bytes& seed : seeds) {
      const Bytes input = mutator.change(seed);
      run(input);
      ++runs;
      bytes += input.size();
    }
  }
  std::printf("%zu seeds and %llu changed inputs, %llu bytes\n", seeds.size(),
              static_cast<unsigned long long>(runs), static_cast<unsigned long long>(bytes));
  return 0;
}
