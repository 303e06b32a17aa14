// The JSON header of a safetensors file, read as hostile input. Rules as in the reference
// implementation (huggingface/safetensors, tensor.rs: Metadata::validate), and two stricter ones:
// a name may not appear twice, and a tensor has at most 16 dimensions.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/json_error.h"
#include "nibble/checkpoint/safetensors_source.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // MAX_HEADER_SIZE of the reference
constexpr size_t kMaxRank = 16;
constexpr int kMaxDepth = 64;

struct RawEntry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> data_offsets;
};

// Collects entries from the parser's events. Levels: 1 is the header's object, 2 an entry or the
// metadata, 3 the numbers of a shape; everything inside unknown fields is skipped.
class HeaderHandler {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  bool null() { return other_value("null"); }
  bool boolean(bool /*value*/) { return other_value("a boolean"); }
  bool number_integer(number_integer_t /*value*/) { return other_value("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) {
    return other_value("a number that is no integer below 2^64");
  }
  bool binary(binary_t& /*value*/) { return false; }  // no such event in JSON text

  bool number_unsigned(number_unsigned_t value) {
    if (level_ != 3 || numbers_ == nullptr) return other_value("a number");
    if (numbers_->size() >= kMaxRank) {
      return fail(fmt::format("{} has more than {} numbers", field_name(), kMaxRank));
    }
    numbers_->push_back(value);
    return true;
  }

  bool string(string_t& value) {
    if (level_ == 2 && in_metadata_) {
      if (key_ == "format") metadata_format = std::move(value);
      return true;
    }
    if (level_ == 2 && field_ == Field::kDtype) {
      entries.back().dtype = std::move(value);
      return true;
    }
    return other_value("a string");
  }

  bool start_object(size_t /*size*/) {
    if (level_ >= 2 && !skipping() && !begin_skip("an object")) return false;
    return enter();
  }
  bool start_array(size_t /*size*/) {
    if (level_ == 0) return fail("the header is an array, expected an object");
    if (level_ == 1) return fail(fmt::format("{} is an array, expected an object", quoted_key()));
    if (level_ == 2 && !in_metadata_ && field_ == Field::kShape) {
      numbers_ = &entries.back().shape.emplace();
    } else if (level_ == 2 && !in_metadata_ && field_ == Field::kDataOffsets) {
      numbers_ = &entries.back().data_offsets.emplace();
    } else if (!skipping() && !begin_skip("an array")) {
      return false;
    }
    return enter();
  }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }

  bool key(string_t& name) {
    if (skipping()) return true;
    if (level_ == 1) {
      in_metadata_ = name == "__metadata__";
      if (in_metadata_ && std::exchange(seen_metadata_, true)) {
        return fail("__metadata__ appears twice");
      }
      key_ = std::move(name);
      if (!in_metadata_) {
        entries.emplace_back();
        entries.back().name = key_;
      }
      return true;
    }
    key_ = std::move(name);
    if (in_metadata_) return true;
    const RawEntry& entry = entries.back();
    field_ = Field::kOther;
    if (key_ == "dtype") field_ = Field::kDtype;
    if (key_ == "shape") field_ = Field::kShape;
    if (key_ == "data_offsets") field_ = Field::kDataOffsets;
    if ((field_ == Field::kDtype && entry.dtype) || (field_ == Field::kShape && entry.shape) ||
        (field_ == Field::kDataOffsets && entry.data_offsets)) {
      return fail(fmt::format("{} appears twice", field_name()));
    }
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& exception) {
    // The file's own offset: eight bytes of length come before the header.
    error = json_error_text(position + 8, exception.what());
    return false;
  }

  std::vector<RawEntry> entries;
  std::string metadata_format;
  std::string error;

 private:
  enum class Field { kDtype, kShape, kDataOffsets, kOther };

  bool skipping() const { return skip_above_ > 0 && level_ >= skip_above_; }
  std::string quoted_key() const { return json_quote(key_); }
  std::string field_name() const {
    return fmt::format("{} of tensor {}", key_, json_quote(entries.back().name));
  }
  bool fail(std::string message) {
    error = std::move(message);
    return false;
  }

  // A value that is neither a dtype's string nor a number of a shape.
  bool other_value(const char* kind) {
    if (skipping()) return true;
    if (level_ == 0) return fail(fmt::format("the header is {}, expected an object", kind));
    if (level_ == 1) {
      return fail(fmt::format("{} is {}, expected an object", quoted_key(), kind));
    }
    if (in_metadata_) {
      return fail(fmt::format("__metadata__ {} is {}, expected a string", quoted_key(), kind));
    }
    if (level_ == 2 && field_ == Field::kOther) return true;
    return fail(fmt::format("{} has {}, expected {}", field_name(), kind,
                            field_ == Field::kDtype ? "a string" : "an array of integers"));
  }

  // An object or array where a field's value stands: fine for unknown fields only.
  bool begin_skip(const char* kind) {
    if (!other_value(kind)) return false;
    skip_above_ = level_ + 1;
    return true;
  }
  bool enter() {
    if (++level_ > kMaxDepth) return fail(fmt::format("nested deeper than {} levels", kMaxDepth));
    return true;
  }
  bool leave() {
    --level_;
    if (level_ < skip_above_) skip_above_ = 0;
    if (level_ == 2) numbers_ = nullptr;
    return true;
  }

  int level_ = 0;
  int skip_above_ = 0;  // > 0: everything at this level and deeper is skipped
  bool in_metadata_ = false;
  bool seen_metadata_ = false;
  Field field_ = Field::kOther;
  std::string key_;
  std::vector<uint64_t>* numbers_ = nullptr;
};

// The entry with its dtype known, its sizes free of overflow and equal to its byte range.
Result<SafetensorsHeader::Entry> checked_entry(RawEntry raw, uint64_t data_start,
                                               uint64_t data_size) {
  const std::string name = json_quote(raw.name);
  const auto missing = [&](const char* field) {
    return corrupt(fmt::format("tensor {} has no {}", name, field));
  };
  if (!raw.dtype) return missing("dtype");
  if (!raw.shape) return missing("shape");
  if (!raw.data_offsets) return missing("data_offsets");

  const std::optional<DType> dtype = parse_dtype(*raw.dtype);
  if (!dtype) {
    return corrupt(fmt::format("tensor {} has the unknown dtype {}", name, json_quote(*raw.dtype)));
  }
  if (raw.data_offsets->size() != 2) {
    return corrupt(fmt::format("data_offsets of tensor {} has {} numbers, expected 2", name,
                               raw.data_offsets->size()));
  }
  const uint64_t begin = (*raw.data_offsets)[0];
  const uint64_t end = (*raw.data_offsets)[1];
  if (begin > end || end > data_size) {
    return corrupt(
        fmt::format("tensor {} has the data_offsets [{}, {}], but the file has {} bytes of data",
                    name, begin, end, data_size));
  }
  std::vector<int64_t> dims;
  int64_t num_bytes = dtype_size(*dtype);
  for (const uint64_t dim : *raw.shape) {
    if (dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        __builtin_mul_overflow(num_bytes, static_cast<int64_t>(dim), &num_bytes)) {
      return corrupt(fmt::format("tensor {} has a shape whose size overflows 63 bits", name));
    }
    dims.push_back(static_cast<int64_t>(dim));
  }
  Shape shape(std::move(dims));
  if (static_cast<uint64_t>(num_bytes) != end - begin) {
    return corrupt(fmt::format("tensor {} ({} {}) needs {} bytes, but its data_offsets span {}",
                               name, *raw.dtype, shape.to_string(), num_bytes, end - begin));
  }
  return SafetensorsHeader::Entry{
      {std::move(raw.name), *dtype, std::move(shape), {}}, data_start + begin, end - begin};
}

// Sorted by place, each tensor has to begin where the one before ends: no overlap and no hole.
Status check_layout(const SafetensorsHeader& header, uint64_t data_start, uint64_t file_size) {
  std::vector<const SafetensorsHeader::Entry*> order;
  for (const auto& entry : header.entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->offset, a->size) < std::pair(b->offset, b->size);
  });
  uint64_t expected = data_start;
  for (const auto* entry : order) {
    if (entry->offset != expected) {
      return corrupt(fmt::format("tensor {} begins at byte {} of the data, expected {}: {}",
                                 json_quote(entry->info.name), entry->offset - data_start,
                                 expected - data_start,
                                 entry->offset < expected ? "it overlaps the tensor before it"
                                                          : "there is a hole before it"));
    }
    expected += entry->size;
  }
  if (expected != file_size) {
    return corrupt(
        fmt::format("{} bytes after the last tensor belong to none", file_size - expected));
  }
  return {};
}

Result<SafetensorsHeader> parse_header(std::span<const std::byte> bytes) {
  if (bytes.size() < 8) {
    return corrupt(fmt::format("{} bytes are too few for a safetensors file", bytes.size()));
  }
  uint64_t header_size = 0;
  for (size_t i = 0; i < 8; ++i) header_size |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  if (header_size > kMaxHeaderBytes) {
    return corrupt(
        fmt::format("the header claims {} bytes, the limit is {}", header_size, kMaxHeaderBytes));
  }
  if (header_size > bytes.size() - 8) {
    return corrupt(fmt::format("truncated: the header claims {} bytes, but only {} follow",
                               header_size, bytes.size() - 8));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_size);
  if (!text.starts_with('{')) return corrupt("the header does not begin with '{'");
  size_t bad_offset = 0;
  if (!is_valid_utf8(text, &bad_offset)) {
    return corrupt(fmt::format("byte {} of the header is not UTF-8", bad_offset + 8));
  }
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(text, &handler)) return corrupt(handler.error);

  const uint64_t data_start = 8 + header_size;
  const uint64_t data_size = bytes.size() - data_start;
  // The commonest damage gets a message of its own: the download stopped.
  uint64_t claimed = 0;
  for (const RawEntry& entry : handler.entries) {
    if (entry.data_offsets && entry.data_offsets->size() == 2) {
      claimed = std::max(claimed, (*entry.data_offsets)[1]);
    }
  }
  if (claimed > data_size) {
    return corrupt(fmt::format("truncated: its tensors need {} bytes of data, but {} are there",
                               claimed, data_size));
  }
  SafetensorsHeader header;
  header.metadata_format = std::move(handler.metadata_format);
  header.entries.reserve(handler.entries.size());
  for (RawEntry& raw : handler.entries) {
    header.entries.push_back(NIBBLE_TRY(checked_entry(std::move(raw), data_start, data_size)));
  }
  std::vector<std::string_view> names;
  for (const auto& entry : header.entries) names.push_back(entry.info.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    return corrupt(fmt::format("tensor {} appears twice", json_quote(*twice)));
  }
  NIBBLE_TRY(check_layout(header, data_start, bytes.size()));
  return header;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> bytes,
                                                   std::string_view name) {
  auto header = with_context(parse_header(bytes), name);
  if (header) {
    for (auto& entry : header->entries) entry.info.shard = name;
  }
  return header;
}

}  // namespace nibble
