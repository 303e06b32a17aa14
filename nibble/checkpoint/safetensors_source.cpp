#include "nibble/checkpoint/safetensors_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"

namespace nibble {

// Errors so far. open() stops at the first, open_damaged() collects.
class ProblemList {
 public:
  explicit ProblemList(bool stop_at_first) : stop_at_first_(stop_at_first) {}
  void add(tl::unexpected<Error> error) { errors.push_back(std::move(error).value()); }
  // Whether opening should end here.
  bool enough() const { return stop_at_first_ && !errors.empty(); }

  std::vector<Error> errors;

 private:
  bool stop_at_first_;
};

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

struct Index {
  std::vector<std::pair<std::string, std::string>> weight_map;  // tensor, shard
  std::set<std::string> shards;
};

Result<Index> load_index(const std::filesystem::path& path) {
  const std::string text = NIBBLE_TRY(read_text_file(path));
  const JsonValue json = NIBBLE_TRY(parse_json(text, kIndexName));
  const JsonValue* map = json.find("weight_map");
  if (map == nullptr || map->as_object() == nullptr) {
    return corrupt(fmt::format("{}: weight_map is {}, expected an object", kIndexName,
                               map == nullptr ? "missing" : map->kind_name()));
  }
  Index index;
  for (const auto& [name, shard] : *map->as_object()) {
    const std::string* file = shard.as_string();
    // A shard lies beside its index: a path out of the directory is no shard's name.
    if (file == nullptr || file->empty() || file->find('/') != std::string::npos ||
        file->find('\0') != std::string::npos || *file == "." || *file == "..") {
      return corrupt(fmt::format("{}: the shard of {} is {}, expected a file name", kIndexName,
                                 json_quote(name),
                                 file == nullptr ? shard.kind_name() : json_quote(*file)));
    }
    index.weight_map.emplace_back(name, *file);
    index.shards.insert(*file);
  }
  return index;
}

// The directory's *.safetensors files, sorted.
Result<std::set<std::string>> list_safetensors(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  std::set<std::string> names;
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    if (entries->path().extension() == ".safetensors") {
      names.insert(entries->path().filename().string());
    }
  }
  if (error) {
    return system_error(fmt::format("cannot list {}", directory.string()), error.value());
  }
  return names;
}

// "model-00002-of-00004.safetensors" -> ("model-", 2, "-of-00004.safetensors", 4).
struct ShardName {
  std::string prefix;
  int number;
  std::string suffix;
  int count;
};
std::optional<ShardName> parse_shard_name(const std::string& name) {
  const size_t of = name.rfind("-of-");
  if (of == std::string::npos || of < 6) return std::nullopt;
  const std::string number = name.substr(of - 5, 5);
  const std::string count = name.substr(of + 4, 5);
  const auto is_number = [](const std::string& digits) {
    return digits.size() == 5 && digits.find_first_not_of("0123456789") == std::string::npos;
  };
  if (!is_number(number) || !is_number(count)) return std::nullopt;
  return ShardName{name.substr(0, of - 5), std::stoi(number), name.substr(of), std::stoi(count)};
}

// Without an index, the names of the shards tell how many there should be.
void check_shard_count(const std::set<std::string>& names, ProblemList& problems) {
  std::set<std::pair<std::string, std::string>> families;
  for (const std::string& name : names) {
    const auto parsed = parse_shard_name(name);
    if (!parsed || !families.emplace(parsed->prefix, parsed->suffix).second) continue;
    for (int i = 1; i <= parsed->count; ++i) {
      const std::string expected = fmt::format("{}{:05}{}", parsed->prefix, i, parsed->suffix);
      if (names.contains(expected)) continue;
      problems.add(not_found(fmt::format("shard {} is missing: {} says that there are {}", expected,
                                         name, parsed->count)));
      if (problems.enough()) return;
    }
  }
}

}  // namespace

Result<std::unique_ptr<SafetensorsSource>> SafetensorsSource::open(
    const std::filesystem::path& path) {
  std::unique_ptr<SafetensorsSource> source(new SafetensorsSource());
  ProblemList problems(true);
  source->open_all(path, problems);
  if (!problems.errors.empty()) return tl::unexpected(std::move(problems.errors.front()));
  return source;
}

std::unique_ptr<SafetensorsSource> SafetensorsSource::open_damaged(
    const std::filesystem::path& path, std::vector<Error>& problems) {
  std::unique_ptr<SafetensorsSource> source(new SafetensorsSource());
  ProblemList found(false);
  source->open_all(path, found);
  for (Error& error : found.errors) problems.push_back(std::move(error));
  return source;
}

void SafetensorsSource::open_all(const std::filesystem::path& path, ProblemList& problems) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return problems.add(not_found(fmt::format("{} does not exist", path.string())));
  }
  if (!std::filesystem::is_directory(path, ignored)) {
    add_shard(path, problems);
    return sort_tensors(problems);
  }

  auto present = list_safetensors(path);
  if (!present) return problems.add(tl::unexpected(std::move(present).error()));
  Index index;
  std::set<std::string> shards = *present;
  if (std::filesystem::exists(path / kIndexName, ignored)) {
    auto loaded = load_index(path / kIndexName);
    if (loaded) {
      index = *std::move(loaded);
      if (!index.shards.empty()) shards = index.shards;
    } else {
      problems.add(tl::unexpected(std::move(loaded).error()));
    }
  } else if (present->contains(kSingleName)) {
    shards = {kSingleName};
  } else {
    check_shard_count(*present, problems);
  }
  if (shards.empty()) {
    problems.add(not_found(
        fmt::format("{} has no *.safetensors files; expected {}, or shards with or without {}",
                    path.string(), kSingleName, kIndexName)));
  }
  if (problems.enough()) return;

  std::vector<std::string> unread;
  std::set_difference(present->begin(), present->end(), shards.begin(), shards.end(),
                      std::back_inserter(unread));
  for (const std::string& name : unread) {
    warnings_.push_back(fmt::format("{} is not read: {}", name,
                                    index.shards.empty() ? "model.safetensors stands beside it"
                                                         : "the index does not name it"));
  }
  for (const std::string& name : shards) {
    if (!std::filesystem::exists(path / name, ignored)) {
      problems.add(not_found(fmt::format(
          "shard {} is missing from {}{}", name, path.string(),
          index.shards.contains(name) ? fmt::format("; {} names it", kIndexName) : "")));
    } else {
      add_shard(path / name, problems);
    }
    if (problems.enough()) return;
  }
  sort_tensors(problems);
  if (problems.enough()) return;

  const std::set<std::string> readable(shard_names_.begin(), shard_names_.end());
  size_t moved = 0;
  for (const auto& [name, shard] : index.weight_map) {
    if (!readable.contains(shard)) continue;  // told already
    const TensorInfo* info = find(name);
    if (info == nullptr) {
      problems.add(corrupt(fmt::format("{} names the tensor {}, but {} does not have it",
                                       kIndexName, json_quote(name), shard)));
      if (problems.enough()) return;
    } else if (info->shard != shard) {
      ++moved;
    }
  }
  if (moved > 0) {
    warnings_.push_back(
        fmt::format("{} puts {} tensors into other shards than where they are", kIndexName, moved));
  }
}

void SafetensorsSource::add_shard(const std::filesystem::path& file, ProblemList& problems) {
  const std::string name = file.filename().string();
  auto mapped = MappedFile::open(file);
  if (!mapped) return problems.add(tl::unexpected(std::move(mapped).error()));
  auto header = parse_safetensors_header(mapped->bytes(), name);
  if (!header) return problems.add(tl::unexpected(std::move(header).error()));
  for (auto& entry : header->entries) {
    tensors_.push_back(std::move(entry.info));
    places_.push_back({shards_.size(), entry.offset, entry.size});
  }
  shards_.push_back(*std::move(mapped));
  shard_names_.push_back(name);
}

void SafetensorsSource::sort_tensors(ProblemList& problems) {
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tie(tensors_[a].name, a) < std::tie(tensors_[b].name, b);
  });
  std::vector<TensorInfo> tensors;
  std::vector<Place> places;
  tensors.reserve(order.size());
  places.reserve(order.size());
  for (const size_t i : order) {
    if (!tensors.empty() && tensors.back().name == tensors_[i].name) {
      problems.add(
          corrupt(fmt::format("tensor {} is in two shards, {} and {}", json_quote(tensors_[i].name),
                              tensors.back().shard, tensors_[i].shard)));
      continue;
    }
    tensors.push_back(std::move(tensors_[i]));
    places.push_back(places_[i]);
  }
  tensors_ = std::move(tensors);
  places_ = std::move(places);
}

const TensorInfo* SafetensorsSource::find(std::string_view name) const {
  const auto it =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& info, std::string_view n) { return info.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

Result<TensorView> SafetensorsSource::read(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    return not_found(fmt::format("the checkpoint has no tensor {}", json_quote(name)));
  }
  const auto i = static_cast<size_t>(info - tensors_.data());
  const Place& place = places_[i];
  TensorView view{info->dtype, info->shape,
                  shards_[place.shard].bytes().subspan(place.offset, place.size)};
  if (place.offset % static_cast<uint64_t>(dtype_size(info->dtype)) != 0) {
    const std::lock_guard lock(copies_mutex_);
    auto& copy = copies_[i];
    if (copy == nullptr) {
      copy = std::make_unique<std::byte[]>(place.size);
      std::copy(view.bytes.begin(), view.bytes.end(), copy.get());
    }
    view.bytes = {copy.get(), place.size};
  }
  return view;
}

void SafetensorsSource::release(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return;
  const auto i = static_cast<size_t>(info - tensors_.data());
  shards_[places_[i].shard].release(places_[i].offset, places_[i].size);
  const std::lock_guard lock(copies_mutex_);
  copies_.erase(i);
}

void SafetensorsSource::release_part(std::string_view name, uint64_t offset,
                                     uint64_t length) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return;
  const Place& place = places_[static_cast<size_t>(info - tensors_.data())];
  if (offset >= place.size) return;
  shards_[place.shard].release(place.offset + offset, std::min(length, place.size - offset));
}

void SafetensorsSource::prefetch(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) return;
  const Place& place = places_[static_cast<size_t>(info - tensors_.data())];
  shards_[place.shard].prefetch(place.offset, place.size);
}

}  // namespace nibble
