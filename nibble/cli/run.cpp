// nibble run: answers prompts on this machine, one after the other.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/run_options.h"
#include "nibble/cli/run_output.h"
#include "nibble/engine/generate.h"
#include "nibble/tokenizer/chat_template.h"

namespace nibble {
namespace {

constexpr const char* kFooter =
    R"(Without --prompt, a terminal starts a chat (/help lists its commands), and a pipe is the prompt.
Examples:
  nibble run -p "The capital of France is" -n 32 -t 0
  nibble run DIR --chat -p "What is 384 + 597?" --hide-thinking
  echo "Hello, my name is" | nibble run DIR)";

ChatMessage make_message(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

// Everything that one invocation keeps.
class Runner {
 public:
  explicit Runner(RunOptions options) : options_(std::move(options)) {}

  Status run();

 private:
  Status load(bool with_chat_template);
  Result<std::vector<std::string>> collect_prompts() const;
  Result<std::vector<int32_t>> encode(const std::string& prompt) const;
  Result<std::vector<int32_t>> encode_chat(std::vector<ChatMessage> messages) const;
  Status answer_prompts(const std::vector<std::string>& prompts);
  Status chat();
  Status chat_turn(std::vector<ChatMessage>& messages, const std::string& text);
  void tell_chat_commands() const;

  struct Answer {
    GenerateResult result;
    std::string text;
    std::string thinking;
  };
  Result<Answer> answer(const std::vector<int32_t>& ids, bool stream);
  void print_statistics(const GenerateResult& result) const;
  void print_json(const std::string& prompt, const Answer& answer) const;

  RunOptions options_;
  SamplingParams params_;
  DType kv_cache_dtype_ = DType::kBf16;
  std::unique_ptr<LoadedModel> model_;
  std::optional<ChatTemplate> chat_template_;
};

Status Runner::load(bool with_chat_template) {
  ModelOptions options = NIBBLE_TRY(model_options(options_));
  options.show_progress = !options_.quiet && !options_.json;
  NIBBLE_TRY(sampling_params(options_, {}));  // a bad option is told before a long load
  const auto directory = NIBBLE_TRY(resolve_model(options_.model));
  const GenerationConfig defaults = NIBBLE_TRY(load_generation_config(directory));
  params_ = NIBBLE_TRY(sampling_params(options_, defaults));
  if (with_chat_template) {
    chat_template_ = NIBBLE_TRY(ChatTemplate::load(directory, options_.chat_template));
  }
  model_ = NIBBLE_TRY(LoadedModel::load(directory, options));
  kv_cache_dtype_ = options_.kv_cache_dtype == "auto"
                        ? model_->default_kv_cache_dtype()
                        : NIBBLE_TRY(parse_kv_cache_dtype(options_.kv_cache_dtype));
  return {};
}

// Raw prompts, not those of a chat: --prompt and --prompt-file, or a pipe.
Result<std::vector<std::string>> Runner::collect_prompts() const {
  std::vector<std::string> prompts = options_.prompts;
  const bool from_stdin =
      options_.prompt_file == "-" ||
      (options_.prompt_file.empty() && prompts.empty() && ::isatty(STDIN_FILENO) == 0);
  if (from_stdin) {
    std::string text{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
    if (text.ends_with('\n')) text.pop_back();
    if (text.empty()) return invalid_argument("the prompt on standard input is empty");
    prompts.push_back(std::move(text));
  } else if (!options_.prompt_file.empty()) {
    prompts.push_back(NIBBLE_TRY(read_text_file(options_.prompt_file)));
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    size_t offset = 0;
    if (!is_valid_utf8(prompts[i], &offset)) {
      return invalid_argument(
          fmt::format("prompt {} is not valid UTF-8 at byte {}", i + 1, offset));
    }
  }
  return prompts;
}

Status Runner::run() {
  const std::vector<std::string> prompts = NIBBLE_TRY(collect_prompts());
  if (prompts.empty() && options_.json) return invalid_argument("--json needs a --prompt");
  NIBBLE_TRY(load(options_.chat || prompts.empty() || !options_.system.empty()));
  return prompts.empty() ? chat() : answer_prompts(prompts);
}

Result<std::vector<int32_t>> Runner::encode(const std::string& prompt) const {
  if (chat_template_) {
    std::vector<ChatMessage> messages;
    if (!options_.system.empty()) messages.push_back(make_message("system", options_.system));
    messages.push_back(make_message("user", prompt));
    return encode_chat(std::move(messages));
  }
  EncodeOptions encode_options;
  encode_options.add_bos = model_->tokenizer.add_bos_token();
  return model_->tokenizer.encode(prompt, encode_options);
}

Result<std::vector<int32_t>> Runner::encode_chat(std::vector<ChatMessage> messages) const {
  ChatRequest request;
  request.messages = std::move(messages);
  request.thinking = options_.thinking == "on"    ? ChatThinking::kOn
                     : options_.thinking == "off" ? ChatThinking::kOff
                                                  : ChatThinking::kAuto;
  return chat_template_->encode(request, model_->tokenizer);
}

Result<Runner::Answer> Runner::answer(const std::vector<int32_t>& ids, bool stream) {
  SessionOptions session_options;
  session_options.kv_cache_dtype = kv_cache_dtype_;
  session_options.chunk_size = options_.chunk_size;
  Session session = NIBBLE_TRY(Session::create(*model_, session_options));
  OutputStyle style;
  style.color = stream && output_wants_color();
  style.hide_thinking = options_.hide_thinking;
  AnswerFormatter formatter(model_->tokenizer, ids, style);
  const auto sink = [&](int32_t token) {
    const std::string text = formatter.push(token);
    if (stream && !text.empty()) {
      print(text);
      return std::fflush(stdout) == 0;  // stop when the reader went away
    }
    return true;
  };
  auto result = generate(session, *model_, ids, params_, sink);
  const std::string rest = formatter.finish();
  if (stream) print(rest + "\n");
  return Answer{NIBBLE_TRY(std::move(result)), formatter.answer(), formatter.thinking()};
}

Status Runner::answer_prompts(const std::vector<std::string>& prompts) {
  for (const std::string& prompt : prompts) {
    const std::vector<int32_t> ids = NIBBLE_TRY(encode(prompt));
    const bool stream = !options_.json;
    // A continuation is read behind its prompt; an answer stands alone.
    if (stream && !chat_template_) print(prompt);
    const Answer answered = NIBBLE_TRY(answer(ids, stream));
    if (options_.json) print_json(prompt, answered);
    if (!options_.quiet && !options_.json) print_statistics(answered.result);
    NIBBLE_TRY(check_interrupt());
  }
  return {};
}

void Runner::print_statistics(const GenerateResult& result) const {
  const auto generated = static_cast<int64_t>(result.token_ids.size());
  (void)std::fflush(stdout);  // the answer comes first where both go to one file
  std::fprintf(stderr, "%s\n",
               fmt::format("[prompt {} tokens at {:.1f} tokens/s; generated {} at {:.1f} tokens/s; "
                           "{}; {}]",
                           result.prompt_tokens, rate(result.prompt_tokens, result.prefill_seconds),
                           generated, rate(generated - 1, result.decode_seconds),
                           finish_reason_name(result.finish_reason), model_->kernels->name())
                   .c_str());
}

void Runner::print_json(const std::string& prompt, const Answer& answer) const {
  const GenerateResult& result = answer.result;
  const auto generated = static_cast<int64_t>(result.token_ids.size());
  nlohmann::ordered_json json = {
      {"prompt", prompt},
      {"text", answer.text},
      {"token_ids", result.token_ids},
      {"finish_reason", finish_reason_name(result.finish_reason)},
      {"prompt_tokens", result.prompt_tokens},
      {"completion_tokens", generated},
      {"prefill_tokens_per_second", rate(result.prompt_tokens, result.prefill_seconds)},
      {"decode_tokens_per_second", rate(generated - 1, result.decode_seconds)},
      {"backend", model_->kernels->name()}};
  if (!answer.thinking.empty()) json["reasoning_content"] = answer.thinking;
  print(json.dump() + "\n");
}

void Runner::tell_chat_commands() const {
  print(
      "  /clear          forget the conversation\n"
      "  /system TEXT    set the system message and begin anew\n"
      "  /exit           leave (Ctrl-D does too); Ctrl-C stops an answer\n");
}

Status Runner::chat_turn(std::vector<ChatMessage>& messages, const std::string& text) {
  size_t offset = 0;
  if (!is_valid_utf8(text, &offset)) {
    return invalid_argument(fmt::format("the line is not valid UTF-8 at byte {}", offset));
  }
  messages.push_back(make_message("user", text));
  const auto ids = encode_chat(messages);
  Result<Answer> answered = ids ? answer(*ids, true) : tl::unexpected(ids.error());
  if (!answered) {
    messages.pop_back();  // as if it had not been asked
    return tl::unexpected(std::move(answered).error());
  }
  messages.push_back(make_message("assistant", answered->text));
  if (!options_.quiet) print_statistics(answered->result);
  return {};
}

Status Runner::chat() {
  std::vector<ChatMessage> messages;
  if (!options_.system.empty()) messages.push_back(make_message("system", options_.system));
  if (!options_.quiet) print("Chat with " + options_.model + "; /help lists the commands.\n");
  std::string line;
  for (;;) {
    print("> ");
    (void)std::fflush(stdout);
    if (!std::getline(std::cin, line)) break;  // Ctrl-D, or Ctrl-C at the prompt
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") return {};
    if (line == "/help") {
      tell_chat_commands();
    } else if (line == "/clear") {
      std::erase_if(messages, [](const ChatMessage& m) { return m.role != "system"; });
    } else if (line.starts_with("/system ")) {
      messages = {make_message("system", line.substr(8))};
    } else if (line.starts_with('/')) {
      print("unknown command; /help lists them\n");
    } else {
      const Status status = chat_turn(messages, line);
      if (!status && status.error().code != ErrorCode::kCancelled) {
        (void)report_status(status, "run");
      }
      clear_interrupt();
    }
  }
  print("\n");
  return {};
}

}  // namespace

void add_run_command(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("run", "Continue prompts, or chat, on this machine");
  command->footer(kFooter);
  auto options = std::make_shared<RunOptions>();
  add_run_options(*command, options.get());
  command->callback(
      [options, exit_code] { *exit_code = report_status(Runner(*options).run(), "run"); });
}

}  // namespace nibble
