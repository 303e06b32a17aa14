// Chat templates: a conversation to the prompt its model was trained on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/chat_messages.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

// Immutable; cheap to copy; may be used by several threads at once.
class ChatTemplate {
 public:
  // The template of the checkpoint in `directory`, with the BOS and EOS of its
  // tokenizer_config.json. The first of these that is there:
  //   1. `choice`: the name of a built-in template, or else of a file
  //   2. DIRECTORY/chat_template.jinja
  //   3. `chat_template` in DIRECTORY/tokenizer_config.json: a text, or a list of {name, template}
  //      of which "default" counts, and "tool_use" when tools are given
  //   4. the built-in of the model, when the names of the directory or in config.json tell which:
  //      R1, R1-0528 and V3 have the same model_type
  //
  // Errors: kNotFound naming the built-ins when there is none; kCorrupt for malformed files; those
  // of parse().
  static Result<ChatTemplate> load(const std::filesystem::path& directory,
                                   const std::string& choice = "");

  // A template from its Jinja text. Errors: kInvalidArgument and kUnsupported, "line 3: ...", as
  // jinja::Template::parse.
  static Result<ChatTemplate> parse(std::string_view source, std::string_view bos_token,
                                    std::string_view eos_token);

  // "deepseek_r1", "deepseek_r1_0528" or "deepseek_v3". Errors: kNotFound naming them.
  static Result<ChatTemplate> builtin(std::string_view name, std::string_view bos_token,
                                      std::string_view eos_token);

  // The prompt as text. Content that spells added tokens stands in it as it is: use encode() for
  // what a model gets.
  //
  // When tools are given and the template's text never mentions `tools`, their descriptions are
  // added to the last system text. `thinking` is passed to the template as the variables `thinking`
  // and `enable_thinking`; and the generation prompt is then made to end as asked: kOn in an open
  // <think>, kOff in an empty <think></think>.
  //
  // Errors: kInvalidArgument for messages, tools or kwargs that are malformed, and for what the
  // template refuses.
  Result<std::string> render(const ChatRequest& request) const;

  // The prompt's ids. Added tokens in the texts of users, systems and tools, in tool calls, tool
  // descriptions and kwargs become plain text, unless allow_special_in_content; those in an
  // assistant's content are tokens. Without any the ids are those of Hugging Face's
  // apply_chat_template. Errors: those of render() and Tokenizer::encode().
  Result<std::vector<int32_t>> encode(const ChatRequest& request, const Tokenizer& tokenizer) const;

  // Whether kOn and kOff change nothing: deepseek_v3 never thinks.
  bool ignores_thinking() const;

  // Where it comes from: "built-in deepseek_r1", or the path of the file.
  const std::string& origin() const;

 private:
  struct State;
  explicit ChatTemplate(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  std::shared_ptr<const State> state_;
};

}  // namespace nibble
