#include "nibble/tokenizer/chat_builtin_templates.h"

namespace nibble {

// Only the last three lines differ.
#define NIBBLE_DEEPSEEK_BODY                                                                        \
  "{{- bos_token }}\n"                                                                              \
  "{{- messages | selectattr('role', 'equalto', 'system') | map(attribute='content')"               \
  " | join('\\n\\n') }}\n"                                                                          \
  "{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list %}\n"                  \
  "{%- for m in turns %}\n"                                                                         \
  "  {%- set after_outputs = loop.previtem is defined and loop.previtem.role == 'tool' %}\n"        \
  "  {%- if m.role == 'user' %}\n"                                                                  \
  "    {{- '<｜User｜>' ~ m.content }}\n"                                                         \
  "  {%- elif m.role == 'assistant' %}\n"                                                           \
  "    {%- set content = m.content or '' %}\n"                                                      \
  "    {%- if '</think>' in content %}\n"                                                           \
  "      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"                        \
  "    {%- endif %}\n"                                                                              \
  "    {{- ('' if after_outputs else '<｜Assistant｜>') ~ content }}\n"                           \
  "    {%- for call in m.tool_calls or [] %}\n"                                                     \
  "      {{- '<｜tool▁calls▁begin｜>' if loop.first else '\\n' }}\n"                          \
  "      {{- '<｜tool▁call▁begin｜>' ~ (call.type or 'function') ~ '<｜tool▁sep｜>' }}\n" \
  "      {{- call.function.name ~ '\\n```json\\n' ~ call.function.arguments }}\n"                   \
  "      {{- '\\n```<｜tool▁call▁end｜>' }}\n"                                                \
  "      {{- '<｜tool▁calls▁end｜>' if loop.last }}\n"                                        \
  "    {%- endfor %}\n"                                                                             \
  "    {{- eos_token }}\n"                                                                          \
  "  {%- elif m.role == 'tool' %}\n"                                                                \
  "    {{- '\\n' if after_outputs else '<｜tool▁outputs▁begin｜>' }}\n"                       \
  "    {{- '<｜tool▁output▁begin｜>' ~ m.content ~ '<｜tool▁output▁end｜>' }}\n"        \
  "    {%- if loop.last or loop.nextitem.role != 'tool' %}\n"                                       \
  "      {{- '<｜tool▁outputs▁end｜>' }}\n"                                                   \
  "    {%- endif %}\n"                                                                              \
  "  {%- endif %}\n"                                                                                \
  "{%- endfor %}\n"                                                                                 \
  "{%- if add_generation_prompt and (not turns or turns[-1].role != 'tool') %}\n"

const std::array<BuiltinChatTemplate, 3> kBuiltinChatTemplates = {{
    {"deepseek_r1", NIBBLE_DEEPSEEK_BODY "  {{- '<｜Assistant｜><think>\\n' }}\n{%- endif %}\n",
     true},
    {"deepseek_r1_0528", NIBBLE_DEEPSEEK_BODY "  {{- '<｜Assistant｜>' }}\n{%- endif %}\n", true},
    {"deepseek_v3", NIBBLE_DEEPSEEK_BODY "  {{- '<｜Assistant｜>' }}\n{%- endif %}\n", false},
}};

#undef NIBBLE_DEEPSEEK_BODY

const BuiltinChatTemplate* find_builtin_chat_template(std::string_view name) {
  for (const BuiltinChatTemplate& builtin : kBuiltinChatTemplates) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

std::string_view builtin_chat_template_names() {
  return "deepseek_r1, deepseek_r1_0528, deepseek_v3";
}

}  // namespace nibble
