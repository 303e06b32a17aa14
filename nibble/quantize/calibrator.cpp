#include "nibble/quantize/calibrator.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <sstream>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/progress.h"
#include "nibble/kernels/registry.h"
#include "nibble/model/forward.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/activation_copies.h"
#include "nibble/quantize/input_rows.h"
#include "nibble/quantize/written_layer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlockSize = 32;  // tokens of a cache block

int64_t blocks_of(int64_t tokens) { return (tokens + kBlockSize - 1) / kBlockSize; }

float swiglu(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

}  // namespace

struct Calibrator::State {
  const CheckpointSource& source;
  const ModelConfig& config;
  CalibratorOptions options;
  std::unique_ptr<Kernels> kernels;
  std::optional<Workspace> workspace;
  Buffer cache;
  std::vector<int32_t> block_ids;
  std::vector<int64_t> first_token;  // of each sample, and the number of all
  std::map<std::string, float, std::less<>> amaxes;

  // Of the layer that was run last, if rows were asked for.
  std::map<std::string, RowFile, std::less<>> files;
  std::map<std::string, ModuleRows, std::less<>> module_rows;
  std::vector<float> scratch_x;
  std::vector<float> scratch_in;
  std::vector<float> scratch_gate;
  std::vector<float> scratch_up;
  DeviceMatrix routed_matrix;
  DeviceMatrix gate_matrix;
  DeviceMatrix up_matrix;
  DeviceMatrix hidden_matrix;

  // With feed_quantized: the shards that hold each finished layer.
  std::map<int, std::vector<fs::path>> written;

  State(const CheckpointSource& from, const ModelConfig& model, const CalibratorOptions& asked)
      : source(from), config(model), options(asked) {}

  fs::path hidden_path(int layer) const {
    return options.folder / fmt::format("hidden-{}.bin", layer);
  }
  fs::path stats_path(int layer) const {
    return options.folder / fmt::format("layer-{}.txt", layer);
  }

  Status embed();
  bool has_hidden(int layer) const;
  Status ensure_hidden(int layer);
  Status run_layer(int layer, bool with_rows);
  Status advance(int layer);
  Status pass(int layer, const CheckpointSource& from, const std::string& title, bool observes,
              bool with_rows, OutputFile* out);
  Status run_batch(int layer, const Weights& weights, size_t first, size_t last,
                   const MappedFile& in, const ActivationObserver& observer, OutputFile* out);
  Status observe(int layer, const Weights& weights, ActivationSite site, const MatrixView& x,
                 bool with_rows);
  Status observe_mlp(const std::string& module, const MlpWeight& mlp, const MatrixView& x,
                     bool with_rows, const std::string& file);
  Status note(const std::string& module, const MatrixView& x);
  Status keep(const std::string& name, const MatrixView& x,
              std::initializer_list<std::string> modules);
  Status save_stats(int layer) const;
  bool load_stats(int layer);
};

// hidden-0: the embedding's rows, straight from the source, as Kernels::embed gives them.
Status Calibrator::State::embed() {
  const auto table = NIBBLE_TRY(source.read("model.embed_tokens.weight"));
  const int64_t hidden = config.hidden_size;
  if (table.shape != Shape{config.vocab_size, hidden}) {
    return corrupt(fmt::format("model.embed_tokens.weight has shape {}", table.shape.to_string()));
  }
  if (table.dtype != DType::kBf16 && table.dtype != DType::kF32) {
    return unsupported(fmt::format("model.embed_tokens.weight is {}, expected BF16 or F32",
                                   dtype_name(table.dtype)));
  }
  OutputFile out = NIBBLE_TRY(OutputFile::create(hidden_path(0)));
  std::vector<float> row(static_cast<size_t>(hidden));
  for (const auto& sample : options.samples) {
    for (const int32_t id : sample) {
      for (int64_t i = 0; i < hidden; ++i) {
        const int64_t at = id * hidden + i;
        row[static_cast<size_t>(i)] = table.dtype == DType::kF32
                                          ? table.data<float>()[at]
                                          : bf16_to_float(table.data<uint16_t>()[at]);
      }
      NIBBLE_TRY(out.write(std::as_bytes(std::span(row))));
    }
  }
  source.release("model.embed_tokens.weight");
  return out.commit();
}

bool Calibrator::State::has_hidden(int layer) const {
  std::error_code error;
  const auto bytes = static_cast<uint64_t>(first_token.back() * config.hidden_size) * sizeof(float);
  return fs::file_size(hidden_path(layer), error) == bytes && !error;
}

Status Calibrator::State::ensure_hidden(int layer) {
  if (has_hidden(layer)) return {};
  if (layer == 0) return embed();
  return options.feed_quantized ? advance(layer - 1) : run_layer(layer - 1, false);
}

Status Calibrator::State::note(const std::string& module, const MatrixView& x) {
  float largest = 0;
  for (int64_t t = 0; t < x.rows; ++t) {
    const auto row_amax = nvfp4_amax({x.row<float>(t), static_cast<size_t>(x.cols)});
    if (!row_amax) {
      return invalid_argument(
          fmt::format("the input of {} is not finite for a token of the calibration data: {}",
                      module, row_amax.error().message));
    }
    largest = std::max(largest, *row_amax);
  }
  float& amax = amaxes[module];
  amax = std::max(amax, largest);
  return {};
}

Status Calibrator::State::keep(const std::string& name, const MatrixView& x,
                               std::initializer_list<std::string> modules) {
  auto it = files.find(name);
  if (it == files.end()) {
    it = files.emplace(name, NIBBLE_TRY(RowFile::create(options.folder / (name + ".rows"), x.cols)))
             .first;
  }
  for (const std::string& module : modules) {
    ModuleRows& rows = module_rows[module];
    rows.file = &it->second;
    rows.all = true;
  }
  for (int64_t t = 0; t < x.rows; ++t) NIBBLE_TRY(it->second.append(x.row<float>(t)));
  return {};
}

// down_proj's input, which the kernels keep to themselves, computed once more.
Status Calibrator::State::observe_mlp(const std::string& module, const MlpWeight& mlp,
                                      const MatrixView& x, bool with_rows,
                                      const std::string& file) {
  const int64_t width = mlp.gate_proj.rows;
  const MatrixView device_gate = NIBBLE_TRY(gate_matrix.shaped(*kernels, x.rows, width));
  const MatrixView device_up = NIBBLE_TRY(up_matrix.shaped(*kernels, x.rows, width));
  kernels->linear(x, mlp.gate_proj, device_gate);
  kernels->linear(x, mlp.up_proj, device_up);
  NIBBLE_TRY(read_activations(*kernels, device_gate, &scratch_gate));
  NIBBLE_TRY(read_activations(*kernels, device_up, &scratch_up));
  std::transform(scratch_gate.begin(), scratch_gate.end(), scratch_up.begin(), scratch_gate.begin(),
                 swiglu);
  const MatrixView gate{scratch_gate.data(), DType::kF32, x.rows, width, width};
  NIBBLE_TRY(note(module, gate));
  if (!with_rows) return {};
  if (file.empty()) return keep(module, gate, {module});
  // Experts share a file.
  const auto it = files.find(file);
  const int64_t first = it == files.end() ? 0 : it->second.rows();
  NIBBLE_TRY(keep(file, gate, {}));
  ModuleRows& rows = module_rows[module];
  rows.file = &files.find(file)->second;
  for (int64_t t = 0; t < x.rows; ++t) rows.rows.push_back(first + t);
  return {};
}

Status Calibrator::State::observe(int layer, const Weights& weights, ActivationSite site,
                                  const MatrixView& device_x, bool with_rows) {
  NIBBLE_TRY(read_activations(*kernels, device_x, &scratch_x));
  const MatrixView x{scratch_x.data(), DType::kF32, device_x.rows, device_x.cols, device_x.cols};
  const std::string attention = fmt::format("model.layers.{}.self_attn", layer);
  const std::string mlp = fmt::format("model.layers.{}.mlp", layer);
  const bool is_mtp = layer == config.num_hidden_layers;
  const LayerWeights& w = is_mtp ? weights.mtp->layer : weights.layers[static_cast<size_t>(layer)];
  switch (site) {
    case ActivationSite::kAttentionInput:
      NIBBLE_TRY(note(attention + ".q_a_proj", x));
      NIBBLE_TRY(note(attention + ".kv_a_proj_with_mqa", x));
      if (!with_rows) return {};
      return keep("attention_input", x,
                  {attention + ".q_a_proj", attention + ".kv_a_proj_with_mqa"});
    case ActivationSite::kQueryLatent:
      NIBBLE_TRY(note(attention + ".q_b_proj", x));
      return with_rows ? keep("query_latent", x, {attention + ".q_b_proj"}) : Status();
    case ActivationSite::kHeads:
      NIBBLE_TRY(note(attention + ".o_proj", x));
      return with_rows ? keep("heads", x, {attention + ".o_proj"}) : Status();
    case ActivationSite::kMlpInput:
      break;
  }
  if (w.mlp) {
    NIBBLE_TRY(note(mlp + ".gate_proj", x));
    NIBBLE_TRY(note(mlp + ".up_proj", x));
    if (with_rows) NIBBLE_TRY(keep("mlp_input", x, {mlp + ".gate_proj", mlp + ".up_proj"}));
    return observe_mlp(mlp + ".down_proj", *w.mlp, device_x, with_rows, "");
  }
  // Every token goes to some expert: the largest input of any expert is that of all tokens.
  const int64_t before = files.contains("mlp_input") ? files.find("mlp_input")->second.rows() : 0;
  NIBBLE_TRY(note(mlp + ".experts.*.gate_proj", x));
  if (with_rows) NIBBLE_TRY(keep("mlp_input", x, {}));
  if (w.moe->shared_experts) {
    const std::string shared = mlp + ".shared_experts";
    NIBBLE_TRY(note(shared + ".gate_proj", x));
    NIBBLE_TRY(note(shared + ".up_proj", x));
    for (const char* name : {".gate_proj", ".up_proj"}) {
      if (!with_rows) continue;
      ModuleRows& rows = module_rows[shared + name];
      rows.file = &files.find("mlp_input")->second;
      rows.all = true;
    }
    NIBBLE_TRY(observe_mlp(shared + ".down_proj", *w.moe->shared_experts, device_x, with_rows, ""));
  }
  std::vector<int32_t> expert_ids(static_cast<size_t>(x.rows * config.num_experts_per_tok));
  NIBBLE_TRY(kernels->device().copy_to_host(std::as_writable_bytes(std::span(expert_ids)),
                                            workspace->expert_ids));
  for (size_t e = 0; e < w.moe->experts.size(); ++e) {
    const std::string expert = fmt::format("{}.experts.{}", mlp, e);
    scratch_in.clear();
    for (int64_t t = 0; t < x.rows; ++t) {
      const int32_t* const ids = expert_ids.data() + t * config.num_experts_per_tok;
      if (std::find(ids, ids + config.num_experts_per_tok, static_cast<int32_t>(e)) ==
          ids + config.num_experts_per_tok) {
        continue;
      }
      scratch_in.insert(scratch_in.end(), x.row<float>(t), x.row<float>(t) + x.cols);
      if (!with_rows) continue;
      for (const char* name : {".gate_proj", ".up_proj"}) {
        ModuleRows& rows = module_rows[expert + name];
        rows.file = &files.find("mlp_input")->second;
        rows.rows.push_back(before + t);
      }
    }
    const int64_t rows = static_cast<int64_t>(scratch_in.size()) / x.cols;
    if (rows == 0) continue;
    const MatrixView routed = NIBBLE_TRY(routed_matrix.shaped(*kernels, rows, x.cols));
    NIBBLE_TRY(write_activations(*kernels, scratch_in.data(), routed));
    NIBBLE_TRY(
        observe_mlp(expert + ".down_proj", w.moe->experts[e], routed, with_rows, "products"));
    float& all = amaxes[mlp + ".experts.*.down_proj"];
    all = std::max(all, amaxes[expert + ".down_proj"]);
    amaxes.erase(expert + ".down_proj");
  }
  return {};
}

// Samples [first, last) as one batch.
Status Calibrator::State::run_batch(int layer, const Weights& weights, size_t first, size_t last,
                                    const MappedFile& in, const ActivationObserver& observer,
                                    OutputFile* out) {
  const bool is_mtp = layer == config.num_hidden_layers;
  const int64_t hidden_size = config.hidden_size;
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> tokens;
  int64_t rows = 0;
  int32_t block = 0;
  for (size_t s = first; s < last; ++s) {
    const auto& sample = options.samples[s];
    // The MTP layer pairs a token's hidden state with the token after it.
    const auto count = static_cast<int64_t>(sample.size()) - (is_mtp ? 1 : 0);
    if (count < 1) continue;
    segments.push_back({rows, count, 0, block_ids.data() + block, MlaForm::kExpanded});
    tokens.insert(tokens.end(), sample.end() - count, sample.end());
    const auto* const states =
        reinterpret_cast<const float*>(in.bytes().data()) + first_token[s] * hidden_size;
    NIBBLE_TRY(write_activations(*kernels, states, workspace->x.slice_rows(rows, count)));
    rows += count;
    block += static_cast<int32_t>(blocks_of(count));
  }
  if (rows == 0) return {};
  const Batch batch{tokens, AttentionBatch{rows, segments}};
  const int64_t entry = config.kv_lora_rank + config.qk_rope_head_dim;
  const KvCacheView view{cache.data(), DType::kF32, static_cast<int64_t>(block_ids.size()),
                         kBlockSize, entry};
  if (is_mtp) {
    const MatrixView hidden = NIBBLE_TRY(hidden_matrix.shaped(*kernels, rows, hidden_size));
    kernels->rms_norm(workspace->x.slice_rows(0, rows), weights.norm,
                      static_cast<float>(config.rms_norm_eps), hidden);
    return forward_mtp(config, weights, batch, hidden, view, *kernels, *workspace,
                       workspace->normed.slice_rows(0, rows), observer);
  }
  NIBBLE_TRY(forward_layer(config, weights, layer, batch, view, *kernels, *workspace, observer));
  if (out == nullptr) return {};
  NIBBLE_TRY(read_activations(*kernels, workspace->x.slice_rows(0, rows), &scratch_x));
  return out->write(std::as_bytes(std::span(scratch_x)));
}

// One layer over all samples, with weights from `from`.
Status Calibrator::State::pass(int layer, const CheckpointSource& from, const std::string& title,
                               bool observes, bool with_rows, OutputFile* out) {
  WeightsOptions weights_options;
  weights_options.only_layer = layer;
  weights_options.threads = options.threads;
  int64_t longest = 0;
  for (const auto& sample : options.samples) {
    longest = std::max(longest, static_cast<int64_t>(sample.size()));
  }
  weights_options.max_positions = longest;
  const auto weights = NIBBLE_TRY(Weights::load(from, config, weights_options, *kernels));
  const auto in = NIBBLE_TRY(MappedFile::open(hidden_path(layer)));
  Status status;
  ActivationObserver observer;
  if (observes) {
    observer = [&](ActivationSite site, const MatrixView& x) {
      if (status) status = observe(layer, weights, site, x, with_rows);
    };
  }
  Progress progress(fmt::format("{} layer {}", title, layer), options.samples.size(),
                    Progress::Unit::kItems, options.show_progress);
  for (size_t first = 0; first < options.samples.size();) {
    NIBBLE_TRY(check_interrupt());
    size_t last = first + 1;
    while (last < options.samples.size() &&
           first_token[last + 1] - first_token[first] <= options.batch_tokens) {
      ++last;
    }
    NIBBLE_TRY(run_batch(layer, weights, first, last, in, observer, out));
    NIBBLE_TRY(std::move(status));
    status = {};
    in.release(0, in.bytes().size());
    progress.add(last - first);
    first = last;
  }
  return {};
}

// What the layer's linears read, and without feed_quantized what the next layer gets.
Status Calibrator::State::run_layer(int layer, bool with_rows) {
  NIBBLE_TRY(ensure_hidden(layer));
  module_rows.clear();
  files.clear();
  std::optional<OutputFile> out;
  if (layer < config.num_hidden_layers && !options.feed_quantized) {
    out.emplace(NIBBLE_TRY(OutputFile::create(hidden_path(layer + 1))));
  }
  NIBBLE_TRY(pass(layer, source, "calibrating", true, with_rows, out ? &*out : nullptr));
  for (auto& [name, file] : files) NIBBLE_TRY(file.finish());
  if (out) NIBBLE_TRY(out->commit());
  return save_stats(layer);
}

// With feed_quantized: what the next layer gets.
Status Calibrator::State::advance(int layer) {
  NIBBLE_TRY(ensure_hidden(layer));
  const auto from = NIBBLE_TRY(WrittenLayer::open(source, layer, written[layer]));
  OutputFile out = NIBBLE_TRY(OutputFile::create(hidden_path(layer + 1)));
  NIBBLE_TRY(pass(layer, *from, "running quantized", false, false, &out));
  return out.commit();
}

// "model.layers.3.self_attn.o_proj 0x1.8p+3": exact.
Status Calibrator::State::save_stats(int layer) const {
  std::string text;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  for (const auto& [module, amax] : amaxes) {
    if (module.starts_with(prefix)) text += fmt::format("{} {:a}\n", module, amax);
  }
  return write_text_file(stats_path(layer), text + "end\n");
}

bool Calibrator::State::load_stats(int layer) {
  std::error_code ignored;
  if (!fs::exists(stats_path(layer), ignored)) return false;
  const auto text = read_text_file(stats_path(layer));
  if (!text || !text->ends_with("\nend\n")) return false;
  std::istringstream lines(*text);
  std::string module;
  std::string value;
  while (lines >> module >> value) amaxes[module] = std::strtof(value.c_str(), nullptr);
  return true;
}

Calibrator::Calibrator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Calibrator::~Calibrator() = default;

Result<std::unique_ptr<Calibrator>> Calibrator::create(const CheckpointSource& source,
                                                       const ModelConfig& config,
                                                       const CalibratorOptions& options) {
  std::error_code error;
  fs::create_directories(options.folder, error);
  if (error) {
    return unavailable(
        fmt::format("cannot create {}: {}", options.folder.string(), error.message()));
  }
  std::unique_ptr<State> state(new State(source, config, options));
  KernelOptions kernel_options;
  kernel_options.threads = options.threads;
  state->kernels = NIBBLE_TRY(make_kernels(options.backend, kernel_options));
  int64_t blocks = 0;
  state->first_token.push_back(0);
  for (const auto& sample : options.samples) {
    state->first_token.push_back(state->first_token.back() + static_cast<int64_t>(sample.size()));
  }
  for (size_t first = 0; first < options.samples.size();) {
    int64_t of_batch = blocks_of(static_cast<int64_t>(options.samples[first].size()));
    size_t last = first + 1;
    while (last < options.samples.size() &&
           state->first_token[last + 1] - state->first_token[first] <= options.batch_tokens) {
      of_batch += blocks_of(static_cast<int64_t>(options.samples[last].size()));
      ++last;
    }
    blocks = std::max(blocks, of_batch);
    first = last;
  }
  for (int32_t i = 0; i < blocks; ++i) state->block_ids.push_back(i);
  const int64_t entry = config.kv_lora_rank + config.qk_rope_head_dim;
  Device& device = state->kernels->device();
  state->cache =
      NIBBLE_TRY(device.allocate(static_cast<size_t>(blocks * kBlockSize * entry) * sizeof(float)));
  state->workspace.emplace(
      NIBBLE_TRY(Workspace::create(config, *state->kernels, options.batch_tokens)));
  return std::unique_ptr<Calibrator>(new Calibrator(std::move(state)));
}

Status Calibrator::prepare(int layer, bool with_rows) {
  if (!with_rows && state_->load_stats(layer)) return {};
  return state_->run_layer(layer, with_rows);
}

Status Calibrator::done(int layer, std::span<const fs::path> shards) {
  State& state = *state_;
  state.module_rows.clear();
  state.files.clear();
  const int num_layers = state.config.num_hidden_layers;
  if (state.options.feed_quantized && layer < num_layers) {
    state.written[layer].assign(shards.begin(), shards.end());
    // An earlier run may have come further.
    bool known = false;
    for (int later = layer + 1; later <= num_layers; ++later) {
      known = known || state.has_hidden(later);
    }
    if (!known) NIBBLE_TRY(state.advance(layer));
  }
  std::error_code ignored;
  fs::remove(state.hidden_path(layer), ignored);
  for (const auto& entry : fs::directory_iterator(state.options.folder, ignored)) {
    if (entry.path().extension() == ".rows") fs::remove(entry.path(), ignored);
  }
  return {};
}

std::optional<float> Calibrator::input_amax(std::string_view module) const {
  std::string name(module);
  const size_t experts = name.find(".experts.");
  if (experts != std::string::npos) {
    const std::string_view projection = module.substr(module.rfind('.'));
    name = fmt::format("{}.experts.*{}", module.substr(0, experts),
                       projection == ".up_proj" ? ".gate_proj" : projection);
  }
  const auto it = state_->amaxes.find(name);
  if (it == state_->amaxes.end()) return std::nullopt;
  return it->second;
}

int64_t Calibrator::num_rows(std::string_view module) const {
  const auto it = state_->module_rows.find(module);
  return it == state_->module_rows.end() ? 0 : it->second.count();
}

Status Calibrator::read_rows(std::string_view module, int64_t first, int64_t count,
                             float* out) const {
  const ModuleRows& rows = state_->module_rows.find(module)->second;
  NIBBLE_CHECK(first >= 0 && first + count <= rows.count());
  for (int64_t i = first; i < first + count; ++i) {
    rows.file->read(rows.all ? i : rows.rows[static_cast<size_t>(i)], out);
    out += rows.file->cols();
  }
  rows.file->release();
  return {};
}

uint64_t calibration_layer_bytes(const ModelConfig& c, bool source_is_fp8) {
  const auto heads = static_cast<int64_t>(c.num_attention_heads);
  const int64_t attention = c.hidden_size * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim) +
                            heads * c.qk_head_dim() * c.q_lora_rank +
                            2 * heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank +
                            heads * c.v_head_dim * c.hidden_size;
  const int64_t moe =
      3 * c.hidden_size * c.moe_intermediate_size * (c.n_routed_experts + c.n_shared_experts);
  const int64_t mlp = std::max(moe, 3 * c.hidden_size * c.intermediate_size);
  // With the MTP layer comes the embedding, in BF16, and eh_proj.
  const int64_t mtp =
      c.num_nextn_predict_layers == 0 ? 0 : 2 * (c.vocab_size + 2 * c.hidden_size) * c.hidden_size;
  return static_cast<uint64_t>((attention + mlp) * (source_is_fp8 ? 1 : 2) + mtp) * 101 / 100;
}

uint64_t calibration_row_bytes(const ModelConfig& c) {
  const auto heads = static_cast<int64_t>(c.num_attention_heads);
  const int64_t workspace = 5 * c.hidden_size + c.q_lora_rank + heads * c.qk_head_dim() +
                            2 * (c.kv_lora_rank + c.qk_rope_head_dim) + heads * c.v_head_dim;
  // Inputs, products and outputs of the experts, in the kernels and once more in the observer.
  const int64_t slots = c.num_experts_per_tok + c.n_shared_experts;
  const int64_t mlp = slots * (2 * c.hidden_size + c.moe_intermediate_size) +
                      5 * std::max(c.intermediate_size, c.moe_intermediate_size) +
                      2 * c.hidden_size + heads * c.v_head_dim;
  return static_cast<uint64_t>(workspace + mlp) * sizeof(float);
}

uint64_t calibration_disk_bytes(const ModelConfig& c, int64_t tokens, bool with_rows) {
  if (tokens == 0) return 0;
  int64_t per_token = 2 * c.hidden_size * 4;
  if (with_rows) {
    const int64_t products =
        std::max(c.intermediate_size,
                 (c.num_experts_per_tok + c.n_shared_experts) * c.moe_intermediate_size);
    per_token +=
        2 * (2 * c.hidden_size + c.q_lora_rank + c.num_attention_heads * c.v_head_dim + products);
  }
  return static_cast<uint64_t>(tokens * per_token);
}

Status check_samples(std::span<const std::vector<int32_t>> samples, const ModelConfig& config) {
  for (size_t s = 0; s < samples.size(); ++s) {
    if (samples[s].empty()) return invalid_argument(fmt::format("sample {} is empty", s + 1));
    if (static_cast<int64_t>(samples[s].size()) > config.max_position_embeddings) {
      return invalid_argument(fmt::format("sample {} has {} tokens, the model's context is {}",
                                          s + 1, samples[s].size(),
                                          config.max_position_embeddings));
    }
    for (const int32_t id : samples[s]) {
      if (id >= 0 && id < config.vocab_size) continue;
      return invalid_argument(
          fmt::format("sample {} has the token {}, outside the vocabulary of {}", s + 1, id,
                      config.vocab_size));
    }
  }
  return {};
}

}  // namespace nibble
