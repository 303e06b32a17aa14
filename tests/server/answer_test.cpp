// The tables of spec serving sections 4.3 and 4.4 once more, as an engine brings them and as a
// client reads them: every way to cut the tokens into steps, streamed and plain.
#include "nibble/server/answer.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/server/reply_cases.h"
#include "tests/server/test_server.h"

namespace nibble {
namespace {

using testing::Json;
using testing::ReplyCase;

ServedModel demo_model() {
  ServedModel model;
  model.names = {"demo"};
  model.tokenizer = &testing::served_model().tokenizer;
  model.tags = find_reply_tags(*model.tokenizer);
  model.eos_token_ids = testing::served_model().config.eos_token_ids;
  model.vocab_size = testing::served_model().config.vocab_size;
  model.max_seq_len = 1000;
  return model;
}

// The demo vocabulary's tokens for a case's: tags by their ids, texts as the longest tokens there
// are.
std::vector<int32_t> ids_of(const std::string& token, const ServedModel& model) {
  const ReplyTags& tags = model.tags;
  const std::map<std::string, int32_t> known = {{"T", tags.think_begin},     {"/T", tags.think_end},
                                                {"CB", tags.calls_begin},    {"CE", tags.calls_end},
                                                {"cb", tags.call_begin},     {"ce", tags.call_end},
                                                {"SEP", tags.call_separator}};
  const auto tag = known.find(token);
  if (tag != known.end()) return {tag->second};
  if (token == "EOS") return {static_cast<int32_t>(model.eos_token_ids.front())};
  static const auto* const kByBytes = [&] {
    auto* map = new std::map<std::string, int32_t, std::less<>>;
    for (int32_t id = 0; id < model.vocab_size; ++id) {
      const std::string_view bytes = model.tokenizer->token_bytes(id);
      if (!bytes.empty()) map->emplace(std::string(bytes), id);
    }
    return map;
  }();
  std::vector<int32_t> ids;
  for (size_t at = 0; at < token.size();) {
    size_t size = token.size() - at;
    while (kByBytes->find(std::string_view(token).substr(at, size)) == kByBytes->end()) --size;
    ids.push_back(kByBytes->find(std::string_view(token).substr(at, size))->second);
    at += size;
  }
  return ids;
}

struct Seen {
  std::string reasoning, content, finish;
  std::vector<std::pair<std::string, std::string>> calls;
  bool operator==(const Seen&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Seen& seen) {
  out << "R\"" << seen.reasoning << "\" C\"" << seen.content << "\" " << seen.finish;
  for (const auto& [name, arguments] : seen.calls) out << ' ' << name << '(' << arguments << ')';
  return out;
}

GenerationRequest request_for(const ReplyCase& c, const ServedModel& model, bool stream) {
  GenerationRequest request;
  request.model = "demo";
  request.prompts = {{0}};
  request.stream = stream;
  request.parser.tags = model.tags;
  request.parser.start = c.start;
  request.parser.parse_tools = true;
  request.parser.parallel_tool_calls = c.parallel;
  request.parser.tool_names = {"f", "g"};
  request.parser.stop = c.stop;
  request.parser.stop_in_reasoning = c.stop_in_reasoning;
  return request;
}

// Adds the chunks' deltas up as a client does.
void read_chunks(const std::string& text, Seen* seen) {
  size_t at = 0;
  while ((at = text.find("data: ", at)) != std::string::npos) {
    const size_t end = text.find("\n\n", at);
    const Json event = Json::parse(text.substr(at + 6, end - at - 6));
    at = end;
    const Json& choice = event["choices"][0];
    const Json& delta = choice["delta"];
    EXPECT_LE(static_cast<int>(delta.contains("reasoning_content")) +
                  static_cast<int>(delta.contains("content")) +
                  static_cast<int>(delta.contains("tool_calls")),
              1)
        << event;
    if (!choice["finish_reason"].is_null()) seen->finish = choice["finish_reason"];
    if (delta.contains("role")) continue;
    if (delta.contains("reasoning_content")) {
      EXPECT_NE(delta["reasoning_content"], "");
      seen->reasoning += delta["reasoning_content"].get<std::string>();
    }
    if (delta.contains("content")) {
      EXPECT_NE(delta["content"], "");
      seen->content += delta["content"].get<std::string>();
    }
    if (!delta.contains("tool_calls")) continue;
    const Json& call = delta["tool_calls"][0];
    if (call.contains("id")) {
      EXPECT_EQ(call["index"], seen->calls.size());
      seen->calls.emplace_back(call["function"]["name"], "");
    } else {
      seen->calls.back().second += call["function"]["arguments"].get<std::string>();
    }
  }
}

// One step for each set bit of `cuts`, and one for the rest.
Seen run_case(const ReplyCase& c, const std::vector<int32_t>& ids, uint64_t cuts, bool eos,
              bool stream, const ServedModel& model) {
  const GenerationRequest request = request_for(c, model, stream);
  ReplyContext context;
  context.request = &request;
  context.model = &model;
  const auto writer = make_chat_writer(context);
  Answer answer(request, model, 0, 0);
  Seen seen;
  std::string chunks;
  bool first = true;
  bool done = false;
  for (size_t at = 0; at < ids.size() && !done;) {
    RequestUpdate update;
    do {
      update.token_ids.push_back(ids[at]);
    } while (++at < ids.size() && (cuts >> (at - 1) & 1) == 0);
    // The engine ends at these.
    const int32_t last = update.token_ids.back();
    const bool ends_calls =
        last == model.tags.calls_end || (last == model.tags.call_end && !c.parallel);
    update.finished = at == ids.size() || ends_calls;
    update.finish_reason = eos || ends_calls ? FinishReason::kStop : FinishReason::kLength;
    ReplyDelta delta;
    done = answer.take(update, &delta) == Answer::Next::kDone;
    delta.first = std::exchange(first, false);
    if (stream) chunks += writer->step(delta, {});
  }
  EXPECT_TRUE(done);
  if (stream) {
    read_chunks(chunks, &seen);
    return seen;
  }
  const Json choice = Json::parse(writer->body({&answer.choice}, {}))["choices"][0];
  const Json& message = choice["message"];
  seen.reasoning = message.value("reasoning_content", "");
  if (!message["content"].is_null()) seen.content = message["content"];
  EXPECT_FALSE(message.contains("tool_calls") && message["tool_calls"].empty());
  for (const Json& call : message.value("tool_calls", Json::array())) {
    seen.calls.emplace_back(call["function"]["name"], call["function"]["arguments"]);
  }
  seen.finish = choice["finish_reason"];
  return seen;
}

// What the table says, as a client sees it.
Seen seen_by_client(const ReplyCase& c, bool stream, bool eos) {
  Seen seen;
  std::string_view text = c.expected;
  const auto quoted = [&](size_t skip) {  // up to the quote that ends the event
    text.remove_prefix(skip);
    size_t end = text.find("\" ");
    for (;;) {
      if (end == std::string_view::npos) end = text.size() - 1;
      const std::string_view next = text.substr(std::min(end + 2, text.size()));
      const bool is_event = next.empty() || next.starts_with("R\"") || next.starts_with("C\"") ||
                            next.starts_with("start(") || next.starts_with("args\"") ||
                            next.starts_with("end(") || next.starts_with("moved");
      if (is_event) break;
      end = text.find("\" ", end + 1);
    }
    std::string out(text.substr(0, end));
    text.remove_prefix(std::min(end + 2, text.size()));
    return out;
  };
  while (!text.empty()) {
    if (text.starts_with("R\"")) {
      seen.reasoning += quoted(2);
    } else if (text.starts_with("C\"")) {
      seen.content += quoted(2);
    } else if (text.starts_with("args\"")) {
      seen.calls.back().second += quoted(5);
    } else {
      const size_t end = std::min(text.find(' '), text.size());
      const std::string_view word = text.substr(0, end);
      if (word.starts_with("start(")) {
        seen.calls.emplace_back(std::string(word.substr(8, word.size() - 9)), "");
      } else if (word == "moved" && !stream) {
        seen.reasoning += std::exchange(seen.content, "");
      }
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  }
  const bool stopped = !c.stop.empty() && c.expected.find("END") == std::string::npos &&
                       c.expected.find("ENX") == std::string::npos;
  const bool ended = std::find(c.tokens.begin(), c.tokens.end(), "CE") != c.tokens.end() ||
                     (!c.parallel && !seen.calls.empty());
  seen.finish = stopped               ? "stop"
                : !eos && !ended      ? "length"
                : !seen.calls.empty() ? "tool_calls"
                                      : "stop";
  return seen;
}

TEST(Answer, EveryCutOfTheSpecificationsCasesIntoSteps) {
  const ServedModel model = demo_model();
  std::vector<ReplyCase> cases = testing::reasoning_cases();
  for (ReplyCase& c : testing::tool_cases()) cases.push_back(std::move(c));
  int64_t runs = 0;
  for (const ReplyCase& c : cases) {
    SCOPED_TRACE(c.name + (": " + c.expected));
    std::vector<int32_t> ids;
    bool eos = false;
    for (const std::string& token : c.tokens) {
      eos = token == "EOS";
      for (const int32_t id : ids_of(token, model)) ids.push_back(id);
    }
    // All ways to cut where that is feasible, otherwise every pair of places.
    const size_t places = ids.size() - 1;
    std::vector<uint64_t> all;
    if (places <= 11) {
      for (uint64_t cuts = 0; cuts < uint64_t{1} << places; ++cuts) all.push_back(cuts);
    } else {
      for (size_t i = 0; i < places; ++i) {
        for (size_t j = i; j < places; ++j) all.push_back(uint64_t{1} << i | uint64_t{1} << j);
      }
      all.push_back((uint64_t{1} << places) - 1);
      all.push_back(0);
    }
    for (const bool stream : {false, true}) {
      const Seen wanted = seen_by_client(c, stream, eos);
      for (const uint64_t cuts : all) {
        const Seen seen = run_case(c, ids, cuts, eos, stream, model);
        ASSERT_EQ(seen, wanted) << "cuts " << cuts << (stream ? " streamed" : "");
        ++runs;
      }
    }
  }
  EXPECT_GT(runs, 10000);
}

}  // namespace
}  // namespace nibble
