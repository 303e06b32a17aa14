// The reference distributions of a KL measurement on disk. Little endian: "NIBKLD01", then as
// 64-bit integers vocab, K, context, chunks, the SHA-256 of tokenizer.json (64 characters), the
// token ids (32 bits each), then for each scored position: K pairs of id (32 bits) and
// log-probability (float) and the log of the remaining mass (float), or with K = 0 all
// log-probabilities (float); then the log-probability of the true token (float).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/base/result.h"

namespace nibble {

struct ReferenceHeader {
  int64_t vocab = 0;
  int64_t top_k = 0;  // 0: all
  int64_t context = 0;
  int64_t num_chunks = 0;
  std::string tokenizer;  // 64 hexadecimal digits
};

struct ReferencePosition {
  std::vector<uint32_t> ids;  // likeliest first; empty: log_probs are of all ids in order
  std::vector<float> log_probs;
  float log_rest = 0;
  float log_true = 0;

  uint32_t id(size_t i) const { return ids.empty() ? static_cast<uint32_t>(i) : ids[i]; }
  // The likeliest id with its log-probability, and the next log-probability.
  std::pair<std::pair<uint32_t, float>, float> best_two() const;
};

// log of what is left of a mass of 1; -infinity for nothing.
double remaining_log(double rest);

std::string reference_prefix(const ReferenceHeader& header,
                             const std::vector<std::vector<int32_t>>& chunks);
std::string reference_record(const ReferencePosition& position);

class ReferenceReader {
 public:
  // Errors: kNotFound; kCorrupt when the size or a number in it cannot be.
  static Result<ReferenceReader> open(const std::filesystem::path& path);

  const ReferenceHeader& header() const { return header_; }
  std::vector<std::vector<int32_t>> chunks() const;
  // index counts scored positions over all chunks.
  ReferencePosition position(int64_t index) const;

 private:
  explicit ReferenceReader(MappedFile file) : file_(std::move(file)) {}
  size_t record_bytes() const;

  MappedFile file_;
  ReferenceHeader header_;
  size_t tokens_at_ = 0;
  size_t records_at_ = 0;
};

}  // namespace nibble
