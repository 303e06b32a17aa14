// POST /v1/responses: the Responses API's form of a chat request, as the chat API's.
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

ApiResult<std::string> text_of(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    return invalid(where + " is neither a text nor an array of parts", where);
  std::string text;
  for (const Json& part : content) {
    const std::string type = part.is_object() ? part.value("type", "") : "";
    if ((type != "input_text" && type != "output_text" && type != "text") ||
        !part.contains("text") || !part["text"].is_string()) {
      return invalid(
          fmt::format("{} has a part of type '{}'; text is the only input here", where, type),
          where);
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

ApiResult<bool> add_item(const Json& item, const std::string& where, Json* messages) {
  if (!item.is_object()) return invalid(where + " is no object", where);
  const std::string type = item.value("type", "message");
  if (type == "reasoning") return true;
  if (type == "message") {
    if (!item.contains("content")) return invalid(where + ".content is missing", where);
    const std::string text = NIBBLE_API_TRY(text_of(item["content"], where + ".content"));
    messages->push_back({{"role", item.value("role", "user")}, {"content", text}});
    return true;
  }
  if (type == "function_call") {
    Json call = {{"id", item.value("call_id", "")},
                 {"type", "function"},
                 {"function",
                  {{"name", item.value("name", "")}, {"arguments", item.value("arguments", "")}}}};
    // Calls in a row are one turn.
    if (!messages->empty() && messages->back()["role"] == "assistant" &&
        messages->back().contains("tool_calls")) {
      messages->back()["tool_calls"].push_back(std::move(call));
    } else {
      messages->push_back({{"role", "assistant"},
                           {"content", nullptr},
                           {"tool_calls", Json::array({std::move(call)})}});
    }
    return true;
  }
  if (type == "function_call_output") {
    if (!item.contains("output")) return invalid(where + ".output is missing", where);
    const std::string text = NIBBLE_API_TRY(text_of(item["output"], where + ".output"));
    messages->push_back(
        {{"role", "tool"}, {"tool_call_id", item.value("call_id", "")}, {"content", text}});
    return true;
  }
  return invalid(fmt::format("{} is of type '{}', which is not supported", where, type), where);
}

ApiResult<bool> convert_tools(JsonFields& fields, Json* chat) {
  const Json* tools = fields.find("tools");
  if (tools != nullptr && tools->is_array()) {
    Json list = Json::array();
    for (size_t i = 0; i < tools->size(); ++i) {
      Json function = (*tools)[i];
      const std::string where = fmt::format("tools[{}]", i);
      if (!function.is_object() || function.value("type", "") != "function") {
        return invalid(where + " is a hosted tool, which is not supported; 'function' is", where);
      }
      function.erase("type");
      list.push_back({{"type", "function"}, {"function", std::move(function)}});
    }
    if (!list.empty()) (*chat)["tools"] = std::move(list);
  } else if (tools != nullptr) {
    return invalid("tools is no array", "tools");
  }
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return true;
  if (choice->is_string()) {
    if (chat->contains("tools") || *choice != "auto") (*chat)["tool_choice"] = *choice;
  } else if (choice->is_object() && choice->value("type", "") == "function") {
    (*chat)["tool_choice"] = {{"type", "function"},
                              {"function", {{"name", choice->value("name", "")}}}};
  } else {
    return invalid("tool_choice asks for a hosted tool, which is not supported", "tool_choice");
  }
  return true;
}

}  // namespace

ApiResult<Json> responses_to_chat(const Json& body) {
  JsonFields fields(body);
  Json chat = Json::object();
  Json messages = Json::array();
  if (const auto instructions = NIBBLE_API_TRY(fields.text("instructions"))) {
    messages.push_back({{"role", "system"}, {"content", *instructions}});
  }
  const Json* input = fields.find("input");
  if (input == nullptr) {
    return tl::unexpected(bad_request("input is missing", "missing_field", "input"));
  }
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
  } else if (input->is_array()) {
    for (size_t i = 0; i < input->size(); ++i) {
      NIBBLE_API_TRY(add_item((*input)[i], fmt::format("input[{}]", i), &messages));
    }
  } else {
    return invalid("input is neither a text nor an array of items", "input");
  }
  chat["messages"] = std::move(messages);
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (fields.find(name) != nullptr) {
      return invalid(fmt::format("{} is not supported: nothing is stored here; send the whole "
                                 "conversation as input",
                                 name),
                     name);
    }
  }
  if (NIBBLE_API_TRY(fields.boolean("background")).value_or(false)) {
    return invalid("background is not supported; leave it out", "background");
  }
  for (const char* name :
       {"model", "temperature", "top_p", "stream", "parallel_tool_calls", "metadata", "user"}) {
    if (const Json* value = fields.find(name)) chat[name] = *value;
  }
  if (const Json* limit = fields.find("max_output_tokens")) chat["max_completion_tokens"] = *limit;
  NIBBLE_API_TRY(convert_tools(fields, &chat));
  const Json* text = fields.find("text");
  if (text != nullptr && text->is_object() && text->contains("format") &&
      (*text)["format"].is_object()) {
    const Json& format = (*text)["format"];
    if (format.value("type", "") == "json_schema") {
      Json inner = format;
      inner.erase("type");
      chat["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(inner)}};
    } else {
      chat["response_format"] = format;
    }
  }
  const Json* reasoning = fields.find("reasoning");
  if (reasoning != nullptr && reasoning->is_object() && reasoning->contains("effort")) {
    chat["reasoning_effort"] = (*reasoning)["effort"];
  }
  fields.accept({"store", "include", "truncation", "service_tier", "max_tool_calls",
                 "prompt_cache_key", "safety_identifier", "stream_options", "top_logprobs"});
  for (const std::string& name : fields.unknown()) chat[name] = body[name];
  return chat;
}

ApiResult<GenerationRequest> read_responses_request(const Json& body, const ServedModel& model) {
  const Json chat = NIBBLE_API_TRY(responses_to_chat(body));
  GenerationRequest request = NIBBLE_API_TRY(read_chat_request(chat, model));
  request.api = Api::kResponses;
  if (request.params.n != 1) return tl::unexpected(out_of_range("n", "n is not 1"));
  const auto repeat = [&](const char* name, const Json& otherwise) {
    const auto found = body.find(name);
    const Json& value = found == body.end() || found->is_null() ? otherwise : *found;
    request.echo_members +=
        fmt::format("\"{}\":{},", name, value.dump(-1, ' ', false, Json::error_handler_t::replace));
  };
  repeat("instructions", nullptr);
  repeat("max_output_tokens", nullptr);
  repeat("metadata", Json::object());
  repeat("parallel_tool_calls", true);
  repeat("temperature", request.params.temperature);
  repeat("top_p", request.params.top_p);
  repeat("tool_choice", "auto");
  repeat("tools", Json::array());
  return request;
}

}  // namespace nibble
