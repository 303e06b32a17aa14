#include "nibble/checkpoint/safetensors_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"

namespace nibble {

const SafetensorsLayout::Entry* SafetensorsLayout::find(std::string_view name) const {
  const auto it =
      std::lower_bound(entries.begin(), entries.end(), name,
                       [](const Entry& entry, std::string_view n) { return entry.name < n; });
  return it != entries.end() && it->name == name ? &*it : nullptr;
}

Result<SafetensorsLayout> safetensors_layout(std::vector<TensorInfo> tensors) {
  using Entry = SafetensorsLayout::Entry;
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return dtype_size(a.dtype) > dtype_size(b.dtype);
  });
  std::string header = R"({"__metadata__":{"format":"pt"})";
  uint64_t data_bytes = 0;
  std::vector<Entry> entries;
  for (const TensorInfo& info : tensors) {
    if (!is_valid_utf8(info.name)) return invalid_argument("a tensor's name is not UTF-8");
    if (info.name == "__metadata__") {
      return invalid_argument("a tensor cannot be called __metadata__");
    }
    const auto size = static_cast<uint64_t>(info.shape.num_elements() * dtype_size(info.dtype));
    header += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                          json_quote(info.name), dtype_name(info.dtype),
                          fmt::join(info.shape.dims(), ","), data_bytes, data_bytes + size);
    entries.push_back({info.name, data_bytes, size});
    data_bytes += size;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > 100'000'000) {
    return invalid_argument(
        fmt::format("{} tensors need a header above the format's 100 MB: "
                    "write several shards",
                    tensors.size()));
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(entries.begin(), entries.end(),
                         [](const Entry& a, const Entry& b) { return a.name == b.name; });
  if (twice != entries.end()) {
    return invalid_argument(fmt::format("tensor {} is declared twice", json_quote(twice->name)));
  }
  for (Entry& entry : entries) entry.offset += 8 + header.size();

  SafetensorsLayout layout;
  for (size_t i = 0; i < 8; ++i) layout.head += static_cast<char>(header.size() >> (8 * i) & 0xff);
  layout.head += header;
  layout.entries = std::move(entries);
  layout.data_bytes = data_bytes;
  return layout;
}

}  // namespace nibble
