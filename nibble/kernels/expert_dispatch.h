// What tokens need on their way to experts that ranks share, beside the operations of Kernels:
// which copy of an expert takes them, rows packed for each rank, and what comes back added up.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/kernels/matrix_view.h"

namespace nibble {

// Which slots of a layer hold an expert: slots[begin[e]], ..., slots[begin[e + 1] - 1].
struct ExpertSlotsView {
  const int32_t* begin = nullptr;  // [num_experts + 1]
  const int32_t* slots = nullptr;  // [num_slots]
};

// Pointers and matrices are in the memory of the device, float rows; spans are the host's and are
// read before a call returns. What fails on the device is told by its synchronize().
class ExpertDispatch {
 public:
  virtual ~ExpertDispatch() = default;

  // expert_ids[i] = slots[begin[e] + h % (begin[e + 1] - begin[e])], e = expert_ids[i], h = the
  // bits of weights[i] as an integer, times 2654435761 (Knuth's multiplicative hash) modulo 2^32,
  // shifted right by 16. So which copy of an expert a token takes follows from the token alone,
  // whatever else is in the batch. May be recorded (StepGraphs).
  //
  //   weights, expert_ids  [count], of Kernels::route()
  virtual void place(int64_t count, const float* weights, const ExpertSlotsView& slots,
                     int32_t* expert_ids) = 0;

  // out[i] = from[rows[i]]. No more than max_rows of make_expert_dispatch().
  virtual void gather_rows(const MatrixView& from, std::span<const int32_t> rows,
                           const MatrixView& out) = 0;

  // out[t] = 0 + from[rows[t, 0]] + from[rows[t, 1]] + ..., in that order in binary32, without
  // those that are -1. rows: [out.rows, n], no more than max_rows in all.
  virtual void sum_rows(const MatrixView& from, std::span<const int32_t> rows,
                        const MatrixView& out) = 0;
};

// For kernels of `device`. max_rows: the largest number of indices of one call. Errors:
// kOutOfMemory.
Result<std::unique_ptr<ExpertDispatch>> make_expert_dispatch(Device& device, int64_t max_rows);

// ExpertDispatch::place in host memory.
void place_experts(int64_t count, const float* weights, const ExpertSlotsView& slots,
                   int32_t* expert_ids);

}  // namespace nibble
