// The table of settings.
#include "nibble/cli/serve_options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/cli/serve_setters.h"
#include "nibble/engine/kv_cache.h"

namespace nibble {
namespace {

constexpr const char* kServer = "Server";
constexpr const char* kModel = "Model";
constexpr const char* kEngine = "Engine";
constexpr const char* kLimits = "Limits";
constexpr const char* kAccess = "Access";

using Options = ServeOptions;
using Duration = std::chrono::milliseconds;

Duration to_duration(double seconds) { return Duration(static_cast<int64_t>(seconds * 1000)); }

void add_server_settings(std::vector<ServeSetting>& s) {
  s.push_back({"host",
               {},
               {},
               kServer,
               "Address or name to listen on [localhost]",
               "HOST",
               text([](Options& o, const std::string& v) { o.http.host = v; })});
  s.push_back(
      {"port",
       {},
       {},
       kServer,
       "0 picks a free one [8000]",
       "PORT",
       integer(0, 65535, [](Options& o, int64_t v) { o.http.port = static_cast<uint16_t>(v); })});
  s.push_back({"uds",
               {},
               {},
               kServer,
               "Unix socket to listen on, instead of host and port",
               "PATH",
               text([](Options& o, const std::string& v) { o.http.unix_socket = v; })});
  s.push_back({"ssl_certfile",
               {},
               {},
               kServer,
               "PEM certificate chain: serve https",
               "FILE",
               text([](Options& o, const std::string& v) { o.http.certificate_file = v; })});
  s.push_back({"ssl_keyfile",
               {},
               {},
               kServer,
               "PEM private key",
               "FILE",
               text([](Options& o, const std::string& v) { o.http.key_file = v; })});
  s.push_back(
      {"served_model_name",
       {},
       {},
       kServer,
       "Names accepted as `model`, separated by commas [MODEL and its last part]",
       "NAMES",
       text([](Options& o, const std::string& v) { o.served_model_names = split_list(v); })});
  s.push_back({"keepalive_interval",
               {},
               {},
               kServer,
               "Seconds of silence before a stream gets a comment [5]",
               "S",
               number(0.1, 3600, [](Options& o, double v) {
                 o.service.keepalive_interval = to_duration(v);
               })});
  s.push_back({"shutdown_timeout",
               {},
               {},
               kServer,
               "Seconds that running requests get after SIGTERM [25]",
               "S",
               number(0, 86400, [](Options& o, double v) { o.shutdown_timeout = v; })});
  s.push_back(
      {"no_web_ui", {}, {}, kServer, "No chat page at /", "", boolean([](Options& o, bool v) {
         o.service.web_ui = !v;
       })});
  s.push_back({"no_metrics", {}, {}, kServer, "No /metrics", "", boolean([](Options& o, bool v) {
                 o.service.metrics = !v;
               })});
  s.push_back({"log_format",
               {},
               {},
               kServer,
               "text or json [text]",
               "FORMAT",
               one_of({"text", "json"},
                      [](Options& o, const std::string& v) { o.service.log_json = v == "json"; })});
  s.push_back({"log_prompts",
               {},
               {},
               kServer,
               "Write prompts and outputs to the log",
               "",
               boolean([](Options& o, bool v) { o.service.log_prompts = v; })});
  s.push_back(
      {"dry_run",
       {},
       {},
       kServer,
       "Print the effective configuration and the memory plan; 0 if it fits, 1 if not, 2 for a "
       "split that the model does not allow",
       "",
       boolean([](Options& o, bool v) { o.dry_run = v; })});
}

void add_model_settings(std::vector<ServeSetting>& s) {
  s.push_back({"chat_template",
               {},
               {},
               kModel,
               "Template file, or deepseek_r1, deepseek_r1_0528, deepseek_v3 [the model's]",
               "NAME",
               text([](Options& o, const std::string& v) { o.chat_template = v; })});
  s.push_back(
      {"thinking",
       {},
       {},
       kModel,
       "auto, on or off where a request is silent [auto]",
       "MODE",
       one_of({"auto", "on", "off"}, [](Options& o, const std::string& v) { o.thinking = v; })});
  s.push_back({"reasoning_parser",
               {},
               {},
               kModel,
               "auto, deepseek-r1 or none [auto]",
               "NAME",
               one_of({"auto", "deepseek-r1", "deepseek_r1", "none"},
                      [](Options& o, const std::string& v) { o.reasoning_parser = v; })});
  s.push_back({"tool_parser",
               {"tool_call_parser"},
               {},
               kModel,
               "auto, deepseek_v3, deepseek_v31 or none [auto]",
               "NAME",
               one_of({"auto", "deepseek_v3", "deepseek_v31", "none"},
                      [](Options& o, const std::string& v) { o.tool_parser = v; })});
  s.push_back({"reasoning_fields",
               {},
               {},
               kModel,
               "Names of reasoning in replies: both, reasoning_content, reasoning [both]",
               "NAMES",
               one_of({"both", "reasoning_content", "reasoning"},
                      [](Options& o, const std::string& v) { o.reasoning_fields = v; })});
  s.push_back({"sampling_defaults",
               {},
               {},
               kModel,
               "Where a request is silent: the model's values, or openai's 1 and 1 [model]",
               "WHAT",
               one_of({"model", "openai"},
                      [](Options& o, const std::string& v) { o.sampling_defaults = v; })});
  s.push_back({"max_new_tokens",
               {},
               {},
               kModel,
               "Default of max_tokens [rest of the context]",
               "N",
               integer(1, 1 << 30, [](Options& o, int64_t v) { o.max_new_tokens = v; })});
  s.push_back({"max_logprobs",
               {},
               {},
               kModel,
               "Highest logprobs of a request [20]",
               "N",
               integer(0, 20, [](Options& o, int64_t v) { o.max_logprobs = v; })});
  s.push_back({"logprobs_mode",
               {},
               {},
               kModel,
               "raw or processed [raw]",
               "MODE",
               one_of({"raw", "processed"}, [](Options& o, const std::string& v) {
                 o.engine.processed_logprobs = v == "processed";
               })});
  s.push_back({"strict_request_fields",
               {},
               {},
               kModel,
               "Refuse requests with unknown fields",
               "",
               boolean([](Options& o, bool v) { o.strict_request_fields = v; })});
  s.push_back({"allow_special_in_content",
               {},
               {},
               kModel,
               "Take special tokens spelled in messages for what they spell",
               "",
               boolean([](Options& o, bool v) { o.allow_special_in_content = v; })});
}

void add_engine_settings(std::vector<ServeSetting>& s) {
  s.push_back({"max_batch_size",
               {"max_batch"},
               {},
               kEngine,
               "Sequences of a step [32]",
               "N",
               integer(1, 65536, [](Options& o, int64_t v) { o.engine.max_batch_size = v; })});
  s.push_back({"max_num_tokens",
               {},
               {},
               kEngine,
               "Tokens of a step [512]",
               "N",
               integer(1, 1 << 24, [](Options& o, int64_t v) { o.engine.max_num_tokens = v; })});
  s.push_back(
      {"max_seq_len",
       {},
       {},
       kEngine,
       "Context, prompt and output [the model's]",
       "N",
       integer(2, 1 << 30, [](Options& o, int64_t v) { o.model_options.max_seq_len = v; })});
  s.push_back({"kv_cache_free_gpu_memory_fraction",
               {"free_gpu_memory_fraction", "kv_fraction"},
               {"kv_cache_config.free_gpu_memory_fraction"},
               kEngine,
               "Share of the free memory for the KV cache [0.9 of a GPU's, 0.3]",
               "X",
               number(0.001, 1, [](Options& o, double v) {
                 o.engine.kv_cache_free_gpu_memory_fraction = v;
               })});
  s.push_back(
      {"kv_cache_max_tokens",
       {},
       {"kv_cache_config.max_tokens"},
       kEngine,
       "Tokens of the KV cache, instead of a share of memory",
       "N",
       integer(64, int64_t{1} << 40, [](Options& o, int64_t v) { o.kv_cache_max_tokens = v; })});
  s.push_back({"kv_cache_dtype",
               {"kv"},
               {"kv_cache_config.dtype"},
               kEngine,
               "auto, bf16, fp8 or f32 [auto: what the checkpoint asks for]",
               "TYPE",
               [](Options& o, const std::string& v) -> Status {
                 o.engine.kv_cache_dtype.reset();
                 if (v != "auto") o.engine.kv_cache_dtype = NIBBLE_TRY(parse_kv_cache_dtype(v));
                 return {};
               }});
  s.push_back({"tokens_per_block",
               {"block_size"},
               {"kv_cache_config.tokens_per_block"},
               kEngine,
               "Tokens of a KV cache block: 16, 32, 64 or 128 [32]",
               "N",
               one_of({"16", "32", "64", "128"}, [](Options& o, const std::string& v) {
                 o.engine.block_size = std::stoll(v);
               })});
  s.push_back({"enable_block_reuse",
               {"enable_prefix_caching"},
               {"kv_cache_config.enable_block_reuse"},
               kEngine,
               "Share equal prefixes [on]",
               "",
               boolean([](Options& o, bool v) { o.engine.enable_block_reuse = v; })});
  s.push_back({"enable_chunked_prefill",
               {},
               {},
               kEngine,
               "Cut long prompts into steps [on]",
               "",
               boolean([](Options& o, bool v) { o.engine.enable_chunked_prefill = v; })});
  s.push_back({"num_drafts",
               {},
               {"speculative_config.num_nextn_predict_layers", "speculative_config.max_draft_len",
                "speculative_config.num_speculative_tokens"},
               kEngine,
               "Tokens that the MTP layer proposes in each step, 0..8 [0]",
               "N",
               integer(0, 8, [](Options& o, int64_t v) { o.engine.num_drafts = v; })});
  s.push_back({"draft_sampling",
               {},
               {"speculative_config.draft_sampling"},
               kEngine,
               "Draw drafts instead of taking the likeliest; the law of the text stays",
               "",
               boolean([](Options& o, bool v) { o.engine.draft.draft_sampling = v; })});
  s.push_back({"use_relaxed_acceptance_for_thinking",
               {},
               {"speculative_config.use_relaxed_acceptance_for_thinking"},
               kEngine,
               "Judge drafts loosely while the model thinks (lossy)",
               "",
               boolean([](Options& o, bool v) { o.engine.relaxed_thinking.enabled = v; })});
  s.push_back(
      {"relaxed_topk",
       {},
       {"speculative_config.relaxed_topk"},
       kEngine,
       "Of that: among the k likeliest [1]",
       "K",
       integer(1, 1 << 20, [](Options& o, int64_t v) { o.engine.relaxed_thinking.topk = v; })});
  s.push_back({"relaxed_delta",
               {},
               {"speculative_config.relaxed_delta"},
               kEngine,
               "Of that: at most so far below the likeliest, 0..1 [0]",
               "X",
               number(0, 1, [](Options& o, double v) { o.engine.relaxed_thinking.delta = v; })});
  s.push_back({"device",
               {},
               {},
               kEngine,
               "auto, cpu or cuda; as --backend of that name [auto: cpu]",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 if (v != "auto" && v != "cpu" && v != "cuda") {
                   return unsupported(
                       fmt::format("'{}' is not supported; there are auto, cpu and cuda", v));
                 }
                 o.device = v;
                 return {};
               }});
  s.push_back({"threads",
               {},
               {},
               kEngine,
               "Threads [all processors]",
               "N",
               integer(0, 1024, [](Options& o, int64_t v) {
                 o.model_options.threads = static_cast<int>(v);
               })});
  s.push_back({"cpu_int8_activations",
               {},
               {},
               kEngine,
               "On cpu without AMX: activations of 8 bits, not of 16, for NVFP4 weights",
               "",
               boolean([](Options& o, bool v) { o.model_options.cpu_int8_activations = v; })});
  s.push_back({"cpu_exact_activations",
               {},
               {},
               kEngine,
               "On cpu with AMX: activations of 16 bits and more, as without, not BF16",
               "",
               boolean([](Options& o, bool v) { o.model_options.cpu_exact_activations = v; })});
  s.push_back({"weight_cache",
               {},
               {},
               kEngine,
               "Keep packed weights in DIR; the next start maps them",
               "DIR",
               text([](Options& o, const std::string& v) { o.model_options.weight_cache = v; })});
  s.push_back({"w4a4",
               {},
               {},
               kEngine,
               "Quantize activations to NVFP4 too, as Blackwell does",
               "",
               boolean([](Options& o, bool v) {
                 o.model_options.nvfp4_activation =
                     v ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
               })});
}

void add_limit_settings(std::vector<ServeSetting>& s) {
  s.push_back({"max_queue_size",
               {},
               {},
               kLimits,
               "Answers that may wait; beyond it 429 [4 x max_batch_size, in 16..4096]",
               "N",
               integer(0, 1 << 20, [](Options& o, int64_t v) { o.max_queue_size = v; })});
  s.push_back(
      {"max_requests_per_key",
       {},
       {},
       kLimits,
       "Requests of one key at once [no limit]",
       "N",
       integer(0, 1 << 20, [](Options& o, int64_t v) { o.service.max_requests_per_key = v; })});
  s.push_back(
      {"request_timeout",
       {},
       {},
       kLimits,
       "Seconds for a whole request [no limit]",
       "S",
       number(0, 1e6, [](Options& o, double v) { o.service.request_timeout = to_duration(v); })});
  s.push_back(
      {"queue_timeout",
       {},
       {},
       kLimits,
       "Seconds that a request may wait [600]",
       "S",
       number(0, 1e6, [](Options& o, double v) { o.service.queue_timeout = to_duration(v); })});
  s.push_back(
      {"stall_timeout",
       {},
       {},
       kLimits,
       "Seconds without a step until /live fails [120]",
       "S",
       number(1, 1e6, [](Options& o, double v) { o.service.stall_timeout = to_duration(v); })});
  s.push_back({"max_request_bytes",
               {},
               {},
               kLimits,
               "Of a body [33554432]",
               "N",
               integer(1024, int64_t{1} << 32, [](Options& o, int64_t v) {
                 o.service.max_request_bytes = static_cast<size_t>(v);
               })});
  s.push_back({"max_connections",
               {},
               {},
               kLimits,
               "Open at once [4096]",
               "N",
               integer(1, 1 << 20, [](Options& o, int64_t v) { o.http.max_connections = v; })});
  s.push_back(
      {"stream_write_timeout",
       {},
       {},
       kLimits,
       "Seconds after which a client that reads nothing is dropped [60]",
       "S",
       number(0.1, 86400, [](Options& o, double v) { o.http.write_timeout = to_duration(v); })});
}

void add_access_settings(std::vector<ServeSetting>& s) {
  s.push_back({"api_key",
               {},
               {},
               kAccess,
               "Keys that clients need, separated by commas",
               "KEYS",
               text([](Options& o, const std::string& v) {
                 for (std::string& key : split_list(v)) {
                   o.service.access.api_keys.push_back(std::move(key));
                 }
               })});
  s.push_back({"api_key_file",
               {},
               {},
               kAccess,
               "File with one key a line; SIGHUP reads it again",
               "FILE",
               text([](Options& o, const std::string& v) { o.api_key_file = v; })});
  s.push_back({"api_key_env",
               {},
               {},
               kAccess,
               "Environment variable with keys",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 const char* value = std::getenv(v.c_str());
                 if (value == nullptr || *value == '\0') {
                   return invalid_argument(fmt::format("the variable {} is not set", v));
                 }
                 for (std::string& key : split_list(value)) {
                   o.service.access.api_keys.push_back(std::move(key));
                 }
                 return {};
               }});
  s.push_back({"admin_api_key",
               {},
               {},
               kAccess,
               "Key of /admin; without it there is no /admin",
               "KEY",
               text([](Options& o, const std::string& v) { o.service.access.admin_api_key = v; })});
  s.push_back({"cors_origins",
               {},
               {},
               kAccess,
               "Origins of web pages that may ask, or * [none]",
               "LIST",
               text([](Options& o, const std::string& v) {
                 o.service.access.cors_origins = split_list(v);
               })});
  s.push_back({"protect_metrics",
               {},
               {},
               kAccess,
               "/metrics needs a key too",
               "",
               boolean([](Options& o, bool v) { o.service.access.protect_metrics = v; })});
}

std::string folded(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

}  // namespace

const std::vector<ServeSetting>& serve_settings() {
  static const std::vector<ServeSetting> kSettings = [] {
    std::vector<ServeSetting> s;
    add_server_settings(s);
    add_model_settings(s);
    add_engine_settings(s);
    add_limit_settings(s);
    add_access_settings(s);
    add_expert_settings(s);
    add_compatible_settings(s);
    add_yaml_settings(s);
    return s;
  }();
  return kSettings;
}

const ServeSetting* find_serve_setting(std::string_view name) {
  const std::string wanted = folded(name);
  const auto among = [&](const std::vector<std::string>& names) {
    return std::find(names.begin(), names.end(), wanted) != names.end();
  };
  for (const ServeSetting& setting : serve_settings()) {
    if ((!setting.name.empty() && setting.name == wanted) || among(setting.aliases) ||
        among(setting.yaml_paths)) {
      return &setting;
    }
  }
  return nullptr;
}

Status apply_environment(ServeOptions* options) {
  constexpr std::string_view kPrefix = "NIBBLE_SERVE_";
  std::vector<std::string> known;
  Problems problems;
  for (const ServeSetting& setting : serve_settings()) {
    if (setting.name.empty()) continue;
    std::string variable = std::string(kPrefix) + setting.name;
    std::transform(variable.begin(), variable.end(), variable.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    const char* value = std::getenv(variable.c_str());
    if (value != nullptr) problems.add(with_context(setting.set(*options, value), variable));
    known.push_back(std::move(variable));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string name(text.substr(0, text.find('=')));
    if (!name.starts_with(kPrefix) || std::find(known.begin(), known.end(), name) != known.end()) {
      continue;
    }
    problems.add(
        invalid_argument(fmt::format("unknown variable '{}'{}", name, did_you_mean(name, known))));
  }
  return problems.status();
}

}  // namespace nibble
