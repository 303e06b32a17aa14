// nibble run: answers prompts on this machine, one after the other.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
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
#include "nibble/engine/engine.h"
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

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// Everything that one invocation keeps.
class Runner {
 public:
  explicit Runner(RunOptions options) : options_(std::move(options)) {}

  Status run();

 private:
  Status start_ranks();
  Status load(bool with_chat_template);
  Result<std::vector<std::string>> collect_prompts() const;
  Result<std::vector<int32_t>> encode(const std::string& prompt) const;
  Result<std::vector<int32_t>> encode_chat(std::vector<ChatMessage> messages) const;
  Status answer_prompts(const std::vector<std::string>& prompts);
  Status chat();
  Status chat_turn(std::vector<ChatMessage>& messages, const std::string& text);
  void tell_chat_commands() const;

  struct Answer {
    std::vector<int32_t> token_ids;
    FinishReason finish_reason = FinishReason::kStop;
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;  // of the prompt, known from earlier turns
    double prefill_seconds = 0;
    double decode_seconds = 0;  // of all tokens but the first
    std::string text;
    std::string thinking;

    double prefill_rate() const {
      return prefill_seconds > 0
                 ? static_cast<double>(prompt_tokens - cached_tokens) / prefill_seconds
                 : 0;
    }
    double decode_rate() const {
      if (decode_seconds <= 0 || token_ids.size() < 2) return 0;
      return static_cast<double>(token_ids.size() - 1) / decode_seconds;
    }
  };
  Result<Answer> answer(const std::vector<int32_t>& ids, bool stream, std::string_view echo = {});
  void print_statistics(const Answer& answer) const;
  void print_json(const std::string& prompt, const Answer& answer) const;

  RunOptions options_;
  SamplingParams params_;
  std::filesystem::path directory_;
  std::unique_ptr<RankGroup> ranks_;
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<Engine> engine_;  // behind the model it runs on: it goes first
  std::optional<ChatTemplate> chat_template_;
};

Status Runner::start_ranks() {
  ModelOptions options = NIBBLE_TRY(model_options(options_));
  options.show_progress = !options_.quiet && !options_.json;
  NIBBLE_TRY(sampling_params(options_, {}));  // a bad option is told before a long load
  NIBBLE_TRY(run_engine_options(options_));
  directory_ = NIBBLE_TRY(resolve_model(options_.model));
  const RankOptions rank_options = NIBBLE_TRY(apply(options_.parallel, &options));
  ranks_ = NIBBLE_TRY(RankGroup::start(directory_, options, rank_options));
  return {};
}

Status Runner::load(bool with_chat_template) {
  const GenerationConfig defaults = NIBBLE_TRY(load_generation_config(directory_));
  params_ = NIBBLE_TRY(sampling_params(options_, defaults));
  if (with_chat_template) {
    chat_template_ = NIBBLE_TRY(ChatTemplate::load(directory_, options_.chat_template));
  }
  const EngineOptions engine_options = NIBBLE_TRY(run_engine_options(options_));
  model_ = NIBBLE_TRY(ranks_->load_model());
  engine_ = NIBBLE_TRY(Engine::create(*model_, engine_options));
  if (options_.verbose) {
    const MemoryReport report = NIBBLE_TRY(engine_->memory());
    std::fprintf(stderr, "[%s]\n", to_text(report).c_str());
  }
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
  if (prompts.empty() && options_.json) return invalid_argument("--json needs a --prompt");
  return prompts;
}

Status Runner::run() {
  NIBBLE_TRY(start_ranks());
  if (ranks_->is_worker()) return ranks_->serve();
  // Of an MPI job rank 0 alone has a standard input, and tells the others what to compute.
  const auto prompts = collect_prompts();
  if (!prompts) {
    ranks_->give_up(prompts.error().message);
    return tl::unexpected(prompts.error());
  }
  NIBBLE_TRY(load(options_.chat || prompts->empty() || !options_.system.empty()));
  return prompts->empty() ? chat() : answer_prompts(*prompts);
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

// `echo` is printed before the first token, once the request has passed all checks.
Result<Runner::Answer> Runner::answer(const std::vector<int32_t>& ids, bool stream,
                                      std::string_view echo) {
  OutputStyle style;
  style.color = stream && output_wants_color();
  style.hide_thinking = options_.hide_thinking;
  AnswerFormatter formatter(model_->tokenizer, ids, style);
  Request request;
  request.prompt_token_ids = ids;
  request.params = params_;
  const uint64_t id = NIBBLE_TRY(engine_->add(std::move(request)));
  if (stream) print(echo);

  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(ids.size());
  std::optional<Error> error;
  const auto start = Clock::now();
  auto first_token = start;
  while (engine_->has_work()) {
    if (interrupted()) engine_->cancel(id);
    for (const RequestUpdate& update : engine_->step()) {
      if (answer.token_ids.empty() && !update.token_ids.empty()) first_token = Clock::now();
      std::string text;
      for (const int32_t token : update.token_ids) {
        answer.token_ids.push_back(token);
        text += formatter.push(token);
      }
      answer.cached_tokens = update.num_cached_tokens;
      answer.finish_reason = update.finish_reason;
      error = update.error;
      if (!stream || text.empty()) continue;
      print(text);
      if (std::fflush(stdout) != 0) engine_->cancel(id);  // the reader went away
    }
  }
  answer.prefill_seconds = seconds_between(start, first_token);
  answer.decode_seconds = seconds_between(first_token, Clock::now());
  const std::string rest = formatter.finish();
  if (stream) print(rest + "\n");
  if (error) return tl::unexpected(*std::move(error));
  answer.text = formatter.answer();
  answer.thinking = formatter.thinking();
  return answer;
}

Status Runner::answer_prompts(const std::vector<std::string>& prompts) {
  for (const std::string& prompt : prompts) {
    const std::vector<int32_t> ids = NIBBLE_TRY(encode(prompt));
    const bool stream = !options_.json;
    // A continuation is read behind its prompt; an answer stands alone.
    const std::string_view echo = chat_template_ ? std::string_view() : prompt;
    const Answer answered = NIBBLE_TRY(answer(ids, stream, echo));
    if (options_.json) print_json(prompt, answered);
    if (!options_.quiet && !options_.json) print_statistics(answered);
    NIBBLE_TRY(check_interrupt());
  }
  return {};
}

void Runner::print_statistics(const Answer& answer) const {
  (void)std::fflush(stdout);  // the answer comes first where both go to one file
  std::string line = fmt::format("prompt {} tokens", answer.prompt_tokens);
  if (answer.cached_tokens > 0) line += fmt::format(" ({} known)", answer.cached_tokens);
  line += fmt::format(" at {:.1f} tokens/s; generated {} at {:.1f} tokens/s", answer.prefill_rate(),
                      answer.token_ids.size(), answer.decode_rate());
  if (options_.num_drafts > 0) {
    line += fmt::format("; {:.2f} tokens a step", engine_->stats().acceptance_length());
  }
  if (const auto experts = engine_->stats().experts) {
    std::fprintf(stderr, "[%s]\n", describe_experts(*experts).c_str());
  }
  std::fprintf(stderr, "[%s; %s; %s]\n", line.c_str(),
               std::string(finish_reason_name(answer.finish_reason)).c_str(),
               std::string(model_->kernels->name()).c_str());
  const EngineStats stats = engine_->stats();
  if (options_.verbose && stats.num_device_windows > 0) {
    std::fprintf(stderr, "[%s]\n", gpu_summary(stats).c_str());
  }
}

void Runner::print_json(const std::string& prompt, const Answer& answer) const {
  nlohmann::ordered_json json = {{"prompt", prompt},
                                 {"text", answer.text},
                                 {"token_ids", answer.token_ids},
                                 {"finish_reason", finish_reason_name(answer.finish_reason)},
                                 {"prompt_tokens", answer.prompt_tokens},
                                 {"completion_tokens", answer.token_ids.size()},
                                 {"prefill_tokens_per_second", answer.prefill_rate()},
                                 {"decode_tokens_per_second", answer.decode_rate()},
                                 {"backend", model_->kernels->name()}};
  if (const auto report = engine_->memory(); report && options_.verbose) {
    for (const auto& [use, bytes] : report->uses) json["memory"][use] = bytes;
    json["memory"]["free"] = report->free_bytes;
    json["memory"]["total"] = report->total_bytes;
  }
  if (!answer.thinking.empty()) json["reasoning_content"] = answer.thinking;
  if (const auto experts = engine_->stats().experts) {
    json["experts"] = {{"slots", experts->num_slots},
                       {"resident", experts->num_resident},
                       {"total", experts->num_experts},
                       {"record_bytes", experts->expert_bytes},
                       {"hits", experts->num_hits},
                       {"misses", experts->num_misses},
                       {"bytes_read", experts->bytes_read},
                       {"read_seconds", experts->read_seconds},
                       {"stall_seconds", experts->stall_seconds},
                       {"on_host", experts->num_on_host},
                       {"host_seconds", experts->host_seconds},
                       {"evictions", experts->num_evictions},
                       {"guesses", experts->num_guesses},
                       {"guesses_used", experts->num_guesses_used},
                       {"guesses_late", experts->num_guesses_late},
                       {"guesses_wasted", experts->num_guesses_wasted}};
    if (const auto& ram = experts->below; ram.num_slots > 0) {
      json["experts"]["ram"] = {{"slots", ram.num_slots},       {"resident", ram.num_resident},
                                {"hits", ram.num_hits},         {"misses", ram.num_misses},
                                {"bytes_read", ram.bytes_read}, {"read_seconds", ram.read_seconds}};
    }
  }
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
  if (!options_.quiet) print_statistics(*answered);
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
