// nibble tokenize: a text as token ids, or ids as text.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <charconv>
#include <memory>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/tokenizer/tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kMaxInputBytes = size_t{256} << 20;  // what Tokenizer::encode takes

struct TokenizeOptions {
  std::string model;
  std::optional<std::string> text;
  std::optional<std::string> file;
  std::optional<std::string> decode;
  bool ids = false;
  bool json = false;
  bool add_bos = false;
  bool no_special = false;
};

Result<std::string> read_standard_input() {
  std::string text;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t count = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    NIBBLE_TRY(check_interrupt());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("cannot read standard input", errno);
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
    if (text.size() > kMaxInputBytes) {
      return invalid_argument(fmt::format("standard input has more than {} bytes", kMaxInputBytes));
    }
  }
}

Result<std::string> read_input(const TokenizeOptions& options) {
  if (options.text) return *options.text;
  if (options.file && *options.file != "-") return read_text_file(*options.file, kMaxInputBytes);
  return read_standard_input();
}

// "1,2 3" or "[1, 2, 3]" as ids. Errors: kInvalidArgument naming what is no id of the tokenizer.
Result<std::vector<int32_t>> parse_ids(std::string_view text, const Tokenizer& tokenizer) {
  constexpr std::string_view kSeparators = " ,\t\r\n[]";
  std::vector<int32_t> ids;
  for (;;) {
    const size_t begin = text.find_first_not_of(kSeparators);
    if (begin == std::string_view::npos) return ids;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    int32_t id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0 ||
        id >= tokenizer.vocab_size()) {
      return invalid_argument(fmt::format("'{}' is not a token id, expected 0..{}",
                                          word.substr(0, 40), tokenizer.vocab_size() - 1));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

// In quotes on one line, control characters and broken UTF-8 escaped.
std::string quoted(std::string_view bytes) {
  std::string escaped;
  for (const char c : bytes) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c;
  }
  std::string line = "\"";
  for (const char c : printable(escaped))
    line += c == '\n' ? std::string("\\n") : std::string(1, c);
  return line + '"';
}

JsonValue ids_json(std::span<const int32_t> ids) {
  JsonValue list = JsonValue::array();
  for (const int32_t id : ids) list.push_back(JsonValue::integer(id));
  return list;
}

Status decode_ids(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  const std::string list =
      *options.decode == "-" ? NIBBLE_TRY(read_standard_input()) : *options.decode;
  const std::vector<int32_t> ids = NIBBLE_TRY(parse_ids(list, tokenizer));
  const std::string text = tokenizer.decode(ids, options.no_special);
  if (options.json) {
    JsonValue document = JsonValue::object();
    document.set("count", JsonValue::integer(static_cast<int64_t>(ids.size())));
    document.set("ids", ids_json(ids));
    document.set("text", JsonValue::string(text));
    print(to_json(document, -1) + "\n");
  } else if (::isatty(STDOUT_FILENO) != 0) {
    print(printable(text) + "\n");
  } else {
    print(text);
  }
  return {};
}

void print_tokens_json(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  JsonValue tokens = JsonValue::array();
  for (const int32_t id : ids) {
    const std::array<int32_t, 1> one = {id};
    JsonValue bytes = JsonValue::array();
    for (const char c : tokenizer.token_bytes(id)) {
      bytes.push_back(JsonValue::integer(static_cast<uint8_t>(c)));
    }
    JsonValue token = JsonValue::object();
    token.set("id", JsonValue::integer(id));
    token.set("text", JsonValue::string(tokenizer.decode(one, false)));
    token.set("bytes", std::move(bytes));
    tokens.push_back(std::move(token));
  }
  JsonValue document = JsonValue::object();
  document.set("count", JsonValue::integer(static_cast<int64_t>(ids.size())));
  document.set("ids", ids_json(ids));
  document.set("tokens", std::move(tokens));
  print(to_json(document, -1) + "\n");
}

Status encode_text(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  const std::string text = NIBBLE_TRY(read_input(options));
  const std::vector<int32_t> ids = NIBBLE_TRY(tokenizer.encode(
      text, {.add_bos = options.add_bos, .parse_added_tokens = !options.no_special}));
  if (options.json && options.ids) {
    print(to_json(ids_json(ids), -1) + "\n");
  } else if (options.json) {
    print_tokens_json(tokenizer, ids);
  } else if (options.ids) {
    print(fmt::format("{}\n", fmt::join(ids, " ")));
  } else {
    for (const int32_t id : ids) {
      print(fmt::format("{:>8}  {}\n", id, quoted(tokenizer.token_bytes(id))));
    }
    print(fmt::format("{} tokens, {} bytes\n", ids.size(), text.size()));
  }
  return {};
}

Status run_tokenize(const TokenizeOptions& options) {
  if (options.decode && (options.text || options.file || options.ids || options.add_bos)) {
    return invalid_argument(
        "--decode takes ids, so TEXT, --file, --ids and --add-bos can't go with it");
  }
  if (options.text && options.file) return invalid_argument("both TEXT and --file are given");
  const auto directory = NIBBLE_TRY(resolve_model(options.model));
  const Tokenizer tokenizer = NIBBLE_TRY(Tokenizer::load(directory));
  return options.decode ? decode_ids(tokenizer, options) : encode_text(tokenizer, options);
}

}  // namespace

void add_tokenize_command(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("tokenize", "Show a text's tokens, or the text of tokens");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("MODEL", options->model, "Directory with tokenizer.json, or a name like demo")
      ->type_name("")
      ->required();
  command->add_option("TEXT", options->text, "Text to tokenize [standard input]")->type_name("");
  command->add_option("-f,--file", options->file, "Tokenize this file; - is standard input")
      ->type_name("FILE");
  command
      ->add_option("-d,--decode", options->decode,
                   "Print the text of these ids, \"1,2 3\"; - reads them")
      ->type_name("IDS");
  command->add_flag("--ids", options->ids, "Print only the ids, on one line");
  command->add_flag("--json", options->json, "Print JSON; with --ids, a list of ids");
  command->add_flag("--add-bos", options->add_bos, "Put the BOS token in front if it isn't there");
  command->add_flag("--no-special", options->no_special,
                    "Take <think> and the like as plain text; with --decode, leave special "
                    "tokens out");
  command->footer(
      "nibble tokenize demo \"Hello, my name is\"\n"
      "nibble tokenize demo --ids < prompt.txt\n"
      "nibble tokenize demo --decode 1115,14,1130");
  command->callback(
      [options, exit_code] { *exit_code = report_status(run_tokenize(*options), "tokenize"); });
}

}  // namespace nibble
