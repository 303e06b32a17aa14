#include "nibble/quantize/shard_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/output_file.h"

namespace nibble {
namespace {

tl::unexpected<Error> file_error(const char* what, const std::filesystem::path& path) {
  return system_error(fmt::format("cannot {} {}", what, path.string()), errno);
}

}  // namespace

Result<ShardFile> ShardFile::open(std::filesystem::path path, std::vector<TensorInfo> tensors) {
  ShardFile shard;
  shard.layout_ = NIBBLE_TRY(safetensors_layout(std::move(tensors)));
  shard.part_ = path;
  shard.part_ += ".part";
  shard.path_ = std::move(path);
  shard.fd_ = ::open(shard.part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (shard.fd_ < 0) return file_error("create", shard.path_);
  if (::ftruncate(shard.fd_, static_cast<off_t>(shard.layout_.file_bytes())) != 0) {
    return file_error("resize", shard.path_);
  }
  const std::string& head = shard.layout_.head;
  if (::pwrite(shard.fd_, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size())) {
    return file_error("write", shard.path_);
  }
  return shard;
}

ShardFile::ShardFile(ShardFile&& other) noexcept
    : path_(std::move(other.path_)),
      part_(std::move(other.part_)),
      layout_(std::move(other.layout_)),
      fd_(std::exchange(other.fd_, -1)) {}

ShardFile::~ShardFile() {
  if (fd_ >= 0) ::close(fd_);
}

uint64_t ShardFile::place(std::string_view tensor, uint64_t offset, uint64_t size) const {
  const SafetensorsLayout::Entry* const entry = layout_.find(tensor);
  NIBBLE_CHECK(entry != nullptr && offset + size <= entry->size);
  return entry->offset + offset;
}

Status ShardFile::write(std::string_view tensor, uint64_t offset,
                        std::span<const std::byte> bytes) {
  uint64_t at = place(tensor, offset, bytes.size());
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return system_error(fmt::format("cannot write {} at byte {}", path_.string(), at),
                          n < 0 ? errno : EIO);
    }
    at += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status ShardFile::read(std::string_view tensor, uint64_t offset, std::span<std::byte> bytes) const {
  uint64_t at = place(tensor, offset, bytes.size());
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return system_error(fmt::format("cannot read {} at byte {}", part_.string(), at),
                          n < 0 ? errno : EIO);
    }
    at += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

void ShardFile::start_writeback() const {
  (void)::sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);  // a hint: may fail
}

Status ShardFile::finish() {
  if (::fsync(fd_) != 0) return file_error("sync", path_);
  if (::close(std::exchange(fd_, -1)) != 0) return file_error("close", path_);
  if (::rename(part_.c_str(), path_.c_str()) != 0) return file_error("rename", part_);
  return sync_directory(path_.parent_path());
}

Result<std::string> file_sha256(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return file_error("open", path);
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  NIBBLE_CHECK(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  std::vector<std::byte> buffer(1 << 20);
  for (;;) {
    const ssize_t n = interrupted() ? 0 : ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      auto error = file_error("read", path);
      ::close(fd);
      return error;
    }
    if (n == 0) break;
    NIBBLE_CHECK(EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(n)) == 1);
  }
  ::close(fd);
  NIBBLE_TRY(check_interrupt());
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  NIBBLE_CHECK(EVP_DigestFinal_ex(context.get(), digest, &size) == 1);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace nibble
