#include "nibble/offload/expert_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <tuple>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// 62 layers of 256 experts are 15,872; a header that says more than this was made up.
constexpr uint64_t kMaxRecords = uint64_t{1} << 22;

auto order(const ExpertIndexEntry& entry) { return std::tuple(entry.layer, entry.expert); }

Status check_index(std::span<const ExpertIndexEntry> index, const ExpertFileHeader& header) {
  uint64_t next = header.first_record;
  for (size_t i = 0; i < index.size(); ++i) {
    const ExpertIndexEntry& entry = index[i];
    const std::string name = expert_record_name(entry.layer, entry.expert);
    if (entry.layer < 0 || entry.expert < 0 ||
        static_cast<uint32_t>(entry.expert) >= header.num_experts) {
      return corrupt(fmt::format("entry {} of the index is {}", i, name));
    }
    if (i > 0 && !(order(index[i - 1]) < order(entry))) {
      return corrupt(fmt::format("the index is not in order at {}", name));
    }
    if (entry.offset != next || entry.bytes < kExpertAlignment ||
        entry.bytes % kExpertAlignment != 0 || entry.bytes > header.max_record_bytes ||
        entry.bytes > header.file_bytes - entry.offset) {
      return corrupt(
          fmt::format("{} is said to lie at {} with {} bytes", name, entry.offset, entry.bytes));
    }
    next += entry.bytes;
  }
  if (next != header.file_bytes) {
    return corrupt(fmt::format("records end at {}, the file at {}", next, header.file_bytes));
  }
  return {};
}

Status read_at(int fd, uint64_t offset, std::span<std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(fmt::format("cannot read at {}", offset + done), errno);
    if (n == 0) return corrupt(fmt::format("it ends at {}", offset + done));
    done += static_cast<size_t>(n);
  }
  return {};
}

// `fd` stays open and stays the caller's.
Result<ExpertFile> read_front(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) return system_error("cannot stat it", errno);
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  std::vector<std::byte> front(std::min<uint64_t>(file_bytes, kExpertAlignment));
  NIBBLE_TRY(read_at(fd, 0, front));
  const ExpertFileHeader header = NIBBLE_TRY(ExpertFile::parse_header(front, file_bytes));
  front.resize(header.first_record);
  NIBBLE_TRY(read_at(fd, kExpertAlignment,
                     std::span(front).subspan(static_cast<size_t>(kExpertAlignment))));
  return ExpertFile::parse(front, file_bytes);
}

}  // namespace

Result<ExpertFileHeader> ExpertFile::parse_header(std::span<const std::byte> front,
                                                  uint64_t file_bytes) {
  ExpertFileHeader header;
  if (front.size() < kExpertAlignment) {
    return corrupt(fmt::format("{} bytes, expected a header of {}", file_bytes, kExpertAlignment));
  }
  std::memcpy(&header, front.data(), sizeof(header));
  if (header.magic != kExpertFileMagic) return corrupt("it is no packed expert file");
  ExpertFileHeader sealed = header;
  seal(&sealed);
  if (header.checksum != sealed.checksum) {
    return corrupt("the checksum of its header is wrong: the file was damaged");
  }
  if (header.version != kExpertFileVersion) {
    return unsupported(fmt::format("version {}, this program reads {}; pack the model again",
                                   header.version, kExpertFileVersion));
  }
  const uint64_t index_end =
      kExpertAlignment + align_expert_bytes(header.num_records * sizeof(ExpertIndexEntry));
  if (header.num_records == 0 || header.num_records > kMaxRecords || header.num_experts == 0 ||
      header.first_record != index_end || header.layout.back() != 0 ||
      header.max_record_bytes > header.file_bytes) {
    return corrupt("its header contradicts itself");
  }
  if (file_bytes != header.file_bytes) {
    return corrupt(fmt::format(
        "{} bytes, expected {}: {}", file_bytes, header.file_bytes,
        file_bytes < header.file_bytes ? "it was cut short" : "something was added to it"));
  }
  return header;
}

Result<ExpertFile> ExpertFile::parse(std::span<const std::byte> front, uint64_t file_bytes) {
  ExpertFile file;
  file.header_ = NIBBLE_TRY(parse_header(front, file_bytes));
  const uint64_t index_bytes = file.header_.num_records * sizeof(ExpertIndexEntry);
  if (front.size() < kExpertAlignment + index_bytes) return corrupt("its index is cut short");
  const auto bytes = front.subspan(kExpertAlignment, index_bytes);
  if (expert_checksum(bytes) != file.header_.index_checksum) {
    return corrupt("the checksum of its index is wrong: the file was damaged");
  }
  file.index_.resize(file.header_.num_records);
  std::memcpy(file.index_.data(), bytes.data(), bytes.size());
  NIBBLE_TRY(check_index(file.index_, file.header_));
  return file;
}

Result<ExpertFile> ExpertFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return system_error("cannot open " + path.string(), errno);
  auto file = with_context(read_front(fd), path.string());
  ::close(fd);
  if (file) file->path_ = path;
  return file;
}

const ExpertIndexEntry* ExpertFile::find(int layer, int expert) const {
  const auto found = std::lower_bound(
      index_.begin(), index_.end(), std::tuple(layer, expert),
      [](const ExpertIndexEntry& entry, const auto& wanted) { return order(entry) < wanted; });
  return found != index_.end() && order(*found) == std::tuple(layer, expert) ? &*found : nullptr;
}

}  // namespace nibble
