#include "nibble/tokenizer/tokenizer_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/tokenizer/byte_level.h"
#include "nibble/tokenizer/json_field.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr size_t kMaxSplits = 16;
constexpr size_t kMaxAddedTokenBytes = 4096;  // bounds the work at each position of a text

// A setting that has to be null, or absent.
Status expect_null(const json& object, std::string_view key) {
  const json& value = field(object, key);
  if (value.is_null()) return {};
  return unsupported(fmt::format("{} is {}; only null is supported", key, describe_json(value)));
}

// A truth value that has to be this one; absent counts as `absent`.
Status expect_bool(const json& object, std::string_view key, bool wanted, bool absent) {
  const bool value = NIBBLE_TRY(bool_field(object, key, absent));
  if (value == wanted) return {};
  return unsupported(fmt::format("{} is {}; only {} is supported", key, value, wanted));
}

// {"type": ...}, or {"type": "Sequence", <list>: []}, or null: whatever leaves the text as it is.
Status check_normalizer(const json& normalizer) {
  if (normalizer.is_null()) return {};
  if (field(normalizer, "type") == "Sequence") {
    const json& steps = field(normalizer, "normalizers");
    if (steps.is_array() && steps.empty()) return {};
    return unsupported(
        fmt::format("normalizer is a Sequence of {}; only null and an empty Sequence are supported",
                    describe_json(steps)));
  }
  return unsupported(
      fmt::format("normalizer is of type {}; only null and an empty Sequence are supported",
                  describe_json(field(normalizer, "type"))));
}

Result<std::string> split_pattern(const json& split) {
  const json& pattern = field(split, "pattern");
  if (!field(pattern, "Regex").is_string()) {
    return unsupported(
        "pattern is not {\"Regex\": text}; other patterns, such as String, are not supported");
  }
  if (field(split, "behavior") != "Isolated") {
    return unsupported(fmt::format("behavior is {}; only \"Isolated\" is supported",
                                   describe_json(field(split, "behavior"))));
  }
  NIBBLE_TRY(expect_bool(split, "invert", false, false));
  return field(pattern, "Regex").get<std::string>();
}

Status check_byte_level(const json& byte_level) {
  // Hugging Face takes true for both when they are absent.
  NIBBLE_TRY(expect_bool(byte_level, "add_prefix_space", false, true));
  return expect_bool(byte_level, "use_regex", false, true);
}

Result<std::vector<std::string>> read_pre_tokenizer(const json& pre_tokenizer) {
  if (field(pre_tokenizer, "type") != "Sequence") {
    return unsupported(
        fmt::format("type is {}; only a Sequence of Splits and a last ByteLevel is supported",
                    describe_json(field(pre_tokenizer, "type"))));
  }
  const json& steps = field(pre_tokenizer, "pretokenizers");
  if (!steps.is_array() || steps.empty()) {
    return corrupt(fmt::format("pretokenizers is {}, expected a list", describe_json(steps)));
  }
  if (steps.size() > kMaxSplits + 1) {
    return unsupported(
        fmt::format("{} steps; at most {} are supported", steps.size(), kMaxSplits + 1));
  }
  std::vector<std::string> patterns;
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string here = fmt::format("step {}", i);
    const json& type = field(steps[i], "type");
    const bool last = i + 1 == steps.size();
    if (last && type == "ByteLevel") {
      NIBBLE_TRY(with_context(check_byte_level(steps[i]), here));
    } else if (!last && type == "Split") {
      patterns.push_back(NIBBLE_TRY(with_context(split_pattern(steps[i]), here)));
    } else {
      return unsupported(fmt::format("{} is of type {}; here only {} is supported", here,
                                     describe_json(type), last ? "ByteLevel" : "Split"));
    }
  }
  return patterns;
}

Status check_model_settings(const json& model) {
  if (field(model, "type") != "BPE") {
    return unsupported(
        fmt::format("type is {}; only BPE is supported", describe_json(field(model, "type"))));
  }
  NIBBLE_TRY(expect_null(model, "dropout"));
  NIBBLE_TRY(expect_null(model, "unk_token"));
  NIBBLE_TRY(expect_bool(model, "byte_fallback", false, false));
  NIBBLE_TRY(expect_bool(model, "ignore_merges", false, false));
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    // The empty text, not an empty value. NOLINTNEXTLINE(readability-container-size-empty)
    if (field(model, affix) != "") NIBBLE_TRY(expect_null(model, affix));
  }
  return {};
}

// Puts `text` at `id` of the growing vocabulary.
Status place_token(std::vector<std::string>& texts, int32_t id, const std::string& text) {
  const auto index = static_cast<size_t>(id);
  if (text.empty()) return corrupt(fmt::format("id {} is an empty text", id));
  if (index >= texts.size()) texts.resize(index + 1);
  if (!texts[index].empty() && texts[index] != text) {
    return corrupt(fmt::format("id {} is both {} and {}", id, describe_json(texts[index]),
                               describe_json(text)));
  }
  texts[index] = text;
  return {};
}

Status read_vocab(const json& model, std::vector<std::string>& texts) {
  const json& vocab = field(model, "vocab");
  if (!vocab.is_object() || vocab.empty()) {
    return corrupt(
        fmt::format("vocab is {}, expected an object of texts and ids", describe_json(vocab)));
  }
  texts.reserve(vocab.size());
  for (const auto& [text, value] : vocab.items()) {
    auto id = id_value(value, Vocabulary::kMaxSize);
    if (!id) {
      return corrupt(
          fmt::format("vocab: the id of {} {}", describe_json(text), id.error().message));
    }
    NIBBLE_TRY(with_context(place_token(texts, *id, text), "vocab"));
  }
  return {};
}

Result<AddedToken> read_added_token(const json& entry) {
  if (!entry.is_object())
    return corrupt(fmt::format("is {}, expected an object", describe_json(entry)));
  AddedToken token;
  token.content = NIBBLE_TRY(string_field(entry, "content"));
  if (token.content.empty()) return corrupt("content is empty");
  if (token.content.size() > kMaxAddedTokenBytes) {
    return unsupported(fmt::format("content has {} bytes; at most {} are supported",
                                   token.content.size(), kMaxAddedTokenBytes));
  }
  token.id = NIBBLE_TRY(with_context(id_value(field(entry, "id"), Vocabulary::kMaxSize), "id"));
  for (const std::string_view flag : {"single_word", "lstrip", "rstrip"}) {
    NIBBLE_TRY(with_context(expect_bool(entry, flag, false, false), describe_json(token.content)));
  }
  token.special = NIBBLE_TRY(bool_field(entry, "special", false));
  token.normalized = NIBBLE_TRY(bool_field(entry, "normalized", !token.special));
  return token;
}

// An added token may repeat a token of the vocabulary (BOS does), under the same id.
Status read_added_tokens(const json& list, const Vocabulary& vocabulary,
                         std::vector<std::string>& texts, std::vector<AddedToken>& added_tokens) {
  if (list.is_null()) return {};
  if (!list.is_array()) return corrupt(fmt::format("is {}, expected a list", describe_json(list)));
  std::unordered_set<std::string> contents;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string here = fmt::format("entry {}", i);
    AddedToken token = NIBBLE_TRY(with_context(read_added_token(list[i]), here));
    if (!contents.insert(token.content).second) {
      return corrupt(fmt::format("{}: {} is there twice", here, describe_json(token.content)));
    }
    if (const auto id = vocabulary.find(token.content); id && *id != token.id) {
      return corrupt(fmt::format("{}: {} has id {}, but {} in model.vocab", here,
                                 describe_json(token.content), token.id, *id));
    }
    NIBBLE_TRY(with_context(place_token(texts, token.id, token.content), here));
    added_tokens.push_back(std::move(token));
  }
  return {};
}

// "left right", or ["left", "right"] as newer files have it.
Result<std::pair<std::string, std::string>> merge_sides(const json& entry) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return std::pair(entry[0].get<std::string>(), entry[1].get<std::string>());
  }
  if (entry.is_string()) {
    const auto& text = entry.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return corrupt(
      fmt::format("is {}, expected \"left right\" or [\"left\", \"right\"]", describe_json(entry)));
}

Result<BpeMerge> read_merge(const json& entry, const Vocabulary& vocabulary) {
  const auto [left, right] = NIBBLE_TRY(merge_sides(entry));
  const auto find = [&](const std::string& text) -> Result<int32_t> {
    if (const auto id = vocabulary.find(text)) return *id;
    return corrupt(fmt::format("{} is not in vocab", describe_json(text)));
  };
  const int32_t left_id = NIBBLE_TRY(find(left));
  const int32_t right_id = NIBBLE_TRY(find(right));
  return BpeMerge{left_id, right_id, NIBBLE_TRY(find(left + right))};
}

Status read_merges(const json& model, const Vocabulary& vocabulary, std::vector<BpeMerge>& merges) {
  const json& list = field(model, "merges");
  if (!list.is_array()) {
    return corrupt(fmt::format("merges is {}, expected a list", describe_json(list)));
  }
  merges.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    // The first line of a merges.txt, which some converted files still hold.
    if (list[i].is_string() && list[i].get_ref<const std::string&>().starts_with("#version")) {
      continue;
    }
    auto merge = read_merge(list[i], vocabulary);
    if (!merge) {
      return tl::unexpected(
          std::move(merge).error().with_context(fmt::format("merges entry {}", i)));
    }
    merges.push_back(*merge);
  }
  return {};
}

// Hugging Face drops a byte without a token in silence; we want one for every byte of UTF-8 text.
Status find_byte_tokens(const Vocabulary& vocabulary, std::array<int32_t, 256>& byte_ids) {
  for (int byte = 0; byte < 256; ++byte) {
    const bool in_utf8 = byte != 0xc0 && byte != 0xc1 && byte < 0xf5;
    const std::string text = byte_to_alphabet(static_cast<uint8_t>(byte));
    const auto id = vocabulary.find(text);
    if (!id && in_utf8) {
      return unsupported(
          fmt::format("vocab has no token {} for byte {:#04x}; only a complete byte-level alphabet "
                      "is supported",
                      describe_json(text), byte));
    }
    byte_ids[static_cast<size_t>(byte)] = id.value_or(-1);
  }
  return {};
}

Result<TokenizerJson> read_document(const json& document) {
  if (!document.is_object()) {
    return corrupt(fmt::format("is {}, expected an object", describe_json(document)));
  }
  NIBBLE_TRY(expect_null(document, "truncation"));
  NIBBLE_TRY(expect_null(document, "padding"));
  NIBBLE_TRY(check_normalizer(field(document, "normalizer")));
  if (field(field(document, "decoder"), "type") != "ByteLevel") {
    return unsupported(fmt::format("decoder is of type {}; only ByteLevel is supported",
                                   describe_json(field(field(document, "decoder"), "type"))));
  }
  // ByteLevel's settings there concern offsets, which we don't report.
  const json& post_processor = field(document, "post_processor");
  if (!post_processor.is_null() && field(post_processor, "type") != "ByteLevel") {
    return unsupported(
        fmt::format("post_processor is of type {}; only null and ByteLevel are supported",
                    describe_json(field(post_processor, "type"))));
  }

  TokenizerJson result;
  result.split_patterns = NIBBLE_TRY(
      with_context(read_pre_tokenizer(field(document, "pre_tokenizer")), "pre_tokenizer"));
  const json& model = field(document, "model");
  NIBBLE_TRY(with_context(check_model_settings(model), "model"));

  std::vector<std::string> texts;
  NIBBLE_TRY(with_context(read_vocab(model, texts), "model"));
  // Merges may only speak of the model's own tokens, so the added ones come after.
  result.vocabulary = Vocabulary(texts);
  NIBBLE_TRY(with_context(read_merges(model, result.vocabulary, result.merges), "model"));
  NIBBLE_TRY(with_context(find_byte_tokens(result.vocabulary, result.byte_ids), "model"));
  NIBBLE_TRY(with_context(read_added_tokens(field(document, "added_tokens"), result.vocabulary,
                                            texts, result.added_tokens),
                          "added_tokens"));
  result.vocabulary = Vocabulary(std::move(texts));
  return result;
}

}  // namespace

Result<TokenizerJson> parse_tokenizer_json(std::string_view text, std::string_view where) {
  const json document = NIBBLE_TRY(parse_json_document(text, where));
  return with_context(read_document(document), where);
}

}  // namespace nibble
