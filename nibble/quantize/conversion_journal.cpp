#include "nibble/quantize/conversion_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

constexpr std::string_view kMagic = "nibble-journal 1 ";

}  // namespace

Result<ConversionJournal> ConversionJournal::open(const std::filesystem::path& path,
                                                  std::string_view fingerprint) {
  ConversionJournal journal;
  journal.path_ = path;
  journal.fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (journal.fd_ < 0) {
    return system_error(fmt::format("cannot create {}", path.string()), errno);
  }
  if (::flock(journal.fd_, LOCK_EX | LOCK_NB) != 0) {
    return unavailable(
        fmt::format("another process is writing into {}", path.parent_path().string()));
  }
  std::string text = NIBBLE_TRY(read_text_file(path));
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (whole != text.size() && ::ftruncate(journal.fd_, static_cast<off_t>(whole)) != 0) {
    return system_error(fmt::format("cannot shorten {}", path.string()), errno);
  }
  text.resize(whole);
  if (text.empty()) {
    const std::string line = fmt::format("{}{}\n", kMagic, fingerprint);
    if (::write(journal.fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      return system_error(fmt::format("cannot write {}", path.string()), errno);
    }
  } else {
    NIBBLE_TRY(journal.read(text, fingerprint));
  }
  return journal;
}

bool ConversionJournal::matches(const std::filesystem::path& path, std::string_view fingerprint) {
  const auto text = read_text_file(path);
  return text && text->starts_with(fmt::format("{}{}\n", kMagic, fingerprint));
}

ConversionJournal::ConversionJournal(ConversionJournal&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      jobs_(std::move(other.jobs_)),
      shards_(std::move(other.shards_)),
      layers_(std::move(other.layers_)) {}

ConversionJournal::~ConversionJournal() {
  if (fd_ >= 0) ::close(fd_);
}

Status ConversionJournal::read(std::string_view text, std::string_view fingerprint) {
  bool first = true;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(line.size() + 1);
    if (first) {
      first = false;
      if (line == fmt::format("{}{}", kMagic, fingerprint)) continue;
      return invalid_argument(fmt::format(
          "{} was begun with another source or other options; finish it with those, or begin again "
          "with --no-resume",
          path_.parent_path().string()));
    }
    const size_t space = line.find(' ');
    const size_t second = line.find(' ', space + 1);
    size_t number = 0;
    const bool good = second != std::string_view::npos &&
                      std::from_chars(line.data() + space + 1, line.data() + second, number).ptr ==
                          line.data() + second;
    const std::string_view kind = line.substr(0, space);
    Entries* const entries = kind == "job"     ? &jobs_
                             : kind == "shard" ? &shards_
                             : kind == "layer" ? &layers_
                                               : nullptr;
    if (!good || entries == nullptr) {
      return corrupt(
          fmt::format("{} has the line '{}'; begin again with --no-resume", path_.string(), line));
    }
    (*entries)[number] = std::string(line.substr(second + 1));
  }
  return {};
}

Status ConversionJournal::add(std::string_view kind, size_t number, std::string_view hash) {
  const std::string line = fmt::format("{} {} {}\n", kind, number, hash);
  // One write with O_APPEND: lines of several threads do not mix.
  if (::write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return system_error(fmt::format("cannot write {}", path_.string()), errno);
  }
  return {};
}

}  // namespace nibble
