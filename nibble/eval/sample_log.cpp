#include "nibble/eval/sample_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// Pages of the samples that were read are let go behind so many bytes.
constexpr size_t kReleaseBytes = size_t{4} << 20;
// A fault maps the 64 KiB around it (Linux's fault_around_bytes), at both ends of a record.
constexpr size_t kAroundBytes = size_t{128} << 10;

}  // namespace

std::string sample_json(const SampleRecord& r) {
  const Completion& c = r.completion;
  Json json = {{"task", r.task},
               {"id", r.id},
               {"sample", r.sample},
               {"seed", r.seed},
               {"cluster", r.cluster},
               {"prompt_sha256", r.prompt_sha256},
               {"permutation", r.permutation},
               {"reasoning", c.reasoning},
               {"text", c.text},
               {"unclosed", c.is_unclosed},
               {"finish_reason", c.finish_reason},
               {"prompt_tokens", c.prompt_tokens},
               {"completion_tokens", c.completion_tokens},
               {"reasoning_tokens", c.reasoning_tokens < 0 ? Json() : Json(c.reasoning_tokens)},
               {"ttft_ms", c.ttft_ms},
               {"total_ms", c.total_ms},
               {"retries", c.retries},
               {"error", c.error.empty() ? Json() : Json(c.error)}};
  if (!r.prompt.empty()) json["prompt"] = r.prompt;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<SampleRecord> parse_sample(std::string_view line, std::string_view where) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) return corrupt(fmt::format("{}: expected a JSON object", where));
  SampleRecord r;
  try {
    r.task = json.at("task").get<std::string>();
    r.id = json.at("id").get<std::string>();
    r.sample = json.at("sample").get<int>();
    r.seed = json.at("seed").get<int64_t>();
    r.cluster = json.at("cluster").get<std::string>();
    r.prompt_sha256 = json.at("prompt_sha256").get<std::string>();
    r.permutation = json.at("permutation").get<std::string>();
    Completion& c = r.completion;
    c.reasoning = json.at("reasoning").get<std::string>();
    c.text = json.at("text").get<std::string>();
    c.is_unclosed = json.at("unclosed").get<bool>();
    c.finish_reason = json.at("finish_reason").get<std::string>();
    c.prompt_tokens = json.at("prompt_tokens").get<int64_t>();
    c.completion_tokens = json.at("completion_tokens").get<int64_t>();
    if (json.contains("reasoning_tokens") && !json["reasoning_tokens"].is_null()) {
      c.reasoning_tokens = json["reasoning_tokens"].get<int64_t>();
    }
    c.ttft_ms = json.at("ttft_ms").get<double>();
    c.total_ms = json.at("total_ms").get<double>();
    c.retries = json.at("retries").get<int>();
    if (!json.at("error").is_null()) c.error = json.at("error").get<std::string>();
  } catch (const Json::exception& error) {
    return corrupt(fmt::format("{}: {}", where, error.what()));
  }
  return r;
}

Result<SampleIndex> SampleIndex::open(const std::filesystem::path& folder) {
  SampleIndex index;
  index.path_ = folder / "samples.jsonl";
  if (!std::filesystem::exists(index.path_)) return index;
  index.file_ = NIBBLE_TRY(MappedFile::open(index.path_));
  const auto bytes = index.file_->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  size_t released = 0;
  for (int64_t line = 1;; ++line) {
    const size_t begin = index.whole_bytes_;
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    const SampleRecord record = NIBBLE_TRY(parse_sample(
        text.substr(begin, end - begin), fmt::format("{} line {}", index.path_, line)));
    index.places_[{record.task, record.id, record.sample}] = {begin, end - begin,
                                                              !record.completion.error.empty()};
    index.whole_bytes_ = end + 1;
    // Parsed once: the pages are not needed until the record is read again.
    if (index.whole_bytes_ - released < kReleaseBytes) continue;
    index.file_->release(released, index.whole_bytes_ - released);
    released = index.whole_bytes_;
  }
  index.file_->release(released, index.whole_bytes_ - released);
  return index;
}

Result<std::optional<SampleRecord>> SampleIndex::read(const Key& key) const {
  const auto found = places_.find(key);
  if (found == places_.end()) return std::nullopt;
  const auto bytes = file_->bytes();
  unreleased_ += found->second.length + kAroundBytes;
  if (unreleased_ > kReleaseBytes) {
    file_->release(0, bytes.size());
    unreleased_ = 0;
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return NIBBLE_TRY(parse_sample(text.substr(found->second.begin, found->second.length), path_));
}

bool SampleIndex::is_answered(const Key& key) const {
  const auto found = places_.find(key);
  return found != places_.end() && !found->second.has_error;
}

Result<SampleLog> SampleLog::lock(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return system_error(folder.string(), error.value());
  SampleLog log;
  const std::string lock = folder / "lock";
  log.lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (log.lock_ < 0) return system_error(lock, errno);
  if (::flock(log.lock_, LOCK_EX | LOCK_NB) != 0) {
    return unavailable(folder.string() + " is in use by another nibble eval");
  }
  return log;
}

Status SampleLog::open(const std::filesystem::path& folder, size_t whole_bytes) {
  const std::string path = folder / "samples.jsonl";
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) return system_error(path, errno);
  if (::ftruncate(file_, static_cast<off_t>(whole_bytes)) != 0) return system_error(path, errno);
  return {};
}

SampleLog::SampleLog(SampleLog&& other) noexcept
    : file_(std::exchange(other.file_, -1)), lock_(std::exchange(other.lock_, -1)) {}

SampleLog& SampleLog::operator=(SampleLog&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(lock_, other.lock_);
  return *this;
}

SampleLog::~SampleLog() {
  if (file_ >= 0) (void)::close(file_);
  if (lock_ >= 0) (void)::close(lock_);
}

Status SampleLog::append(const SampleRecord& record) {
  const std::string line = sample_json(record) + "\n";
  const ssize_t written = ::write(file_, line.data(), line.size());
  if (written < 0) return system_error("samples.jsonl", errno);
  if (static_cast<size_t>(written) != line.size()) {
    return unavailable("samples.jsonl: the disk is full");
  }
  return {};
}

Status SampleLog::sync() {
  if (::fdatasync(file_) != 0) return system_error("samples.jsonl", errno);
  return {};
}

}  // namespace nibble
