#include "nibble/eval/reference_file.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::string_view kMagic = "NIBKLD01";
constexpr size_t kHashBytes = 64;
constexpr size_t kHeaderBytes = 8 + 4 * 8 + kHashBytes;
constexpr int64_t kMaxCount = int64_t{1} << 31;

template <typename T>
void put(std::string* out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out->append(bytes, sizeof(T));
}

template <typename T>
T take(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

int64_t positions_per_chunk(int64_t context) { return context - 1 - context / 2; }

size_t record_size(const ReferenceHeader& h) {
  const int64_t values = h.top_k == 0 ? h.vocab : 2 * h.top_k + 1;
  return static_cast<size_t>(4 * (values + 1));
}

}  // namespace

std::pair<std::pair<uint32_t, float>, float> ReferencePosition::best_two() const {
  std::pair<uint32_t, float> best = {0, -std::numeric_limits<float>::infinity()};
  float second = best.second;
  for (size_t i = 0; i < log_probs.size(); ++i) {
    if (log_probs[i] > best.second) {
      second = best.second;
      best = {id(i), log_probs[i]};
    } else if (log_probs[i] > second) {
      second = log_probs[i];
    }
  }
  return {best, second};
}

double remaining_log(double rest) {
  return rest > 0 ? std::log(rest) : -std::numeric_limits<double>::infinity();
}

std::string reference_prefix(const ReferenceHeader& header,
                             const std::vector<std::vector<int32_t>>& chunks) {
  std::string out(kMagic);
  for (const int64_t value : {header.vocab, header.top_k, header.context, header.num_chunks}) {
    put(&out, value);
  }
  out += header.tokenizer;
  for (const auto& chunk : chunks) {
    for (const int32_t id : chunk) put(&out, id);
  }
  return out;
}

std::string reference_record(const ReferencePosition& position) {
  std::string out;
  for (size_t i = 0; i < position.log_probs.size(); ++i) {
    if (!position.ids.empty()) put(&out, position.ids[i]);
    put(&out, position.log_probs[i]);
  }
  if (!position.ids.empty()) put(&out, position.log_rest);
  put(&out, position.log_true);
  return out;
}

Result<ReferenceReader> ReferenceReader::open(const std::filesystem::path& path) {
  ReferenceReader reader(NIBBLE_TRY(MappedFile::open(path)));
  const auto bytes = reader.file_.bytes();
  const auto bad = [&](std::string_view what) {
    return corrupt(fmt::format("{}: {}", path.string(), what));
  };
  if (bytes.size() < kHeaderBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return bad("not a file that nibble eval fidelity kld-base wrote");
  }
  ReferenceHeader& h = reader.header_;
  h.vocab = take<int64_t>(bytes.data() + 8);
  h.top_k = take<int64_t>(bytes.data() + 16);
  h.context = take<int64_t>(bytes.data() + 24);
  h.num_chunks = take<int64_t>(bytes.data() + 32);
  h.tokenizer.assign(reinterpret_cast<const char*>(bytes.data()) + 40, kHashBytes);
  if (h.vocab < 2 || h.vocab > kMaxCount || h.top_k < 0 || h.top_k > h.vocab || h.context < 8 ||
      h.context > kMaxCount || h.num_chunks < 1 || h.num_chunks > kMaxCount) {
    return bad("a number in its header is out of range");
  }
  const auto chunk_bytes = 4 * static_cast<size_t>(h.context) +
                           record_size(h) * static_cast<size_t>(positions_per_chunk(h.context));
  const size_t body = bytes.size() - kHeaderBytes;
  if (body % chunk_bytes != 0 || body / chunk_bytes != static_cast<size_t>(h.num_chunks)) {
    return bad("its size does not fit its header: it was cut off");
  }
  reader.tokens_at_ = kHeaderBytes;
  reader.records_at_ = kHeaderBytes + 4 * static_cast<size_t>(h.context * h.num_chunks);
  for (size_t at = reader.tokens_at_; at < reader.records_at_; at += 4) {
    const auto id = take<int32_t>(bytes.data() + at);
    if (id < 0 || id >= h.vocab) return bad("a token id is outside of the vocabulary");
  }
  if (h.top_k > 0) {
    for (size_t at = reader.records_at_; at < bytes.size(); at += record_size(h)) {
      for (int64_t i = 0; i < h.top_k; ++i) {
        if (take<uint32_t>(bytes.data() + at + 8 * i) >= h.vocab) {
          return bad("an id is outside of the vocabulary");
        }
      }
    }
  }
  return reader;
}

size_t ReferenceReader::record_bytes() const { return record_size(header_); }

std::vector<std::vector<int32_t>> ReferenceReader::chunks() const {
  const std::byte* at = file_.bytes().data() + tokens_at_;
  std::vector<std::vector<int32_t>> all;
  for (int64_t c = 0; c < header_.num_chunks; ++c) {
    auto& chunk = all.emplace_back();
    for (int64_t i = 0; i < header_.context; ++i, at += 4) chunk.push_back(take<int32_t>(at));
  }
  return all;
}

ReferencePosition ReferenceReader::position(int64_t index) const {
  const std::byte* at =
      file_.bytes().data() + records_at_ + record_bytes() * static_cast<size_t>(index);
  ReferencePosition position;
  const int64_t count = header_.top_k == 0 ? header_.vocab : header_.top_k;
  for (int64_t i = 0; i < count; ++i) {
    if (header_.top_k > 0) {
      position.ids.push_back(take<uint32_t>(at));
      at += 4;
    }
    position.log_probs.push_back(take<float>(at));
    at += 4;
  }
  if (header_.top_k > 0) {
    position.log_rest = take<float>(at);
    at += 4;
  }
  position.log_true = take<float>(at);
  return position;
}

}  // namespace nibble
