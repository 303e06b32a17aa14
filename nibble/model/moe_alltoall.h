// A MoE layer of several ranks with attention data parallel whose tokens go only to the ranks that
// hold one of their experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/shard.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"

namespace nibble {

// Who gets which token. Follows from what the router chose for the tokens of all ranks, so that
// every rank works it out alike and no sizes are exchanged.
struct ExpertExchange {
  std::vector<int32_t> send_rows;       // this rank's tokens, for rank 0, then for rank 1, ...
  std::vector<int64_t> send_counts;     // by rank
  std::vector<int32_t> receive_rows;    // tokens of all ranks, counted in the order of the ranks,
  std::vector<int64_t> receive_counts;  // that come to this one; by the rank that they are of
  std::vector<int32_t> sum_rows;  // [own tokens, ranks]: which of send_rows it is there, or -1
};

//   expert_ids  [tokens of all ranks, num_experts_per_tok], of num_experts experts (or slots)
ExpertExchange plan_exchange(std::span<const int32_t> expert_ids, int num_experts_per_tok,
                             int num_experts, std::span<const int64_t> tokens_of_ranks,
                             const Shard& shard);

// How many of the ep_size groups of experts a token needs on average, when routing groups and the
// experts in those that are chosen are equally likely: sums of hypergeometric probabilities.
double mean_groups_of_token(const RouterShape& shape, int ep_size);

// Whether a pass takes the exchange: as shard.all2all_backend says; auto: where what is saved
// (other ranks' tokens are not routed, and not all of them come) outweighs what the exchange costs;
// docs/parallel.md has the measurements. Equal on all ranks. on_host: ranks are processors.
bool takes_alltoall(const Shard& shard, const RouterShape& shape,
                    std::span<const int64_t> tokens_of_ranks, int64_t hidden_size, bool on_host);

// Runs the router over x [tokens, hidden_size] into rows first_row, ... of workspace.expert_ids and
// expert_weights; the shape by which Kernels::moe() finds the experts: with an expert placement a
// slot is what is called an expert.
RouterShape choose_experts(const Weights& weights, const MoeWeights& w, Kernels& kernels,
                           const MatrixView& x, int64_t first_row, const Workspace& workspace);

// out [tokens, hidden_size] = what the routed experts say to x, this rank's tokens; the shared
// expert is not in it. Parts of a token are added up in the order of the ranks, as
// reduce_scatter_sum() does, so that the bits are those of gathering all tokens wherever a
// backend's moe() gives a token the same bits in any batch. All ranks call it together. Errors:
// those of Device::copy_to_host; what ranks can't say to each other stands in weights.comm.
[[nodiscard]] Status moe_alltoall(const Weights& weights, const MoeWeights& w,
                                  std::span<const int64_t> tokens_of_ranks, Kernels& kernels,
                                  const MatrixView& x, Workspace& workspace, const MatrixView& out);

}  // namespace nibble
