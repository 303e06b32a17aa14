#include "nibble/comm/cuda/cuda_communicator.h"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/comm/cuda/nccl.h"
#include "nibble/comm/cuda/one_shot.h"
#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble {
namespace {

using cuda::Nccl;
using cuda::NcclComm;
using cuda::NcclOp;
using cuda::NcclResult;
using cuda::NcclType;
using cuda::NcclUniqueId;
using cuda::OneShotArgs;
using cuda::OneShotLayout;

Status check(cudaError_t code, std::string_view call) {
  if (code == cudaSuccess) return {};
  (void)cudaGetLastError();
  return unavailable(
      fmt::format("{}: {} ({})", call, cudaGetErrorString(code), cudaGetErrorName(code)));
}

// What a rank says of its shared memory to the others.
struct Invitation {
  std::array<char, 64> host{};
  int64_t pid = 0;
  int32_t ordinal = 0;
  std::byte* address = nullptr;  // for threads of the same process
  cudaIpcMemHandle_t handle{};   // for other processes of the same host
};

template <typename T>
Result<std::vector<T>> gather(Communicator& host, const T& mine) {
  std::vector<T> all(static_cast<size_t>(host.size()));
  const std::vector<size_t> bytes(all.size(), sizeof(T));
  host.all_gather(&mine, bytes, all.data());
  NIBBLE_TRY(host.status());
  return all;
}

// Memory of all ranks that one of the one-shot kernels works on.
class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    for (void* memory : opened_) (void)cudaIpcCloseMemHandle(memory);
    (void)cudaFree(memory_);
    (void)cudaFree(counters_);
  }

  // False where this rank can't reach another one's memory.
  Result<bool> open(Communicator& host, size_t bytes, int blocks) {
    const size_t counter_bytes = static_cast<size_t>(blocks) * sizeof(uint32_t);
    const bool is_made =
        host.size() <= cuda::kMaxOneShotRanks &&
        cudaMalloc(reinterpret_cast<void**>(&memory_), bytes) == cudaSuccess &&
        cudaMemset(memory_, 0, bytes) == cudaSuccess &&
        cudaMalloc(reinterpret_cast<void**>(&counters_), counter_bytes) == cudaSuccess &&
        cudaMemset(counters_, 0, counter_bytes) == cudaSuccess &&
        cudaDeviceSynchronize() == cudaSuccess;
    Invitation mine;
    (void)::gethostname(mine.host.data(), mine.host.size() - 1);
    mine.pid = ::getpid();
    mine.address = is_made ? memory_ : nullptr;
    if (is_made) {
      (void)cudaGetDevice(&mine.ordinal);
      (void)cudaIpcGetMemHandle(&mine.handle, memory_);
    }
    const std::vector<Invitation> all = NIBBLE_TRY(gather(host, mine));
    bool is_reached = is_made;
    for (size_t r = 0; r < all.size() && is_reached; ++r) {
      is_reached = all[r].address != nullptr && reach(all[r], mine, r);
    }
    (void)cudaGetLastError();  // what failed is no error: NCCL does it all
    const std::vector<char> reached = NIBBLE_TRY(gather(host, static_cast<char>(is_reached)));
    return std::all_of(reached.begin(), reached.end(), [](char yes) { return yes != 0; });
  }

  // Args: OneShotArgs or OneShotNormArgs.
  template <typename Args>
  void fill(Args& args) const {
    std::copy(shared_.begin(), shared_.end(), args.shared);
    args.counters = counters_;
  }

 private:
  bool reach(const Invitation& other, const Invitation& mine, size_t r) {
    if (other.host != mine.host) return false;
    if (other.pid == mine.pid) {
      shared_[r] = other.address;
      if (other.ordinal == mine.ordinal) return true;
      const cudaError_t code = cudaDeviceEnablePeerAccess(other.ordinal, 0);
      return code == cudaSuccess || code == cudaErrorPeerAccessAlreadyEnabled;
    }
    void* memory = nullptr;
    if (cudaIpcOpenMemHandle(&memory, other.handle, cudaIpcMemLazyEnablePeerAccess) !=
        cudaSuccess) {
      return false;
    }
    opened_.push_back(memory);
    shared_[r] = static_cast<std::byte*>(memory);
    return true;
  }

  std::byte* memory_ = nullptr;
  uint32_t* counters_ = nullptr;
  std::vector<void*> opened_;
  std::array<std::byte*, cuda::kMaxOneShotRanks> shared_{};
};

class CudaCommunicator final : public Communicator {
 public:
  CudaCommunicator(Device& device, Communicator& host, const Nccl& nccl, NcclComm comm)
      : Communicator(host.rank(), host.size()),
        device_(device),
        host_(host),
        nccl_(nccl),
        comm_(comm),
        stream_(cuda_stream(device)) {}
  CudaCommunicator(const CudaCommunicator&) = delete;
  CudaCommunicator& operator=(const CudaCommunicator&) = delete;
  ~CudaCommunicator() override {
    if (status()) {
      (void)nccl_.comm_destroy(comm_);
    } else {
      (void)nccl_.comm_abort(comm_);  // the others may never come
    }
  }

  std::string_view name() const override { return "nccl"; }

  Status open_one_shot(size_t bytes) {
    one_shot_capacity_ = static_cast<int64_t>(bytes / 16 * 4);
    const bool sums = NIBBLE_TRY(
        shared_.open(host_, OneShotLayout::bytes(one_shot_capacity_), cuda::kOneShotBlocks));
    if (!sums) one_shot_capacity_ = 0;
    return {};
  }

  // Whether all ranks say yes.
  Result<bool> agreed(bool yes) {
    const std::vector<char> all = NIBBLE_TRY(gather(host_, static_cast<char>(yes)));
    return std::all_of(all.begin(), all.end(), [](char of_rank) { return of_rank != 0; });
  }

  Status open_norms(int64_t rows) {
    const bool norms =
        NIBBLE_TRY(agreed(cuda::one_shot_norm_runs_here())) &&
        NIBBLE_TRY(norm_shared_.open(host_, cuda::NormLayout::kBytes, cuda::kNormBlocks));
    norm_rows_ = norms ? std::min(rows, cuda::kMaxNormRows) : 0;
    return {};
  }

 protected:
  Status do_all_reduce_sum(float* x, int64_t count) override {
    bf16_copies(device_).make_void();
    if (count <= one_shot_capacity_ && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
      OneShotArgs args;
      shared_.fill(args);
      args.rank = rank();
      args.size = size();
      args.capacity = one_shot_capacity_;
      args.x = x;
      args.count = count;
      return check(cuda::launch_one_shot_sum(args, stream_), "the one-shot sum");
    }
    return said(nccl_.all_reduce(x, x, static_cast<size_t>(count), NcclType::kFloat32, NcclOp::kSum,
                                 comm_, stream_),
                "ncclAllReduce");
  }

  bool has_sum_norm(const SumNorm& arguments) const override {
    return arguments.rows <= norm_rows_ &&
           cuda::one_shot_norm_takes(arguments.rows, arguments.cols);
  }

  Status do_all_reduce_sum_norm(const SumNorm& arguments) override {
    bf16_copies(device_).make_void();
    cuda::OneShotNormArgs args;
    norm_shared_.fill(args);
    args.work = arguments;
    // As CudaKernels::add_rms_norm() leaves one.
    args.copy = bf16_copies(device_).make(arguments.out, arguments.rows, arguments.cols,
                                          arguments.out_stride, norm_copy_parts(arguments.rows));
    args.rank = rank();
    args.size = size();
    return check(cuda::launch_one_shot_norm(args, stream_), "the one-shot sum with a norm");
  }

  Status do_all_gather(const void* in, std::span<const size_t> bytes, void* out) override {
    bf16_copies(device_).make_void();
    if (are_equal(bytes)) {
      return said(nccl_.all_gather(in, out, bytes[0], NcclType::kInt8, comm_, stream_),
                  "ncclAllGather");
    }
    return together([&]() -> Status {
      auto* at = static_cast<std::byte*>(out);
      for (int r = 0; r < size(); ++r) {
        const size_t part = bytes[static_cast<size_t>(r)];
        if (part > 0) {
          NIBBLE_TRY(said(nccl_.broadcast(in, at, part, NcclType::kInt8, r, comm_, stream_),
                          "ncclBroadcast"));
        }
        at += part;
      }
      return {};
    });
  }

  Status do_reduce_scatter_sum(const float* in, std::span<const int64_t> counts,
                               float* out) override {
    bf16_copies(device_).make_void();
    if (are_equal(counts)) {
      return said(nccl_.reduce_scatter(in, out, static_cast<size_t>(counts[0]), NcclType::kFloat32,
                                       NcclOp::kSum, comm_, stream_),
                  "ncclReduceScatter");
    }
    return together([&]() -> Status {
      const float* at = in;
      for (int r = 0; r < size(); ++r) {
        const int64_t count = counts[static_cast<size_t>(r)];
        if (count > 0) {
          NIBBLE_TRY(said(nccl_.reduce(at, out, static_cast<size_t>(count), NcclType::kFloat32,
                                       NcclOp::kSum, r, comm_, stream_),
                          "ncclReduce"));
        }
        at += count;
      }
      return {};
    });
  }

  Status do_all_to_all(std::span<const ConstBytes> sends,
                       std::span<const Bytes> receives) override {
    bf16_copies(device_).make_void();
    const auto me = static_cast<size_t>(rank());
    if (!sends[me].empty() && sends[me].data() != receives[me].data()) {
      NIBBLE_TRY(check(cudaMemcpyAsync(receives[me].data(), sends[me].data(), sends[me].size(),
                                       cudaMemcpyDeviceToDevice, stream_),
                       "cudaMemcpyAsync"));
    }
    return together([&]() -> Status {
      for (int r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        const ConstBytes send = sends[static_cast<size_t>(r)];
        const Bytes receive = receives[static_cast<size_t>(r)];
        if (!send.empty()) {
          NIBBLE_TRY(said(nccl_.send(send.data(), send.size(), NcclType::kInt8, r, comm_, stream_),
                          "ncclSend"));
        }
        if (!receive.empty()) {
          NIBBLE_TRY(
              said(nccl_.recv(receive.data(), receive.size(), NcclType::kInt8, r, comm_, stream_),
                   "ncclRecv"));
        }
      }
      return {};
    });
  }

  Status do_broadcast(void* data, size_t bytes, int root) override {
    bf16_copies(device_).make_void();
    return said(nccl_.broadcast(data, data, bytes, NcclType::kInt8, root, comm_, stream_),
                "ncclBroadcast");
  }

  Status do_barrier() override {
    NIBBLE_TRY(device_.synchronize());
    host_.barrier();
    return host_.status();
  }

  void do_abort(std::string_view message) override { host_.abort(message); }

 private:
  // What `operations` gives NCCL is one operation to it.
  template <typename Operations>
  Status together(Operations operations) const {
    NIBBLE_TRY(said(nccl_.group_start(), "ncclGroupStart"));
    Status given = operations();
    Status ended = said(nccl_.group_end(), "ncclGroupEnd");
    return given ? std::move(ended) : std::move(given);
  }

  template <typename T>
  static bool are_equal(std::span<T> sizes) {
    return std::all_of(sizes.begin(), sizes.end(), [&](T size) { return size == sizes[0]; });
  }

  Status said(NcclResult result, std::string_view call) const {
    if (result == NcclResult::kSuccess) return {};
    return unavailable(
        fmt::format("rank {}: {}: {}", rank(), call, nccl_.get_error_string(result)));
  }

  Device& device_;
  Communicator& host_;
  const Nccl& nccl_;
  NcclComm comm_;
  cudaStream_t stream_;
  int64_t one_shot_capacity_ = 0;  // floats; 0: NCCL alone
  int64_t norm_rows_ = 0;          // 0: never
  SharedMemory shared_;
  SharedMemory norm_shared_;
};

}  // namespace

Result<std::unique_ptr<Communicator>> cuda_communicator(Device& device, Communicator& host,
                                                        const CudaCommunicatorOptions& options) {
  NIBBLE_TRY(device.memory());  // makes it this thread's current device
  // Where one rank can't, none may wait for it in ncclCommInitRank.
  const auto nccl = Nccl::find();
  const std::vector<char> found = NIBBLE_TRY(gather(host, static_cast<char>(nccl.has_value())));
  if (!nccl) return tl::unexpected(nccl.error());
  for (size_t r = 0; r < found.size(); ++r) {
    if (found[r] == 0) return unsupported(fmt::format("rank {} finds no NCCL", r));
  }
  const Nccl& n = **nccl;
  NcclUniqueId id{};
  if (host.rank() == 0 && n.get_unique_id(&id) != NcclResult::kSuccess) {
    host.abort("ncclGetUniqueId failed");
  }
  host.broadcast(&id, sizeof id, 0);
  NIBBLE_TRY(host.status());
  NcclComm comm = nullptr;
  const NcclResult joined = n.comm_init_rank(&comm, host.size(), id, host.rank());
  if (joined != NcclResult::kSuccess) {
    const std::string message = fmt::format("ncclCommInitRank: {}", n.get_error_string(joined));
    host.abort(message);
    return unavailable(message);
  }
  auto made = std::make_unique<CudaCommunicator>(device, host, n, comm);
  if (options.one_shot_bytes > 0) NIBBLE_TRY(made->open_one_shot(options.one_shot_bytes));
  if (options.one_shot_norm_rows > 0) NIBBLE_TRY(made->open_norms(options.one_shot_norm_rows));
  return made;
}

}  // namespace nibble
