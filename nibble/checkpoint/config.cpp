#include "nibble/checkpoint/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"

namespace nibble {
namespace {

constexpr const char* kArchitecture = "DeepseekV3ForCausalLM";

// Upper limits, far above DeepSeek-R1's values: so that no product of sizes overflows 63 bits, and
// a hostile config can't make us list billions of tensors.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHidden = int64_t{1} << 18;
constexpr int64_t kMaxIntermediate = int64_t{1} << 20;
constexpr int64_t kMaxRank = int64_t{1} << 16;
constexpr int64_t kMaxHeadDim = int64_t{1} << 12;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxLayers = 256;
constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// Reads fields of one JSON object and keeps the first error, so that the list of fields below reads
// as a list. A field that is null counts as missing.
class FieldReader {
 public:
  FieldReader(const JsonValue& json, std::string_view where) : json_(json), where_(where) {}

  std::string_view where() const { return where_; }

  const JsonValue* find(std::string_view name) const {
    const JsonValue* value = json_.find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  template <typename Int>
  void integer(std::string_view name, Int& out, int64_t low, int64_t high, bool required = true) {
    const JsonValue* value = field(name, required);
    if (value == nullptr) return;
    const int64_t* number = value->as_integer();
    if (number == nullptr || *number < low || *number > high) {
      return fail(corrupt(fmt::format("{}: {} is {}, expected an integer in [{}, {}]", where_, name,
                                      to_json(*value, -1), low, high)));
    }
    out = static_cast<Int>(*number);
  }

  // low < value <= high, or low <= value when `low_allowed`.
  void number(std::string_view name, double& out, double low, double high, bool low_allowed,
              bool required = true) {
    const JsonValue* value = field(name, required);
    if (value == nullptr) return;
    const std::optional<double> number = value->as_number();
    if (!number || !std::isfinite(*number) || *number < low || *number > high ||
        (!low_allowed && *number == low)) {
      return fail(corrupt(fmt::format("{}: {} is {}, expected a number in {}{}, {}]", where_, name,
                                      to_json(*value, -1), low_allowed ? '[' : '(', low, high)));
    }
    out = *number;
  }

  void boolean(std::string_view name, bool& out, bool required = true) {
    const JsonValue* value = field(name, required);
    if (value == nullptr) return;
    const bool* flag = value->as_boolean();
    if (flag == nullptr) {
      return fail(corrupt(
          fmt::format("{}: {} is {}, expected true or false", where_, name, to_json(*value, -1))));
    }
    out = *flag;
  }

  void string(std::string_view name, std::string& out, bool required = true) {
    const JsonValue* value = field(name, required);
    if (value == nullptr) return;
    const std::string* text = value->as_string();
    if (text == nullptr) {
      return fail(corrupt(
          fmt::format("{}: {} is {}, expected a string", where_, name, to_json(*value, -1))));
    }
    out = *text;
  }

  // The field must be there with this value, or may be missing when not `required`.
  void only(std::string_view name, std::string_view supported, bool required = true) {
    std::string found(supported);
    string(name, found, required);
    if (found != supported) {
      fail(unsupported(
          fmt::format("{}: {} '{}' is not supported, only '{}'", where_, name, found, supported)));
    }
  }

  void fail(tl::unexpected<Error> error) {
    if (status) status = tl::unexpected(std::move(error).value());
  }

  Status status;

 private:
  const JsonValue* field(std::string_view name, bool required) {
    const JsonValue* value = find(name);
    if (value == nullptr && required) {
      fail(corrupt(fmt::format("{}: the field {} is missing", where_, name)));
    }
    return value;
  }

  const JsonValue& json_;
  std::string_view where_;
};

Status check_architecture(const FieldReader& fields, std::string_view where) {
  const JsonValue* value = fields.find("architectures");
  if (value == nullptr) {
    return corrupt(fmt::format("{}: the field architectures is missing", where));
  }
  if (const auto* names = value->as_array()) {
    for (const JsonValue& name : *names) {
      if (name.as_string() != nullptr && *name.as_string() == kArchitecture) return {};
    }
  }
  return unsupported(fmt::format("{}: architectures {} is not supported, only [\"{}\"]", where,
                                 to_json(*value, -1), kArchitecture));
}

// rope_scaling {"type": "yarn", ...}; newer files call the type rope_type.
Result<YarnConfig> parse_yarn(const JsonValue& json, std::string_view where) {
  if (json.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, json.kind_name()));
  }
  FieldReader fields(json, where);
  fields.only(fields.find("type") != nullptr ? "type" : "rope_type", "yarn");
  YarnConfig yarn;
  fields.number("factor", yarn.factor, 1, 1e6, true);
  fields.integer("original_max_position_embeddings", yarn.original_max_position_embeddings, 1,
                 kMaxPositions);
  fields.number("beta_fast", yarn.beta_fast, 0, 1e6, false, false);
  fields.number("beta_slow", yarn.beta_slow, 0, 1e6, false, false);
  fields.number("mscale", yarn.mscale, 0, 1e3, true, false);
  fields.number("mscale_all_dim", yarn.mscale_all_dim, 0, 1e3, true, false);
  NIBBLE_TRY(fields.status);
  if (yarn.beta_fast < yarn.beta_slow) {
    return corrupt(fmt::format("{}: beta_fast {} is below beta_slow {}", where, yarn.beta_fast,
                               yarn.beta_slow));
  }
  return yarn;
}

// An id or a list of ids.
Result<std::vector<int64_t>> parse_token_ids(const JsonValue& json, int64_t vocab_size,
                                             std::string_view where) {
  std::vector<JsonValue> items;
  if (const auto* list = json.as_array()) {
    items = *list;
  } else {
    items.push_back(json);
  }
  std::vector<int64_t> ids;
  for (const JsonValue& item : items) {
    const int64_t* id = item.as_integer();
    if (id == nullptr || *id < 0 || *id >= vocab_size) {
      return corrupt(fmt::format("{} holds {}, expected token ids in [0, {}]", where,
                                 to_json(item, -1), vocab_size - 1));
    }
    ids.push_back(*id);
  }
  return ids;
}

Status check_unsupported_fields(const FieldReader& fields, const ModelConfig& config,
                                std::string_view where) {
  const auto refuse = [&](std::string_view what, std::string_view supported) {
    return unsupported(fmt::format("{}: {} is not supported, only {}", where, what, supported));
  };
  if (config.tie_word_embeddings) return refuse("tie_word_embeddings true", "false");
  if (config.moe_layer_freq != 1) {
    return refuse(fmt::format("moe_layer_freq {}", config.moe_layer_freq), "1");
  }
  if (config.num_nextn_predict_layers > 1) {
    return refuse(fmt::format("num_nextn_predict_layers {}", config.num_nextn_predict_layers),
                  "0 and 1");
  }
  if (config.num_key_value_heads != config.num_attention_heads) {
    return refuse(fmt::format("num_key_value_heads {} with num_attention_heads {}",
                              config.num_key_value_heads, config.num_attention_heads),
                  "equal numbers (MLA)");
  }
  // Where Hugging Face's implementation turns the rotation's layout around by option, the default
  // (true) is DeepSeek's.
  if (const JsonValue* interleave = fields.find("rope_interleave")) {
    if (interleave->as_boolean() == nullptr || !*interleave->as_boolean()) {
      return refuse(fmt::format("rope_interleave {}", to_json(*interleave, -1)), "true");
    }
  }
  return {};
}

// What the router needs: DeepSeek-V3 picks topk_group of n_group groups by the sum of each group's
// two best experts, then num_experts_per_tok experts inside those groups.
Status check_experts(const ModelConfig& config, std::string_view where) {
  if (config.n_routed_experts % config.n_group != 0) {
    return corrupt(fmt::format("{}: n_routed_experts {} is not a multiple of n_group {}", where,
                               config.n_routed_experts, config.n_group));
  }
  if (config.topk_group > config.n_group) {
    return corrupt(fmt::format("{}: topk_group {} is above n_group {}", where, config.topk_group,
                               config.n_group));
  }
  const int experts_per_group = config.n_routed_experts / config.n_group;
  if (experts_per_group < 2) {
    return corrupt(fmt::format(
        "{}: n_routed_experts {} in n_group {} gives {} expert a group, but noaux_tc needs 2",
        where, config.n_routed_experts, config.n_group, experts_per_group));
  }
  if (config.num_experts_per_tok > config.topk_group * experts_per_group) {
    return corrupt(fmt::format(
        "{}: num_experts_per_tok {} is above the {} experts in topk_group {} groups of {}", where,
        config.num_experts_per_tok, config.topk_group * experts_per_group, config.topk_group,
        experts_per_group));
  }
  return {};
}

void read_fields(FieldReader& fields, ModelConfig& config) {
  fields.integer("vocab_size", config.vocab_size, 1, kMaxVocab);
  fields.integer("hidden_size", config.hidden_size, 1, kMaxHidden);
  fields.integer("intermediate_size", config.intermediate_size, 1, kMaxIntermediate);
  fields.integer("moe_intermediate_size", config.moe_intermediate_size, 1, kMaxIntermediate);
  fields.integer("num_hidden_layers", config.num_hidden_layers, 1, kMaxLayers);
  fields.integer("num_nextn_predict_layers", config.num_nextn_predict_layers, 0, kMaxLayers, false);
  fields.integer("num_attention_heads", config.num_attention_heads, 1, kMaxHeads);
  config.num_key_value_heads = config.num_attention_heads;
  fields.integer("num_key_value_heads", config.num_key_value_heads, 1, kMaxHeads, false);
  fields.integer("q_lora_rank", config.q_lora_rank, 1, kMaxRank);
  fields.integer("kv_lora_rank", config.kv_lora_rank, 1, kMaxRank);
  fields.integer("qk_nope_head_dim", config.qk_nope_head_dim, 1, kMaxHeadDim);
  fields.integer("qk_rope_head_dim", config.qk_rope_head_dim, 2, kMaxHeadDim);
  fields.integer("v_head_dim", config.v_head_dim, 1, kMaxHeadDim);
  fields.integer("n_routed_experts", config.n_routed_experts, 1, kMaxExperts);
  fields.integer("n_shared_experts", config.n_shared_experts, 1, 64);
  fields.integer("num_experts_per_tok", config.num_experts_per_tok, 1, kMaxExperts);
  fields.integer("n_group", config.n_group, 1, kMaxExperts);
  fields.integer("topk_group", config.topk_group, 1, kMaxExperts);
  fields.integer("moe_layer_freq", config.moe_layer_freq, 1, kMaxLayers, false);
  fields.integer("first_k_dense_replace", config.first_k_dense_replace, 0, kMaxLayers);
  fields.boolean("norm_topk_prob", config.norm_topk_prob);
  fields.number("routed_scaling_factor", config.routed_scaling_factor, 0, 1e6, false);
  fields.number("rms_norm_eps", config.rms_norm_eps, 0, 1, false);
  fields.integer("max_position_embeddings", config.max_position_embeddings, 1, kMaxPositions);
  fields.boolean("tie_word_embeddings", config.tie_word_embeddings, false);
  config.torch_dtype = "bfloat16";
  fields.string(fields.find("torch_dtype") != nullptr ? "torch_dtype" : "dtype", config.torch_dtype,
                false);
  fields.only("topk_method", "noaux_tc");
  fields.only("scoring_func", "sigmoid");
  fields.only("hidden_act", "silu");
  bool attention_bias = false;
  fields.boolean("attention_bias", attention_bias, false);
  if (attention_bias) {
    fields.fail(unsupported(
        fmt::format("{}: attention_bias true is not supported, only false", fields.where())));
  }
}

}  // namespace

Result<ModelConfig> parse_config(std::string_view json, std::string_view where) {
  const JsonValue root = NIBBLE_TRY(parse_json(json, where));
  if (root.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, root.kind_name()));
  }
  FieldReader fields(root, where);
  NIBBLE_TRY(check_architecture(fields, where));
  ModelConfig config;
  read_fields(fields, config);

  // Newer files keep rope_theta and the scaling together in rope_parameters.
  const JsonValue* rope_parameters = fields.find("rope_parameters");
  const JsonValue* rope_scaling = fields.find("rope_scaling");
  if (rope_parameters != nullptr && fields.find("rope_theta") == nullptr) {
    FieldReader rope(*rope_parameters, where);
    rope.number("rope_theta", config.rope_theta, 1, 1e12, false);
    NIBBLE_TRY(rope.status);
    const JsonValue* type = rope.find("rope_type");
    if (type == nullptr || type->as_string() == nullptr || *type->as_string() != "default") {
      rope_scaling = rope_parameters;
    }
  } else {
    fields.number("rope_theta", config.rope_theta, 1, 1e12, false);
  }
  NIBBLE_TRY(fields.status);
  if (rope_scaling != nullptr) {
    config.rope_scaling =
        NIBBLE_TRY(parse_yarn(*rope_scaling, fmt::format("{}: rope_scaling", where)));
  }
  if (config.qk_rope_head_dim % 2 != 0) {
    return corrupt(fmt::format("{}: qk_rope_head_dim {} is odd, expected even", where,
                               config.qk_rope_head_dim));
  }
  if (config.first_k_dense_replace > config.num_hidden_layers) {
    return corrupt(fmt::format("{}: first_k_dense_replace {} is above num_hidden_layers {}", where,
                               config.first_k_dense_replace, config.num_hidden_layers));
  }
  NIBBLE_TRY(check_unsupported_fields(fields, config, where));
  NIBBLE_TRY(check_experts(config, where));

  fields.integer("bos_token_id", config.bos_token_id, 0, config.vocab_size - 1, false);
  NIBBLE_TRY(fields.status);
  if (const JsonValue* eos = fields.find("eos_token_id")) {
    config.eos_token_ids = NIBBLE_TRY(
        parse_token_ids(*eos, config.vocab_size, fmt::format("{}: eos_token_id", where)));
  }
  return config;
}

Result<ModelConfig> load_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  const std::string text = NIBBLE_TRY(read_text_file(path));
  ModelConfig config = NIBBLE_TRY(parse_config(text, path.string()));

  const auto generation_path = directory / "generation_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(generation_path, ignored)) {
    const std::string generation_text = NIBBLE_TRY(read_text_file(generation_path));
    const JsonValue json = NIBBLE_TRY(parse_json(generation_text, generation_path.string()));
    const JsonValue* eos = json.find("eos_token_id");
    if (eos != nullptr && !eos->is_null()) {
      const auto where = fmt::format("{}: eos_token_id", generation_path.string());
      for (const int64_t id : NIBBLE_TRY(parse_token_ids(*eos, config.vocab_size, where))) {
        if (std::find(config.eos_token_ids.begin(), config.eos_token_ids.end(), id) ==
            config.eos_token_ids.end()) {
          config.eos_token_ids.push_back(id);
        }
      }
    }
  }
  return config;
}

}  // namespace nibble
