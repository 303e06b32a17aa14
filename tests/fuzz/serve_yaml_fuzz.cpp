// The configuration file of nibble serve.
#include <cstddef>
#include <cstdint>
#include <string>

#include "nibble/cli/serve_options.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nibble::ServeOptions options;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const nibble::Status status =
      nibble::apply_config_text(text, "args.yaml", {{"port", "8000"}}, &options);
  if (status) (void)nibble::check_serve_options(&options);
  return 0;
}
