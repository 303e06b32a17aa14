#include "nibble/comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

// Up to this size each rank sends its whole vector to all others and adds them up itself: one
// exchange instead of two, for more bytes.
constexpr int64_t kOneShotBytes = 64 * 1024;

// out = in[0] + in[1] + ..., in that order.
void add_in_order(std::span<const float* const> in, int64_t count, float* out) {
  if (out != in[0]) std::memcpy(out, in[0], static_cast<size_t>(count) * sizeof(float));
  for (const float* const x : in.subspan(1)) {
    for (int64_t i = 0; i < count; ++i) out[i] += x[i];
  }
}

std::byte* bytes_at(void* data, size_t offset) { return static_cast<std::byte*>(data) + offset; }
const std::byte* bytes_at(const void* data, size_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

}  // namespace

std::string CommPosition::to_string(std::chrono::steady_clock::time_point now) const {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now - since).count();
  if (operation.empty()) return "before its first operation";
  if (waiting)
    return fmt::format("waiting for work for {} s after {} {}", seconds, operation, number);
  if (inside) return fmt::format("in {} {} ({} bytes) for {} s", operation, number, bytes, seconds);
  return fmt::format("computing for {} s after {} {}", seconds, operation, number);
}

template <typename Operation>
void Communicator::perform(std::string_view operation_name, size_t bytes, Operation operation) {
  {
    const std::lock_guard lock(mutex_);
    if (!status_) return;
    position_.operation = operation_name;
    ++position_.number;
    position_.bytes = bytes;
    position_.inside = true;
    position_.since = std::chrono::steady_clock::now();
  }
  Status result = operation();
  const std::lock_guard lock(mutex_);
  position_.inside = false;
  position_.since = std::chrono::steady_clock::now();
  if (!result && status_) status_ = std::move(result);
}

void Communicator::keep(Status status) {
  const std::lock_guard lock(mutex_);
  if (!status && status_) status_ = std::move(status);
}

void Communicator::set_waiting(bool waiting) {
  const std::lock_guard lock(mutex_);
  position_.waiting = waiting;
}

Status Communicator::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

CommPosition Communicator::position() const {
  const std::lock_guard lock(mutex_);
  return position_;
}

void Communicator::look() {
  if (is_closed() || !status()) return;
  Status seen = do_look();
  if (!seen && !is_closed()) keep(std::move(seen));
}

void Communicator::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

bool Communicator::is_closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void Communicator::abort(std::string_view message) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(aborted_, true)) return;
    if (status_) status_ = unavailable(fmt::format("rank {}: {}", rank_, message));
  }
  do_abort(message);
}

void Communicator::all_reduce_sum(float* x, int64_t count) {
  NIBBLE_CHECK(count >= 0);
  if (size_ == 1 || count == 0) return;
  perform("all_reduce_sum", static_cast<size_t>(count) * sizeof(float),
          [&] { return do_all_reduce_sum(x, count); });
}

bool Communicator::all_reduce_sum_norm(const SumNorm& arguments) {
  if (size_ == 1 || !has_sum_norm(arguments)) return false;
  perform("all_reduce_sum_norm",
          static_cast<size_t>(arguments.rows * arguments.cols) * sizeof(float),
          [&] { return do_all_reduce_sum_norm(arguments); });
  return true;
}

void Communicator::all_gather(const void* in, std::span<const size_t> bytes, void* out) {
  NIBBLE_CHECK(static_cast<int>(bytes.size()) == size_);
  perform("all_gather", bytes[static_cast<size_t>(rank_)],
          [&] { return do_all_gather(in, bytes, out); });
}

void Communicator::reduce_scatter_sum(const float* in, std::span<const int64_t> counts,
                                      float* out) {
  NIBBLE_CHECK(static_cast<int>(counts.size()) == size_);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  perform("reduce_scatter_sum", static_cast<size_t>(total) * sizeof(float),
          [&] { return do_reduce_scatter_sum(in, counts, out); });
}

void Communicator::all_to_all(std::span<const ConstBytes> sends, std::span<const Bytes> receives) {
  NIBBLE_CHECK(static_cast<int>(sends.size()) == size_);
  NIBBLE_CHECK(static_cast<int>(receives.size()) == size_);
  size_t total = 0;
  for (const ConstBytes& send : sends) total += send.size();
  perform("all_to_all", total, [&] { return do_all_to_all(sends, receives); });
}

void Communicator::broadcast(void* data, size_t bytes, int root) {
  NIBBLE_CHECK(root >= 0 && root < size_);
  if (size_ == 1) return;
  perform("broadcast", rank_ == root ? bytes : 0, [&] { return do_broadcast(data, bytes, root); });
}

void Communicator::barrier() {
  if (size_ == 1) return;
  perform("barrier", 0, [&] { return do_barrier(); });
}

void Communicator::broadcast_message(std::vector<std::byte>& message, int root) {
  // A short one goes with its size.
  std::array<std::byte, 4096> first{};
  constexpr size_t kHead = sizeof(uint64_t);
  uint64_t size = message.size();
  std::memcpy(first.data(), &size, kHead);
  const auto part = [&] { return std::min<size_t>(size, first.size() - kHead); };
  if (rank_ == root && size > 0) std::memcpy(first.data() + kHead, message.data(), part());
  broadcast(first.data(), first.size(), root);
  if (!status()) return;
  std::memcpy(&size, first.data(), kHead);
  message.resize(size);
  if (rank_ != root && size > 0) std::memcpy(message.data(), first.data() + kHead, part());
  if (size > part()) broadcast(message.data() + part(), size - part(), root);
}

Status Communicator::do_all_gather(const void* in, std::span<const size_t> bytes, void* out) {
  const auto me = static_cast<size_t>(rank_);
  const std::vector<ConstBytes> sends(bytes.size(), {bytes_at(in, 0), bytes[me]});
  std::vector<Bytes> receives;
  size_t at = 0;
  for (const size_t part : bytes) {
    receives.emplace_back(bytes_at(out, at), part);
    at += part;
  }
  return do_all_to_all(sends, receives);
}

Status Communicator::do_reduce_scatter_sum(const float* in, std::span<const int64_t> counts,
                                           float* out) {
  const int64_t mine = counts[static_cast<size_t>(rank_)];
  sums_.resize(static_cast<size_t>(mine * size_));
  std::vector<ConstBytes> sends;
  std::vector<Bytes> receives;
  std::vector<const float*> parts;
  for (int64_t r = 0, at = 0; r < size_; ++r) {
    const int64_t count = counts[static_cast<size_t>(r)];
    sends.push_back(std::as_bytes(std::span(in + at, static_cast<size_t>(count))));
    at += count;
    float* const part = sums_.data() + r * mine;
    receives.push_back(std::as_writable_bytes(std::span(part, static_cast<size_t>(mine))));
    parts.push_back(part);
  }
  NIBBLE_TRY(do_all_to_all(sends, receives));
  add_in_order(parts, mine, out);
  return {};
}

// Of those that say they have none.
Status Communicator::do_all_reduce_sum_norm(const SumNorm& /*arguments*/) {
  return unsupported("this communicator has no sum with a norm");
}

Status Communicator::do_all_reduce_sum(float* x, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (count * static_cast<int64_t>(sizeof(float)) <= kOneShotBytes) {
    sums_.resize(static_cast<size_t>(count * size_));
    const std::vector<size_t> sizes(static_cast<size_t>(size_), bytes);
    NIBBLE_TRY(do_all_gather(x, sizes, sums_.data()));
    std::vector<const float*> parts;
    for (int64_t r = 0; r < size_; ++r) parts.push_back(sums_.data() + r * count);
    add_in_order(parts, count, x);
    return {};
  }
  const std::vector<int64_t> counts = even_parts(count, size_);
  std::vector<size_t> sizes;
  size_t before = 0;
  for (int r = 0; r < size_; ++r) {
    sizes.push_back(static_cast<size_t>(counts[static_cast<size_t>(r)]) * sizeof(float));
    if (r < rank_) before += sizes.back();
  }
  parts_.resize(sizes[static_cast<size_t>(rank_)]);
  NIBBLE_TRY(do_reduce_scatter_sum(x, counts, reinterpret_cast<float*>(parts_.data())));
  return do_all_gather(parts_.data(), sizes, x);
}

Status Communicator::do_broadcast(void* data, size_t bytes, int root) {
  std::vector<ConstBytes> sends(static_cast<size_t>(size_));
  std::vector<Bytes> receives(static_cast<size_t>(size_));
  if (rank_ == root) {
    for (size_t r = 0; r < sends.size(); ++r) {
      if (static_cast<int>(r) != root) sends[r] = {bytes_at(data, 0), bytes};
    }
  } else {
    receives[static_cast<size_t>(root)] = {bytes_at(data, 0), bytes};
  }
  return do_all_to_all(sends, receives);
}

Status Communicator::do_barrier() {
  std::byte token{};
  std::vector<std::byte> tokens(static_cast<size_t>(size_));
  const std::vector<size_t> sizes(static_cast<size_t>(size_), 1);
  return do_all_gather(&token, sizes, tokens.data());
}

Status SingleCommunicator::do_all_to_all(std::span<const ConstBytes> sends,
                                         std::span<const Bytes> receives) {
  NIBBLE_CHECK(sends[0].size() == receives[0].size());
  if (!sends[0].empty() && sends[0].data() != receives[0].data()) {
    std::memmove(receives[0].data(), sends[0].data(), sends[0].size());
  }
  return {};
}

std::vector<int64_t> even_parts(int64_t total, int size) {
  std::vector<int64_t> parts(static_cast<size_t>(size), total / size);
  for (int64_t r = 0; r < total % size; ++r) ++parts[static_cast<size_t>(r)];
  return parts;
}

}  // namespace nibble
