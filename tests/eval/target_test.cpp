// Runs against servers: one that answers as told, and nibble serve beside the engine.
#include "nibble/eval/target.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "nibble/eval/http_client.h"
#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::run_nibble;
using testing::TemporaryFolder;

const std::string kMiniSuites = NIBBLE_SOURCE_DIR "/models/suites";

std::string http_reply(int status, const std::string& body, const std::string& headers = "") {
  return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string chat_reply(const std::string& message, const std::string& reason) {
  return R"({"choices":[{"index":0,"message":)" + message + R"(,"finish_reason":")" + reason +
         R"("}],"usage":{"prompt_tokens":3,"completion_tokens":5}})";
}

// Answers each POST with the next text of its script, on one connection after the other.
class MockServer {
 public:
  explicit MockServer(std::vector<std::string> script) : script_(std::move(script)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    (void)::listen(listener_, 8);
    socklen_t size = sizeof(address);
    (void)::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~MockServer() {
    (void)::shutdown(listener_, SHUT_RDWR);
    (void)::close(listener_);
    thread_.join();
  }
  MockServer(const MockServer&) = delete;
  MockServer& operator=(const MockServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  const std::vector<std::string>& requests() const { return requests_; }

 private:
  void serve() {
    for (;;) {
      const int connection = ::accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      while (exchange(connection)) {
      }
      (void)::close(connection);
    }
  }

  bool exchange(int connection) {
    std::string text;
    char buffer[4096];
    size_t needed = std::string::npos;
    while (needed == std::string::npos || text.size() < needed) {
      const ssize_t size = ::recv(connection, buffer, sizeof(buffer), 0);
      if (size <= 0) return false;
      text.append(buffer, static_cast<size_t>(size));
      const size_t end = text.find("\r\n\r\n");
      if (end == std::string::npos) continue;
      const size_t length = text.find("Content-Length: ");
      needed = end + 4 + (length < end ? std::stoul(text.substr(length + 16)) : 0);
    }
    std::string reply = http_reply(200, R"({"data":[{"id":"mock"}]})");
    if (text.starts_with("POST")) {
      requests_.push_back(text);
      if (script_.size() < requests_.size()) return false;
      reply = script_[requests_.size() - 1];
      if (reply.empty()) return false;  // hangs up
    }
    return ::send(connection, reply.data(), reply.size(), MSG_NOSIGNAL) > 0;
  }

  std::vector<std::string> script_;
  std::vector<std::string> requests_;
  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

Completion ask(CompletionTarget& target) {
  Sampling sampling;
  sampling.temperature = 0;
  EXPECT_TRUE(target.submit(7, "2+2?", sampling, 11));
  for (int i = 0; i < 100; ++i) {
    auto finished = target.wait();
    EXPECT_TRUE(finished) << finished.error().message;
    if (!finished) return {};
    if (!finished->empty()) return (*finished)[0].second;
  }
  ADD_FAILURE() << "no answer";
  return {};
}

HttpTargetOptions options_for(const MockServer& server) {
  HttpTargetOptions options;
  options.base_url = server.url();
  options.concurrency = 1;
  options.api_key = "secret-key";
  options.extra_body = R"({"top_k": 40})";
  return options;
}

TEST(EvalHttpTarget, TriesAgainWhatMayGoBetter) {
  // Busy, broken, hung up, a reply that ends early, then an answer.
  const std::string good = chat_reply(
      R"({"role":"assistant","content":"\\boxed{4}","reasoning_content":"easy"})", "stop");
  const MockServer server({http_reply(429, "{}", "Retry-After: 0\r\n"), http_reply(500, "oops"), "",
                           http_reply(200, good.substr(0, 30)), http_reply(200, good)});
  auto target = make_http_target(options_for(server));
  ASSERT_TRUE(target) << target.error().message;
  const Completion answer = ask(**target);
  EXPECT_EQ(answer.error, "");
  EXPECT_EQ(answer.text, "\\boxed{4}");
  EXPECT_EQ(answer.reasoning, "easy");
  EXPECT_EQ(answer.completion_tokens, 5);
  EXPECT_EQ(answer.finish_reason, "stop");
  EXPECT_GE(answer.retries, 3);
  const std::string& request = server.requests().back();
  EXPECT_THAT(request, HasSubstr("Authorization: Bearer secret-key"));
  EXPECT_THAT(request, HasSubstr(R"("model":"mock")"));
  EXPECT_THAT(request, HasSubstr(R"("seed":11)"));
  EXPECT_THAT(request, HasSubstr(R"("top_k":40)"));
  EXPECT_THAT((*target)->identity(), ::testing::Not(HasSubstr("secret")));
}

TEST(EvalHttpTarget, TellsWhatCannotBeMended) {
  const MockServer server(
      {http_reply(400, R"({"error":{"message":"too long"}})"),
       http_reply(200, chat_reply(R"({"content":null,"reasoning_content":"hm"})", "length")),
       http_reply(200, chat_reply(R"({"content":"<think>open"})", "length"))});
  auto target = make_http_target(options_for(server));
  ASSERT_TRUE(target) << target.error().message;
  const Completion refused = ask(**target);
  EXPECT_THAT(refused.error, HasSubstr("HTTP 400"));
  EXPECT_EQ(refused.retries, 0);
  // Thinking that never ended, told apart by the server or standing in the text.
  for (int i = 0; i < 2; ++i) {
    const Completion cut = ask(**target);
    EXPECT_TRUE(cut.is_unclosed);
    EXPECT_EQ(cut.text, "");
    EXPECT_EQ(cut.finish_reason, "length");
  }
}

TEST(EvalHttpTarget, ReadsAddresses) {
  const auto url = parse_http_url("https://[::1]:8443/api/v1/");
  ASSERT_TRUE(url) << url.error().message;
  EXPECT_TRUE(url->is_tls);
  EXPECT_EQ(url->host + " " + url->port + " " + url->prefix, "::1 8443 /api/v1");
  EXPECT_EQ(parse_http_url("http://host")->port, "80");
  for (const char* bad :
       {"host:80", "http://", "http://a b", "http://x:y", "http://u@h", "http://[::1"}) {
    EXPECT_FALSE(parse_http_url(bad)) << bad;
  }
}

TEST(EvalHttpTarget, UnreachableServersHaveTheirOwnExitStatus) {
  const TemporaryFolder folder;
  const auto run = run_nibble(
      {"eval", "run", "--task", "math-500=" + kMiniSuites + "/math-500.jsonl", "--prompt-style",
       "demo", "--base-url", "http://127.0.0.1:1", "--out", (folder / "x").string()});
  EXPECT_EQ(run.exit_code, 5) << run.err;
  EXPECT_THAT(run.err, HasSubstr("does not answer"));
}

// A server of the demo checkpoint in a process of its own.
class ServedDemo {
 public:
  ServedDemo() {
    const int probe = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)::bind(probe, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    socklen_t size = sizeof(address);
    (void)::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = std::to_string(ntohs(address.sin_port));
    (void)::close(probe);
    child_ = ::fork();
    if (child_ == 0) {
      const int null = ::open("/dev/null", O_RDWR);
      for (int fd = 0; fd < 3; ++fd) (void)::dup2(null, fd);
      ::execl(NIBBLE_PROGRAM, NIBBLE_PROGRAM, "serve", NIBBLE_SOURCE_DIR "/models/demo", "--host",
              "127.0.0.1", "--port", port_.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
  }
  ~ServedDemo() {
    (void)::kill(child_, SIGKILL);
    (void)::waitpid(child_, nullptr, 0);
  }
  ServedDemo(const ServedDemo&) = delete;
  ServedDemo& operator=(const ServedDemo&) = delete;

  std::string url() const { return "http://127.0.0.1:" + port_ + "/v1"; }
  bool wait() const {
    std::atomic<bool> stop = false;
    for (int i = 0; i < 300; ++i) {
      HttpClient client(*parse_http_url(url()), &stop);
      if (client.request("GET", "/models", "", {}, 1)) return true;
      ::usleep(100'000);
    }
    return false;
  }

 private:
  pid_t child_ = -1;
  std::string port_;
};

std::vector<nlohmann::json> read_lines(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<nlohmann::json> rows;
  std::string line;
  while (std::getline(file, line)) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

TEST(EvalHttpTarget, ServeAndTheEngineGiveTheSameScores) {
  const ServedDemo server;
  ASSERT_TRUE(server.wait());
  const TemporaryFolder folder;
  const auto run = [&](const std::string& name, const std::string& temperature,
                       std::vector<std::string> more) {
    std::vector<std::string> arguments = {"eval",          "run",
                                          "--suite",       kMiniSuites,
                                          "--limit",       "4",
                                          "--k",           "2",
                                          "--max-tokens",  "300",
                                          "--temperature", temperature,
                                          "--out",         (folder / name).string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto result = run_nibble(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return read_lines(folder / name / "scores.jsonl");
  };
  // Greedy; and drawn, since each sample has a seed of its own.
  for (const std::string temperature : {"0", "0.6"}) {
    const auto engine = run("engine" + temperature, temperature, {});
    const auto served = run("served" + temperature, temperature, {"--target", server.url()});
    EXPECT_EQ(engine.size(), 48u);
    EXPECT_EQ(engine, served);
  }
  const auto report = run_nibble({"eval", "report", (folder / "engine0").string(),
                                  (folder / "served0").string(), "--require-retention", "100"});
  EXPECT_EQ(report.exit_code, 0) << report.out << report.err;
}

std::string content(const std::string& text) {
  return http_reply(200, chat_reply(nlohmann::json{{"content", text}}.dump(), "stop"));
}

// A judge is asked about what the rules find unequal or do not understand, and about nothing else.
TEST(EvalJudge, IsAskedAboutUnequalAnswers) {
  const MockServer model({content("\\boxed{5}"), content("\\boxed{\\oint five}"),
                          content("\\boxed{6}"), content("no box")});
  const MockServer judge({content("They are the same: **Yes**."), content("no")});
  const TemporaryFolder folder;
  std::ofstream rows(folder / "q.jsonl");
  for (const char* id : {"a", "b", "c", "d"}) {
    rows << nlohmann::json{{"unique_id", id}, {"problem", "2 + 3?"}, {"answer", "5"}} << "\n";
  }
  rows.close();
  const auto run = run_nibble({"eval", "run", "--task", "math-500=" + (folder / "q.jsonl").string(),
                               "--allow-count", "--k", "1", "--base-url", model.url(),
                               "--concurrency", "1", "--judge-base-url", judge.url(), "--out",
                               (folder / "run").string(), "--progress", "none"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::string found;
  for (const auto& row : read_lines(folder / "run" / "scores.jsonl")) {
    found += row["outcome"].get<std::string>() + " " + row["judge"].dump() + "\n";
  }
  EXPECT_EQ(found, "correct null\ncorrect \"yes\"\nwrong \"no\"\nno_answer null\n");
  ASSERT_EQ(judge.requests().size(), 2u);
  EXPECT_THAT(judge.requests()[1], HasSubstr("Second answer: 6"));
}

// All kinds of targets that SciCode's file has, written by h5py, read in the sandbox.
TEST(EvalSciCode, ReadsTargetsFromHdf5) {
  const TemporaryFolder folder;
  std::filesystem::permissions(folder.path(), std::filesystem::perms(0755));
  const std::string targets = (folder / "test_data.h5").string();
  const std::string write =
      "import h5py, numpy as np, scipy, sympy\n"
      "f = h5py.File('" +
      targets +
      "', 'w')\n"
      "f['1.1/test1/var1'] = np.bytes_('text')\n"
      "f['1.1/test2/var1/list/a'] = np.arange(3)\n"
      "f['1.1/test2/var1/list/b'] = 2.5\n"
      "f['1.1/test2/var2'] = 7\n"
      "f['1.1/test3/var1/sparse_matrix/data'] = np.array([1.0, 2.0])\n"
      "f['1.1/test3/var1/sparse_matrix/indices'] = np.array([0, 1])\n"
      "f['1.1/test3/var1/sparse_matrix/indptr'] = np.array([0, 1, 2])\n"
      "f['1.1/test3/var1/sparse_matrix/shape'] = np.array([2, 2])\n"
      "f['1.1/test4/var1/2'] = 0.25\n"
      "f['1.1/test4/var1/name'] = np.bytes_('x')\n";
  if (std::system(("/usr/bin/python3 -c \"" + write + "\" 2>/dev/null").c_str()) != 0) {
    GTEST_SKIP() << "python3-h5py, -numpy, -scipy and -sympy are not all installed";
  }
  nlohmann::json step = {{"step_number", "1.1"},           {"step_description_prompt", "d"},
                         {"step_background", ""},          {"ground_truth_code", ""},
                         {"function_header", "def f(x):"}, {"return_line", ""}};
  step["test_cases"] = {
      "assert target == 'text' and f(2) == 2",
      "a, b = target\nassert a[0].tolist() == [0, 1, 2] and a[1] == 2.5 and b == 7",
      "assert target.toarray().tolist() == [[1, 0], [0, 2]]",
      "assert target == {2.0: 0.25, 'name': 'x'}"};
  std::ofstream(folder / "p.jsonl") << nlohmann::json{{"problem_id", "1"},
                                                      {"problem_name", "p"},
                                                      {"problem_io", ""},
                                                      {"problem_description_main", ""},
                                                      {"problem_background_main", ""},
                                                      {"required_dependencies", ""},
                                                      {"sub_steps", {step}}}
                                    << "\n";
  const auto outcome = [&](const std::string& program) {
    const MockServer model({content("```python\n" + program + "\n```")});
    const auto out = folder / ("run" + std::to_string(program.size()));
    const auto run = run_nibble(
        {"eval", "run", "--task", "scicode=" + (folder / "p.jsonl").string() + "," + targets,
         "--prompt-style", "demo", "--allow-count", "--k", "1", "--base-url", model.url(), "--out",
         out.string(), "--progress", "none"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    const auto scores = read_lines(out / "scores.jsonl");
    return scores.empty() ? "nothing"
                          : scores[0].value("outcome", "") + scores[0].value("detail", "");
  };
  EXPECT_THAT(outcome("def f(x):\n    return x"), ::testing::StartsWith("correct"));
  EXPECT_THAT(outcome("def f(x):\n    return x + 1"), ::testing::StartsWith("wrong"));
}

}  // namespace
}  // namespace nibble
