// A data set's Parquet file: rows are JSON objects, and reading ends.
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/base/check.h"
#include "nibble/eval/parquet.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  int rows = 0;
  (void)nibble::for_each_parquet_row(file, [&](std::string_view row) -> nibble::Status {
    NIBBLE_CHECK(row.starts_with('{') && row.ends_with('}'));
    if (++rows < 1000) return {};
    return tl::unexpected(nibble::Error{nibble::ErrorCode::kCancelled, "enough"});
  });
  return 0;
}
