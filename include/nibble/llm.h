// nibble as a library: a model that answers prompts, one after the other or many at once.
//
//   nibble::LLM llm("DIR");                                                    // throws, or
//   auto loaded = nibble::LLM::load({.model = "DIR"});                         // Result<LLM>
//   auto outputs = llm.generate({"Hello, my name is"}, {.max_tokens = 32});    // Result
//   for (const auto& output : *outputs) use(output.prompt, output.outputs[0].text);
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/export.h"
#include "nibble/options.h"
#include "nibble/output.h"
#include "nibble/result.h"
#include "nibble/sampling_params.h"

namespace nibble::api {

// Text, or token ids that are taken as they are. Text gets BOS in front when the tokenizer says so,
// unless it begins with BOS already.
struct Prompt {
  Prompt(const char* t) : text(t) {}                                             // NOLINT: implicit
  Prompt(std::string t) : text(std::move(t)) {}                                  // NOLINT: implicit
  Prompt(std::vector<int32_t> ids) : token_ids(std::move(ids)), is_ids(true) {}  // NOLINT: implicit

  std::string text;
  std::vector<int32_t> token_ids;
  bool is_ids = false;
};

struct Prompts : std::vector<Prompt> {
  Prompts(std::initializer_list<Prompt> prompts) : std::vector<Prompt>(prompts) {}
  Prompts(std::vector<Prompt> prompts)  // NOLINT: implicit
      : std::vector<Prompt>(std::move(prompts)) {}
  Prompts(const std::vector<std::string>& texts)  // NOLINT: implicit
      : std::vector<Prompt>(texts.begin(), texts.end()) {}
};

struct Stats {                       // since the model was loaded; names as in the server's metrics
  int64_t num_requests_running = 0;  // now
  int64_t num_requests_waiting = 0;
  int64_t num_steps = 0;
  int64_t prompt_tokens_total = 0;  // computed
  int64_t generation_tokens_total = 0;
  int64_t prefix_cache_hits_total = 0;  // prompt tokens found instead of computed
  int64_t num_preemptions_total = 0;
  int64_t spec_decode_num_drafts_total = 0;  // verified windows
  int64_t spec_decode_num_draft_tokens_total = 0;
  int64_t spec_decode_num_accepted_tokens_total = 0;
  std::vector<int64_t> spec_decode_num_accepted_tokens_per_pos_total;
  double acceptance_length = 1;    // 1 + accepted tokens per window
  double kv_cache_usage_perc = 0;  // 0..1, of the blocks
  int64_t num_kv_blocks = 0;
  int64_t num_cached_kv_blocks = 0;  // free, but findable
};

// A request on its way. Cheap to copy; copies are the same request. Every function may be called
// from any thread. Dropping all copies does not end the request.
class NIBBLE_EXPORT RequestHandle {
 public:
  uint64_t request_id() const;

  // Waits for something new: the output so far, with text_diff and token_ids_diff since the last
  // call; the last one is `finished`. Then nothing.
  std::optional<RequestOutput> next();

  // Waits up to `seconds` until next() has something; false if it doesn't.
  bool wait(double seconds) const;

  // Waits for the end.
  RequestOutput result() const;

  // Waits up to `seconds` for the end; false if it didn't come.
  bool wait_finished(double seconds) const;

  // Calls `callback` whenever next() has something new, now already if it has. On the engine's
  // thread, mostly: it must be quick and must not throw. Replaces the one before.
  void on_progress(const std::function<void()>& callback);

  bool finished() const;

  // Ends with finish_reason "abort" within one step.
  void abort();

  // for (const RequestOutput& output : handle) ...: next() until nothing comes.
  class Iterator {
   public:
    using value_type = RequestOutput;
    using difference_type = std::ptrdiff_t;
    explicit Iterator(RequestHandle* handle) : handle_(handle) { ++*this; }
    Iterator() = default;
    const RequestOutput& operator*() const { return *output_; }
    const RequestOutput* operator->() const { return &*output_; }
    Iterator& operator++() {
      output_ = handle_->next();
      if (!output_) handle_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(const Iterator& other) const { return handle_ == other.handle_; }

   private:
    RequestHandle* handle_ = nullptr;
    std::optional<RequestOutput> output_;
  };
  Iterator begin() { return Iterator(this); }
  Iterator end() { return {}; }

  class State;
  explicit RequestHandle(std::shared_ptr<State> state) : state_(std::move(state)) {}

 private:
  std::shared_ptr<State> state_;
};

// Every function may be called from any thread, but for moving and destruction. Requests of all
// threads share the model's steps. The destructor ends what still runs with "abort".
class NIBBLE_EXPORT LLM {
 public:
  // Errors: kNotFound without such a model; kInvalidArgument and kUnsupported naming an option;
  // kCorrupt for a broken checkpoint; kOutOfMemory.
  static Result<LLM> load(const LLMOptions& options);

  // The same; throws ResultError.
  explicit LLM(const LLMOptions& options) : LLM(load(options).value()) {}
  explicit LLM(std::string model, LLMOptions options = {})
      : LLM(load(with_model(std::move(options), std::move(model))).value()) {}

  LLM(LLM&&) noexcept;
  LLM& operator=(LLM&&) noexcept;
  ~LLM();

  // Answers in the order of the prompts. All prompts and params are checked before any runs.
  // Errors: kInvalidArgument, "prompt 3: ...", for no prompts too; kUnavailable after shutdown().
  // What goes wrong later concerns one request: its output has `error` set.
  Result<std::vector<RequestOutput>> generate(const Prompts& prompts,
                                              const SamplingParams& params = {}) const;
  // One SamplingParams for each prompt.
  Result<std::vector<RequestOutput>> generate(const Prompts& prompts,
                                              std::span<const SamplingParams> params) const;
  Result<RequestOutput> generate(const Prompt& prompt, const SamplingParams& params = {}) const;

  // Starts a request. `on_output` is called on the engine's thread whenever tokens came, and at the
  // end; it must be quick, and may use the handle's abort() but not wait for any request. When it
  // throws, its request is aborted. With best_of above n which answers are kept is known at the
  // end: the handle gives one output then. Errors: as generate(); kInvalidArgument for best_of
  // above n with a callback.
  using OutputCallback = std::function<void(const RequestOutput&)>;
  Result<RequestHandle> generate_async(const Prompt& prompt, const SamplingParams& params = {},
                                       OutputCallback on_output = nullptr) const;

  // Starts a request for each prompt, once all have been checked. Errors: those of generate().
  Result<std::vector<RequestHandle>> generate_async(const Prompts& prompts,
                                                    std::span<const SamplingParams> params) const;

  // Puts a conversation into the model's template and answers it. Messages as OpenAI's JSON: an
  // array, or an object {messages, tools, chat_template_kwargs, ...}. Thinking is parted from the
  // answer: reasoning_content and text; tool calls are left in the text. Errors: as generate(), and
  // kInvalidArgument naming a message.
  Result<RequestOutput> chat(std::string_view messages, const SamplingParams& params = {}) const;
  Result<RequestHandle> chat_async(std::string_view messages, const SamplingParams& params = {},
                                   OutputCallback on_output = nullptr) const;

  // The ids that chat() runs. `thinking`: auto, on, off.
  Result<std::vector<int32_t>> apply_chat_template(std::string_view messages,
                                                   const std::string& thinking = "auto") const;

  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens = true) const;
  std::string decode(const std::vector<int32_t>& token_ids, bool skip_special_tokens = true) const;

  Stats get_stats() const;
  int64_t max_seq_len() const;  // prompt and output of one request
  int64_t vocab_size() const;
  const std::string& model() const;  // the directory

  // Ends what runs with "abort"; later calls fail with kUnavailable. Idempotent.
  void shutdown();

 private:
  class Impl;
  explicit LLM(std::unique_ptr<Impl> impl);
  static LLMOptions with_model(LLMOptions options, std::string model) {
    options.model = std::move(model);
    return options;
  }

  std::unique_ptr<Impl> impl_;
};

// "0.1.0"
NIBBLE_EXPORT const char* version();

}  // namespace nibble::api

#ifndef NIBBLE_IMPLEMENTATION
namespace nibble {
using api::LLM;
using api::Prompt;
using api::Prompts;
using api::RequestHandle;
using api::Stats;
using api::version;
}  // namespace nibble
#endif
