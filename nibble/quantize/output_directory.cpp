#include "nibble/quantize/output_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/output_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// --overwrite deletes a folder with all that is in it, so it has to be what a checkpoint is:
// weights and a config.json (which many other projects have too), and no folders. Why it is not, or
// "".
std::string no_checkpoint_reason(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return "it is no folder";
  bool has_config = false;
  bool has_weights = false;
  bool is_empty = true;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const fs::path name = it->path().filename();
    if (it->symlink_status(ignored).type() == fs::file_type::directory) {
      return fmt::format("it has the folder {}", name.string());
    }
    is_empty = false;
    has_config = has_config || name == "config.json";
    has_weights = has_weights || name.extension() == ".safetensors";
  }
  if (error) return error.message();
  if (is_empty) return "";
  if (!has_config) return "it has no config.json";
  return has_weights ? "" : "it has no *.safetensors";
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    log_warning(
        fmt::format("cannot remove {}: {}; please remove it", path.string(), error.message()));
  }
}

int rename_with_flags(const fs::path& from, const fs::path& to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
}

tl::unexpected<Error> rename_error(const fs::path& from, const fs::path& to, int error_number) {
  return system_error(fmt::format("cannot rename {} to {}", from.string(), to.string()),
                      error_number);
}

bool is_unsupported(int error_number) { return error_number == EINVAL || error_number == ENOSYS; }

// Fails if `to` has appeared meanwhile.
Status move_to_new(const fs::path& from, const fs::path& to) {
  if (rename_with_flags(from, to, RENAME_NOREPLACE) == 0) return {};
  if (!is_unsupported(errno)) return rename_error(from, to, errno);
  if (::rename(from.c_str(), to.c_str()) == 0) return {};
  return rename_error(from, to, errno);
}

// Afterwards `from` holds what `to` was, if that could be done.
Status exchange(const fs::path& from, const fs::path& to) {
  if (rename_with_flags(from, to, RENAME_EXCHANGE) == 0) return {};
  if (!is_unsupported(errno)) return rename_error(from, to, errno);
  const fs::path aside = fmt::format("{}.old-{}", to.string(), ::getpid());
  if (::rename(to.c_str(), aside.c_str()) != 0) return rename_error(to, aside, errno);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int error_number = errno;
    (void)::rename(aside.c_str(), to.c_str());
    return rename_error(from, to, error_number);
  }
  if (::rename(aside.c_str(), from.c_str()) != 0) remove_tree(aside);
  return {};
}

}  // namespace

Status OutputDirectory::check(const fs::path& path, bool overwrite) {
  std::error_code error;
  if (path.filename().empty()) {
    return invalid_argument(fmt::format("'{}' can't be an output folder", path.string()));
  }
  if (!fs::is_directory(parent_of(path), error)) {
    return not_found(
        fmt::format("folder {} for the output does not exist", parent_of(path).string()));
  }
  if (!is_there(path)) return {};
  if (!overwrite) {
    return invalid_argument(fmt::format(
        "{} exists already; name another folder or replace it with --overwrite", path.string()));
  }
  const std::string reason = no_checkpoint_reason(path);
  if (reason.empty()) return {};
  return invalid_argument(fmt::format(
      "{} is not a checkpoint folder ({}), so it is not overwritten", path.string(), reason));
}

Result<OutputDirectory> OutputDirectory::create(const fs::path& path, bool overwrite, bool resume) {
  NIBBLE_TRY(check(path, overwrite));
  OutputDirectory directory;
  directory.path_ = path;
  directory.overwrite_ = overwrite;
  const fs::path partial = path.string() + ".partial";
  if (!resume && is_there(partial)) remove_tree(partial);
  if (::mkdir(partial.c_str(), 0777) != 0) {
    std::error_code ignored;
    if (errno != EEXIST || !fs::is_directory(partial, ignored)) {
      return system_error(fmt::format("cannot create folder {}", partial.string()), errno);
    }
    directory.resumed_ = true;
    directory.keep_ = true;  // until the caller knows whose it is
  }
  directory.partial_ = partial;
  return directory;
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      partial_(std::exchange(other.partial_, fs::path())),
      overwrite_(other.overwrite_),
      resumed_(other.resumed_),
      keep_(other.keep_) {}

OutputDirectory::~OutputDirectory() {
  if (!partial_.empty() && !keep_) remove_tree(partial_);
}

Status OutputDirectory::commit() {
  NIBBLE_TRY(sync_directory(partial_));
  const bool replaces = overwrite_ && is_there(path_);
  if (replaces) {
    NIBBLE_TRY(exchange(partial_, path_));
  } else {
    NIBBLE_TRY(move_to_new(partial_, path_));
  }
  const fs::path leftover = std::exchange(partial_, fs::path());
  NIBBLE_TRY(sync_directory(parent_of(path_)));
  if (replaces && is_there(leftover)) remove_tree(leftover);
  return {};
}

Result<fs::path> resolved_path(const fs::path& path) {
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) {
    return invalid_argument(fmt::format("cannot resolve {}: {}", path.string(), error.message()));
  }
  if (resolved.filename().empty() && resolved.has_relative_path())
    resolved = resolved.parent_path();
  return resolved;
}

bool is_within(const fs::path& inner, const fs::path& outer) {
  const auto [end_outer, place] =
      std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return end_outer == outer.end();
}

Result<uint64_t> free_disk_bytes(const fs::path& path) {
  struct statvfs info = {};
  if (::statvfs(path.c_str(), &info) != 0) {
    return system_error(fmt::format("cannot read the free space of {}", path.string()), errno);
  }
  return uint64_t{info.f_bavail} * info.f_frsize;
}

}  // namespace nibble
