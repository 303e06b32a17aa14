#include "nibble/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <mutex>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/splitter.h"
#include "nibble/tokenizer/tokenizer_config.h"
#include "nibble/tokenizer/tokenizer_json.h"
#include "nibble/tokenizer/utf8_stream.h"
#include "nibble/tokenizer/word_cache.h"

namespace nibble {
namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;

// What one running encode() needs for itself. Kept between calls for the sake of the cache.
struct Workspace {
  MatchBuffer match_buffer;
  WordCache cache;
};

// Idle workspaces; as many exist as encode() calls ran at once, those above kMaxIdle go again.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto workspace = std::move(idle_.back());
        idle_.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>();
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    if (idle_.size() < kMaxIdle) idle_.push_back(std::move(workspace));
  }

 private:
  static constexpr size_t kMaxIdle = 16;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

// Calls on_text for what lies between the matcher's tokens and appends those tokens' ids.
template <typename OnText>
Status around_added_tokens(std::string_view text, const AddedTokenMatcher& matcher,
                           std::vector<int32_t>& ids, OnText on_text) {
  size_t position = 0;
  while (position < text.size()) {
    const AddedTokenMatcher::Match match = matcher.find(text, position);
    if (match.begin > position) {
      NIBBLE_TRY(on_text(text.substr(position, match.begin - position)));
    }
    if (match.end > match.begin) ids.push_back(match.id);
    position = match.end;
  }
  return {};
}

}  // namespace

struct Tokenizer::State {
  State(TokenizerJson json, std::vector<Splitter> splitters_in)
      : vocabulary(std::move(json.vocabulary)),
        bpe(json.byte_ids, json.merges),
        splitters(std::move(splitters_in)),
        added_tokens(std::move(json.added_tokens)),
        special(static_cast<size_t>(vocabulary.size()), false) {
    std::vector<AddedToken> raw;
    std::vector<AddedToken> normalized;
    for (const AddedToken& token : added_tokens) {
      special[static_cast<size_t>(token.id)] = token.special;
      (token.normalized ? normalized : raw).push_back(token);
    }
    raw_matcher = AddedTokenMatcher(raw);
    normalized_matcher = AddedTokenMatcher(normalized);
  }

  Status encode_text(std::string_view text, bool parse_added_tokens, Workspace& workspace,
                     std::vector<int32_t>& ids) const;
  Status encode_plain(std::string_view text, size_t stage, Workspace& workspace,
                      std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, Workspace& workspace, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary;
  Bpe bpe;
  std::vector<Splitter> splitters;
  std::vector<AddedToken> added_tokens;
  std::vector<bool> special;             // by id
  AddedTokenMatcher raw_matcher;         // "normalized": false, looked for first
  AddedTokenMatcher normalized_matcher;  // "normalized": true, in the text between those
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  bool add_bos_token = false;
  mutable WorkspacePool workspaces;
};

Status Tokenizer::State::encode_text(std::string_view text, bool parse_added_tokens,
                                     Workspace& workspace, std::vector<int32_t>& ids) const {
  const auto plain = [&](std::string_view piece) { return encode_plain(piece, 0, workspace, ids); };
  if (!parse_added_tokens) return text.empty() ? Status() : plain(text);
  return around_added_tokens(text, raw_matcher, ids, [&](std::string_view piece) {
    return around_added_tokens(piece, normalized_matcher, ids, plain);
  });
}

// Each splitter divides the pieces of the one before, and sees nothing beyond its piece.
Status Tokenizer::State::encode_plain(std::string_view text, size_t stage, Workspace& workspace,
                                      std::vector<int32_t>& ids) const {
  if (stage == splitters.size()) {
    encode_word(text, workspace, ids);
    return {};
  }
  const auto inner = [&](size_t begin, size_t end) -> Status {
    if (begin == end) return {};
    return encode_plain(text.substr(begin, end - begin), stage + 1, workspace, ids);
  };
  const Splitter& splitter = splitters[stage];
  size_t position = 0;
  size_t last_end = std::string_view::npos;
  size_t begin = 0;
  size_t end = 0;
  for (;;) {
    const Splitter::Found found =
        splitter.find(text, position, last_end, workspace.match_buffer, &begin, &end);
    if (found == Splitter::Found::kFailed) return splitter.failure();
    if (found == Splitter::Found::kNone) return inner(position, text.size());
    NIBBLE_TRY(inner(position, begin));
    NIBBLE_TRY(inner(begin, end));
    position = end;
    last_end = end;
  }
}

void Tokenizer::State::encode_word(std::string_view word, Workspace& workspace,
                                   std::vector<int32_t>& ids) const {
  std::span<const int32_t> known;
  if (workspace.cache.find(word, &known)) {
    ids.insert(ids.end(), known.begin(), known.end());
    return;
  }
  const size_t before = ids.size();
  bpe.encode(word, ids);
  workspace.cache.insert(word, std::span<const int32_t>(ids).subspan(before));
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& directory) {
  const auto path = directory / "tokenizer.json";
  const std::string tokenizer_json = NIBBLE_TRY(read_text_file(path));
  Tokenizer tokenizer = NIBBLE_TRY(parse(tokenizer_json, path.string()));
  const auto config_path = directory / "tokenizer_config.json";
  const auto config = read_text_file(config_path);
  if (config) return std::move(tokenizer).with_config(*config, config_path.string());
  if (config.error().code != ErrorCode::kNotFound) return tl::unexpected(config.error());
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json, std::string_view where) {
  TokenizerJson json = NIBBLE_TRY(parse_tokenizer_json(tokenizer_json, where));
  std::vector<Splitter> splitters;
  for (size_t i = 0; i < json.split_patterns.size(); ++i) {
    splitters.push_back(
        NIBBLE_TRY(with_context(Splitter::compile(json.split_patterns[i]),
                                fmt::format("{}: pre_tokenizer: step {}", where, i))));
  }
  return Tokenizer(std::make_unique<State>(std::move(json), std::move(splitters)));
}

Result<Tokenizer> Tokenizer::with_config(std::string_view tokenizer_config_json,
                                         std::string_view where) && {
  const TokenizerConfig config = NIBBLE_TRY(parse_tokenizer_config(tokenizer_config_json, where));
  const auto find = [&](const std::optional<std::string>& token,
                        std::string_view key) -> Result<std::optional<int32_t>> {
    if (!token) return std::nullopt;
    const auto id = token_id(*token);
    if (!id) {
      return corrupt(
          fmt::format("{}: {} '{}' is not a token of the tokenizer.json", where, key, *token));
    }
    return id;
  };
  state_->bos_id = NIBBLE_TRY(find(config.bos_token, "bos_token"));
  state_->eos_id = NIBBLE_TRY(find(config.eos_token, "eos_token"));
  state_->add_bos_token = config.add_bos_token;
  return std::move(*this);
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kMaxTextBytes) {
    return invalid_argument(fmt::format("the text has {} bytes, at most {} can be tokenized",
                                        text.size(), kMaxTextBytes));
  }
  if (size_t offset = 0; !is_valid_utf8(text, &offset)) {
    return invalid_argument(fmt::format("the text is not UTF-8 at byte {} (value {:#04x})", offset,
                                        static_cast<uint8_t>(text[offset])));
  }
  if (options.add_bos && !state_->bos_id) {
    return invalid_argument("BOS was asked for, but the tokenizer has none");
  }
  std::vector<int32_t> ids;
  auto workspace = state_->workspaces.take();
  const Status status = state_->encode_text(text, options.parse_added_tokens, *workspace, ids);
  state_->workspaces.give_back(std::move(workspace));
  NIBBLE_TRY(status);
  if (options.add_bos && (ids.empty() || ids.front() != *state_->bos_id)) {
    ids.insert(ids.begin(), *state_->bos_id);
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string text;
  Utf8Stream stream;
  for (const int32_t id : ids) {
    if (skip_special_tokens && is_special(id)) continue;
    stream.push(token_bytes(id), text);
  }
  stream.flush(text);
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const { return state_->vocabulary.bytes(id); }

std::optional<int32_t> Tokenizer::token_id(std::string_view text) const {
  return state_->vocabulary.find(text);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && state_->special[static_cast<size_t>(id)];
}

int32_t Tokenizer::vocab_size() const { return state_->vocabulary.size(); }
std::optional<int32_t> Tokenizer::bos_id() const { return state_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return state_->eos_id; }
bool Tokenizer::add_bos_token() const { return state_->add_bos_token; }
std::span<const AddedToken> Tokenizer::added_tokens() const { return state_->added_tokens; }

}  // namespace nibble
