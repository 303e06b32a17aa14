#include "nibble/offload/expert_format.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <cmath>
#include <cstring>

#include "nibble/base/error.h"

namespace nibble {
namespace {

template <typename Header>
uint64_t header_checksum(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, checksum));
}

Result<LinearWeight> read_matrix(std::span<std::byte> record, const ExpertMatrixEntry& entry,
                                 int64_t rows, int64_t cols, ActivationFormat activation) {
  if (entry.rows != rows || entry.cols != cols) {
    return corrupt(
        fmt::format("shape [{}, {}], expected [{}, {}]", entry.rows, entry.cols, rows, cols));
  }
  if (entry.format > static_cast<uint32_t>(LinearFormat::kNvfp4)) {
    return corrupt(fmt::format("format {}, expected 0..3", entry.format));
  }
  const auto inside = [&](uint64_t offset) {
    return offset >= kExpertAlignment && offset < record.size() && offset % 16 == 0;
  };
  if (!inside(entry.data_offset) || (entry.scales_offset != 0 && !inside(entry.scales_offset))) {
    return corrupt(fmt::format("data at {} and scales at {} of a record of {} bytes",
                               entry.data_offset, entry.scales_offset, record.size()));
  }
  if (!std::isfinite(entry.global_scale) || !std::isfinite(entry.input_scale)) {
    return corrupt("a scale that is not finite");
  }
  LinearWeight weight;
  weight.format = static_cast<LinearFormat>(entry.format);
  const bool quantizes = weight.format == LinearFormat::kNvfp4 && entry.has_input_scale != 0;
  weight.activation = quantizes ? activation : ActivationFormat::kUnquantized;
  weight.rows = rows;
  weight.cols = cols;
  weight.data = record.data() + entry.data_offset;
  weight.scales = entry.scales_offset == 0 ? nullptr : record.data() + entry.scales_offset;
  weight.global_scale = entry.global_scale;
  weight.input_scale = entry.input_scale;
  return weight;
}

Result<MlpWeight> read_record(std::span<std::byte> record, int layer, int expert,
                              const ExpertShape& shape, ActivationFormat activation) {
  ExpertRecordHeader header;
  if (record.size() < kExpertAlignment) {
    return corrupt(fmt::format("{} bytes, expected at least {}", record.size(), kExpertAlignment));
  }
  std::memcpy(&header, record.data(), sizeof(header));
  if (header.magic != kExpertRecordMagic) return corrupt("no record begins there");
  if (header.checksum != header_checksum(header)) {
    return corrupt("the checksum of its header is wrong: the file was damaged");
  }
  if (header.layer != layer || header.expert != expert || header.bytes != record.size()) {
    return corrupt(fmt::format("found {} of {} bytes, expected {} bytes",
                               expert_record_name(header.layer, header.expert), header.bytes,
                               record.size()));
  }
  const uint64_t found = expert_checksum(record.subspan(kExpertAlignment));
  if (found != header.payload_checksum) {
    return corrupt(fmt::format("checksum {:016x}, expected {:016x}: the file was damaged", found,
                               header.payload_checksum));
  }
  const int64_t hidden = shape.hidden_size;
  const int64_t width = shape.moe_intermediate_size;
  MlpWeight weight;
  weight.gate_proj = NIBBLE_TRY(with_context(
      read_matrix(record, header.matrices[0], width, hidden, activation), "gate_proj"));
  weight.up_proj = NIBBLE_TRY(
      with_context(read_matrix(record, header.matrices[1], width, hidden, activation), "up_proj"));
  weight.down_proj = NIBBLE_TRY(with_context(
      read_matrix(record, header.matrices[2], hidden, width, activation), "down_proj"));
  return weight;
}

}  // namespace

std::string expert_record_name(int layer, int expert) {
  return fmt::format("layer {} expert {}", layer, expert);
}

uint64_t expert_checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void seal(ExpertFileHeader* header) { header->checksum = header_checksum(*header); }
void seal(ExpertRecordHeader* header) { header->checksum = header_checksum(*header); }

void seal_record(ExpertRecordHeader header, std::span<std::byte> record) {
  header.bytes = record.size();
  header.payload_checksum = expert_checksum(record.subspan(kExpertAlignment));
  seal(&header);
  std::memset(record.data(), 0, kExpertAlignment);
  std::memcpy(record.data(), &header, sizeof(header));
}

Result<MlpWeight> read_expert_record(std::span<std::byte> record, int layer, int expert,
                                     const ExpertShape& shape, ActivationFormat activation) {
  return with_context(read_record(record, layer, expert, shape, activation),
                      expert_record_name(layer, expert));
}

}  // namespace nibble
