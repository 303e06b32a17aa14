#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "nibble/base/mapped_file.h"
#include "nibble/offload/packed_expert.h"
#include "nibble/offload/slot_memory.h"
#include "tests/offload/offload_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string bytes_of(const std::filesystem::path& path) { return read_text_file(path).value(); }

TEST(PackExperts, AnExpertOfR1InNvfp4TakesTheSpecifiedBytes) {
  // spec kernels 5.3: codes 14,680,064 + 7,340,032, scales 1,835,008 + 917,504, header 4096.
  EXPECT_EQ(align_expert_bytes(4096 + 14'680'064 + 1'835'008 + 7'340'032 + 917'504), 24'776'704u);
  auto& parts = testing::demo_parts();
  uint64_t bytes = kExpertAlignment;
  bytes += 2 * parts.kernels->packed_bytes(LinearFormat::kNvfp4, 2048, 7168);
  bytes += parts.kernels->packed_bytes(LinearFormat::kNvfp4, 7168, 2048);
  EXPECT_EQ(bytes, 24'776'704u);
}

TEST(PackExperts, EveryRecordHoldsWhatTheBackendWouldPack) {
  auto& parts = testing::demo_parts();
  const auto file = ExpertFile::open(testing::packed_demo());
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->header().num_records, 4u * 16);
  const std::string all = bytes_of(testing::packed_demo());
  for (const auto& [layer, expert] : {std::pair(1, 0), std::pair(3, 9), std::pair(4, 15)}) {
    const ExpertIndexEntry* const entry = file->find(layer, expert);
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->offset % kExpertAlignment, 0u);
    auto made = SlotMemory::allocate(entry->bytes).value();
    const auto scales = expert_input_scales(*parts.source, parts.config, layer).value();
    ASSERT_TRUE(pack_expert(*parts.source, parts.config, *parts.kernels, layer, expert, scales,
                            made.bytes()));
    EXPECT_EQ(0, std::memcmp(made.bytes().data(), all.data() + entry->offset, entry->bytes));
    const auto weight = read_expert_record(
        made.bytes(), layer, expert, {parts.config.hidden_size, parts.config.moe_intermediate_size},
        ActivationFormat::kUnquantized);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->gate_proj.rows, parts.config.moe_intermediate_size);
    EXPECT_EQ(weight->down_proj.format, LinearFormat::kFp8Block);
  }
  EXPECT_EQ(file->find(0, 0), nullptr) << "a dense layer";
  EXPECT_EQ(file->find(5, 0), nullptr);
}

TEST(PackExperts, AStoppedRunIsGoneOnWith) {
  auto& parts = testing::demo_parts();
  const auto path = testing::offload_folder() / "resumed.nibble";
  const auto part = testing::copy_of_packed_demo("resumed.nibble.part");
  // As a kill leaves it: one record half written, one damaged, the last 3 missing.
  const auto file = ExpertFile::open(testing::packed_demo()).value();
  testing::flip_byte(part, file.find(1, 7)->offset + 5000);
  testing::flip_byte(part, file.find(2, 2)->offset + 16);
  std::filesystem::resize_file(part, file.find(4, 13)->offset + 100);
  const auto report = pack_experts(*parts.source, parts.config, *parts.kernels, path, {});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->num_reused, 64 - 5);
  EXPECT_EQ(bytes_of(path), bytes_of(testing::packed_demo()));
  EXPECT_FALSE(std::filesystem::exists(part));
}

TEST(PackExperts, ThePartOfAnotherCheckpointIsNotGoneOnWith) {
  auto& parts = testing::demo_parts();
  const auto path = testing::offload_folder() / "other.nibble";
  testing::copy_of_packed_demo("other.nibble.part");
  PackExpertsOptions options;
  options.source_fingerprint = 77;
  options.threads = 3;
  const auto report = pack_experts(*parts.source, parts.config, *parts.kernels, path, options);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->num_reused, 0);
  EXPECT_EQ(ExpertFile::open(path)->header().source_fingerprint, 77u);
}

TEST(PackExperts, AnotherBackendsLayoutIsRefusedByName) {
  auto& parts = testing::demo_parts();
  const auto reference = make_kernels("reference").value();
  const auto loader =
      make_packed_loader(testing::packed_demo(), parts.config, *reference, true, {});
  ASSERT_FALSE(loader);
  EXPECT_EQ(loader.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(loader.error().message, HasSubstr(std::string(parts.kernels->packed_layout())));
  EXPECT_THAT(loader.error().message, HasSubstr("pack the model again"));
}

TEST(PackExperts, AnotherModelsFileIsRefused) {
  auto& parts = testing::demo_parts();
  ModelConfig config = parts.config;
  config.moe_intermediate_size *= 2;
  EXPECT_THAT(
      make_packed_loader(testing::packed_demo(), config, *parts.kernels, true, {}).error().message,
      HasSubstr("experts of 256 x 384"));
  config = parts.config;
  config.num_hidden_layers = 6;
  EXPECT_THAT(
      make_packed_loader(testing::packed_demo(), config, *parts.kernels, true, {}).error().message,
      HasSubstr("lacks layer 5 expert 0"));
}

// The first 4096 bytes, then the index: each of their bytes is under a checksum.
TEST(ExpertFileFront, EveryFlippedByteOfHeaderAndIndexIsRefused) {
  const std::string all = bytes_of(testing::packed_demo());
  const uint64_t size = all.size();
  std::string front =
      all.substr(0, ExpertFile::open(testing::packed_demo())->header().first_record);
  const auto parse = [&] { return ExpertFile::parse(std::as_bytes(std::span(front)), size); };
  ASSERT_TRUE(parse());
  const uint64_t index_end = kExpertAlignment + 64 * sizeof(ExpertIndexEntry);
  for (uint64_t at = 0; at < index_end; ++at) {
    if (at >= sizeof(ExpertFileHeader) && at < kExpertAlignment) continue;
    front[at] = static_cast<char>(front[at] ^ 0x10);
    EXPECT_FALSE(parse()) << at;
    front[at] = static_cast<char>(front[at] ^ 0x10);
  }
  for (const size_t length : {size_t{0}, size_t{100}, size_t{4096}, size_t{5000}}) {
    EXPECT_FALSE(ExpertFile::parse(std::as_bytes(std::span(front).first(length)), size)) << length;
  }
}

}  // namespace
}  // namespace nibble
