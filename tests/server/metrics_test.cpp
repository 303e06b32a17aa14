// Spec serving section 7.1: every metric, and the dashboard that asks for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <map>
#include <set>

#include "tests/server/conformance.h"

namespace nibble {
namespace {

using testing::ask;
using testing::chat_body;
using testing::Json;
using testing::kChat;
using testing::shared_server;
using testing::TestServer;

TEST(Metrics, QueueTimesAreMeasured) {
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 1;
  const TestServer one({}, {}, engine);
  const Json body = chat_body("Hello!", {{"max_tokens", 200}, {"ignore_eos", true}});
  std::vector<std::thread> clients;
  for (int i = 0; i < 3; ++i)
    clients.emplace_back([&] { EXPECT_EQ(one.post(kChat, body).status, 200); });
  for (std::thread& client : clients) client.join();
  const std::string page = one.ask("GET", "/metrics").body;
  const std::string name = "vllm:request_queue_time_seconds_sum{model_name=\"demo\",engine=\"0\"} ";
  const size_t at = page.find(name);
  ASSERT_NE(at, std::string::npos);
  EXPECT_GT(std::stod(page.substr(at + name.size())), 0.01);
}

// A page of metrics, read as Prometheus reads it.
struct Page {
  std::map<std::string, std::string> types;             // by family
  std::map<std::string, std::set<std::string>> labels;  // by series
  std::map<std::string, double> values;                 // by series with its labels
};

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':';
}

// The names in front of each '=' between braces.
std::set<std::string> label_names(const std::string& text) {
  std::set<std::string> names;
  std::string name;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"' && (i == 0 || text[i - 1] != '\\')) quoted = !quoted;
    if (quoted) continue;
    if (is_name(text[i])) {
      name += text[i];
    } else {
      if (text[i] == '=' || text[i] == '!') names.insert(name);
      name.clear();
    }
  }
  return names;
}

Page read_page(const std::string& text) {
  Page page;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# TYPE ")) {
      const size_t space = line.find(' ', 7);
      EXPECT_TRUE(page.types.emplace(line.substr(7, space - 7), line.substr(space + 1)).second)
          << line << " comes twice";
    }
    if (line.starts_with("#")) continue;
    const size_t space = line.rfind(' ');
    const size_t brace = line.find('{');
    if (space == std::string::npos || brace == std::string::npos) {
      ADD_FAILURE() << line;
      continue;
    }
    char* end = nullptr;
    const double value = std::strtod(line.c_str() + space + 1, &end);
    EXPECT_EQ(*end, '\0') << line;
    EXPECT_TRUE(page.values.emplace(line.substr(0, space), value).second) << line << " comes twice";
    const auto names = label_names(line.substr(brace, space - brace));
    page.labels[line.substr(0, brace)].insert(names.begin(), names.end());
  }
  return page;
}

TEST(Metrics, EveryNameOfTheSpecificationIsThere) {
  (void)shared_server().post(kChat, chat_body("Hello!"));
  const Page page = read_page(shared_server().ask("GET", "/metrics").body);
  for (const char* name : {"vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:cache_config_info",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:num_preemptions_total",
                           "vllm:request_success_total",
                           "vllm:spec_decode_num_drafts_total",
                           "vllm:spec_decode_num_draft_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                           "vllm:time_to_first_token_seconds",
                           "vllm:inter_token_latency_seconds",
                           "vllm:time_per_output_token_seconds",
                           "vllm:request_time_per_output_token_seconds",
                           "vllm:e2e_request_latency_seconds",
                           "vllm:request_queue_time_seconds",
                           "vllm:request_prefill_time_seconds",
                           "vllm:request_decode_time_seconds",
                           "vllm:request_inference_time_seconds",
                           "vllm:request_prompt_tokens",
                           "vllm:request_generation_tokens",
                           "nibble_http_requests_total",
                           "nibble_queue_rejected_total",
                           "nibble_client_disconnects_total",
                           "nibble_state",
                           "nibble_load_bytes",
                           "nibble_load_bytes_total",
                           "nibble_step_seconds",
                           "nibble_batch_tokens",
                           "nibble_batch_sequences",
                           "nibble_accepted_tokens_total",
                           "nibble_draft_tokens_total",
                           "nibble_acceptance_length",
                           "nibble_parser_anomalies_total",
                           "nibble_tool_calls_total",
                           "nibble_grammar_compile_seconds",
                           "nibble_bad_logits_total",
                           "nibble_kv_blocks",
                           "nibble_memory_bytes",
                           "nibble_last_step_timestamp_seconds",
                           "nibble_build_info",
                           "nibble_graph_replays_total",
                           "nibble_graph_misses_total",
                           "nibble_token_delay_seconds"}) {
    EXPECT_EQ(page.types.count(name), 1u) << name;
  }
  for (const char* name :
       {"vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
        "vllm:request_time_per_output_token_seconds", "vllm:request_queue_time_seconds",
        "vllm:e2e_request_latency_seconds", "nibble_step_seconds", "nibble_batch_tokens",
        "nibble_batch_sequences", "nibble_token_delay_seconds"}) {
    EXPECT_EQ(page.types.at(name), "histogram") << name;
  }
}

// With a fifth of the experts in memory: what the tiers did, in numbers that agree.
TEST(Metrics, ExpertTiersAreCounted) {
  ModelOptions options;
  options.experts.memory_bytes = 4 << 20;
  const auto model = LoadedModel::load(testing::demo_checkpoint(), options);
  ASSERT_TRUE(model);
  const TestServer server({}, {}, TestServer::small_engine(), nullptr, model->get());
  EXPECT_EQ(server.post(kChat, chat_body("Hello!")).status, 200);
  const Page page = read_page(server.ask("GET", "/metrics").body);
  const auto value = [&](const std::string& name, const std::string& more = "") {
    return page.values.at(name + "{model_name=\"demo\",engine=\"0\"" +
                          (more.empty() ? "" : "," + more) + "}");
  };
  const double there = value("nibble_experts", "tier=\"memory\"");
  EXPECT_GT(there, 0);
  EXPECT_LE(there, value("nibble_expert_slots"));
  EXPECT_EQ(there + value("nibble_experts", "tier=\"file\""), 64);  // with the MTP layer
  EXPECT_GT(value("nibble_expert_uses_total", "found=\"memory\""), 0);
  const double misses = value("nibble_expert_uses_total", "found=\"file\"");
  EXPECT_GT(misses, 0);
  EXPECT_GE(value("nibble_expert_read_bytes_total"), misses * 100'000);
  EXPECT_GT(value("nibble_expert_read_seconds_total"), 0);
  EXPECT_GT(value("nibble_expert_stall_seconds_total"), 0);
  EXPECT_GT(value("nibble_expert_evictions_total"), 0);
  EXPECT_EQ(value("nibble_expert_on_host_total"), 0);
  EXPECT_EQ(value("nibble_expert_host_seconds_total"), 0);
  const double begun = value("nibble_expert_guesses_total", "outcome=\"begun\"");
  EXPECT_GT(begun, 0);
  EXPECT_LE(value("nibble_expert_guesses_total", "outcome=\"in_time\"") +
                value("nibble_expert_guesses_total", "outcome=\"late\"") +
                value("nibble_expert_guesses_total", "outcome=\"wasted\""),
            begun);
  // A model that is in memory whole has none of them.
  EXPECT_EQ(read_page(shared_server().ask("GET", "/metrics").body).types.count("nibble_experts"),
            0u);
}

TEST(Metrics, HistogramsRiseToTheirCount) {
  (void)shared_server().post(kChat, chat_body("Hello!"));
  const std::string text = shared_server().ask("GET", "/metrics").body;
  const Page page = read_page(text);
  int checked = 0;
  double last = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t le = line.find(",le=\"");
    if (line.starts_with("#") || le == std::string::npos) {
      last = 0;
      continue;
    }
    const double value = page.values.at(line.substr(0, line.rfind(' ')));
    EXPECT_GE(value, last) << line;
    last = value;
    if (line.find("le=\"+Inf\"") == std::string::npos) continue;
    std::string count = line.substr(0, le) + "}";
    count.replace(count.find("_bucket{"), 8, "_count{");
    EXPECT_EQ(page.values.at(count), value) << line;
    last = 0;
    ++checked;
  }
  EXPECT_GT(checked, 15);
  double steps = 0;
  for (const auto& [series, value] : page.values) {
    if (series.starts_with("nibble_step_seconds_count{")) steps += value;
  }
  EXPECT_EQ(steps, page.values.at("nibble_steps_total{model_name=\"demo\",engine=\"0\"}"));
}

// Every series, label and type that the dashboard's queries name is on the page.
TEST(Metrics, TheDashboardAsksForWhatIsThere) {
  (void)shared_server().post(kChat, chat_body("Hello!"));
  (void)shared_server().ask("GET", "/version");
  const Page page = read_page(shared_server().ask("GET", "/metrics").body);
  std::ifstream file(NIBBLE_SOURCE_DIR "/packaging/grafana-dashboard.json");
  const Json dashboard = Json::parse(file);
  int expressions = 0;
  const auto check = [&](const std::string& text) {
    ++expressions;
    std::set<std::string> known;
    for (size_t at = 0; at < text.size();) {
      size_t end = at;
      while (end < text.size() && is_name(text[end])) ++end;
      const std::string name = text.substr(at, end - at);
      at = std::max(end, at + 1);
      if (!name.starts_with("vllm:") && !name.starts_with("nibble_")) continue;
      const auto series = page.labels.find(name);
      if (series == page.labels.end()) {
        ADD_FAILURE() << name << " in " << text << " is not on the page";
        continue;
      }
      known.insert(series->second.begin(), series->second.end());
      if (end >= text.size() || text[end] != '{') {
        ADD_FAILURE() << name << " in " << text << " asks for all models";
        continue;
      }
      for (const std::string& label : label_names(text.substr(end, text.find('}', end) - end))) {
        EXPECT_EQ(series->second.count(label), 1u) << label << " of " << name << " in " << text;
      }
    }
    for (size_t at = text.find("by ("); at != std::string::npos; at = text.find("by (", at + 1)) {
      std::istringstream by(text.substr(at + 4, text.find(')', at) - at - 4));
      for (std::string label; std::getline(by >> std::ws, label, ',');) {
        EXPECT_EQ(known.count(label), 1u) << label << " in " << text;
      }
    }
    EXPECT_EQ(std::count(text.begin(), text.end(), '('), std::count(text.begin(), text.end(), ')'));
  };
  for (const Json& panel : dashboard["panels"]) {
    for (const Json& target : panel["targets"]) check(target["expr"]);
  }
  EXPECT_GT(expressions, 30);
}

}  // namespace
}  // namespace nibble
