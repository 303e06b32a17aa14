// Communicator: what the ranks that share one model say to each other.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// Where a rank stands, for a watchdog. Operations are counted from 1.
struct CommPosition {
  std::string_view operation;  // the last one begun; empty before the first
  uint64_t number = 0;
  size_t bytes = 0;      // that this rank gives
  bool inside = false;   // false: it has ended, the rank computes
  bool waiting = false;  // for work: this may take any time (Communicator::IdleScope)
  std::chrono::steady_clock::time_point since;  // it began, or ended

  // "in all_reduce_sum 17 (57344 bytes) for 31 s", "computing for 31 s after all_reduce_sum 17".
  std::string to_string(std::chrono::steady_clock::time_point now) const;
};

// x += y_0 + y_1 + ..., the ranks' parts of y; out = x under an RMSNorm: what follows a sublayer
// whose weights are cut over the ranks. Rows of binary32 values, all ranks the same x, weight and
// epsilon.
struct SumNorm {
  float* y = nullptr;  // [rows, cols], contiguous; afterwards undefined
  int64_t rows = 0;
  int64_t cols = 0;
  float* x = nullptr;
  int64_t x_stride = 0;
  const float* weight = nullptr;  // [cols]
  float epsilon = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Collective operations of ranks 0 .. size() - 1. Every rank calls the same operations in the same
// order with sizes that fit; buffers are in the memory that the implementation works on (the
// host's, but for NCCL).
//
// Sums are taken in the order of the ranks, ((x_0 + x_1) + x_2) + ..., in binary32, so that every
// rank gets the same bits, in every run and whatever the size.
//
// Like the operations of a device these return nothing: the first failure stays in status(), later
// operations do nothing and leave their outputs as they are. A caller looks at status() before it
// believes what it got.
//
// Implementations: SingleCommunicator, thread_communicators(), MPI (mpi_communicator.h). Used from
// one thread at a time, but for abort(), look(), position() and status().
class Communicator {
 public:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  // "threads", "mpi".
  virtual std::string_view name() const = 0;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // x[i] = sum of all ranks' x[i].
  void all_reduce_sum(float* x, int64_t count);

  // All of SumNorm as one operation, where the implementation has one for so many rows and columns,
  // which is the same on all ranks; false: nothing was done. Pointers are aligned to 16 bytes,
  // strides multiples of 4.
  bool all_reduce_sum_norm(const SumNorm& arguments);

  // out = the ranks' inputs one after another; rank r gives bytes[r]. `in` may be its place in out.
  void all_gather(const void* in, std::span<const size_t> bytes, void* out);

  // `in` [sum of counts] is cut into parts of counts[r] elements; out [counts[rank()]] = sum of all
  // ranks' part rank(). May not overlap.
  void reduce_scatter_sum(const float* in, std::span<const int64_t> counts, float* out);

  // sends[r] goes to rank r, what rank r sends here comes into receives[r], whose size is that of
  // r's sends[rank()]. Both have size() entries, empty ones too.
  using Bytes = std::span<std::byte>;
  using ConstBytes = std::span<const std::byte>;
  void all_to_all(std::span<const ConstBytes> sends, std::span<const Bytes> receives);

  // data of `root` on every rank.
  void broadcast(void* data, size_t bytes, int root);

  // Returns when every rank has called it.
  void barrier();

  // A message of any size from `root`: its size, then its bytes.
  void broadcast_message(std::vector<std::byte>& message, int root);

  // The first failure: kUnavailable naming the rank and what it said, or what the transport said.
  Status status() const;

  // Hears whether another rank has failed, without an operation: for a watchdog. Thread-safe.
  void look();

  // The ranks have said all they had to say: from now on no rank that goes is missed.
  void close();

  // Ends what the other ranks wait for: their operations fail with "rank R: message". Thread-safe;
  // the first call counts.
  void abort(std::string_view message);

  CommPosition position() const;

  // While it lives this rank waits for work, for any time; a watchdog keeps quiet.
  class IdleScope {
   public:
    explicit IdleScope(Communicator& comm) : comm_(comm) { comm_.set_waiting(true); }
    IdleScope(const IdleScope&) = delete;
    IdleScope& operator=(const IdleScope&) = delete;
    ~IdleScope() { comm_.set_waiting(false); }

   private:
    Communicator& comm_;
  };

 protected:
  // What an implementation brings. The others are built of do_all_to_all where nothing better is
  // known; sums keep their order.
  virtual Status do_all_to_all(std::span<const ConstBytes> sends,
                               std::span<const Bytes> receives) = 0;
  virtual Status do_all_reduce_sum(float* x, int64_t count);
  virtual bool has_sum_norm(const SumNorm& /*arguments*/) const { return false; }
  virtual Status do_all_reduce_sum_norm(const SumNorm& arguments);
  virtual Status do_all_gather(const void* in, std::span<const size_t> bytes, void* out);
  virtual Status do_reduce_scatter_sum(const float* in, std::span<const int64_t> counts,
                                       float* out);
  virtual Status do_broadcast(void* data, size_t bytes, int root);
  virtual Status do_barrier();
  virtual void do_abort(std::string_view message) = 0;
  // What look() finds; called from any thread.
  virtual Status do_look() { return {}; }

  bool is_closed() const;

  void keep(Status status);  // the first failure stays

 private:
  template <typename Operation>
  void perform(std::string_view name, size_t bytes, Operation operation);
  void set_waiting(bool waiting);

  const int rank_;
  const int size_;
  mutable std::mutex mutex_;  // guards all below
  Status status_;
  bool aborted_ = false;
  bool closed_ = false;
  CommPosition position_;
  std::vector<float> sums_;       // scratch of one operation
  std::vector<std::byte> parts_;  // likewise
};

// One rank: every operation is a copy or nothing.
class SingleCommunicator : public Communicator {
 public:
  SingleCommunicator() : Communicator(0, 1) {}
  std::string_view name() const override { return "single"; }

 protected:
  Status do_all_to_all(std::span<const ConstBytes> sends, std::span<const Bytes> receives) override;
  void do_abort(std::string_view /*message*/) override {}
};

// The sizes of `total` things dealt to `size` ranks, the first ones one more where it doesn't
// divide.
std::vector<int64_t> even_parts(int64_t total, int size);

}  // namespace nibble
