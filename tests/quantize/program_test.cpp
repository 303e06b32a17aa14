// The program itself: what it prints, what it exits with, and that a signal leaves nothing behind.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <thread>

#include "tests/base/temporary_folder.h"
#include "tests/quantize/test_checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::entries_in;
using testing::json_file;
using testing::TemporaryFolder;
using testing::TestCheckpoint;
using testing::tiny_checkpoint;

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Starts "nibble ARGUMENTS...", its output in two files of `folder`.
pid_t start_program(const fs::path& folder, std::vector<std::string> arguments) {
  std::vector<char*> argv;
  arguments.insert(arguments.begin(), NIBBLE_PROGRAM);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string out = (folder / "stdout").string();
  const std::string err = (folder / "stderr").string();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(::open(out.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), STDERR_FILENO);
    ::execv(NIBBLE_PROGRAM, argv.data());
    ::_exit(127);
  }
  return pid;
}

// The exit code, or -signal.
int wait_for(pid_t pid) {
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

using Files = std::map<std::string, std::string>;

// The bytes of every file of a folder.
Files files_of(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = text_of(entry.path());
  }
  return files;
}

class QuantizeProgram : public ::testing::Test {
 protected:
  QuantizeProgram() {
    fs::create_directory(folder_ / "logs");
    fs::create_directory(folder_ / "results");
    tiny_checkpoint().write(in());
  }
  std::string in() const { return folder_ / "in"; }
  std::string out() const { return folder_ / "results" / "out"; }
  int run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "quantize");
    return wait_for(start_program(folder_ / "logs", std::move(arguments)));
  }
  std::string stdout_text() const { return text_of(folder_ / "logs" / "stdout"); }
  std::string stderr_text() const { return text_of(folder_ / "logs" / "stderr"); }
  void expect_same_files(const Files& expected) const {
    const Files files = files_of(out());
    EXPECT_EQ(files.size(), expected.size());
    for (const auto& [name, bytes] : files) {
      const auto it = expected.find(name);
      EXPECT_TRUE(it != expected.end() && it->second == bytes) << name;
    }
  }

  TemporaryFolder folder_;
};

TEST_F(QuantizeProgram, PrintsASummaryOfSizesRatiosAndTime) {
  EXPECT_EQ(run({in(), out()}), 0);
  EXPECT_THAT(stdout_text(),
              ::testing::AllOf(::testing::HasSubstr("FP8"), ::testing::HasSubstr("nvfp4-v2"),
                               ::testing::HasSubstr("20 linears"), ::testing::HasSubstr("GB/s"),
                               ::testing::HasSubstr("times smaller")));
  EXPECT_TRUE(fs::exists(fs::path(out()) / "hf_quant_config.json"));
}

TEST_F(QuantizeProgram, JsonSummaryAgreesWithTheFiles) {
  EXPECT_EQ(run({in(), out(), "--json", "--quiet", "--threads", "2"}), 0);
  const auto summary = nlohmann::json::parse(stdout_text());
  EXPECT_EQ(stderr_text(), "");
  EXPECT_EQ(summary["scheme"], "nvfp4-v2");
  EXPECT_EQ(summary["dry_run"], false);
  EXPECT_EQ(summary["threads"], 2);
  EXPECT_EQ(summary["num_quantized_linears"], 20);
  const auto index = json_file(fs::path(out()) / "model.safetensors.index.json");
  EXPECT_EQ(summary["output_bytes"], index["metadata"]["total_size"]);
  EXPECT_EQ(summary["num_output_tensors"], index["weight_map"].size());
}

TEST_F(QuantizeProgram, QuietPrintsNothing) {
  EXPECT_EQ(run({in(), out(), "--quiet"}), 0);
  EXPECT_EQ(stdout_text(), "");
  EXPECT_EQ(stderr_text(), "");
}

TEST_F(QuantizeProgram, DryRunPrintsSizesAndWritesNothing) {
  EXPECT_EQ(run({in(), out(), "--dry-run"}), 0);
  EXPECT_THAT(stdout_text(), ::testing::AllOf(::testing::HasSubstr("needed"),
                                              ::testing::HasSubstr("nothing was written")));
  EXPECT_EQ(entries_in(folder_ / "results"), 0);
}

TEST_F(QuantizeProgram, ShardSizeTakesUnits) {
  EXPECT_EQ(run({in(), out(), "--shard-size", "10KB", "--quiet"}), 0);
  EXPECT_GT(entries_in(out()), 6);
}

TEST_F(QuantizeProgram, BadUseExitsWith2AndSaysWhatWouldWork) {
  EXPECT_EQ(run({in(), out(), "--scheme", "nvfp4-turbo"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("nvfp4-v2"));
  EXPECT_EQ(run({in()}), 2);
  EXPECT_EQ(run({in(), out(), "--threads", "0"}), 2);
  EXPECT_EQ(run({in(), out(), "--shard-size", "many"}), 2);
  EXPECT_EQ(run({in(), out(), "--shard-size", "0"}), 2);
  EXPECT_EQ(run({in(), in()}), 2);
  EXPECT_EQ(run({in(), (folder_ / "results").string()}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("--overwrite"));
  EXPECT_EQ(entries_in(folder_ / "results"), 0);
}

TEST_F(QuantizeProgram, AMissingSourceExitsWith1) {
  EXPECT_EQ(run({folder_ / "none", out()}), 1);
  EXPECT_THAT(stderr_text(), ::testing::StartsWith("nibble quantize: "));
}

TEST_F(QuantizeProgram, HelpNamesTheSchemes) {
  EXPECT_EQ(run({"--help"}), 0);
  EXPECT_THAT(stdout_text(),
              ::testing::AllOf(::testing::HasSubstr("nvfp4-v2"), ::testing::HasSubstr("nvfp4-mlp"),
                               ::testing::HasSubstr("--dry-run")));
}

// SIGINT, SIGTERM and SIGKILL in turn, at random moments; the same command goes on each time. The
// environment variable NIBBLE_KILL_ROUNDS asks for more rounds than a test run has time for.
TEST_F(QuantizeProgram, WhatEndsItAtAnyMomentTheSameCommandGoesOnToTheSameBytes) {
  const std::vector<std::string> command = {
      "quantize", testing::demo_source(), out(),   "--shard-size", "3MB", "--threads",
      "2",        "--algorithm",          "4over6"};
  ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
  const auto expected = files_of(out());
  EXPECT_EQ(expected.count("journal"), 0u);
  EXPECT_EQ(expected.count("SHA256SUMS"), 1u);
  fs::remove_all(out());

  const char* const asked = std::getenv("NIBBLE_KILL_ROUNDS");
  const int rounds = asked == nullptr ? 4 : std::atoi(asked);
  const fs::path results = folder_ / "results";
  std::mt19937 rng(std::random_device{}());
  int stopped = 0;
  int round = 0;
  uint32_t tries_of_round = 0;
  for (int tries = 0; round < rounds; ++tries) {
    ASSERT_LT(tries, 60 * rounds);
    ++tries_of_round;
    const int signal = std::array{SIGINT, SIGTERM, SIGKILL}[static_cast<size_t>(tries) % 3];
    const pid_t pid = start_program(folder_ / "logs", command);
    // The first milliseconds, before the program has set up its handlers, belong to the system.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (entries_in(results) == 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    // Longer each time: a machine whose disk is slow has to get to the end, too.
    std::this_thread::sleep_for(
        std::chrono::microseconds(5'000 + rng() % (60'000 + 20'000 * tries_of_round)));
    ASSERT_EQ(::kill(pid, signal), 0);
    const int code = wait_for(pid);
    if (code != 0) {
      ++stopped;
      if (code == 130) {
        EXPECT_THAT(stderr_text(), ::testing::HasSubstr("goes on"));
      } else {
        EXPECT_EQ(code, -signal) << stderr_text();
      }
      EXPECT_EQ(entries_in(results), 1);
      // Killed after the last rename, it leaves a journal, and the command goes on to remove it.
      if (!fs::exists(out()) || fs::exists(fs::path(out()) / "journal")) continue;
    }
    ++round;
    tries_of_round = 0;
    expect_same_files(expected);
    EXPECT_EQ(entries_in(results), 1);
    fs::remove_all(out());
  }
  EXPECT_GT(stopped, 0);
  std::cout << stopped << " times stopped, " << rounds << " folders completed\n";
}

// kill -9 once at a random moment of the whole run, and the same command again, undisturbed.
TEST_F(QuantizeProgram, AfterKill9AtAnyMomentTheSameCommandGivesTheSameBytes) {
  const std::vector<std::string> command = {
      "quantize", testing::demo_source(), out(),    "--shard-size", "3MB", "--threads",
      "1",        "--algorithm",          "4over6", "--json"};
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
  const auto whole = std::chrono::steady_clock::now() - start;
  const Files expected = files_of(out());
  fs::remove_all(out());

  const char* const asked = std::getenv("NIBBLE_KILL_ROUNDS");
  const int rounds = asked == nullptr ? 2 : std::atoi(asked);
  std::mt19937 rng(std::random_device{}());
  int killed = 0;
  std::string reused;
  for (int tries = 0; killed < rounds; ++tries) {
    ASSERT_LT(tries, 20 * rounds);
    const pid_t pid = start_program(folder_ / "logs", command);
    std::this_thread::sleep_for(whole * (rng() % 1000) / 1000);
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    if (wait_for(pid) == -SIGKILL) {
      ++killed;
      ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
      const auto summary = nlohmann::json::parse(stdout_text());
      reused += " " + std::to_string(summary["reused_bytes"].get<int64_t>() / 1'000'000);
    }
    expect_same_files(expected);
    EXPECT_EQ(entries_in(folder_ / "results"), 1);
    fs::remove_all(out());
  }
  std::cout << killed << " times killed and resumed, MB of the source that were done:" << reused
            << "\n";
}

// Killed between the rename to OUT and the removal of the journal, which another run brings about
// here: the command removes it; another one finds OUT complete, and refuses.
TEST_F(QuantizeProgram, AJournalThatACompleteFolderStillHasIsRemoved) {
  const std::vector<std::string> command = {
      "quantize", testing::demo_source(), out(), "--json", "--threads", "1", "--shard-size", "3MB"};
  const fs::path partial_journal = out() + ".partial/journal";
  const fs::path journal = fs::path(out()) / "journal";
  std::string begun;
  const pid_t pid = start_program(folder_ / "logs", command);
  while (begun.find('\n') == std::string::npos) begun = text_of(partial_journal);
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  ASSERT_EQ(wait_for(pid), -SIGKILL);
  ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
  const Files expected = files_of(out());

  std::ofstream(journal) << begun;
  EXPECT_EQ(run({testing::demo_source(), out(), "--algorithm", "4over6"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("exists already"));
  EXPECT_TRUE(fs::exists(journal));
  ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
  EXPECT_TRUE(nlohmann::json::parse(stdout_text())["resumed"].get<bool>());
  expect_same_files(expected);
}

class QuantizeCalibrate : public QuantizeProgram {
 protected:
  std::string data(const std::string& text) const {
    std::ofstream(folder_ / "data.jsonl") << text;
    return folder_ / "data.jsonl";
  }
  int calibrate(const std::string& text, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {in(), out(), "--calibrate", data(text)});
    return run(std::move(more));
  }
};

// Ids of kTinyConfig's vocabulary, as JSON lines.
std::string id_lines(int lines, int tokens) {
  std::string text;
  for (int i = 0; i < lines; ++i) {
    text += i % 2 == 0 ? "{\"ids\": [" : "[";
    for (int t = 0; t < tokens; ++t) {
      text += (t == 0 ? "" : ", ") + std::to_string((7 * i + 5 * t) % 64);
    }
    text += i % 2 == 0 ? "]}\n" : "]\n";
  }
  return text;
}

TEST_F(QuantizeCalibrate, UnreadableLinesAreReportedByNumber) {
  EXPECT_EQ(calibrate(id_lines(3, 100) + "{\"ids\": [1, 2\n"), 1);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("data.jsonl line 4"));
  EXPECT_EQ(calibrate("[1, 2]\n\n{\"ids\": [1, -5]}\n"), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("line 3"));
  EXPECT_EQ(calibrate("{\"words\": 1}\n"), 2);
  EXPECT_THAT(stderr_text(),
              ::testing::AllOf(::testing::HasSubstr("line 1"), ::testing::HasSubstr("messages")));
  EXPECT_EQ(calibrate("{\"ids\": []}\n"), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("line 1 has no tokens"));
  EXPECT_EQ(calibrate(id_lines(8, 60) + "[64]\n"), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("sample 9 has the token 64"));
  EXPECT_EQ(entries_in(folder_ / "results"), 0);
}

TEST_F(QuantizeCalibrate, TooLittleDataIsRefused) {
  EXPECT_EQ(calibrate(id_lines(3, 100)), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("3 samples"));
  EXPECT_EQ(calibrate(id_lines(8, 8)), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("64 tokens"));
  EXPECT_EQ(calibrate(id_lines(8, 100), {"--samples", "9"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("--samples asks for 9"));
  EXPECT_EQ(run({in(), out(), "--algorithm", "gptq-mse"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("--calibrate"));
  EXPECT_EQ(run({in(), out(), "--algorithm", "gptq"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("gptq-local-hessian"));
  EXPECT_EQ(run({in(), out(), "--algorithm", "awq-max"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("pre_quant_scale"));
  EXPECT_EQ(run({in(), out(), "--feed", "quantized"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("--calibrate"));
  EXPECT_EQ(calibrate(id_lines(8, 100), {"--backend", "abacus"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("abacus"));
  EXPECT_EQ(run({in(), out(), "--override", "*.kv_b_proj=nvfp4"}), 2);
  EXPECT_THAT(stderr_text(), ::testing::HasSubstr("matches no matrix"));
}

// Killed while it calibrates or quantizes, it goes on to the same bytes.
class QuantizeFeed : public QuantizeCalibrate, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(, QuantizeFeed, ::testing::Values("original", "quantized"),
                         [](const auto& feed) { return std::string(feed.param); });

TEST_P(QuantizeFeed, AKilledCalibrationGoesOn) {
  const std::string file = data(id_lines(40, 100));
  const std::vector<std::string> command = {
      "quantize",  in(), out(),          "--calibrate", file,     "--algorithm", "gptq-mse",
      "--threads", "2",  "--shard-size", "8KB",         "--feed", GetParam()};
  ASSERT_EQ(wait_for(start_program(folder_ / "logs", command)), 0) << stderr_text();
  const auto expected = files_of(out());
  fs::remove_all(out());
  std::mt19937 rng(std::random_device{}());
  int killed = 0;
  for (uint32_t tries = 1;; ++tries) {
    ASSERT_LT(tries, 100u);
    const pid_t pid = start_program(folder_ / "logs", command);
    std::this_thread::sleep_for(std::chrono::microseconds(10'000 + rng() % (30'000 * tries)));
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    if (wait_for(pid) == 0) break;
    ++killed;
    if (fs::exists(out()) && !fs::exists(fs::path(out()) / "journal")) break;
  }
  expect_same_files(expected);
  EXPECT_GT(killed, 0);
}

// A checkpoint of 110 MB, calibrated and quantized by a process that may hold 26 MiB of its own
// data: one layer, the activations of a batch, and the program.
TEST_F(QuantizeCalibrate, AModelFourTimesAsLargeAsTheMemoryIsCalibratedLayerByLayer) {
  TestCheckpoint large;
  std::string config(testing::kTinyConfig);
  const auto set = [&](const std::string& key, int value) {
    const size_t at = config.find("\"" + key + "\": ") + key.size() + 4;
    config.replace(at, config.find_first_of(",}", at) - at, std::to_string(value));
  };
  set("hidden_size", 256);
  set("intermediate_size", 512);
  set("moe_intermediate_size", 256);
  set("num_hidden_layers", 27);
  set("n_routed_experts", 20);
  large.config = config;
  const auto parsed = parse_config(config, "config.json").value();
  uint64_t bytes = 0;
  std::mt19937 rng(2);
  const auto stored = stored_tensors(parsed, CheckpointLayout::kFp8).value();
  for (const TensorInfo& info : stored) {
    testing::TestTensor tensor{info.dtype, info.shape, {}};
    const auto count = static_cast<size_t>(info.shape.num_elements());
    tensor.bytes.resize(count * static_cast<size_t>(dtype_size(info.dtype)));
    bytes += tensor.bytes.size();
    for (size_t i = 0; i < count; ++i) {
      if (info.dtype == DType::kF8E4m3) {
        tensor.data<uint8_t>()[i] = static_cast<uint8_t>(rng() % 0x70);
      } else if (info.dtype == DType::kBf16) {
        tensor.data<uint16_t>()[i] = 0x3c00;
      } else {
        tensor.data<float>()[i] = 1e-4f;
      }
    }
    large.tensors.emplace(info.name, std::move(tensor));
  }
  fs::remove_all(in());
  large.write(in());
  large.tensors.clear();
  // 22.5 to 24.2 MiB are needed, by what the heap happens to look like.
  constexpr uint64_t kLimit = uint64_t{26} << 20;
  EXPECT_GT(bytes, 4 * kLimit);

  const std::string file = data(id_lines(8, 100));
  const rlimit limit{kLimit, kLimit};
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::setrlimit(RLIMIT_DATA, &limit);
    const std::string log = (folder_ / "logs") / "stderr";
    ::dup2(::open(log.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), STDERR_FILENO);
    ::execl(NIBBLE_PROGRAM, "nibble", "quantize", in().c_str(), out().c_str(), "--calibrate",
            file.c_str(), "--threads", "1", "--max-memory", "75MB", "--quiet", nullptr);
    ::_exit(127);
  }
  EXPECT_EQ(wait_for(pid), 0) << stderr_text();
  EXPECT_TRUE(fs::exists(fs::path(out()) / "SHA256SUMS"));
}

}  // namespace
}  // namespace nibble
