// The packed expert file, byte by byte: one record for each routed expert of a model, laid out as a
// backend reads it, so that one expert is one read.
//
//   [0, 4096)                  ExpertFileHeader
//   [4096, first_record)       ExpertIndexEntry[num_records], by layer and expert
//   each record, at 4096 k     ExpertRecordHeader in 4096 bytes, then gate_proj, up_proj and
//                              down_proj as Kernels::pack wrote them, then zeros to the next 4096
//
// Integers and floats are little-endian, and so is every machine that this builds for. Checksums
// are XXH3 with 64 bits.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "nibble/base/result.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

static_assert(std::endian::native == std::endian::little);

inline constexpr uint64_t kExpertAlignment = 4096;  // what O_DIRECT asks for on every disk
inline constexpr uint32_t kExpertFileVersion = 1;
inline constexpr std::array<char, 8> kExpertFileMagic = {'N', 'I', 'B', 'E', 'X', 'P', 'T', '1'};
inline constexpr std::array<char, 8> kExpertRecordMagic = {'N', 'I', 'B', 'E', 'X', 'R', 'E', 'C'};

struct ExpertFileHeader {
  std::array<char, 8> magic = kExpertFileMagic;
  uint32_t version = kExpertFileVersion;
  uint32_t num_experts = 0;  // of a layer
  uint64_t formats = 0;      // bit i: some matrix is LinearFormat i
  uint64_t num_records = 0;
  uint64_t first_record = 0;  // where the records begin, in bytes
  uint64_t file_bytes = 0;
  uint64_t max_record_bytes = 0;
  int64_t hidden_size = 0;
  int64_t moe_intermediate_size = 0;
  uint64_t source_fingerprint = 0;    // of the checkpoint it was packed from
  std::array<char, 128> layout = {};  // Kernels::packed_layout(), padded with zeros
  uint64_t index_checksum = 0;
  uint64_t checksum = 0;  // of everything before it
};

struct ExpertIndexEntry {
  int32_t layer = 0;
  int32_t expert = 0;
  uint64_t offset = 0;  // in the file
  uint64_t bytes = 0;   // header and padding included
};

// One of the three matrices.
struct ExpertMatrixEntry {
  uint32_t format = 0;  // LinearFormat
  uint32_t has_input_scale = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  uint64_t data_offset = 0;    // from the start of the record
  uint64_t scales_offset = 0;  // the same; 0 where the layout has no scales of its own
  float global_scale = 1;
  float input_scale = 1;  // the largest of the layer's experts: they quantize activations once
};

struct ExpertRecordHeader {
  std::array<char, 8> magic = kExpertRecordMagic;
  int32_t layer = 0;
  int32_t expert = 0;
  uint64_t bytes = 0;                              // of the whole record
  std::array<ExpertMatrixEntry, 3> matrices = {};  // gate_proj, up_proj, down_proj
  uint64_t payload_checksum = 0;                   // of bytes [4096, bytes)
  uint64_t checksum = 0;                           // of everything before it
};

static_assert(sizeof(ExpertFileHeader) <= kExpertAlignment);
static_assert(sizeof(ExpertRecordHeader) <= kExpertAlignment);
static_assert(sizeof(ExpertIndexEntry) == 24 && sizeof(ExpertMatrixEntry) == 48);

constexpr uint64_t align_expert_bytes(uint64_t bytes) {
  return (bytes + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
}

// "layer 3 expert 17", as messages name a record.
std::string expert_record_name(int layer, int expert);

// XXH3-64.
uint64_t expert_checksum(std::span<const std::byte> bytes);

// Fills in header.checksum.
void seal(ExpertFileHeader* header);
void seal(ExpertRecordHeader* header);

// Writes the header at the front of `record`, whose payload is complete, with both checksums.
void seal_record(ExpertRecordHeader header, std::span<std::byte> record);

// What a record must be to stand for an expert.
struct ExpertShape {
  int64_t hidden_size = 0;
  int64_t moe_intermediate_size = 0;
};

// The expert in `record`, whose weights point into it. Everything is checked: magic, number,
// length, both checksums, shapes, and that each matrix lies inside. `activation` goes to NVFP4
// matrices with an input_scale. Errors: kCorrupt naming the record, what was expected and found.
Result<MlpWeight> read_expert_record(std::span<std::byte> record, int layer, int expert,
                                     const ExpertShape& shape, ActivationFormat activation);

}  // namespace nibble
