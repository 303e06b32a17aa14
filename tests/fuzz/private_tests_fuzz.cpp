// LiveCodeBench's private tests: base64, zlib and a pickle of one text, none of which is trusted.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/eval/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto plain = nibble::unpickle_text(text);
  if (plain) NIBBLE_CHECK(plain->size() <= text.size());
  (void)nibble::decode_private_tests(text);
  (void)nibble::inflate_bytes(text, 1 << 20);
  const auto bytes = nibble::decode_base64(text);
  if (bytes) NIBBLE_CHECK(bytes->size() <= text.size());
  return 0;
}
