// Preloaded into nibble by offload_test.cpp: reads of experts.nibble and writes of it go wrong on
// purpose.
//
//   NIBBLE_FAULT        eio, short, flip or stall: of reads; full: the disk takes no more, though
//                       it told of room; small: it tells that it has none
//   NIBBLE_FAULT_AFTER  so many large reads or writes go well before
#include <dlfcn.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace {

using Pread = ssize_t (*)(int, void*, size_t, off_t);
using Pwrite = ssize_t (*)(int, const void*, size_t, off_t);
using Statvfs = int (*)(const char*, struct statvfs*);

bool asked_for(const char* fault) {
  const char* const name = std::getenv("NIBBLE_FAULT");
  return name != nullptr && std::strcmp(name, fault) == 0;
}

bool is_expert_file(int fd) {
  char link[64] = "/proc/self/fd/";
  char digits[16];
  int count = 0;
  for (int rest = fd; count == 0 || rest > 0; rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  char* end = link + std::strlen(link);
  while (count > 0) *end++ = digits[--count];
  *end = '\0';
  char path[4096];
  const ssize_t length = ::readlink(link, path, sizeof(path) - 1);
  if (length < 0) return false;
  path[length] = '\0';
  return std::strstr(path, "experts.nibble") != nullptr;
}

}  // namespace

extern "C" ssize_t pread(int fd, void* buffer, size_t count, off_t offset) {
  static const auto kNext = reinterpret_cast<Pread>(::dlsym(RTLD_NEXT, "pread"));
  static std::atomic<int> large_reads{0};
  const char* const fault = std::getenv("NIBBLE_FAULT");
  const char* const after = std::getenv("NIBBLE_FAULT_AFTER");
  // Header and index are read in small pieces; records are not.
  const bool large = count >= 65536 && fault != nullptr && is_expert_file(fd);
  if (!large || large_reads.fetch_add(1) < (after == nullptr ? 0 : std::atoi(after))) {
    return kNext(fd, buffer, count, offset);
  }
  if (std::strcmp(fault, "eio") == 0) {
    errno = EIO;
    return -1;
  }
  if (std::strcmp(fault, "short") == 0) return 0;
  if (std::strcmp(fault, "stall") == 0) ::usleep(150'000);
  const ssize_t result = kNext(fd, buffer, count, offset);
  if (std::strcmp(fault, "flip") == 0 && result > 0) {
    static_cast<unsigned char*>(buffer)[result / 2] ^= 4;
  }
  return result;
}

extern "C" ssize_t pwrite(int fd, const void* buffer, size_t count, off_t offset) {
  static const auto kNext = reinterpret_cast<Pwrite>(::dlsym(RTLD_NEXT, "pwrite"));
  static std::atomic<int> large_writes{0};
  const char* const after = std::getenv("NIBBLE_FAULT_AFTER");
  if (count < 65536 || !asked_for("full") || !is_expert_file(fd) ||
      large_writes.fetch_add(1) < (after == nullptr ? 0 : std::atoi(after))) {
    return kNext(fd, buffer, count, offset);
  }
  errno = ENOSPC;
  return -1;
}

extern "C" int statvfs(const char* path, struct statvfs* out) {
  static const auto kNext = reinterpret_cast<Statvfs>(::dlsym(RTLD_NEXT, "statvfs"));
  const int result = kNext(path, out);
  if (asked_for("small")) out->f_bavail = 10;
  return result;
}
