// A user's device catalogue, a device described in place, and sizes as people type them.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/plan/catalogue.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto catalogue = nibble::Catalogue::parse(text, "fuzz");
  if (catalogue) {
    for (const nibble::DeviceSpec& spec : catalogue->devices()) {
      NIBBLE_CHECK(!spec.id.empty());
      const auto device = nibble::device_of(spec);
      if (device) NIBBLE_CHECK(device->memory_bytes > 0);
    }
    nibble::Catalogue merged = nibble::Catalogue::builtin();
    merged.merge(*catalogue);
    NIBBLE_CHECK(merged.devices().size() >= catalogue->devices().size());
  } else {
    NIBBLE_CHECK(!catalogue.error().message.empty());
  }
  const auto count = nibble::parse_device_count(text, nibble::Catalogue::builtin());
  if (count) NIBBLE_CHECK(count->count >= 1 && count->count <= 4096);
  const auto bytes = nibble::parse_size(text);
  if (bytes) NIBBLE_CHECK(*bytes > 0);
  return 0;
}
