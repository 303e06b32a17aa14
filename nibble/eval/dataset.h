// Rows of data sets from local files, one at a time.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Calls `row` with each row as the text of a JSON object, in the file's order. Reads .jsonl (one
// object a line), .json (an array of objects) and .csv (RFC 4180: quotes, fields of several lines;
// the first record names the columns, every field is a text), each also with .gz behind it, and
// .parquet (parquet.h).
// Errors: kNotFound; kUnsupported for another ending; kCorrupt naming file and line; those of
// `row`.
Status for_each_row(const std::filesystem::path& path,
                    const std::function<Status(std::string_view json)>& row);

// The private tests of LiveCodeBench: JSON text as it is, or base64 of zlib of a Python pickle of
// that text. Of a pickle the opcodes for one text are read, any other one is an error.
// Errors: kCorrupt, kUnsupported naming the opcode.
Result<std::string> decode_private_tests(std::string_view text);

// Parts of it, for tests. Inflating stops with an error beyond `max_bytes`.
Result<std::string> decode_base64(std::string_view text);
Result<std::string> inflate_bytes(std::string_view bytes, size_t max_bytes);
Result<std::string> inflate_gzip(std::string_view bytes, size_t max_bytes);
// Rows of CSV as for_each_row gives them; `where` is for messages.
Status for_each_csv_row(std::string_view text, const std::string& where,
                        const std::function<Status(std::string_view json)>& row);
Result<std::string> unpickle_text(std::string_view bytes);

// Lower-case hexadecimal SHA-256 of a text, and of a file.
std::string sha256(std::string_view bytes);
Result<std::string> sha256_file(const std::filesystem::path& path);

}  // namespace nibble
