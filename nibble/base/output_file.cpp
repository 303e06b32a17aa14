#include "nibble/base/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "nibble/base/error.h"

namespace nibble {

Result<OutputFile> OutputFile::create(std::filesystem::path path) {
  // Two writers of one name, in two processes or in one, must not share a temporary file.
  static std::atomic<int> count{0};
  OutputFile file;
  file.temporary_path_ = fmt::format("{}.tmp-{}-{}", path.string(), ::getpid(), count++);
  file.path_ = std::move(path);
  file.fd_ = ::open(file.temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd_ < 0) {
    return system_error(fmt::format("cannot create {}", file.path_.string()), errno);
  }
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      fd_(std::exchange(other.fd_, -1)),
      position_(other.position_) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this != &other) {
    discard();
    path_ = std::move(other.path_);
    temporary_path_ = std::move(other.temporary_path_);
    fd_ = std::exchange(other.fd_, -1);
    position_ = other.position_;
  }
  return *this;
}

OutputFile::~OutputFile() { discard(); }

void OutputFile::discard() noexcept {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_path_.c_str());
  fd_ = -1;
}

Status OutputFile::write(std::span<const std::byte> bytes) {
  NIBBLE_TRY(write_at(position_, bytes));
  position_ += bytes.size();
  return {};
}

Status OutputFile::write(std::string_view text) {
  return write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

Status OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return system_error(fmt::format("cannot write {} at byte {}", path_.string(), offset),
                          n < 0 ? errno : EIO);
    }
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status OutputFile::commit() {
  if (::fsync(fd_) != 0) {
    const int error = errno;
    discard();
    return system_error(fmt::format("cannot sync {}", path_.string()), error);
  }
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0) {
    const int error = errno;
    ::unlink(temporary_path_.c_str());
    return system_error(fmt::format("cannot close {}", path_.string()), error);
  }
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_path_.c_str());
    return system_error(fmt::format("cannot rename {} to {}", temporary_path_, path_.string()),
                        error);
  }
  const auto parent = path_.parent_path();
  return sync_directory(parent.empty() ? std::filesystem::path(".") : parent);
}

Status sync_directory(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return system_error(fmt::format("cannot open folder {}", path.string()), errno);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  // EINVAL: this file system knows no sync of a folder; what was renamed in it is in place anyway.
  if (result != 0 && error != EINVAL)
    return system_error(fmt::format("cannot sync folder {}", path.string()), error);
  return {};
}

Status write_text_file(const std::filesystem::path& path, std::string_view text) {
  auto file = NIBBLE_TRY(OutputFile::create(path));
  NIBBLE_TRY(file.write(text));
  return file.commit();
}

}  // namespace nibble
