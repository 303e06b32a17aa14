// nibble serve's settings, from wherever they come; the server itself is tested in tests/server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProgramRun;
using testing::run_nibble;

// This process's own: another checkout's tests may run at the same time.
struct ConfigFolder {
  std::string path = (std::filesystem::temp_directory_path() / "nibble-serve-XXXXXX").string();

  ConfigFolder() { NIBBLE_CHECK(::mkdtemp(path.data()) != nullptr); }
  ~ConfigFolder() { std::filesystem::remove_all(path); }
  ConfigFolder(const ConfigFolder&) = delete;
  ConfigFolder& operator=(const ConfigFolder&) = delete;
};

std::string config_file(const std::string& name, const std::string& text) {
  static const ConfigFolder kFolder;
  std::string path = kFolder.path + "/" + name;
  std::ofstream(path) << text;
  return path;
}

ProgramRun dry_run(std::vector<std::string> arguments,
                   const std::vector<std::pair<std::string, std::string>>& environment = {}) {
  arguments.insert(arguments.begin(), {"serve", NIBBLE_SOURCE_DIR "/models/demo", "--dry_run"});
  return run_nibble(arguments, "", environment);
}

nlohmann::json configuration(const ProgramRun& run) {
  return nlohmann::json::parse(run.out, nullptr, false);
}

TEST(Serve, TheCardsCommandLineWorksOnOneDevice) {
  const std::string yaml = config_file("nibble-card.yaml",
                                       "moe_backend: TRTLLM\n"
                                       "use_cuda_graph: true\n"
                                       "speculative_config:\n"
                                       "    decoding_type: MTP\n"
                                       "    num_nextn_predict_layers: 3\n"
                                       "    use_relaxed_acceptance_for_thinking: true\n"
                                       "    relaxed_topk: 10\n"
                                       "    relaxed_delta: 0.6\n");
  const std::vector<std::string> card = {"--host",
                                         "0.0.0.0",
                                         "--port",
                                         "8000",
                                         "--backend",
                                         "pytorch",
                                         "--max_batch_size",
                                         "4",
                                         "--ep_size",
                                         "1",
                                         "--max_num_tokens",
                                         "32768",
                                         "--trust_remote_code",
                                         "--extra_llm_api_options",
                                         yaml,
                                         "--kv_cache_free_gpu_memory_fraction",
                                         "0.75",
                                         "--log-level",
                                         "info"};
  std::vector<std::string> one = card;
  one.insert(one.end(), {"--tp_size", "1"});
  const ProgramRun run = dry_run(one);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto json = configuration(run);
  EXPECT_EQ(json["max_batch_size"], 4);
  EXPECT_EQ(json["max_num_tokens"], 32768);
  EXPECT_EQ(json["num_drafts"], 3);
  EXPECT_EQ(json["kv_cache_free_gpu_memory_fraction"], 0.75);
  EXPECT_EQ(json["use_relaxed_acceptance_for_thinking"], true);
  for (const char* note :
       {"backend pytorch", "trust_remote_code", "moe_config.backend TRTLLM", "use_cuda_graph"}) {
    EXPECT_THAT(run.err, HasSubstr(note));
  }
  std::vector<std::string> eight = card;
  eight.insert(eight.end(), {"--tp_size", "8", "--ep_size", "2"});
  const ProgramRun many = dry_run(eight);
  // Understood, and this small model can't be cut so.
  EXPECT_EQ(many.exit_code, 2);
  EXPECT_THAT(many.err, HasSubstr("4 attention heads cannot be cut into 8 equal parts"));
  EXPECT_EQ(configuration(many)["tp_size"], 8);
  EXPECT_EQ(configuration(many)["ep_size"], 2);
  EXPECT_EQ(configuration(many)["memory_plan"]["fits"], false);
  one.insert(one.end(), {"--pp_size", "2"});
  const ProgramRun refused = dry_run(one);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("--pp_size: 2 is not supported"));
}

TEST(Serve, DeviceAndBackendSayTheSameOrAreRefused) {
  const std::string automatic = config_file("nibble-auto.yaml", "backend: auto\n");
  const auto backend_of = [](const std::vector<std::string>& arguments) {
    // What is understood is told before a plan that needs a GPU.
    return configuration(dry_run(arguments))["backend"];
  };
  EXPECT_EQ(backend_of({}), "auto");
  EXPECT_EQ(backend_of({"--device", "cuda", "--backend", "pytorch"}), "cuda");
  EXPECT_EQ(backend_of({"--device", "cpu", "--backend", "reference"}), "reference");
  EXPECT_EQ(backend_of({"--device", "cuda", "--config", automatic}), "cuda");
  EXPECT_EQ(backend_of({"--backend", "cuda", "--config", automatic}), "auto");  // the file wins
  const ProgramRun both = dry_run({"--device", "cuda", "--backend", "cpu"});
  EXPECT_EQ(both.exit_code, 2);
  EXPECT_THAT(both.err, HasSubstr("device is 'cuda' and backend is 'cpu'"));
}

TEST(Serve, NewKeysAndOldKeysMeanTheSame) {
  const auto old_keys = config_file("nibble-old.yaml", "kv_cache_dtype: fp8\nmoe_backend: AUTO\n");
  const auto new_keys = config_file("nibble-new.yaml",
                                    "kv_cache_config: {dtype: fp8, tokens_per_block: 64}\n"
                                    "moe_config:\n  backend: AUTO\ncuda_graph_config: {}\n");
  EXPECT_EQ(dry_run({"--config", old_keys}).exit_code, 0);
  const ProgramRun run = dry_run({"--config", new_keys});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(configuration(run)["tokens_per_block"], 64);
  const auto both =
      config_file("nibble-both.yaml", "moe_backend: TRTLLM\nmoe_config: {backend: CUTLASS}\n");
  const ProgramRun conflict = dry_run({"--config", both});
  EXPECT_EQ(conflict.exit_code, 2);
  EXPECT_THAT(conflict.err, HasSubstr("nibble-both.yaml:2: moe_config.backend is CUTLASS, but"));
}

// What nibble run --help lists under experts in tiers, serve takes, too, with the same checks.
TEST(Serve, TakesTheExpertOptionsOfRun) {
  const std::vector<std::pair<std::string, std::string>> good = {{"expert_memory", "6MB"},
                                                                 {"expert_memory", "6000000"},
                                                                 {"ram", "6MB"},
                                                                 {"gpu_expert_memory", "1GB"},
                                                                 {"gpu_expert_slots", "3"},
                                                                 {"gpu_reserved", "1GB"},
                                                                 {"copy_streams", "2"},
                                                                 {"cpu_experts", "auto"},
                                                                 {"expert_preset", "low-latency"},
                                                                 {"expert_cache", "lru"},
                                                                 {"ageing_tokens", "64"},
                                                                 {"hot_experts", "hot.txt"},
                                                                 {"prefetch_layers", "0"},
                                                                 {"prefetch_min_score", "0.5"},
                                                                 {"io", "pread"},
                                                                 {"io_depth", "8"},
                                                                 {"routing_trace", "t.txt"}};
  const std::string help = run_nibble({"run", "--help"}).out;
  for (const auto& [name, value] : good) {
    const ProgramRun run = dry_run({"--" + name, value});
    EXPECT_EQ(run.exit_code, 0) << name << ": " << run.err;
    std::string option = "--" + name;
    std::replace(option.begin(), option.end(), '_', '-');
    EXPECT_THAT(help, HasSubstr(option));
  }
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{"--gpu_reserved", "much"}, "'much' is no size"},
      {{"--gpu_reserved", "0"}, "gpu_reserved: 0 is no whole number in 1.."},
      {{"--cpu_experts", "alle"}, "did you mean 'all'?"},
      {{"--expert_preset", "balance"}, "did you mean 'balanced'?"},
      {{"--ageing_tokens", "0"}, "0 is no whole number in 1.."},
      {{"--prefetch_min_score", "-1"}, "prefetch_min_score: -1 is"}};
  for (const auto& [options, message] : bad) {
    const ProgramRun run = dry_run(options);
    EXPECT_EQ(run.exit_code, 2) << options[0];
    EXPECT_THAT(run.err, HasSubstr(message));
  }
  const std::vector<std::pair<std::string, std::string>> refused = {
      {"max_experts", "change the result; gpu_expert_slots"},
      {"sliding_window", "changes the result"}};
  for (const auto& [name, message] : refused) {
    const ProgramRun run = dry_run({"--" + name, "4"});
    EXPECT_EQ(run.exit_code, 1) << name;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST(Serve, EveryProblemOfAFileIsTold) {
  const auto bad = config_file("nibble-bad.yaml",
                               "use_cudagraph: true\n"
                               "relaxed_topkk: 10\n"
                               "max_batch_size: many\n"
                               "speculative_config:\n"
                               "  relaxed_delta: 6\n"
                               "  decoding_typ: MTP\n"
                               "relaxed_topk: 10\n"
                               "tokens_per_block: 64\n");
  const ProgramRun run = dry_run({"--config", bad});
  EXPECT_EQ(run.exit_code, 2);
  for (const char* line :
       {"nibble-bad.yaml:1: unknown key 'use_cudagraph'; did you mean 'use_cuda_graph'",
        "nibble-bad.yaml:2: unknown key 'relaxed_topkk' at top level; did you mean "
        "'speculative_config.relaxed_topk'?",
        "nibble-bad.yaml:3: max_batch_size: many is no whole number",
        "nibble-bad.yaml:5: speculative_config.relaxed_delta: 6 is out of range 0..1",
        "nibble-bad.yaml:6: unknown key 'speculative_config.decoding_typ'; did you mean "
        "'decoding_type'",
        "nibble-bad.yaml:7: unknown key 'relaxed_topk' at top level; did you mean "
        "'speculative_config.relaxed_topk'?",
        "nibble-bad.yaml:8: unknown key 'tokens_per_block' at top level; did you mean "
        "'kv_cache_config.tokens_per_block'?"}) {
    EXPECT_THAT(run.err, HasSubstr(line));
  }
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"a: &x 1\nb: *x\n", "anchors"},
      {"port: 1\nport: 2\n", "stands twice"},
      {"port: !!int 8\n", "the tag"},
      {"port: 1\n---\nport: 2\n", "more than one document"},
      {"port: [1\n", "nibble-one.yaml:"},
      {"- port\n", "a list"},
      {"decoding_type: 3\n", "unknown"},
      {"speculative_config: {decoding_type: Eagle}\n", "Eagle"}};
  for (const auto& [text, message] : cases) {
    SCOPED_TRACE(text);
    const ProgramRun one = dry_run({"--config", config_file("nibble-one.yaml", text)});
    EXPECT_NE(one.exit_code, 0);
    EXPECT_THAT(one.err, HasSubstr(message));
  }
}

TEST(Serve, AFileWinsOverTheCommandLineAndThatOverTheEnvironment) {
  const auto file = config_file("nibble-wins.yaml", "max_batch_size: 7\n");
  const std::vector<std::pair<std::string, std::string>> environment = {
      {"NIBBLE_SERVE_MAX_BATCH_SIZE", "5"}, {"NIBBLE_SERVE_PORT", "9001"}};
  EXPECT_EQ(configuration(dry_run({}, environment))["max_batch_size"], 5);
  EXPECT_EQ(configuration(dry_run({"--max-batch-size=6"}, environment))["max_batch_size"], 6);
  const ProgramRun all =
      dry_run({"--max_batch_size", "6", "--config", file, "--log-level", "info"}, environment);
  EXPECT_EQ(configuration(all)["max_batch_size"], 7);
  EXPECT_EQ(configuration(all)["port"], 9001);
  EXPECT_THAT(all.err, HasSubstr("which wins over the command line's 6"));
  const ProgramRun wrong = dry_run({}, {{"NIBBLE_SERVE_PORT", "x"}});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("NIBBLE_SERVE_PORT"));
}

TEST(Serve, UnknownVariablesAreToldWithTheNearest) {
  const ProgramRun run = dry_run({}, {{"NIBBLE_SERVE_MAX_BATCHSIZE", "3"}});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("unknown variable 'NIBBLE_SERVE_MAX_BATCHSIZE'; did you mean "
                                 "'NIBBLE_SERVE_MAX_BATCH_SIZE'"));
}

TEST(Serve, EveryProblemIsToldAtOnceWhereverItStands) {
  const auto bad = config_file("nibble-some.yaml", "max_queue_size: -1\n");
  const ProgramRun run =
      dry_run({"--port", "70000", "--thinking", "maybe", "--pp_size", "2", "--config", bad},
              {{"NIBBLE_SERVE_THREADS", "x"}});
  EXPECT_EQ(run.exit_code, 2);
  for (const char* line : {"--port: 70000", "--thinking: 'maybe'", "--pp_size: 2 is not supported",
                           "nibble-some.yaml:1: max_queue_size", "NIBBLE_SERVE_THREADS: x"}) {
    EXPECT_THAT(run.err, HasSubstr(line));
  }
}

TEST(Serve, DraftsFollowTheKeysOfTrtllm) {
  const auto good = config_file("nibble-drafts.yaml",
                                "speculative_config:\n"
                                "  decoding_type: MTP\n"
                                "  max_draft_len: 3\n"
                                "  draft_len_schedule: {1: 3, 8: 1, 32: 0}\n"
                                "  max_concurrency: 64\n"
                                "  acceptance_window: 100\n"
                                "  acceptance_length_threshold: 1.2\n"
                                "cuda_graph_config: null\n");
  const ProgramRun run = dry_run({"--config", good});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(configuration(run)["num_drafts"], 3);
  EXPECT_EQ(configuration(run)["cuda_graphs"], false);
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"speculative_config: {decoding_type: MTP, draft_len_schedule: {few: 1}}\n",
       "draft_len_schedule.few: few is no whole number"},
      {"speculative_config: {decoding_type: MTP, draft_len_schedule: {1: 9}}\n", "9 is no whole"},
      {"speculative_config: {decoding_type: MTP, draft_len_schedule: {1: 3}}\n",
       "draft_len_schedule"},
      {"cuda_graph_config: {batch_sizes: [1, 2, 4], max_batch_size: 8}\n",
       "max_batch_size is 8, but the largest of its batch_sizes is 4"},
      {"moe_config: {load_balancer: {num_slots: 288}}\n", "experts are not moved"}};
  for (const auto& [text, message] : bad) {
    SCOPED_TRACE(text);
    const ProgramRun one = dry_run({"--config", config_file("nibble-one.yaml", text)});
    EXPECT_NE(one.exit_code, 0);
    EXPECT_THAT(one.err, HasSubstr(message));
  }
}

TEST(Serve, ADryRunTellsWhatMemoryIsFor) {
  const ProgramRun run = dry_run({"--kv_cache_max_tokens", "8192", "--max_seq_len", "2048"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto plan = configuration(run)["memory_plan"];
  EXPECT_EQ(plan["fits"], true);
  EXPECT_EQ(plan["kv_cache_tokens"], 8192);
  // 576 values in BF16 for each of 4 layers; the FP8 file without its MTP layer.
  EXPECT_EQ(plan["kv_cache_bytes"], 8192 * 576 * 2 * 4);
  EXPECT_EQ(plan["max_seq_len"], 2048);
  EXPECT_GT(plan["weight_bytes"], 25'000'000);
  EXPECT_LT(plan["weight_bytes"], 36'000'000);
  const ProgramRun small = dry_run({"--kv_cache_max_tokens", "128", "--max_seq_len", "2048"});
  EXPECT_EQ(small.exit_code, 1);
  EXPECT_EQ(configuration(small)["memory_plan"]["fits"], false);
  EXPECT_THAT(small.err, HasSubstr("max_seq_len is 2048 tokens"));
  const ProgramRun large = dry_run({"--kv_cache_max_tokens", "1000000000000"});
  EXPECT_EQ(large.exit_code, 1);
  EXPECT_THAT(large.err, HasSubstr("are free on"));
}

TEST(Serve, BadOptionsAreUsageErrors) {
  EXPECT_THAT(dry_run({"--tp-sise", "1"}).err, HasSubstr("did you mean '--tp_size'"));
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"--port", "70000"},
                                             {"--kv_cache_free_gpu_memory_fraction", "1.5"},
                                             {"--backend", "onnx"},
                                             {"--ssl_certfile", "x"},
                                             {"--thinking", "maybe"},
                                             {"--max_num_tokens", "8"},
                                             {"--api_key_env", "NIBBLE_NO_SUCH_VARIABLE"}}) {
    EXPECT_EQ(dry_run(arguments).exit_code, 2) << arguments[0];
  }
}

// The words of a JSON or YAML list, or of a command line, behind `mark`.
std::vector<std::string> words_behind(const std::string& file, const std::string& mark) {
  std::ifstream in(std::string(NIBBLE_SOURCE_DIR "/packaging/") + file);
  for (std::string line; std::getline(in, line);) {
    const size_t at = line.find_first_not_of(' ');  // HEALTHCHECK has a CMD, too
    if (at == std::string::npos || line.compare(at, mark.size(), mark) != 0) continue;
    std::string rest = line.substr(at + mark.size());
    for (char& c : rest) {
      if (std::string_view("[]\",").find(c) != std::string_view::npos) c = ' ';
    }
    std::istringstream stream(rest);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
  }
  return {};
}

TEST(Serve, ThePackagesOptionsAreOnes) {
  const std::string config = config_file("nibble-package.yaml", "max_batch_size: 4\n");
  for (const auto& [file, mark] :
       std::vector<std::pair<std::string, std::string>>{{"nibble.service", "ExecStart="},
                                                        {"kubernetes.yaml", "args:"},
                                                        {"Dockerfile", "CMD ["}}) {
    SCOPED_TRACE(file);
    std::vector<std::string> words = words_behind(file, mark);
    const auto model = std::find_if(words.begin(), words.end(), [](const std::string& word) {
      return word == "/model" || word == "${NIBBLE_MODEL}";
    });
    ASSERT_NE(model, words.end());
    std::vector<std::string> options(model + 1, words.end());
    for (std::string& word : options) {
      if (word.ends_with("serve.yaml")) word = config;
    }
    const ProgramRun run = dry_run(options, {{"NIBBLE_API_KEYS", "a,b"}});
    EXPECT_EQ(run.exit_code, 0) << run.err;
  }
}

TEST(Serve, KeysAreNeverPrinted) {
  const ProgramRun run = dry_run({"--api_key", "very-secret", "--log-level", "trace"});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out + run.err, Not(HasSubstr("very-secret")));
  EXPECT_EQ(configuration(run)["api_keys"], 1);
}

}  // namespace
}  // namespace nibble
