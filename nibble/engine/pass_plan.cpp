#include "nibble/engine/pass_plan.h"

#include <algorithm>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/engine/draft_policy.h"

namespace nibble {
namespace {

// Blocks for the fraction of free memory, but no more than max_batch_size full contexts need. On a
// GPU everything else takes its memory first, by running the largest batches on passes of the final
// sizes, so that the cache gets its share of what is really left.
Result<int64_t> blocks_from_memory(LoadedModel& model, const PassPlan& plan) {
  Device& device = model.kernels->device();
  KvCacheOptions cache = plan.cache;
  std::unique_ptr<LocalPasses> passes;
  if (!device.is_host()) {
    cache.num_blocks = 1;
    passes = NIBBLE_TRY(LocalPasses::create(model, cache, plan.max_rows, plan.options));
    const Status warm = passes->warm_up(plan.max_generated, model.max_seq_len);
    NIBBLE_TRY(with_context(warm, "running the largest batches, to measure their memory"));
  }
  const DeviceMemory memory = NIBBLE_TRY(device.memory());
  uint64_t block_bytes = KvCache::bytes_per_token(model.config, cache.dtype, cache.with_mtp) *
                         static_cast<uint64_t>(cache.block_size);
  // Beside a block lies the hidden state that the MTP layer needs.
  if (cache.with_mtp)
    block_bytes += static_cast<uint64_t>(model.config.hidden_size) * sizeof(float);
  double fraction = plan.cache_fraction;
  // Ranks in the host's memory share it, wherever they run on this machine.
  if (device.is_host() && model.comm != nullptr) fraction /= model.comm->size();
  // Mapped weights count as free, for the system could drop them; then every step would read them
  // from the disk again.
  uint64_t mapped = model.weights.mapped_bytes;
  if (device.is_host() && model.comm != nullptr)
    mapped *= static_cast<uint64_t>(model.comm->size());
  const uint64_t free_bytes = memory.free_bytes - std::min(memory.free_bytes, mapped);
  const auto blocks = static_cast<int64_t>(fraction * static_cast<double>(free_bytes) /
                                           static_cast<double>(block_bytes));
  const int64_t context_blocks =
      (model.max_seq_len + kMaxDrafts + cache.block_size) / cache.block_size;
  return std::clamp<int64_t>(blocks, 1, context_blocks * plan.max_batch_size);
}

// Block b of every rank belongs to the same sequence.
Result<int64_t> least_of_ranks(int64_t num_blocks, Communicator& comm) {
  std::vector<int64_t> of_ranks(static_cast<size_t>(comm.size()));
  const std::vector<size_t> bytes(of_ranks.size(), sizeof num_blocks);
  comm.all_gather(&num_blocks, bytes, of_ranks.data());
  NIBBLE_TRY(comm.status());
  return *std::min_element(of_ranks.begin(), of_ranks.end());
}

Result<SetUpPasses> set_up_alone(LoadedModel& model, const PassPlan& plan) {
  SetUpPasses made;
  made.num_blocks = plan.cache.num_blocks;
  if (made.num_blocks == 0) {
    made.num_blocks = NIBBLE_TRY(blocks_from_memory(model, plan));
    if (model.comm != nullptr) {
      made.num_blocks = NIBBLE_TRY(least_of_ranks(made.num_blocks, *model.comm));
    }
  }
  KvCacheOptions cache = plan.cache;
  cache.num_blocks = made.num_blocks;
  made.passes = NIBBLE_TRY(LocalPasses::create(model, cache, plan.max_rows, plan.options));
  // What operations keep grows now, on all ranks alike: with all-to-all dispatch they get unlike
  // numbers of tokens later, and growing makes recorded passes void.
  const Shard& shard = model.weights.shard;
  if (plan.cache.num_blocks != 0 && !model.kernels->device().is_host() &&
      shard.enable_attention_dp &&
      shard.all2all_backend != All2AllBackend::kAllgatherReducescatter) {
    NIBBLE_TRY(made.passes->warm_up(plan.max_generated, model.max_seq_len));
  }
  if (plan.record_all) NIBBLE_TRY(made.passes->record_all());
  return made;
}

}  // namespace

Result<SetUpPasses> set_up_passes(LoadedModel& model, const PassPlan& plan) {
  auto made = set_up_alone(model, plan);
  if (!made && model.comm != nullptr) model.comm->abort(made.error().message);
  return made;
}

}  // namespace nibble
