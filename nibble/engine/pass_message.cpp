#include "nibble/engine/pass_message.h"

#include <cstring>
#include <type_traits>

#include "nibble/base/check.h"

namespace nibble {
namespace {

class Writer {
 public:
  explicit Writer(PassKind kind) { put(kind); }

  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    append(&value, sizeof value);
  }
  template <typename T>
  void put_all(std::span<const T> values) {
    put(static_cast<uint64_t>(values.size()));
    append(values.data(), values.size_bytes());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  void append(const void* data, size_t size) {
    if (size == 0) return;
    const size_t at = bytes_.size();
    bytes_.resize(at + size);
    std::memcpy(bytes_.data() + at, data, size);
  }

  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  T get() {
    T value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  template <typename T>
  std::vector<T> get_all() {
    const auto count = get<uint64_t>();
    NIBBLE_CHECK(count <= bytes_.size() / sizeof(T));
    std::vector<T> values(count);
    const auto from = take(count * sizeof(T));
    if (count > 0) std::memcpy(values.data(), from.data(), from.size());
    return values;
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> take(size_t count) {
    NIBBLE_CHECK(count <= bytes_.size());
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

  std::span<const std::byte> bytes_;
};

void put_batch(Writer& writer, const Batch& batch, int64_t block_size) {
  writer.put_all(batch.token_ids);
  std::vector<AttentionSegment> segments(batch.attention.segments.begin(),
                                         batch.attention.segments.end());
  std::vector<int64_t> table_sizes;
  std::vector<int32_t> tables;
  for (AttentionSegment& segment : segments) {
    const int64_t last = segment.slot(segment.first_position + segment.num_tokens - 1);
    const int64_t size = last / block_size + 1;
    table_sizes.push_back(size);
    tables.insert(tables.end(), segment.block_table, segment.block_table + size);
    segment.block_table = nullptr;
  }
  writer.put_all(std::span<const AttentionSegment>(segments));
  writer.put_all(std::span<const int64_t>(table_sizes));
  writer.put_all(std::span<const int32_t>(tables));
}

}  // namespace

std::vector<std::byte> PassMessage::forward(const Batch& batch, int64_t block_size) {
  Writer writer(PassKind::kForward);
  put_batch(writer, batch, block_size);
  return writer.take();
}

std::vector<std::byte> PassMessage::forward_mtp(const Batch& batch,
                                                std::span<const HiddenRow> previous,
                                                int64_t block_size) {
  Writer writer(PassKind::kForwardMtp);
  put_batch(writer, batch, block_size);
  writer.put_all(previous);
  return writer.take();
}

std::vector<std::byte> PassMessage::keep_hidden(std::span<const KeptRow> rows) {
  Writer writer(PassKind::kKeepHidden);
  writer.put_all(rows);
  return writer.take();
}

std::vector<std::byte> PassMessage::logits(HiddenRow::From from, std::span<const RowRange> rows) {
  Writer writer(PassKind::kLogits);
  writer.put(from);
  writer.put_all(rows);
  return writer.take();
}

std::vector<std::byte> PassMessage::head(HiddenRow::From from, std::span<const int64_t> rows) {
  Writer writer(PassKind::kHead);
  writer.put(from);
  writer.put_all(rows);
  return writer.take();
}

std::vector<std::byte> PassMessage::sample(HiddenRow::From from, std::span<const SampleRow> rows) {
  Writer writer(PassKind::kSample);
  writer.put(from);
  writer.put(static_cast<uint64_t>(rows.size()));
  for (SampleRow row : rows) {
    writer.put_all(row.bias);
    writer.put_all(row.allowed);
    writer.put_all(row.forbidden);
    writer.put_all(row.seen);
    row.bias = {};
    row.allowed = {};
    row.forbidden = {};
    row.seen = {};
    writer.put(row);
  }
  return writer.take();
}

std::vector<std::byte> PassMessage::weights(int64_t row) {
  Writer writer(PassKind::kWeights);
  writer.put(row);
  return writer.take();
}

std::vector<std::byte> PassMessage::of_round(const PassRound& round) {
  Writer writer(PassKind::kRound);
  writer.put(round.kind);
  writer.put(round.recorded_rows);
  writer.put(static_cast<uint64_t>(round.parts.size()));
  for (const PassRound::Part& part : round.parts) {
    writer.put(part.rows);
    writer.put(part.answer_size);
    writer.put_all(std::span<const std::byte>(part.message));
  }
  return writer.take();
}

std::vector<std::byte> PassMessage::of_kind(PassKind kind) { return Writer(kind).take(); }

std::vector<std::byte> PassMessage::set_up(const PassPlan& plan) {
  Writer writer(PassKind::kSetUp);
  writer.put(plan.cache);
  writer.put(plan.max_rows);
  writer.put(plan.max_generated);
  writer.put(plan.max_batch_size);
  writer.put(plan.cache_fraction);
  writer.put(plan.record_all);
  writer.put_all(std::span<const int64_t>(plan.options.graph_sizes));
  writer.put(plan.options.num_weight_rows);
  return writer.take();
}

PassMessage PassMessage::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  PassMessage message;
  message.kind = reader.get<PassKind>();
  switch (message.kind) {
    case PassKind::kSetUp:
      message.plan.cache = reader.get<KvCacheOptions>();
      message.plan.max_rows = reader.get<int64_t>();
      message.plan.max_generated = reader.get<int64_t>();
      message.plan.max_batch_size = reader.get<int64_t>();
      message.plan.cache_fraction = reader.get<double>();
      message.plan.record_all = reader.get<bool>();
      message.plan.options.graph_sizes = reader.get_all<int64_t>();
      message.plan.options.num_weight_rows = reader.get<int64_t>();
      break;
    case PassKind::kForward:
    case PassKind::kForwardMtp:
      message.token_ids_ = reader.get_all<int32_t>();
      message.segments_ = reader.get_all<AttentionSegment>();
      message.table_sizes_ = reader.get_all<int64_t>();
      message.tables_ = reader.get_all<int32_t>();
      NIBBLE_CHECK(message.segments_.size() == message.table_sizes_.size());
      if (message.kind == PassKind::kForwardMtp) message.previous = reader.get_all<HiddenRow>();
      break;
    case PassKind::kKeepHidden:
      message.kept = reader.get_all<KeptRow>();
      break;
    case PassKind::kLogits:
      message.from = reader.get<HiddenRow::From>();
      message.rows = reader.get_all<RowRange>();
      break;
    case PassKind::kSample:
      message.from = reader.get<HiddenRow::From>();
      message.samples_.resize(reader.get<uint64_t>());
      for (Sample& sample : message.samples_) {
        sample.bias = reader.get_all<TokenBias>();
        sample.allowed = reader.get_all<uint64_t>();
        sample.forbidden = reader.get_all<int32_t>();
        sample.seen = reader.get_all<TokenSeen>();
        sample.row = reader.get<SampleRow>();
      }
      break;
    case PassKind::kWeights:
      message.weight_row = reader.get<int64_t>();
      break;
    case PassKind::kRound:
      message.round.kind = reader.get<PassKind>();
      message.round.recorded_rows = reader.get<int64_t>();
      message.round.parts.resize(reader.get<uint64_t>());
      for (PassRound::Part& part : message.round.parts) {
        part.rows = reader.get<int64_t>();
        part.answer_size = reader.get<int64_t>();
        part.message = reader.get_all<std::byte>();
      }
      break;
    case PassKind::kHead:
      message.from = reader.get<HiddenRow::From>();
      message.head_rows = reader.get_all<int64_t>();
      break;
    case PassKind::kNothing:
    case PassKind::kStop:
    case PassKind::kEnd:
      break;
  }
  NIBBLE_CHECK(reader.at_end());
  return message;
}

std::vector<SampleRow> PassMessage::samples() const {
  std::vector<SampleRow> asked;
  for (const Sample& sample : samples_) {
    SampleRow& row = asked.emplace_back(sample.row);
    row.bias = sample.bias;
    row.allowed = sample.allowed;
    row.forbidden = sample.forbidden;
    row.seen = sample.seen;
  }
  return asked;
}

Batch PassMessage::batch() const {
  placed_ = segments_;
  int64_t at = 0;
  for (size_t i = 0; i < placed_.size(); ++i) {
    placed_[i].block_table = tables_.data() + at;
    at += table_sizes_[i];
  }
  NIBBLE_CHECK(at == static_cast<int64_t>(tables_.size()));
  Batch batch;
  batch.token_ids = token_ids_;
  batch.attention = {static_cast<int64_t>(token_ids_.size()), placed_};
  return batch;
}

}  // namespace nibble
