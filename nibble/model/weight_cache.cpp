#include "nibble/model/weight_cache.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::array<char, 8> kMagic = {'n', 'i', 'b', 'W', 'g', 't', '\r', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kAlignment = 4096;
constexpr int64_t kNowhere = -1;

// All fields have their natural alignment and nothing pads them.
struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t reserved;
  std::array<uint64_t, 2> key;
  uint64_t file_bytes;
  uint64_t index_offset;
  uint64_t num_entries;
  uint64_t names_bytes;
  uint64_t index_checksum;
  uint64_t checksum;  // of everything before it
};
static_assert(sizeof(Header) == 80);

struct StoredLinear {
  int32_t format;
  int32_t activation;
  int64_t rows;
  int64_t cols;
  int64_t data;    // bytes from the weight's first, or kNowhere
  int64_t scales;  // the same
  float global_scale;
  float input_scale;
};
static_assert(sizeof(StoredLinear) == 48);

struct StoredEntry {
  uint64_t offset;
  uint64_t bytes;
  uint64_t checksum;
  uint32_t name_bytes;
  int32_t num_linears;
  std::array<StoredLinear, 2> linears;
};
static_assert(sizeof(StoredEntry) == 128);

uint64_t checksum_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::array<uint64_t, 2> key_hash(std::string_view key) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  return {hash.low64, hash.high64};
}

uint64_t header_checksum(const Header& header) {
  return checksum_of(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, checksum)));
}

uint64_t aligned(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

StoredLinear stored(const LinearWeight& weight, std::span<const std::byte> bytes) {
  const auto place = [&](const void* data) {
    return data == nullptr ? kNowhere : static_cast<const std::byte*>(data) - bytes.data();
  };
  StoredLinear linear = {};
  linear.format = static_cast<int32_t>(weight.format);
  linear.activation = static_cast<int32_t>(weight.activation);
  linear.rows = weight.rows;
  linear.cols = weight.cols;
  linear.data = place(weight.data);
  linear.scales = place(weight.scales);
  linear.global_scale = weight.global_scale;
  linear.input_scale = weight.input_scale;
  return linear;
}

// False where a field is out of range; the checksum was right, so somebody made it so.
bool restore(const StoredLinear& linear, std::span<const std::byte> bytes, LinearWeight* weight) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (linear.format < 0 || linear.format > static_cast<int32_t>(LinearFormat::kNvfp4)) return false;
  if (linear.activation < 0 || linear.activation > static_cast<int32_t>(ActivationFormat::kNvfp4)) {
    return false;
  }
  if (linear.rows < 0 || linear.cols < 0) return false;
  for (const int64_t place : {linear.data, linear.scales}) {
    if (place < kNowhere || place > size) return false;
  }
  const auto pointer = [&](int64_t place) {
    return place == kNowhere ? nullptr : bytes.data() + place;
  };
  weight->format = static_cast<LinearFormat>(linear.format);
  weight->activation = static_cast<ActivationFormat>(linear.activation);
  weight->rows = linear.rows;
  weight->cols = linear.cols;
  weight->data = pointer(linear.data);
  weight->scales = pointer(linear.scales);
  weight->global_scale = linear.global_scale;
  weight->input_scale = linear.input_scale;
  return true;
}

}  // namespace

std::filesystem::path weight_cache_path(const std::filesystem::path& directory,
                                        std::string_view key) {
  return directory / fmt::format("weights-{:016x}.nibble", key_hash(key)[0]);
}

Result<std::string> checkpoint_identity(const std::filesystem::path& directory) {
  std::error_code error;
  std::vector<std::string> lines;
  for (auto entry = std::filesystem::directory_iterator(directory, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.ends_with(".safetensors") && !name.ends_with(".json")) continue;
    struct stat info = {};
    if (::stat(entry->path().c_str(), &info) != 0) {
      return system_error(fmt::format("cannot stat {}", entry->path().string()), errno);
    }
    lines.push_back(fmt::format("{} {} {}.{:09}\n", name, info.st_size, info.st_mtim.tv_sec,
                                info.st_mtim.tv_nsec));
  }
  if (error) {
    return system_error(fmt::format("cannot list {}", directory.string()), error.value());
  }
  std::sort(lines.begin(), lines.end());
  std::string identity;
  for (const std::string& line : lines) identity += line;
  return identity;
}

Result<WeightCacheReader> WeightCacheReader::open(const std::filesystem::path& path,
                                                  std::string_view key) {
  WeightCacheReader reader(NIBBLE_TRY(MappedFile::open(path)));
  reader.path_ = path;
  const std::span<const std::byte> file = reader.file_.bytes();
  const auto wrong = [&](std::string_view what) {
    return corrupt(fmt::format("{} {}", path.string(), what));
  };
  Header header = {};
  if (file.size() < kAlignment) return wrong("is too short for a weight cache");
  std::memcpy(&header, file.data(), sizeof(header));
  if (header.magic != kMagic) return wrong("is no weight cache of this machine");
  if (header.version != kVersion) {
    return wrong(
        fmt::format("is a weight cache of version {}, expected {}", header.version, kVersion));
  }
  if (header.checksum != header_checksum(header)) return wrong("has a damaged header");
  if (header.key != key_hash(key)) return wrong("is of another checkpoint or other options");
  if (header.file_bytes != file.size()) {
    return wrong(fmt::format("has {} bytes, expected {}", file.size(), header.file_bytes));
  }
  const uint64_t left = file.size() - std::min<uint64_t>(file.size(), header.index_offset);
  if (header.num_entries > left / sizeof(StoredEntry) ||
      header.names_bytes > left - header.num_entries * sizeof(StoredEntry)) {
    return wrong("has an index that reaches beyond its end");
  }
  const uint64_t entries_bytes = header.num_entries * sizeof(StoredEntry);
  const auto index = file.subspan(header.index_offset, entries_bytes + header.names_bytes);
  if (checksum_of(index) != header.index_checksum) return wrong("has a damaged index");
  std::string_view names(reinterpret_cast<const char*>(index.data() + entries_bytes),
                         header.names_bytes);
  for (uint64_t i = 0; i < header.num_entries; ++i) {
    StoredEntry entry = {};
    std::memcpy(&entry, index.data() + i * sizeof(entry), sizeof(entry));
    Place place = {};
    const bool inside =
        entry.offset <= header.index_offset && entry.bytes <= header.index_offset - entry.offset &&
        entry.name_bytes <= names.size() && entry.num_linears >= 0 && entry.num_linears <= 2;
    if (!inside) return wrong(fmt::format("has an entry {} that is out of range", i));
    place.checksum = entry.checksum;
    place.weight.bytes = file.subspan(entry.offset, entry.bytes);
    place.weight.num_linears = entry.num_linears;
    for (size_t k = 0; k < static_cast<size_t>(entry.num_linears); ++k) {
      if (!restore(entry.linears[k], place.weight.bytes, &place.weight.linears[k])) {
        return wrong(fmt::format("has an entry {} that is out of range", i));
      }
    }
    reader.entries_.emplace(names.substr(0, entry.name_bytes), place);
    names.remove_prefix(entry.name_bytes);
  }
  return reader;
}

Result<CachedWeight> WeightCacheReader::read(std::string_view name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    return corrupt(fmt::format("{} has no weight {}", path_.string(), name));
  }
  const Place& place = found->second;
  if (checksum_of(place.weight.bytes) != place.checksum) {
    return corrupt(fmt::format("{}: the bytes of {} were damaged", path_.string(), name));
  }
  return place.weight;
}

Result<WeightCacheWriter> WeightCacheWriter::create(const std::filesystem::path& path,
                                                    std::string_view key) {
  return WeightCacheWriter(NIBBLE_TRY(OutputFile::create(path)), key);
}

WeightCacheWriter::WeightCacheWriter(WeightCacheWriter&& other) noexcept
    : file_(std::move(other.file_)),
      key_(std::move(other.key_)),
      next_offset_(other.next_offset_.load()),
      status_(std::move(other.status_)),
      index_(std::move(other.index_)),
      names_(std::move(other.names_)),
      num_entries_(other.num_entries_) {}

void WeightCacheWriter::add(std::string_view name, const CachedWeight& weight) {
  {
    const std::lock_guard lock(mutex_);
    if (!status_) return;
  }
  StoredEntry entry = {};
  entry.bytes = weight.bytes.size();
  entry.offset = next_offset_.fetch_add(aligned(entry.bytes));
  entry.checksum = checksum_of(weight.bytes);
  entry.name_bytes = static_cast<uint32_t>(name.size());
  entry.num_linears = weight.num_linears;
  for (size_t i = 0; i < static_cast<size_t>(weight.num_linears); ++i) {
    entry.linears[i] = stored(weight.linears[i], weight.bytes);
  }
  Status written = file_.write_at(entry.offset, weight.bytes);
  const auto bytes = std::as_bytes(std::span(&entry, 1));
  const std::lock_guard lock(mutex_);
  if (!written) {
    if (status_) status_ = std::move(written);
    return;
  }
  index_.insert(index_.end(), bytes.begin(), bytes.end());
  names_ += name;
  ++num_entries_;
}

Status WeightCacheWriter::commit() {
  NIBBLE_TRY(std::move(status_));
  Header header = {};
  header.magic = kMagic;
  header.version = kVersion;
  header.key = key_hash(key_);
  header.index_offset = next_offset_.load();
  header.num_entries = num_entries_;
  header.names_bytes = names_.size();
  const auto names = std::as_bytes(std::span(names_));
  index_.insert(index_.end(), names.begin(), names.end());
  header.index_checksum = checksum_of(index_);
  header.file_bytes = header.index_offset + index_.size();
  header.checksum = header_checksum(header);
  NIBBLE_TRY(file_.write_at(header.index_offset, index_));
  NIBBLE_TRY(file_.write_at(0, std::as_bytes(std::span(&header, 1))));
  return file_.commit();
}

}  // namespace nibble
