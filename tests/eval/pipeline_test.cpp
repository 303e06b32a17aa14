// Readers, statistics, the sandbox, and whole runs of the program on the demo checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "nibble/eval/code_score.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/run.h"
#include "nibble/eval/sandbox.h"
#include "nibble/eval/stats.h"
#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::run_nibble;
using testing::TemporaryFolder;

const std::string kSuites = NIBBLE_SOURCE_DIR "/models/suites";

Result<std::vector<nlohmann::json>> rows(const std::string& name, const std::string& text) {
  const TemporaryFolder folder;
  std::ofstream(folder / name, std::ios::binary) << text;
  std::vector<nlohmann::json> all;
  const Status status = for_each_row(folder / name, [&](std::string_view row) -> Status {
    all.push_back(nlohmann::json::parse(row));
    return {};
  });
  if (!status) return tl::unexpected(status.error());
  return all;
}

TEST(EvalData, ReadsCsvWithFieldsOfSeveralLines) {
  const auto all =
      rows("x.csv", "\xef\xbb\xbfid,text\r\n1,\"two\nlines, \"\"quoted\"\"\"\r\n2,plain\n");
  ASSERT_TRUE(all) << all.error().message;
  ASSERT_EQ(all->size(), 2u);
  EXPECT_EQ((*all)[0]["text"], "two\nlines, \"quoted\"");
  EXPECT_EQ((*all)[1]["id"], "2");
  EXPECT_THAT(rows("x.csv", "a,b\n1\n").error().message, HasSubstr("line 2: 1 fields, expected 2"));
  EXPECT_THAT(rows("x.csv", "a\n\"open\n").error().message, HasSubstr("not closed"));
  EXPECT_THAT(rows("x.jsonl", "{}\n[]\n").error().message, HasSubstr("line 2"));
  EXPECT_THAT(rows("x.parquet", "PAR1").error().message, HasSubstr("PAR1"));
}

// tools/golden/make_parquet_samples.py wrote the same rows in five ways, by pyarrow.
TEST(EvalData, ReadsWhatPyarrowWrites) {
  const std::filesystem::path folder = NIBBLE_SOURCE_DIR "/tests/eval/data";
  std::ifstream file(folder / "sample_parquet.json");
  const auto expected = nlohmann::json::parse(file).get<std::vector<nlohmann::json>>();
  ASSERT_EQ(expected.size(), 40u);
  for (const char* name : {"plain", "snappy", "gzip_v2", "zstd_v2_plain", "zstd_pages"}) {
    SCOPED_TRACE(name);
    std::vector<nlohmann::json> found;
    const Status status = for_each_row(folder / (std::string("sample_") + name + ".parquet"),
                                       [&](std::string_view row) -> Status {
                                         found.push_back(nlohmann::json::parse(row));
                                         return {};
                                       });
    EXPECT_TRUE(status) << status.error().message;
    EXPECT_EQ(found, expected);
  }
  const auto none = [](std::string_view) { return Status(); };
  EXPECT_THAT(for_each_row(folder / "unsupported_brotli.parquet", none).error().message,
              HasSubstr("codec 4"));
  EXPECT_THAT(for_each_row(folder / "unsupported_struct.parquet", none).error().message,
              HasSubstr("the column 'x' is no value"));
  const TemporaryFolder out;
  const auto run = run_nibble({"eval", "convert", (folder / "sample_snappy.parquet").string(),
                               (out / "rows.jsonl").string()});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("40 rows"));
}

TEST(EvalData, ReadsThePickledTestsOfEveryProtocol) {
  // Items 1, 13, 25, 37 and 49 hold pickles of protocols 2, 3, 4, 5 and 4, the others plain JSON.
  int pickled = 0;
  const Status status =
      for_each_row(kSuites + "/livecodebench.jsonl", [&](std::string_view row) -> Status {
        const auto text = nlohmann::json::parse(row)["private_test_cases"].get<std::string>();
        if (text.front() != '[') ++pickled;
        const auto tests = decode_private_tests(text);
        if (!tests) return tl::unexpected(tests.error());
        EXPECT_EQ(nlohmann::json::parse(*tests).size(), 2u);
        return {};
      });
  EXPECT_TRUE(status);
  EXPECT_EQ(pickled, 5);
  // A pickle that calls something.
  EXPECT_THAT(unpickle_text("\x80\x04"
                            "cos\nsystem\n")
                  .error()
                  .message,
              HasSubstr("opcode 0x63"));
  EXPECT_FALSE(unpickle_text("X\xff\xff\xff\x7f"));
  EXPECT_FALSE(decode_private_tests("not base64!"));
}

// Worked by hand: residuals +-1/2; two clusters of two with sums 0 and 0, then of one each.
TEST(EvalStats, AgreeWithValuesWorkedByHand) {
  const std::vector<double> values = {1, 0, 1, 0};
  EXPECT_DOUBLE_EQ(clustered_se(values, std::vector<std::string>{"a", "a", "b", "b"}), 0);
  EXPECT_NEAR(clustered_se(values, std::vector<std::string>{"a", "b", "c", "d"}),
              std::sqrt(1.0 * 4 / 3) / 4, 1e-12);
  RunningMean running;
  EXPECT_EQ(running.mean(), 0);
  EXPECT_EQ(running.clustered_se(), 0);
  std::vector<double> seen;
  std::vector<std::string> clusters;
  for (int i = 0; i < 40; ++i) {
    seen.push_back(i % 3 == 0 ? 1 : 0);
    clusters.push_back(std::to_string(i % 7));
    running.add(clusters.back(), seen.back());
  }
  EXPECT_NEAR(running.mean(), mean(seen), 1e-15);
  EXPECT_NEAR(running.clustered_se(), clustered_se(seen, clusters), 1e-15);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 2), 0.5);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 3, 2), 1);
  const Interval w = wilson(8, 10);  // the textbook's 0.490 .. 0.943
  EXPECT_NEAR(w.low, 0.4902, 1e-4);
  EXPECT_NEAR(w.high, 0.9433, 1e-4);
  EXPECT_EQ(holm({0.01, 0.04, 0.03}), (std::vector<double>{0.03, 0.06, 0.06}));
  EXPECT_EQ(judge_retention({98.5, 101}, 98), Retained::kRetained);
  EXPECT_EQ(judge_retention({90, 97.9}, 98), Retained::kLost);
  EXPECT_EQ(judge_retention({97, 101}, 98), Retained::kInconclusive);
}

TEST(EvalStats, ReproduceTheCardsRetention) {
  const double fp8[] = {85, 81, 77, 40, 98, 89}, fp4[] = {84.2, 80.0, 76.3, 40.1, 98.1, 91.3};
  const double card[] = {99.06, 98.77, 99.09, 100.25, 100.10, 102.58};
  for (int i = 0; i < 6; ++i) {
    const Comparison c = compare_runs({{"q", fp4[i] / 100, fp8[i] / 100}}, 1, 10);
    EXPECT_NEAR(c.retention, card[i], 0.005);
  }
}

TEST(EvalStats, ComparisonOfARunWithItselfIsCertain) {
  std::vector<Pair> pairs;
  for (int i = 0; i < 50; ++i)
    pairs.push_back({std::to_string(i), i % 3 == 0 ? 1.0 : 0.0, i % 3 == 0 ? 1.0 : 0.0});
  const Comparison c = compare_runs(pairs, 7);
  EXPECT_DOUBLE_EQ(c.retention, 100);
  EXPECT_DOUBLE_EQ(c.retention_95.low, 100);
  EXPECT_DOUBLE_EQ(c.p_value, 1);
  // Three of ten questions lost, none won: 2 * (1/2)^3 by both exact tests.
  std::vector<Pair> lost;
  for (int i = 0; i < 10; ++i) lost.push_back({std::to_string(i), i < 3 ? 0.0 : 1.0, 1.0});
  const Comparison l = compare_runs(lost, 7);
  EXPECT_DOUBLE_EQ(l.p_value, 0.25);
  EXPECT_DOUBLE_EQ(l.mcnemar_p, 0.25);
  EXPECT_NEAR(l.retention, 70, 1e-9);
  EXPECT_EQ(l.right_to_wrong, 3);
}

TEST(EvalCode, ComparesOutputsAndResults) {
  EXPECT_TRUE(same_output("1 2\n3\n", " 1 2 \n3"));
  EXPECT_TRUE(same_output("1.0", "1"));
  EXPECT_FALSE(same_output("1 2", "1\n2"));
  EXPECT_FALSE(same_output("0.1", "0.10000001"));
  EXPECT_TRUE(same_json("[1, [2.0]]", "[1.0,[2]]"));
  EXPECT_FALSE(same_json("1", "true"));
  EXPECT_FALSE(same_json("1", ""));
}

// Everything that a program may try. The sandbox holds, or refuses to be one.
class EvalSandbox : public ::testing::Test {
 protected:
  void SetUp() override {
    const Status holds = check_sandbox();
    if (!holds) GTEST_SKIP() << holds.error().message;
  }
  static SandboxResult run(std::string_view program, double seconds = 4) {
    SandboxLimits limits;
    limits.seconds = seconds;
    auto result = run_python(program, "", limits);
    EXPECT_TRUE(result) << (result ? "" : result.error().message);
    return result ? *result : SandboxResult{};
  }
};

TEST_F(EvalSandbox, StopsWhatWouldEscape) {
  EXPECT_EQ(run("print(6*7)").out, "42\n");
  EXPECT_EQ(run("while True: pass", 1).outcome, SandboxOutcome::kTimeout);
  EXPECT_EQ(run("x = bytearray(8 << 30)").exit_code, 1);
  EXPECT_NE(run("import socket; socket.create_connection(('127.0.0.1', 22), 1)").exit_code, 0);
  EXPECT_NE(run("open('/etc/passwd')").exit_code, 0);
  EXPECT_NE(run("import os; os.listdir('/root')").exit_code, 0);
  // What bubblewrap makes in memory has no size of its own.
  for (const char* path : {"/x", "/dev/x", "/etc/x", "/data/x"}) {
    EXPECT_NE(run(std::string("open('") + path + "', 'w')").exit_code, 0) << path;
  }
  EXPECT_NE(run("open('/dev/shm/x', 'wb').write(bytes(20 << 20))").exit_code, 0);
  EXPECT_EQ(run("import multiprocessing as m; m.Lock(); open('/dev/null', 'w').write('x')").err,
            "");
  EXPECT_NE(run("import os; os.memfd_create('x')").exit_code, 0);
  EXPECT_NE(run("open('/usr/x', 'w')").exit_code, 0);
  EXPECT_NE(run("import os; os.symlink('/etc/passwd', '/tmp/l'); open('/tmp/l')").exit_code, 0);
  EXPECT_NE(
      run("import os; os.symlink('/proc/1/root/etc/passwd', '/tmp/l'); open('/tmp/l')").exit_code,
      0);
#if defined(__x86_64__)  // the numbers of its system calls
  // Refused by the filter: sockets but AF_UNIX, tracing, namespaces of their own, mounts.
  const std::string call =
      "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
      "def refused(*a):\n  assert c.syscall(*a) == -1 and ctypes.get_errno() == 1, a\n";
  const SandboxResult filtered =
      run(call +
          "refused(41, 2, 1, 0)\nrefused(101, 0, 0, 0, 0)\nrefused(272, 0x10000000)\n"
          "refused(165, 0, 0, 0, 0, 0)\nrefused(321, 0, 0, 0)\nrefused(425, 8, 0)\n"
          "import socket\nsocket.socketpair()\nprint('held')");
  EXPECT_EQ(filtered.out, "held\n") << filtered.err;
#endif
  EXPECT_NE(run("import os; os.kill(" + std::to_string(::getpid()) + ", 9)").exit_code, 0);
  const SandboxResult flood = run("while True: print('x' * 100000)");
  EXPECT_EQ(flood.outcome, SandboxOutcome::kOutputLimit);
  EXPECT_EQ(flood.out.size(), size_t{64} << 20);
  const SandboxResult disk = run("open('/tmp/f', 'wb').write(bytes(100 << 20))");
  EXPECT_NE(disk.exit_code, 0);
}

TEST_F(EvalSandbox, LeavesNothingBehind) {
  // A fork bomb ends at the limit and with its namespace; a grandchild does not outlive the
  // program.
  const SandboxResult bomb = run("import os\nwhile True:\n  os.fork()", 2);
  EXPECT_TRUE(bomb.outcome == SandboxOutcome::kTimeout || bomb.exit_code != 0);
  // Processes that each stay below the limit, and are above it together.
  SandboxLimits limits;
  limits.memory_bytes = int64_t{256} << 20;
  limits.seconds = 10;
  const auto many = run_python(
      "import os, time\nfor i in range(2): os.fork()\nx = bytearray(150 << 20)\ntime.sleep(30)", "",
      limits);
  ASSERT_TRUE(many) << many.error().message;
  EXPECT_EQ(many->exit_code, 137);
  EXPECT_THAT(many->err, HasSubstr("bytes of memory"));
  EXPECT_LT(many->seconds, 9);
  const SandboxResult sleeper =
      run("import os, time\nif os.fork() == 0:\n  time.sleep(60)\nprint('parent')");
  EXPECT_LT(sleeper.seconds, 4.5);
  EXPECT_EQ(sleeper.out, "parent\n");
}

// What a machine without user namespaces does: bubblewrap says so, and nothing runs. The limit is
// that of a namespace of the test's own.
TEST(EvalSandboxRefusal, IsClearWithoutNamespaces) {
  if (::access("/usr/bin/bwrap", X_OK) != 0) GTEST_SKIP() << "bubblewrap is not installed";
  const std::string outside = std::to_string(::geteuid());
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(77);
    std::ofstream("/proc/self/uid_map") << "1000 " << outside << " 1" << std::flush;
    std::ofstream limit("/proc/sys/user/max_user_namespaces");
    if (!(limit << "0" << std::flush)) ::_exit(77);
    const Status status = check_sandbox();
    const bool refused = !status && status.error().code == ErrorCode::kUnsupported &&
                         status.error().message.find("namespaces") != std::string::npos;
    if (!refused) (void)std::fputs(status ? "no refusal" : status.error().message.c_str(), stderr);
    ::_exit(refused ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no user namespace for the test itself";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(EvalSandbox, ScoresPrograms) {
  const std::string functional =
      R"({"func_name": "add", "tests": [{"input": "1\n2", "output": "3", "testtype": "functional"}]})";
  const auto outcome = [&](const std::string& program, const std::string& tests) {
    const auto score = score_code(program, tests);
    return score ? score->outcome + " " + score->detail : score.error().message;
  };
  EXPECT_EQ(outcome("def add(a, b):\n  return a + b", functional), "correct 1 tests");
  EXPECT_EQ(outcome("class Solution:\n  def add(self, a, b):\n    return a + b", functional),
            "correct 1 tests");
  EXPECT_EQ(outcome("def add(a, b):\n  return a - b", functional), "wrong test 1: wrong");
  EXPECT_EQ(outcome("def add(a, b):\n  return 1 / 0", functional), "wrong test 1: runtime");
  // A result that the program forges itself spoils the true one.
  EXPECT_EQ(outcome("import os\nos.write(3, b'3')\ndef add(a, b):\n  return 4", functional),
            "wrong test 1: wrong");
  const std::string stdio =
      R"({"func_name": "", "tests": [{"input": "5\n", "output": "25\n", "testtype": "stdin"}]})";
  EXPECT_EQ(outcome("print(int(input()) ** 2)", stdio), "correct 1 tests");
  EXPECT_EQ(outcome("print(24)", stdio), "wrong test 1: wrong");
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> run_arguments(const std::filesystem::path& out) {
  return {"eval",
          "run",
          "--task",
          "math-500=" + kSuites + "/math-500.jsonl",
          "--task",
          "gpqa-diamond=" + kSuites + "/gpqa-diamond.csv",
          "--prompt-style",
          "demo",
          "--limit",
          "6",
          "--k",
          "2",
          "--temperature",
          "0.6",
          "--max-tokens",
          "150",
          "--out",
          out.string(),
          "--progress",
          "none"};
}

// What counts of a report: all but the run's name.
nlohmann::json tasks_of(const std::filesystem::path& folder) {
  return nlohmann::json::parse(read(folder / "report.json"))["runs"][0]["tasks"];
}

TEST(EvalRun, GoesOnAfterAKillAndEndsTheSame) {
  const TemporaryFolder folder;
  const auto whole = run_nibble(run_arguments(folder / "whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const nlohmann::json expected = tasks_of(folder / "whole");
  EXPECT_EQ(expected.size(), 2u);
  EXPECT_EQ(expected[0]["samples"], 12);

  // As a kill leaves it: some records, and one that is torn.
  std::filesystem::create_directory(folder / "killed");
  const std::string samples = read(folder / "whole" / "samples.jsonl");
  size_t cut = 0;
  for (int i = 0; i < 5; ++i) cut = samples.find('\n', cut) + 1;
  std::ofstream(folder / "killed" / "samples.jsonl") << samples.substr(0, cut + 40);
  const auto resumed = run_nibble(run_arguments(folder / "killed"));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_EQ(tasks_of(folder / "killed"), expected);
  EXPECT_TRUE(read(folder / "killed" / "samples.jsonl").starts_with(samples.substr(0, cut)));

  // Another question in the same folder is refused, naming what differs.
  auto other = run_arguments(folder / "whole");
  other.insert(other.end(), {"--seed", "5"});
  const auto refused = run_nibble(other);
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_THAT(refused.err, HasSubstr("/seed"));

  const auto report = run_nibble({"eval", "report", (folder / "whole").string(),
                                  (folder / "killed").string(), "--require-retention", "98"});
  EXPECT_EQ(report.exit_code, 0) << report.out << report.err;
  EXPECT_THAT(report.out, HasSubstr("retained"));
}

TEST(EvalRun, RefusesWrongInput) {
  const TemporaryFolder folder;
  const std::string out = (folder / "never-made").string();
  const auto message = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"eval", "run", "--out", out});
    const auto run = run_nibble(arguments);
    EXPECT_NE(run.exit_code, 0);
    return run.err;
  };
  EXPECT_THAT(message({}), HasSubstr("--task NAME=FILE is missing"));
  EXPECT_THAT(message({"--task", "math-5000=x"}), HasSubstr("did you mean 'math-500'"));
  EXPECT_THAT(message({"--task", "math-500"}), HasSubstr("expected NAME=FILE"));
  EXPECT_THAT(message({"--task", "math-500=/no/file.jsonl"}), HasSubstr("/no/file.jsonl"));
  EXPECT_THAT(message({"--suite", kSuites, "--k", "0"}), HasSubstr("--k is 0"));
  EXPECT_THAT(message({"--suite", kSuites, "--relaxed"}), HasSubstr("--num-drafts"));
  const std::string math = "math-500=" + kSuites + "/math-500.jsonl";
  EXPECT_THAT(message({"--task", math}), HasSubstr("200 rows, but the data set has 500"));
  EXPECT_THAT(message({"--task", math, "--base-url", "ftp://x"}), HasSubstr("expected http://"));
  EXPECT_THAT(message({"--task", math, "--base-url", "http://x", "--w4a4"}),
              HasSubstr("nibble serve"));
  EXPECT_THAT(message({"--suite", kSuites, "--sandbox", "none"}),
              HasSubstr("--i-accept-unsandboxed-code"));
  EXPECT_THAT(message({"--task", math, "--after", "2024"}), HasSubstr("YYYY-MM-DD"));
  EXPECT_THAT(message({"--task", "scicode=" + kSuites + "/scicode.jsonl"}),
              HasSubstr("--scicode-templates"));
  EXPECT_THAT(message({"--task", "math-500=" + kSuites + "/math-500.jsonl", "--prompt-style", "x"}),
              HasSubstr("aa, demo, r1"));
  EXPECT_FALSE(std::filesystem::exists(out));
}

}  // namespace
}  // namespace nibble
