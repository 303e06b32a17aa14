#include "nibble/checkpoint/model_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<fs::path> model_folders() {
  std::vector<fs::path> folders;
  const std::string list = environment("NIBBLE_MODELS");
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) folders.emplace_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) folders.push_back(program.parent_path().parent_path() / "share/nibble/models");
  folders.emplace_back(NIBBLE_SOURCE_MODELS_DIR);
  return folders;
}

std::vector<fs::path> hugging_face_caches() {
  std::vector<fs::path> caches;
  if (const std::string cache = environment("HF_HUB_CACHE"); !cache.empty()) {
    caches.emplace_back(cache);
  }
  if (const std::string home = environment("HF_HOME"); !home.empty()) {
    caches.push_back(fs::path(home) / "hub");
  }
  if (const std::string home = environment("HOME"); !home.empty()) {
    caches.push_back(fs::path(home) / ".cache/huggingface/hub");
  }
  return caches;
}

// snapshots/<what refs/main holds> of a cached repository, when it exists.
fs::path cached_snapshot(const fs::path& repository) {
  std::error_code ignored;
  const fs::path ref = repository / "refs/main";
  if (!fs::exists(ref, ignored)) return {};
  auto revision = read_text_file(ref, 4096);
  if (!revision) return {};
  while (!revision->empty() && (revision->back() == '\n' || revision->back() == ' ')) {
    revision->pop_back();
  }
  if (revision->empty() || revision->find('/') != std::string::npos || revision->front() == '.') {
    return {};
  }
  fs::path snapshot = repository / "snapshots" / *revision;
  return fs::is_directory(snapshot, ignored) ? snapshot : fs::path();
}

// A plain name, or two joined by one '/'; anything else was meant as a path.
bool is_model_name(std::string_view name) {
  const auto plain = [](std::string_view part) {
    return !part.empty() && part.front() != '.' && part.find('/') == std::string_view::npos &&
           part.find('\0') == std::string_view::npos;
  };
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return plain(name);
  return plain(name.substr(0, slash)) && plain(name.substr(slash + 1));
}

}  // namespace

Result<fs::path> resolve_model(std::string_view name) {
  if (name.empty()) return invalid_argument("the model's name is empty");
  std::error_code ignored;
  fs::path path(name);
  if (fs::exists(path, ignored)) return path;
  if (!is_model_name(name)) return not_found(fmt::format("{} does not exist", name));

  std::vector<std::string> tried;
  for (const fs::path& folder : model_folders()) {
    fs::path candidate = folder / path;
    if (fs::is_directory(candidate, ignored)) return candidate;
    tried.push_back(folder.string());
  }
  const size_t slash = name.find('/');
  if (slash != std::string_view::npos) {
    for (const fs::path& cache : hugging_face_caches()) {
      const fs::path repository =
          cache / fmt::format("models--{}--{}", name.substr(0, slash), name.substr(slash + 1));
      fs::path snapshot = cached_snapshot(repository);
      if (!snapshot.empty()) return snapshot;
      tried.push_back(cache.string());
    }
  }
  return not_found(fmt::format("no model '{}': there is no such path, and no such folder in {}",
                               name, fmt::join(tried, ", ")));
}

}  // namespace nibble
