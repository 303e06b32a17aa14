// nibble pack, runs with experts in tiers, nibble trace; and a disk that fails
// (fault_injector.cpp).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using nibble::testing::ProgramRun;
using nibble::testing::run_nibble;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kQuestion = "What is 384 + 597?";

// The demo, packed once.
class PackedDemo {
 public:
  PackedDemo() {
    std::string name = (std::filesystem::temp_directory_path() / "nibble-pack-XXXXXX").string();
    NIBBLE_CHECK(::mkdtemp(name.data()) != nullptr);
    folder_ = name;
    packed = run_nibble({"pack", "demo", model()});
  }
  ~PackedDemo() { std::filesystem::remove_all(folder_); }
  std::string model() const { return (folder_ / "packed").string(); }
  std::string file(const char* name) const { return (folder_ / name).string(); }
  ProgramRun packed;

 private:
  std::filesystem::path folder_;
};

const PackedDemo& packed_demo_folder() {
  static const PackedDemo demo;
  return demo;
}

std::vector<std::string> question(const std::string& model, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"run", model,          "-t", "0",      "-n",
                                        "24",  "--ignore-eos", "-p", kQuestion};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

const std::string& right_answer() {
  static const std::string text = run_nibble(question("demo")).out;
  return text;
}

// Its experts are in a file of their own.
TEST(PackCommand, TheServersMemoryPlanCountsPackedExperts) {
  const auto weights = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"serve", packed_demo_folder().model(), "--dry_run"});
    const ProgramRun run = run_nibble(arguments);
    const auto json = nlohmann::json::parse(run.out, nullptr, false);
    return json["memory_plan"]["weight_bytes"].get<int64_t>();
  };
  const int64_t all = weights({});
  const int64_t few = weights({"--expert_memory", "1000000"});
  EXPECT_GT(all, 25'000'000);  // as the folder it was made from: about 27 MB
  EXPECT_LT(all, 36'000'000);
  const int64_t more = weights({"--expert_memory", "3000000"});
  EXPECT_EQ(more - few, 2'000'000);
  EXPECT_LT(more, all);
}

TEST(PackCommand, MakesAFolderThatRunsLikeTheModel) {
  const PackedDemo& demo = packed_demo_folder();
  ASSERT_EQ(demo.packed.exit_code, 0) << demo.packed.err;
  EXPECT_THAT(demo.packed.out, HasSubstr("64 experts"));
  const ProgramRun all = run_nibble(question(demo.model()));
  EXPECT_EQ(all.out, right_answer());
  EXPECT_THAT(all.err, HasSubstr("experts: 48 of 48 in memory; 100.0 %"));
  for (const char* memory : {"6MB", "400kB"}) {
    const ProgramRun some = run_nibble(question(demo.model(), {"--expert-memory", memory}));
    EXPECT_EQ(some.exit_code, 0) << some.err;
    EXPECT_EQ(some.out, right_answer());
    EXPECT_THAT(some.err, HasSubstr("of 48 in memory"));
    EXPECT_THAT(some.err, HasSubstr("evicted"));
  }
}

TEST(PackCommand, RefusesWhatIsThereAndWhatIsPacked) {
  const PackedDemo& demo = packed_demo_folder();
  const ProgramRun again = run_nibble({"pack", "demo", demo.model()});
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("exists"));
  const ProgramRun twice = run_nibble({"pack", demo.model(), demo.file("twice")});
  EXPECT_EQ(twice.exit_code, 2);
  EXPECT_THAT(twice.err, HasSubstr("is packed already"));
  const ProgramRun other = run_nibble(question(demo.model(), {"--backend", "reference"}));
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr("pack the model again"));
}

ProgramRun pack_with_fault(const std::string& out, const char* fault, const char* after = "0") {
  return run_nibble({"pack", "demo", out, "--json"}, "",
                    {{"LD_PRELOAD", NIBBLE_FAULT_INJECTOR},
                     {"ASAN_OPTIONS", "verify_asan_link_order=0"},
                     {"NIBBLE_FAULT", fault},
                     {"NIBBLE_FAULT_AFTER", after}});
}

TEST(PackCommand, AFullDiskIsToldAndTheNextRunGoesOn) {
  const std::string out = packed_demo_folder().file("full");
  const ProgramRun small = pack_with_fault(out, "small");
  EXPECT_EQ(small.exit_code, 1);
  EXPECT_THAT(small.err, ::testing::ContainsRegex("needs [0-9.]+ MB more, and .* are free there"));
  const ProgramRun full = pack_with_fault(out, "full", "20");
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_THAT(full.err, HasSubstr("No space left on device"));
  EXPECT_FALSE(std::filesystem::exists(out));
  const ProgramRun again = pack_with_fault(out, "none");
  ASSERT_EQ(again.exit_code, 0) << again.err;
  const auto report = nlohmann::json::parse(again.out);
  EXPECT_EQ(report.at("num_experts"), 64);
  EXPECT_EQ(report.at("num_reused"), 20);
  EXPECT_EQ(report.at("expert_file_bytes"),
            std::filesystem::file_size(std::filesystem::path(out) / "experts.nibble"));
  EXPECT_EQ(run_nibble(question(out, {"--expert-memory", "2MB"})).out, right_answer());
}

TEST(ExpertTiers, TheExpertsMayLieOnAnotherDisk) {
  const PackedDemo& demo = packed_demo_folder();
  const std::filesystem::path linked = demo.file("linked");
  std::filesystem::create_directory(linked);
  for (const auto& entry : std::filesystem::directory_iterator(demo.model())) {
    std::filesystem::create_symlink(entry.path(), linked / entry.path().filename());
  }
  const ProgramRun run = run_nibble(question(linked.string(), {"--expert-memory", "2MB"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, right_answer());
}

TEST(ExpertTiers, ACheckpointFolderRunsWithALimit) {
  const ProgramRun run = run_nibble(question("demo", {"--ram", "5MB", "--num-drafts", "2"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, right_answer());
}

TEST(ExpertTiers, BadOptionsAreRefusedBeforeTheRun) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--expert-memory", "1000"}, "one expert takes"},
      {{"--io", "mmap"}, "failing disk"},
      {{"--io-depth", "0"}, "expected 1..256"},
      {{"--expert-cache", "fifo"}, "lfu, lru or score"},
      {{"--prefetch-layers", "2"}, "expected 0 or 1"},
      {{"--ageing-tokens", "0"}, "expected 1 or more"},
      {{"--gpu-expert-slots", "0"}, "expected 1 or more"},
      {{"--gpu-expert-slots", "4"}, "an option of --backend cuda"},
      {{"--gpu-expert-memory", "1GB"}, "an option of --backend cuda"},
      {{"--copy-streams", "3"}, "expected 1 or 2"},
      {{"--cpu-experts", "auto"}, "an option of --backend cuda"},
      {{"--cpu-experts", "alle"}, "expected off, auto or all; did you mean 'all'?"},
      {{"--expert-preset", "balance"}, "did you mean 'balanced'?"},
      {{"--expert-cache", "lfru"}, "did you mean 'lfu' or 'lru'?"},
      {{"--io", "urng"}, "did you mean 'uring'?"},
  };
  for (const auto& [options, message] : cases) {
    const ProgramRun run = run_nibble(question("demo", options));
    EXPECT_EQ(run.exit_code, 2) << options[0];
    EXPECT_THAT(run.err, HasSubstr(message));
    EXPECT_EQ(run.out, "");
  }
}

TEST(ExpertTiers, OptionsThatWouldChangeResultsAreRefused) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--max-experts", "4"}, "change the result; gpu-expert-slots says"},
      {{"--expert-threshold=0.1"}, "prefetch-min-score leaves out guesses"},
      {{"--sliding-window", "4096"}, "changes the result"},
      {{"--transfer-compression"}, "--transfer-compression is refused: NVFP4"},
      {{"--memory-limit", "14"}, "gpu-expert-memory is that of its experts"},
      {{"--ssd", "/mnt"}, "a symbolic link to a file on another disk"},
  };
  for (const auto& [options, message] : cases) {
    const ProgramRun run = run_nibble(question("demo", options));
    EXPECT_EQ(run.exit_code, 1) << options[0];
    EXPECT_THAT(run.err, HasSubstr(message));
    EXPECT_EQ(run.out, "");
  }
}

TEST(ExpertTiers, EveryPresetGivesTheSameAnswer) {
  for (const char* preset : {"balanced", "low-latency", "high-throughput"}) {
    const ProgramRun run = run_nibble(question(
        packed_demo_folder().model(), {"--expert-memory", "6MB", "--expert-preset", preset}));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.out, right_answer());
    const bool guesses = std::string(preset) != "high-throughput";
    EXPECT_EQ(run.err.find("guessed") != std::string::npos, guesses) << run.err;
  }
}

TEST(ExpertTiers, ATraceIsRecordedReplayedAndUsed) {
  const PackedDemo& demo = packed_demo_folder();
  const ProgramRun run = run_nibble(question("demo", {"--routing-trace", demo.file("trace.txt")}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, right_answer());
  const ProgramRun trace =
      run_nibble({"trace", demo.file("trace.txt"), "--counts", demo.file("hot.txt")});
  EXPECT_EQ(trace.exit_code, 0) << trace.err;
  EXPECT_THAT(trace.out, StartsWith("3 layers of 16 experts"));
  EXPECT_THAT(trace.out, HasSubstr("optimum"));
  const ProgramRun json = run_nibble({"trace", demo.file("trace.txt"), "--json"});
  for (const auto& rates : nlohmann::json::parse(json.out).at("hit_rates")) {
    for (const char* policy : {"lfu", "lru", "score"}) {
      EXPECT_LE(rates.at(policy), rates.at("optimum")) << policy;
    }
  }
  const ProgramRun hot = run_nibble(
      question(demo.model(), {"--expert-memory", "6MB", "--hot-experts", demo.file("hot.txt")}));
  EXPECT_EQ(hot.out, right_answer());
  const ProgramRun bad = run_nibble(
      question(demo.model(), {"--expert-memory", "6MB", "--hot-experts", demo.file("trace.txt")}));
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_THAT(bad.err, HasSubstr("line 1"));
}

TEST(ExpertTiers, StatisticsAreInTheJson) {
  const ProgramRun run =
      run_nibble(question(packed_demo_folder().model(), {"--expert-memory", "6MB", "--json"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto experts = nlohmann::json::parse(run.out).at("experts");
  EXPECT_EQ(experts.at("total"), 48);
  EXPECT_LE(experts.at("resident"), experts.at("slots"));
  EXPECT_GT(experts.at("misses"), 0);
  EXPECT_GE(experts.at("bytes_read"),
            experts.at("misses").get<int64_t>() * experts.at("record_bytes").get<int64_t>());
}

ProgramRun run_with_fault(const char* fault, const char* after) {
  return run_nibble(
      question(packed_demo_folder().model(), {"--expert-memory", "6MB", "--io", "pread"}), "",
      {{"LD_PRELOAD", NIBBLE_FAULT_INJECTOR},
       {"ASAN_OPTIONS", "verify_asan_link_order=0"},
       {"NIBBLE_FAULT", fault},
       {"NIBBLE_FAULT_AFTER", after}});
}

TEST(ExpertFaults, ADiskThatFailsEndsTheAnswerWithTheRecordsName) {
  const std::vector<std::pair<const char*, const char*>> faults = {
      {"eio", "Input/output error"}, {"short", "cut short"}, {"flip", "the file was damaged"}};
  for (const auto& [fault, message] : faults) {
    for (const char* after : {"0", "40"}) {
      const ProgramRun run = run_with_fault(fault, after);
      EXPECT_EQ(run.exit_code, 1) << fault;
      EXPECT_THAT(run.err, ::testing::ContainsRegex("layer [123] expert [0-9]+"));
      EXPECT_THAT(run.err, HasSubstr(message));
      // What came before is right.
      std::string told = run.out;
      while (told.ends_with('\n')) told.pop_back();
      EXPECT_THAT(right_answer(), StartsWith(told));
    }
  }
}

TEST(ExpertFaults, ADiskThatStallsIsWaitedFor) {
  const ProgramRun run = run_with_fault("stall", "60");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, right_answer());
}

}  // namespace
}  // namespace nibble
