#include "nibble/tokenizer/splitter.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <new>

#include "nibble/base/error.h"
#include "nibble/tokenizer/regex_dialect.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace nibble {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;

// Bounds for patterns that backtrack without end. Those of real tokenizers use next to nothing;
// ten million is PCRE2's own default, and is spent in a fraction of a second.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 256 << 10;

// The JIT compiler's code runs on 32 KiB of the thread's stack. What needs more is matched again by
// the interpreter, which uses the heap.
constexpr uint32_t kInterpret = PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK;

PCRE2_SPTR code_units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> message{};
  pcre2_get_error_message(code, message.data(), message.size());
  return reinterpret_cast<const char*>(message.data());
}

struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

}  // namespace

void MatchBuffer::Free::operator()(pcre2_real_match_data_8* data) const {
  pcre2_match_data_free(data);
}
void Splitter::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }
void Splitter::FreeContext::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}

// Only the whole match is asked for, so one pair of offsets is enough.
MatchBuffer::MatchBuffer() : data_(pcre2_match_data_create(1, nullptr)) {
  if (!data_) throw std::bad_alloc();
}

Result<Splitter> Splitter::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return unsupported(fmt::format("the regular expression has {} bytes, at most {} are supported",
                                   pattern.size(), kMaxPatternBytes));
  }
  const std::string translated = NIBBLE_TRY(to_pcre2(pattern));
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> options(
      pcre2_compile_context_create(nullptr));
  Splitter splitter;
  splitter.pattern_ = pattern;
  splitter.context_.reset(pcre2_match_context_create(nullptr));
  if (!options || !splitter.context_) throw std::bad_alloc();
  pcre2_set_newline(options.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  splitter.code_.reset(pcre2_compile(code_units(translated), translated.size(),
                                     PCRE2_UTF | PCRE2_UCP, &error, &offset, options.get()));
  if (!splitter.code_) {
    auto message = fmt::format("{} near byte {} of the regular expression", pcre2_message(error),
                               std::min(offset, pattern.size()));
    return error == PCRE2_ERROR_PATTERN_TOO_LARGE ? Result<Splitter>(unsupported(message))
                                                  : Result<Splitter>(corrupt(message));
  }
  pcre2_set_match_limit(splitter.context_.get(), kMatchLimit);
  pcre2_set_heap_limit(splitter.context_.get(), kHeapLimitKib);
  // Without a JIT compiler for this machine the interpreter gives the same matches, slower.
  splitter.jit_ = pcre2_jit_compile(splitter.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return splitter;
}

int Splitter::match(std::string_view text, size_t start, MatchBuffer& buffer) const {
  if (jit_) {
    const int found = pcre2_jit_match(code_.get(), code_units(text), text.size(), start,
                                      PCRE2_NO_UTF_CHECK, buffer.data_.get(), context_.get());
    if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
  }
  return pcre2_match(code_.get(), code_units(text), text.size(), start, kInterpret,
                     buffer.data_.get(), context_.get());
}

Splitter::Found Splitter::find(std::string_view text, size_t start, size_t last_end,
                               MatchBuffer& buffer, size_t* begin, size_t* end) const {
  while (start <= text.size()) {
    const int found = match(text, start, buffer);
    if (found == PCRE2_ERROR_NOMATCH) return Found::kNone;
    if (found < 0) return Found::kFailed;
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(buffer.data_.get());
    *begin = offsets[0];
    *end = offsets[1];
    if (*begin != *end || *end != last_end) return Found::kMatch;
    // On to the next character.
    ++start;
    while (start < text.size() && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) ++start;
  }
  return Found::kNone;
}

Status Splitter::failure() const {
  return unsupported(
      fmt::format("the pre_tokenizer's regular expression {:.60}{} needs too much backtracking for "
                  "this text (more than {} steps or {} MiB)",
                  pattern_, pattern_.size() > 60 ? "..." : "", kMatchLimit, kHeapLimitKib >> 10));
}

}  // namespace nibble
