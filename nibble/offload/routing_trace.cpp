#include "nibble/offload/routing_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <iterator>
#include <map>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/mapped_file.h"

namespace nibble {
namespace {

constexpr std::string_view kTraceTitle = "nibble-routing-trace 1 experts ";
constexpr int kMaxTraceExperts = 65536;
constexpr uint64_t kMaxTraceBytes = uint64_t{4} << 30;

// Reads numbers off the front of a line.
class LineReader {
 public:
  explicit LineReader(std::string_view text) : text_(text) {}
  bool done() const { return text_.empty(); }
  bool literal(char c) {
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  template <typename T>
  bool number(T* out) {
    const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), *out);
    if (error != std::errc()) return false;
    text_.remove_prefix(static_cast<size_t>(end - text_.data()));
    return true;
  }

 private:
  std::string_view text_;
};

bool parse_step(std::string_view line, int num_experts, RoutingStep* step) {
  LineReader reader(line);
  if (!reader.number(&step->layer) || !reader.literal(' ') || !reader.number(&step->num_tokens)) {
    return false;
  }
  if (step->layer < 0 || step->layer > 4096 || step->num_tokens < 1) return false;
  int32_t last = -1;
  while (!reader.done()) {
    ExpertUse use;
    if (!reader.literal(' ') || !reader.number(&use.expert) || !reader.literal(':') ||
        !reader.number(&use.weight)) {
      return false;
    }
    if (use.expert <= last || use.expert >= num_experts) return false;
    last = use.expert;
    step->uses.push_back(use);
  }
  return !step->uses.empty();
}

}  // namespace

Result<std::unique_ptr<RoutingTraceWriter>> RoutingTraceWriter::create(
    const std::filesystem::path& path, int num_experts) {
  std::unique_ptr<RoutingTraceWriter> writer(new RoutingTraceWriter());
  writer->path_ = path;
  writer->file_ = std::fopen(path.c_str(), "we");
  if (writer->file_ == nullptr) return system_error("cannot write " + path.string(), errno);
  fmt::print(writer->file_, "{}{}\n", kTraceTitle, num_experts);
  return writer;
}

RoutingTraceWriter::~RoutingTraceWriter() {
  if (file_ != nullptr && std::fclose(file_) != 0) {
    log_warning(fmt::format("the end of {} could not be written", path_.string()));
  }
}

void RoutingTraceWriter::add(int layer, std::span<const ExpertUse> uses, int64_t num_tokens) {
  if (file_ == nullptr) return;
  line_.clear();
  fmt::format_to(std::back_inserter(line_), "{} {}", layer, num_tokens);
  for (const ExpertUse& use : uses) {
    fmt::format_to(std::back_inserter(line_), " {}:{:.4g}", use.expert, use.weight);
  }
  line_ += '\n';
  if (std::fwrite(line_.data(), 1, line_.size(), file_) == line_.size()) return;
  log_warning(fmt::format("{} could not be written any further", path_.string()));
  (void)std::fclose(file_);
  file_ = nullptr;
}

Result<RoutingTrace> parse_routing_trace(std::string_view text) {
  RoutingTrace trace;
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (number == 1) {
      LineReader reader(line.substr(std::min(kTraceTitle.size(), line.size())));
      if (!line.starts_with(kTraceTitle) || !reader.number(&trace.num_experts) || !reader.done() ||
          trace.num_experts < 1 || trace.num_experts > kMaxTraceExperts) {
        return corrupt(fmt::format("line 1 is no '{}N'", kTraceTitle));
      }
      continue;
    }
    RoutingStep step;
    if (!parse_step(line, trace.num_experts, &step)) {
      return corrupt(
          fmt::format("line {} is no 'LAYER TOKENS EXPERT:WEIGHT ...' with rising experts below {}",
                      number, trace.num_experts));
    }
    trace.steps.push_back(std::move(step));
  }
  if (trace.steps.empty()) return corrupt("it holds no step");
  return trace;
}

Result<RoutingTrace> load_routing_trace(const std::filesystem::path& path) {
  const std::string text = NIBBLE_TRY(read_text_file(path, kMaxTraceBytes));
  return with_context(parse_routing_trace(text), path.string());
}

std::map<int, std::vector<int64_t>> count_experts(const RoutingTrace& trace) {
  std::map<int, std::vector<int64_t>> counts;
  for (const RoutingStep& step : trace.steps) {
    std::vector<int64_t>& layer = counts[step.layer];
    layer.resize(static_cast<size_t>(trace.num_experts));
    for (const ExpertUse& use : step.uses) ++layer[static_cast<size_t>(use.expert)];
  }
  return counts;
}

std::string expert_counts_text(const RoutingTrace& trace) {
  std::string text;
  for (const auto& [layer, of_expert] : count_experts(trace)) {
    std::vector<int> experts;
    for (int e = 0; e < trace.num_experts; ++e) {
      if (of_expert[static_cast<size_t>(e)] > 0) experts.push_back(e);
    }
    std::stable_sort(experts.begin(), experts.end(), [&counted = of_expert](int a, int b) {
      return counted[static_cast<size_t>(a)] > counted[static_cast<size_t>(b)];
    });
    for (const int e : experts) {
      fmt::format_to(std::back_inserter(text), "{} {} {}\n", layer, e,
                     of_expert[static_cast<size_t>(e)]);
    }
  }
  return text;
}

Result<std::vector<HotExpert>> parse_expert_counts(std::string_view text) {
  std::vector<HotExpert> experts;
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    LineReader reader(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    HotExpert hot;
    int64_t count = 0;
    if (!reader.number(&hot.layer) || !reader.literal(' ') || !reader.number(&hot.expert) ||
        !reader.literal(' ') || !reader.number(&count) || !reader.done() || hot.layer < 0 ||
        hot.expert < 0) {
      return corrupt(fmt::format("line {} is no 'LAYER EXPERT COUNT'", number));
    }
    experts.push_back(hot);
  }
  return experts;
}

}  // namespace nibble
