#include "nibble/model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <numeric>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/log.h"
#include "nibble/base/progress.h"
#include "nibble/base/text.h"
#include "nibble/base/thread_pool.h"
#include "nibble/checkpoint/finite_values.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/kernels/weight_placer.h"
#include "nibble/model/linear_format.h"
#include "nibble/model/rope.h"
#include "nibble/model/weight_cache.h"
#include "nibble/numeric/bf16.h"

namespace nibble {
namespace {

// Collects what a model needs as jobs, then runs them on all threads. The targets must not move
// between the two.
class Loader {
 public:
  Loader(const CheckpointSource& source, const ModelConfig& config, const WeightsOptions& options,
         Kernels& kernels, Weights& weights)
      : source_(source),
        config_(config),
        options_(options),
        kernels_(kernels),
        placer_(dynamic_cast<WeightPlacer*>(&kernels)),
        weights_(weights) {}

  void linear(std::string module, int64_t rows, int64_t cols, LinearWeight* out) {
    linear_rows(std::move(module), rows, cols, Part{}, out);
  }
  // This rank's rows (out_features) or columns (in_features) of a matrix [rows, cols].
  void linear_rows(std::string module, int64_t rows, int64_t cols, Part part, LinearWeight* out) {
    const LinearSlice slice{part.begin(rows), part.count(rows), 0, cols};
    jobs_.push_back({std::move(module), rows, cols, slice, out});
  }
  void linear_cols(std::string module, int64_t rows, int64_t cols, Part part, LinearWeight* out) {
    const LinearSlice slice{0, rows, part.begin(cols), part.count(cols)};
    jobs_.push_back({std::move(module), rows, cols, slice, out});
  }
  void mla_up(std::string module, int64_t rows, int64_t cols, Part part, MlaUpWeight* out) {
    const LinearSlice slice{part.begin(rows), part.count(rows), 0, cols};
    jobs_.push_back({std::move(module), rows, cols, slice, nullptr, out});
  }
  // A float vector stored as BF16 or F32 under its full name.
  void vector(std::string name, int64_t size, const float** out) {
    jobs_.push_back({std::move(name), size, 1, {}, nullptr, nullptr, out});
  }
  // embed_tokens, this rank's rows.
  void embedding() {
    jobs_.push_back({"model.embed_tokens.weight", config_.vocab_size, config_.hidden_size});
  }

  void mlp(const std::string& module, int64_t intermediate, Part part, MlpWeight* out) {
    linear_rows(module + ".gate_proj", intermediate, config_.hidden_size, part, &out->gate_proj);
    linear_rows(module + ".up_proj", intermediate, config_.hidden_size, part, &out->up_proj);
    linear_cols(module + ".down_proj", config_.hidden_size, intermediate, part, &out->down_proj);
  }
  void layer(int index, bool is_moe, LayerWeights* out);
  Status rope();
  // Brings a layer's ExpertSlots to the device.
  Status slots(MoeWeights* moe);
  // Loads everything that was asked for: from the weight cache where there is one.
  Status run();

 private:
  struct Job {
    std::string name;  // a module's path, or a vector's full name
    int64_t rows;
    int64_t cols;
    LinearSlice slice = {};  // of linear and mla_up
    LinearWeight* linear = nullptr;
    MlaUpWeight* mla_up = nullptr;
    const float** vector = nullptr;  // none of the three: embed_tokens
  };
  using JobTask = std::function<Status(const Job&)>;

  // Runs the task on every job, the largest first so that no thread is left with one at the end.
  Status run_jobs(const JobTask& task);
  // Reads, packs and places a job's weight; then keeps it in `cache` unless that is null.
  Status pack_job(const Job& job, WeightCacheWriter* cache);
  Result<CachedWeight> load_linear(const Job& job);
  Result<CachedWeight> load_vector(const Job& job);
  Result<CachedWeight> load_embedding(const Job& job);
  Status map_cache(const std::filesystem::path& path, std::string_view key);
  Status take_cached(const Job& job, const CachedWeight& weight);
  std::string cache_key() const;
  Result<void*> allocate(size_t bytes);

  const CheckpointSource& source_;
  const ModelConfig& config_;
  const WeightsOptions& options_;
  Kernels& kernels_;
  WeightPlacer* placer_;  // null: the backend has no use for one
  Weights& weights_;
  std::vector<Job> jobs_;
  std::mutex mutex_;  // guards weights_.buffers and device_bytes
};

void Loader::layer(int index, bool is_moe, LayerWeights* out) {
  const std::string prefix = fmt::format("model.layers.{}", index);
  const std::string attn = prefix + ".self_attn";
  const int64_t hidden = config_.hidden_size;
  const int64_t heads = config_.num_attention_heads;
  const Part part = options_.shard.attention();
  AttentionWeights& w = out->self_attn;
  vector(prefix + ".input_layernorm.weight", hidden, &out->input_layernorm);
  linear(attn + ".q_a_proj", config_.q_lora_rank, hidden, &w.q_a_proj);
  vector(attn + ".q_a_layernorm.weight", config_.q_lora_rank, &w.q_a_layernorm);
  linear_rows(attn + ".q_b_proj", heads * config_.qk_head_dim(), config_.q_lora_rank, part,
              &w.q_b_proj);
  linear(attn + ".kv_a_proj_with_mqa", config_.kv_lora_rank + config_.qk_rope_head_dim, hidden,
         &w.kv_a_proj_with_mqa);
  vector(attn + ".kv_a_layernorm.weight", config_.kv_lora_rank, &w.kv_a_layernorm);
  mla_up(attn + ".kv_b_proj", heads * (config_.qk_nope_head_dim + config_.v_head_dim),
         config_.kv_lora_rank, part, &w.kv_b_proj);
  linear_cols(attn + ".o_proj", hidden, heads * config_.v_head_dim, part, &w.o_proj);
  vector(prefix + ".post_attention_layernorm.weight", hidden, &out->post_attention_layernorm);

  const std::string mlp_module = prefix + ".mlp";
  if (!is_moe) {
    mlp(mlp_module, config_.intermediate_size, part, &out->mlp.emplace());
    return;
  }
  MoeWeights& moe = out->moe.emplace();
  moe.layer = index;
  linear(mlp_module + ".gate", config_.n_routed_experts, hidden, &moe.gate);
  vector(mlp_module + ".gate.e_score_correction_bias", config_.n_routed_experts,
         &moe.e_score_correction_bias);
  const RouterShape& router = weights_.router_shape;
  const int experts = options_.load_experts ? router.local_experts() : 0;
  moe.experts.resize(static_cast<size_t>(experts));
  std::vector<int32_t> slots;
  if (options_.expert_placement != nullptr) {
    slots = options_.expert_placement->slots_of(index);
  }
  for (int e = 0; e < experts; ++e) {
    const int slot = router.first_local_expert + e;
    const int expert = slots.empty() ? slot : slots[static_cast<size_t>(slot)];
    mlp(fmt::format("{}.experts.{}", mlp_module, expert), config_.moe_intermediate_size,
        options_.shard.expert_slice(), &moe.experts[static_cast<size_t>(e)]);
  }
  if (config_.n_shared_experts > 0) {
    mlp(mlp_module + ".shared_experts", config_.n_shared_experts * config_.moe_intermediate_size,
        part, &moe.shared_experts.emplace());
  }
}

Result<void*> Loader::allocate(size_t bytes) {
  Buffer buffer = NIBBLE_TRY(kernels_.device().allocate_for(MemoryUse::kWeights, bytes));
  void* data = buffer.data();
  const std::lock_guard lock(mutex_);
  weights_.buffers.push_back(std::move(buffer));
  weights_.device_bytes += bytes;
  return data;
}

Result<CachedWeight> Loader::load_linear(const Job& job) {
  const LinearSliceTensors slice =
      NIBBLE_TRY(read_linear_slice(source_, job.name, job.rows, job.cols, job.slice));
  const LinearTensors& tensors = slice.tensors;
  const HostLinear host = host_linear(tensors, tensors.input_scale.value_or(1.0f));
  CachedWeight result;
  if (job.mla_up != nullptr) {
    const size_t bytes = kernels_.packed_mla_up_bytes(host.format, weights_.mla_shape);
    void* memory = NIBBLE_TRY(allocate(bytes));
    *job.mla_up = NIBBLE_TRY(kernels_.pack_mla_up(host, weights_.mla_shape, memory));
    result.bytes = {static_cast<const std::byte*>(memory), bytes};
    result.linears = {job.mla_up->kv_b_proj, job.mla_up->kv_b_k_trans};
    result.num_linears = 2;
  } else {
    const bool quantized =
        tensors.format == WeightFormat::kNvfp4 && tensors.input_scale.has_value();
    const size_t bytes = kernels_.packed_bytes(host.format, host.rows, host.cols);
    void* memory = NIBBLE_TRY(allocate(bytes));
    if (placer_ != nullptr) placer_->place_weight(memory, host.format, host.rows, host.cols);
    *job.linear = NIBBLE_TRY(kernels_.pack(
        host, quantized ? options_.nvfp4_activation : ActivationFormat::kUnquantized, memory));
    result.bytes = {static_cast<const std::byte*>(memory), bytes};
    result.linears = {*job.linear};
    result.num_linears = 1;
  }
  release_linear(source_, job.name);
  return result;
}

Result<CachedWeight> Loader::load_vector(const Job& job) {
  const TensorView view = NIBBLE_TRY(source_.read(job.name));
  if (view.shape != Shape{job.rows}) {
    return corrupt(
        fmt::format("{} has shape {}, expected [{}]", job.name, view.shape.to_string(), job.rows));
  }
  NIBBLE_TRY(check_finite(*source_.find(job.name), view));
  std::vector<float> values(static_cast<size_t>(job.rows));
  for (size_t i = 0; i < values.size(); ++i) {
    if (view.dtype == DType::kF32) {
      values[i] = view.data<float>()[i];
    } else if (view.dtype == DType::kBf16) {
      values[i] = bf16_to_float(view.data<uint16_t>()[i]);
    } else {
      return unsupported(
          fmt::format("{} is {}, expected BF16 or F32", job.name, dtype_name(view.dtype)));
    }
  }
  const size_t bytes = values.size() * sizeof(float);
  void* memory = NIBBLE_TRY(allocate(bytes));
  NIBBLE_TRY(kernels_.device().copy_to_device(memory, std::as_bytes(std::span(values))));
  *job.vector = static_cast<const float*>(memory);
  CachedWeight result;
  result.bytes = {static_cast<const std::byte*>(memory), bytes};
  return result;
}

Result<CachedWeight> Loader::load_embedding(const Job& job) {
  const TensorView view = NIBBLE_TRY(source_.read(job.name));
  const Shape expected{job.rows, job.cols};
  if (view.shape != expected) {
    return corrupt(fmt::format("{} has shape {}, expected {}", job.name, view.shape.to_string(),
                               expected.to_string()));
  }
  if (view.dtype != DType::kBf16 && view.dtype != DType::kF32) {
    return unsupported(
        fmt::format("{} is {}, expected BF16 or F32", job.name, dtype_name(view.dtype)));
  }
  const Part part = options_.shard.attention();
  const int64_t row_bytes = job.cols * dtype_size(view.dtype);
  const auto bytes = static_cast<size_t>(part.count(job.rows) * row_bytes);
  const auto rows =
      view.bytes.subspan(static_cast<size_t>(part.begin(job.rows) * row_bytes), bytes);
  // Never written: MatrixView has one kind of pointer.
  void* memory = const_cast<std::byte*>(rows.data());
  if (options_.embedding_stays_in_source && kernels_.device().is_host()) {
    source_.prefetch(job.name);
    const std::lock_guard lock(mutex_);
    weights_.mapped_bytes += bytes;
    weights_.device_bytes += bytes;
  } else {
    memory = NIBBLE_TRY(allocate(bytes));
    NIBBLE_TRY(kernels_.device().copy_to_device(memory, rows));
  }
  weights_.embed_tokens = MatrixView{memory, view.dtype, part.count(job.rows), job.cols, job.cols};
  CachedWeight result;
  result.bytes = {static_cast<const std::byte*>(memory), bytes};
  return result;
}

Status Loader::pack_job(const Job& job, WeightCacheWriter* cache) {
  try {
    const bool linear = job.linear != nullptr || job.mla_up != nullptr;
    const CachedWeight weight = NIBBLE_TRY(linear                  ? load_linear(job)
                                           : job.vector != nullptr ? load_vector(job)
                                                                   : load_embedding(job));
    if (cache != nullptr) cache->add(job.name, weight);
    return {};
  } catch (const std::bad_alloc&) {  // a pool's task must not throw
    return out_of_memory(fmt::format("no memory left to load {}", job.name));
  }
}

Status Loader::rope() {
  const int64_t positions =
      options_.max_positions > 0 ? options_.max_positions : config_.max_position_embeddings;
  const RopeValues values = rope_values(config_, positions);
  void* cos = NIBBLE_TRY(allocate(values.cos.size() * sizeof(float)));
  void* sin = NIBBLE_TRY(allocate(values.sin.size() * sizeof(float)));
  NIBBLE_TRY(kernels_.device().copy_to_device(cos, std::as_bytes(std::span(values.cos))));
  NIBBLE_TRY(kernels_.device().copy_to_device(sin, std::as_bytes(std::span(values.sin))));
  weights_.rope = RopeTable{static_cast<const float*>(cos), static_cast<const float*>(sin),
                            positions, config_.qk_rope_head_dim / 2};
  return {};
}

Status Loader::slots(MoeWeights* moe) {
  const ExpertSlots index = options_.expert_placement->index_of(moe->layer);
  const auto there = [&](std::span<const int32_t> values) -> Result<const int32_t*> {
    void* const memory = NIBBLE_TRY(allocate(values.size_bytes()));
    NIBBLE_TRY(kernels_.device().copy_to_device(memory, std::as_bytes(values)));
    return static_cast<const int32_t*>(memory);
  };
  moe->slots.begin = NIBBLE_TRY(there(index.begin));
  moe->slots.slots = NIBBLE_TRY(there(index.slots));
  moe->num_slots = static_cast<int>(index.slots.size());
  return {};
}

Status Loader::run_jobs(const JobTask& task) {
  Progress progress("loading", jobs_.size(), Progress::Unit::kItems, options_.show_progress);
  ThreadPool pool(std::max(1, options_.threads));
  std::vector<size_t> order(jobs_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return jobs_[a].rows * jobs_[a].cols > jobs_[b].rows * jobs_[b].cols;
  });
  std::vector<Status> results(jobs_.size());
  std::atomic<bool> failed{false};
  double total = 0;
  for (const Job& job : jobs_) total += static_cast<double>(job.rows * job.cols);
  double done = 0;
  std::mutex done_mutex;  // guards done, and orders the calls
  pool.parallel_for(static_cast<int64_t>(jobs_.size()), 1,
                    [&](int64_t begin, int64_t end, int /*thread_id*/) {
                      for (auto k = static_cast<size_t>(begin); k < static_cast<size_t>(end); ++k) {
                        if (failed.load(std::memory_order_relaxed)) return;
                        const size_t i = order[k];
                        results[i] = interrupted() ? check_interrupt() : task(jobs_[i]);
                        if (!results[i]) failed.store(true, std::memory_order_relaxed);
                        progress.add(1);
                        if (!options_.on_progress) continue;
                        const std::lock_guard lock(done_mutex);
                        done += static_cast<double>(jobs_[i].rows * jobs_[i].cols);
                        options_.on_progress(done / total);
                      }
                    });
  for (Status& result : results) {
    if (!result) return std::move(result);
  }
  return {};
}

// What packed weights depend on.
std::string Loader::cache_key() const {
  const Shard& shard = options_.shard;
  std::string key =
      fmt::format("{}\nactivation {} shard {}/{}/{}/{}\n{}", kernels_.packed_layout(),
                  static_cast<int>(options_.nvfp4_activation), shard.rank, shard.tp_size,
                  shard.ep_size, shard.enable_attention_dp, options_.checkpoint_identity);
  for (const Job& job : jobs_) key += job.name + "\n";
  return key;
}

Status Loader::take_cached(const Job& job, const CachedWeight& weight) {
  const int linears = job.mla_up != nullptr ? 2 : job.linear != nullptr ? 1 : 0;
  if (weight.num_linears != linears) {
    return corrupt(fmt::format("the weight cache has {} matrices for {}, expected {}",
                               weight.num_linears, job.name, linears));
  }
  if (job.mla_up != nullptr) {
    *job.mla_up = {weight.linears[0], weight.linears[1]};
  } else if (job.linear != nullptr) {
    *job.linear = weight.linears[0];
  } else if (job.vector != nullptr) {
    *job.vector = reinterpret_cast<const float*>(weight.bytes.data());
  } else {
    const int64_t rows = options_.shard.attention().count(job.rows);
    const auto elements = static_cast<size_t>(rows * job.cols);
    const DType dtype = weight.bytes.size() == 4 * elements ? DType::kF32 : DType::kBf16;
    // Never written: MatrixView has one kind of pointer.
    auto* const data = const_cast<std::byte*>(weight.bytes.data());
    weights_.embed_tokens = MatrixView{data, dtype, rows, job.cols, job.cols};
  }
  const std::lock_guard lock(mutex_);
  weights_.mapped_bytes += weight.bytes.size();
  weights_.device_bytes += weight.bytes.size();
  return {};
}

Status Loader::map_cache(const std::filesystem::path& path, std::string_view key) {
  WeightCacheReader reader = NIBBLE_TRY(WeightCacheReader::open(path, key));
  const auto take = [&](const Job& job) -> Status {
    const CachedWeight weight = NIBBLE_TRY(reader.read(job.name));
    return take_cached(job, weight);
  };
  NIBBLE_TRY(run_jobs(take));
  weights_.cache_file = std::move(reader).take_file();
  return {};
}

Status Loader::run() {
  const auto pack_all = [&](WeightCacheWriter* cache) {
    if (placer_ != nullptr) {
      placer_->expect_weights(std::count_if(jobs_.begin(), jobs_.end(), [](const Job& job) {
        return job.linear != nullptr || job.mla_up != nullptr;
      }));
    }
    return run_jobs([&, cache](const Job& job) { return pack_job(job, cache); });
  };
  if (options_.weight_cache.empty()) return pack_all(nullptr);
  if (!kernels_.device().is_host()) {
    return unsupported(fmt::format(
        "a weight cache is for the cpu backend, and this is {}; leave --weight-cache out",
        kernels_.name()));
  }
  const std::string key = cache_key();
  const std::filesystem::path path = weight_cache_path(options_.weight_cache, key);
  const uint64_t device_bytes = weights_.device_bytes;
  Status mapped = map_cache(path, key);
  if (mapped || mapped.error().code == ErrorCode::kCancelled) return mapped;
  weights_.device_bytes = device_bytes;
  weights_.mapped_bytes = 0;
  if (mapped.error().code != ErrorCode::kNotFound) {
    log_warning(fmt::format("{}; the weights are packed again and the cache written anew",
                            mapped.error().message));
  }
  std::error_code error;
  std::filesystem::create_directories(options_.weight_cache, error);
  auto cache = WeightCacheWriter::create(path, key);
  if (!cache) {
    log_warning(fmt::format("no weight cache is written: {}", cache.error().message));
    return pack_all(nullptr);
  }
  NIBBLE_TRY(pack_all(&*cache));
  const Status written = cache->commit();
  if (!written) log_warning(fmt::format("no weight cache is written: {}", written.error().message));
  return {};
}

// All experts of a layer quantize their activations once, so they share the largest input_scale;
// `scales` is the largest of gate_proj and up_proj, and that of down_proj.
using InputScales = std::array<float, 2>;

InputScales largest_input_scales(const MoeWeights& moe) {
  InputScales scales{};
  for (const MlpWeight& expert : moe.experts) {
    scales[0] = std::max({scales[0], expert.gate_proj.input_scale, expert.up_proj.input_scale});
    scales[1] = std::max(scales[1], expert.down_proj.input_scale);
  }
  return scales;
}

// With a communicator, the largest among the experts of all ranks.
Status share_input_scales(std::span<MoeWeights* const> layers, Communicator* comm) {
  std::vector<InputScales> scales;
  for (const MoeWeights* moe : layers) scales.push_back(largest_input_scales(*moe));
  if (comm != nullptr && !layers.empty()) {
    const auto ranks = static_cast<size_t>(comm->size());
    std::vector<InputScales> of_all(ranks * scales.size());
    const std::vector<size_t> bytes(ranks, scales.size() * sizeof(InputScales));
    comm->all_gather(scales.data(), bytes, of_all.data());
    NIBBLE_TRY(comm->status());
    for (size_t i = 0; i < of_all.size(); ++i) {
      InputScales& mine = scales[i % scales.size()];
      for (size_t k = 0; k < mine.size(); ++k) mine[k] = std::max(mine[k], of_all[i][k]);
    }
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    for (MlpWeight& expert : layers[i]->experts) {
      expert.gate_proj.input_scale = scales[i][0];
      expert.up_proj.input_scale = scales[i][0];
      expert.down_proj.input_scale = scales[i][1];
    }
  }
  return {};
}

}  // namespace

namespace {

Status check_placement(const ExpertPlacement& placement, const ModelConfig& config,
                       const Shard& shard) {
  if (shard.ep_size < 2) {
    return invalid_argument(
        "experts are placed on groups of ranks: it takes an ep_size of 2 or more");
  }
  if (placement.num_experts != config.n_routed_experts || placement.num_groups != shard.ep_size) {
    return invalid_argument(fmt::format(
        "the expert placement is for {} experts in {} groups; the model has {} and ep_size is {}",
        placement.num_experts, placement.num_groups, config.n_routed_experts, shard.ep_size));
  }
  return {};
}

Result<Weights> load_weights(const CheckpointSource& source, const ModelConfig& config,
                             const WeightsOptions& options, Kernels& kernels) {
  NIBBLE_TRY(check_shard(source, config, options.shard));
  Weights weights;
  weights.shard = options.shard;
  weights.comm = options.comm;
  const Part part = options.shard.attention();
  weights.mla_shape = MlaShape{part.count(config.num_attention_heads),
                               config.kv_lora_rank,
                               config.qk_nope_head_dim,
                               config.qk_rope_head_dim,
                               config.v_head_dim,
                               softmax_scale(config)};
  weights.router_shape =
      RouterShape{config.n_routed_experts, config.num_experts_per_tok,
                  config.n_group,          config.topk_group,
                  config.norm_topk_prob,   static_cast<float>(config.routed_scaling_factor)};
  const Part group = options.shard.expert_group();
  int64_t num_slots = config.n_routed_experts;
  if (options.expert_placement != nullptr) {
    NIBBLE_TRY(check_placement(*options.expert_placement, config, options.shard));
    num_slots = options.expert_placement->num_slots();
  }
  weights.router_shape.first_local_expert = static_cast<int>(group.begin(num_slots));
  weights.router_shape.num_local_experts = static_cast<int>(group.count(num_slots));

  Loader loader(source, config, options, kernels, weights);
  const auto wanted = [&](int layer) {
    return !options.only_layer || *options.only_layer == layer;
  };
  if (wanted(config.num_hidden_layers)) loader.embedding();
  NIBBLE_TRY(loader.rope());
  weights.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    if (!wanted(i)) continue;
    loader.layer(i, config.is_moe_layer(i), &weights.layers[static_cast<size_t>(i)]);
  }
  loader.vector("model.norm.weight", config.hidden_size, &weights.norm);
  if (!options.only_layer) {
    loader.linear_rows(config.tie_word_embeddings ? "model.embed_tokens" : "lm_head",
                       config.vocab_size, config.hidden_size, part, &weights.lm_head);
  }
  if (options.load_mtp && config.num_nextn_predict_layers > 0 && wanted(config.num_hidden_layers)) {
    const int index = config.num_hidden_layers;
    const std::string prefix = fmt::format("model.layers.{}", index);
    MtpWeights& mtp = weights.mtp.emplace();
    loader.vector(prefix + ".enorm.weight", config.hidden_size, &mtp.enorm);
    loader.vector(prefix + ".hnorm.weight", config.hidden_size, &mtp.hnorm);
    loader.linear(prefix + ".eh_proj", config.hidden_size, 2 * config.hidden_size, &mtp.eh_proj);
    loader.layer(index, config.is_moe_layer(index), &mtp.layer);
    loader.vector(prefix + ".shared_head.norm.weight", config.hidden_size, &mtp.shared_head_norm);
  }
  if (options.expert_placement != nullptr) {
    for (LayerWeights& layer : weights.layers) {
      if (layer.moe) NIBBLE_TRY(loader.slots(&*layer.moe));
    }
    if (weights.mtp && weights.mtp->layer.moe) {
      NIBBLE_TRY(loader.slots(&*weights.mtp->layer.moe));
    }
  }
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_TRY(loader.run());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log_info(fmt::format("weights: {} {} in {:.2f} s, {:.2f} GB/s",
                       format_bytes(weights.device_bytes), weights.cache_file ? "mapped" : "packed",
                       seconds.count(),
                       static_cast<double>(weights.device_bytes) / 1e9 / seconds.count()));

  std::vector<MoeWeights*> moe_layers;
  for (LayerWeights& layer : weights.layers) {
    if (layer.moe) moe_layers.push_back(&*layer.moe);
  }
  if (weights.mtp && weights.mtp->layer.moe) moe_layers.push_back(&*weights.mtp->layer.moe);
  NIBBLE_TRY(share_input_scales(moe_layers, options.comm));
  return weights;
}

}  // namespace

Result<Weights> Weights::load(const CheckpointSource& source, const ModelConfig& config,
                              const WeightsOptions& options, Kernels& kernels) {
  NIBBLE_CHECK((options.comm == nullptr ? 1 : options.comm->size()) == options.shard.tp_size);
  auto weights = load_weights(source, config, options, kernels);
  if (!weights && options.comm != nullptr) options.comm->abort(weights.error().message);
  return weights;
}

}  // namespace nibble
