#include "nibble/eval/parquet_metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "nibble/base/error.h"
#include "nibble/eval/thrift_reader.h"

namespace nibble {
namespace {

constexpr std::string_view kMagic = "PAR1";
constexpr size_t kTailBytes = 8;  // length of the footer and the magic

struct Element {
  int64_t type = -1;
  int64_t repetition = 0;  // 0 required, 1 optional, 2 repeated
  std::string name;
  int64_t num_children = 0;
};

// A field that holds a number goes to *value; false for another type.
Result<bool> take_int(ThriftReader& in, ThriftReader::Type type, int64_t* value) {
  if (type != ThriftReader::kI32 && type != ThriftReader::kI64 && type != ThriftReader::kI16) {
    return false;
  }
  *value = NIBBLE_TRY(in.read_int());
  return true;
}

Result<bool> take_text(ThriftReader& in, ThriftReader::Type type, std::string* value) {
  if (type != ThriftReader::kBinary) return false;
  *value = NIBBLE_TRY(in.read_text());
  return true;
}

Status read_element(ThriftReader& in, std::vector<Element>* elements) {
  Element e;
  const auto fields = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 1) return take_int(in, type, &e.type);
    if (id == 3) return take_int(in, type, &e.repetition);
    if (id == 4) return take_text(in, type, &e.name);
    if (id == 5) return take_int(in, type, &e.num_children);
    return false;
  };
  NIBBLE_TRY(in.read_struct(fields));
  elements->push_back(std::move(e));
  return {};
}

Status read_chunk(ThriftReader& in, std::vector<ParquetChunk>* chunks) {
  ParquetChunk chunk;
  int64_t data = 0, dictionary = 0;
  std::string other_file;
  const auto metadata = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 4) return take_int(in, type, &chunk.codec);
    if (id == 5) return take_int(in, type, &chunk.num_values);
    if (id == 7) return take_int(in, type, &chunk.size);
    if (id == 9) return take_int(in, type, &data);
    if (id == 11) return take_int(in, type, &dictionary);
    return false;
  };
  const auto fields = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 1) return take_text(in, type, &other_file);
    if (id != 3 || type != ThriftReader::kStruct) return false;
    NIBBLE_TRY(in.read_struct(metadata));
    return true;
  };
  NIBBLE_TRY(in.read_struct(fields));
  if (!other_file.empty()) return unsupported("columns in another file");
  chunk.begin = dictionary > 0 ? std::min(dictionary, data) : data;
  chunks->push_back(chunk);
  return {};
}

Status read_group(ThriftReader& in, std::vector<ParquetGroup>* groups) {
  ParquetGroup group;
  const auto chunk = [&] { return read_chunk(in, &group.chunks); };
  const auto fields = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 3) return take_int(in, type, &group.num_rows);
    if (id != 1 || type != ThriftReader::kList) return false;
    NIBBLE_TRY(in.read_list(ThriftReader::kStruct, chunk));
    return true;
  };
  NIBBLE_TRY(in.read_struct(fields));
  groups->push_back(std::move(group));
  return {};
}

// The columns of a schema: the tree in the order of a walk, its root first.
Result<std::vector<ParquetColumn>> columns_of(const std::vector<Element>& elements) {
  if (elements.empty()) return corrupt("the schema is empty");
  std::vector<ParquetColumn> columns;
  size_t at = 1;
  const auto leaf = [&](const Element& e, ParquetColumn* column) -> Status {
    if (e.type < 0 || e.type > 7) return corrupt(fmt::format("'{}' has no type", column->name));
    column->type = static_cast<ParquetType>(e.type);
    return {};
  };
  for (int64_t child = 0; child < elements[0].num_children; ++child) {
    if (at >= elements.size()) return corrupt("the schema ends early");
    const Element& top = elements[at++];
    ParquetColumn column;
    column.name = top.name;
    const auto other_shape = [&] {
      return unsupported(fmt::format(
          "the column '{}' is no value and no list of values; convert the file to JSON lines",
          top.name));
    };
    if (top.num_children == 0) {
      if (top.repetition == 2) return other_shape();
      column.is_element_optional = top.repetition == 1;
      column.max_definition = column.is_element_optional ? 1 : 0;
      NIBBLE_TRY(leaf(top, &column));
      columns.push_back(std::move(column));
      continue;
    }
    // optional group NAME (LIST) { repeated group list { optional T element } }, or { repeated T }
    if (top.num_children != 1 || top.repetition == 2 || at >= elements.size()) return other_shape();
    const Element& middle = elements[at++];
    if (middle.repetition != 2 || middle.num_children > 1) return other_shape();
    column.is_list = true;
    column.is_list_optional = top.repetition == 1;
    column.max_repetition = 1;
    column.max_definition = (column.is_list_optional ? 1 : 0) + 1;
    const Element* last = &middle;
    if (middle.num_children == 1) {
      if (at >= elements.size()) return corrupt("the schema ends early");
      last = &elements[at++];
      if (last->num_children != 0 || last->repetition == 2) return other_shape();
      column.is_element_optional = last->repetition == 1;
      column.max_definition += column.is_element_optional ? 1 : 0;
    }
    NIBBLE_TRY(leaf(*last, &column));
    columns.push_back(std::move(column));
  }
  if (at != elements.size()) return corrupt("the schema has elements that are in no column");
  return columns;
}

}  // namespace

Result<ParquetMetadata> read_parquet_metadata(std::span<const std::byte> file) {
  const auto is_magic = [&](size_t at) {
    return std::memcmp(file.data() + at, kMagic.data(), kMagic.size()) == 0;
  };
  if (file.size() < kMagic.size() + kTailBytes || !is_magic(0) ||
      !is_magic(file.size() - kMagic.size())) {
    return corrupt("not a Parquet file: it does not begin and end with PAR1");
  }
  uint32_t length = 0;
  std::memcpy(&length, file.data() + file.size() - kTailBytes, sizeof(length));
  if (length > file.size() - kTailBytes - kMagic.size()) {
    return corrupt("its footer is longer than the file");
  }
  ThriftReader in(file.subspan(file.size() - kTailBytes - length, length));
  std::vector<Element> elements;
  ParquetMetadata metadata;
  const auto element = [&] { return read_element(in, &elements); };
  const auto group = [&] { return read_group(in, &metadata.groups); };
  const auto fields = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (type != ThriftReader::kList || (id != 2 && id != 4)) return false;
    NIBBLE_TRY(in.read_list(ThriftReader::kStruct, id == 2 ? std::function<Status()>(element)
                                                           : std::function<Status()>(group)));
    return true;
  };
  NIBBLE_TRY(in.read_struct(fields));
  metadata.columns = NIBBLE_TRY(columns_of(elements));
  for (const ParquetGroup& one : metadata.groups) {
    if (one.chunks.size() != metadata.columns.size()) {
      return corrupt("a row group has another number of columns than the schema");
    }
  }
  return metadata;
}

Result<ParquetPage> read_parquet_page(std::span<const std::byte> bytes, size_t* size) {
  ThriftReader in(bytes);
  ParquetPage page;
  const auto version1 = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 1) return take_int(in, type, &page.num_values);
    if (id == 2) return take_int(in, type, &page.encoding);
    return false;
  };
  const auto version2 = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 1) return take_int(in, type, &page.num_values);
    if (id == 4) return take_int(in, type, &page.encoding);
    if (id == 5) return take_int(in, type, &page.definition_bytes);
    if (id == 6) return take_int(in, type, &page.repetition_bytes);
    if (id == 7) page.is_compressed = type == ThriftReader::kTrue;
    return false;
  };
  const auto fields = [&](int id, ThriftReader::Type type) -> Result<bool> {
    if (id == 1) return take_int(in, type, &page.type);
    if (id == 2) return take_int(in, type, &page.uncompressed_size);
    if (id == 3) return take_int(in, type, &page.compressed_size);
    if (type != ThriftReader::kStruct || (id != 5 && id != 7 && id != 8)) return false;
    NIBBLE_TRY(
        in.read_struct(id == 8 ? ThriftReader::Field(version2) : ThriftReader::Field(version1)));
    return true;
  };
  NIBBLE_TRY(in.read_struct(fields));
  *size = in.position();
  return page;
}

}  // namespace nibble
