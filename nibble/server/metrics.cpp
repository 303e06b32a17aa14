#include "nibble/server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

constexpr double kFirstTokenBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                        1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kTokenBounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                   .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};
constexpr double kRequestBounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                     30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kDelayBounds[] = {.00002, .00005, .0001, .0002, .0003, .0005, .00075, .001,
                                   .0015,  .002,   .005,  .01,   .02,   .05,   .1,     1};
constexpr double kCountBounds[] = {1,   2,   5,   10,  20,  50,  100, 200, 500,
                                   1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5};

// A label's value: backslash, quote and line end are escaped.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

// NAME_bucket, NAME_sum and NAME_count; `labels` without braces. `counts`: of each bound, and of
// what is above all.
void print_buckets(std::string_view name, const std::string& labels, std::span<const double> bounds,
                   std::span<const int64_t> counts, double sum, std::string* out) {
  auto end = std::back_inserter(*out);
  int64_t total = 0;
  for (size_t i = 0; i < bounds.size(); ++i) {
    total += counts[i];
    fmt::format_to(end, "{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bounds[i], total);
  }
  total += counts.back();
  fmt::format_to(end, "{}_bucket{{{},le=\"+Inf\"}} {}\n", name, labels, total);
  fmt::format_to(end, "{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum, name, labels,
                 total);
}

class Page {
 public:
  explicit Page(const std::string& model_name)
      : labels_(fmt::format("model_name=\"{}\",engine=\"0\"", escaped(model_name))) {}

  void family(std::string_view name, std::string_view type, std::string_view help) {
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <typename Number>
  void value(std::string_view name, Number number, std::string_view more = "") {
    text_ += fmt::format("{}{{{}{}{}}} {}\n", name, labels_, more.empty() ? "" : ",", more, number);
  }
  template <typename Number>
  void single(std::string_view name, std::string_view type, std::string_view help, Number number) {
    family(name, type, help);
    value(name, number);
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& histogram) {
    histogram.print(name, help, labels_, &text_);
  }
  // One series of a histogram whose family() was told.
  void buckets(std::string_view name, const std::string& more, std::span<const double> bounds,
               std::span<const int64_t> counts, double sum) {
    print_buckets(name, labels_ + "," + more, bounds, counts, sum, &text_);
  }
  std::string text() && { return std::move(text_); }

 private:
  std::string labels_;
  std::string text_;
};

void print_experts(const ExpertStoreStats& experts, Page& page) {
  page.family("nibble_experts", "gauge", "Routed experts of the model, by where they are.");
  page.value("nibble_experts", experts.num_resident, "tier=\"memory\"");
  page.value("nibble_experts", experts.num_experts - experts.num_resident, "tier=\"file\"");
  page.single("nibble_expert_slots", "gauge", "Experts that memory has room for.",
              experts.num_slots);
  page.family("nibble_expert_uses_total", "counter",
              "Experts that steps wanted, by where they were.");
  page.value("nibble_expert_uses_total", experts.num_hits, "found=\"memory\"");
  page.value("nibble_expert_uses_total", experts.num_guesses_late, "found=\"under_way\"");
  page.value("nibble_expert_uses_total", experts.num_misses, "found=\"file\"");
  page.family("nibble_expert_tier_hits_total", "counter",
              "The same by tier: what was under way came from the file.");
  page.value("nibble_expert_tier_hits_total", experts.num_hits, "tier=\"memory\"");
  page.value("nibble_expert_tier_hits_total", experts.num_guesses_late + experts.num_misses,
             "tier=\"file\"");
  page.family("nibble_expert_wait_seconds", "summary", "Waits of steps for experts from files.");
  page.value("nibble_expert_wait_seconds_sum", experts.stall_seconds);
  page.value("nibble_expert_wait_seconds_count", experts.num_guesses_late + experts.num_misses);
  page.single("nibble_expert_read_bytes_total", "counter", "Bytes of experts read from files.",
              experts.bytes_read);
  page.single("nibble_expert_read_seconds_total", "counter", "Time with a read under way.",
              experts.read_seconds);
  page.single("nibble_expert_stall_seconds_total", "counter", "Time that steps waited for experts.",
              experts.stall_seconds);
  page.single("nibble_expert_on_host_total", "counter",
              "Experts that the CPU computed where they lay; also among those found elsewhere.",
              experts.num_on_host);
  page.single("nibble_expert_host_seconds_total", "counter",
              "Time in which the CPU computed experts.", experts.host_seconds);
  page.single("nibble_expert_evictions_total", "counter", "Experts that made room for others.",
              experts.num_evictions);
  page.family("nibble_expert_guesses_total", "counter",
              "Experts read ahead, by what became of it.");
  page.value("nibble_expert_guesses_total", experts.num_guesses, "outcome=\"begun\"");
  page.value("nibble_expert_guesses_total", experts.num_guesses_used, "outcome=\"in_time\"");
  page.value("nibble_expert_guesses_total", experts.num_guesses_late, "outcome=\"late\"");
  page.value("nibble_expert_guesses_total", experts.num_guesses_wasted, "outcome=\"wasted\"");
}

// Where experts reach a GPU through the host's memory, the figures above are the GPU's, and what
// they name files is RAM.
void print_experts_below(const ExpertStoreStats::Below& ram, Page& page) {
  if (ram.num_slots == 0) return;
  page.single("nibble_expert_ram_slots", "gauge", "Experts that RAM below the GPU has room for.",
              ram.num_slots);
  page.single("nibble_expert_ram_resident", "gauge", "Experts that are in RAM below the GPU.",
              ram.num_resident);
  page.family("nibble_expert_ram_fetches_total", "counter",
              "Experts that the GPU fetched from RAM, by where they were.");
  page.value("nibble_expert_ram_fetches_total", ram.num_hits, "found=\"memory\"");
  page.value("nibble_expert_ram_fetches_total", ram.num_misses, "found=\"file\"");
  page.single("nibble_expert_ram_read_bytes_total", "counter",
              "Bytes of experts read from files to RAM.", ram.bytes_read);
}

void print_drafts(const EngineStats& stats, Page* page) {
  constexpr std::string_view kPhases[] = {"answer", "think"};
  constexpr std::string_view kRules[] = {"strict", "relaxed"};
  const auto each = [&](std::string_view name, std::string_view help, int64_t DraftCount::*field) {
    page->family(name, "counter", help);
    for (size_t phase = 0; phase < 2; ++phase) {
      for (size_t rule = 0; rule < 2; ++rule) {
        page->value(name, stats.drafts[phase][rule].*field,
                    fmt::format("phase=\"{}\",rule=\"{}\"", kPhases[phase], kRules[rule]));
      }
    }
  };
  each("nibble_draft_tokens_total", "Draft tokens judged, by phase of the reply and rule.",
       &DraftCount::draft_tokens);
  each("nibble_accepted_tokens_total", "Draft tokens accepted, by phase of the reply and rule.",
       &DraftCount::accepted_tokens);
  page->family("nibble_acceptance_length", "gauge", "Tokens for each verified window of drafts.");
  for (size_t phase = 0; phase < 2; ++phase) {
    int64_t windows = 0;
    int64_t accepted = 0;
    for (const DraftCount& count : stats.drafts[phase]) {
      windows += count.windows;
      accepted += count.accepted_tokens;
    }
    const double length =
        windows == 0 ? 1 : 1 + static_cast<double>(accepted) / static_cast<double>(windows);
    page->value("nibble_acceptance_length", length, fmt::format("phase=\"{}\"", kPhases[phase]));
  }
}

void print_steps(const EngineStats& stats, Page* page) {
  page->single("nibble_steps_total", "counter", "Steps of the engine.", stats.num_steps);
  const std::pair<std::string_view, const StepCount*> kinds[] = {{"prefill", &stats.prefill_steps},
                                                                 {"decode", &stats.decode_steps},
                                                                 {"mixed", &stats.mixed_steps}};
  const auto each = [&](std::string_view name, std::string_view help, const auto& bounds,
                        auto by_size, auto sum) {
    page->family(name, "histogram", help);
    for (const auto& [kind, count] : kinds) {
      page->buckets(name, fmt::format("kind=\"{}\"", kind), bounds, (count->*by_size).counts,
                    static_cast<double>(count->*sum));
    }
  };
  each("nibble_step_seconds", "Seconds of a step.", kStepSecondsBounds, &StepCount::by_seconds,
       &StepCount::seconds);
  each("nibble_batch_tokens", "Tokens of a step.", kStepSizeBounds, &StepCount::by_tokens,
       &StepCount::tokens);
  each("nibble_batch_sequences", "Sequences of a step.", kStepSizeBounds, &StepCount::by_sequences,
       &StepCount::sequences);
  page->family("nibble_grammar_compile_seconds", "summary",
               "What a grammar took before its request began, those that were found included.");
  page->value("nibble_grammar_compile_seconds_sum", stats.guided_seconds);
  page->value("nibble_grammar_compile_seconds_count", stats.num_guided);
  page->single("nibble_last_step_timestamp_seconds", "gauge", "When the last step ended.",
               stats.last_step_timestamp);
}

}  // namespace

void Histogram::observe(double value, int64_t times) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  counts_[static_cast<size_t>(bound - bounds_.begin())] += times;
  sum_ += value * static_cast<double>(times);
}

void Histogram::print(std::string_view name, std::string_view help, const std::string& labels,
                      std::string* out) const {
  fmt::format_to(std::back_inserter(*out), "# HELP {} {}\n# TYPE {} histogram\n", name, help, name);
  print_buckets(name, labels, bounds_, counts_, sum_, out);
}

ServerMetrics::ServerMetrics()
    : ttft_(kFirstTokenBounds),
      itl_(kTokenBounds),
      tpot_(kTokenBounds),
      end_to_end_(kRequestBounds),
      queue_(kRequestBounds),
      prefill_(kRequestBounds),
      decode_(kRequestBounds),
      inference_(kRequestBounds),
      prompt_tokens_(kCountBounds),
      generation_tokens_(kCountBounds),
      token_delay_(kDelayBounds) {
  for (const char* reason : {"stop", "length", "abort", "error"}) finished_[reason] = 0;
}

void ServerMetrics::finished(const RequestTimes& times) {
  end_to_end_.observe(times.end_to_end);
  queue_.observe(times.queue);
  prefill_.observe(times.prefill);
  decode_.observe(times.decode);
  inference_.observe(times.prefill + times.decode);
  if (times.generation_tokens > 1) {
    tpot_.observe(times.decode / static_cast<double>(times.generation_tokens - 1));
  }
  prompt_tokens_.observe(static_cast<double>(times.prompt_tokens));
  generation_tokens_.observe(static_cast<double>(times.generation_tokens));
}

std::string ServerMetrics::print(const EngineStats& stats, const ServerFacts& facts) const {
  Page page(facts.model_name);
  const double used = stats.num_blocks == 0 ? 0
                                            : static_cast<double>(stats.num_used_blocks) /
                                                  static_cast<double>(stats.num_blocks);
  page.single("vllm:num_requests_running", "gauge", "Sequences in the running batch.",
              stats.num_running);
  page.single("vllm:num_requests_waiting", "gauge", "Sequences that wait.",
              std::max(facts.num_waiting, stats.num_waiting));
  page.single("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache's blocks in use, 0 to 1.",
              used);
  page.family("vllm:cache_config_info", "gauge", "The KV cache.");
  page.value(
      "vllm:cache_config_info", 1,
      fmt::format("block_size=\"{}\",num_gpu_blocks=\"{}\"", facts.block_size, stats.num_blocks));
  page.single("vllm:prompt_tokens_total", "counter", "Prompt tokens computed or found.",
              stats.num_prompt_tokens + stats.num_cached_tokens);
  page.single("vllm:generation_tokens_total", "counter", "Tokens generated.",
              stats.num_generated_tokens);
  page.single("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.",
              stats.num_prompt_tokens + stats.num_cached_tokens);
  page.single("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
              stats.num_cached_tokens);
  page.single("vllm:num_preemptions_total", "counter", "Sequences that gave up their blocks.",
              stats.num_preemptions);
  page.family("vllm:request_success_total", "counter", "Finished requests by reason.");
  for (const auto& [reason, count] : finished_) {
    page.value("vllm:request_success_total", count, fmt::format("finished_reason=\"{}\"", reason));
  }
  int64_t accepted = 0;
  for (const int64_t count : stats.accepted_at) accepted += count;
  page.single("vllm:spec_decode_num_drafts_total", "counter", "Windows of drafts verified.",
              stats.num_windows);
  page.single("vllm:spec_decode_num_draft_tokens_total", "counter", "Draft tokens verified.",
              stats.num_draft_tokens);
  page.single("vllm:spec_decode_num_accepted_tokens_total", "counter", "Draft tokens accepted.",
              accepted);
  page.family("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter",
              "Windows in which the draft at this place was accepted.");
  for (size_t i = 0; i < stats.accepted_at.size(); ++i) {
    page.value("vllm:spec_decode_num_accepted_tokens_per_pos_total", stats.accepted_at[i],
               fmt::format("position=\"{}\"", i));
  }
  page.histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", ttft_);
  page.histogram("vllm:inter_token_latency_seconds", "Between tokens.", itl_);
  page.histogram("vllm:time_per_output_token_seconds", "Between tokens (the older name).", itl_);
  page.histogram("vllm:request_time_per_output_token_seconds", "Mean of a request, but the first.",
                 tpot_);
  page.histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", end_to_end_);
  page.histogram("vllm:request_queue_time_seconds", "From arrival to the engine.", queue_);
  page.histogram("vllm:request_prefill_time_seconds", "From the engine to the first token.",
                 prefill_);
  page.histogram("vllm:request_decode_time_seconds", "From the first token to the last.", decode_);
  page.histogram("vllm:request_inference_time_seconds", "From the engine to the end.", inference_);
  page.histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", prompt_tokens_);
  page.histogram("vllm:request_generation_tokens", "Tokens generated for a request.",
                 generation_tokens_);

  page.family("nibble_http_requests_total", "counter", "Answers by route and status.");
  for (const auto& [key, count] : http_requests_) {
    page.value("nibble_http_requests_total", count,
               fmt::format("route=\"{}\",status=\"{}\"", escaped(key.first), key.second));
  }
  page.single("nibble_queue_rejected_total", "counter", "Requests refused with 429.",
              queue_rejected_);
  page.single("nibble_client_disconnects_total", "counter", "Clients gone before their answer.",
              disconnects_);
  page.family("nibble_state", "gauge", "1 for the state that the server is in.");
  for (const std::string_view name : {"loading", "ready", "draining"}) {
    page.value("nibble_state", name == facts.state ? 1 : 0, fmt::format("state=\"{}\"", name));
  }
  print_drafts(stats, &page);
  print_steps(stats, &page);
  page.histogram("nibble_token_delay_seconds",
                 "From the end of a step until its tokens were handed to the socket.",
                 token_delay_);
  page.family("nibble_parser_anomalies_total", "counter", "Oddities in replies, by kind.");
  for (const auto& [kind, count] : anomalies_) {
    page.value("nibble_parser_anomalies_total", count, fmt::format("kind=\"{}\"", escaped(kind)));
  }
  page.single("nibble_tool_calls_total", "counter", "Tool calls in replies.", tool_calls_);
  page.single("nibble_bad_logits_total", "counter", "Requests ended by logits that allow no token.",
              bad_logits_);
  page.family("nibble_kv_blocks", "gauge", "Blocks of the KV cache.");
  page.value("nibble_kv_blocks", stats.num_used_blocks, "state=\"used\"");
  page.value("nibble_kv_blocks", stats.num_cached_blocks, "state=\"cached\"");
  page.value("nibble_kv_blocks", stats.num_blocks - stats.num_used_blocks - stats.num_cached_blocks,
             "state=\"free\"");
  if (stats.experts) {
    print_experts(*stats.experts, page);
    print_experts_below(stats.experts->below, page);
  }
  page.single("nibble_connections", "gauge", "Open connections.", facts.num_connections);
  page.single("nibble_load_bytes", "gauge", "Bytes of the checkpoint that are loaded.",
              facts.load_bytes);
  page.single("nibble_load_bytes_total", "gauge", "Bytes of the checkpoint.",
              facts.load_bytes_total);
  page.family("nibble_memory_bytes", "gauge", "What the device's memory holds.");
  const auto memory = [&](std::string_view kind, uint64_t bytes) {
    page.value("nibble_memory_bytes", bytes,
               fmt::format("device=\"{}\",kind=\"{}\"", escaped(facts.device), kind));
  };
  memory("weights", facts.weight_bytes);
  memory("kv_cache", facts.kv_cache_bytes);
  if (facts.memory) {
    page.family("nibble_device_memory_bytes", "gauge", "Memory of the device, by use.");
    for (const auto& [use, bytes] : facts.memory->uses) {
      page.value("nibble_device_memory_bytes", bytes, fmt::format("use=\"{}\"", use));
    }
    page.value("nibble_device_memory_bytes", facts.memory->free_bytes, "use=\"free\"");
  }
  page.family("nibble_graph_passes_total", "counter", "Passes over the model, on a GPU.");
  page.value("nibble_graph_passes_total", stats.graphs.num_recorded, "what=\"recorded\"");
  page.value("nibble_graph_passes_total", stats.graphs.num_replayed, "what=\"replayed\"");
  page.single("nibble_graph_replays_total", "counter", "Passes that replayed a recorded graph.",
              stats.graphs.num_replayed);
  page.single("nibble_graph_misses_total", "counter",
              "Passes of a size that had no graph yet, and recorded one.",
              stats.graphs.num_recorded);
  page.family("nibble_build_info", "gauge", "1, with the version.");
  page.value(
      "nibble_build_info", 1,
      fmt::format("version=\"{}\",commit=\"{}\"", escaped(facts.version), escaped(facts.commit)));
  return std::move(page).text();
}

}  // namespace nibble
