// The chat templates that come with the program, for checkpoints without one of their own.
#pragma once

#include <array>
#include <string_view>

namespace nibble {

struct BuiltinChatTemplate {
  std::string_view name;
  std::string_view source;  // Jinja
  bool thinks;              // false: the model was not trained to, and `thinking` is ignored
};

// One form for all of them, differing in the generation prompt: BOS, the system texts joined by a
// blank line, then each message; consecutive tool results are one section, after which the model
// goes on without <｜Assistant｜>. Unlike the published templates, which set their flags once,
// every round of calls and results begins afresh.
extern const std::array<BuiltinChatTemplate, 3> kBuiltinChatTemplates;

// The template of that name, or null.
const BuiltinChatTemplate* find_builtin_chat_template(std::string_view name);

// "deepseek_r1, deepseek_r1_0528, deepseek_v3": for messages.
std::string_view builtin_chat_template_names();

}  // namespace nibble
