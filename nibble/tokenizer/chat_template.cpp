#include "nibble/tokenizer/chat_template.h"

#include <fmt/format.h>

#include <optional>

#include "nibble/base/error.h"
#include "nibble/tokenizer/chat_builtin_templates.h"
#include "nibble/tokenizer/chat_marker.h"
#include "nibble/tokenizer/chat_template_files.h"
#include "nibble/tokenizer/jinja_json.h"
#include "nibble/tokenizer/jinja_template.h"

namespace nibble {
namespace {

using jinja::Dict;
using jinja::Kind;
using jinja::Value;

// What encodes a model's own call; also the example in the description of tools.
constexpr std::string_view kToolsText =
    "## Tools\n"
    "You can call the functions below. To call one, reply with exactly this and nothing after it:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\n"
    "{\"parameter\": \"value\"}\n"
    "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Several calls: repeat the part between tool▁call▁begin and tool▁call▁end on new lines.";

struct OneTemplate {
  std::string source;
  jinja::Template program;

  bool mentions_tools() const { return source.find("tools") != std::string::npos; }
};

// What a request gives the template, before anything is marked.
struct Inputs {
  std::vector<Value> tools;
  Dict kwargs;
  ChatThinking thinking;
};

Result<Value> parse_object(std::string_view json, std::string_view where) {
  const Value value = NIBBLE_TRY(with_context(jinja::parse_json(json), where));
  if (!value.is(Kind::kDict)) {
    return invalid_argument(fmt::format("{} is no JSON object", where));
  }
  return value;
}

Result<Inputs> parse_inputs(const ChatRequest& request) {
  Inputs inputs;
  for (size_t i = 0; i < request.tools.size(); ++i) {
    inputs.tools.push_back(NIBBLE_TRY(parse_object(request.tools[i], fmt::format("tools[{}]", i))));
  }
  inputs.thinking = request.thinking;
  if (request.chat_template_kwargs.empty()) return inputs;
  const Value kwargs =
      NIBBLE_TRY(parse_object(request.chat_template_kwargs, "chat_template_kwargs"));
  inputs.kwargs = kwargs.as_dict();
  for (const std::string_view taken : {"messages", "tools", "add_generation_prompt"}) {
    if (inputs.kwargs.find(taken) == nullptr) continue;
    return invalid_argument(
        fmt::format("chat_template_kwargs has '{}', which is a field of the request", taken));
  }
  for (const std::string_view name : {"thinking", "enable_thinking"}) {
    const Value* value = inputs.kwargs.find(name);
    if (value == nullptr || inputs.thinking != ChatThinking::kAuto) continue;
    if (!value->is(Kind::kBool)) {
      return invalid_argument(
          fmt::format("chat_template_kwargs: {} is neither true nor false", name));
    }
    inputs.thinking = value->as_bool() ? ChatThinking::kOn : ChatThinking::kOff;
  }
  return inputs;
}

Value message_value(const ChatMessage& message, const ChatMarker& marker) {
  const auto marked = [&marker](const std::string& text) {
    return Value::string(marker.mark(text));
  };
  std::string role = message.role;
  if (role == "developer") role = "system";
  if (role == "function") role = "tool";
  const bool own = role == "assistant";  // its </think> is the token

  Dict dict;
  dict.set("role", Value::string(role));
  if (message.content) {
    dict.set("content", own ? Value::string(*message.content) : marked(*message.content));
  } else {
    dict.set("content", Value::none());
  }
  if (message.reasoning_content) {
    dict.set("reasoning_content", Value::string(*message.reasoning_content));
  }
  if (!message.name.empty()) dict.set("name", marked(message.name));
  if (!message.tool_call_id.empty()) dict.set("tool_call_id", marked(message.tool_call_id));
  if (!message.tool_calls.empty()) {
    std::vector<Value> calls;
    for (const ChatToolCall& call : message.tool_calls) {
      Dict function;
      function.set("name", marked(call.name));
      function.set("arguments", marked(call.arguments));
      Dict entry;
      entry.set("id", marked(call.id));
      entry.set("type", Value::string("function"));
      entry.set("function", Value::dict(std::move(function)));
      calls.push_back(Value::dict(std::move(entry)));
    }
    dict.set("tool_calls", Value::list(std::move(calls)));
  }
  return Value::dict(std::move(dict));
}

// The description of the tools, for a template that has none. Its tags are the tokens; the tools'
// own texts are marked.
Result<std::string> describe_tools(const Inputs& inputs, const ChatMarker& marker) {
  std::string text(kToolsText);
  jinja::Budget budget{jinja::Limits{}};
  for (const Value& tool : inputs.tools) {
    text += "\n```json\n" + NIBBLE_TRY(jinja::to_json(marker.mark(tool), {}, budget)) + "\n```";
  }
  return text;
}

// Adds `text` to the last system message, since an old template keeps only that one; or makes one.
void add_to_system(const std::string& text, std::vector<Value>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    Dict message = messages[i].as_dict();
    if (message.find("role")->as_string() != "system") continue;
    const std::string& content = message.find("content")->as_string();
    message.set("content", Value::string(content.empty() ? text : content + "\n\n" + text));
    messages[i] = Value::dict(std::move(message));
    return;
  }
  Dict message;
  message.set("role", Value::string("system"));
  message.set("content", Value::string(text));
  messages.insert(messages.begin(), Value::dict(std::move(message)));
}

// Makes a generation prompt end in an open <think> or in an empty <think></think>.
void end_in_thinking(ChatThinking thinking, std::string& prompt) {
  const bool open = prompt.ends_with("<think>\n") || prompt.ends_with("<think>");
  if (thinking == ChatThinking::kOn && !open) prompt += "<think>\n";
  if (thinking != ChatThinking::kOff) return;
  const size_t end = prompt.find_last_not_of('\n');
  if (end != std::string::npos &&
      std::string_view(prompt).substr(0, end + 1).ends_with("</think>")) {
    return;
  }
  if (!open) prompt += "<think>\n";
  if (prompt.ends_with('>')) prompt += '\n';
  prompt += "\n</think>\n\n";
}

}  // namespace

struct ChatTemplate::State {
  OneTemplate usual;
  std::optional<OneTemplate> tool_use;
  std::vector<std::pair<std::string, std::string>> special_tokens;
  std::string origin;
  bool thinks = true;

  static Result<ChatTemplate> make(ChatTemplateFiles files);
  Result<std::string> render(const ChatRequest& request, const AddedTokenMatcher* matcher,
                             ChatMarker* used_marker) const;
  Dict variables(const ChatRequest& request, const Inputs& inputs, const ChatMarker& marker) const;
};

Result<ChatTemplate> ChatTemplate::State::make(ChatTemplateFiles files) {
  const auto parse_one = [&files](std::string source) -> Result<OneTemplate> {
    auto program = with_context(jinja::Template::parse(source),
                                fmt::format("chat template of {}", files.origin));
    if (!program) return tl::unexpected(std::move(program).error());
    return OneTemplate{std::move(source), *std::move(program)};
  };
  std::optional<OneTemplate> tool_use;
  if (!files.tool_use_source.empty()) {
    tool_use = NIBBLE_TRY(parse_one(std::move(files.tool_use_source)));
  }
  OneTemplate usual = NIBBLE_TRY(parse_one(std::move(files.source)));
  return ChatTemplate(std::make_shared<const State>(State{std::move(usual), std::move(tool_use),
                                                          std::move(files.special_tokens),
                                                          std::move(files.origin), files.thinks}));
}

// The template's variables, but for the text that describes tools.
Dict ChatTemplate::State::variables(const ChatRequest& request, const Inputs& inputs,
                                    const ChatMarker& marker) const {
  Dict variables;
  for (const auto& [key, text] : special_tokens) variables.set(key, Value::string(text));
  for (const auto& [key, value] : inputs.kwargs.entries()) variables.set(key, marker.mark(value));
  if (inputs.thinking != ChatThinking::kAuto) {
    for (const char* name : {"thinking", "enable_thinking"}) {
      variables.set(name, Value::boolean(inputs.thinking == ChatThinking::kOn));
    }
  }
  std::vector<Value> messages;
  for (const ChatMessage& message : request.messages) {
    messages.push_back(message_value(message, marker));
  }
  variables.set("messages", Value::list(std::move(messages)));
  std::vector<Value> tools;
  for (const Value& tool : inputs.tools) tools.push_back(marker.mark(tool));
  variables.set("tools", tools.empty() ? Value::none() : Value::list(std::move(tools)));
  variables.set("add_generation_prompt", Value::boolean(request.add_generation_prompt));
  return variables;
}

// With a matcher, the text has marks, and *used_marker can remove them.
Result<std::string> ChatTemplate::State::render(const ChatRequest& request,
                                                const AddedTokenMatcher* matcher,
                                                ChatMarker* used_marker) const {
  NIBBLE_TRY(check_chat_messages(request.messages));
  const Inputs inputs = NIBBLE_TRY(parse_inputs(request));
  const OneTemplate& chosen = tool_use && !inputs.tools.empty() ? *tool_use : usual;
  ChatMarker marker;
  if (matcher != nullptr) {
    marker =
        NIBBLE_TRY(ChatMarker::choose(*matcher, variables(request, inputs, marker), chosen.source));
    *used_marker = marker;
  }
  Dict given = variables(request, inputs, marker);
  if (!inputs.tools.empty() && !chosen.mentions_tools()) {
    std::vector<Value> messages = given.find("messages")->as_sequence().items;
    add_to_system(NIBBLE_TRY(describe_tools(inputs, marker)), messages);
    given.set("messages", Value::list(std::move(messages)));
  }
  std::string prompt = NIBBLE_TRY(with_context(chosen.program.render(given), "chat template"));
  if (request.add_generation_prompt && thinks) end_in_thinking(inputs.thinking, prompt);
  return prompt;
}

Result<ChatTemplate> ChatTemplate::load(const std::filesystem::path& directory,
                                        const std::string& choice) {
  return State::make(NIBBLE_TRY(find_chat_template(directory, choice)));
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, std::string_view bos_token,
                                         std::string_view eos_token) {
  ChatTemplateFiles files;
  files.source = source;
  files.origin = "the given text";
  files.special_tokens = {{"bos_token", std::string(bos_token)},
                          {"eos_token", std::string(eos_token)}};
  return State::make(std::move(files));
}

Result<ChatTemplate> ChatTemplate::builtin(std::string_view name, std::string_view bos_token,
                                           std::string_view eos_token) {
  const BuiltinChatTemplate* found = find_builtin_chat_template(name);
  if (found == nullptr) {
    return not_found(fmt::format("no chat template is named '{}'; there are {}", name,
                                 builtin_chat_template_names()));
  }
  ChatTemplateFiles files;
  files.source = found->source;
  files.origin = fmt::format("built-in {}", name);
  files.thinks = found->thinks;
  files.special_tokens = {{"bos_token", std::string(bos_token)},
                          {"eos_token", std::string(eos_token)}};
  return State::make(std::move(files));
}

Result<std::string> ChatTemplate::render(const ChatRequest& request) const {
  return state_->render(request, nullptr, nullptr);
}

Result<std::vector<int32_t>> ChatTemplate::encode(const ChatRequest& request,
                                                  const Tokenizer& tokenizer) const {
  if (request.allow_special_in_content) {
    return tokenizer.encode(NIBBLE_TRY(render(request)), {.parse_added_tokens = true});
  }
  const AddedTokenMatcher matcher(tokenizer.added_tokens());
  ChatMarker marker;
  const std::string prompt = NIBBLE_TRY(state_->render(request, &matcher, &marker));
  if (marker.unmark(prompt) == prompt) {
    return tokenizer.encode(prompt, {.parse_added_tokens = true});
  }
  std::vector<int32_t> ids;
  size_t begin = 0;     // of the text that is not encoded yet
  size_t position = 0;  // where to look for the next token
  while (true) {
    const AddedTokenMatcher::Match match = matcher.find(prompt, position);
    const bool found = match.begin != match.end;
    position = match.end;
    if (found && marker.marks(prompt, match.end)) continue;  // one character, of somebody's text
    const size_t end = found ? match.begin : prompt.size();
    const std::string text = marker.unmark(std::string_view(prompt).substr(begin, end - begin));
    const auto encoded = NIBBLE_TRY(tokenizer.encode(text, {.parse_added_tokens = false}));
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    if (!found) return ids;
    ids.push_back(match.id);
    begin = match.end;
  }
}

bool ChatTemplate::ignores_thinking() const { return !state_->thinks; }

const std::string& ChatTemplate::origin() const { return state_->origin; }

}  // namespace nibble
