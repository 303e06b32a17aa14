// What a client asked for, whichever of the APIs it speaks.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nibble/engine/sampling_params.h"
#include "nibble/server/api_error.h"
#include "nibble/server/call_memory.h"
#include "nibble/server/reply_parser.h"
#include "nibble/tokenizer/chat_template.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

// What requests are read against. Fixed once the model is loaded.
struct ServedModel {
  std::vector<std::string> names;  // the first one is reported
  const Tokenizer* tokenizer = nullptr;
  std::optional<ChatTemplate> chat_template;  // none: no chat
  std::string chat_template_problem;          // why there is none
  ReplyTags tags;
  std::vector<int64_t> eos_token_ids;
  int64_t vocab_size = 0;
  int64_t max_seq_len = 0;  // prompt and output, in tokens

  double temperature = 1;  // where a request is silent
  double top_p = 1;
  int64_t top_k = 0;
  std::optional<int64_t> max_new_tokens;
  int64_t max_logprobs = 20;
  ChatThinking thinking = ChatThinking::kAuto;
  bool parse_reasoning = true;
  bool parse_tools = true;
  bool allow_special_in_content = false;
  bool strict_request_fields = false;
  bool reasoning_content = true;  // which names reasoning has in replies
  bool reasoning = true;
  std::shared_ptr<CallMemory> call_memory;  // none: calls are always written anew

  bool serves(const std::string& name) const;
};

// A function that may be called.
struct CallableTool {
  std::string name;
  std::string schema;       // of its arguments, JSON text; "": any object
  bool constrained = true;  // to the schema; otherwise the arguments are what the model writes
  bool strict = false;      // the schema is one that can be met word for word
};

// Calls that are not left to the model alone: their heads are written for it, their names are
// chosen among the tools, and their arguments are held to the schemas. Without tools calls are
// generated freely.
struct CallRules {
  std::vector<CallableTool> tools;
  bool required = false;  // there has to be one, behind the reasoning if the prompt opens one
  bool several = false;   // others may follow
};

enum class Api { kChat, kCompletions, kMessages, kResponses };

struct GenerationRequest {
  Api api = Api::kChat;
  std::string model;
  std::vector<std::vector<int32_t>> prompts;  // one but for completions
  SamplingParams params;                      // of each; n and best_of hold for each prompt
  bool has_seed = false;

  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool include_reasoning = true;
  bool return_token_ids = false;
  bool echo = false;             // completions
  bool logprobs = false;         // params.logprobs says how many
  bool prompt_logprobs = false;  // as a list of the reply
  bool parse_reply = true;       // reasoning and tools, not plain text
  ReplyParserOptions parser;     // without token_text

  CallRules call_rules;

  std::vector<std::string> ignored_fields;
  // Responses: members that the reply repeats, as JSON text without braces.
  std::string echo_members;
};

// Each reads a request body. Errors: 400 naming the field, 404 for another model, 501.
ApiResult<GenerationRequest> read_chat_request(const nlohmann::ordered_json& body,
                                               const ServedModel& model);
ApiResult<GenerationRequest> read_completion_request(const nlohmann::ordered_json& body,
                                                     const ServedModel& model);
ApiResult<GenerationRequest> read_messages_request(const nlohmann::ordered_json& body,
                                                   const ServedModel& model);
ApiResult<GenerationRequest> read_responses_request(const nlohmann::ordered_json& body,
                                                    const ServedModel& model);

// The ids of the `messages` (with tools, add_generation_prompt, ...) or the `prompt` of a body, for
// /tokenize and /v1/messages/count_tokens.
ApiResult<std::vector<int32_t>> read_prompt_ids(const nlohmann::ordered_json& body,
                                                const ServedModel& model);

// A chat request in Anthropic's or the Responses API's form as OpenAI's chat body. Errors: 400.
ApiResult<nlohmann::ordered_json> messages_to_chat(const nlohmann::ordered_json& body);
ApiResult<nlohmann::ordered_json> responses_to_chat(const nlohmann::ordered_json& body);

// Sampling, streaming and the model's name: what chat and completions share. `fields` remembers
// what was read. Sets request.params but for logprobs and max_tokens.
class JsonFields;
ApiResult<bool> read_common_fields(JsonFields& fields, const ServedModel& model,
                                   GenerationRequest* request);

// The context is not too small for the prompt. Errors: 400 context_length_exceeded.
ApiResult<bool> check_prompt_length(const GenerationRequest& request, const ServedModel& model);

// Ends reading: unknown fields are refused with strict_request_fields and otherwise remembered.
ApiResult<bool> note_unknown_fields(const JsonFields& fields, const ServedModel& model,
                                    GenerationRequest* request);

}  // namespace nibble
