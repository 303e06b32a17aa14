// A data set's CSV file: every row has the columns of the first one.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/eval/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  size_t rows = 0;
  (void)nibble::for_each_csv_row(text, "input", [&](std::string_view row) -> nibble::Status {
    NIBBLE_CHECK(row.starts_with('{') && row.ends_with('}'));
    NIBBLE_CHECK(++rows <= lines);
    return {};
  });
  return 0;
}
