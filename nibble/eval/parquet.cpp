#include "nibble/eval/parquet.h"

#include <fmt/format.h>
#include <snappy.h>
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/parquet_metadata.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
using Bytes = std::span<const std::byte>;

// A file says how much it holds: more than this is a mistake or an attack.
constexpr int64_t kMaxPageBytes = int64_t{1} << 28;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // of a column of a row group
constexpr int64_t kMaxValues = int64_t{1} << 22;   // of a page and of a row group's column

enum Encoding { kPlain = 0, kPlainDictionary = 2, kRle = 3, kRleDictionary = 8 };
constexpr int64_t kNone = 0, kSnappy = 1, kGzip = 2, kZstd = 6;  // codecs

std::string_view view(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<std::string> decompress(Bytes bytes, int64_t codec, int64_t size) {
  const auto expected = static_cast<size_t>(size);
  std::string out;
  switch (codec) {
    case kNone:
      out = view(bytes);
      break;
    case kSnappy: {
      size_t length = 0;
      const char* const data = reinterpret_cast<const char*>(bytes.data());
      if (!snappy::GetUncompressedLength(data, bytes.size(), &length) || length != expected ||
          !snappy::Uncompress(data, bytes.size(), &out)) {
        return corrupt("a page's Snappy data is damaged");
      }
      break;
    }
    case kGzip:
      out = NIBBLE_TRY(inflate_gzip(view(bytes), expected));
      break;
    case kZstd: {
      // What it says of itself first, so that nothing is allocated for a lie.
      if (ZSTD_getFrameContentSize(bytes.data(), bytes.size()) == ZSTD_CONTENTSIZE_ERROR) {
        return corrupt("a page's Zstandard data is damaged");
      }
      out.resize(expected);
      const size_t length = ZSTD_decompress(out.data(), expected, bytes.data(), bytes.size());
      if (ZSTD_isError(length) != 0 || length != expected) {
        return corrupt("a page's Zstandard data is damaged");
      }
      break;
    }
    default:
      return unsupported(fmt::format(
          "compression codec {}; nibble reads none, Snappy, GZIP and Zstandard", codec));
  }
  if (out.size() != expected) return corrupt("a page has another size than its header says");
  return out;
}

// Numbers of `width` bits in runs, equal or packed (parquet-format, Encodings.md, RLE).
Result<std::vector<uint32_t>> read_runs(std::string_view bytes, unsigned width, int64_t count) {
  if (width > 32) return corrupt("numbers of more than 32 bits");
  std::vector<uint32_t> values;
  size_t at = 0;
  const auto head = [&]() -> Result<uint64_t> {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
      if (at >= bytes.size()) return corrupt("a page ends early");
      const auto part = static_cast<unsigned char>(bytes[at++]);
      value |= uint64_t{part & 0x7fU} << shift;
      if ((part & 0x80U) == 0) return value;
    }
    return corrupt("a run is too long");
  };
  while (static_cast<int64_t>(values.size()) < count) {
    const uint64_t run = NIBBLE_TRY(head());
    const auto left = static_cast<uint64_t>(count) - values.size();
    if ((run & 1U) == 0) {
      const size_t size = (width + 7) / 8;
      if (size > bytes.size() - at || run >> 1 == 0) return corrupt("a page ends early");
      uint32_t value = 0;
      std::memcpy(&value, bytes.data() + at, size);
      at += size;
      values.insert(values.end(), static_cast<size_t>(std::min(run >> 1, left)), value);
      continue;
    }
    const uint64_t groups = run >> 1;
    if (groups == 0 || groups * width > bytes.size() - at) return corrupt("a page ends early");
    uint64_t buffer = 0;
    unsigned bits = 0;
    size_t from = at;
    for (uint64_t i = 0; i < std::min(groups * 8, left); ++i) {
      while (bits < width) {
        buffer |= uint64_t{static_cast<unsigned char>(bytes[from++])} << bits;
        bits += 8;
      }
      values.push_back(static_cast<uint32_t>(buffer & ((uint64_t{1} << width) - 1)));
      buffer >>= width;
      bits -= width;
    }
    at += static_cast<size_t>(groups * width);
  }
  return values;
}

template <typename T>
Status plain_numbers(std::string_view bytes, int64_t count, std::vector<Json>* values) {
  if (static_cast<uint64_t>(count) > bytes.size() / sizeof(T)) return corrupt("a page ends early");
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes.data() + static_cast<size_t>(i) * sizeof(T), sizeof(T));
    values->emplace_back(value);
  }
  return {};
}

Result<std::vector<Json>> plain_values(std::string_view bytes, ParquetType type, int64_t count) {
  std::vector<Json> values;
  switch (type) {
    case ParquetType::kBoolean:
      if (static_cast<uint64_t>(count) > bytes.size() * 8) return corrupt("a page ends early");
      for (int64_t i = 0; i < count; ++i) {
        const auto byte = static_cast<unsigned char>(bytes[static_cast<size_t>(i / 8)]);
        values.emplace_back((byte >> (i % 8) & 1U) != 0);
      }
      return values;
    case ParquetType::kInt32:
      NIBBLE_TRY(plain_numbers<int32_t>(bytes, count, &values));
      return values;
    case ParquetType::kInt64:
      NIBBLE_TRY(plain_numbers<int64_t>(bytes, count, &values));
      return values;
    case ParquetType::kFloat:
      NIBBLE_TRY(plain_numbers<float>(bytes, count, &values));
      return values;
    case ParquetType::kDouble:
      NIBBLE_TRY(plain_numbers<double>(bytes, count, &values));
      return values;
    case ParquetType::kBytes:
      for (int64_t i = 0; i < count; ++i) {
        uint32_t size = 0;
        if (bytes.size() < sizeof(size)) return corrupt("a page ends early");
        std::memcpy(&size, bytes.data(), sizeof(size));
        bytes.remove_prefix(sizeof(size));
        if (size > bytes.size()) return corrupt("a text is longer than its page");
        values.emplace_back(std::string(bytes.substr(0, size)));
        bytes.remove_prefix(size);
      }
      return values;
    case ParquetType::kInt96:
    case ParquetType::kFixed:
      break;
  }
  return unsupported("values of the types INT96 and FIXED_LEN_BYTE_ARRAY");
}

// One column of one row group, page by page, into a value for each row.
class ColumnReader {
 public:
  ColumnReader(const ParquetColumn& column, const ParquetChunk& chunk)
      : column_(column), chunk_(chunk) {}

  Result<std::vector<Json>> read(Bytes file, int64_t num_rows) {
    if (chunk_.begin < 0 || chunk_.size < 0 || chunk_.num_values < 0 ||
        static_cast<uint64_t>(chunk_.begin) > file.size() ||
        static_cast<uint64_t>(chunk_.size) > file.size() - static_cast<uint64_t>(chunk_.begin)) {
      return corrupt("its pages are outside of the file");
    }
    if (chunk_.num_values > kMaxValues) return corrupt("more values than a row group may have");
    Bytes bytes = file.subspan(static_cast<size_t>(chunk_.begin), static_cast<size_t>(chunk_.size));
    while (num_read_ < chunk_.num_values) {
      size_t size = 0;
      const ParquetPage page = NIBBLE_TRY(read_parquet_page(bytes, &size));
      bytes = bytes.subspan(size);
      if (page.compressed_size < 0 || static_cast<uint64_t>(page.compressed_size) > bytes.size() ||
          page.uncompressed_size < 0 || page.uncompressed_size > kMaxPageBytes ||
          page.num_values < 0 || page.num_values > kMaxValues) {
        return corrupt("a page's header does not fit the file");
      }
      const Bytes body = bytes.subspan(0, static_cast<size_t>(page.compressed_size));
      bytes = bytes.subspan(body.size());
      if (page.type == 0) NIBBLE_TRY(data_page(page, body));
      if (page.type == 2) NIBBLE_TRY(dictionary_page(page, body));
      if (page.type == 3) NIBBLE_TRY(data_page_v2(page, body));
    }
    if (static_cast<int64_t>(rows_.size()) != num_rows) {
      return corrupt(fmt::format("{} rows, expected {}", rows_.size(), num_rows));
    }
    return std::move(rows_);
  }

 private:
  Status dictionary_page(const ParquetPage& page, Bytes body) {
    if (page.encoding != kPlain && page.encoding != kPlainDictionary) return other(page.encoding);
    const std::string text = NIBBLE_TRY(decompress(body, chunk_.codec, page.uncompressed_size));
    dictionary_ = NIBBLE_TRY(plain_values(text, column_.type, page.num_values));
    return {};
  }

  Status data_page(const ParquetPage& page, Bytes body) {
    const std::string text = NIBBLE_TRY(decompress(body, chunk_.codec, page.uncompressed_size));
    std::string_view rest = text;
    const auto levels = [&](int most) -> Result<std::vector<uint32_t>> {
      if (most == 0) return std::vector<uint32_t>(static_cast<size_t>(page.num_values), 0);
      uint32_t size = 0;
      if (rest.size() < sizeof(size)) return corrupt("a page ends early");
      std::memcpy(&size, rest.data(), sizeof(size));
      rest.remove_prefix(sizeof(size));
      if (size > rest.size()) return corrupt("a page ends early");
      const std::string_view own = rest.substr(0, size);
      rest.remove_prefix(size);
      return read_runs(own, level_width(most), page.num_values);
    };
    const auto repetition = NIBBLE_TRY(levels(column_.max_repetition));
    const auto definition = NIBBLE_TRY(levels(column_.max_definition));
    return add(page, rest, repetition, definition);
  }

  Status data_page_v2(const ParquetPage& page, Bytes body) {
    const auto size = static_cast<int64_t>(body.size());
    if (page.repetition_bytes < 0 || page.definition_bytes < 0 || page.repetition_bytes > size ||
        page.definition_bytes > size - page.repetition_bytes) {
      return corrupt("a page's levels are longer than the page");
    }
    const auto repetition_bytes = static_cast<size_t>(page.repetition_bytes);
    const auto level_bytes = repetition_bytes + static_cast<size_t>(page.definition_bytes);
    const auto levels = [&](Bytes own, int most) -> Result<std::vector<uint32_t>> {
      if (most == 0) return std::vector<uint32_t>(static_cast<size_t>(page.num_values), 0);
      return read_runs(view(own), level_width(most), page.num_values);
    };
    const auto repetition =
        NIBBLE_TRY(levels(body.subspan(0, repetition_bytes), column_.max_repetition));
    const auto definition = NIBBLE_TRY(levels(
        body.subspan(repetition_bytes, level_bytes - repetition_bytes), column_.max_definition));
    if (page.uncompressed_size < static_cast<int64_t>(level_bytes)) {
      return corrupt("a page's levels are longer than the page");
    }
    const std::string text =
        NIBBLE_TRY(decompress(body.subspan(level_bytes), page.is_compressed ? chunk_.codec : kNone,
                              page.uncompressed_size - static_cast<int64_t>(level_bytes)));
    return add(page, text, repetition, definition);
  }

  static unsigned level_width(int most) {
    return static_cast<unsigned>(std::bit_width(static_cast<unsigned>(most)));
  }

  static Status other(int64_t encoding) {
    return unsupported(fmt::format(
        "encoding {}; nibble reads PLAIN, RLE and dictionaries: convert the file to JSON lines",
        encoding));
  }

  Result<std::vector<Json>> values_in(const ParquetPage& page, std::string_view bytes,
                                      int64_t count) {
    if (page.encoding == kPlain) return plain_values(bytes, column_.type, count);
    if (page.encoding == kRle && column_.type == ParquetType::kBoolean) {
      if (bytes.size() < 4) return corrupt("a page ends early");
      const auto bits = NIBBLE_TRY(read_runs(bytes.substr(4), 1, count));
      std::vector<Json> values;
      for (const uint32_t bit : bits) values.emplace_back(bit != 0);
      return values;
    }
    if (page.encoding != kPlainDictionary && page.encoding != kRleDictionary) {
      return tl::unexpected(other(page.encoding).error());
    }
    if (count == 0) return std::vector<Json>();
    if (bytes.empty()) return corrupt("a page ends early");
    const auto indices =
        NIBBLE_TRY(read_runs(bytes.substr(1), static_cast<unsigned char>(bytes[0]), count));
    std::vector<Json> values;
    for (const uint32_t index : indices) {
      if (index >= dictionary_.size()) return corrupt("a value is not in the dictionary");
      const Json& value = dictionary_[index];
      if (value.is_string()) text_bytes_ += value.get_ref<const std::string&>().size();
      if (text_bytes_ > kMaxTextBytes) return corrupt("more text than a row group may have");
      values.push_back(value);
    }
    return values;
  }

  // Puts the values of a page where their levels say (Dremel, Melnik et al. 2010).
  Status add(const ParquetPage& page, std::string_view bytes,
             const std::vector<uint32_t>& repetition, const std::vector<uint32_t>& definition) {
    const auto most = static_cast<uint32_t>(column_.max_definition);
    const auto count = static_cast<int64_t>(std::count(definition.begin(), definition.end(), most));
    std::vector<Json> values = NIBBLE_TRY(values_in(page, bytes, count));
    size_t next = 0;
    // Below this a list is null; at it, it is empty.
    const uint32_t empty = column_.is_list_optional ? 1 : 0;
    for (size_t i = 0; i < definition.size(); ++i) {
      if (definition[i] > most) return corrupt("a level is too high");
      const bool is_value = definition[i] == most;
      if (!column_.is_list) {
        rows_.push_back(is_value ? std::move(values[next++]) : Json());
        continue;
      }
      if (repetition[i] == 0) {
        rows_.push_back(definition[i] < empty ? Json() : Json::array());
        if (definition[i] <= empty && !is_value) continue;
      } else if (rows_.empty() || !rows_.back().is_array() || repetition[i] > 1) {
        return corrupt("a list goes on that never began");
      }
      rows_.back().push_back(is_value ? std::move(values[next++]) : Json());
    }
    num_read_ += static_cast<int64_t>(definition.size());
    if (definition.empty()) return corrupt("a page without values");
    return {};
  }

  const ParquetColumn& column_;
  const ParquetChunk& chunk_;
  std::vector<Json> dictionary_;
  std::vector<Json> rows_;
  int64_t num_read_ = 0;
  size_t text_bytes_ = 0;
};

}  // namespace

Status for_each_parquet_row(Bytes file, const std::function<Status(std::string_view json)>& row) {
  const ParquetMetadata metadata = NIBBLE_TRY(read_parquet_metadata(file));
  for (const ParquetGroup& group : metadata.groups) {
    if (group.num_rows < 0 || group.num_rows > kMaxValues) {
      return corrupt("a row group has more rows than it may");
    }
    std::vector<std::vector<Json>> columns;
    for (size_t i = 0; i < metadata.columns.size(); ++i) {
      auto values = ColumnReader(metadata.columns[i], group.chunks[i]).read(file, group.num_rows);
      if (!values) {
        return tl::unexpected(std::move(values).error().with_context(
            fmt::format("column '{}'", metadata.columns[i].name)));
      }
      columns.push_back(*std::move(values));
    }
    for (int64_t r = 0; r < group.num_rows; ++r) {
      Json object = Json::object();
      for (size_t i = 0; i < columns.size(); ++i) {
        object[metadata.columns[i].name] = std::move(columns[i][static_cast<size_t>(r)]);
      }
      NIBBLE_TRY(row(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
    }
  }
  return {};
}

}  // namespace nibble
