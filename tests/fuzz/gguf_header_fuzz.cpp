// The header of a GGUF file: an error, or sizes that a plan can add up.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "nibble/base/check.h"
#include "nibble/plan/gguf_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The reader maps a file: this one lives in memory.
  static const int file = ::memfd_create("fuzz.gguf", 0);
  NIBBLE_CHECK(file >= 0);
  NIBBLE_CHECK(::ftruncate(file, static_cast<off_t>(size)) == 0);
  NIBBLE_CHECK(::pwrite(file, data, size, 0) == static_cast<ssize_t>(size));
  const auto model = nibble::read_gguf_header("/proc/self/fd/" + std::to_string(file));
  if (!model) {
    NIBBLE_CHECK(!model.error().message.empty());
    return 0;
  }
  NIBBLE_CHECK(model->config.num_hidden_layers > 0 && model->config.hidden_size > 0);
  NIBBLE_CHECK(model->weights.file_bytes() >= 0);
  NIBBLE_CHECK(model->weights.resident_bytes(true) >= model->weights.resident_bytes(false));
  return 0;
}
