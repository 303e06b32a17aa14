#include "nibble/eval/dataset.h"

#include <fmt/format.h>
#include <openssl/sha.h>
#include <zlib.h>

#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/parquet.h"

namespace nibble {
namespace {

constexpr size_t kMaxFileBytes = size_t{8} << 30;
constexpr size_t kMaxTestBytes = size_t{1} << 30;

Status jsonl_rows(std::string_view text, const std::string& where,
                  const std::function<Status(std::string_view)>& row) {
  for (int64_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view one = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (one.empty()) continue;
    const auto json = nlohmann::json::parse(one, nullptr, false);
    if (!json.is_object()) {
      return corrupt(fmt::format("{} line {}: expected a JSON object", where, line));
    }
    NIBBLE_TRY(row(one));
  }
  return {};
}

Status json_rows(std::string_view text, const std::string& where,
                 const std::function<Status(std::string_view)>& row) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_array()) return corrupt(where + ": expected a JSON array of objects");
  for (const auto& item : json) {
    if (!item.is_object()) return corrupt(where + ": an element of the array is no object");
    NIBBLE_TRY(row(item.dump()));
  }
  return {};
}

// One record of a CSV file; `text` loses it. Errors: kCorrupt for a quote that is not closed or
// stands behind its field.
Result<std::vector<std::string>> csv_record(std::string_view& text, const std::string& where,
                                            int64_t* line) {
  std::vector<std::string> fields(1);
  bool quoted = false, was_quoted = false;
  size_t at = 0;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '\n') ++*line;
    if (quoted) {
      if (c != '"') {
        fields.back() += c;
      } else if (at + 1 < text.size() && text[at + 1] == '"') {
        fields.back() += '"';
        ++at;
      } else {
        quoted = false;
      }
    } else if (c == '"' && fields.back().empty() && !was_quoted) {
      quoted = was_quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
      was_quoted = false;
    } else if (c == '\n') {
      ++at;
      break;
    } else if (c == '\r' && at + 1 < text.size() && text[at + 1] == '\n') {
      continue;
    } else if (was_quoted) {
      return corrupt(fmt::format("{} line {}: text behind a closing quote", where, *line));
    } else {
      fields.back() += c;
    }
  }
  if (quoted) return corrupt(fmt::format("{} line {}: a quote is not closed", where, *line));
  text.remove_prefix(at);
  return fields;
}

Result<std::string> inflate_with(std::string_view bytes, size_t max_bytes, int window_bits) {
  z_stream stream{};
  if (inflateInit2(&stream, window_bits) != Z_OK) return corrupt("zlib cannot start");
  std::string result;
  std::array<char, 65536> buffer{};
  int state = Z_OK;
  while (state == Z_OK) {
    if (stream.avail_in == 0 && !bytes.empty()) {
      const size_t part = std::min<size_t>(bytes.size(), 1 << 20);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
      stream.avail_in = static_cast<uInt>(part);
      bytes.remove_prefix(part);
    }
    stream.next_out = reinterpret_cast<Bytef*>(buffer.data());
    stream.avail_out = static_cast<uInt>(buffer.size());
    state = inflate(&stream, Z_NO_FLUSH);
    result.append(buffer.data(), buffer.size() - stream.avail_out);
    if (result.size() > max_bytes) state = Z_MEM_ERROR;
  }
  (void)inflateEnd(&stream);
  if (state == Z_MEM_ERROR) {
    return corrupt(fmt::format("compressed data gives more than {} bytes", max_bytes));
  }
  if (state != Z_STREAM_END) return corrupt("compressed data is damaged or ends early");
  return result;
}

}  // namespace

Status for_each_csv_row(std::string_view text, const std::string& where,
                        const std::function<Status(std::string_view json)>& row) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  int64_t line = 1;
  const auto names = NIBBLE_TRY(csv_record(text, where, &line));
  while (!text.empty()) {
    const int64_t begin = line;
    const auto fields = NIBBLE_TRY(csv_record(text, where, &line));
    if (fields.size() == 1 && fields[0].empty()) continue;
    if (fields.size() != names.size()) {
      return corrupt(fmt::format("{} line {}: {} fields, expected {}", where, begin, fields.size(),
                                 names.size()));
    }
    nlohmann::json json = nlohmann::json::object();
    for (size_t i = 0; i < names.size(); ++i) json[names[i]] = fields[i];
    NIBBLE_TRY(row(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  }
  return {};
}

Status for_each_row(const std::filesystem::path& path,
                    const std::function<Status(std::string_view json)>& row) {
  std::string ending = path.extension().string();
  const bool gzip = ending == ".gz";
  if (gzip) ending = path.stem().extension().string();
  const MappedFile file = NIBBLE_TRY(MappedFile::open(path));
  const auto mapped = file.bytes();
  std::string_view text(reinterpret_cast<const char*>(mapped.data()), mapped.size());
  std::string inflated;
  if (gzip) {
    auto result = inflate_with(text, kMaxFileBytes, 15 + 16);
    if (!result) {
      return tl::unexpected(std::move(result).error().with_context(path.string()));
    }
    inflated = *std::move(result);
    text = inflated;
  }
  if (ending == ".jsonl") return jsonl_rows(text, path.string(), row);
  if (ending == ".json") return json_rows(text, path.string(), row);
  if (ending == ".csv") return for_each_csv_row(text, path.string(), row);
  if (ending == ".parquet") {
    const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(text.data()),
                                           text.size());
    auto status = for_each_parquet_row(bytes, row);
    if (status || status.error().code == ErrorCode::kCancelled) return status;
    return tl::unexpected(std::move(status).error().with_context(path.string()));
  }
  return unsupported(
      fmt::format("{}: expected a file ending in .jsonl, .json, .csv or .parquet, also with .gz",
                  path.string()));
}

Result<std::string> decode_base64(std::string_view text) {
  std::string result;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=' || c == '\n' || c == '\r') continue;
    int value = -1;
    if (c >= 'A' && c <= 'Z') value = c - 'A';
    if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
    if (c >= '0' && c <= '9') value = c - '0' + 52;
    if (c == '+') value = 62;
    if (c == '/') value = 63;
    if (value < 0) return corrupt("base64 holds a character that is none of its own");
    bits = bits << 6 | static_cast<uint32_t>(value);
    if ((count += 6) < 8) continue;
    count -= 8;
    result += static_cast<char>(bits >> count & 0xff);
  }
  return result;
}

Result<std::string> inflate_bytes(std::string_view bytes, size_t max_bytes) {
  return inflate_with(bytes, max_bytes, 15);
}

Result<std::string> inflate_gzip(std::string_view bytes, size_t max_bytes) {
  return inflate_with(bytes, max_bytes, 15 + 16);
}

Result<std::string> unpickle_text(std::string_view bytes) {
  size_t at = 0;
  const auto take = [&](size_t size) -> std::optional<std::string_view> {
    if (size > bytes.size() - at) return std::nullopt;
    at += size;
    return bytes.substr(at - size, size);
  };
  const auto length = [&](size_t size) -> std::optional<uint64_t> {
    const auto raw = take(size);
    if (!raw) return std::nullopt;
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) {
      value |= uint64_t{static_cast<unsigned char>((*raw)[i])} << (8 * i);
    }
    return value;
  };
  std::optional<std::string> text;
  while (at < bytes.size()) {
    const auto opcode = static_cast<unsigned char>(bytes[at++]);
    std::optional<uint64_t> size;
    switch (opcode) {
      case 0x80:  // PROTO
        if (!take(1)) return corrupt("pickle ends early");
        continue;
      case 0x95:  // FRAME
        if (!take(8)) return corrupt("pickle ends early");
        continue;
      case 'q':  // BINPUT
        if (!take(1)) return corrupt("pickle ends early");
        continue;
      case 'r':  // LONG_BINPUT
        if (!take(4)) return corrupt("pickle ends early");
        continue;
      case 0x94:  // MEMOIZE
        continue;
      case '.':  // STOP
        if (!text) return corrupt("pickle holds no text");
        return *std::move(text);
      case 0x8c:  // SHORT_BINUNICODE
        size = length(1);
        break;
      case 'X':  // BINUNICODE
        size = length(4);
        break;
      case 0x8d:  // BINUNICODE8
        size = length(8);
        break;
      default:
        return unsupported(
            fmt::format("pickle opcode 0x{:02x}; only one text is read from a pickle", opcode));
    }
    const auto raw = size ? take(static_cast<size_t>(*size)) : std::nullopt;
    if (!raw) return corrupt("pickle ends early");
    if (text) return unsupported("pickle holds more than one text");
    text = std::string(*raw);
  }
  return corrupt("pickle ends early");
}

Result<std::string> decode_private_tests(std::string_view text) {
  if (trim(text).starts_with('[')) return std::string(text);
  const std::string compressed = NIBBLE_TRY(decode_base64(text));
  const std::string pickle = NIBBLE_TRY(inflate_bytes(compressed, kMaxTestBytes));
  return unpickle_text(pickle);
}

std::string sha256(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  (void)SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  std::string text;
  for (const unsigned char byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

Result<std::string> sha256_file(const std::filesystem::path& path) {
  const MappedFile file = NIBBLE_TRY(MappedFile::open(path));
  const auto bytes = file.bytes();
  return sha256({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace nibble
