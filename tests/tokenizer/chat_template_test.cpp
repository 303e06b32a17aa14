#include "nibble/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

#include "nibble/tokenizer/jinja_json.h"

namespace nibble {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kChatBos = "<｜begin▁of▁sentence｜>";
constexpr const char* kChatEos = "<｜end▁of▁sentence｜>";

ChatTemplate chat_builtin(std::string_view name) {
  return ChatTemplate::builtin(name, kChatBos, kChatEos).value();
}

ChatMessage chat_message(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
}

ChatRequest chat_request(std::vector<ChatMessage> messages) {
  ChatRequest request;
  request.messages = std::move(messages);
  return request;
}

ChatMessage chat_calls(std::optional<std::string> content,
                       const std::vector<std::string>& arguments) {
  ChatMessage message;
  message.role = "assistant";
  message.content = std::move(content);
  for (const std::string& text : arguments) message.tool_calls.push_back({"id", "f", text});
  return message;
}

std::string chat_render(const ChatTemplate& chat, const ChatRequest& request) {
  const auto text = chat.render(request);
  return text ? *text : "error: " + text.error().message;
}

const ChatRequest& chat_question() {
  static const ChatRequest kRequest = chat_request({chat_message("user", "1+1?")});
  return kRequest;
}

// A folder with files, gone when this goes.
class ChatFolder {
 public:
  explicit ChatFolder(const std::string& name)
      : root_(std::filesystem::temp_directory_path() /
              ("nibble_chat_" + std::to_string(::getpid()))),
        path_(root_ / name) {
    std::filesystem::create_directories(path_);
  }
  ~ChatFolder() { std::filesystem::remove_all(root_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path root_;
  std::filesystem::path path_;
};

TEST(ChatTemplate, TheBuiltInsRenderAConversationOfEverything) {
  const ChatRequest request = chat_request(
      {chat_message("system", "A"), chat_message("user", "u1"),
       chat_message("assistant", "<think>\nthought\n</think>\n\nanswer"),
       chat_message("developer", "B"), chat_message("user", "u2"),
       chat_calls("Let me see.", {"{\"a\": 1}", "{}"}), chat_message("tool", "r1"),
       chat_message("function", "r2"), chat_calls(std::nullopt, {"{\"b\": 2}"}),
       chat_message("tool", "r3"), chat_message("assistant", "done"), chat_message("user", "u3")});
  const std::string expected =
      "<｜begin▁of▁sentence｜>A\n\nB<｜User｜>u1<｜Assistant｜>answer<｜end▁of▁sentence｜>"
      "<｜User｜>u2<｜Assistant｜>Let me see.<｜tool▁calls▁begin｜>"
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n"
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
      "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>r1<｜tool▁output▁end｜>\n"
      "<｜tool▁output▁begin｜>r2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"b\": 2}\n```"
      "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
      "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>r3<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
      "done<｜end▁of▁sentence｜><｜User｜>u3<｜Assistant｜>";
  EXPECT_EQ(chat_render(chat_builtin("deepseek_r1"), request), expected + "<think>\n");
  EXPECT_EQ(chat_render(chat_builtin("deepseek_r1_0528"), request), expected);
  EXPECT_EQ(chat_render(chat_builtin("deepseek_v3"), request), expected);
}

// Where the published R1-0528 template resets its flags, it gives what ours does.
TEST(ChatTemplate, R10528AgreesWithThePublishedFormAsJinja2RendersIt) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/chat_templates.json");
  std::stringstream text;
  text << file.rdbuf();
  const auto golden = jinja::parse_json(text.str());
  ASSERT_TRUE(golden) << golden.error().message;
  int compared = 0;
  for (const jinja::Value& entry : golden->as_dict().find("chats")->as_sequence().items) {
    const std::string& name = entry.as_dict().find("conversation")->as_string();
    const bool agree = name == "one question" || name == "system" || name == "turns" ||
                       name == "one result" || name == "two results" ||
                       name == "answer after results" || name == "two rounds" ||
                       name == "call with content";
    if (entry.as_dict().find("template")->as_string() != "published_r1_0528" || !agree) continue;
    const jinja::Value& conversation =
        *golden->as_dict().find("conversations")->as_dict().find(name);
    jinja::Budget budget{jinja::Limits{}};
    auto request = parse_chat_request(*jinja::to_json(conversation, {}, budget));
    ASSERT_TRUE(request) << request.error().message;
    request->tools.clear();  // that template knows none
    EXPECT_EQ(chat_render(chat_builtin("deepseek_r1_0528"), *request),
              entry.as_dict().find("expected")->as_string())
        << name;
    ++compared;
  }
  EXPECT_EQ(compared, 8);
}

TEST(ChatTemplate, ThinkingDecidesHowTheGenerationPromptEnds) {
  const std::string head = "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜>";
  const ChatTemplate plain = ChatTemplate::parse("{{ bos_token }}P:", "B", "E").value();
  const ChatTemplate open = ChatTemplate::parse("P:<think>", "B", "E").value();
  const ChatTemplate closed =
      ChatTemplate::parse("P:{{ '<think>\n\n</think>\n\n' }}", "B", "E").value();
  const std::string empty = "<think>\n\n</think>\n\n";
  const struct {
    ChatTemplate chat;
    std::string automatic, on, off;
  } kCases[] = {
      {chat_builtin("deepseek_r1"), head + "<think>\n", head + "<think>\n", head + empty},
      {chat_builtin("deepseek_r1_0528"), head, head + "<think>\n", head + empty},
      {chat_builtin("deepseek_v3"), head, head, head},
      {plain, "BP:", "BP:<think>\n", "BP:" + empty},
      {open, "P:<think>", "P:<think>", "P:" + empty},
      {closed, "P:" + empty, "P:" + empty + "<think>\n", "P:" + empty},
  };
  for (const auto& expected : kCases) {
    ChatRequest request = chat_question();
    EXPECT_EQ(chat_render(expected.chat, request), expected.automatic);
    request.thinking = ChatThinking::kOn;
    EXPECT_EQ(chat_render(expected.chat, request), expected.on);
    request.thinking = ChatThinking::kOff;
    EXPECT_EQ(chat_render(expected.chat, request), expected.off);
  }
  EXPECT_TRUE(chat_builtin("deepseek_v3").ignores_thinking());
  EXPECT_FALSE(chat_builtin("deepseek_r1").ignores_thinking());
}

TEST(ChatTemplate, ThinkingAfterToolOutputsIsAddedOnlyWhenAsked) {
  ChatRequest request = chat_request(
      {chat_message("user", "u"), chat_calls(std::nullopt, {"{}"}), chat_message("tool", "r")});
  EXPECT_THAT(chat_render(chat_builtin("deepseek_r1"), request),
              EndsWith("r<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"));
  request.thinking = ChatThinking::kOn;
  EXPECT_THAT(chat_render(chat_builtin("deepseek_r1"), request),
              EndsWith("<｜tool▁outputs▁end｜><think>\n"));
}

TEST(ChatTemplate, WithoutAGenerationPromptNothingFollowsTheLastMessage) {
  ChatRequest request = chat_question();
  request.add_generation_prompt = false;
  request.thinking = ChatThinking::kOn;
  EXPECT_EQ(chat_render(chat_builtin("deepseek_r1"), request),
            "<｜begin▁of▁sentence｜><｜User｜>1+1?");
}

TEST(ChatTemplate, ThinkingReachesTheTemplateAndKwargsCanSetIt) {
  const ChatTemplate chat =
      ChatTemplate::parse("{{ thinking }}|{{ enable_thinking }}|{{ level }}:", "", "").value();
  ChatRequest request = chat_question();
  EXPECT_EQ(chat_render(chat, request), "||:");
  request.chat_template_kwargs = R"({"enable_thinking": false, "level": 3})";
  EXPECT_EQ(chat_render(chat, request), "False|False|3:<think>\n\n</think>\n\n");
  request.thinking = ChatThinking::kOn;  // the request's own field is stronger
  EXPECT_EQ(chat_render(chat, request), "True|True|3:<think>\n");
  request.chat_template_kwargs = R"({"messages": []})";
  EXPECT_THAT(chat_render(chat, request), HasSubstr("'messages', which is a field of the request"));
  request.chat_template_kwargs = "[]";
  EXPECT_THAT(chat_render(chat, request), HasSubstr("chat_template_kwargs is no JSON object"));
  request.thinking = ChatThinking::kAuto;
  request.chat_template_kwargs = R"({"thinking": "yes"})";
  EXPECT_THAT(chat_render(chat, request), HasSubstr("thinking is neither true nor false"));
}

constexpr const char* kChatToolsText =
    "## Tools\n"
    "You can call the functions below. To call one, reply with exactly this and nothing after it:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\n{\"parameter\": \"value\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Several calls: repeat the part between tool▁call▁begin and tool▁call▁end on new lines.\n"
    "```json\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n```\n"
    "```json\n{\"b\": \"é\", \"a\": 1}\n```";

TEST(ChatTemplate, ToolsAreDescribedWhenTheTemplateDoesNot) {
  ChatRequest request = chat_question();
  request.tools = {R"({"type":"function","function":{"name":"f"}})", R"({"b": "é", "a": 1})"};
  const std::string tail = "<｜User｜>1+1?<｜Assistant｜>";
  EXPECT_EQ(chat_render(chat_builtin("deepseek_v3"), request),
            std::string(kChatBos) + kChatToolsText + tail);
  request.messages.insert(request.messages.begin(), chat_message("system", "Be brief."));
  EXPECT_EQ(chat_render(chat_builtin("deepseek_v3"), request),
            std::string(kChatBos) + "Be brief.\n\n" + kChatToolsText + tail);
  const ChatTemplate knows = ChatTemplate::parse("{{ tools | length }}", "", "").value();
  EXPECT_EQ(chat_render(knows, request), "2");
  request.tools.push_back("nonsense");
  EXPECT_THAT(chat_render(knows, request), HasSubstr("tools[2]: malformed JSON"));
}

TEST(ChatTemplate, ATemplateThatKeepsOneSystemTextStillGetsTheTools) {
  const ChatTemplate chat = ChatTemplate::parse(
                                "{% for m in messages if m.role == 'system' %}{% if loop.last %}"
                                "{{ m.content }}{% endif %}{% endfor %}",
                                "", "")
                                .value();
  ChatRequest request = chat_request(
      {chat_message("system", "A"), chat_message("user", "u"), chat_message("system", "B")});
  request.tools = {R"({"name": "f"})"};
  EXPECT_THAT(chat_render(chat, request), HasSubstr("B\n\n## Tools\n"));
}

TEST(ChatTemplate, MessagesAreCheckedBeforeTheTemplateSeesThem) {
  const ChatTemplate chat = chat_builtin("deepseek_r1");
  EXPECT_EQ(chat_render(chat, {}), "error: messages is empty");
  EXPECT_THAT(chat_render(chat, chat_request({chat_message("poet", "x")})),
              HasSubstr("messages[0].role is 'poet'"));
  EXPECT_EQ(chat_render(chat, chat_request({chat_message("user", "\xc3")})),
            "error: messages[0] is not UTF-8");
}

TEST(ChatTemplate, ATemplatesOwnRefusalIsPassedOn) {
  const ChatTemplate chat =
      ChatTemplate::parse("{{ raise_exception('Roles must alternate') }}", "", "").value();
  EXPECT_EQ(chat_render(chat, chat_question()),
            "error: chat template: line 1: the chat template refuses: Roles must alternate");
  const auto bad = ChatTemplate::parse("\n{{ x | nope }}", "", "");
  ASSERT_FALSE(bad);
  EXPECT_THAT(bad.error().message, HasSubstr("line 2: unsupported filter 'nope'"));
}

TEST(ChatTemplateFiles, TheChoiceComesBeforeTheCheckpointsOwnTemplates) {
  const ChatFolder folder("DeepSeek-R1-NVFP4");
  const auto load = [&folder](const std::string& choice = "") {
    const auto chat = ChatTemplate::load(folder.path(), choice);
    return chat ? chat_render(*chat, chat_question()) : "error: " + chat.error().message;
  };
  // Nothing at all: the name of the folder tells the model.
  EXPECT_EQ(load(), "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜><think>\n");
  folder.write("config.json", R"({"_name_or_path": "deepseek-ai/DeepSeek-R1-0528"})");
  EXPECT_EQ(load(), "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜>");
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>",
                   "chat_template": "config {{ bos_token }}{{ eos_token }}"})");
  EXPECT_EQ(load(), "config <s></s>");
  EXPECT_EQ(load("deepseek_v3"), "<s><｜User｜>1+1?<｜Assistant｜>");
  folder.write("chat_template.jinja", "file {{ bos_token }}\n");
  EXPECT_EQ(load(), "file <s>");
  folder.write("other.jinja", "other");
  EXPECT_EQ(load((folder.path() / "other.jinja").string()), "other");
  EXPECT_EQ(load("missing"),
            "error: chat template 'missing' is neither a file nor one of deepseek_r1, "
            "deepseek_r1_0528, deepseek_v3");
}

TEST(ChatTemplateFiles, AListOfTemplatesHasOneForTools) {
  const ChatFolder folder("model");
  folder.write("tokenizer_config.json", R"({"chat_template": [
      {"name": "default", "template": "plain"},
      {"name": "tool_use", "template": "with {{ tools | length }}"}]})");
  const auto chat = ChatTemplate::load(folder.path());
  ASSERT_TRUE(chat) << chat.error().message;
  ChatRequest request = chat_question();
  EXPECT_EQ(chat_render(*chat, request), "plain");
  request.tools = {"{}"};
  EXPECT_EQ(chat_render(*chat, request), "with 1");
}

TEST(ChatTemplateFiles, BadFilesAreNamed) {
  const ChatFolder folder("model");
  const auto load_error = [&folder]() {
    const auto chat = ChatTemplate::load(folder.path());
    return chat ? "no error" : chat.error().message;
  };
  EXPECT_THAT(load_error(),
              HasSubstr("its name does not tell the model; choose one of deepseek_r1"));
  folder.write("tokenizer_config.json", "{\"chat_template\": 5}");
  EXPECT_THAT(load_error(), HasSubstr("chat_template is no text and no list"));
  folder.write("tokenizer_config.json", R"({"chat_template": [{"name": "x", "template": "y"}]})");
  EXPECT_THAT(load_error(), HasSubstr("no chat_template is named default"));
  folder.write("tokenizer_config.json", R"({"chat_template": [{"name": "default"}]})");
  EXPECT_THAT(load_error(), HasSubstr("an element without name or template"));
  folder.write("tokenizer_config.json", "{");
  EXPECT_THAT(load_error(), HasSubstr("tokenizer_config.json: malformed JSON"));
  folder.write("tokenizer_config.json", "[]");
  EXPECT_THAT(load_error(), HasSubstr("tokenizer_config.json is no JSON object"));
  folder.write("tokenizer_config.json", R"({"chat_template": "{% include 'x' %}"})");
  EXPECT_THAT(load_error(), HasSubstr("tokenizer_config.json: line 1: unsupported statement"));
}

TEST(ChatTemplateFiles, TheDemoCheckpointHasItsOwn) {
  const auto chat = ChatTemplate::load(NIBBLE_SOURCE_DIR "/models/demo");
  ASSERT_TRUE(chat) << chat.error().message;
  EXPECT_THAT(chat->origin(), HasSubstr("tokenizer_config.json"));
  EXPECT_EQ(chat_render(*chat, chat_question()),
            "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜>");
}

}  // namespace
}  // namespace nibble
