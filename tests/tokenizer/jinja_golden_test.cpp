// The interpreter against Jinja2 as Hugging Face sets it up: tests/golden/chat_templates.json.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "nibble/tokenizer/jinja_json.h"
#include "nibble/tokenizer/jinja_template.h"

namespace nibble {
namespace {

const jinja::Dict& jinja_golden() {
  static const jinja::Value kGolden = [] {
    std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/chat_templates.json");
    std::stringstream text;
    text << file.rdbuf();
    auto value = jinja::parse_json(text.str());
    EXPECT_TRUE(value) << value.error().message;
    return value ? *value : jinja::Value::dict({});
  }();
  return kGolden.as_dict();
}

const std::vector<jinja::Value>& jinja_golden_list(std::string_view name) {
  return jinja_golden().find(name)->as_sequence().items;
}

Result<std::string> jinja_render(const std::string& source, const jinja::Dict& variables) {
  const auto parsed = jinja::Template::parse(source);
  if (!parsed) return tl::unexpected(parsed.error());
  return parsed->render(variables);
}

void expect_as_jinja2(const jinja::Dict& expected, const Result<std::string>& found) {
  if (const jinja::Value* text = expected.find("expected")) {
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(*found, text->as_string());
  } else {
    EXPECT_FALSE(found) << "Jinja2: " << expected.find("why")->as_string() << "\nwe: " << *found;
  }
}

TEST(JinjaGolden, EveryExpressionRendersAsInJinja2) {
  const jinja::Dict& variables = jinja_golden().find("variables")->as_dict();
  ASSERT_GT(jinja_golden_list("expressions").size(), 500u);
  for (const jinja::Value& entry : jinja_golden_list("expressions")) {
    const std::string& source = entry.as_dict().find("source")->as_string();
    SCOPED_TRACE(source);
    expect_as_jinja2(entry.as_dict(), jinja_render(source, variables));
  }
}

TEST(JinjaGolden, WhitespaceControlIsJinja2s) {
  const jinja::Dict& variables = jinja_golden().find("variables")->as_dict();
  ASSERT_GE(jinja_golden_list("layouts").size(), 300u);
  for (const jinja::Value& entry : jinja_golden_list("layouts")) {
    const std::string& source = entry.as_dict().find("source")->as_string();
    SCOPED_TRACE(source);
    expect_as_jinja2(entry.as_dict(), jinja_render(source, variables));
  }
}

TEST(JinjaGolden, ConversationsRenderAsInJinja2) {
  const jinja::Dict& templates = jinja_golden().find("templates")->as_dict();
  const jinja::Dict& conversations = jinja_golden().find("conversations")->as_dict();
  ASSERT_GE(jinja_golden_list("chats").size(), 70u);
  for (const jinja::Value& entry : jinja_golden_list("chats")) {
    const std::string& name = entry.as_dict().find("template")->as_string();
    const std::string& conversation = entry.as_dict().find("conversation")->as_string();
    SCOPED_TRACE(name + ", " + conversation);
    jinja::Dict variables;
    variables.set("tools", jinja::Value::none());
    variables.set("add_generation_prompt", jinja::Value::boolean(true));
    variables.set("bos_token", *jinja_golden().find("bos_token"));
    variables.set("eos_token", *jinja_golden().find("eos_token"));
    for (const auto& [key, value] : conversations.find(conversation)->as_dict().entries()) {
      variables.set(key, value);
    }
    expect_as_jinja2(entry.as_dict(), jinja_render(templates.find(name)->as_string(), variables));
  }
}

}  // namespace
}  // namespace nibble
