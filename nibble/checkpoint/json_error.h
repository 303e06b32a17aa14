// How the JSON library's messages are told to people; shared by the two readers of JSON here.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

// "malformed JSON at byte 17: syntax error while parsing value - ...": `what` is the library's own
// message, without its bracketed number and its line and column.
std::string json_error_text(size_t position, std::string_view what);

}  // namespace nibble
