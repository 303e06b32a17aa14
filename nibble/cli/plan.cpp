// nibble plan MODEL: which hardware holds it, how fast it is there, and with which command.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "nibble/base/output_file.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/plan_options.h"
#include "nibble/cli/plan_serve.h"
#include "nibble/plan/calibration.h"
#include "nibble/plan/capacity_report.h"
#include "nibble/plan/report_json.h"
#include "nibble/plan/report_text.h"

namespace nibble {
namespace {

TableStyle table_style(const PlanOptions& options) {
  return options.markdown ? TableStyle::kMarkdown
         : options.csv    ? TableStyle::kCsv
                          : TableStyle::kText;
}

void print_json(const JsonValue& json) { print(to_json(json) + "\n"); }

PlanResult<std::optional<PlanFormat>> asked_format(const PlanOptions& options) {
  if (options.quant.empty() || options.quant == "all") return std::nullopt;
  return std::optional(NIBBLE_TRY(find_format(options.quant)));
}

std::string format_title(const PlanModel& model, const std::optional<PlanFormat>& format) {
  if (format) return format->title;
  return model.stored ? model.stored_format + " as stored" : "NVFP4 v2";
}

// What one plan needs, loaded once.
struct Session {
  Catalogue catalogue;
  PlanModel model;
  std::optional<PlanFormat> format;
  PlanRequest request;
  PlanConstants constants;
  std::map<std::string, double> prices;
  std::vector<std::string> notes;
};

// A benchmark tells about what it ran, and nothing about anything else.
PlanStatus check_measured(const PlanOptions& options, const Session& session) {
  const auto& measured = session.constants.measured;
  if (!measured) return {};
  if (measured->model != session.model.name) {
    return plan_error("conflict",
                      fmt::format("--calibrate {}: it measured the model '{}', the "
                                  "plan is for '{}'",
                                  options.calibrate, measured->model, session.model.name));
  }
  if (measured->draft_tokens != session.request.draft_tokens) {
    return plan_error(
        "conflict",
        fmt::format("--calibrate {}: it measured {} draft tokens, the plan is for {}",
                    options.calibrate, measured->draft_tokens, session.request.draft_tokens),
        fmt::format("--mtp {}", measured->draft_tokens));
  }
  if (!options.quant.empty() || options.all_gpus || options.find == "gpus") {
    return plan_error("conflict",
                      fmt::format("--calibrate {}: a benchmark is of the checkpoint as stored on "
                                  "one machine: --quant, --all-gpus and --find gpus need a "
                                  "file of schema nibble.calibration/1",
                                  options.calibrate));
  }
  return {};
}

PlanResult<Session> open_session(const PlanOptions& options) {
  Session session;
  session.catalogue = NIBBLE_TRY(plan_catalogue(options));
  if (options.model.empty()) {
    return plan_error("usage",
                      "MODEL is missing: a built-in name, a checkpoint's folder, a "
                      "config.json or a .gguf file",
                      "nibble plan deepseek-r1 --gpu h200x8");
  }
  session.format = NIBBLE_TRY(asked_format(options));
  session.model = NIBBLE_TRY(load_plan_model(options.model));
  session.request = NIBBLE_TRY(plan_request(options, session.model));
  session.prices = NIBBLE_TRY(plan_prices(options, session.catalogue));
  if (!options.calibrate.empty()) {
    Calibration calibration =
        NIBBLE_TRY(load_calibration(options.calibrate, session.model.config, session.catalogue));
    session.constants = calibration.constants;
    session.notes = std::move(calibration.notes);
    NIBBLE_TRY(check_measured(options, session));
  }
  return session;
}

PlanResult<int> print_accuracy(const PlanOptions& options) {
  const Catalogue catalogue = NIBBLE_TRY(plan_catalogue(options));
  const PlanModel model =
      NIBBLE_TRY(load_plan_model(options.model.empty() ? "deepseek-r1" : options.model));
  SpeedConstants constants;
  if (!options.calibrate.empty()) {
    const Calibration calibration =
        NIBBLE_TRY(load_calibration(options.calibrate, model.config, catalogue));
    if (calibration.constants.measured) {
      return plan_error("conflict",
                        fmt::format("--calibrate {}: a benchmark holds no constants for --accuracy",
                                    options.calibrate));
    }
    constants = calibration.constants.speed;
  }
  const AccuracyReport report = NIBBLE_TRY(published_accuracy(model.config, catalogue, constants));
  if (options.json) {
    print_json(accuracy_json(report));
  } else {
    print(accuracy_text(report, table_style(options)));
  }
  return 0;
}

// All devices: the whole table, the cheapest first, or the web page.
PlanResult<int> print_devices(const PlanOptions& options, const Session& session) {
  const Hardware beside = NIBBLE_TRY(plan_beside(options, session.catalogue));
  auto sets = smallest_sets(session.model, session.format, session.catalogue, beside,
                            session.request, session.constants, session.prices);
  for (const std::string& filter : options.filters) NIBBLE_TRY(filter_sets(sets, filter));
  const bool cheapest = options.find == "gpus";
  if (cheapest && options.filters.empty()) NIBBLE_TRY(filter_sets(sets, "verdict=holds"));
  NIBBLE_TRY(sort_sets(sets, !options.sort.empty() ? options.sort
                             : cheapest            ? "cheapest"
                                                   : "gpus"));
  if (options.serve) {
    if (*options.serve < 0 || *options.serve > 65535) {
      return plan_error("bad_value",
                        fmt::format("--serve is {}, expected a port up to 65535", *options.serve));
    }
    const PlanPages pages = {page_html(session.model, session.request,
                                       format_title(session.model, session.format), sets),
                             to_json(sets_json(session.model, session.request, sets))};
    const Status served = serve_plan_pages(pages, static_cast<uint16_t>(*options.serve));
    if (!served) return plan_error("unavailable", served.error());
    return 0;
  }
  if (!options.html.empty()) {
    const auto written =
        write_text_file(options.html, page_html(session.model, session.request,
                                                format_title(session.model, session.format), sets));
    if (!written) return plan_error("bad_file", written.error());
    print(fmt::format("wrote {}: {} devices\n", options.html, sets.size()));
    return 0;
  }
  if (options.json) {
    print_json(sets_json(session.model, session.request, sets));
    return 0;
  }
  if (table_style(options) == TableStyle::kText) {
    print(fmt::format("{}  {}  context {}  batch {}: the smallest number of each device\n",
                      session.model.name, format_title(session.model, session.format),
                      session.request.context, session.request.batch));
  }
  print(sets_text(sets, table_style(options)));
  if (cheapest && table_style(options) == TableStyle::kText) {
    print(session.prices.empty()
              ? "sorted by power, since the catalogue has no prices: --price ID=X gives one\n"
              : "sorted by price, then by power where no price was given\n");
    for (const DeviceSet& set : sets) {
      if (!set.report || set.report->launch.empty()) continue;
      print(fmt::format("launch on {}: {}\n", set_title(set), set.report->launch));
      for (const std::string& line : set.report->assumptions)
        print(fmt::format("assumed: {}\n", line));
      for (const std::string& line : set.report->notes) print(fmt::format("note: {}\n", line));
      break;
    }
  }
  return 0;
}

// The sets that planner.md section 6 lists.
std::string smallest_listed_set(const Session& session, const PlanFormat& format) {
  std::string smallest = "none up to 64";
  double least = 0;
  for (const std::string_view id :
       {"m3-ultra-512", "b300-sxm", "b200-sxm", "h200-sxm", "h100-sxm", "rtxpro6000bw"}) {
    const auto spec = session.catalogue.find(id);
    if (!spec) continue;
    PlanRequest request = session.request;
    request.draft_tokens = 0;
    const DeviceSet set =
        smallest_set(session.model, format, *spec, {}, request, session.constants, {});
    if (!set.holds()) continue;
    const double bytes = static_cast<double>(set.report->device.memory_bytes) * set.gpus;
    if (least > 0 && bytes >= least) continue;
    least = bytes;
    smallest = set_title(set);
  }
  return smallest;
}

PlanResult<int> print_formats(const PlanOptions& options, Session& session) {
  const Hardware hardware = NIBBLE_TRY(plan_hardware(options, session.catalogue, &session.notes));
  std::vector<FormatRow> rows;
  const PlanFormat* best = nullptr;
  std::optional<PlanReport> best_report;
  for (const PlanFormat& format : all_formats()) {
    if (session.request.draft_tokens > 0 && format.is_gguf()) continue;
    PlanReport report =
        NIBBLE_TRY(make_plan(session.model, format, hardware, session.request, session.constants));
    FormatRow row;
    row.format = format;
    row.weights = report.weights;
    row.kv_gb = static_cast<double>(kv_bytes_per_token(session.model.config, report.kv, false)) *
                static_cast<double>(round_up_to_blocks(session.request.context)) *
                static_cast<double>(session.request.batch) / 1e9;
    row.smallest_set = smallest_listed_set(session, format);
    row.verdict = report.chosen.verdict;
    // The most bits that the devices themselves hold, in a format that nibble runs.
    const bool holds = row.verdict == Verdict::kFits || row.verdict == Verdict::kTight;
    if (holds && !format.is_gguf() &&
        (best == nullptr ||
         report.weights.resident_bytes(false) > best_report->weights.resident_bytes(false))) {
      best = &format;
      best_report = std::move(report);
    }
    rows.push_back(std::move(row));
  }
  if (options.json) {
    JsonValue list = JsonValue::array();
    for (const FormatRow& row : rows) {
      list.push_back(JsonValue::object(
          {{"name", JsonValue::string(row.format.id)},
           {"file_bytes", JsonValue::integer(row.weights.file_bytes())},
           {"resident_bytes", JsonValue::integer(row.weights.resident_bytes(false))},
           {"smallest_set", JsonValue::string(row.smallest_set)},
           {"estimate", JsonValue::boolean(row.format.estimate)},
           {"verdict", JsonValue::string(std::string(verdict_name(row.verdict)))}}));
    }
    print_json(
        JsonValue::object({{"schema", JsonValue::string("nibble.plan.formats/1")},
                           {"formats", list},
                           {"best", best == nullptr ? JsonValue() : JsonValue::string(best->id)}}));
    return best == nullptr ? 1 : 0;
  }
  if (table_style(options) == TableStyle::kText) {
    print(fmt::format("{} on {}, context {}, batch {}\n", session.model.name,
                      hardware_title(hardware), session.request.context, session.request.batch));
  }
  print(formats_text(rows, table_style(options)));
  if (table_style(options) != TableStyle::kText) return best == nullptr ? 1 : 0;
  if (best == nullptr) {
    print("no format that nibble runs fits these devices\n");
    return 1;
  }
  print(fmt::format("\nlargest format that fits: {}\n\n{}", best->title, plan_text(*best_report)));
  return 0;
}

PlanResult<int> print_page_method(const PlanOptions& options, const Session& session) {
  // The page counts what the checkpoint's files hold.
  StoredElements elements;
  if (session.model.stored && !session.format) {
    elements = session.model.stored->elements;
  } else {
    const PlanFormat format =
        NIBBLE_TRY(find_format(session.format ? session.format->id : "nvfp4-v2"));
    if (format.is_gguf()) {
      return plan_error("conflict",
                        fmt::format("--method page counts a checkpoint's elements: "
                                    "--quant {} is a GGUF level",
                                    format.id),
                        "--quant nvfp4-v2, nvfp4-v1, fp8 or bf16");
    }
    const ModelWeights weights = NIBBLE_TRY(weights_of(session.model.config, format));
    elements = weights.elements;
  }
  const PageModel model = page_model(session.model.config, elements.total());
  if (options.json) {
    JsonValue rows = JsonValue::array();
    for (const PageLevel& level : page_levels()) {
      const PageRow row = page_row(model, level);
      const PlanFormat format = NIBBLE_TRY(find_format(level.name));
      rows.push_back(JsonValue::object(
          {{"level", JsonValue::string(std::string(level.name))},
           {"bits", JsonValue::number(level.bits)},
           {"page_file_gb", JsonValue::number(row.file_gb)},
           {"page_vram_gb", JsonValue::number(row.vram_gb)},
           {"page_context_gb", JsonValue::number(row.context_gb)},
           {"true_bits", JsonValue::number(format.gguf_bits)},
           {"true_file_bytes",
            JsonValue::integer(
                gguf_weights(session.model.config, format.gguf_bits).file_bytes())}}));
    }
    JsonValue why = JsonValue::array();
    for (const PageDifference& difference : page_differences(session.model.config, model)) {
      why.push_back(JsonValue::object({{"page", JsonValue::string(difference.page)},
                                       {"fact", JsonValue::string(difference.fact)}}));
    }
    print_json(JsonValue::object({{"schema", JsonValue::string("nibble.plan.page/1")},
                                  {"rows", rows},
                                  {"differences", why}}));
    return 0;
  }
  print(page_text(session.model.config, model, table_style(options)));
  return 0;
}

PlanResult<int> print_plan(const PlanOptions& options, Session& session) {
  const Hardware hardware = NIBBLE_TRY(plan_hardware(options, session.catalogue, &session.notes));
  if (const auto price = session.prices.find(""); price != session.prices.end()) {
    session.request.device_hour = price->second;
  } else if (hardware.groups.size() == 1) {
    const auto own = session.prices.find(hardware.groups.front().device.id);
    if (own != session.prices.end()) session.request.device_hour = own->second;
  }
  if (options.find == "context")
    session.request.context = std::min<int64_t>(session.request.context, kKvBlockTokens);
  if (options.find == "batch") session.request.batch = 1;
  PlanReport report = NIBBLE_TRY(
      make_plan(session.model, session.format, hardware, session.request, session.constants));
  if (options.find == "context" || options.find == "batch") {
    // The plan of the largest that fits, so that the answer comes with its command.
    const bool context = options.find == "context";
    int64_t largest = context ? report.chosen.max_context : report.chosen.max_batch;
    for (const Placement& other : report.alternatives) {
      largest = std::max(largest, context ? other.max_context : other.max_batch);
    }
    if (report.exits_with_success() && largest > 0) {
      (context ? session.request.context : session.request.batch) = largest;
      report = NIBBLE_TRY(
          make_plan(session.model, session.format, hardware, session.request, session.constants));
      report.notes.push_back(
          fmt::format("--find {}: the largest that fits is {}", options.find, largest));
    }
  }
  if (!report.exits_with_success()) {
    report.changes = nearest_changes(session.model, session.format, hardware, session.request,
                                     session.constants);
  }
  report.notes.insert(report.notes.begin(), session.notes.begin(), session.notes.end());
  if (options.launch) {
    for (const std::string& step : report.steps_before) print(step + "\n");
    if (!report.launch.empty()) print(report.launch + "\n");
    if (report.launch.empty()) print(plan_text(report));
  } else if (options.json) {
    print_json(plan_json(report));
  } else {
    print(plan_text(report, options.verbose));
  }
  return report.exits_with_success() ? 0 : 1;
}

PlanResult<int> print_capacity(const PlanOptions& options, Session& session) {
  const Hardware hardware = NIBBLE_TRY(plan_hardware(options, session.catalogue, &session.notes));
  CapacityReport report =
      NIBBLE_TRY(plan_capacity(session.model, session.format, hardware, session.request,
                               capacity_request(options), session.constants));
  report.notes.insert(report.notes.begin(), session.notes.begin(), session.notes.end());
  if (options.json) {
    print_json(capacity_json(report));
  } else {
    print(capacity_text(report, table_style(options)));
  }
  const bool possible = std::any_of(report.rows.begin(), report.rows.end(),
                                    [](const CapacityRow& row) { return row.problem.empty(); });
  return possible ? 0 : 1;
}

PlanResult<int> run_plan(const PlanOptions& options) {
  if (int{options.json} + int{options.csv} + int{options.markdown} > 1) {
    return plan_error("conflict", "--json, --csv and --markdown exclude each other");
  }
  if (options.gpus == std::vector<std::string>{"list"}) {
    const Catalogue catalogue = NIBBLE_TRY(plan_catalogue(options));
    print(catalogue_text(catalogue, table_style(options)));
    return 0;
  }
  if (options.accuracy) return print_accuracy(options);
  Session session = NIBBLE_TRY(open_session(options));
  if (options.method == "page") return print_page_method(options, session);
  if (options.method != "exact") {
    return plan_error("bad_value",
                      fmt::format("--method is '{}', expected exact or page", options.method));
  }
  if (!options.find.empty() && options.find != "context" && options.find != "batch" &&
      options.find != "gpus" && options.find != "quant") {
    return plan_error("bad_value", fmt::format("--find is '{}', expected context, batch, gpus or "
                                               "quant",
                                               options.find));
  }
  const bool all =
      options.all_gpus || options.find == "gpus" || !options.html.empty() || options.serve;
  if (all && (!options.gpus.empty() || !options.vram.empty())) {
    return plan_error("conflict",
                      "--all-gpus, --find gpus, --html and --serve ask about every device: "
                      "leave out --gpu and --vram");
  }
  if (!all && (!options.filters.empty() || !options.sort.empty())) {
    return plan_error("conflict", "--filter and --sort go with --all-gpus, --find gpus or --html");
  }
  if (!options.capacity &&
      (options.max_tpot || options.max_ttft || options.prefix_share || options.load)) {
    return plan_error("conflict",
                      "--max-tpot, --max-ttft, --prefix-share and --load go with --capacity");
  }
  if (options.capacity) {
    if (all || !options.find.empty() || options.quant == "all" || options.launch) {
      return plan_error("conflict",
                        "--capacity asks about one kind of device and format: leave out --find, "
                        "--launch, --all-gpus, --html, --serve and --quant all");
    }
    return print_capacity(options, session);
  }
  if (all) return print_devices(options, session);
  if (options.quant == "all" || options.find == "quant") return print_formats(options, session);
  if (options.csv || options.markdown) {
    return plan_error("conflict",
                      "--csv and --markdown print tables: add --all-gpus, --quant all, "
                      "--method page or --accuracy",
                      "--json prints one plan");
  }
  return print_plan(options, session);
}

int report_plan_error(const PlanError& error, const PlanOptions& options) {
  if (options.json) {
    JsonValue json = error_json(error);
    JsonValue gpus = JsonValue::array();
    for (const std::string& gpu : options.gpus) gpus.push_back(JsonValue::string(gpu));
    json.set("request", JsonValue::object({{"model", JsonValue::string(options.model)},
                                           {"gpu", gpus},
                                           {"quant", JsonValue::string(options.quant)},
                                           {"kv", JsonValue::string(options.kv)},
                                           {"context", JsonValue::string(options.context)},
                                           {"batch", JsonValue::integer(options.batch.value_or(1))},
                                           {"mtp", JsonValue::integer(options.mtp.value_or(0))},
                                           {"method", JsonValue::string(options.method)}}));
    print_json(json);
  } else {
    std::string message = error.message;
    if (!error.hint.empty()) message += fmt::format("\n  try: {}", error.hint);
    (void)report_error(Error{ErrorCode::kInvalidArgument, message}, "plan");
  }
  return error.exit_status;
}

void add_options(CLI::App& command, PlanOptions& o) {
  const std::string model_help =
      "Built-in name (deepseek-r1, deepseek-v3, ...), a checkpoint's "
      "folder, config.json or a .gguf file";
  command.add_option("model", o.model, model_help)->type_name("MODEL");
  const auto text = [&](const std::string& group, const std::string& name, std::string& value,
                        const std::string& type, const std::string& help) {
    command.add_option(name, value, help)->type_name(type)->group(group);
  };
  const auto list = [&](const std::string& group, const std::string& name,
                        std::vector<std::string>& value, const std::string& type,
                        const std::string& help) {
    command.add_option(name, value, help)->type_name(type)->group(group)->expected(1)->take_all();
  };
  const auto number = [&](const std::string& group, const std::string& name, auto& value,
                          const std::string& type, const std::string& help) {
    command.add_option(name, value, help)->type_name(type)->group(group);
  };
  const auto flag = [&](const std::string& group, const std::string& name, bool& value,
                        const std::string& help) {
    command.add_flag(name, value, help)->group(group);
  };
  const std::string hardware = "Hardware (this machine when nothing is given)";
  list(hardware, "--gpu", o.gpus, "NAME[xN]",
       "Device and count; may repeat; 'list' prints the catalogue");
  text(hardware, "--vram", o.vram, "GB", "Device memory instead of --gpu; no speed estimate");
  text(hardware, "--ram", o.ram, "GB", "RAM for experts that GPUs don't hold");
  text(hardware, "--cpu", o.cpu, "NAME", "CPU of the catalogue: its RAM and its rate");
  command.add_option("--ssd", o.ssd, "SSD for the rest: a folder or its rate")
      ->type_name("DIR|GB/s")
      ->group(hardware)
      ->expected(0, 1)
      ->default_str("yes");
  text(hardware, "--net", o.net, "MBIT/S", "Network rate, for the download time");
  number(hardware, "--host-link", o.host_link, "GB/S",
         "From RAM to a device, for experts that are copied [PCIe: 55 for 5 x16]");
  number(hardware, "--node-link", o.node_link, "GB/S",
         "Between nodes, each device and direction [50]");
  flag(hardware, "--numa-aware", o.numa_aware, "Count the memory rate of all CPU sockets");
  const std::string model = "Model and cache";
  text(model, "--quant", o.quant, "FORMAT",
       "nvfp4-v2, nvfp4-v1, fp8, bf16, a GGUF level, all [as stored, or nvfp4-v2]");
  text(model, "--kv", o.kv, "FORMAT", "bf16, fp8, fp8-ds [fp8 for NVFP4 weights, otherwise bf16]");
  text(model, "--context", o.context, "N", "Tokens of a sequence, or max [32768]");
  number(model, "--batch", o.batch, "N", "Sequences at once [1]");
  number(model, "--isl", o.isl, "N", "Prompt tokens, for steady serving");
  number(model, "--osl", o.osl, "N", "Answer tokens, for steady serving");
  number(model, "--mtp", o.mtp, "0..5", "Draft tokens [0]");
  number(model, "--accept", o.accept, "A",
         "Tokens gained a step with drafts [published: 1.92 to 3.01]");
  const std::string place = "Placement";
  text(place, "--parallel", o.parallel, "MODE", "auto, tp, adp, layer [auto]");
  number(place, "--tp", o.tp, "N", "Tensor parallelism");
  number(place, "--ep", o.ep, "N", "Expert parallelism");
  number(place, "--pp", o.pp, "N", "Pipeline stages");
  number(place, "--kv-fraction", o.kv_fraction, "F", "Share of free memory for the cache [0.9]");
  number(place, "--max-num-tokens", o.max_num_tokens, "N",
         "Tokens of one forward pass [8192, CPU 512]");
  number(place, "--max-batch", o.max_batch, "N", "Sequences of one rank [256, CPU 32]");
  number(place, "--skew", o.skew, "A", "Zipf exponent of expert use, for offload [uniform]");
  flag(place, "--no-graphs", o.no_graphs, "Without CUDA graphs");
  const std::string questions = "Questions";
  text(questions, "--find", o.find, "WHAT",
       "context, batch: the largest; gpus: the cheapest set; quant");
  flag(questions, "--all-gpus,--compare", o.all_gpus, "The smallest set of every catalogue device");
  list(questions, "--filter", o.filters, "KEY=VALUE",
       "vendor, class, verdict, checked, runs, name, gpus");
  text(questions, "--sort", o.sort, "KEY",
       "name, gpus, memory, tok_s, per_user, watts, energy, price");
  number(questions, "--capacity", o.capacity, "RATE",
         "Devices for so many requests a second of --isl and --osl tokens, in replicas of --gpu");
  number(questions, "--max-tpot", o.max_tpot, "MS", "With --capacity: between two tokens [50]");
  number(questions, "--max-ttft", o.max_ttft, "MS", "To the first token, without a queue [any]");
  number(questions, "--prefix-share", o.prefix_share, "S",
         "Of a prompt, that the replica which had its beginning still holds [0]");
  number(questions, "--load", o.load, "S", "Of a replica's rate that is planned for [0.8]");
  flag(questions, "--accuracy", o.accuracy, "Predictions beside published measurements");
  text(questions, "--method", o.method, "NAME",
       "exact, or page: a public page's numbers beside the true ones");
  const std::string output = "Output";
  flag(output, "--json", o.json, "JSON");
  flag(output, "--csv", o.csv, "Tables as CSV");
  flag(output, "--markdown", o.markdown, "Tables as Markdown");
  flag(output, "-v,--verbose", o.verbose, "Weights by class too");
  flag(output, "--launch", o.launch, "Only the command to run");
  text(output, "--html", o.html, "FILE", "The device table as one web page that works offline");
  command.add_option("--serve", o.serve, "The same page at a port of this machine [8080]")
      ->type_name("PORT")
      ->group(output)
      ->expected(0, 1)
      ->default_str("8080");
  list(output, "--price", o.prices, "[ID=]X", "One device for an hour; may repeat");
  text(output, "--calibrate", o.calibrate, "FILE", "Measured constants, see docs/plan.md");
  text(output, "--gpu-file", o.gpu_file, "CSV", "Devices added to the catalogue");
  text(output, "--gpus", o.gpus_csv, "CSV", "Another catalogue");
}

}  // namespace

void add_plan_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan", "Show which hardware holds a model, how fast, and with which command");
  add_options(*command, *options);
  command->footer(
      "Exit code: 0 fits (or with offload), 1 does not fit, 2 wrong value, 3 unknown model, "
      "device,\n"
      "format or unreadable file, 4 impossible combination. Speeds are estimates, x0.6 to x1.5.\n"
      "Example: nibble plan deepseek-r1 --gpu h200x8 --context max --batch 64");
  command->callback([options, exit_code] {
    const auto result = run_plan(*options);
    *exit_code = result ? *result : report_plan_error(result.error(), *options);
  });
}

}  // namespace nibble
