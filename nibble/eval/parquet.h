// Rows of Parquet files of the flat shapes that data sets have.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Calls `row` with each row as the text of a JSON object, as for_each_row does. Reads data pages of
// version 1 and 2; encodings PLAIN, RLE, PLAIN_DICTIONARY and RLE_DICTIONARY; no compression,
// Snappy, GZIP and Zstandard; BOOLEAN, INT32, INT64, FLOAT, DOUBLE and BYTE_ARRAY (as text), one
// level of list, nulls. Errors: kCorrupt; kUnsupported naming what else a file uses; those of
// `row`.
Status for_each_parquet_row(std::span<const std::byte> file,
                            const std::function<Status(std::string_view json)>& row);

}  // namespace nibble
