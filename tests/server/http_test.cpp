// Connections, limits and faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "nibble/server/request_log.h"
#include "tests/server/test_server.h"

namespace nibble {
namespace {

using testing::Answer;
using testing::chat_body;
using testing::Client;
using ::testing::HasSubstr;
using testing::Json;
using testing::read_answer;
using testing::request_text;
using testing::TestServer;

std::string endless_chat(bool stream = true) {
  return chat_body("Tell me a joke.",
                   {{"stream", stream}, {"ignore_eos", true}, {"max_tokens", 3000}})
      .dump();
}

TEST(Http, KeepsConnectionsAndTakesRequestsInARow) {
  const TestServer server;
  Client client(server.port());
  client.send(request_text("GET", "/version") + request_text("GET", "/health") +
              request_text("HEAD", "/health"));
  EXPECT_THAT(read_answer(client).body, HasSubstr("version"));
  EXPECT_EQ(read_answer(client).body, "{\"status\":\"ok\"}\n");
  EXPECT_EQ(read_answer(client, true).header("Content-Length"), "16");
  client.send(request_text("GET", "/version", "", "Connection: close\r\n"));
  EXPECT_EQ(read_answer(client).status, 200);
  EXPECT_EQ(client.receive_all(), "");
}

TEST(Http, VersionNamesTheCommit) {
  ServiceOptions options;
  options.version = "1.2.3";
  options.commit = "0123456789ab";
  const TestServer server(options);
  EXPECT_EQ(server.ask("GET", "/version").json(),
            (Json{{"version", "1.2.3"}, {"commit", "0123456789ab"}, {"api", "v1"}}));
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 1}})
                .json()["system_fingerprint"],
            "nibble-1.2.3-0123456789ab");
}

TEST(Http, TakesChunkedBodiesAndExpectations) {
  const TestServer server;
  Client client(server.port());
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "8\r\n{\"prompt\r\n9\r\n\": \"Hi!\"}\r\n0\r\n\r\n");
  EXPECT_EQ(read_answer(client).status, 200);
  const std::string body = R"({"prompt": "Hi!"})";
  client.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send(body);
  EXPECT_EQ(read_answer(client).status, 200);
}

TEST(Http, RefusesWhatIsNoRequest) {
  const TestServer server;
  for (const auto& [text, status] : std::vector<std::pair<std::string, int>>{
           {"garbage\r\n\r\n", 400},
           {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15), 400},
           {"GET / HTTP/9.9\r\n\r\n", 400},
           {"POST /tokenize HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413},
           {"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
           {"GET / HTTP/1.1\r\nA: " + std::string(70000, 'a') + "\r\n\r\n", 431}}) {
    SCOPED_TRACE(text.substr(0, 40));
    Client client(server.port());
    client.send(text);
    EXPECT_EQ(read_answer(client).status, status);
    EXPECT_EQ(client.receive_all(), "");  // and the connection ends
  }
  EXPECT_EQ(server.ask("GET", "/health").status, 200);
}

TEST(Http, SlowRequestsEnd) {
  HttpServerOptions http;
  http.header_timeout = std::chrono::milliseconds(200);
  http.body_timeout = std::chrono::milliseconds(200);
  const TestServer server({}, http);
  Client silent(server.port());
  Client half(server.port());
  half.send("GET /health HT");
  Client body(server.port());
  body.send("POST /tokenize HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
  EXPECT_EQ(silent.receive_all(), "");
  EXPECT_EQ(read_answer(half).status, 408);
  EXPECT_EQ(read_answer(body).status, 408);
  // What they send behind their answer is thrown away: it is no request and does no harm.
  for (Client* client : {&half, &body}) {
    for (int i = 0; i < 20; ++i) {
      client->send(std::string(5000, 'x'));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    client->send(request_text("GET", "/health"));
    client->half_close();
    EXPECT_EQ(client->receive_all(), "");
  }
  EXPECT_EQ(server.ask("GET", "/health").status, 200);
}

TEST(Http, NothingIsAnsweredBehindAClose) {
  const TestServer server;
  Client client(server.port());
  client.send(request_text("GET", "/health", "", "Connection: close\r\n"));
  EXPECT_EQ(read_answer(client).status, 200);
  client.send(request_text("GET", "/version"));
  client.half_close();
  EXPECT_EQ(client.receive_all(), "");
}

// Headers that come byte by byte hold neither memory nor anyone else up, and end.
TEST(Http, ManySlowRequestsHarmNobody) {
  HttpServerOptions http;
  http.header_timeout = std::chrono::milliseconds(300);
  http.max_handshakes = 1000;
  const TestServer server({}, http);
  std::vector<std::unique_ptr<Client>> slow;
  for (int i = 0; i < 200; ++i) {
    slow.push_back(std::make_unique<Client>(server.port()));
    slow.back()->send("GET /version HTT");
  }
  for (int round = 0; round < 12; ++round) {
    for (const auto& client : slow) client->send(std::string(1 + 100 * (round % 3), 'X'));
    EXPECT_EQ(server.ask("GET", "/health").status, 200);
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
  }
  for (const auto& client : slow) {
    client->half_close();
    const std::string answer = client->receive_all();
    EXPECT_TRUE(answer.empty() || answer.starts_with("HTTP/1.1 4")) << answer;
  }
}

TEST(Http, IdleConnectionsGiveWay) {
  HttpServerOptions http;
  http.max_connections = 20;
  const TestServer server({}, http);
  std::vector<std::unique_ptr<Client>> idle;
  idle.reserve(60);
  for (int i = 0; i < 60; ++i) idle.push_back(std::make_unique<Client>(server.port()));
  EXPECT_EQ(server.ask("GET", "/health").status, 200);
}

TEST(Http, WhoLeavesIsForgottenAtOnce) {
  TestServer server;
  for (const bool stream : {true, false}) {
    for (const bool half : {false, true}) {
      Client client(server.port());
      client.send(request_text("POST", "/v1/chat/completions", endless_chat(stream)));
      if (stream) {
        EXPECT_NE(client.receive_until("delta"), "");
      } else {
        while (server.engine().stats().num_running == 0) std::this_thread::yield();
      }
      const int64_t before = server.engine().stats().num_generated_tokens;
      if (half) {
        client.half_close();
      } else {
        client.close();
      }
      EXPECT_TRUE(server.idle());
      EXPECT_LT(server.engine().stats().num_generated_tokens - before, 1000);
    }
  }
  EXPECT_THAT(server.ask("GET", "/metrics").body,
              HasSubstr("nibble_client_disconnects_total{model_name=\"demo\",engine=\"0\"} 4"));
}

TEST(Http, AFullQueueSaysWhenToComeBack) {
  ServiceOptions options;
  options.max_queue_size = 1;
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 1;
  TestServer server(options, {}, engine);
  Client running(server.port());
  running.send(request_text("POST", "/v1/chat/completions", endless_chat()));
  EXPECT_NE(running.receive_until("delta"), "");
  Client waiting(server.port());
  waiting.send(request_text("POST", "/v1/chat/completions",
                            chat_body("Hello!", {{"max_tokens", 2}}).dump()));
  Answer refused;
  for (int i = 0; i < 200 && refused.status != 429; ++i) {
    refused = server.ask("POST", "/v1/chat/completions", chat_body("Hello!").dump(),
                         "X-Request-Timeout: 0.02\r\n");
  }
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.json()["error"]["code"], "queue_full");
  EXPECT_GE(std::stoi(refused.header("Retry-After")), 1);
  EXPECT_EQ(server.ask("GET", "/ready").status, 503);
  running.close();
  EXPECT_EQ(read_answer(waiting).status, 200);
}

TEST(Http, DeadlinesEndRequests) {
  const TestServer server;
  const Answer plain =
      server.ask("POST", "/v1/chat/completions", endless_chat(false), "X-Request-Timeout: 0.3\r\n");
  EXPECT_EQ(plain.status, 200);
  EXPECT_EQ(plain.header("x-nibble-deadline"), "exceeded");
  EXPECT_EQ(plain.json()["choices"][0]["finish_reason"], "length");
  const Answer stream =
      server.ask("POST", "/v1/chat/completions", endless_chat(true), "X-Request-Timeout: 0.3\r\n");
  EXPECT_THAT(stream.body, HasSubstr("deadline_exceeded"));
  EXPECT_TRUE(server.idle());
}

TEST(Http, KeysAreNeeded) {
  ServiceOptions options;
  options.access.api_keys = {"first-key", "second-key"};
  options.access.admin_api_key = "admin-key";
  options.access.cors_origins = {"https://app.example"};
  const TestServer server(options);
  EXPECT_EQ(server.ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(server.ask("GET", "/v1/models").header("WWW-Authenticate"), "Bearer");
  EXPECT_EQ(server.ask("GET", "/v1/models", "", "Authorization: Bearer first-ke\r\n").status, 401);
  EXPECT_EQ(server.ask("GET", "/v1/models", "", "Authorization: Bearer first-key1\r\n").status,
            401);
  EXPECT_EQ(server.ask("GET", "/v1/models", "", "Authorization: Bearer second-key\r\n").status,
            200);
  EXPECT_EQ(server.ask("GET", "/v1/models", "", "x-api-key: first-key\r\n").status, 200);
  for (const char* path : {"/live", "/health", "/ready", "/ping", "/version", "/", "/metrics"}) {
    EXPECT_EQ(server.ask("GET", path).status, 200) << path;
  }
  const std::string level = R"({"level": "warning"})";
  EXPECT_EQ(server.ask("POST", "/admin/log_level", level, "x-api-key: first-key\r\n").status, 403);
  EXPECT_EQ(server.ask("POST", "/admin/log_level", level, "x-api-key: admin-key\r\n").status, 200);
  const Answer allowed = server.ask(
      "OPTIONS", "/v1/chat/completions", "",
      "Origin: https://app.example\r\nAccess-Control-Request-Headers: x-stainless-os\r\n");
  EXPECT_EQ(allowed.status, 204);
  EXPECT_EQ(allowed.header("Access-Control-Allow-Origin"), "https://app.example");
  EXPECT_EQ(allowed.header("Access-Control-Allow-Headers"), "x-stainless-os");
  const Answer other = server.ask("GET", "/health", "", "Origin: https://evil.example\r\n");
  EXPECT_EQ(other.header("Access-Control-Allow-Origin"), "");
}

TEST(Http, AKeyHasItsOwnLimit) {
  ServiceOptions options;
  options.access.api_keys = {"one", "two"};
  options.max_requests_per_key = 1;
  const TestServer server(options);
  Client running(server.port());
  running.send(request_text("POST", "/v1/chat/completions", endless_chat(), "x-api-key: one\r\n"));
  EXPECT_NE(running.receive_until("delta"), "");
  const std::string short_chat = chat_body("Hello!", {{"max_tokens", 2}}).dump();
  const Answer refused =
      server.ask("POST", "/v1/chat/completions", short_chat, "x-api-key: one\r\n");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.json()["error"]["code"], "key_limit");
  EXPECT_EQ(refused.header("Retry-After"), "1");
  EXPECT_EQ(server.ask("POST", "/v1/chat/completions", short_chat, "x-api-key: two\r\n").status,
            200);
}

TEST(Http, TraceHeadersAreRead) {
  const std::string id = "0af7651916cd43dd8448eb211c80319c";
  EXPECT_EQ(trace_id_of("00-" + id + "-b7ad6b7169203331-01"), id);
  EXPECT_EQ(trace_id_of("01-" + id + "-b7ad6b7169203331-01-more"), id);
  for (const std::string& bad :
       {std::string(), "00-" + id, "00-" + id + "-b7ad6b7169203331-01-more",
        "ff-" + id + "-b7ad6b7169203331-01", "00-" + std::string(32, '0') + "-b7ad6b7169203331-01",
        "00-" + id + "-b7ad6b716920333\n-01", "00x" + id + "-b7ad6b7169203331-01"}) {
    EXPECT_EQ(trace_id_of(bad), "") << bad;
  }
  const TestServer server;
  EXPECT_EQ(server
                .ask("POST", "/v1/chat/completions", chat_body("Hello!").dump(),
                     "traceparent: 00-" + id + "-b7ad6b7169203331-01\r\ntracestate: a=b\r\n")
                .status,
            200);
}

TEST(Http, LoadingIsToldInSteps) {
  // A server whose model is not there yet.
  ServiceOptions options;
  Service service(options);
  HttpServerOptions http;
  http.port = 0;
  const auto listening = *HttpServer::listen(http, service);
  service.attach(*listening);
  std::thread thread(
      [&] { listening->run(std::chrono::milliseconds(10), [&] { service.tick(); }); });
  const auto ask = [&](const std::string& path) {
    Client client(listening->port());
    client.send(request_text("GET", path));
    return read_answer(client);
  };
  for (const uint64_t loaded : {uint64_t{0}, uint64_t{41}, uint64_t{100}}) {
    LoadProgress progress;
    progress.phase = loaded == 100 ? "kv_cache" : "weights";
    progress.bytes_loaded = loaded << 20;
    progress.bytes_total = uint64_t{100} << 20;
    service.set_progress(progress);
    for (const char* path : {"/ready", "/health", "/v1/models"}) {
      const Answer answer = ask(path);
      EXPECT_EQ(answer.status, 503);
      EXPECT_EQ(answer.header("Retry-After"), "1");
      const Json json = answer.json();
      EXPECT_EQ(json["error"]["code"], "loading");
      EXPECT_EQ(json["progress"]["state"], "loading");
      EXPECT_EQ(json["progress"]["phase"], progress.phase);
      EXPECT_EQ(json["progress"]["bytes_loaded"], progress.bytes_loaded);
      EXPECT_EQ(json["progress"]["bytes_total"], progress.bytes_total);
      EXPECT_EQ(json["progress"]["eta_seconds"].is_null(), loaded == 0) << json;
      EXPECT_THAT(json["error"]["message"].get<std::string>(),
                  HasSubstr(std::to_string(loaded) + "%"));
    }
    EXPECT_EQ(ask("/live").status, 200);
    EXPECT_EQ(ask("/version").status, 200);
  }
  EXPECT_THAT(ask("/metrics").body, HasSubstr("state=\"loading\"} 1"));
  listening->stop();
  thread.join();
}

TEST(Http, RequestIdsAreKeptWhenTheyAreSafe) {
  const TestServer server;
  EXPECT_EQ(server.ask("GET", "/health", "", "X-Request-Id: abc-1\r\n").header("x-request-id"),
            "abc-1");
  const Answer odd = server.ask("GET", "/health", "", "X-Request-Id: a b\r\n");
  EXPECT_TRUE(odd.header("x-request-id").starts_with("req-"));
}

TEST(Http, SilenceInAStreamIsFilled) {
  ServiceOptions options;
  options.keepalive_interval = std::chrono::milliseconds(50);
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 1;
  const TestServer server(options, {}, engine);
  Client running(server.port());
  running.send(request_text("POST", "/v1/chat/completions", endless_chat()));
  EXPECT_NE(running.receive_until("delta"), "");
  Client waiting(server.port());
  waiting.send(
      request_text("POST", "/v1/chat/completions", chat_body("Hello!", {{"stream", true}}).dump()));
  EXPECT_THAT(waiting.receive_until(": keep-alive\n\n"), HasSubstr("text/event-stream"));
  running.close();
  EXPECT_THAT(waiting.receive_until("[DONE]"), HasSubstr("Hello"));
}

TEST(Http, DrainingFinishesWhatRunsAndRefusesTheRest) {
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 1;
  TestServer server({}, {}, engine);
  Client running(server.port());
  running.send(request_text(
      "POST", "/v1/chat/completions",
      chat_body("Hello!", {{"stream", true}, {"ignore_eos", true}, {"max_tokens", 300}}).dump()));
  EXPECT_NE(running.receive_until("delta"), "");
  Client waiting(server.port());
  waiting.send(request_text("POST", "/v1/chat/completions", chat_body("Hello!").dump()));
  while (server.engine().stats().num_waiting == 0) std::this_thread::yield();
  server.post(
      [&] { server.service().drain(std::chrono::steady_clock::now() + std::chrono::seconds(30)); });
  EXPECT_EQ(read_answer(waiting).json()["error"]["code"], "shutting_down");
  const Answer late = server.post("/v1/chat/completions", chat_body("Hello!"));
  EXPECT_EQ(late.status, 503);
  EXPECT_EQ(late.header("Retry-After"), "5");
  EXPECT_EQ(late.header("Connection"), "close");
  EXPECT_EQ(server.ask("GET", "/ready").status, 503);
  EXPECT_EQ(server.ask("GET", "/health").status, 200);
  EXPECT_THAT(running.receive_until("[DONE]"), HasSubstr("\"finish_reason\":\"length\""));
  std::atomic<bool> drained{false};
  for (int i = 0; i < 500 && !drained; ++i) {
    server.post([&] { drained = server.service().drained(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(drained);
}

TEST(Http, DrainingUnderLoadLosesNoAcceptedRequest) {
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 8;
  TestServer server({}, {}, engine);
  std::atomic<int> complete{0};
  std::atomic<int> refused{0};
  std::atomic<int> begun{0};
  std::vector<std::thread> clients;
  clients.reserve(24);
  for (int i = 0; i < 24; ++i) {
    clients.emplace_back([&, i] {
      const bool stream = i % 2 == 0;
      Client client(server.port());
      client.send(request_text(
          "POST", "/v1/chat/completions",
          chat_body("Hello!", {{"ignore_eos", true}, {"max_tokens", 150}, {"stream", stream}})
              .dump()));
      ++begun;
      const Answer answer = read_answer(client);
      if (answer.status == 503) {
        EXPECT_EQ(answer.json()["error"]["code"], "shutting_down");
        ++refused;
      } else if (stream) {
        EXPECT_THAT(answer.body, HasSubstr("\"finish_reason\":\"length\""));
        complete += answer.body.ends_with("data: [DONE]\n\n") ? 1 : 0;
      } else {
        EXPECT_EQ(answer.json()["usage"]["completion_tokens"], 150) << answer.body;
        ++complete;
      }
    });
  }
  while (begun < 24 || server.engine().stats().num_running < 8) std::this_thread::yield();
  server.post(
      [&] { server.service().drain(std::chrono::steady_clock::now() + std::chrono::seconds(60)); });
  for (std::thread& client : clients) client.join();
  EXPECT_GE(complete, 8);
  EXPECT_EQ(complete + refused, 24);
}

TEST(Http, ADrainHasADeadline) {
  TestServer server;
  Client running(server.port());
  running.send(request_text("POST", "/v1/chat/completions", endless_chat()));
  EXPECT_NE(running.receive_until("delta"), "");
  server.post([&] { server.service().drain(std::chrono::steady_clock::now()); });
  const std::string rest = running.receive_until("[DONE]");
  EXPECT_THAT(rest, HasSubstr("server_shutdown"));
  EXPECT_TRUE(server.idle());
}

TEST(Http, WithoutBlocksRequestsWaitAndAllFinish) {
  EngineOptions engine;
  engine.num_blocks = 12;  // 384 tokens for eight requests of up to 200
  engine.max_batch_size = 8;
  TestServer server({}, {}, engine);
  std::vector<std::thread> clients;
  std::atomic<int> finished{0};
  clients.reserve(8);
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      const Answer answer = server.post(
          "/v1/chat/completions",
          chat_body("Hello!", {{"ignore_eos", true}, {"max_tokens", 180}, {"stream", true}}));
      if (answer.events().back()["choices"][0]["finish_reason"] == "length") ++finished;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(finished, 8);
  EXPECT_GT(server.engine().stats().num_preemptions, 0);
}

}  // namespace
}  // namespace nibble
