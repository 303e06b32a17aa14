// Settings for those who come from trtllm-serve: accepted, or refused by name.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "nibble/base/error.h"
#include "nibble/cli/serve_setters.h"

namespace nibble {
namespace {

constexpr const char* kCompat = "Known from trtllm-serve";

}  // namespace

void add_compatible_settings(std::vector<ServeSetting>& s) {
  s.push_back({"backend",
               {},
               {},
               kCompat,
               "auto, cpu, cuda, reference; pytorch, tensorrt, trt, _autodeploy: no effect [auto]",
               "NAME",
               [](ServeOptions& o, const std::string& v) -> Status {
                 if (v == "auto" || v == "cpu" || v == "cuda" || v == "reference") {
                   o.model_options.backend = v;
                   return {};
                 }
                 if (v != "pytorch" && v != "tensorrt" && v != "trt" && v != "_autodeploy") {
                   return invalid_argument(fmt::format(
                       "'{}' is not one of auto, cpu, cuda, reference, pytorch, tensorrt, trt", v));
                 }
                 o.notes.push_back(
                     fmt::format("backend {}: accepted without effect (nibble is the engine)", v));
                 return {};
               }});
  s.push_back({"use_cuda_graph",
               {},
               {},
               kCompat,
               "On cuda: record and replay the steps of decoding [true]",
               "",
               [](ServeOptions& o, const std::string& v) -> Status {
                 o.engine.cuda_graphs = NIBBLE_TRY(parse_boolean(v));
                 o.notes.push_back(fmt::format("use_cuda_graph {}: of the cuda backend alone", v));
                 return {};
               }});
  s.push_back({"disable_cuda_graphs",
               {"no_graphs"},
               {},
               kCompat,
               "The same as --no-use_cuda_graph",
               "",
               boolean([](ServeOptions& o, bool v) { o.engine.cuda_graphs = !v; })});
  s.push_back({"cuda_graph_batch_sizes",
               {},
               {"cuda_graph_config.batch_sizes"},
               kCompat,
               "On cuda: batch sizes recorded at the start [as they come]",
               "N,N,...",
               [](ServeOptions& o, const std::string& v) -> Status {
                 o.engine.cuda_graph_batch_sizes.clear();
                 for (const std::string& size : split_list(v)) {
                   o.engine.cuda_graph_batch_sizes.push_back(
                       NIBBLE_TRY(parse_integer(size, 1, 65536)));
                 }
                 return {};
               }});
  s.push_back({"cuda_batch_invariant",
               {"deterministic"},
               {},
               kCompat,
               "On cuda: the same bits in every batch, at some cost",
               "",
               boolean([](ServeOptions& o, bool v) { o.model_options.cuda.batch_invariant = v; })});
  s.push_back({"tp_size",
               {"tensor_parallel_size", "tp"},
               {},
               kCompat,
               "Ranks that split the model [1, or the MPI job's]",
               "N",
               integer(1, 1024, [](ServeOptions& o, int64_t v) { o.parallel.tp_size = v; })});
  s.push_back({"ep_size",
               {"moe_expert_parallel_size", "ep"},
               {},
               kCompat,
               "Groups of ranks that split the experts [auto: 1]",
               "N",
               [](ServeOptions& o, const std::string& v) -> Status {
                 if (v != "auto") o.parallel.ep_size = NIBBLE_TRY(parse_integer(v, 1, 1024));
                 return {};
               }});
  s.push_back({"communicator",
               {},
               {},
               kCompat,
               "auto, threads or mpi [auto: mpi under mpirun]",
               "NAME",
               one_of({"auto", "threads", "mpi"},
                      [](ServeOptions& o, const std::string& v) { o.parallel.communicator = v; })});
  s.push_back({"rank_timeout",
               {},
               {},
               kCompat,
               "Seconds after which a silent rank is given up, with MPI [120]",
               "S",
               number(1, 86400, [](ServeOptions& o, double v) { o.parallel.rank_timeout = v; })});
  s.push_back(
      {"rank_interfaces",
       {},
       {},
       kCompat,
       "Network interfaces that the ranks' traffic may take, as eth0,eth1 [any]",
       "LIST",
       text([](ServeOptions& o, const std::string& v) { o.parallel.rank_interfaces = v; })});
  s.push_back(
      {"all2all_backend",
       {},
       {},
       kCompat,
       "How tokens reach other ranks' experts with attention DP: auto, allgather_reducescatter or "
       "alltoall [auto]",
       "NAME",
       text([](ServeOptions& o, const std::string& v) { o.parallel.all2all_backend = v; })});
  s.push_back(
      {"expert_placement",
       {},
       {},
       kCompat,
       "Which experts the groups of ep_size hold: a file of nibble trace --placement",
       "FILE",
       text([](ServeOptions& o, const std::string& v) { o.parallel.expert_placement = v; })});
  s.push_back({"pp_size",
               {"pipeline_parallel_size", "pp"},
               {},
               kCompat,
               "1",
               "N",
               single("pipelines need several")});
  s.push_back({"cp_size",
               {"context_parallel_size"},
               {},
               kCompat,
               "1",
               "N",
               single("context parallelism needs several")});
  s.push_back({"moe_cluster_parallel_size",
               {"cluster_size"},
               {},
               kCompat,
               "1",
               "N",
               single("clusters need several")});
  s.push_back({"moe_tensor_parallel_size",
               {},
               {},
               kCompat,
               "1",
               "N",
               single("tensor parallelism needs several")});
  s.push_back({"gpus_per_node",
               {},
               {},
               kCompat,
               "No effect",
               "N",
               noted("gpus_per_node", "each rank takes a GPU")});
  s.push_back({"max_beam_width",
               {},
               {},
               kCompat,
               "1",
               "N",
               [](ServeOptions&, const std::string& v) -> Status {
                 if (v == "1") return {};
                 return unsupported("beam search is not supported; use 1, and n for more answers");
               }});
  s.push_back({"trust_remote_code",
               {},
               {},
               kCompat,
               "No effect: no code of a checkpoint is ever run",
               "",
               noted("trust_remote_code", "no code of a checkpoint is ever run")});
  s.push_back({"enable_attention_dp",
               {"attention_dp"},
               {},
               kCompat,
               "Each rank has its own requests; experts are split over all",
               "",
               boolean([](ServeOptions& o, bool v) { o.parallel.enable_attention_dp = v; })});
  s.push_back({"num_postprocess_workers",
               {},
               {},
               kCompat,
               "No effect",
               "N",
               noted("num_postprocess_workers", "text is made beside the engine's thread")});
  s.push_back({"tokenizer",
               {},
               {},
               kCompat,
               "Only the model's own",
               "DIR",
               refused("a tokenizer apart from the model's is not supported; put its files into "
                       "the model's folder")});
  s.push_back({"custom_tokenizer",
               {},
               {},
               kCompat,
               "Refused",
               "NAME",
               refused("custom tokenizer code is never run; leave custom_tokenizer out")});
  s.push_back({"otlp_traces_endpoint",
               {},
               {},
               kCompat,
               "Refused",
               "URL",
               refused("exporting traces is not supported; traceparent headers are accepted")});
  s.push_back({"server_role",
               {"metadata_server_config_file"},
               {},
               kCompat,
               "Refused",
               "X",
               refused("disaggregated serving is not supported; start one server")});
  s.push_back({"fail_fast_on_attention_window_too_large",
               {},
               {},
               kCompat,
               "No effect",
               "",
               noted("fail_fast_on_attention_window_too_large",
                     "requests beyond the cache are "
                     "refused one by one")});
  s.push_back(
      {"guided_decoding_backend",
       {},
       {},
       kCompat,
       "auto, xgrammar or llguidance",
       "NAME",
       one_of({"auto", "xgrammar", "llguidance"}, [](ServeOptions&, const std::string&) {})});
}

// YAML alone.
void add_yaml_settings(std::vector<ServeSetting>& s) {
  const auto add = [&](std::vector<std::string> paths, Setter set) {
    s.push_back({"", {}, std::move(paths), "", "", "", std::move(set)});
  };
  add({"moe_config.backend", "moe_backend"},
      one_of({"AUTO", "CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "VANILLA", "TRITON"},
             [](ServeOptions& o, const std::string& v) {
               o.notes.push_back("moe_config.backend " + v +
                                 ": nibble's own kernels are used in its place");
             }));
  add({"speculative_config.decoding_type"}, [](ServeOptions& o, const std::string& v) -> Status {
    std::string upper = v;
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    if (upper != "MTP") {
      return unsupported(fmt::format("decoding_type {} is not supported; MTP is", v));
    }
    o.speculative_decoding_type = upper;
    return {};
  });
  add({"cuda_graph_config.max_batch_size", "cuda_graph_max_batch_size"},
      integer(1, 65536, [](ServeOptions& o, int64_t v) { o.cuda_graph_max_batch_size = v; }));
  add({"cuda_graph_config.enable_padding", "cuda_graph_padding_enabled"},
      noted("cuda_graph_config.enable_padding", "batches are padded to the sizes recorded"));
  // {} is on, null is off.
  add({"cuda_graph_config"}, [](ServeOptions& o, const std::string& v) -> Status {
    if (v != "{}" && v != "null") {
      return invalid_argument(fmt::format("'{}' is neither a block nor null", v));
    }
    o.engine.cuda_graphs = v == "{}";
    return {};
  });
  // Its keys are batch sizes: serve_config.cpp.
  add({"speculative_config.draft_len_schedule"}, [](ServeOptions&, const std::string& v) -> Status {
    if (v == "{}") return {};
    return invalid_argument(fmt::format("'{}' is no block of batch sizes and drafts", v));
  });
  add({"speculative_config.max_concurrency"},
      integer(0, 1 << 20, [](ServeOptions& o, int64_t v) { o.engine.draft.max_concurrency = v; }));
  add({"speculative_config.acceptance_window"}, integer(0, 1 << 20, [](ServeOptions& o, int64_t v) {
        o.engine.draft.acceptance_window = v;
      }));
  add({"speculative_config.acceptance_length_threshold"},
      number(0, 9,
             [](ServeOptions& o, double v) { o.engine.draft.acceptance_length_threshold = v; }));
  for (const char* path : {"print_iter_log",
                           "enable_iter_perf_stats",
                           "return_perf_metrics",
                           "torch_compile_config",
                           "autotuner_enabled",
                           "allreduce_strategy",
                           "stream_interval",
                           "load_format",
                           "moe_max_num_tokens",
                           "moe_config.max_num_tokens",
                           "enable_overlap_scheduler",
                           "disable_overlap_scheduler",
                           "kv_cache_config.enable_partial_reuse",
                           "attention_dp_config.enable_balance",
                           "attention_dp_config.timeout_iters",
                           "attention_dp_config.batching_wait_iters",
                           "speculative_config.use_mtp_vanilla",
                           "speculative_config.mtp_eagle_one_model",
                           "speculative_config.allow_advanced_sampling",
                           "speculative_config.begin_thinking_phase_token",
                           "speculative_config.end_thinking_phase_token",
                           "seed"}) {
    add({path}, noted(path, "it changes nothing here"));
  }
  for (const char* path :
       {"lora_config", "peft_cache_config", "kv_connector_config", "cache_transceiver_config",
        "sparse_attention_config", "enable_lm_head_tp_in_adp", "offload"}) {
    add({path}, refused(fmt::format("{} is not supported; leave it out", path)));
  }
  for (const char* path :
       {"moe_load_balancer", "moe_config.load_balancer", "moe_config.load_balancer.num_slots",
        "moe_config.load_balancer.layer_updates_per_iter"}) {
    add({path}, refused("experts are not moved while the model runs; leave it out, and place them "
                        "before with --expert_placement"));
  }
  add({"kv_cache_config.host_cache_size"}, [](ServeOptions&, const std::string& v) -> Status {
    if (v == "0") return {};
    return unsupported("a host cache beside the KV cache is not supported; use 0");
  });
  add({"scheduler_config.capacity_scheduler_policy", "capacity_scheduler_policy"},
      [](ServeOptions&, const std::string& v) -> Status {
        if (v == "MAX_UTILIZATION") return {};
        return unsupported(
            fmt::format("capacity_scheduler_policy {} is not supported; MAX_UTILIZATION is", v));
      });
}

}  // namespace nibble
