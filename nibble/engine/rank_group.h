// The ranks of one model, wherever they run: threads of this process, or processes of an MPI job.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/engine/loaded_model.h"

namespace nibble {

enum class RankTransport {
  kAuto,     // MPI in a process that mpirun started, otherwise threads
  kThreads,  // of this process
  kMpi,
};

// "auto", "threads" or "mpi". Errors: kInvalidArgument naming them.
Result<RankTransport> parse_rank_transport(std::string_view name);

struct RankOptions {
  RankTransport transport = RankTransport::kAuto;
  double timeout_seconds = 120;  // of a rank that does not answer, 1 or more; MPI
  double watch_seconds = 30;     // after which a rank tells where it stands
  bool ends_process = true;      // when a rank fails; false for a library, whose calls then fail
  // Network interfaces that the ranks' traffic may take, as "eth0,eth1"; empty: any.
  std::string interfaces;
};

// Use, the same for one rank and for many:
//
//   auto ranks = RankGroup::start(directory, model_options, rank_options);
//   if (ranks->is_worker()) return ranks->serve();
//   model = ranks->load_model();
//   engine = Engine::create(*model, engine_options);  // as many as are wanted, one at a time
//
// The group outlives engine and model. While it lives, a watchdog tells on stderr where this rank
// stands when nothing moves; and when a rank has failed it ends the process (exit code 1, after two
// seconds for answers to those who wait), since a model without one of its parts is none.
class RankGroup {
 public:
  // shard.tp_size 0 or 1 in an MPI job: as many as the job has. ep_size 0: 1, with attention data
  // parallel tp_size. Under MPI all ranks must be of the same build, checkpoint and model options;
  // each takes the GPU of its number on its host. Errors: kInvalidArgument (a tp_size other than
  // the job's, naming both; a rank that differs, and in what), those of restrict_rank_traffic and
  // mpi_communicator.
  static Result<std::unique_ptr<RankGroup>> start(const std::filesystem::path& directory,
                                                  const ModelOptions& model_options,
                                                  const RankOptions& options);
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;
  ~RankGroup();

  // How the ranks share the model, as settled: of this rank.
  const Shard& shard() const;

  // A process of an MPI job that is not rank 0.
  bool is_worker() const;

  // On rank 0, when it can't go on before it has a model: the others, which load theirs, end with
  // these words at once. Without it they do when the group ends.
  void give_up(std::string_view message);
  // A worker's whole life: loads its part, serves rank 0's engines until its model ends.
  Status serve();

  // Rank 0's model, once; a failure is told to the other ranks. Errors: those of LoadedModel::load.
  Result<std::unique_ptr<LoadedModel>> load_model(
      const std::function<void(double share)>& on_progress = {});

 private:
  RankGroup();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
