// nibble bench serve against a server of a few lines: what it sends, what it makes of the answers.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProgramRun;
using testing::run_nibble;
using BenchJson = nlohmann::ordered_json;

// Another maker's server: lines end as its framework likes, and there are no metrics. Answers with
// max_tokens events, `pause` between them; a prompt of one token gets an error.
class OtherServer {
 public:
  explicit OtherServer(std::chrono::milliseconds pause = std::chrono::milliseconds(1),
                       std::string server_info = "")
      : pause_(pause), info_(std::move(server_info)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    NIBBLE_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    socklen_t size = sizeof(address);
    NIBBLE_CHECK(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    NIBBLE_CHECK(::listen(listener_, 64) == 0);
    url_ = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    acceptor_ = std::thread([this] {
      for (int client; (client = ::accept(listener_, nullptr, nullptr)) >= 0;) {
        clients_.emplace_back([this, client] { serve(client); });
      }
    });
  }
  OtherServer(const OtherServer&) = delete;
  OtherServer& operator=(const OtherServer&) = delete;
  ~OtherServer() {
    (void)::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    for (std::thread& client : clients_) client.join();
    ::close(listener_);
  }

  const std::string& url() const { return url_; }
  std::vector<BenchJson> bodies() {
    const std::lock_guard lock(mutex_);
    return bodies_;
  }
  std::vector<double> arrivals() {
    const std::lock_guard lock(mutex_);
    return arrivals_;
  }

 private:
  static void send(int client, const std::string& text) {
    (void)::send(client, text.data(), text.size(), MSG_NOSIGNAL);
  }
  static void reply(int client, int status, const std::string& body) {
    send(client, "HTTP/1.1 " + std::to_string(status) +
                     " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  void serve(int client) {
    std::string text;
    char buffer[4096];
    size_t length = 0;
    for (;;) {
      const size_t head = text.find("\r\n\r\n");
      const size_t field = text.find("Content-Length: ");
      if (field != std::string::npos) length = std::stoul(text.substr(field + 16));
      if (head != std::string::npos && text.size() >= head + 4 + length) break;
      const auto count = ::recv(client, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      text.append(buffer, static_cast<size_t>(count));
    }
    if (text.starts_with("GET /v1/models ")) {
      reply(client, 200, R"({"data": [{"id": "their-model"}]})");
    } else if (text.starts_with("GET /server_info ") && !info_.empty()) {
      reply(client, 200, info_);
    } else if (text.starts_with("POST ")) {
      generate(client, text.substr(text.find("\r\n\r\n") + 4));
    } else {
      reply(client, 404, "no such page");
    }
    ::close(client);
  }

  void generate(int client, const std::string& text) {
    const BenchJson body = BenchJson::parse(text);
    {
      const std::lock_guard lock(mutex_);
      bodies_.push_back(body);
      arrivals_.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
              .count());
    }
    const bool chat = body.contains("messages");
    const auto prompt = chat ? body["messages"].size() : body["prompt"].size();
    if (prompt == 1 && !chat) return reply(client, 500, R"({"error": {"message": "too short"}})");
    send(client, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    const int64_t count = body["max_tokens"];
    for (int64_t i = 0; i < count; ++i) {
      std::this_thread::sleep_for(pause_);
      const BenchJson choice =
          chat ? BenchJson{{"delta", {{"content", "x"}}}} : BenchJson{{"text", "x"}};
      send(client, "data: " + BenchJson{{"choices", {choice}}}.dump() + "\r\n\r\n");
    }
    const BenchJson usage = {{"choices", BenchJson::array()},
                             {"usage", {{"prompt_tokens", prompt}, {"completion_tokens", count}}}};
    send(client, ": a comment\r\ndata: " + usage.dump() + "\r\n\r\ndata: [DONE]\r\n\r\n");
  }

  std::chrono::milliseconds pause_;
  std::string info_;
  int listener_ = -1;
  std::string url_;
  std::thread acceptor_;
  std::vector<std::thread> clients_;  // the acceptor's, until it has ended
  std::mutex mutex_;
  std::vector<BenchJson> bodies_;
  std::vector<double> arrivals_;
};

std::string scratch_file(const std::string& name, const std::string& text = "") {
  const std::string path =
      (std::filesystem::temp_directory_path() / (std::to_string(::getpid()) + name)).string();
  std::ofstream(path) << text;
  return path;
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  std::filesystem::remove(path);
  return text;
}

ProgramRun bench(OtherServer& server, std::vector<std::string> more) {
  more.insert(more.begin(), {"bench", "serve", "--base-url", server.url()});
  return run_nibble(more);
}

TEST(BenchServe, MeasuresAnyServerAndWritesEveryForm) {
  OtherServer server(std::chrono::milliseconds(2));
  const std::string result = scratch_file("result.json");
  const std::string plot = scratch_file("plot.svg");
  const ProgramRun run =
      bench(server, {"--num-prompts", "12", "--max-concurrency", "4", "--random-input-len", "20",
                     "--random-output-len", "8", "--goodput", "ttft:60000", "tpot:60000",
                     "--save-result", result, "--save-svg", plot});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("============ Serving Benchmark Result ============\n"));
  EXPECT_THAT(run.out, HasSubstr("Successful requests:                     12        \n"));
  EXPECT_THAT(run.out, HasSubstr("Total input tokens:                      240       \n"));
  EXPECT_THAT(run.out, HasSubstr("Total generated tokens:                  96        \n"));
  for (const char* name : {"TTFT", "TPOT", "ITL", "E2EL"}) {
    for (const char* of : {"Mean", "Median", "P50", "P90", "P99"}) {
      EXPECT_THAT(run.out, HasSubstr(std::string(of) + " " + name + " (ms):"));
    }
  }
  const BenchJson json = BenchJson::parse(contents(result));
  EXPECT_EQ(json["completed"], 12);
  EXPECT_EQ(json["model"], "their-model");
  EXPECT_TRUE(json["backend"].is_null());
  EXPECT_GT(json["request_goodput"].get<double>(), 0);
  EXPECT_EQ(json["rows"][0]["concurrency"], 4);
  // Seven pauses of at least 2 ms lie between eight tokens.
  EXPECT_GE(json["p50_tpot_ms"].get<double>(), 2);
  EXPECT_GE(json["p50_e2el_ms"].get<double>(), 16);
  EXPECT_LE(json["p50_itl_ms"].get<double>(), json["p99_itl_ms"].get<double>());
  EXPECT_LE(json["p50_ttft_ms"].get<double>(), json["p50_e2el_ms"].get<double>());
  const std::string svg = contents(plot);
  EXPECT_TRUE(svg.starts_with("<svg"));
  size_t curves = 0;
  for (size_t at = svg.find("<polyline"); at != std::string::npos;
       at = svg.find("<polyline", at + 1))
    ++curves;
  EXPECT_EQ(curves, 4u);
  const ProgramRun csv = bench(server, {"--num-prompts", "2", "--random-output-len", "2",
                                        "--format", "csv", "--goodput", "e2el:0.001"});
  std::istringstream lines(csv.out);
  std::string names, values;
  std::getline(lines, names);
  std::getline(lines, values);
  EXPECT_EQ(std::count(names.begin(), names.end(), ','),
            std::count(values.begin(), values.end(), ','));
  EXPECT_THAT(names, HasSubstr("p99_itl_ms"));
  EXPECT_THAT(names, HasSubstr("request_goodput"));
  const ProgramRun strict = bench(server, {"--num-prompts", "2", "--random-output-len", "2",
                                           "--format", "json", "--goodput", "e2el:0.001"});
  EXPECT_EQ(BenchJson::parse(strict.out)["request_goodput"], 0);
  EXPECT_THAT(bench(server, {"--num-prompts", "2", "--layout", "trtllm"}).out,
              HasSubstr("[P95] Time-to-First-Token"));
}

TEST(BenchServe, ItsResultIsWhatPlanCalibratesWith) {
  OtherServer server(std::chrono::milliseconds(1),
                     R"({"kernels": "cpu avx512", "model": "demo", "num_drafts": 0})");
  const std::string result = scratch_file("measured.json");
  const ProgramRun run = bench(server, {"--num-prompts", "8", "--max-concurrency", "4",
                                        "--random-output-len", "8", "--save-result", result});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const ProgramRun plan =
      run_nibble({"plan", NIBBLE_SOURCE_DIR "/models/demo", "--calibrate", result, "--batch", "4"});
  (void)contents(result);
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_THAT(plan.out, HasSubstr("cpu avx512"));
}

TEST(BenchServe, ReplaysTraces) {
  OtherServer server;
  const std::string trace = scratch_file(
      "trace.jsonl",
      R"({"timestamp": 0, "input_length": 1300, "output_length": 3, "hash_ids": [7, 8, 9]})"
      "\n"
      R"({"timestamp": 400, "input_length": 1100, "output_length": 2, "hash_ids": [7, 8, 10]})"
      "\n"
      R"({"timestamp": 200, "input_length": 600, "output_length": 1, "hash_ids": [8, 11]})"
      "\n");
  ProgramRun run = bench(server, {"--dataset", "mooncake", "--dataset-file", trace});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::vector<BenchJson> bodies = server.bodies();
  ASSERT_EQ(bodies.size(), 3u);  // in the order of their times
  EXPECT_EQ(bodies[0]["prompt"].size(), 1300u);
  EXPECT_EQ(bodies[1]["prompt"].size(), 600u);
  EXPECT_EQ(bodies[2]["max_tokens"], 2);
  const auto part = [&](size_t request, size_t begin, size_t end) {
    const BenchJson& ids = bodies[request]["prompt"];
    return std::vector<int>(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                            ids.begin() + static_cast<std::ptrdiff_t>(end));
  };
  EXPECT_EQ(part(0, 0, 1024), part(2, 0, 1024));        // hashes 7 and 8
  EXPECT_EQ(part(0, 512, 1024), part(1, 0, 512));       // hash 8
  EXPECT_NE(part(0, 1024, 1100), part(2, 1024, 1100));  // 9 and 10
  const std::vector<double> arrivals = server.arrivals();
  EXPECT_GE(arrivals[1] - arrivals[0], 0.15);
  EXPECT_GE(arrivals[2] - arrivals[0], 0.35);

  OtherServer fast;
  run = bench(fast, {"--dataset", "mooncake", "--dataset-file", trace, "--trace-speedup", "10",
                     "--trace-length-scale", "0.1", "--num-prompts", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  bodies = fast.bodies();
  ASSERT_EQ(bodies.size(), 2u);
  EXPECT_EQ(bodies[0]["prompt"].size(), 130u);
  std::ofstream(trace) << R"({"timestamp": 0, "input_length": "long", "output_length": 3})";
  run = bench(fast, {"--dataset", "mooncake", "--dataset-file", trace});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr(":1: input_length is \"long\", expected a number of tokens"));

  OtherServer ours;
  std::ofstream(trace) << R"({"prompt": "Hello there", "output_len": 3, "timestamp": 0.2})"
                       << "\n\n"
                       << R"({"messages": [{"role": "user", "content": "Hi"}], "timestamp": 0})"
                       << "\n"
                       << R"({"prompt": "x", "output_len": 2, "timestamp": 0.1})"
                       << "\n";
  run = bench(ours, {"--dataset", "jsonl", "--dataset-file", trace, "--endpoint",
                     "/v1/chat/completions", "--random-output-len", "5", "--model", "named"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  bodies = ours.bodies();
  ASSERT_EQ(bodies.size(), 3u);
  EXPECT_EQ(bodies[0]["max_tokens"], 5);
  EXPECT_EQ(bodies[2]["messages"][0]["content"], "Hello there");
  EXPECT_EQ(bodies[2]["model"], "named");
  std::ofstream(trace) << R"({"input_len": 9, "output_len": 2})"
                       << "\n";
  run = bench(ours, {"--dataset", "jsonl", "--dataset-file", trace, "--num-prompts", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(ours.bodies().back()["prompt"].size(), 9u);
  std::ofstream(trace) << "{}\n";
  run = bench(ours, {"--dataset", "jsonl", "--dataset-file", trace});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr(":1: neither prompt nor messages nor input_len"));
  std::filesystem::remove(trace);
}

TEST(BenchServe, ArrivalsArePoisson) {
  OtherServer server(std::chrono::milliseconds(0));
  const ProgramRun run = bench(server, {"--num-prompts", "100", "--request-rate", "200",
                                        "--random-output-len", "1", "--seed", "3"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::vector<double> arrivals = server.arrivals();
  std::sort(arrivals.begin(), arrivals.end());
  // The mean of 99 gaps of 5 ms: its deviation is 0.5 ms, and a busy machine adds to it.
  const double mean = (arrivals.back() - arrivals.front()) / 99;
  EXPECT_GT(mean, 0.0035);
  EXPECT_LT(mean, 0.02);
  EXPECT_THAT(run.out, HasSubstr("Request rate configured (RPS):"));
}

TEST(BenchServe, FailuresAreTold) {
  OtherServer server;
  const ProgramRun run = bench(server, {"--num-prompts", "3", "--random-input-len", "1"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("the first failure: status 500"));
  EXPECT_THAT(run.out, HasSubstr("Failed requests:                         3"));
  const ProgramRun nobody =
      run_nibble({"bench", "serve", "--base-url", "http://127.0.0.1:9", "--num-prompts", "1"});
  EXPECT_EQ(nobody.exit_code, 1);
  EXPECT_THAT(nobody.err, HasSubstr("cannot connect"));
  EXPECT_EQ(run_nibble({"bench", "serve", "--goodput", "speed:1"}).exit_code, 2);
  EXPECT_THAT(run_nibble({"bench", "serve", "--base-url", "https://x"}).err, HasSubstr("https"));
  EXPECT_THAT(run_nibble({"bench", "serve", "--dataset", "jsonl"}).err,
              HasSubstr("needs --dataset-file"));
  EXPECT_THAT(run_nibble({"bench", "serve", "--num-promts", "1"}).err,
              HasSubstr("did you mean '--num-prompts'?"));
}

}  // namespace
}  // namespace nibble
