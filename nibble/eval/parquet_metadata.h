// What a Parquet file says of itself: its columns and where their pages are.
// Source: apache/parquet-format, parquet.thrift.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

enum class ParquetType { kBoolean, kInt32, kInt64, kInt96, kFloat, kDouble, kBytes, kFixed };

// A leaf that rows are made of: a value, or a list of values.
struct ParquetColumn {
  std::string name;
  ParquetType type = ParquetType::kBytes;
  bool is_list = false;
  bool is_list_optional = false;     // the whole list may be null
  bool is_element_optional = false;  // a value may be null
  int max_definition = 0;
  int max_repetition = 0;
};

struct ParquetChunk {
  int64_t codec = 0;
  int64_t num_values = 0;
  int64_t begin = 0;  // of its first page, from the file's start
  int64_t size = 0;   // of its pages, compressed
};

struct ParquetGroup {
  int64_t num_rows = 0;
  std::vector<ParquetChunk> chunks;  // one for each column
};

struct ParquetMetadata {
  std::vector<ParquetColumn> columns;
  std::vector<ParquetGroup> groups;
};

// From the bytes of a whole file. Errors: kCorrupt; kUnsupported naming the column for shapes other
// than a value or one level of list.
Result<ParquetMetadata> read_parquet_metadata(std::span<const std::byte> file);

struct ParquetPage {
  int64_t type = -1;  // 0 data, 1 index, 2 dictionary, 3 data of version 2
  int64_t uncompressed_size = 0;
  int64_t compressed_size = 0;
  int64_t num_values = 0;
  int64_t encoding = 0;
  int64_t definition_bytes = 0;  // of version 2
  int64_t repetition_bytes = 0;
  bool is_compressed = true;
};
// *size is what the header takes.
Result<ParquetPage> read_parquet_page(std::span<const std::byte> bytes, size_t* size);

}  // namespace nibble
