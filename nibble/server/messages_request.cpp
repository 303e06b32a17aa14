// POST /v1/messages: Anthropic's form of a chat request, as OpenAI's.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

tl::unexpected<ApiError> invalid(std::string message, std::string param) {
  return tl::unexpected(bad_request(std::move(message), "invalid_value", std::move(param)));
}

// A text, or text blocks in a row.
ApiResult<std::string> text_of(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (!content.is_array())
    return invalid(where + " is neither a text nor an array of blocks", where);
  for (const Json& block : content) {
    if (!block.is_object() || block.value("type", "") != "text" || !block.contains("text") ||
        !block["text"].is_string()) {
      return invalid(where +
                         " has a block that is no text; image and document input is not "
                         "supported",
                     where);
    }
    text += block["text"].get<std::string>();
  }
  return text;
}

ApiResult<bool> add_assistant(const Json& content, const std::string& where, Json* messages) {
  Json message = {{"role", "assistant"}};
  if (content.is_string()) {
    message["content"] = content;
    messages->push_back(std::move(message));
    return true;
  }
  if (!content.is_array())
    return invalid(where + " is neither a text nor an array of blocks", where);
  std::string text;
  Json calls = Json::array();
  for (const Json& block : content) {
    const std::string type = block.is_object() ? block.value("type", "") : "";
    if (type == "text" && block.contains("text") && block["text"].is_string()) {
      text += block["text"].get<std::string>();
    } else if (type == "tool_use" && block.contains("name") && block.contains("input")) {
      calls.push_back(
          {{"id", block.value("id", "")},
           {"type", "function"},
           {"function", {{"name", block["name"]}, {"arguments", block["input"].dump()}}}});
    } else if (type != "thinking" && type != "redacted_thinking") {
      return invalid(fmt::format("{} has a block of type '{}', expected text, thinking or tool_use",
                                 where, type),
                     where);
    }
  }
  message["content"] = text.empty() && !calls.empty() ? Json(nullptr) : Json(text);
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  messages->push_back(std::move(message));
  return true;
}

ApiResult<bool> add_user(const Json& content, const std::string& where, Json* messages) {
  if (content.is_string()) {
    messages->push_back({{"role", "user"}, {"content", content}});
    return true;
  }
  if (!content.is_array())
    return invalid(where + " is neither a text nor an array of blocks", where);
  Json texts = Json::array();
  for (const Json& block : content) {
    const std::string type = block.is_object() ? block.value("type", "") : "";
    if (type == "tool_result") {
      const auto result = block.find("content");
      std::string text;
      if (result != block.end() && !result->is_null()) {
        text = NIBBLE_API_TRY(text_of(*result, where));
      }
      messages->push_back(
          {{"role", "tool"}, {"tool_call_id", block.value("tool_use_id", "")}, {"content", text}});
    } else if (type == "text") {
      texts.push_back(block);
    } else {
      return invalid(
          fmt::format(
              "{} has a block of type '{}', which is not supported; text and tool_result are",
              where, type),
          where);
    }
  }
  if (texts.empty()) return true;
  const std::string text = NIBBLE_API_TRY(text_of(texts, where));
  messages->push_back({{"role", "user"}, {"content", text}});
  return true;
}

ApiResult<bool> convert_tools(JsonFields& fields, Json* chat) {
  const Json* tools = fields.find("tools");
  if (tools != nullptr) {
    if (!tools->is_array()) return invalid("tools is no array", "tools");
    Json list = Json::array();
    for (size_t i = 0; i < tools->size(); ++i) {
      const Json& tool = (*tools)[i];
      const std::string where = fmt::format("tools[{}]", i);
      if (!tool.is_object() || !tool.contains("name"))
        return invalid(where + " has no name", where);
      if (tool.contains("type") && !tool["type"].is_null() && tool["type"] != "custom") {
        return invalid(where + " is a server tool, which is not supported; give an input_schema",
                       where);
      }
      Json function = {{"name", tool["name"]}};
      if (tool.contains("description")) function["description"] = tool["description"];
      if (tool.contains("input_schema")) function["parameters"] = tool["input_schema"];
      list.push_back({{"type", "function"}, {"function", std::move(function)}});
    }
    (*chat)["tools"] = std::move(list);
  }
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return true;
  if (!choice->is_object()) return invalid("tool_choice is no object", "tool_choice");
  const std::string type = choice->value("type", "");
  if (type == "auto" || type == "none") {
    (*chat)["tool_choice"] = type;
  } else if (type == "any") {
    (*chat)["tool_choice"] = "required";
  } else if (type == "tool") {
    (*chat)["tool_choice"] = {{"type", "function"},
                              {"function", {{"name", choice->value("name", "")}}}};
  } else {
    return invalid("tool_choice.type is not one of auto, any, tool, none", "tool_choice");
  }
  const auto single = choice->find("disable_parallel_tool_use");
  if (single != choice->end() && single->is_boolean()) {
    (*chat)["parallel_tool_calls"] = !single->get<bool>();
  }
  return true;
}

// Both of the request and of a count of its tokens.
ApiResult<Json> convert_conversation(JsonFields& fields) {
  Json chat = Json::object();
  const Json* given = fields.find("messages");
  if (given == nullptr || !given->is_array()) {
    return tl::unexpected(
        bad_request("messages is missing or no array", "missing_field", "messages"));
  }
  Json messages = Json::array();
  if (const Json* system = fields.find("system")) {
    const std::string text = NIBBLE_API_TRY(text_of(*system, "system"));
    messages.push_back({{"role", "system"}, {"content", text}});
  }
  for (size_t i = 0; i < given->size(); ++i) {
    const Json& message = (*given)[i];
    const std::string where = fmt::format("messages[{}]", i);
    if (!message.is_object() || !message.contains("content")) {
      return invalid(where + " has no content", where);
    }
    const std::string role = message.value("role", "");
    auto added = role == "assistant"
                     ? add_assistant(message["content"], where + ".content", &messages)
                 : role == "user" ? add_user(message["content"], where + ".content", &messages)
                                  : invalid(where + ".role is neither user nor assistant", where);
    if (!added) return tl::unexpected(std::move(added).error());
  }
  chat["messages"] = std::move(messages);
  NIBBLE_API_TRY(convert_tools(fields, &chat));
  const Json* thinking = fields.find("thinking");
  if (thinking != nullptr) {
    const std::string type = thinking->is_object() ? thinking->value("type", "") : "";
    if (type != "enabled" && type != "disabled" && type != "adaptive") {
      return invalid("thinking.type is neither enabled nor disabled", "thinking");
    }
    chat["thinking"] = type == "enabled" ? "on" : type == "disabled" ? "off" : "auto";
    if (type == "disabled") chat["include_reasoning"] = false;
    if (type == "enabled" && thinking->contains("budget_tokens")) {
      chat["thinking_budget"] = (*thinking)["budget_tokens"];
    }
  }
  // A last message of the assistant is to be continued.
  if (!chat["messages"].empty() && chat["messages"].back()["role"] == "assistant" &&
      !chat["messages"].back().contains("tool_calls")) {
    chat["continue_final_message"] = true;
  }
  return chat;
}

}  // namespace

ApiResult<Json> messages_to_chat(const Json& body) {
  JsonFields fields(body);
  Json chat = NIBBLE_API_TRY(convert_conversation(fields));
  for (const char* name : {"model", "max_tokens", "temperature", "top_p", "top_k", "stream"}) {
    if (const Json* value = fields.find(name)) chat[name] = *value;
  }
  if (const Json* stop = fields.find("stop_sequences")) chat["stop"] = *stop;
  fields.accept({"metadata", "cache_control", "service_tier", "container", "context_management"});
  // What is not known goes along, so that it is named in the reply.
  for (const std::string& name : fields.unknown()) chat[name] = body[name];
  return chat;
}

ApiResult<GenerationRequest> read_messages_request(const Json& body, const ServedModel& model) {
  if (!body.contains("max_tokens") || body["max_tokens"].is_null()) {
    return tl::unexpected(bad_request("max_tokens is missing", "missing_field", "max_tokens"));
  }
  const Json chat = NIBBLE_API_TRY(messages_to_chat(body));
  GenerationRequest request = NIBBLE_API_TRY(read_chat_request(chat, model));
  request.api = Api::kMessages;
  if (request.params.n != 1) return tl::unexpected(out_of_range("n", "n is not 1"));
  return request;
}

}  // namespace nibble
