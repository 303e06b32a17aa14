// Files that are part of the program: see CMakeLists.txt.
#pragma once

#include <string_view>

namespace nibble {

extern const std::string_view kChatPageHtml;  // page.html
extern const std::string_view kOpenApiJson;   // openapi.json

}  // namespace nibble
