#include "nibble/model/moe_alltoall.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

// On GPUs, by bench_cuda dispatch:2:2:4 on two H200 (docs/parallel.md): what an exchange costs
// beside gathering, the host's wait included; what the router costs for each of its weights and
// tokens; and what NVLink carries.
constexpr double kExchangeSeconds = 75e-6;
constexpr double kSecondsOfRouterWeight = 0.2e-6 / (256 * 7168);
constexpr double kLinkBytesPerSecond = 300e9;
// Threads of one machine: about 256 tokens of the demo on each of four ranks, measured.
constexpr double kBytesWorthOnHosts = 1e6;

// C(n - taken, k) / C(n, k): that none of `taken` of n things is among k drawn.
double none_drawn(int n, int taken, int k) {
  double p = 1;
  for (int i = 0; i < k; ++i) p *= std::max(0.0, static_cast<double>(n - taken - i)) / (n - i);
  return p;
}

// C(a, b), 0 where it is none.
double choose(int a, int b) {
  if (b < 0 || b > a) return 0;
  double c = 1;
  for (int i = 1; i <= b; ++i) c = c * (a - b + i) / i;
  return c;
}

// Buffers of one all-to-all of rows.
struct RowParts {
  std::vector<Communicator::ConstBytes> sends;
  std::vector<Communicator::Bytes> receives;
};

RowParts row_parts(const MatrixView& from, std::span<const int64_t> send_counts,
                   const MatrixView& to, std::span<const int64_t> receive_counts) {
  const auto row_bytes = static_cast<size_t>(from.cols) * sizeof(float);
  RowParts parts;
  int64_t sent = 0;
  int64_t received = 0;
  for (size_t r = 0; r < send_counts.size(); ++r) {
    parts.sends.emplace_back(reinterpret_cast<const std::byte*>(from.row<float>(sent)),
                             static_cast<size_t>(send_counts[r]) * row_bytes);
    parts.receives.emplace_back(reinterpret_cast<std::byte*>(to.row<float>(received)),
                                static_cast<size_t>(receive_counts[r]) * row_bytes);
    sent += send_counts[r];
    received += receive_counts[r];
  }
  return parts;
}

// Rows of k values of 4 bytes, as a matrix to copy.
MatrixView as_rows(const void* data, int64_t rows, int64_t k) {
  return {const_cast<void*>(data), DType::kF32, rows, k, k};
}

}  // namespace

ExpertExchange plan_exchange(std::span<const int32_t> expert_ids, int num_experts_per_tok,
                             int num_experts, std::span<const int64_t> tokens_of_ranks,
                             const Shard& shard) {
  const int of_group = num_experts / shard.ep_size;
  const int ranks = shard.tp_size;
  const auto me = static_cast<size_t>(shard.rank);
  const int my_group = shard.expert_group().index;
  ExpertExchange plan;
  plan.send_counts.resize(static_cast<size_t>(ranks));
  plan.receive_counts.resize(static_cast<size_t>(ranks));
  const int64_t own_tokens = tokens_of_ranks[me];
  // needs[t * ep_size + g]: own token t has an expert in group g.
  std::vector<char> needs(static_cast<size_t>(own_tokens * shard.ep_size));
  const int32_t* ids = expert_ids.data();
  int32_t token = 0;
  for (size_t r = 0; r < tokens_of_ranks.size(); ++r) {
    for (int64_t t = 0; t < tokens_of_ranks[r]; ++t, ++token, ids += num_experts_per_tok) {
      bool is_mine = false;
      for (int j = 0; j < num_experts_per_tok; ++j) {
        const int group = ids[j] / of_group;
        is_mine = is_mine || group == my_group;
        if (r == me) needs[static_cast<size_t>(t * shard.ep_size + group)] = 1;
      }
      if (!is_mine) continue;
      plan.receive_rows.push_back(token);
      ++plan.receive_counts[r];
    }
  }
  plan.sum_rows.assign(static_cast<size_t>(own_tokens * ranks), -1);
  for (int r = 0; r < ranks; ++r) {
    const int group = r / shard.moe_tp_size();
    for (int64_t t = 0; t < own_tokens; ++t) {
      if (needs[static_cast<size_t>(t * shard.ep_size + group)] == 0) continue;
      plan.sum_rows[static_cast<size_t>(t * ranks + r)] =
          static_cast<int32_t>(plan.send_rows.size());
      plan.send_rows.push_back(static_cast<int32_t>(t));
      ++plan.send_counts[static_cast<size_t>(r)];
    }
  }
  return plan;
}

double mean_groups_of_token(const RouterShape& shape, int ep_size) {
  const int of_group = shape.n_routed_experts / shape.n_group;  // a routing group's
  const int candidates = shape.topk_group * of_group;
  const int held = shape.n_routed_experts / ep_size;
  const int k = shape.num_experts_per_tok;
  if (held < of_group) {  // a part of one routing group
    const double is_chosen = static_cast<double>(shape.topk_group) / shape.n_group;
    return ep_size * is_chosen * (1 - none_drawn(candidates, held, k));
  }
  const int groups = held / of_group;
  double needed = 0;
  for (int chosen = 1; chosen <= std::min(groups, shape.topk_group); ++chosen) {
    const double p = choose(groups, chosen) *
                     choose(shape.n_group - groups, shape.topk_group - chosen) /
                     choose(shape.n_group, shape.topk_group);
    needed += p * (1 - none_drawn(candidates, chosen * of_group, k));
  }
  return ep_size * needed;
}

bool takes_alltoall(const Shard& shard, const RouterShape& shape,
                    std::span<const int64_t> tokens_of_ranks, int64_t hidden_size, bool on_host) {
  if (shard.all2all_backend != All2AllBackend::kAuto) {
    return shard.all2all_backend == All2AllBackend::kAlltoall;
  }
  const int64_t tokens =
      std::accumulate(tokens_of_ranks.begin(), tokens_of_ranks.end(), int64_t{0});
  // The rank with the most tokens saves least: what it gets of the others, and sends back.
  const auto of_others = static_cast<double>(
      tokens - *std::max_element(tokens_of_ranks.begin(), tokens_of_ranks.end()));
  const double share = mean_groups_of_token(shape, shard.ep_size) / shard.ep_size;
  const double bytes = 2 * of_others * (1 - share) * static_cast<double>(hidden_size) * 4;
  if (on_host) return bytes > kBytesWorthOnHosts;
  const double routing = of_others * static_cast<double>(hidden_size) * shape.n_routed_experts *
                         kSecondsOfRouterWeight;
  return routing + bytes / kLinkBytesPerSecond > kExchangeSeconds;
}

RouterShape choose_experts(const Weights& weights, const MoeWeights& w, Kernels& kernels,
                           const MatrixView& x, int64_t first_row, const Workspace& workspace) {
  RouterShape shape = weights.router_shape;
  const int64_t k = shape.num_experts_per_tok;
  int32_t* const expert_ids = workspace.expert_ids + first_row * k;
  float* const expert_weights = workspace.expert_weights + first_row * k;
  if (x.rows > 0) {
    kernels.route(x, w.gate, w.e_score_correction_bias, shape, expert_ids, expert_weights);
  }
  if (w.num_slots > 0) {
    workspace.dispatch().place(x.rows * k, expert_weights, w.slots, expert_ids);
    shape.n_routed_experts = w.num_slots;
  }
  return shape;
}

Status moe_alltoall(const Weights& weights, const MoeWeights& w,
                    std::span<const int64_t> tokens_of_ranks, Kernels& kernels, const MatrixView& x,
                    Workspace& workspace, const MatrixView& out) {
  Communicator& comm = *weights.comm;
  const Shard& shard = weights.shard;
  const int64_t k = weights.router_shape.num_experts_per_tok;
  const auto me = tokens_of_ranks.begin() + shard.rank;
  const int64_t before = std::accumulate(tokens_of_ranks.begin(), me, int64_t{0});
  const int64_t num_tokens = std::accumulate(me, tokens_of_ranks.end(), before);
  NIBBLE_CHECK(*me == x.rows && out.rows == x.rows);

  // What the routers of all ranks chose, to all ranks, and to the host.
  const RouterShape shape = choose_experts(weights, w, kernels, x, before, workspace);
  std::vector<size_t> bytes;
  bytes.reserve(tokens_of_ranks.size());
  for (const int64_t tokens : tokens_of_ranks) {
    bytes.push_back(static_cast<size_t>(tokens * k) * sizeof(float));
  }
  comm.all_gather(workspace.expert_ids + before * k, bytes, workspace.expert_ids);
  comm.all_gather(workspace.expert_weights + before * k, bytes, workspace.expert_weights);
  NIBBLE_TRY(comm.status());
  const auto choices = static_cast<size_t>(num_tokens * k);
  std::span<const int32_t> ids(workspace.expert_ids, choices);
  if (!kernels.device().is_host()) {
    workspace.host_ids.resize(choices);
    NIBBLE_TRY(kernels.device().copy_to_host(std::as_writable_bytes(std::span(workspace.host_ids)),
                                             workspace.expert_ids));
    ids = workspace.host_ids;
  }
  // Of a launch that failed there may be anything.
  for (const int32_t id : ids) {
    if (id >= 0 && id < shape.n_routed_experts) continue;
    return unavailable(fmt::format("expert {} of {} was chosen", id, shape.n_routed_experts));
  }
  const ExpertExchange plan =
      plan_exchange(ids, static_cast<int>(k), shape.n_routed_experts, tokens_of_ranks, shard);
  const auto sent = static_cast<int64_t>(plan.send_rows.size());
  const auto received = static_cast<int64_t>(plan.receive_rows.size());

  // There: packed in all_outputs, received in all_tokens.
  ExpertDispatch& dispatch = workspace.dispatch();
  const MatrixView packed = workspace.all_outputs.slice_rows(0, sent);
  const MatrixView tokens = workspace.all_tokens.slice_rows(0, received);
  if (sent > 0) dispatch.gather_rows(x, plan.send_rows, packed);
  const RowParts there = row_parts(packed, plan.send_counts, tokens, plan.receive_counts);
  comm.all_to_all(there.sends, there.receives);

  const MatrixView outputs = workspace.all_outputs.slice_rows(0, received);
  if (received > 0) {
    dispatch.gather_rows(as_rows(workspace.expert_ids, num_tokens, k), plan.receive_rows,
                         as_rows(workspace.received_ids, received, k));
    dispatch.gather_rows(as_rows(workspace.expert_weights, num_tokens, k), plan.receive_rows,
                         as_rows(workspace.received_weights, received, k));
    kernels.moe(tokens, w.experts, nullptr, shape, workspace.received_ids,
                workspace.received_weights, outputs);
  }

  // And back.
  const MatrixView returned = workspace.all_tokens.slice_rows(0, sent);
  const RowParts back = row_parts(outputs, plan.receive_counts, returned, plan.send_counts);
  comm.all_to_all(back.sends, back.receives);
  dispatch.sum_rows(returned, plan.sum_rows, out);
  return {};
}

}  // namespace nibble
