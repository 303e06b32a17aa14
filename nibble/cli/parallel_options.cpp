#include "nibble/cli/parallel_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "nibble/base/error.h"

namespace nibble {

void add_parallel_options(CLI::App& command, ParallelOptions* options, const std::string& group) {
  command
      .add_option("--tp-size,--tensor-parallel-size", options->tp_size,
                  "Ranks that split the model [1, or the MPI job's]")
      ->type_name("N")
      ->group(group);
  command
      .add_option(
          "--ep-size,--moe-expert-parallel-size", options->ep_size,
          "Groups of ranks that split the experts; divides tp_size [1; with attention DP all]")
      ->type_name("N")
      ->group(group);
  command
      .add_flag("--enable-attention-dp,--attention-dp", options->enable_attention_dp,
                "Each rank has its own requests; experts are split over all")
      ->group(group);
  command
      .add_option("--all2all-backend", options->all2all_backend,
                  "How tokens reach other ranks' experts with attention DP: auto, "
                  "allgather_reducescatter or alltoall [auto]")
      ->type_name("NAME")
      ->group(group);
  command
      .add_option("--communicator", options->communicator,
                  "auto, threads or mpi [auto: mpi under mpirun]")
      ->type_name("NAME")
      ->group(group);
  command
      .add_option("--rank-timeout", options->rank_timeout,
                  "Seconds after which a silent rank is given up, with MPI [120]")
      ->type_name("S")
      ->group(group);
  command
      .add_option("--rank-interfaces", options->rank_interfaces,
                  "Network interfaces that the ranks' traffic may take, as eth0,eth1 [any]")
      ->type_name("LIST")
      ->group(group);
  command
      .add_option("--expert-placement", options->expert_placement,
                  "Which experts the groups of --ep-size hold: a file of nibble trace --placement")
      ->type_name("FILE")
      ->group(group);
}

Result<RankOptions> apply(const ParallelOptions& options, ModelOptions* model) {
  const auto check = [](const char* name, int64_t value) -> Status {
    if (value >= 0 && value <= 1024) return {};
    return invalid_argument(fmt::format("{} is {}, expected 1..1024", name, value));
  };
  NIBBLE_TRY(check("--tp-size", options.tp_size));
  NIBBLE_TRY(check("--ep-size", options.ep_size));
  if (!(options.rank_timeout >= 1 && options.rank_timeout <= 86400)) {
    return invalid_argument(
        fmt::format("--rank-timeout is {}, expected 1..86400 seconds", options.rank_timeout));
  }
  model->shard.tp_size = static_cast<int>(options.tp_size);
  model->shard.ep_size = static_cast<int>(options.ep_size);
  model->shard.enable_attention_dp = options.enable_attention_dp;
  model->shard.all2all_backend = NIBBLE_TRY(parse_all2all_backend(options.all2all_backend));
  model->expert_placement = options.expert_placement;
  RankOptions ranks;
  ranks.transport = NIBBLE_TRY(parse_rank_transport(options.communicator));
  ranks.timeout_seconds = options.rank_timeout;
  ranks.interfaces = options.rank_interfaces;
  return ranks;
}

}  // namespace nibble
