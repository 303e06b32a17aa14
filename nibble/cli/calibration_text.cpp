#include "nibble/cli/calibration_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"
#include "nibble/tokenizer/chat_messages.h"
#include "nibble/tokenizer/chat_template.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {
namespace {

using Sample = std::vector<int32_t>;

constexpr int64_t kDefaultSamples = 512;
constexpr size_t kFewestSamples = 4;
constexpr size_t kFewestTokens = 256;

class SampleReader {
 public:
  explicit SampleReader(const std::filesystem::path& model) : model_(model) {}

  Result<Sample> text(std::string_view text) {
    NIBBLE_TRY(load_tokenizer());
    return tokenizer_->encode(text, {tokenizer_->add_bos_token(), true});
  }

  // One line of JSON.
  Result<Sample> line(std::string_view line) {
    const JsonValue json = NIBBLE_TRY(parse_json(line, "JSON"));
    if (json.as_array() != nullptr) return ids(json);
    if (const JsonValue* found = json.find("ids")) return ids(*found);
    if (const JsonValue* found = json.find("text")) {
      if (found->as_string() == nullptr) {
        return invalid_argument(fmt::format("text is {}, expected a string", found->kind_name()));
      }
      return text(*found->as_string());
    }
    if (json.find("messages") != nullptr) {
      NIBBLE_TRY(load_tokenizer());
      if (!chat_) chat_.emplace(NIBBLE_TRY(ChatTemplate::load(model_)));
      ChatRequest request = NIBBLE_TRY(parse_chat_request(line));
      request.add_generation_prompt = false;
      return chat_->encode(request, *tokenizer_);
    }
    return invalid_argument("expected an object with text, messages or ids, or a list of ids");
  }

 private:
  // Ids alone need none.
  Status load_tokenizer() {
    if (!tokenizer_) tokenizer_.emplace(NIBBLE_TRY(Tokenizer::load(model_)));
    return {};
  }

  static Result<Sample> ids(const JsonValue& json) {
    Sample sample;
    if (json.as_array() == nullptr) {
      return invalid_argument(fmt::format("ids is {}, expected a list", json.kind_name()));
    }
    for (const JsonValue& item : *json.as_array()) {
      if (item.as_integer() == nullptr || *item.as_integer() < 0 ||
          *item.as_integer() > INT32_MAX) {
        return invalid_argument("ids holds something else than token ids");
      }
      sample.push_back(static_cast<int32_t>(*item.as_integer()));
    }
    return sample;
  }

  const std::filesystem::path& model_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;
};

}  // namespace

Result<std::vector<Sample>> read_calibration_text(const std::filesystem::path& file,
                                                  const std::filesystem::path& model,
                                                  const CalibrationTextOptions& options) {
  const std::string content = NIBBLE_TRY(read_text_file(file));
  SampleReader reader(model);
  const auto wanted = static_cast<size_t>(options.samples.value_or(kDefaultSamples));
  const auto length = static_cast<size_t>(options.sequence);
  std::vector<Sample> samples;
  const size_t first = content.find_first_not_of(" \t\r\n");
  const bool is_json =
      first != std::string::npos && (content[first] == '{' || content[first] == '[');
  if (is_json) {
    std::string_view rest = content;
    for (size_t number = 1; !rest.empty() && samples.size() < wanted; ++number) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      Sample sample = NIBBLE_TRY(
          with_context(reader.line(line), fmt::format("{} line {}", file.string(), number)));
      if (sample.empty()) {
        return invalid_argument(fmt::format("{} line {} has no tokens", file.string(), number));
      }
      sample.resize(std::min(sample.size(), length));
      samples.push_back(std::move(sample));
    }
  } else {
    const Sample all = NIBBLE_TRY(with_context(reader.text(content), file.string()));
    for (size_t at = 0; at < all.size() && samples.size() < wanted; at += length) {
      const size_t end = std::min(at + length, all.size());
      samples.emplace_back(all.begin() + static_cast<int64_t>(at),
                           all.begin() + static_cast<int64_t>(end));
    }
  }
  size_t tokens = 0;
  for (const Sample& sample : samples) tokens += sample.size();
  if (options.samples && samples.size() < wanted) {
    return invalid_argument(fmt::format("{} has {} samples, --samples asks for {}", file.string(),
                                        samples.size(), wanted));
  }
  if (samples.size() < std::min(wanted, kFewestSamples) || tokens < kFewestTokens) {
    return invalid_argument(
        fmt::format("{} has {} samples and {} tokens, too few to calibrate with: {} and {} are the "
                    "least, 512 and 100,000 a good measure",
                    file.string(), samples.size(), tokens, kFewestSamples, kFewestTokens));
  }
  return samples;
}

}  // namespace nibble
