#include "nibble/base/cpu_features.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "tests/base/temporary_folder.h"

namespace nibble {
namespace {

using nibble::testing::TemporaryFolder;
using ::testing::HasSubstr;

class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    if (const char* old = std::getenv("NIBBLE_ISA")) before_ = old;
    ::setenv("NIBBLE_ISA", value, 1);
  }
  ~IsaVariable() {
    if (before_.empty()) {
      ::unsetenv("NIBBLE_ISA");
    } else {
      ::setenv("NIBBLE_ISA", before_.c_str(), 1);
    }
  }
  IsaVariable(const IsaVariable&) = delete;
  IsaVariable& operator=(const IsaVariable&) = delete;

 private:
  std::string before_;
};

TEST(Isa, LevelsContainTheOnesBefore) {
  EXPECT_LT(Isa::kPortable, Isa::kAvx2);
  EXPECT_LT(Isa::kAvx2, Isa::kAvx512);
  EXPECT_LT(Isa::kAvx512, Isa::kAvx512Vnni);
  EXPECT_LT(Isa::kAvx512Vnni, Isa::kAmx);
}

// The kernel's own list of flags is the independent source.
TEST(DetectedIsa, AgreesWithTheFlagsThatTheKernelLists) {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::string flags;
  while (flags.empty() && std::getline(file, line)) {
    if (line.starts_with("flags")) flags = line + " ";
  }
  if (flags.empty()) GTEST_SKIP() << "no flags in /proc/cpuinfo";
  const auto has = [&](const std::string& flag) {
    return flags.find(" " + flag + " ") != std::string::npos;
  };
  const bool avx2 = has("avx2") && has("fma");
  const bool avx512 =
      avx2 && has("avx512f") && has("avx512bw") && has("avx512dq") && has("avx512vl");
  const bool amx = has("avx512_vnni") && has("amx_tile") && has("amx_bf16") && has("amx_int8") &&
                   has("avx512_bf16") && has("avx512_fp16");
  const Isa widest = amx ? Isa::kAmx : has("avx512_vnni") ? Isa::kAvx512Vnni : Isa::kAvx512;
  const Isa expected = avx512 ? widest : avx2 ? Isa::kAvx2 : Isa::kPortable;
  // The system may refuse tiles to a process (a kernel without them, a small signal stack).
  if (expected == Isa::kAmx && detected_isa() == Isa::kAvx512Vnni) {
    GTEST_SKIP() << "the processor has tiles, which the system does not give";
  }
  EXPECT_EQ(detected_isa(), expected);
}

TEST(SelectedIsa, IsTheDetectedOneWithoutTheVariable) {
  const IsaVariable empty("");
  EXPECT_EQ(selected_isa().value(), detected_isa());
}

TEST(SelectedIsa, TakesEveryLevelThatTheMachineHasAndRefusesTheOthers) {
  for (const Isa isa : kAllIsas) {
    const std::string name(isa_name(isa));
    SCOPED_TRACE(name);
    const IsaVariable variable(name.c_str());
    const Result<Isa> selected = selected_isa();
    if (isa <= detected_isa()) {
      EXPECT_EQ(selected.value(), isa);
    } else {
      ASSERT_FALSE(selected);
      EXPECT_EQ(selected.error().code, ErrorCode::kUnsupported);
      EXPECT_THAT(selected.error().message, HasSubstr(name));
    }
  }
}

TEST(SelectedIsa, NamesTheLevelsWhenTheNameIsUnknown) {
  const IsaVariable variable("sse9");
  const Result<Isa> selected = selected_isa();
  ASSERT_FALSE(selected);
  EXPECT_EQ(selected.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(
      selected.error().message,
      HasSubstr("NIBBLE_ISA is 'sse9', expected portable, avx2, avx512, avx512vnni or amx"));
}

// A copy of the files that the kernel shows, with numbers of our own.
class FakeRoot {
 public:
  void write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }
  MemoryInfo info() const { return memory_info(folder_.path()); }

 private:
  TemporaryFolder folder_;
};

constexpr const char* kMeminfo =
    "MemTotal:       1000000 kB\n"
    "MemFree:         100000 kB\n"
    "MemAvailable:    800000 kB\n"
    "HugePages_Total:       0\n"
    "Hugepagesize:       2048 kB\n";

TEST(MemoryInfo, ReadsTheMachine) {
  FakeRoot root;
  root.write("proc/meminfo", kMeminfo);
  EXPECT_EQ(root.info().total_bytes, 1'024'000'000u);
  EXPECT_EQ(root.info().available_bytes, 819'200'000u);
}

TEST(MemoryInfo, TakesTheLowerLimitOfACgroup) {
  FakeRoot root;
  root.write("proc/meminfo", kMeminfo);
  root.write("sys/fs/cgroup/memory.max", "500000000\n");
  root.write("sys/fs/cgroup/memory.current", "200000000\n");
  EXPECT_EQ(root.info().total_bytes, 500'000'000u);
  EXPECT_EQ(root.info().available_bytes, 300'000'000u);
}

// A mapped checkpoint fills the cgroup with cached pages, which the kernel takes back on demand.
TEST(MemoryInfo, CountsCachedFilePagesOfACgroupAsAvailable) {
  FakeRoot root;
  root.write("proc/meminfo", kMeminfo);
  root.write("sys/fs/cgroup/memory.max", "500000000\n");
  root.write("sys/fs/cgroup/memory.current", "490000000\n");
  root.write("sys/fs/cgroup/memory.stat",
             "anon 90000000\nfile 400000000\ninactive_file 300000000\nactive_file 100000000\n");
  EXPECT_EQ(root.info().available_bytes, 410'000'000u);
}

TEST(MemoryInfo, IgnoresACgroupWithoutALimitOrWithAHigherOne) {
  FakeRoot root;
  root.write("proc/meminfo", kMeminfo);
  root.write("sys/fs/cgroup/memory.max", "max\n");
  root.write("sys/fs/cgroup/memory.current", "200000000\n");
  EXPECT_EQ(root.info().total_bytes, 1'024'000'000u);
  root.write("sys/fs/cgroup/memory.max", "9000000000\n");
  EXPECT_EQ(root.info().total_bytes, 1'024'000'000u);
  EXPECT_EQ(root.info().available_bytes, 819'200'000u);
}

TEST(MemoryInfo, HasNothingLeftWhenTheCgroupIsOverItsLimit) {
  FakeRoot root;
  root.write("proc/meminfo", kMeminfo);
  root.write("sys/fs/cgroup/memory.max", "500000000\n");
  root.write("sys/fs/cgroup/memory.current", "500000001\n");
  EXPECT_EQ(root.info().available_bytes, 0u);
}

TEST(MemoryInfo, OfThisMachineIsPlausible) {
  const MemoryInfo info = memory_info();
  EXPECT_GT(info.total_bytes, uint64_t{64} << 20);
  EXPECT_LE(info.available_bytes, info.total_bytes);
}

TEST(AvailableProcessors, CountsTheOnesThisThreadMayUse) {
  EXPECT_GE(available_processors(), 1);
  int pinned = 0;
  std::thread([&] {
    cpu_set_t all;
    ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
      if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    }
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    pinned = available_processors();
  }).join();
  EXPECT_EQ(pinned, 1);
}

}  // namespace
}  // namespace nibble
