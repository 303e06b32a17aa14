#include "nibble/cli/load_dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kDefaultNumPrompts = 100;
constexpr int64_t kMooncakeBlock = 512;  // tokens of a hash id
constexpr double kMaxLength = 1e7;

// One request before it becomes a body: `prompt` or `messages` in it, and when it starts.
struct Row {
  Json body;
  std::optional<double> start;
};

class Reader {
 public:
  explicit Reader(const LoadDataset& dataset)
      : o_(dataset), rng_(static_cast<uint64_t>(dataset.seed)) {}

  Result<std::vector<LoadRequest>> requests();

 private:
  bool chat() const { return o_.endpoint.ends_with("/chat/completions"); }
  Result<std::vector<Row>> random_rows();
  Result<std::vector<Row>> conversations(const std::string& text) const;
  Result<std::vector<Row>> lines(const std::string& text);
  Result<Row> jsonl_row(const Json& line);
  Result<Row> mooncake_row(const Json& line, int number) const;
  Json body_of(Json prompt) const;
  int64_t vary(int64_t middle);

  const LoadDataset& o_;
  std::mt19937_64 rng_;
};

// Ids that every vocabulary has, and that are no special tokens in DeepSeek's.
void add_tokens(int64_t count, std::mt19937_64& rng, Json* ids) {
  std::uniform_int_distribution<int> draw(300, 2300);
  for (int64_t i = 0; i < count; ++i) ids->push_back(draw(rng));
}

// A number of tokens. Errors: kInvalidArgument when it is none.
Result<int64_t> length_of(const Json& line, const char* name, double scale = 1) {
  const auto found = line.find(name);
  if (found == line.end() || !found->is_number() || !(found->get<double>() >= 1) ||
      found->get<double>() > kMaxLength) {
    return invalid_argument(fmt::format("{} is {}, expected a number of tokens", name,
                                        found == line.end() ? "missing" : found->dump()));
  }
  return std::max<int64_t>(1, std::llround(found->get<double>() * scale));
}

Result<double> timestamp_of(const Json& line, double per_second) {
  const Json& value = line.at("timestamp");
  if (!value.is_number() || !(value.get<double>() >= 0) || value.get<double>() > 1e15) {
    return invalid_argument(fmt::format("timestamp is {}, expected a time", value.dump()));
  }
  return value.get<double>() / per_second;
}

Json Reader::body_of(Json prompt) const {
  Json body = Json::object();
  if (!chat()) {
    body["prompt"] = std::move(prompt);
  } else {
    body["messages"] = {{{"role", "user"}, {"content", std::move(prompt)}}};
  }
  return body;
}

int64_t Reader::vary(int64_t middle) {
  const double spread = o_.random_range_ratio * static_cast<double>(middle);
  std::uniform_real_distribution<double> draw(static_cast<double>(middle) - spread,
                                              static_cast<double>(middle) + spread);
  return std::max<int64_t>(1, std::llround(draw(rng_)));
}

Result<std::vector<Row>> Reader::random_rows() {
  std::vector<Row> rows;
  for (int64_t i = 0; i < o_.num_prompts.value_or(kDefaultNumPrompts); ++i) {
    Json ids = Json::array();
    add_tokens(vary(o_.random_input_len), rng_, &ids);
    Row row{body_of(std::move(ids)), std::nullopt};
    row.body["max_tokens"] = vary(o_.random_output_len);
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<std::vector<Row>> Reader::conversations(const std::string& text) const {
  const Json file = Json::parse(text, nullptr, false);
  if (!file.is_array()) return invalid_argument(o_.file + " is no JSON array");
  std::vector<Row> rows;
  for (const Json& entry : file) {
    if (!entry.is_object() || !entry.contains("conversations")) continue;
    const Json& turns = entry["conversations"];
    if (!turns.is_array() || turns.empty() || !turns[0].is_object()) continue;
    const auto value = turns[0].find("value");
    if (value == turns[0].end() || !value->is_string()) continue;
    Row row{body_of(*value), std::nullopt};
    row.body["max_tokens"] = o_.random_output_len;
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<Row> Reader::jsonl_row(const Json& line) {
  Row row;
  if (line.contains("messages")) {
    row.body["messages"] = line["messages"];
  } else if (line.contains("prompt")) {
    row.body = body_of(line["prompt"]);
  } else if (line.contains("input_len")) {
    if (chat()) return invalid_argument("input_len makes token ids, which need /v1/completions");
    Json ids = Json::array();
    add_tokens(NIBBLE_TRY(length_of(line, "input_len")), rng_, &ids);
    row.body = body_of(std::move(ids));
  } else {
    return invalid_argument("neither prompt nor messages nor input_len");
  }
  if (line.contains("tools")) row.body["tools"] = line["tools"];
  const char* name = line.contains("output_len") ? "output_len" : "max_tokens";
  int64_t output = o_.random_output_len;
  if (line.contains(name)) output = NIBBLE_TRY(length_of(line, name));
  row.body["max_tokens"] = output;
  if (line.contains("timestamp")) row.start = NIBBLE_TRY(timestamp_of(line, o_.trace_speedup));
  return row;
}

Result<Row> Reader::mooncake_row(const Json& line, int number) const {
  const int64_t input = NIBBLE_TRY(length_of(line, "input_length", o_.trace_length_scale));
  const int64_t output = NIBBLE_TRY(length_of(line, "output_length", o_.trace_length_scale));
  if (!line.contains("timestamp")) return invalid_argument("timestamp is missing");
  const auto hashes = line.find("hash_ids");
  const int64_t block = std::max<int64_t>(1, std::llround(kMooncakeBlock * o_.trace_length_scale));
  Json ids = Json::array();
  if (hashes != line.end()) {
    if (!hashes->is_array()) return invalid_argument("hash_ids is no array");
    for (const Json& hash : *hashes) {
      if (!hash.is_number_integer()) return invalid_argument("hash_ids holds no whole number");
      const int64_t left = input - static_cast<int64_t>(ids.size());
      if (left <= 0) break;
      std::mt19937_64 own(static_cast<uint64_t>(o_.seed) * 0x9e3779b97f4a7c15 +
                          hash.get<uint64_t>());
      add_tokens(std::min(block, left), own, &ids);
    }
  }
  // What no hash covers is this request's own.
  std::mt19937_64 own(static_cast<uint64_t>(o_.seed) * 0x9e3779b97f4a7c15 + (1ull << 40) +
                      static_cast<uint64_t>(number));
  add_tokens(input - static_cast<int64_t>(ids.size()), own, &ids);
  Row row{body_of(std::move(ids)), NIBBLE_TRY(timestamp_of(line, 1e3 * o_.trace_speedup))};
  row.body["max_tokens"] = output;
  return row;
}

Result<std::vector<Row>> Reader::lines(const std::string& text) {
  std::vector<Row> rows;
  std::istringstream stream(text);
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (line.empty()) continue;
    const Json json = Json::parse(line, nullptr, false);
    auto row = !json.is_object()       ? Result<Row>(invalid_argument("no JSON object"))
               : o_.kind == "mooncake" ? mooncake_row(json, number)
                                       : jsonl_row(json);
    if (!row) {
      return tl::unexpected(
          std::move(row).error().with_context(fmt::format("{}:{}", o_.file, number)));
    }
    rows.push_back(*std::move(row));
  }
  return rows;
}

Result<std::vector<LoadRequest>> Reader::requests() {
  const bool ids_only = o_.kind == "random" || o_.kind == "mooncake";
  if (ids_only && chat()) {
    return invalid_argument(
        fmt::format("--dataset {} sends token ids, which {} does not take; use /v1/completions, or "
                    "--dataset jsonl",
                    o_.kind, o_.endpoint));
  }
  if (o_.kind != "random" && o_.file.empty()) {
    return invalid_argument(fmt::format("--dataset {} needs --dataset-file", o_.kind));
  }
  std::vector<Row> rows;
  if (o_.kind == "random") {
    rows = NIBBLE_TRY(random_rows());
  } else {
    const std::string text = NIBBLE_TRY(read_text_file(o_.file));
    rows = NIBBLE_TRY(o_.kind == "sharegpt" ? conversations(text) : lines(text));
  }
  if (rows.empty()) return invalid_argument(o_.file + " holds no prompt");
  const bool timed = std::any_of(rows.begin(), rows.end(), [](const Row& r) { return r.start; });
  auto count = static_cast<size_t>(o_.num_prompts.value_or(kDefaultNumPrompts));
  if (timed && (!o_.num_prompts || count > rows.size())) count = rows.size();
  std::vector<LoadRequest> requests;
  double at = 0;
  std::gamma_distribution<double> gap(
      o_.burstiness, o_.request_rate > 0 ? 1 / (o_.request_rate * o_.burstiness) : 1);
  for (size_t i = 0; i < count; ++i) {
    const Row& row = rows[i % rows.size()];
    LoadRequest request;
    if (row.start) {
      request.start_second = *row.start;
    } else if (o_.request_rate > 0) {
      request.start_second = at;
      at += gap(rng_);
    }
    Json body = row.body;
    if (!o_.model.empty()) body["model"] = o_.model;
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    body["temperature"] = o_.temperature;
    if (o_.ignore_eos) {
      body["ignore_eos"] = true;
      body["min_tokens"] = body["max_tokens"];
    }
    request.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    requests.push_back(std::move(request));
  }
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.start_second < b.start_second; });
  return requests;
}

}  // namespace

Result<std::vector<LoadRequest>> make_load_requests(const LoadDataset& dataset) {
  return Reader(dataset).requests();
}

}  // namespace nibble
