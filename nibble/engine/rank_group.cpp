#include "nibble/engine/rank_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/open_source.h"
#include "nibble/comm/mpi_communicator.h"
#include "nibble/comm/rank_interfaces.h"
#include "nibble/comm/watchdog.h"
#include "nibble/engine/rank_passes.h"
#include "nibble/engine/rank_threads.h"

namespace nibble {
namespace {

// What all ranks have to agree on, as text that can be compared and shown.
struct RankIdentity {
  std::array<char, 64> build{};  // the version and a hash of the program
  // A hash of config.json and of every tensor's name and shape, or why there is none.
  std::array<char, 256> checkpoint{};
  std::array<char, 512> options{};
};

template <size_t size>
void set_text(std::array<char, size>& to, const std::string& text) {
  std::memcpy(to.data(), text.data(), std::min(text.size(), size - 1));
}

constexpr uint64_t kFnvStart = 0xcbf29ce484222325U;

uint64_t fnv1a(std::string_view text, uint64_t hash) {
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3U;
  return hash;
}

// Of config.json, every tensor's name and shape, and the beginning of some tensors' data: reading
// all of it would take as long as loading it.
Result<std::string> checkpoint_fingerprint(const std::filesystem::path& directory) {
  constexpr size_t kSampledTensors = 256;
  constexpr size_t kSampledBytes = 256;
  const std::string config = NIBBLE_TRY(read_text_file(directory / "config.json"));
  uint64_t hash = fnv1a(config, kFnvStart);
  const ModelConfig parsed = NIBBLE_TRY(load_config(directory));
  const OpenedSource opened = NIBBLE_TRY(open_source(directory, parsed));
  const CheckpointSource* const source = opened.source.get();
  const size_t every = source->tensors().size() / kSampledTensors + 1;
  size_t number = 0;
  for (const TensorInfo& tensor : source->tensors()) {
    hash = fnv1a(
        fmt::format("{} {} {};", tensor.name, dtype_name(tensor.dtype), tensor.shape.to_string()),
        hash);
    if (number++ % every != 0) continue;
    const TensorView view = NIBBLE_TRY(source->read(tensor.name));
    const auto sample = view.bytes.first(std::min(view.bytes.size(), kSampledBytes));
    hash = fnv1a({reinterpret_cast<const char*>(sample.data()), sample.size()}, hash);
    source->release(tensor.name);
  }
  return fmt::format("{:016x}", hash);
}

std::string options_text(const ModelOptions& model) {
  std::string text = fmt::format(
      "tp_size {} ep_size {} attention_dp {} all2all {} backend {} w4a4 {} w4a8 {} exact {} mtp {} "
      "max_seq_len {}",
      model.shard.tp_size, model.shard.ep_size, model.shard.enable_attention_dp,
      all2all_backend_name(model.shard.all2all_backend), model.backend,
      model.nvfp4_activation == ActivationFormat::kNvfp4, model.cpu_int8_activations,
      model.cpu_exact_activations, model.load_mtp, model.max_seq_len);
  if (!model.expert_placement.empty()) {
    const auto placement = load_expert_placement(model.expert_placement);
    text += placement
                ? fmt::format(" expert_placement {:016x}", fnv1a(to_text(*placement), kFnvStart))
                : " expert_placement: " + placement.error().message;
  }
  return text;
}

// The GPU of a process: its number among those of this host, as mpirun and srun tell.
int local_rank() {
  for (const char* const name :
       {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}) {
    if (const char* const text = std::getenv(name)) return std::atoi(text);
  }
  return 0;
}

// Errors: kInvalidArgument naming the first rank that differs from rank 0 and in what.
Status compare_ranks(Communicator& comm, const std::filesystem::path& directory,
                     const ModelOptions& model) {
  RankIdentity mine;
  const auto program = read_text_file("/proc/self/exe", size_t{1} << 30);
  set_text(mine.build, fmt::format(NIBBLE_VERSION " {:016x}",
                                   fnv1a(program ? std::string_view(*program) : "", kFnvStart)));
  const auto fingerprint = checkpoint_fingerprint(directory);
  set_text(mine.checkpoint, fingerprint ? *fingerprint : fingerprint.error().message);
  set_text(mine.options, options_text(model));
  std::vector<RankIdentity> all(static_cast<size_t>(comm.size()));
  const std::vector<size_t> bytes(all.size(), sizeof(RankIdentity));
  comm.all_gather(&mine, bytes, all.data());
  NIBBLE_TRY(comm.status());
  if (!fingerprint) return tl::unexpected(fingerprint.error());
  for (size_t r = 1; r < all.size(); ++r) {
    const auto differs = [&](std::string_view what, const char* theirs, const char* first) {
      return invalid_argument(
          fmt::format("rank {} has another {} than rank 0: {} and {}", r, what, theirs, first));
    };
    if (all[r].build != all[0].build) {
      return differs("build of nibble", all[r].build.data(), all[0].build.data());
    }
    if (all[r].checkpoint != all[0].checkpoint) {
      return differs("checkpoint", all[r].checkpoint.data(), all[0].checkpoint.data());
    }
    if (all[r].options != all[0].options) {
      return differs("command line", all[r].options.data(), all[0].options.data());
    }
  }
  return {};
}

Status settle_shard(Shard& shard, int job_size) {
  if (shard.tp_size <= 1 && job_size > 1) shard.tp_size = job_size;
  if (shard.tp_size < 1) shard.tp_size = 1;
  if (job_size > 1 && shard.tp_size != job_size) {
    return invalid_argument(
        fmt::format("tp_size is {}, and the MPI job has {} ranks: leave it out, or start {}",
                    shard.tp_size, job_size, shard.tp_size));
  }
  if (shard.tp_size > 1024) {
    return invalid_argument(fmt::format("tp_size is {}, expected 1..1024", shard.tp_size));
  }
  if (shard.tp_size == 1) shard.enable_attention_dp = false;  // the one rank has all sequences
  if (shard.all2all_backend != All2AllBackend::kAuto && !shard.enable_attention_dp) {
    return invalid_argument(fmt::format(
        "all2all_backend is {}, which is for enable_attention_dp with a tp_size of 2 or "
        "more: leave it out",
        all2all_backend_name(shard.all2all_backend)));
  }
  if (shard.ep_size <= 0) shard.ep_size = shard.enable_attention_dp ? shard.tp_size : 1;
  return {};
}

}  // namespace

Result<RankTransport> parse_rank_transport(std::string_view name) {
  if (name == "auto") return RankTransport::kAuto;
  if (name == "threads") return RankTransport::kThreads;
  if (name == "mpi") return RankTransport::kMpi;
  return invalid_argument(
      fmt::format("the communicator is '{}', expected auto, threads or mpi", name));
}

struct RankGroup::State {
  std::filesystem::path directory;
  ModelOptions model_options;
  std::unique_ptr<Communicator> mpi;
  std::optional<RankThreads> threads;
  bool has_loaded = false;           // rank 0's model, or it has given up
  std::optional<Watchdog> watchdog;  // goes first
};

RankGroup::RankGroup() : state_(std::make_unique<State>()) {}
RankGroup::~RankGroup() { give_up("it has ended before it had a model"); }

const Shard& RankGroup::shard() const { return state_->model_options.shard; }

void RankGroup::give_up(std::string_view message) {
  Communicator* const mpi = state_->mpi.get();
  if (mpi == nullptr || mpi->size() == 1 || is_worker() || state_->has_loaded) return;
  state_->has_loaded = true;
  mpi->abort(message);
}

Result<std::unique_ptr<RankGroup>> RankGroup::start(const std::filesystem::path& directory,
                                                    const ModelOptions& model_options,
                                                    const RankOptions& options) {
  std::unique_ptr<RankGroup> group(new RankGroup());
  State& state = *group->state_;
  state.directory = directory;
  state.model_options = model_options;
  NIBBLE_TRY(restrict_rank_traffic(options.interfaces));
  Shard& shard = state.model_options.shard;
  const bool wants_mpi = options.transport == RankTransport::kMpi ||
                         (options.transport == RankTransport::kAuto && started_by_mpi());
  WatchOptions watch;
  watch.tell_after_seconds = options.watch_seconds;
  watch.ends_process = options.ends_process;
  if (!wants_mpi) {
    NIBBLE_TRY(settle_shard(shard, 1));
    if (shard.tp_size == 1) return group;
    state.threads.emplace(directory, state.model_options);
    state.model_options = state.threads->model_options();
    state.watchdog.emplace(*state.model_options.comm, watch);
    return group;
  }
  MpiOptions mpi_options;
  mpi_options.timeout_seconds = options.timeout_seconds;
  state.mpi = NIBBLE_TRY(mpi_communicator(mpi_options));
  Communicator& comm = *state.mpi;
  // What is wrong on one rank alone is told as a difference, so that it is known which.
  const Status settled = settle_shard(shard, comm.size());
  Status agreed = compare_ranks(comm, directory, state.model_options);
  if (agreed) agreed = settled;
  // Every rank has come to the same verdict: one tells it, while the others still let it.
  if (!agreed) {
    if (comm.rank() != 0) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      std::_Exit(1);
    }
    comm.abort(agreed.error().message);
    return tl::unexpected(std::move(agreed).error());
  }
  if (comm.size() == 1) return group;
  shard.rank = comm.rank();
  state.model_options.comm = &comm;
  state.model_options.cuda.device += local_rank();
  state.watchdog.emplace(comm, watch);
  return group;
}

bool RankGroup::is_worker() const { return state_->mpi != nullptr && state_->mpi->rank() != 0; }

Result<std::unique_ptr<LoadedModel>> RankGroup::load_model(
    const std::function<void(double share)>& on_progress) {
  state_->has_loaded = true;
  state_->model_options.on_progress = on_progress;
  auto model = LoadedModel::load(state_->directory, state_->model_options);
  Communicator* const comm = state_->model_options.comm;
  if (!model && comm != nullptr) comm->abort(model.error().message);
  return model;
}

Status RankGroup::serve() {
  NIBBLE_CHECK(is_worker());
  ModelOptions options = state_->model_options;
  options.show_progress = false;
  const auto model = LoadedModel::load(state_->directory, options);
  if (!model) {
    state_->mpi->abort(model.error().message);
    return tl::unexpected(model.error());
  }
  return serve_rank(**model);
}

}  // namespace nibble
