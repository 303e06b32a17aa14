// Which part of a model a rank holds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// One of `size` equal parts.
struct Part {
  int index = 0;
  int size = 1;

  bool is_whole() const { return size == 1; }
  // The part's own share of `total`, which size divides.
  int64_t count(int64_t total) const { return total / size; }
  int64_t begin(int64_t total) const { return index * (total / size); }
  friend bool operator==(const Part&, const Part&) = default;
};

// How tokens come to the experts of other ranks with attention data parallel, and their outputs
// back. The option and the first name are vLLM's.
enum class All2AllBackend : uint8_t {
  kAuto,                    // by the pass: takes_alltoall() of moe_alltoall.h
  kAllgatherReducescatter,  // all tokens to all ranks
  kAlltoall,  // each token to the ranks that hold one of its experts, but in recorded passes
};

// "auto", "allgather_reducescatter", "alltoall". Errors: kInvalidArgument naming them.
Result<All2AllBackend> parse_all2all_backend(std::string_view name);
std::string_view all2all_backend_name(All2AllBackend backend);

// How tp_size ranks share a model, and which of them this is. Names are TensorRT-LLM's.
//
//   attention heads (q_b_proj, kv_b_proj, o_proj), dense MLP, shared expert, embedding, head:
//     1/tp_size each; with enable_attention_dp copied to every rank, which then has its own
//     sequences and their cache
//   routed experts: ep_size groups of neighbouring ranks. Group g holds the experts
//     g n/ep_size .. (g + 1) n/ep_size - 1, and each of its tp_size / ep_size ranks an equal slice
//     of every one of them
//   the rest (norms, q_a, kv_a, router, eh_proj): copied
//
// TP8 EP2, 256 experts: ranks 0-3 hold a quarter of each of the experts 0-127, ranks 4-7 of
// 128-255.
struct Shard {
  int rank = 0;
  int tp_size = 1;
  int ep_size = 1;  // divides tp_size
  bool enable_attention_dp = false;
  All2AllBackend all2all_backend = All2AllBackend::kAuto;  // with attention data parallel

  bool is_whole() const { return tp_size == 1; }
  int moe_tp_size() const { return tp_size / ep_size; }

  // Heads, dense and shared MLP, vocabulary.
  Part attention() const { return enable_attention_dp ? Part{} : Part{rank, tp_size}; }
  Part expert_group() const { return {rank / moe_tp_size(), ep_size}; }
  // Of the intermediate size of every expert of the group.
  Part expert_slice() const { return {rank % moe_tp_size(), moe_tp_size()}; }
};

// Whether the model can be cut so: tp_size divides heads, vocabulary and, in whole scale blocks
// (16 columns in NVFP4, 128 rows or columns in FP8), what is cut; ep_size divides the experts and
// tp_size. No data is read. Errors: kInvalidArgument naming what does not divide and the values of
// tp_size and ep_size that would.
Status check_shard(const CheckpointSource& source, const ModelConfig& config, const Shard& shard);

// The pairs (tp_size, ep_size) that check_shard accepts, for tp_size up to max_tp_size.
struct ShardSizes {
  int tp_size = 1;
  int ep_size = 1;
};
std::vector<ShardSizes> valid_shards(const CheckpointSource& source, const ModelConfig& config,
                                     bool enable_attention_dp, int max_tp_size);

}  // namespace nibble
