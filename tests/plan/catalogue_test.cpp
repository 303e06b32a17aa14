// The device catalogue: the one built in, files of users, names on the command line.
#include "nibble/plan/catalogue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/plan/hardware.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(PlanCatalogue, HoldsEveryDeviceOfTheFile) {
  const Catalogue& catalogue = Catalogue::builtin();
  EXPECT_EQ(catalogue.devices().size(), 98u);
  for (const DeviceSpec& spec : catalogue.devices()) {
    EXPECT_TRUE(device_of(spec)) << spec.id;
    EXPECT_EQ(catalogue.find(spec.id)->id, spec.id);
    EXPECT_FALSE(spec.vendor.empty() || spec.device_class.empty() || spec.checked.empty())
        << spec.id;
  }
}

// 143,771 MiB and 1,466,872 MiB / 8, by hand.
TEST(PlanCatalogue, TakesWhatTheDriverReportsBeforeTheNominalSize) {
  const auto h200 = device_of(Catalogue::builtin().find("h200-sxm").value()).value();
  EXPECT_EQ(h200.memory_bytes, 150'754'820'096);
  EXPECT_EQ(h200.bytes_source, BytesSource::kReported);
  const auto dgx = device_of(Catalogue::builtin().find("dgx-b200").value()).value();
  EXPECT_EQ(dgx.memory_bytes, 192'265'846'784);
  EXPECT_DOUBLE_EQ(*dgx.bandwidth, 8e12);
  EXPECT_DOUBLE_EQ(*dgx.fp4_flops, 9e15);
  const auto gb200 = device_of(Catalogue::builtin().find("gb200").value()).value();
  EXPECT_EQ(gb200.memory_bytes, 186'000'000'000);
  EXPECT_EQ(gb200.bytes_source, BytesSource::kNominal);
}

TEST(PlanCatalogue, LeavesUnknownFiguresUnknown) {
  const DeviceSpec spec = Catalogue::builtin().find("rtx4000ada").value();
  EXPECT_FALSE(spec.bf16_dense_tflops);
  EXPECT_FALSE(spec.memory_mib_reported);
  EXPECT_FALSE(spec.is_checked());
  // MXFP4 is another block format: no NVFP4 rate.
  const auto mi355 = device_of(Catalogue::builtin().find("mi355x").value()).value();
  EXPECT_FALSE(mi355.fp4_flops);
}

TEST(PlanCatalogue, FindsByPrefixAndSuggestsNearNames) {
  const Catalogue& catalogue = Catalogue::builtin();
  EXPECT_EQ(catalogue.find("B200")->id, "b200-sxm");
  EXPECT_EQ(catalogue.find("m3_ultra_512")->id, "m3-ultra-512");
  EXPECT_EQ(catalogue.find("gaudi")->id, "gaudi3");
  EXPECT_THAT(catalogue.find("b2000").error().message, HasSubstr("b200-sxm"));
  EXPECT_THAT(catalogue.find("rtx4091").error().message, HasSubstr("rtx4090"));
  EXPECT_THAT(catalogue.find("m3").error().message, HasSubstr("m3-ultra-256"));
  EXPECT_EQ(catalogue.find("zzzzzzzz").error().code, "unknown_device");
  EXPECT_FALSE(catalogue.find(""));
}

TEST(PlanCatalogue, ReadsCountsInThreeForms) {
  const Catalogue& catalogue = Catalogue::builtin();
  const auto parsed = [&](std::string_view text) {
    const auto count = parse_device_count(text, catalogue);
    return count ? count->spec.id + " " + std::to_string(count->count) : count.error().message;
  };
  EXPECT_EQ(parsed("b200-sxmx8"), "b200-sxm 8");
  EXPECT_EQ(parsed("8xb200-sxm"), "b200-sxm 8");
  EXPECT_EQ(parsed("b200-sxm:8"), "b200-sxm 8");
  EXPECT_EQ(parsed("rtx4090x2"), "rtx4090 2");
  EXPECT_EQ(parsed("rx7900xtx"), "rx7900xtx 1");
  EXPECT_EQ(parsed("rx7900xtxx4"), "rx7900xtx 4");
  EXPECT_EQ(parsed("mi300x-8"), "mi300x-8 1");
  EXPECT_THAT(parsed("h200x0"), HasSubstr("count is 0, expected 1 to 4096"));
  EXPECT_THAT(parsed("h200x-3"), HasSubstr("count is -3"));
  EXPECT_THAT(parsed("h200x99999999999999999999"), HasSubstr("expected 1 to 4096"));
}

TEST(PlanCatalogue, TakesACustomDevice) {
  const auto count = parse_device_count(
      "custom:mem=96GiB,bw=1792,bf16=503,fp8=1007,fp4=2015,link=128x4", Catalogue::builtin());
  ASSERT_TRUE(count) << count.error().message;
  EXPECT_EQ(count->count, 4);
  const PlanDevice device = device_of(count->spec).value();
  EXPECT_EQ(device.memory_bytes, int64_t{96} << 30);
  EXPECT_EQ(device.bytes_source, BytesSource::kUser);
  EXPECT_DOUBLE_EQ(*device.fp4_flops, 2015e12);
  for (const std::string_view bad :
       {"custom:", "custom:bw=5", "custom:mem=0", "custom:mem=96,bw=-1", "custom:mem=96,bw=x",
        "custom:mem=96,colour=1", "custom:mem"}) {
    const auto result = parse_device_count(bad, Catalogue::builtin());
    ASSERT_FALSE(result) << bad;
    EXPECT_EQ(result.error().code, "bad_value") << bad;
  }
}

TEST(PlanCatalogue, NamesTheLineOfABadFile) {
  const std::string head = "id,name,memory_gb,mem_bw_gbs\n";
  const auto message = [&](const std::string& csv) {
    const auto parsed = Catalogue::parse(csv, "my.csv");
    return parsed ? std::string("fine") : parsed.error().message;
  };
  EXPECT_EQ(message(head + "a,\"A, the first\",80,2000\nb,B,40,\n"), "fine");
  EXPECT_THAT(message(head + "a,A,80\n"), HasSubstr("my.csv line 2: 3 columns, expected 4"));
  EXPECT_THAT(message(head + "a,A,80,1\nb,B,0,1\n"), HasSubstr("line 3: memory_gb is '0'"));
  EXPECT_THAT(message(head + "a,A,80,1e400\n"), HasSubstr("mem_bw_gbs is '1e400'"));
  EXPECT_THAT(message(head + "a,A,nan,1\n"), HasSubstr("memory_gb is 'nan'"));
  EXPECT_THAT(message(head + "a,A,80,1\nA,A,80,1\n"), HasSubstr("the id 'A' a second time"));
  EXPECT_THAT(message(head + "a,\"A,80,1\n"), HasSubstr("a quote is not closed"));
  EXPECT_THAT(message("id,memory_db\na,1\n"),
              HasSubstr("unknown column 'memory_db'; did you mean"));
  EXPECT_THAT(message("id,id\na,a\n"), HasSubstr("twice"));
  EXPECT_THAT(message(head + "a,A,,1\n"), HasSubstr("a has no memory_gb"));
  EXPECT_THAT(message(head), HasSubstr("holds no device"));
  EXPECT_THAT(message(""), HasSubstr("holds no device"));
}

TEST(PlanCatalogue, MergesAUsersEntries) {
  Catalogue catalogue = Catalogue::builtin();
  catalogue.merge(Catalogue::parse("id,memory_gb\nh200-sxm,100\nmine,7\n", "my.csv").value());
  EXPECT_EQ(catalogue.devices().size(), 99u);
  EXPECT_DOUBLE_EQ(*catalogue.find("h200-sxm")->memory_gb, 100);
  EXPECT_DOUBLE_EQ(*catalogue.find("mine")->memory_gb, 7);
}

TEST(PlanCatalogue, ReadsSizes) {
  EXPECT_EQ(parse_size("96"), 96'000'000'000);
  EXPECT_EQ(parse_size("96GB"), 96'000'000'000);
  EXPECT_EQ(parse_size("96GiB"), int64_t{96} << 30);
  EXPECT_EQ(parse_size("1.5TB"), 1'500'000'000'000);
  for (const std::string_view bad : {"", "GB", "-1", "0", "96 GB", "96XB", "1e99", "0x10", "inf"}) {
    EXPECT_FALSE(parse_size(bad)) << bad;
  }
}

TEST(PlanHardware, MatchesTheDriversNames) {
  const Catalogue& catalogue = Catalogue::builtin();
  const auto id = [&](const std::string& name, int64_t mib) {
    const DeviceSpec* spec = match_driver_name(catalogue, name, mib << 20);
    return spec == nullptr ? std::string("none") : spec->id;
  };
  EXPECT_EQ(id("NVIDIA H200", 143771), "h200-sxm");
  EXPECT_EQ(id("NVIDIA H100 80GB HBM3", 81559), "h100-sxm");
  EXPECT_EQ(id("NVIDIA GeForce RTX 4090", 24564), "rtx4090");
  EXPECT_EQ(id("NVIDIA B200", 183359), "b200-sxm");
  // One slice of a divided H200 is no H200.
  EXPECT_EQ(id("NVIDIA H200", 16384), "none");
  EXPECT_EQ(id("Some Other Card 9", 24000), "none");
}

TEST(PlanHardware, KeepsCpuMachinesApart) {
  const Catalogue& catalogue = Catalogue::builtin();
  const DeviceSpec cpu = catalogue.find("cpu-grace-480").value();
  const DeviceSpec gpu = catalogue.find("h200").value();
  EXPECT_TRUE(hardware_of({{cpu, 1}}));
  EXPECT_EQ(hardware_of({{cpu, 2}}).error().code, "conflict");
  EXPECT_EQ(hardware_of({{cpu, 1}, {gpu, 1}}).error().code, "conflict");
  EXPECT_EQ(hardware_of({{catalogue.find("gb200-nvl72").value(), 2}})->num_devices(), 144);
}

}  // namespace
}  // namespace nibble
