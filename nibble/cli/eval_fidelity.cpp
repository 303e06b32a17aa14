// nibble eval fidelity: perplexity, KL divergence and teacher-forced likelihood.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/eval_command.h"
#include "nibble/eval/fidelity.h"

namespace nibble {
namespace {

struct FidelityOptions {
  std::string model = "demo";
  std::string backend = "auto";
  int threads = 0;
  bool w4a4 = false;
  std::string text, reference, json, chat_template;
  int64_t context = 512;
  int64_t chunks = 0;
  int64_t top_k = 256;
  std::optional<double> max_kld, min_top1, max_ppl;
  std::string baseline, candidate;
};

Result<std::unique_ptr<LoadedModel>> load(const FidelityOptions& o) {
  ModelOptions options;
  options.backend = o.backend;
  options.threads = o.threads;
  options.load_mtp = false;
  options.nvfp4_activation = o.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  const auto directory = NIBBLE_TRY(resolve_model(o.model));
  return LoadedModel::load(directory, options);
}

Result<Chunks> read_chunks(const FidelityOptions& o, const LoadedModel& model) {
  const std::string text = NIBBLE_TRY(read_text_file(o.text));
  return cut_text(text, model.tokenizer, o.context, o.chunks);
}

void show(int64_t done, int64_t total) {
  if (done % 20 == 0 && done < total)
    (void)std::fprintf(stderr, "%lld/%lld\n", static_cast<long long>(done),
                       static_cast<long long>(total));
}

Status write_json(const std::string& file, const std::string& json) {
  return file.empty() ? Status() : write_text_file(file, json);
}

Result<int> run_ppl(const FidelityOptions& o) {
  const auto model = NIBBLE_TRY(load(o));
  const Chunks chunks = NIBBLE_TRY(read_chunks(o, *model));
  const Perplexity p = NIBBLE_TRY(measure_perplexity(*model, chunks, show));
  print(perplexity_text(p));
  NIBBLE_TRY(write_json(o.json, perplexity_json(p)));
  return o.max_ppl && p.perplexity > *o.max_ppl ? kExitNotRetained : 0;
}

Result<int> run_kld_base(const FidelityOptions& o) {
  const auto model = NIBBLE_TRY(load(o));
  const Chunks chunks = NIBBLE_TRY(read_chunks(o, *model));
  NIBBLE_TRY(write_reference(*model, chunks, o.top_k, o.reference, show));
  print(fmt::format("{}: {} positions\n", o.reference,
                    static_cast<int64_t>(chunks.ids.size()) * chunks.scored_per_chunk()));
  return 0;
}

Result<int> run_kld(const FidelityOptions& o) {
  const auto model = NIBBLE_TRY(load(o));
  const Divergence d = NIBBLE_TRY(measure_divergence(*model, o.reference, show));
  print(divergence_text(d));
  NIBBLE_TRY(write_json(o.json, divergence_json(d)));
  const bool is_far = o.max_kld && d.mean > *o.max_kld;
  const bool is_other = o.min_top1 && 100 * d.same_top1 < *o.min_top1;
  if (is_far)
    (void)report_error(
        {ErrorCode::kInvalidArgument,
         fmt::format("KL divergence {:.6f} is above --max-kld {}", d.mean, *o.max_kld)},
        "eval fidelity kld");
  if (is_other)
    (void)report_error(
        {ErrorCode::kInvalidArgument,
         fmt::format("same top-1 {:.3f} % is below --min-top1 {}", 100 * d.same_top1, *o.min_top1)},
        "eval fidelity kld");
  return is_far || is_other ? kExitNotRetained : 0;
}

Result<int> run_nll(const FidelityOptions& o) {
  const auto model = NIBBLE_TRY(load(o));
  const auto scores = NIBBLE_TRY(measure_forced(*model, o.text, o.chat_template, show));
  print(forced_text(scores));
  NIBBLE_TRY(write_json(o.json, forced_json(scores)));
  return 0;
}

Result<int> run_nll_report(const FidelityOptions& o) {
  const std::string a = NIBBLE_TRY(read_text_file(o.baseline));
  const std::string b = NIBBLE_TRY(read_text_file(o.candidate));
  const std::string text = NIBBLE_TRY(compare_forced(a, b));
  print(text);
  return 0;
}

using Run = Result<int> (*)(const FidelityOptions&);

// A sub-command; --model and what goes with it when it has `needs_model`.
std::pair<CLI::App*, FidelityOptions*> add(CLI::App& parent, const char* name, const char* what,
                                           bool needs_model, Run run, int* exit_code) {
  CLI::App* command = parent.add_subcommand(name, what);
  auto o = std::make_shared<FidelityOptions>();
  if (needs_model) {
    command->add_option("--model", o->model, "Checkpoint directory, or a model's name [demo]");
    command->add_option("--backend", o->backend, "auto, cpu, reference or cuda [auto]");
    command->add_option("--threads", o->threads, "Threads [all processors]")->type_name("N");
    command->add_flag("--w4a4", o->w4a4, "Quantize activations to NVFP4 too");
  }
  const std::string title = std::string("eval fidelity ") + name;
  command->callback(
      [o, run, title, exit_code] { *exit_code = finish_eval(run(*o), title.c_str()); });
  return {command, o.get()};
}

void add_text(CLI::App* command, FidelityOptions* o) {
  command->add_option("--text", o->text, "A text file")->required()->type_name("FILE");
  command->add_option("--context", o->context, "Tokens of a chunk [512]")->type_name("N");
  command->add_option("--chunks", o->chunks, "Only the first N chunks [all]")->type_name("N");
}

}  // namespace

void add_eval_fidelity(CLI::App& eval, int* exit_code) {
  CLI::App* group = eval.add_subcommand("fidelity", "Perplexity, KL divergence, forced likelihood");
  group->require_subcommand(1);
  group->footer(
      "Example, a gate for a quantized copy:\n"
      "  nibble eval fidelity kld-base --model DIR --text FILE --out base.kld\n"
      "  nibble eval fidelity kld --model COPY --base base.kld --max-kld 0.02 --min-top1 97");
  auto [ppl, p] = add(*group, "ppl", "Perplexity of a text", true, run_ppl, exit_code);
  add_text(ppl, p);
  ppl->add_option("--max-ppl", p->max_ppl, "Exit 6 above it")->type_name("X");
  ppl->add_option("--json", p->json, "Write the result as JSON")->type_name("FILE");

  auto [base, b] =
      add(*group, "kld-base", "Write a reference's distributions", true, run_kld_base, exit_code);
  add_text(base, b);
  base->add_option("--out", b->reference, "The file to write")->required()->type_name("FILE");
  base->add_option("--top-k", b->top_k, "Tokens kept of a position; 0: all [256]")->type_name("N");

  auto [kld, k] = add(*group, "kld", "Compare a model with a reference", true, run_kld, exit_code);
  kld->add_option("--base", k->reference, "A file of kld-base")->required()->type_name("FILE");
  kld->add_option("--max-kld", k->max_kld, "Exit 6 above this mean")->type_name("X");
  kld->add_option("--min-top1", k->min_top1, "Exit 6 below this percentage")->type_name("X");
  kld->add_option("--json", k->json, "Write the result as JSON")->type_name("FILE");

  auto [nll, n] = add(*group, "nll", "Likelihood of given continuations", true, run_nll, exit_code);
  nll->add_option("--pairs", n->text, "JSON lines: id, prompt, continuation")
      ->required()
      ->type_name("FILE");
  nll->add_option("--chat-template", n->chat_template, "A built-in name or a file");
  nll->add_option("--json", n->json, "Write the result as JSON")->type_name("FILE");

  auto [report, r] =
      add(*group, "nll-report", "Compare two results of nll", false, run_nll_report, exit_code);
  report->add_option("BASELINE", r->baseline, "JSON of nll")->required();
  report->add_option("CANDIDATE", r->candidate, "JSON of nll")->required();
}

}  // namespace nibble
