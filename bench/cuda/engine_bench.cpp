// R1 with random weights through the whole engine, on one GPU or on several as threads of this
// process: what nibble bench offline does, for a model that no checkpoint holds.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "bench/cuda/gpu_timing.h"
#include "bench/cuda/or_exit.h"
#include "bench/cuda/r1_model.h"
#include "nibble/comm/device_communicator.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/comm/watchdog.h"
#include "nibble/device/cuda/cuda_device.h"
#include "nibble/engine/engine.h"
#include "nibble/engine/rank_passes.h"
#include "nibble/kernels/cuda/cuda_kernels.h"

namespace nibble::bench {
namespace {

// `host`: null for one rank.
std::unique_ptr<LoadedModel> make_model(const EngineBenchOptions& options, int rank,
                                        Communicator* host) {
  CudaOptions cuda;
  cuda.device = rank;
  auto kernels = or_exit(make_cuda_kernels(cuda));
  R1Options r1;
  r1.dense_layers = options.ranks.dense_layers;
  r1.moe_layers = options.ranks.moe_layers;
  r1.with_mtp = options.num_drafts > 0;
  r1.shard = {rank, options.ranks.tp_size, options.ranks.ep_size,
              options.ranks.enable_attention_dp};
  std::unique_ptr<Communicator> device_comm;
  if (host != nullptr) device_comm = or_exit(device_communicator(kernels->device(), *host));
  r1.comm = device_comm.get();
  R1Model made(*kernels, r1);
  Weights weights = made.take_weights();
  LoadedModel::Parts parts{r1_config(r1),
                           std::move(kernels),
                           std::move(weights),
                           or_exit(Tokenizer::load(options.tokenizer)),
                           options.input_len + options.output_len + 1,
                           host,
                           std::move(device_comm)};
  return LoadedModel::assemble(std::move(parts));
}

void run(const EngineBenchOptions& options, LoadedModel& model, int64_t batch_size) {
  EngineOptions engine_options;
  const int64_t lanes = options.ranks.enable_attention_dp ? options.ranks.tp_size : 1;
  engine_options.max_batch_size = (batch_size + lanes - 1) / lanes;
  engine_options.max_num_tokens =
      std::max<int64_t>(2048, engine_options.max_batch_size * (1 + options.num_drafts));
  engine_options.num_drafts = options.num_drafts;
  if (options.num_drafts > 0) {
    engine_options.forced_acceptance_length = options.forced_acceptance_length;
  }
  engine_options.kv_cache_dtype = DType::kF8E4m3;
  engine_options.block_size = 64;
  engine_options.enable_block_reuse = false;
  const auto engine = or_exit(Engine::create(model, engine_options));
  std::mt19937 rng(1);
  int64_t output = 0;
  for (int64_t i = 0; i < 2 * batch_size; ++i) {
    Request request;
    for (int t = 0; t < options.input_len; ++t) {
      request.prompt_token_ids.push_back(static_cast<int32_t>(rng() % 129280));
    }
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = options.output_len;
    (void)or_exit(engine->add(std::move(request)));
  }
  const auto start = std::chrono::steady_clock::now();
  while (engine->has_work()) {
    for (const RequestUpdate& update : engine->step()) {
      if (update.error) fail(update.error->message);
      output += static_cast<int64_t>(update.token_ids.size());
    }
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const EngineStats stats = engine->stats();
  const auto each = [](const StepCount& count) {
    return count.steps > 0 ? count.seconds * 1000 / static_cast<double>(count.steps) : 0;
  };
  const auto rate = [](double tokens, double of_seconds) {
    return of_seconds > 0 ? tokens / of_seconds : 0;
  };
  fmt::print(
      "batch {:>3}: {:8.1f} output tokens/s in {:.1f} s; {} steps of decoding, {:.2f} ms each "
      "({:.1f} tokens/s in them); {} of prompts, {:.1f} ms each ({:.0f} tokens/s); {:.2f} tokens a "
      "window{}; {} passes recorded, {} replayed, running {:.1f} % of their steps; {} of {} "
      "windows sampled by the host\n",
      batch_size, rate(static_cast<double>(output), seconds), seconds, stats.decode_steps.steps,
      each(stats.decode_steps),
      rate(static_cast<double>(stats.decode_steps.sequences) * stats.acceptance_length(),
           stats.decode_steps.seconds),
      stats.prefill_steps.steps, each(stats.prefill_steps),
      rate(static_cast<double>(stats.prefill_steps.tokens), stats.prefill_steps.seconds),
      stats.acceptance_length(), options.num_drafts > 0 ? " (FORCED)" : "",
      stats.graphs.num_recorded, stats.graphs.num_replayed,
      100 * rate(stats.graphs.device_seconds, stats.replayed_step_seconds), stats.num_host_windows,
      stats.num_device_windows);
  std::fflush(stdout);
}

}  // namespace

void bench_engine(const EngineBenchOptions& options) {
  const int size = options.ranks.tp_size;
  if (num_cuda_devices() < size) {
    fmt::print("TP{}: this machine shows {} GPUs\n", size, num_cuda_devices());
    return;
  }
  auto hosts = thread_communicators(size);
  const auto host = [&](int r) { return size > 1 ? hosts[static_cast<size_t>(r)].get() : nullptr; };
  std::vector<std::thread> threads;
  for (int r = 1; r < size; ++r) {
    threads.emplace_back([&, r] {
      const auto model = make_model(options, r, host(r));
      const Status status = serve_rank(*model);
      if (!status) fail(fmt::format("rank {}: {}", r, status.error().message));
    });
  }
  {
    const Watchdog watchdog(*hosts[0], {});
    const auto model = make_model(options, 0, host(0));
    fmt::print(
        "\nTP{} EP{}{}, {} dense and {} MoE layers of R1, {} drafts, {} tokens in, {} out; WEIGHTS "
        "ARE RANDOM\n",
        size, options.ranks.ep_size, options.ranks.enable_attention_dp ? " attention DP" : "",
        options.ranks.dense_layers, options.ranks.moe_layers, options.num_drafts, options.input_len,
        options.output_len);
    for (const int64_t batch_size : options.batch_sizes) run(options, *model, batch_size);
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace nibble::bench
