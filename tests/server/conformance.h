// What the tests of the specification's rows share: one server, and short ways to ask it.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "tests/server/test_server.h"

namespace nibble::testing {

inline constexpr const char* kChat = "/v1/chat/completions";

inline TestServer& shared_server() {
  static TestServer instance;
  return instance;
}

inline Json first_choice(const Answer& answer) {
  EXPECT_EQ(answer.status, 200) << answer.body;
  return answer.json()["choices"][0];
}

inline Json ask(const Json& body) { return first_choice(shared_server().post(kChat, body)); }

// What the model is given for a chat.
inline std::string prompt_text(const TestServer& server, const Json& body) {
  const Json ids = server.post("/tokenize", body).json()["tokens"];
  return server.post("/detokenize", {{"tokens", ids}}).json()["prompt"];
}

}  // namespace nibble::testing
