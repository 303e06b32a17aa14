#include "nibble/tokenizer/tokenizer_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/tokenizer/json_field.h"

namespace nibble {
namespace {

using nlohmann::json;

Result<std::optional<std::string>> token_field(const json& config, std::string_view key) {
  const json& value = field(config, key);
  if (value.is_null()) return std::nullopt;
  if (value.is_object()) return with_context(string_field(value, "content"), key);
  return string_field(config, key);
}

Result<TokenizerConfig> read_config(const json& document) {
  if (!document.is_object()) {
    return corrupt(fmt::format("is {}, expected an object", describe_json(document)));
  }
  TokenizerConfig config;
  config.bos_token = NIBBLE_TRY(token_field(document, "bos_token"));
  config.eos_token = NIBBLE_TRY(token_field(document, "eos_token"));
  const json& tokenizer_class = field(document, "tokenizer_class");
  const bool is_llama =
      tokenizer_class == "LlamaTokenizerFast" || tokenizer_class == "LlamaTokenizer";
  config.add_bos_token =
      NIBBLE_TRY(bool_field(document, "add_bos_token", is_llama && config.bos_token.has_value()));
  if (NIBBLE_TRY(bool_field(document, "add_eos_token", false))) {
    return unsupported("add_eos_token is true; only false is supported");
  }
  if (config.add_bos_token && !config.bos_token) {
    return corrupt("add_bos_token is true, but there is no bos_token");
  }
  return config;
}

}  // namespace

Result<TokenizerConfig> parse_tokenizer_config(std::string_view text, std::string_view where) {
  const json document = NIBBLE_TRY(parse_json_document(text, where));
  return with_context(read_config(document), where);
}

}  // namespace nibble
