#include "nibble/comm/mpi_communicator.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/comm/mpi/mpi_plugin.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDataTag = 1;
constexpr int kAbortTag = 2;
constexpr size_t kMaxMessage = size_t{1} << 30;
constexpr size_t kMaxAbortText = 1000;

// Where a process runs, to see whether it still does.
struct Place {
  std::array<char, 64> host{};
  int64_t pid = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(const NibbleMpiPlugin& mpi, int rank, int size, const MpiOptions& options)
      : Communicator(rank, size), mpi_(mpi), options_(options) {}
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;
  // After a failure the others may never come to MPI_Finalize: then the process just ends, which
  // mpirun takes as the end of the job.
  ~MpiCommunicator() override {
    if (status()) mpi_.finish();
  }

  std::string_view name() const override { return "mpi"; }

  Status exchange_places() {
    std::vector<Place> places(static_cast<size_t>(size()));
    Place mine;
    (void)::gethostname(mine.host.data(), mine.host.size() - 1);
    mine.pid = ::getpid();
    const std::vector<size_t> bytes(places.size(), sizeof(Place));
    all_gather(&mine, bytes, places.data());
    NIBBLE_TRY(status());
    places_ = std::move(places);
    return {};
  }

 protected:
  Status do_all_to_all(std::span<const ConstBytes> sends,
                       std::span<const Bytes> receives) override {
    std::vector<Pending> pending;
    const auto me = static_cast<size_t>(rank());
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      NIBBLE_TRY(start(receives[static_cast<size_t>(r)], r, pending));
    }
    // Ranks begin with different peers, so that not all send to rank 0 first.
    for (int step = 1; step < size(); ++step) {
      const int r = (rank() + step) % size();
      NIBBLE_TRY(start(sends[static_cast<size_t>(r)], r, pending));
    }
    if (!sends[me].empty() && sends[me].data() != receives[me].data()) {
      std::memmove(receives[me].data(), sends[me].data(), sends[me].size());
    }
    return wait(pending);
  }

  // Along a binary tree: ranks are counted from the root.
  Status do_broadcast(void* data, size_t bytes, int root) override {
    const int place = (rank() - root + size()) % size();
    const auto at = [&](int p) { return (p + root) % size(); };
    auto* const begin = static_cast<std::byte*>(data);
    std::vector<Pending> pending;
    if (place > 0) {
      NIBBLE_TRY(start(Bytes(begin, bytes), at((place - 1) / 2), pending));
      NIBBLE_TRY(wait(pending));
    }
    for (const int child : {2 * place + 1, 2 * place + 2}) {
      if (child < size()) NIBBLE_TRY(start(ConstBytes(begin, bytes), at(child), pending));
    }
    return wait(pending);
  }

  void do_abort(std::string_view message) override {
    const std::string text(message.substr(0, kMaxAbortText));
    const std::lock_guard lock(mutex_);
    std::vector<void*> requests;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      void*& request = requests.emplace_back();
      if (mpi_.send(text.data(), text.size(), r, kAbortTag, &request) != 0) request = nullptr;
    }
    // Those who listen take it at once; who is gone never does.
    for (const auto start = Clock::now(); seconds_since(start) < 1;) {
      bool all_done = true;
      for (void*& request : requests) {
        int done = 0;
        if (request != nullptr && (mpi_.test(&request, &done) != 0 || done == 0)) all_done = false;
      }
      if (all_done) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  Status do_look() override {
    const std::lock_guard lock(mutex_);
    return look_for_abort();
  }

 private:
  struct Pending {
    void* request = nullptr;
    int peer = 0;
  };

  Status failed(const char* call, int code) const {
    char text[256] = "";
    mpi_.error_text(code, text, sizeof text);
    return unavailable(fmt::format("rank {}: {}: {}", rank(), call, text));
  }

  template <typename Span>
  Status start(Span data, int peer, std::vector<Pending>& pending) {
    for (size_t first = 0; first < data.size(); first += kMaxMessage) {
      const auto part = data.subspan(first, std::min(kMaxMessage, data.size() - first));
      const std::lock_guard lock(mutex_);
      void* request = nullptr;
      int code = 0;
      if constexpr (std::is_same_v<Span, Bytes>) {
        code = mpi_.receive(part.data(), part.size(), peer, kDataTag, &request);
        if (code != 0) return failed("MPI_Irecv", code);
      } else {
        code = mpi_.send(part.data(), part.size(), peer, kDataTag, &request);
        if (code != 0) return failed("MPI_Isend", code);
      }
      pending.push_back({request, peer});
    }
    return {};
  }

  // Polls until all are done; leaves `pending` empty.
  Status wait(std::vector<Pending>& pending) {
    auto last_progress = Clock::now();
    auto last_look = last_progress;
    for (int64_t round = 0;; ++round) {
      const size_t before = pending.size();
      {
        const std::lock_guard lock(mutex_);
        for (Pending& p : pending) {
          int done = 0;
          const int code = mpi_.test(&p.request, &done);
          if (code != 0) return failed("MPI_Test", code);
        }
        std::erase_if(pending, [](const Pending& p) { return p.request == nullptr; });
        if (pending.empty()) return {};
        if (round % 64 == 63) NIBBLE_TRY(look_for_abort());
      }
      if (pending.size() < before) last_progress = Clock::now();
      if (round < 200) continue;
      const double idle = seconds_since(last_progress);
      if (seconds_since(last_look) > 0.1) {
        last_look = Clock::now();
        NIBBLE_TRY(look_for_trouble(pending, idle));
      }
      if (idle < 0.002) {
        std::this_thread::yield();  // ranks may be more than processors
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(idle < 1 ? 20 : 500));
      }
    }
  }

  Status look_for_abort() {
    int found = 0;
    int from = 0;
    size_t bytes = 0;
    const int code = mpi_.probe(kAbortTag, &found, &bytes, &from);
    if (code != 0) return failed("MPI_Iprobe", code);
    if (found == 0) return {};
    std::string text(bytes, '\0');
    void* request = nullptr;
    if (mpi_.receive(text.data(), bytes, from, kAbortTag, &request) == 0) {
      int done = 0;
      while (mpi_.test(&request, &done) == 0 && done == 0) {
      }
    }
    return unavailable(fmt::format("rank {}: {}", from, text));
  }

  Status look_for_trouble(const std::vector<Pending>& pending, double idle) {
    const CommPosition here = position();
    for (const Pending& p : pending) {
      if (places_.empty()) break;
      const Place& place = places_[static_cast<size_t>(p.peer)];
      const Place& mine = places_[static_cast<size_t>(rank())];
      if (place.host == mine.host && ::kill(static_cast<pid_t>(place.pid), 0) != 0 &&
          errno == ESRCH) {
        return unavailable(fmt::format("rank {} (process {} on {}) is gone", p.peer, place.pid,
                                       place.host.data()));
      }
    }
    if (interrupted() && idle > 0.5 && !here.waiting) {
      return unavailable(fmt::format("rank {} is asked to end while it waits for rank {} in {} {}",
                                     rank(), pending.front().peer, here.operation, here.number));
    }
    if (idle > options_.timeout_seconds) {
      return unavailable(fmt::format("rank {}{} did not answer for {:.0f} s in {} {}",
                                     pending.front().peer, place_text(pending.front().peer), idle,
                                     here.operation, here.number));
    }
    return {};
  }

  std::string place_text(int peer) const {
    if (places_.empty()) return "";
    const Place& place = places_[static_cast<size_t>(peer)];
    return fmt::format(" (process {} on {})", place.pid, place.host.data());
  }

  const NibbleMpiPlugin& mpi_;
  const MpiOptions options_;
  std::mutex mutex_;  // MPI is called by one thread at a time
  std::vector<Place> places_;
};

Result<const NibbleMpiPlugin*> load_plugin() {
  std::vector<std::string> paths;
  if (const char* const asked = std::getenv("NIBBLE_MPI_PLUGIN")) {
    paths.emplace_back(asked);
  } else {
    std::error_code error;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
    paths.push_back((program / "libnibble_mpi.so").string());
    paths.push_back((program / "../lib/nibble/libnibble_mpi.so").string());
  }
  std::string problem;
  for (const std::string& path : paths) {
    // MPI's own plug-ins look for its symbols among the global ones.
    void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
      problem = ::dlerror();
      continue;
    }
    const auto get =
        reinterpret_cast<NibbleMpiPluginFunction>(::dlsym(library, "nibble_mpi_plugin"));
    if (get == nullptr || get()->version != NIBBLE_MPI_PLUGIN_VERSION) {
      return unsupported(fmt::format("{} is of another nibble", path));
    }
    return get();
  }
  return unsupported(
      fmt::format("ranks as processes need MPI: {}; build nibble where libopenmpi-dev is "
                  "installed, and install "
                  "openmpi-bin here",
                  problem));
}

}  // namespace

bool started_by_mpi() {
  for (const char* const name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char* const size = std::getenv(name);
    if (size != nullptr && std::atoi(size) > 1) return true;
  }
  // srun --mpi=pmix says how many tasks there are in a variable of its own.
  const char* const tasks = std::getenv("SLURM_NTASKS");
  return std::getenv("PMIX_RANK") != nullptr && tasks != nullptr && std::atoi(tasks) > 1;
}

Result<std::unique_ptr<Communicator>> mpi_communicator(const MpiOptions& options) {
  const NibbleMpiPlugin* const mpi = NIBBLE_TRY(load_plugin());
  int rank = 0;
  int size = 0;
  const int code = mpi->start(&rank, &size);
  if (code != 0) {
    char text[256] = "";
    mpi->error_text(code, text, sizeof text);
    return unavailable(fmt::format("MPI_Init_thread: {}", text));
  }
  auto comm = std::make_unique<MpiCommunicator>(*mpi, rank, size, options);
  NIBBLE_TRY(comm->exchange_places());
  return std::unique_ptr<Communicator>(std::move(comm));
}

}  // namespace nibble
