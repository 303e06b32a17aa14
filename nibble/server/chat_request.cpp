// POST /v1/chat/completions: the conversation, its tools and how the reply is to be read.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/grammar/compile_guided.h"
#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxTools = 128;

struct Tools {
  Json definitions = Json::array();  // as the template sees them
  std::vector<std::string> names;
  std::vector<CallableTool> callable;
  bool any_strict = false;
};

ApiError tool_error(std::string message, std::string param = "tools") {
  return bad_request(std::move(message), "invalid_value", std::move(param));
}

// A strict tool's schema is refused before its reply begins.
ApiResult<bool> check_schema(const std::string& schema, const std::string& where) {
  Guided guided;
  guided.kind = Guided::Kind::kJsonSchema;
  guided.text = schema;
  const auto grammar = guided_grammar(guided);
  if (grammar) return true;
  ApiError error = from_error(grammar.error());
  error.param = where + ".function.parameters";
  return tl::unexpected(error);
}

ApiResult<Tools> read_tools(JsonFields& fields) {
  Tools tools;
  const Json* given = fields.find("tools");
  const Json* legacy = fields.find("functions");
  Json wrapped = Json::array();
  if (given == nullptr && legacy != nullptr) {
    if (!legacy->is_array())
      return tl::unexpected(tool_error("functions is no array", "functions"));
    for (const Json& entry : *legacy) {
      wrapped.push_back({{"type", "function"}, {"function", entry}});
    }
    given = &wrapped;
  }
  if (given == nullptr) return tools;
  if (!given->is_array()) return tl::unexpected(tool_error("tools is no array"));
  if (given->size() > kMaxTools) {
    return tl::unexpected(out_of_range(
        "tools",
        fmt::format("tools has {} entries, expected at most {}", given->size(), kMaxTools)));
  }
  for (size_t i = 0; i < given->size(); ++i) {
    const Json& tool = (*given)[i];
    const std::string where = fmt::format("tools[{}]", i);
    if (!tool.is_object() || !tool.contains("function") || !tool["function"].is_object()) {
      return tl::unexpected(
          tool_error(where + " is no {\"type\": \"function\", \"function\": {...}}", where));
    }
    if (tool.contains("type") && tool["type"] != "function") {
      return tl::unexpected(tool_error(
          where + ".type is not 'function', which is the only kind of tool here", where + ".type"));
    }
    const Json& function = tool["function"];
    const auto name = function.find("name");
    if (name == function.end() || !name->is_string() || name->get<std::string>().empty() ||
        name->get<std::string>().find('\n') != std::string::npos) {
      return tl::unexpected(
          tool_error(where + ".function.name is no name", where + ".function.name"));
    }
    tools.names.push_back(name->get<std::string>());
    const auto parameters = function.find("parameters");
    if (parameters != function.end() && !parameters->is_null() && !parameters->is_object()) {
      return tl::unexpected(tool_error(where + ".function.parameters is no JSON schema",
                                       where + ".function.parameters"));
    }
    const bool has_schema =
        parameters != function.end() && parameters->is_object() && !parameters->empty();
    CallableTool callable;
    callable.name = tools.names.back();
    if (has_schema) callable.schema = parameters->dump();
    const auto strict = function.find("strict");
    callable.strict = has_schema && strict != function.end() && *strict == true;
    if (callable.strict) NIBBLE_API_TRY(check_schema(callable.schema, where));
    tools.any_strict |= callable.strict;
    tools.callable.push_back(std::move(callable));
    tools.definitions.push_back(tool);
  }
  return tools;
}

struct ToolChoice {
  enum class Kind { kNone, kAuto, kRequired } kind = Kind::kAuto;
  std::string name;  // kRequired: this one alone, or ""
};

ApiResult<ToolChoice> read_tool_choice(JsonFields& fields, const Tools& tools) {
  using Kind = ToolChoice::Kind;
  ToolChoice choice;
  choice.kind = tools.names.empty() ? Kind::kNone : Kind::kAuto;
  const Json* given = fields.find("tool_choice");
  const Json* legacy = fields.find("function_call");
  if (given == nullptr) given = legacy;
  if (given == nullptr) return choice;
  if (given->is_string()) {
    const auto word = given->get<std::string>();
    if (word == "none") {
      choice.kind = Kind::kNone;
    } else if (word == "required") {
      choice.kind = Kind::kRequired;
    } else if (word != "auto") {
      return tl::unexpected(tool_error(
          fmt::format("tool_choice is '{}', expected none, auto, required or a function", word),
          "tool_choice"));
    }
  } else {
    const Json* holder = given;
    if (given->is_object() && given->contains("function")) holder = &(*given)["function"];
    if (!holder->is_object() || !holder->contains("name") || !(*holder)["name"].is_string()) {
      return tl::unexpected(tool_error("tool_choice names no function", "tool_choice"));
    }
    choice.kind = Kind::kRequired;
    choice.name = (*holder)["name"].get<std::string>();
    if (std::find(tools.names.begin(), tools.names.end(), choice.name) == tools.names.end()) {
      return tl::unexpected(tool_error(
          fmt::format("tool_choice names '{}', which is not among the tools", choice.name),
          "tool_choice"));
    }
  }
  if (choice.kind == Kind::kRequired && tools.names.empty()) {
    return tl::unexpected(
        tool_error("tool_choice asks for a call, but there are no tools", "tool_choice"));
  }
  return choice;
}

ApiResult<ChatThinking> read_thinking(JsonFields& fields, const ServedModel& model,
                                      GenerationRequest* request) {
  ChatThinking thinking = model.thinking;
  bool asked = false;
  const auto effort = NIBBLE_API_TRY(fields.text("reasoning_effort"));
  if (effort) {
    if (*effort != "none" && *effort != "minimal" && *effort != "low" && *effort != "medium" &&
        *effort != "high" && *effort != "xhigh") {
      return tl::unexpected(out_of_range(
          "reasoning_effort",
          fmt::format("reasoning_effort is '{}', expected none, minimal, low, medium or high",
                      effort->substr(0, 40))));
    }
    thinking = *effort == "none" ? ChatThinking::kOff : ChatThinking::kOn;
    asked = true;
  }
  const Json* word = fields.find("thinking");
  if (word != nullptr) {
    if (*word == "auto") {
      thinking = ChatThinking::kAuto;
    } else if (*word == "on" || *word == true) {
      thinking = ChatThinking::kOn;
    } else if (*word == "off" || *word == false) {
      thinking = ChatThinking::kOff;
    } else {
      return tl::unexpected(
          out_of_range("thinking", "thinking is not one of \"auto\", \"on\", \"off\""));
    }
    asked = true;
  }
  if (asked && thinking != ChatThinking::kAuto && model.chat_template->ignores_thinking()) {
    request->ignored_fields.emplace_back("thinking");
  }
  return thinking;
}

std::string_view thinking_word(ChatThinking thinking) {
  return thinking == ChatThinking::kOn ? "on" : thinking == ChatThinking::kOff ? "off" : "auto";
}

struct Conversation {
  Json request = Json::object();  // for parse_chat_request
  bool continue_final = false;
};

// The prompt's ids of a conversation.
ApiResult<std::vector<int32_t>> encode_conversation(const Conversation& conversation,
                                                    const ServedModel& model) {
  if (!model.chat_template) return tl::unexpected(not_supported(model.chat_template_problem));
  auto chat = parse_chat_request(conversation.request.dump());
  if (!chat) {
    ApiError error = from_error(chat.error());
    if (error.param.empty()) error.param = "messages";
    if (error.status == 501) {  // of a message: a part that is no text, a call of no function
      error.status = 400;
      error.type = "invalid_request_error";
    } else if (error.code.empty()) {
      error.code = "invalid_value";
    }
    return tl::unexpected(error);
  }
  for (size_t i = 0; i < chat->messages.size(); ++i) {
    if (chat->messages[i].role != "tool" || !chat->messages[i].tool_call_id.empty()) continue;
    return tl::unexpected(bad_request(fmt::format("messages[{}].tool_call_id is missing", i),
                                      "missing_field", "messages"));
  }
  chat->allow_special_in_content = model.allow_special_in_content;
  if (conversation.continue_final) {
    if (chat->messages.empty() || chat->messages.back().role != "assistant" ||
        !chat->messages.back().content) {
      return tl::unexpected(
          bad_request("continue_final_message needs an assistant's text as the last message",
                      "invalid_value", "continue_final_message"));
    }
    chat->add_generation_prompt = false;
  }
  auto ids = model.chat_template->encode(*chat, *model.tokenizer);
  if (!ids) return tl::unexpected(from_error(ids.error()));
  if (model.call_memory) {
    std::vector<NamedCall> calls;
    for (const ChatMessage& message : chat->messages) {
      for (const ChatToolCall& call : message.tool_calls) {
        calls.push_back({call.id, call.name, call.arguments});
      }
    }
    (void)model.call_memory->replay(calls, model.tags, &*ids);
  }
  if (conversation.continue_final) {
    const auto is_eos = [&](int32_t id) {
      return std::find(model.eos_token_ids.begin(), model.eos_token_ids.end(), id) !=
             model.eos_token_ids.end();
    };
    while (!ids->empty() && is_eos(ids->back())) ids->pop_back();
  }
  return *std::move(ids);
}

// Which calls are held to their tools: those that have to be made, and those of strict functions.
ApiResult<CallRules> read_call_rules(const ToolChoice& choice, Tools tools, bool parallel,
                                     const ServedModel& model) {
  CallRules rules;
  const bool required = choice.kind == ToolChoice::Kind::kRequired;
  if (!required && (choice.kind == ToolChoice::Kind::kNone || !tools.any_strict)) return rules;
  if (!model.parse_tools || model.tags.call_begin < 0 || model.tags.call_separator < 0) {
    if (!required) return rules;
    return tl::unexpected(not_supported(
        "tool_choice asks for a call, but the vocabulary has no tool tokens", "tool_choice"));
  }
  rules.required = required;
  rules.several = parallel && choice.name.empty();
  for (CallableTool& tool : tools.callable) {
    if (!choice.name.empty() && tool.name != choice.name) continue;
    tool.constrained = required || tool.strict;
    rules.tools.push_back(std::move(tool));
    if (!choice.name.empty()) break;
  }
  return rules;
}

ApiResult<bool> read_lengths(JsonFields& fields, const ServedModel& model,
                             GenerationRequest* request) {
  const auto completion = NIBBLE_API_TRY(fields.integer("max_completion_tokens"));
  const auto plain = NIBBLE_API_TRY(fields.integer("max_tokens"));
  const auto renamed = NIBBLE_API_TRY(fields.integer("max_new_tokens"));
  const auto value = completion ? completion : plain ? plain : renamed;
  if (value && *value < 1) {
    const char* name = completion ? "max_completion_tokens"
                       : plain    ? "max_tokens"
                                  : "max_new_tokens";
    return tl::unexpected(
        out_of_range(name, fmt::format("{} is {}, expected 1 or more", name, *value)));
  }
  request->params.max_tokens = value ? value : model.max_new_tokens;
  return true;
}

ApiResult<bool> read_logprobs(JsonFields& fields, const ServedModel& model,
                              GenerationRequest* request) {
  request->logprobs = NIBBLE_API_TRY(fields.boolean("logprobs")).value_or(false);
  const auto top = NIBBLE_API_TRY(fields.integer("top_logprobs"));
  if (top && *top > 0 && !request->logprobs) {
    return tl::unexpected(bad_request("top_logprobs is given without logprobs: true",
                                      "invalid_value", "top_logprobs"));
  }
  if (top && (*top < 0 || *top > model.max_logprobs)) {
    return tl::unexpected(
        out_of_range("top_logprobs",
                     fmt::format("top_logprobs is {}, expected 0..{}", *top, model.max_logprobs)));
  }
  if (request->logprobs) request->params.logprobs = top.value_or(0);
  return true;
}

ApiResult<Conversation> read_conversation(JsonFields& fields, const Tools& tools,
                                          ChatThinking thinking) {
  Conversation conversation;
  const Json* messages = fields.find("messages");
  if (messages == nullptr) {
    return tl::unexpected(bad_request("messages is missing", "missing_field", "messages"));
  }
  conversation.request["messages"] = *messages;
  if (!tools.definitions.empty()) conversation.request["tools"] = tools.definitions;
  conversation.request["thinking"] = thinking_word(thinking);
  const auto generation = NIBBLE_API_TRY(fields.boolean("add_generation_prompt"));
  conversation.request["add_generation_prompt"] = generation.value_or(true);
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    conversation.request["chat_template_kwargs"] = *kwargs;
  }
  conversation.continue_final =
      NIBBLE_API_TRY(fields.boolean("continue_final_message")).value_or(false);
  return conversation;
}

}  // namespace

ApiResult<GenerationRequest> read_chat_request(const Json& body, const ServedModel& model) {
  JsonFields fields(body);
  GenerationRequest request;
  request.api = Api::kChat;
  NIBBLE_API_TRY(read_common_fields(fields, model, &request));
  NIBBLE_API_TRY(read_lengths(fields, model, &request));
  NIBBLE_API_TRY(read_logprobs(fields, model, &request));
  if (!model.chat_template) return tl::unexpected(not_supported(model.chat_template_problem));
  const Tools tools = NIBBLE_API_TRY(read_tools(fields));
  const ToolChoice choice = NIBBLE_API_TRY(read_tool_choice(fields, tools));
  ChatThinking thinking = NIBBLE_API_TRY(read_thinking(fields, model, &request));
  // A call that has to be made comes behind the reasoning, so there has to be some to end.
  const bool required = choice.kind == ToolChoice::Kind::kRequired;
  const Json* kwargs = fields.find("chat_template_kwargs");
  const bool kwargs_decide = kwargs != nullptr && kwargs->is_object() &&
                             (kwargs->contains("thinking") || kwargs->contains("enable_thinking"));
  if (required && thinking == ChatThinking::kAuto && !kwargs_decide) {
    const bool thinks = model.parse_reasoning && !model.chat_template->ignores_thinking();
    thinking = thinks ? ChatThinking::kOn : ChatThinking::kOff;
  }
  const bool parallel = NIBBLE_API_TRY(fields.boolean("parallel_tool_calls")).value_or(true);
  const Conversation conversation = NIBBLE_API_TRY(read_conversation(fields, tools, thinking));
  request.include_reasoning = NIBBLE_API_TRY(fields.boolean("include_reasoning")).value_or(true);
  const bool stop_in_reasoning =
      NIBBLE_API_TRY(fields.boolean("stop_in_reasoning")).value_or(false);
  NIBBLE_API_TRY(note_unknown_fields(fields, model, &request));

  request.prompts.push_back(NIBBLE_API_TRY(encode_conversation(conversation, model)));
  request.call_rules = NIBBLE_API_TRY(read_call_rules(choice, tools, parallel, model));
  NIBBLE_API_TRY(check_prompt_length(request, model));

  ReplyParserOptions& parser = request.parser;
  parser.tags = model.tags;
  parser.parse_reasoning = model.parse_reasoning;
  parser.start = conversation.continue_final
                     ? ReplyParserOptions::Start::kContent
                     : reply_start(model.tags, *model.tokenizer, request.prompts.front());
  parser.parse_tools = model.parse_tools && choice.kind != ToolChoice::Kind::kNone;
  parser.parallel_tool_calls = parallel;
  parser.tool_names = tools.names;
  parser.stop_in_reasoning = stop_in_reasoning;
  // Stop strings belong to the content, which only the parser knows.
  parser.stop = std::move(request.params.stop);
  parser.include_stop = request.params.include_stop_str_in_output;
  request.params.stop.clear();
  if (!parser.parse_tools && model.tags.calls_begin >= 0) {
    request.params.logit_bias.emplace(model.tags.calls_begin, -100);  // no call may leak as text
  }
  return request;
}

ApiResult<std::vector<int32_t>> read_prompt_ids(const Json& body, const ServedModel& model) {
  JsonFields fields(body);
  if (fields.find("messages") == nullptr) {
    const auto prompt = NIBBLE_API_TRY(fields.text("prompt"));
    if (!prompt) {
      return tl::unexpected(
          bad_request("prompt or messages is missing", "missing_field", "prompt"));
    }
    EncodeOptions options;
    const auto special = NIBBLE_API_TRY(fields.boolean("add_special_tokens"));
    options.add_bos = special.value_or(true) && model.tokenizer->add_bos_token();
    auto ids = model.tokenizer->encode(*prompt, options);
    if (!ids) return tl::unexpected(from_error(ids.error()));
    return *std::move(ids);
  }
  if (!model.chat_template) return tl::unexpected(not_supported(model.chat_template_problem));
  GenerationRequest request;
  const Tools tools = NIBBLE_API_TRY(read_tools(fields));
  const ChatThinking thinking = NIBBLE_API_TRY(read_thinking(fields, model, &request));
  const Conversation conversation = NIBBLE_API_TRY(read_conversation(fields, tools, thinking));
  return encode_conversation(conversation, model);
}

}  // namespace nibble
