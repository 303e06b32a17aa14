#include "nibble/checkpoint/safetensors_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"

namespace nibble {

Result<SafetensorsWriter> SafetensorsWriter::create(const std::filesystem::path& path,
                                                    std::vector<TensorInfo> tensors) {
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
    entries.push_back({info.name, data_bytes, size, false});
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

  SafetensorsWriter writer(NIBBLE_TRY(OutputFile::create(path)));
  std::array<std::byte, 8> length = {};
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  NIBBLE_TRY(writer.file_.write(length));
  NIBBLE_TRY(writer.file_.write(header));
  writer.entries_ = std::move(entries);
  writer.data_bytes_ = data_bytes;
  return writer;
}

Status SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  const auto it =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const Entry& entry, std::string_view n) { return entry.name < n; });
  if (it == entries_.end() || it->name != name) {
    return not_found(
        fmt::format("tensor {} was not declared for {}", json_quote(name), file_.path().string()));
  }
  if (bytes.size() != it->size) {
    return invalid_argument(fmt::format("tensor {} has {} bytes, expected {}", json_quote(name),
                                        bytes.size(), it->size));
  }
  std::atomic_ref<bool> written(it->written);
  if (written.exchange(true)) {
    return invalid_argument(fmt::format("tensor {} is written twice", json_quote(name)));
  }
  Status status = file_.write_at(it->offset, bytes);
  if (!status) written.store(false);
  return status;
}

Status SafetensorsWriter::commit() {
  for (const Entry& entry : entries_) {
    if (!entry.written) {
      return invalid_argument(fmt::format("tensor {} was declared for {}, but never written",
                                          json_quote(entry.name), file_.path().string()));
    }
  }
  return file_.commit();
}

}  // namespace nibble
