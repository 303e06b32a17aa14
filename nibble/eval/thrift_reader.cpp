#include "nibble/eval/thrift_reader.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 24;

}  // namespace

Result<uint8_t> ThriftReader::byte() {
  if (at_ >= bytes_.size()) return corrupt("metadata ends early");
  return static_cast<uint8_t>(bytes_[at_++]);
}

Result<uint64_t> ThriftReader::varint() {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    const uint8_t part = NIBBLE_TRY(byte());
    value |= uint64_t{part & 0x7fU} << shift;
    if ((part & 0x80U) == 0) return value;
  }
  return corrupt("metadata holds a number of more than 64 bits");
}

Result<int64_t> ThriftReader::read_int() {
  const uint64_t zigzag = NIBBLE_TRY(varint());
  return static_cast<int64_t>(zigzag >> 1) ^ -static_cast<int64_t>(zigzag & 1);
}

Result<std::string> ThriftReader::read_text() {
  const uint64_t size = NIBBLE_TRY(varint());
  if (size > bytes_.size() - at_) return corrupt("metadata ends early");
  const auto* const begin = reinterpret_cast<const char*>(bytes_.data()) + at_;
  at_ += static_cast<size_t>(size);
  return std::string(begin, static_cast<size_t>(size));
}

Status ThriftReader::read_struct(const Field& field) {
  if (++depth_ > kMaxDepth) return corrupt("metadata is nested too deeply");
  int64_t id = 0;
  for (;;) {
    const uint8_t head = NIBBLE_TRY(byte());
    const auto type = static_cast<Type>(head & 0x0f);
    if (type == kStop) break;
    if (head >> 4 != 0) {
      id += head >> 4;
    } else {
      id = NIBBLE_TRY(read_int());
    }
    if (id < -32768 || id > 32767) return corrupt("metadata has a field out of range");
    const bool taken = NIBBLE_TRY(field(static_cast<int>(id), type));
    if (!taken) NIBBLE_TRY(skip(type));
  }
  --depth_;
  return {};
}

Status ThriftReader::read_list(Type type, const std::function<Status()>& item) {
  const uint8_t head = NIBBLE_TRY(byte());
  uint64_t size = head >> 4;
  if (size == 15) size = NIBBLE_TRY(varint());
  // Every element has a byte at least.
  if (size > bytes_.size() - at_) return corrupt("metadata has a list longer than itself");
  if (size > 0 && static_cast<Type>(head & 0x0f) != type) {
    return corrupt("metadata has a list of another type");
  }
  for (uint64_t i = 0; i < size; ++i) NIBBLE_TRY(item());
  return {};
}

Status ThriftReader::skip(Type type) {
  switch (type) {
    case kTrue:
    case kFalse:
    case kStop:
      return {};
    case kByte:
      (void)NIBBLE_TRY(byte());
      return {};
    case kI16:
    case kI32:
    case kI64:
      (void)NIBBLE_TRY(varint());
      return {};
    case kDouble:
      if (bytes_.size() - at_ < 8) return corrupt("metadata ends early");
      at_ += 8;
      return {};
    case kBinary:
      (void)NIBBLE_TRY(read_text());
      return {};
    case kList:
    case kSet: {
      if (at_ >= bytes_.size()) return corrupt("metadata ends early");
      const auto element = static_cast<Type>(static_cast<uint8_t>(bytes_[at_]) & 0x0f);
      // A boolean in a list takes a byte, unlike one in a struct.
      const Type stored = element == kTrue || element == kFalse ? kByte : element;
      if (++depth_ > kMaxDepth) return corrupt("metadata is nested too deeply");
      NIBBLE_TRY(read_list(element, [&] { return skip(stored); }));
      --depth_;
      return {};
    }
    case kMap:
      return unsupported("metadata holds a map");
    case kStruct:
      return read_struct([](int, Type) -> Result<bool> { return false; });
  }
  return corrupt("metadata has a field of an unknown type");
}

}  // namespace nibble
