// Where each tensor of a safetensors file that is to be written lies, decided before its data is
// there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// Tensors lie in the file by descending element size, otherwise in the given order, and the data
// starts at a multiple of eight (the header is padded with spaces): so each is aligned to its
// elements, as the reference implementation has it.
struct SafetensorsLayout {
  struct Entry {
    std::string name;
    uint64_t offset;  // from the start of the file
    uint64_t size;
  };
  std::string head;            // the header's length and the header: the file's first bytes
  std::vector<Entry> entries;  // sorted by name
  uint64_t data_bytes = 0;     // of all tensors, without the head

  uint64_t file_bytes() const { return head.size() + data_bytes; }

  // The entry of that name, or null.
  const Entry* find(std::string_view name) const;
};

// Errors: kInvalidArgument for duplicate names, names that are not UTF-8 and a header above the
// format's 100 MB.
Result<SafetensorsLayout> safetensors_layout(std::vector<TensorInfo> tensors);

}  // namespace nibble
