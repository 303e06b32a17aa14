// Request bodies: parsing, and what each API reads from them, against the demo checkpoint's
// tokenizer and template. The first byte says which API.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "nibble/base/log.h"
#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"
#include "nibble/tokenizer/chat_template.h"
#include "nibble/tokenizer/tokenizer.h"

namespace {

const nibble::ServedModel& served() {
  static const auto* const model = [] {
    nibble::set_log_level(nibble::LogLevel::kError);
    const std::string directory = NIBBLE_SOURCE_DIR "/models/demo";
    auto tokenizer = nibble::Tokenizer::load(directory);
    auto chat_template = nibble::ChatTemplate::load(directory);
    if (!tokenizer || !chat_template) std::abort();
    auto* made = new nibble::ServedModel;
    made->names = {"demo"};
    made->tokenizer = new nibble::Tokenizer(*std::move(tokenizer));
    made->chat_template = *std::move(chat_template);
    made->tags = nibble::find_reply_tags(*made->tokenizer);
    made->eos_token_ids = {1};
    made->vocab_size = 4096;
    made->max_seq_len = 4096;
    made->call_memory = std::make_shared<nibble::CallMemory>();
    return made;
  }();
  return *model;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto body = nibble::parse_request_json(text);
  if (!body) return 0;
  // What a member of the wrong type deep inside throws is caught where requests are handled.
  try {
    switch (data[0] % 5) {
      case 0:
        (void)nibble::read_chat_request(*body, served());
        break;
      case 1:
        (void)nibble::read_completion_request(*body, served());
        break;
      case 2:
        (void)nibble::read_messages_request(*body, served());
        break;
      case 3:
        (void)nibble::read_responses_request(*body, served());
        break;
      default:
        (void)nibble::read_prompt_ids(*body, served());
    }
  } catch (const nlohmann::json::exception&) {
    (void)0;
  }
  return 0;
}
