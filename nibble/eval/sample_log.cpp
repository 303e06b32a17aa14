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

// Every whole line of `text`; *whole is where the last one ends.
Status parse_lines(std::string_view text, const std::string& where,
                   std::vector<SampleRecord>* records, size_t* whole) {
  *whole = 0;
  for (int64_t line = 1;; ++line) {
    const size_t end = text.find('\n', *whole);
    if (end == std::string_view::npos) return {};
    records->push_back(NIBBLE_TRY(
        parse_sample(text.substr(*whole, end - *whole), fmt::format("{} line {}", where, line))));
    *whole = end + 1;
  }
}

// The last record of each key, in the order in which the keys came.
std::vector<SampleRecord> last_of_each(std::vector<SampleRecord> records, bool with_errors) {
  std::map<std::tuple<std::string, std::string, int>, size_t> places;
  std::vector<SampleRecord> last;
  for (SampleRecord& record : records) {
    const auto key = std::make_tuple(record.task, record.id, record.sample);
    const auto [place, is_new] = places.emplace(key, last.size());
    if (is_new) {
      last.push_back(std::move(record));
    } else {
      last[place->second] = std::move(record);
    }
  }
  if (!with_errors) {
    std::erase_if(last, [](const SampleRecord& r) { return !r.completion.error.empty(); });
  }
  return last;
}

}  // namespace

std::string sample_json(const SampleRecord& r) {
  const Completion& c = r.completion;
  const Json json = {{"task", r.task},
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
                     {"ttft_ms", c.ttft_ms},
                     {"total_ms", c.total_ms},
                     {"retries", c.retries},
                     {"error", c.error.empty() ? Json() : Json(c.error)}};
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
    c.ttft_ms = json.at("ttft_ms").get<double>();
    c.total_ms = json.at("total_ms").get<double>();
    c.retries = json.at("retries").get<int>();
    if (!json.at("error").is_null()) c.error = json.at("error").get<std::string>();
  } catch (const Json::exception& error) {
    return corrupt(fmt::format("{}: {}", where, error.what()));
  }
  return r;
}

Result<SampleLog> SampleLog::open(const std::filesystem::path& folder,
                                  std::vector<SampleRecord>* known) {
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
  const std::string path = folder / "samples.jsonl";
  log.file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log.file_ < 0) return system_error(path, errno);
  const std::string text = NIBBLE_TRY(read_text_file(path));
  std::vector<SampleRecord> records;
  size_t whole = 0;
  NIBBLE_TRY(parse_lines(text, path, &records, &whole));
  if (whole < text.size() && ::ftruncate(log.file_, static_cast<off_t>(whole)) != 0) {
    return system_error(path, errno);
  }
  *known = last_of_each(std::move(records), false);
  return log;
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

Result<std::vector<SampleRecord>> read_samples(const std::filesystem::path& folder) {
  const std::string path = folder / "samples.jsonl";
  const std::string text = NIBBLE_TRY(read_text_file(path));
  std::vector<SampleRecord> records;
  size_t whole = 0;
  NIBBLE_TRY(parse_lines(text, path, &records, &whole));
  return last_of_each(std::move(records), true);
}

}  // namespace nibble
