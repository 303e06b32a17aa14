// LLM: a loaded model, its engine on a thread, and what turns prompts into requests.
#include "nibble/llm.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>

#include "nibble/api/convert.h"
#include "nibble/api/load_options.h"
#include "nibble/api/request_state.h"
#include "nibble/base/error.h"
#include "nibble/checkpoint/generation_config.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/engine/engine_thread.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/rank_group.h"
#include "nibble/tokenizer/chat_template.h"

namespace nibble::api {
namespace {

using EngineParams = nibble::SamplingParams;

template <typename T>
using EngineResult = nibble::Result<T>;

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// A seed for the request number `counter` (splitmix64's finish): neighbours have nothing in common.
int64_t seed_of(int64_t base, uint64_t counter) {
  uint64_t x = static_cast<uint64_t>(base) + counter * 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 1);
}

}  // namespace

class LLM::Impl {
 public:
  static EngineResult<std::unique_ptr<Impl>> load(const LLMOptions& options);
  // Handles may keep the runtime a little longer.
  ~Impl() {
    if (runtime_) runtime_->engine->shutdown();
  }

  // A checked request that has not been queued.
  struct Prepared {
    nibble::Request request;
    std::string prompt;
    bool is_chat = false;
  };
  EngineResult<Prepared> prepare(const Prompt& prompt, const SamplingParams& params);
  EngineResult<RequestHandle> start(Prepared prepared, RequestHandle::State::Callback on_output);
  EngineResult<RequestHandle> chat(std::string_view messages, const SamplingParams& params,
                                   OutputCallback on_output);

  EngineResult<std::vector<RequestHandle>> start_all(const Prompts& prompts,
                                                     std::span<const SamplingParams> params);
  EngineResult<std::vector<RequestOutput>> generate(const Prompts& prompts,
                                                    std::span<const SamplingParams> params);
  EngineResult<RequestHandle> generate_async(const Prompt& prompt, const SamplingParams& params,
                                             OutputCallback on_output);
  EngineResult<std::vector<int32_t>> encode_chat(std::string_view json,
                                                 const std::string& thinking);
  EngineResult<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens) const;

  const Tokenizer& tokenizer() const { return runtime_->model->tokenizer; }
  const LoadedModel& model() const { return *runtime_->model; }
  EngineThread& engine() const { return *runtime_->engine; }
  const std::string& directory() const { return directory_; }

 private:
  nibble::Status check(const nibble::Request& request) const;

  std::shared_ptr<Runtime> runtime_;
  std::string directory_;
  SamplingDefaults defaults_;
  int64_t seed_ = 0;
  std::atomic<uint64_t> num_seeds_{0};
  std::atomic<uint64_t> num_requests_{0};
  EngineResult<ChatTemplate> chat_template_ = nibble::not_found("no chat template was loaded");
};

EngineResult<std::unique_ptr<LLM::Impl>> LLM::Impl::load(const LLMOptions& options) {
  const ModelOptions model_options = NIBBLE_TRY(nibble::model_options(options));
  EngineOptions engine_options = NIBBLE_TRY(nibble::engine_options(options));
  const auto directory = NIBBLE_TRY(resolve_model(options.model));
  auto runtime = std::make_shared<Runtime>();
  auto impl = std::make_unique<Impl>();
  if (options.sampling_defaults == "model") {
    impl->defaults_.generation = NIBBLE_TRY(load_generation_config(directory));
  }
  impl->defaults_.max_tokens = options.max_new_tokens;
  impl->seed_ = options.seed;
  impl->directory_ = directory.string();
  // A checkpoint without a template can still continue text; but one that was asked for must be
  // there.
  impl->chat_template_ = ChatTemplate::load(directory, options.chat_template);
  if (!impl->chat_template_ && !options.chat_template.empty()) {
    return tl::unexpected(impl->chat_template_.error());
  }
  // Ranks are threads of this process, and their failure is that of a call, not of the program.
  RankOptions rank_options;
  rank_options.transport = RankTransport::kThreads;
  rank_options.ends_process = false;
  runtime->ranks = NIBBLE_TRY(RankGroup::start(directory, model_options, rank_options));
  runtime->model = NIBBLE_TRY(runtime->ranks->load_model(model_options.on_progress));
  if (!options.tokenizer.empty()) {
    Tokenizer tokenizer = NIBBLE_TRY(Tokenizer::load(options.tokenizer));
    if (tokenizer.vocab_size() > runtime->model->config.vocab_size) {
      return nibble::invalid_argument(fmt::format(
          "the tokenizer {} has {} tokens, the model's vocab_size is {}", options.tokenizer,
          tokenizer.vocab_size(), runtime->model->config.vocab_size));
    }
    runtime->model->tokenizer = std::move(tokenizer);
  }
  NIBBLE_TRY(limit_kv_tokens(options.kv_cache_config, *runtime->model, &engine_options));
  auto engine = NIBBLE_TRY(Engine::create(*runtime->model, engine_options));
  runtime->engine = std::make_unique<EngineThread>(std::move(engine));
  impl->runtime_ = std::move(runtime);
  return impl;
}

// What Engine::add would refuse, told before anything runs.
nibble::Status LLM::Impl::check(const nibble::Request& request) const {
  NIBBLE_TRY(nibble::validate(request.params));
  const int64_t vocab = model().config.vocab_size;
  NIBBLE_TRY(nibble::validate_token_ids(request.params, vocab));
  const auto& ids = request.prompt_token_ids;
  if (ids.empty()) return nibble::invalid_argument("the prompt has no tokens");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    return nibble::invalid_argument(fmt::format(
        "token {} of the prompt is {}, outside the vocabulary of {}", i, ids[i], vocab));
  }
  const int64_t context = engine().max_seq_len();
  if (static_cast<int64_t>(ids.size()) >= context) {
    return nibble::invalid_argument(fmt::format(
        "the prompt has {} tokens, and the context is {} tokens, of which one must stay free",
        ids.size(), context));
  }
  return {};
}

EngineResult<std::vector<int32_t>> LLM::Impl::encode(std::string_view text,
                                                     bool add_special_tokens) const {
  EncodeOptions options;
  options.add_bos = add_special_tokens && tokenizer().add_bos_token();
  return tokenizer().encode(text, options);
}

EngineResult<LLM::Impl::Prepared> LLM::Impl::prepare(const Prompt& prompt,
                                                     const SamplingParams& params) {
  Prepared prepared;
  const int64_t seed = params.seed ? *params.seed : seed_of(seed_, num_seeds_++);
  prepared.request.params = NIBBLE_TRY(to_engine(params, defaults_, seed));
  if (params.timeout_seconds && !(*params.timeout_seconds > 0)) {
    return nibble::invalid_argument(
        fmt::format("timeout_seconds is {}, expected more than 0", *params.timeout_seconds));
  }
  prepared.request.timeout_seconds = params.timeout_seconds;
  auto& ids = prepared.request.prompt_token_ids;
  if (prompt.is_ids) {
    ids = prompt.token_ids;
  } else {
    ids = NIBBLE_TRY(encode(prompt.text, true));
  }
  if (const auto& keep = params.truncate_prompt_tokens; keep && *keep > 0) {
    const auto size = static_cast<int64_t>(ids.size());
    ids.erase(ids.begin(), ids.begin() + std::max<int64_t>(0, size - *keep));
  }
  NIBBLE_TRY(check(prepared.request));
  prepared.prompt = prompt.is_ids ? tokenizer().decode(ids, false) : prompt.text;
  return prepared;
}

EngineResult<RequestHandle> LLM::Impl::start(Prepared prepared,
                                             RequestHandle::State::Callback on_output) {
  RequestOutput output;
  output.request_id = ++num_requests_;
  output.prompt = std::move(prepared.prompt);
  output.prompt_token_ids = prepared.request.prompt_token_ids;
  output.seed = *prepared.request.params.seed;
  output.metrics.arrival_time = unix_seconds();
  auto state = std::make_shared<RequestHandle::State>(std::move(output), prepared.request.params,
                                                      std::move(on_output));
  if (prepared.is_chat) state->split_thinking(tokenizer());
  NIBBLE_TRY(state->submit(runtime_, std::move(prepared.request)));
  return RequestHandle(std::move(state));
}

EngineResult<std::vector<RequestHandle>> LLM::Impl::start_all(
    const Prompts& prompts, std::span<const SamplingParams> params) {
  if (prompts.empty()) return nibble::invalid_argument("there are no prompts");
  if (params.size() != prompts.size()) {
    return nibble::invalid_argument(
        fmt::format("there are {} sampling params for {} prompts, expected one for each",
                    params.size(), prompts.size()));
  }
  std::vector<Prepared> prepared;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto one = prepare(prompts[i], params[i]);
    if (!one) {
      return tl::unexpected(std::move(one).error().with_context(fmt::format("prompt {}", i)));
    }
    prepared.push_back(*std::move(one));
  }
  std::vector<RequestHandle> handles;
  for (Prepared& one : prepared) {
    auto handle = start(std::move(one), nullptr);
    if (!handle) {
      for (RequestHandle& started : handles) started.abort();
      return tl::unexpected(std::move(handle).error());
    }
    handles.push_back(*std::move(handle));
  }
  return handles;
}

EngineResult<std::vector<RequestOutput>> LLM::Impl::generate(
    const Prompts& prompts, std::span<const SamplingParams> params) {
  const auto handles = NIBBLE_TRY(start_all(prompts, params));
  std::vector<RequestOutput> outputs;
  outputs.reserve(handles.size());
  for (const RequestHandle& handle : handles) outputs.push_back(handle.result());
  return outputs;
}

EngineResult<RequestHandle> LLM::Impl::generate_async(const Prompt& prompt,
                                                      const SamplingParams& params,
                                                      OutputCallback on_output) {
  Prepared prepared = NIBBLE_TRY(prepare(prompt, params));
  if (on_output) NIBBLE_TRY(check_streaming(prepared.request.params));
  return start(std::move(prepared), std::move(on_output));
}

EngineResult<std::vector<int32_t>> LLM::Impl::encode_chat(std::string_view json,
                                                          const std::string& thinking) {
  if (!chat_template_) return tl::unexpected(chat_template_.error());
  ChatRequest request = NIBBLE_TRY(parse_chat_request(json));
  if (thinking == "on" || thinking == "off") {
    request.thinking = thinking == "on" ? ChatThinking::kOn : ChatThinking::kOff;
  } else if (thinking != "auto") {
    return nibble::invalid_argument(
        fmt::format("thinking is '{}', expected auto, on or off", thinking));
  }
  return chat_template_->encode(request, tokenizer());
}

EngineResult<RequestHandle> LLM::Impl::chat(std::string_view messages, const SamplingParams& params,
                                            OutputCallback on_output) {
  const Prompt prompt(NIBBLE_TRY(encode_chat(messages, params.thinking)));
  Prepared prepared = NIBBLE_TRY(prepare(prompt, params));
  if (on_output) NIBBLE_TRY(check_streaming(prepared.request.params));
  prepared.is_chat = true;
  return start(std::move(prepared), std::move(on_output));
}

LLM::LLM(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LLM::LLM(LLM&&) noexcept = default;
LLM& LLM::operator=(LLM&&) noexcept = default;
LLM::~LLM() = default;

Result<LLM> LLM::load(const LLMOptions& options) {
  auto impl = Impl::load(options);
  if (!impl) return to_api(impl.error());
  return LLM(*std::move(impl));
}

Result<std::vector<RequestOutput>> LLM::generate(const Prompts& prompts,
                                                 const SamplingParams& params) const {
  return to_api(impl_->generate(prompts, std::vector(prompts.size(), params)));
}

Result<std::vector<RequestOutput>> LLM::generate(const Prompts& prompts,
                                                 std::span<const SamplingParams> params) const {
  return to_api(impl_->generate(prompts, params));
}

Result<RequestOutput> LLM::generate(const Prompt& prompt, const SamplingParams& params) const {
  auto handle = impl_->generate_async(prompt, params, nullptr);
  if (!handle) return to_api(handle.error());
  return handle->result();
}

Result<RequestHandle> LLM::generate_async(const Prompt& prompt, const SamplingParams& params,
                                          OutputCallback on_output) const {
  return to_api(impl_->generate_async(prompt, params, std::move(on_output)));
}

Result<std::vector<RequestHandle>> LLM::generate_async(
    const Prompts& prompts, std::span<const SamplingParams> params) const {
  return to_api(impl_->start_all(prompts, params));
}

Result<RequestOutput> LLM::chat(std::string_view messages, const SamplingParams& params) const {
  auto handle = impl_->chat(messages, params, nullptr);
  if (!handle) return to_api(handle.error());
  return handle->result();
}

Result<RequestHandle> LLM::chat_async(std::string_view messages, const SamplingParams& params,
                                      OutputCallback on_output) const {
  return to_api(impl_->chat(messages, params, std::move(on_output)));
}

Result<std::vector<int32_t>> LLM::apply_chat_template(std::string_view messages,
                                                      const std::string& thinking) const {
  return to_api(impl_->encode_chat(messages, thinking));
}

Result<std::vector<int32_t>> LLM::encode(std::string_view text, bool add_special_tokens) const {
  return to_api(impl_->encode(text, add_special_tokens));
}

std::string LLM::decode(const std::vector<int32_t>& token_ids, bool skip_special_tokens) const {
  return impl_->tokenizer().decode(token_ids, skip_special_tokens);
}

Stats LLM::get_stats() const {
  const EngineStats engine = impl_->engine().stats();
  Stats stats;
  stats.num_requests_running = engine.num_running;
  stats.num_requests_waiting = engine.num_waiting;
  stats.num_steps = engine.num_steps;
  stats.prompt_tokens_total = engine.num_prompt_tokens;
  stats.generation_tokens_total = engine.num_generated_tokens;
  stats.prefix_cache_hits_total = engine.num_cached_tokens;
  stats.num_preemptions_total = engine.num_preemptions;
  stats.spec_decode_num_drafts_total = engine.num_windows;
  stats.spec_decode_num_draft_tokens_total = engine.num_draft_tokens;
  stats.spec_decode_num_accepted_tokens_per_pos_total = engine.accepted_at;
  for (const int64_t count : engine.accepted_at) {
    stats.spec_decode_num_accepted_tokens_total += count;
  }
  stats.acceptance_length = engine.acceptance_length();
  stats.num_kv_blocks = engine.num_blocks;
  stats.num_cached_kv_blocks = engine.num_cached_blocks;
  stats.kv_cache_usage_perc = engine.num_blocks == 0 ? 0
                                                     : static_cast<double>(engine.num_used_blocks) /
                                                           static_cast<double>(engine.num_blocks);
  return stats;
}

int64_t LLM::max_seq_len() const { return impl_->engine().max_seq_len(); }
int64_t LLM::vocab_size() const { return impl_->model().config.vocab_size; }
const std::string& LLM::model() const { return impl_->directory(); }
void LLM::shutdown() { impl_->engine().shutdown(); }

const char* version() { return NIBBLE_VERSION; }

}  // namespace nibble::api
