// Files of this folder that are compiled in: CMakeLists.txt makes the definitions.
#pragma once

#include <string_view>

namespace nibble {

extern const std::string_view kCatalogueCsv;  // gpus.csv, the device catalogue
extern const std::string_view kPageHtml;      // page.html, the web page without its data

}  // namespace nibble
