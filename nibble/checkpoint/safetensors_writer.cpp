#include "nibble/checkpoint/safetensors_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "nibble/base/error.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/safetensors_layout.h"

namespace nibble {

Result<SafetensorsWriter> SafetensorsWriter::create(const std::filesystem::path& path,
                                                    std::vector<TensorInfo> tensors) {
  SafetensorsLayout layout = NIBBLE_TRY(safetensors_layout(std::move(tensors)));
  SafetensorsWriter writer(NIBBLE_TRY(OutputFile::create(path)));
  NIBBLE_TRY(writer.file_.write(layout.head));
  std::vector<Entry> entries;
  for (auto& entry : layout.entries) {
    entries.push_back({std::move(entry.name), entry.offset, entry.size, false});
  }
  writer.entries_ = std::move(entries);
  writer.data_bytes_ = layout.data_bytes;
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
