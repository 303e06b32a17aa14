// Thrift's compact protocol, as far as Parquet's metadata needs it.
// Source: apache/thrift, doc/specs/thrift-compact-protocol.md.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "nibble/base/result.h"

namespace nibble {

class ThriftReader {
 public:
  explicit ThriftReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // The wire types of a field; kTrue and kFalse are a whole boolean.
  enum Type {
    kStop = 0,
    kTrue = 1,
    kFalse = 2,
    kByte = 3,
    kI16 = 4,
    kI32 = 5,
    kI64 = 6,
    kDouble = 7,
    kBinary = 8,
    kList = 9,
    kSet = 10,
    kMap = 11,
    kStruct = 12
  };

  // Calls `field` for each field of a struct; it reads the field's value or returns false without
  // reading anything, and then the value is skipped. Errors: kCorrupt; those of `field`.
  using Field = std::function<Result<bool>(int id, Type type)>;
  Status read_struct(const Field& field);

  // Calls `item` for each element. Errors: kCorrupt for another type than `type`.
  Status read_list(Type type, const std::function<Status()>& item);

  Result<int64_t> read_int();  // of I16, I32 and I64
  Result<std::string> read_text();

  // Bytes read so far.
  size_t position() const { return at_; }

 private:
  Result<uint64_t> varint();
  Status skip(Type type);
  Result<uint8_t> byte();

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace nibble
