// Preloaded into nibble by offload_test.cpp: reads of experts.nibble go wrong on purpose.
//
//   NIBBLE_FAULT        eio, short, flip or stall
//   NIBBLE_FAULT_AFTER  so many large reads go well before
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace {

using Pread = ssize_t (*)(int, void*, size_t, off_t);

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
  static const auto next = reinterpret_cast<Pread>(::dlsym(RTLD_NEXT, "pread"));
  static std::atomic<int> large_reads{0};
  const char* const fault = std::getenv("NIBBLE_FAULT");
  const char* const after = std::getenv("NIBBLE_FAULT_AFTER");
  // Header and index are read in small pieces; records are not.
  const bool large = count >= 65536 && fault != nullptr && is_expert_file(fd);
  if (!large || large_reads.fetch_add(1) < (after == nullptr ? 0 : std::atoi(after))) {
    return next(fd, buffer, count, offset);
  }
  if (std::strcmp(fault, "eio") == 0) {
    errno = EIO;
    return -1;
  }
  if (std::strcmp(fault, "short") == 0) return 0;
  if (std::strcmp(fault, "stall") == 0) ::usleep(150'000);
  const ssize_t result = next(fd, buffer, count, offset);
  if (std::strcmp(fault, "flip") == 0 && result > 0) {
    static_cast<unsigned char*>(buffer)[result / 2] ^= 4;
  }
  return result;
}
