// What nibble serve was asked for, from the command line, the environment and a YAML file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/cli/parallel_options.h"
#include "nibble/engine/engine.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/server/http.h"
#include "nibble/server/service.h"

namespace nibble {

struct ServeOptions {
  std::string model = "demo";
  std::string tokenizer;
  std::string chat_template;
  std::string config_file;

  HttpServerOptions http;
  ServiceOptions service;
  ModelOptions model_options;
  std::string device = "auto";  // check_serve_options() puts it into model_options.backend
  EngineOptions engine;
  ParallelOptions parallel;
  std::optional<int64_t> max_queue_size;
  std::optional<int64_t> kv_cache_max_tokens;
  std::string api_key_file;

  std::vector<std::string> served_model_names;
  std::string reasoning_parser = "auto";
  std::string tool_parser = "auto";
  std::string thinking = "auto";
  std::string reasoning_fields = "both";
  std::string sampling_defaults = "model";
  std::string speculative_decoding_type;  // "" or "MTP"
  std::optional<int64_t> cuda_graph_max_batch_size;
  bool allow_special_in_content = false;
  bool strict_request_fields = false;
  int64_t max_logprobs = 20;
  std::optional<int64_t> max_new_tokens;
  double shutdown_timeout = 25;  // seconds
  bool dry_run = false;

  // Settings that were taken without having an effect here: "backend pytorch", ...
  std::vector<std::string> notes;
};

// One thing that can be set: on the command line as --NAME, in the environment as
// NIBBLE_SERVE_NAME, in YAML as NAME or one of yaml_paths.
struct ServeSetting {
  std::string name;                     // "max_batch_size"
  std::vector<std::string> aliases;     // further names on the command line and in YAML
  std::vector<std::string> yaml_paths;  // "kv_cache_config.dtype"
  std::string group;                    // of the help
  std::string help;
  std::string value_name;  // "" : a flag, which takes true and false
  std::function<Status(ServeOptions&, const std::string& value)> set;
};

// All of them.
const std::vector<ServeSetting>& serve_settings();

// The setting of that name, alias or YAML path; null when there is none.
const ServeSetting* find_serve_setting(std::string_view name);

// What is wrong, all of it, one line each.
class Problems {
 public:
  void add(const Status& status);
  // kUnsupported when all are that, otherwise kInvalidArgument.
  Status status() const;

 private:
  std::string text_;
  bool only_unsupported_ = true;
};

// Sets what the environment's NIBBLE_SERVE_... say. Errors: one line for each variable that is
// unknown or has a bad value; kInvalidArgument, or kUnsupported when all are known and not to be
// had.
Status apply_environment(ServeOptions* options);

// Sets what a YAML file says: maps, lists and scalars; nested keys are written "a.b". The file wins
// over `given`, the settings of the command line by name; each conflict is noted.
// Errors: kInvalidArgument with one line for each problem, "FILE:LINE: message"; kUnsupported for
// what is known and not to be had here.
Status apply_config_file(const std::string& path, const std::map<std::string, std::string>& given,
                         ServeOptions* options);

// The same for the text of a file; `where` names it.
Status apply_config_text(const std::string& text, const std::string& where,
                         const std::map<std::string, std::string>& given, ServeOptions* options);

// What only shows when all is known. Errors: kInvalidArgument, kUnsupported.
Status check_serve_options(ServeOptions* options);

}  // namespace nibble
