// Text to token ids and back: byte-level BPE as in Hugging Face's tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/added_tokens.h"

namespace nibble {

struct EncodeOptions {
  // Puts BOS in front, unless the text begins with it already.
  bool add_bos = false;
  // Finds added tokens ("<think>", "<｜User｜>") in the text. Without it they are plain characters:
  // the way to encode what a stranger wrote.
  bool parse_added_tokens = true;
};

// Immutable once loaded; every function may be called from many threads at once. Movable.
//
// encode() gives the ids of Hugging Face tokenizers for the same file.
class Tokenizer {
 public:
  // Reads DIRECTORY/tokenizer.json and, when it is there, DIRECTORY/tokenizer_config.json.
  // Errors: kNotFound without a tokenizer.json; those of parse() and with_config().
  static Result<Tokenizer> load(const std::filesystem::path& directory);

  // A tokenizer from the text of a tokenizer.json, without BOS and EOS. `where` names the file in
  // messages.
  // Errors: kCorrupt for malformed or contradictory files; kUnsupported naming the setting and what
  // would work (tokenizer_json.h lists what does).
  static Result<Tokenizer> parse(std::string_view tokenizer_json, std::string_view where);

  // This tokenizer with the BOS, EOS and add_bos_token of a tokenizer_config.json.
  // Errors: those of parse_tokenizer_config(); kCorrupt when BOS or EOS is not in the vocabulary.
  Result<Tokenizer> with_config(std::string_view tokenizer_config_json, std::string_view where) &&;

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // The ids of `text`, which is UTF-8 of at most 256 MiB.
  // Errors: kInvalidArgument naming the first byte that is not UTF-8, for a longer text, and for
  // add_bos without a BOS; kUnsupported when one of the file's regular expressions backtracks
  // beyond bounds.
  Result<std::vector<int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  // The text of `ids`: their bytes in a row, with U+FFFD for what is not UTF-8. Ids without a token
  // add nothing. skip_special_tokens leaves out those with special: true (BOS and EOS are; <think>
  // and <｜User｜> in DeepSeek's files are not).
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // The bytes that this token adds to a text, perhaps only a part of a character. Empty for an id
  // without a token. Valid as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;

  // The id of a token by its text in the file: an added token such as "<think>", or a token in the
  // byte-level alphabet such as "Ġthe".
  std::optional<int32_t> token_id(std::string_view text) const;

  // Whether skip_special_tokens leaves this id out.
  bool is_special(int32_t id) const;

  // One more than the highest id. A model's vocab_size may be larger (R1: 129280 over 128815).
  int32_t vocab_size() const;

  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;

  // Whether prompts of plain text get a BOS: what to pass as EncodeOptions::add_bos.
  bool add_bos_token() const;

  // In the file's order.
  std::span<const AddedToken> added_tokens() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
