// The header of a safetensors file: whatever comes in, an error or tensors that cover the data.
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/base/check.h"
#include "nibble/checkpoint/safetensors_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto header = nibble::parse_safetensors_header(bytes, "fuzz");
  if (!header) {
    NIBBLE_CHECK(!header.error().message.empty());
    return 0;
  }
  uint64_t covered = 0;
  for (const auto& entry : header->entries) {
    NIBBLE_CHECK(entry.offset <= size && entry.size <= size - entry.offset);
    NIBBLE_CHECK(entry.size == static_cast<uint64_t>(entry.info.shape.num_elements() *
                                                     dtype_size(entry.info.dtype)));
    covered += entry.size;
  }
  NIBBLE_CHECK(covered <= size - 8);
  return 0;
}
