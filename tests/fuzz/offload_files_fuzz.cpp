// Packed expert files (their first bytes, and a record, with checksums made right), routing traces,
// expert counts, and what nibble tune keeps.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_preset.h"
#include "nibble/offload/routing_trace.h"
#include "nibble/offload/tuner.h"

namespace {

// A checksum stops nearly every change of a fuzzer, so the checks behind it are met with right
// ones.
void parse_front(std::vector<std::byte> front) {
  const auto check = [&] {
    const auto file = nibble::ExpertFile::parse(front, front.size());
    if (!file) return;
    for (const nibble::ExpertIndexEntry& entry : file->index()) {
      NIBBLE_CHECK(entry.offset + entry.bytes <= front.size());
      NIBBLE_CHECK(file->find(entry.layer, entry.expert) != nullptr);
    }
  };
  check();
  nibble::ExpertFileHeader header;
  if (front.size() < nibble::kExpertAlignment) return;
  std::memcpy(&header, front.data(), sizeof(header));
  const uint64_t index_bytes = header.num_records * sizeof(nibble::ExpertIndexEntry);
  if (header.num_records < 1000 && front.size() >= nibble::kExpertAlignment + index_bytes) {
    header.index_checksum =
        nibble::expert_checksum(std::span(front).subspan(nibble::kExpertAlignment, index_bytes));
  }
  header.magic = nibble::kExpertFileMagic;
  header.file_bytes = front.size();
  nibble::seal(&header);
  std::memcpy(front.data(), &header, sizeof(header));
  check();
}

void parse_record(std::vector<std::byte> bytes) {
  if (bytes.size() < nibble::kExpertAlignment) return;
  nibble::ExpertRecordHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  header.magic = nibble::kExpertRecordMagic;
  nibble::seal_record(header, bytes);
  const nibble::ExpertShape shape{header.matrices[0].cols, header.matrices[0].rows};
  const auto weight = nibble::read_expert_record(bytes, header.layer, header.expert, shape,
                                                 nibble::ActivationFormat::kNvfp4);
  if (!weight) return;
  for (const auto* matrix : {&weight->gate_proj, &weight->up_proj, &weight->down_proj}) {
    const auto at = static_cast<const std::byte*>(matrix->data) - bytes.data();
    NIBBLE_CHECK(at >= 0 && at < static_cast<ptrdiff_t>(bytes.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto trace = nibble::parse_routing_trace(text)) {
    NIBBLE_CHECK(!trace->steps.empty());
    for (const auto& step : trace->steps) {
      for (const auto& use : step.uses) NIBBLE_CHECK(use.expert < trace->num_experts);
    }
    NIBBLE_CHECK(nibble::parse_expert_counts(nibble::expert_counts_text(*trace)).has_value());
  }
  (void)nibble::parse_expert_counts(text);
  if (const auto tuning = nibble::parse_tuning(text)) {
    NIBBLE_CHECK(nibble::parse_tuning(nibble::tuning_text(*tuning)).has_value());
  }
  (void)nibble::parse_expert_preset(text);

  // Short inputs stand for the headers of a file of 16 KiB.
  std::vector<std::byte> bytes(4 * nibble::kExpertAlignment);
  std::memcpy(bytes.data(), data, std::min(size, bytes.size()));
  parse_front(bytes);
  parse_record(bytes);
  return 0;
}
