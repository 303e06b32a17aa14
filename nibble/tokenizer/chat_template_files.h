// Finding a checkpoint's chat template among its files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

struct ChatTemplateFiles {
  std::string source;           // Jinja
  std::string tool_use_source;  // what to use instead when tools are given, or ""
  std::string origin;           // "built-in deepseek_r1", or a path
  bool thinks = true;
  // bos_token, eos_token and the other *_token of tokenizer_config.json, which templates see as
  // variables.
  std::vector<std::pair<std::string, std::string>> special_tokens;
};

// See ChatTemplate::load for the order and the errors.
Result<ChatTemplateFiles> find_chat_template(const std::filesystem::path& directory,
                                             const std::string& choice);

}  // namespace nibble
