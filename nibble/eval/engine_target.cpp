#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "nibble/base/mapped_file.h"
#include "nibble/engine/rank_group.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/target.h"
#include "nibble/tokenizer/chat_template.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class EngineTarget : public CompletionTarget {
 public:
  EngineTarget(std::unique_ptr<RankGroup> ranks, std::unique_ptr<LoadedModel> model,
               ChatTemplate chat_template, const EngineTargetOptions& options)
      : ranks_(std::move(ranks)),
        model_(std::move(model)),
        template_(std::move(chat_template)),
        options_(options) {}

  Status start() {
    engine_ = NIBBLE_TRY(Engine::create(*model_, options_.engine));
    const std::string config = NIBBLE_TRY(read_text_file(model_->directory / "config.json"));
    std::string quantization;
    if (auto text = read_text_file(model_->directory / "hf_quant_config.json"))
      quantization = *text;
    ChatRequest probe;
    probe.messages.push_back(user_message("x"));
    const std::string rendered = NIBBLE_TRY(template_.render(probe));
    is_opened_ = trim(rendered).ends_with("<think>");
    nlohmann::ordered_json identity = {
        {"target", "engine"},
        {"model", model_->directory.string()},
        {"config_sha256", sha256(config)},
        {"quantization_sha256", sha256(quantization)},
        {"prompt_sha256", sha256(rendered)},
        {"backend", std::string(model_->kernels->name())},
        {"w4a4", options_.model.nvfp4_activation == ActivationFormat::kNvfp4},
        {"num_drafts", options_.engine.num_drafts},
        {"relaxed_thinking", options_.engine.relaxed_thinking.enabled},
        {"relaxed_topk", options_.engine.relaxed_thinking.topk},
        {"relaxed_delta", options_.engine.relaxed_thinking.delta}};
    // What products see of activations: in tiles BF16, elsewhere 16-bit whole numbers, unless
    // asked.
    const bool in_tiles = model_->kernels->name().find("amx") != std::string_view::npos;
    if (in_tiles) {
      identity["cpu_activations"] = options_.model.cpu_exact_activations ? "two bf16" : "bf16";
    } else if (options_.model.cpu_int8_activations) {
      identity["cpu_int8_activations"] = true;
    }
    // Sums over ranks round differently. One rank is as it was before there were more.
    if (ranks_->shard().tp_size > 1) {
      const Shard& shard = ranks_->shard();
      identity["tp_size"] = shard.tp_size;
      identity["ep_size"] = shard.ep_size;
      identity["enable_attention_dp"] = shard.enable_attention_dp;
      const std::string placement = options_.model.expert_placement.string();
      if (!placement.empty()) identity["expert_placement"] = placement;
      if (shard.all2all_backend != All2AllBackend::kAuto) {
        identity["all2all_backend"] = all2all_backend_name(shard.all2all_backend);
      }
    }
    identity_ = identity.dump();
    return {};
  }

  Status submit(uint64_t key, const std::string& prompt, const Sampling& sampling,
                int64_t seed) override {
    Pending pending;
    pending.key = key;
    pending.start = Clock::now();
    pending.raw_prompt = sampling.raw_prompt;
    ChatRequest chat;
    chat.messages.push_back(user_message(prompt));
    auto ids = sampling.raw_prompt ? raw_ids(prompt) : template_.encode(chat, model_->tokenizer);
    if (!ids) {
      fail(key, ids.error());
      return {};
    }
    Request request;
    request.prompt_token_ids = *std::move(ids);
    request.params.temperature = sampling.temperature;
    request.params.top_p = sampling.top_p;
    // What is left of the context is the most that any answer can have.
    const int64_t room =
        engine_->max_seq_len() - static_cast<int64_t>(request.prompt_token_ids.size());
    request.params.max_tokens = std::max<int64_t>(1, std::min(sampling.max_tokens, room));
    request.params.seed = seed;
    request.params.stop = sampling.stop;
    const auto id = engine_->add(std::move(request));
    if (!id) {
      fail(key, id.error());
      return {};
    }
    pending_.emplace(*id, std::move(pending));
    return {};
  }

  Result<std::vector<std::pair<uint64_t, Completion>>> wait() override {
    auto finished = std::move(failed_);
    failed_.clear();
    if (!engine_->has_work()) return finished;
    for (RequestUpdate& update : engine_->step()) {
      const auto found = pending_.find(update.id);
      if (found == pending_.end()) continue;
      Pending& pending = found->second;
      if (pending.completion.completion_tokens == 0 && !update.token_ids.empty()) {
        pending.completion.ttft_ms = ms_since(pending.start);
      }
      pending.text += update.text;
      pending.completion.completion_tokens += static_cast<int64_t>(update.token_ids.size());
      num_tokens_ += static_cast<int64_t>(update.token_ids.size());
      if (!update.finished) continue;
      Completion completion = std::move(pending.completion);
      completion.total_ms = ms_since(pending.start);
      completion.finish_reason = std::string(finish_reason_name(update.finish_reason));
      completion.prompt_tokens = update.num_prompt_tokens;
      if (update.error) completion.error = update.error->message;
      split_reply(std::move(pending.text), is_opened_ && !pending.raw_prompt, &completion);
      finished.emplace_back(pending.key, std::move(completion));
      pending_.erase(found);
    }
    return finished;
  }

  int64_t num_tokens() const override { return num_tokens_; }
  std::string identity() const override { return identity_; }

 private:
  struct Pending {
    uint64_t key = 0;
    Clock::time_point start;
    bool raw_prompt = false;
    std::string text;
    Completion completion;
  };

  static ChatMessage user_message(const std::string& text) {
    ChatMessage message;
    message.role = "user";
    message.content = text;
    return message;
  }

  // A text that a base model goes on with: behind the beginning-of-sentence token.
  Result<std::vector<int32_t>> raw_ids(const std::string& prompt) const {
    auto ids = NIBBLE_TRY(model_->tokenizer.encode(prompt));
    const auto bos = model_->tokenizer.bos_id();
    if (bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
    return ids;
  }

  void fail(uint64_t key, const Error& error) {
    Completion completion;
    completion.finish_reason = "error";
    completion.error = error.message;
    failed_.emplace_back(key, std::move(completion));
  }

  std::unique_ptr<RankGroup> ranks_;  // goes last
  std::unique_ptr<LoadedModel> model_;
  ChatTemplate template_;
  EngineTargetOptions options_;
  std::unique_ptr<Engine> engine_;  // behind the model it runs on: it goes first
  std::unordered_map<uint64_t, Pending> pending_;
  std::vector<std::pair<uint64_t, Completion>> failed_;
  std::string identity_;
  bool is_opened_ = false;
  int64_t num_tokens_ = 0;
};

}  // namespace

void split_reply(std::string reply, bool opened, Completion* completion) {
  const auto part = answer_part(reply, opened);
  if (!part) {
    completion->is_unclosed = true;
    completion->reasoning = std::move(reply);
    return;
  }
  completion->text = std::string(*part);
  const size_t before = reply.size() - part->size();
  constexpr size_t kClose = 8;  // "</think>"
  if (before >= kClose) completion->reasoning = reply.substr(0, before - kClose);
}

Result<std::unique_ptr<CompletionTarget>> make_engine_target(const std::filesystem::path& directory,
                                                             const EngineTargetOptions& options,
                                                             std::unique_ptr<RankGroup> ranks) {
  ChatTemplate chat_template = NIBBLE_TRY(ChatTemplate::load(directory, options.chat_template));
  auto model = NIBBLE_TRY(ranks->load_model());
  auto target = std::make_unique<EngineTarget>(std::move(ranks), std::move(model),
                                               std::move(chat_template), options);
  NIBBLE_TRY(target->start());
  return target;
}

}  // namespace nibble
