#include "nibble/plan/gguf_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/plan/formats.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// ggml's numbers of types that block_types() has by name.
struct TypeNumber {
  uint32_t number;
  std::string_view name;
};
constexpr auto kTypes = std::to_array<TypeNumber>(
    {{0, "F32"},     {1, "F16"},    {2, "Q4_0"},     {3, "Q4_1"},    {6, "Q5_0"},     {7, "Q5_1"},
     {8, "Q8_0"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},    {13, "Q5_K"},
     {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
     {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {29, "IQ1_M"},   {30, "BF16"},
     {34, "TQ1_0"},  {35, "TQ2_0"}, {39, "MXFP4"}});

// Reads little-endian values and remembers whether the bytes ran out.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T value() {
    T result{};
    if (!take(sizeof(T))) return result;
    std::memcpy(&result, bytes_.data() + position_ - sizeof(T), sizeof(T));
    return result;
  }
  std::string_view string() {
    const auto size = value<uint64_t>();
    if (!take(size)) return {};
    return {reinterpret_cast<const char*>(bytes_.data()) + position_ - size,
            static_cast<size_t>(size)};
  }
  bool take(uint64_t size) {
    if (!good_ || size > bytes_.size() - position_) return good_ = false;
    position_ += static_cast<size_t>(size);
    return true;
  }
  bool good() const { return good_; }
  size_t position() const { return position_; }

 private:
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
  bool good_ = true;
};

// The kinds of metadata values, as numbered by the format.
enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

struct Header {
  std::map<std::string, int64_t, std::less<>> integers;
  std::map<std::string, std::string, std::less<>> strings;
  ModelWeights weights;
  int64_t num_tensors = 0;
};

std::optional<int64_t> read_integer(Reader& reader, uint32_t type) {
  switch (type) {
    case kU8:
      return reader.value<uint8_t>();
    case kI8:
      return reader.value<int8_t>();
    case kU16:
      return reader.value<uint16_t>();
    case kI16:
      return reader.value<int16_t>();
    case kU32:
      return reader.value<uint32_t>();
    case kI32:
      return reader.value<int32_t>();
    case kBool:
      return reader.value<uint8_t>();
    case kU64:
    case kI64:
      return reader.value<int64_t>();
    default:
      return std::nullopt;
  }
}

bool skip_array(Reader& reader) {
  constexpr std::array<uint64_t, 13> kSizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const auto type = reader.value<uint32_t>();
  const auto count = reader.value<uint64_t>();
  if (type == kString) {
    for (uint64_t i = 0; i < count && reader.good(); ++i) (void)reader.string();
    return reader.good();
  }
  // An array of arrays has no use here.
  if (type >= kSizes.size() || kSizes[type] == 0 || count > (uint64_t{1} << 40)) return false;
  return reader.take(count * kSizes[type]);
}

bool read_metadata(Reader& reader, Header& header) {
  const std::string key(reader.string());
  const auto type = reader.value<uint32_t>();
  if (type == kString) {
    header.strings[key] = reader.string();
  } else if (type == kArray) {
    return skip_array(reader);
  } else if (type == kF32) {
    (void)reader.value<float>();
  } else if (type == kF64) {
    (void)reader.value<double>();
  } else if (const auto number = read_integer(reader, type)) {
    header.integers[key] = *number;
  } else {
    return false;
  }
  return reader.good();
}

WeightKind kind_of(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has("token_embd.")) return WeightKind::kEmbedding;
  if (name.starts_with("output.")) return WeightKind::kHead;
  if (has("norm")) return WeightKind::kNorms;
  if (has("_exps.")) return WeightKind::kRoutedExperts;
  if (has("_shexp.")) return WeightKind::kSharedExperts;
  if (has(".ffn_gate_inp.")) return WeightKind::kRouter;
  if (has(".exp_probs_b.")) return WeightKind::kRouterBias;
  if (has(".ffn_")) return WeightKind::kDenseMlp;
  if (has(".attn_q_a.")) return WeightKind::kQAProj;
  if (has(".attn_q_b.")) return WeightKind::kQBProj;
  if (has(".attn_kv_a_mqa.")) return WeightKind::kKvAProj;
  if (has(".attn_kv_b.") || has(".attn_k_b.") || has(".attn_v_b.")) return WeightKind::kKvBProj;
  if (has(".attn_output.")) return WeightKind::kOProj;
  return WeightKind::kOther;
}

// Errors: as read_gguf_header.
Status read_tensor(Reader& reader, const std::string& file, Header& header) {
  const std::string name(reader.string());
  const auto rank = reader.value<uint32_t>();
  int64_t elements = 1;
  int64_t row = 1;
  bool sane = rank >= 1 && rank <= 4;
  for (uint32_t i = 0; sane && i < rank; ++i) {
    const auto extent = reader.value<int64_t>();
    sane = extent >= 1 && extent <= (int64_t{1} << 40) &&
           !__builtin_mul_overflow(elements, extent, &elements) && elements < (int64_t{1} << 56);
    if (i == 0) row = extent;
  }
  const auto number = reader.value<uint32_t>();
  (void)reader.value<uint64_t>();  // where its data begins
  if (!reader.good() || !sane) {
    return corrupt(
        fmt::format("{}: the tensor list is damaged at byte {}", file, reader.position()));
  }
  const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const TypeNumber& t) { return t.number == number; });
  if (type == kTypes.end()) {
    return unsupported(
        fmt::format("{}: {} has the tensor type {}, which is not known", file, name, number));
  }
  const auto block = std::find_if(block_types().begin(), block_types().end(),
                                  [&](const BlockType& b) { return b.name == type->name; });
  if (row % block->elements != 0) {
    return corrupt(fmt::format("{}: {} has rows of {}, no multiple of {}'s {}", file, name, row,
                               type->name, block->elements));
  }
  WeightCell& cell = header.weights.cell(kind_of(name));
  cell.bytes += elements / block->elements * block->bytes;
  cell.parameters += elements;
  cell.storage = Storage::kGguf;
  ++header.num_tensors;
  return {};
}

Status read_part(const fs::path& path, Header& header) {
  const std::string name = path.filename().string();
  const MappedFile file = NIBBLE_TRY(MappedFile::open(path));
  Reader reader(file.bytes());
  if (reader.value<uint32_t>() != 0x46554747u) {
    return corrupt(fmt::format("{}: it does not begin with 'GGUF'", name));
  }
  const auto version = reader.value<uint32_t>();
  if (version != 2 && version != 3) {
    return unsupported(fmt::format("{}: GGUF version {}, expected 2 or 3", name, version));
  }
  const auto tensors = reader.value<uint64_t>();
  const auto entries = reader.value<uint64_t>();
  for (uint64_t i = 0; i < entries; ++i) {
    if (!read_metadata(reader, header)) {
      return corrupt(
          fmt::format("{}: the metadata is damaged at byte {}", name, reader.position()));
    }
  }
  for (uint64_t i = 0; i < tensors; ++i) NIBBLE_TRY(read_tensor(reader, name, header));
  return {};
}

Result<ModelConfig> config_of(const Header& header, const std::string& where) {
  const auto get = [&](std::string_view key, int64_t other) {
    const auto found = header.integers.find("deepseek2." + std::string(key));
    return found == header.integers.end() ? other : found->second;
  };
  const int64_t rope = get("rope.dimension_count", 0);
  // Files for absorbed attention have the latent's widths under key_length and value_length.
  const int64_t key = get("attention.key_length_mla", get("attention.key_length", 0));
  const int64_t value = get("attention.value_length_mla", get("attention.value_length", 0));
  const int64_t heads = get("attention.head_count", 0);
  const WeightCell& embedding = header.weights.cell(WeightKind::kEmbedding);
  const int64_t hidden = get("embedding_length", 0);
  const int64_t vocab = get("vocab_size", hidden > 0 ? embedding.parameters / hidden : 0);
  return parse_config(
      fmt::format(
          R"({{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": {}, "hidden_size": {},
  "intermediate_size": {}, "moe_intermediate_size": {}, "num_hidden_layers": {},
  "num_nextn_predict_layers": 0, "num_attention_heads": {}, "num_key_value_heads": {},
  "q_lora_rank": {}, "kv_lora_rank": {}, "qk_nope_head_dim": {}, "qk_rope_head_dim": {},
  "v_head_dim": {}, "n_routed_experts": {}, "n_shared_experts": {}, "num_experts_per_tok": {},
  "n_group": 1, "topk_group": 1, "first_k_dense_replace": {}, "norm_topk_prob": true,
  "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-06, "rope_theta": 10000, "rope_scaling": null,
  "max_position_embeddings": {}, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
  "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1}})",
          vocab, hidden, get("feed_forward_length", 0), get("expert_feed_forward_length", 0),
          get("block_count", 0), heads, heads, get("attention.q_lora_rank", 0),
          get("attention.kv_lora_rank", 0), key - rope, rope, value, get("expert_count", 0),
          get("expert_shared_count", 0), get("expert_used_count", 0),
          get("leading_dense_block_count", 0), get("context_length", 0)),
      where + ": its metadata");
}

// "x-00002-of-00009.gguf" and its neighbours, or the file alone.
std::vector<fs::path> parts_of(const fs::path& path) {
  const std::string stem = path.stem().string();
  constexpr size_t kTail = 15;  // "-00002-of-00009"
  int part = 0, count = 0;
  if (stem.size() <= kTail ||
      std::sscanf(stem.c_str() + stem.size() - kTail, "-%5d-of-%5d", &part, &count) != 2 ||
      count < 1) {
    return {path};
  }
  std::vector<fs::path> parts;
  for (int i = 1; i <= count; ++i) {
    parts.push_back(path.parent_path() / fmt::format("{}-{:05}-of-{:05}.gguf",
                                                     stem.substr(0, stem.size() - kTail), i,
                                                     count));
  }
  return parts;
}

}  // namespace

Result<GgufModel> read_gguf_header(const fs::path& path) {
  Header header;
  const std::vector<fs::path> parts = parts_of(path);
  for (const fs::path& part : parts) NIBBLE_TRY(read_part(part, header));
  const std::string name = path.filename().string();
  const auto architecture = header.strings.find("general.architecture");
  const std::string found = architecture == header.strings.end() ? "" : architecture->second;
  if (found != "deepseek2") {
    return unsupported(fmt::format(
        "{}: general.architecture is '{}', only 'deepseek2' is supported", name, found));
  }
  GgufModel model;
  model.config = NIBBLE_TRY(config_of(header, name));
  model.weights = header.weights;
  const auto moe_layers = model.config.num_hidden_layers - model.config.first_k_dense_replace;
  if (moe_layers > 0) {
    model.weights.expert_bytes = model.weights.cell(WeightKind::kRoutedExperts).bytes /
                                 (int64_t{moe_layers} * model.config.n_routed_experts);
  }
  model.source = fmt::format("header{} of {} GGUF file{}, {} tensors", parts.size() == 1 ? "" : "s",
                             parts.size(), parts.size() == 1 ? "" : "s",
                             format_count(static_cast<uint64_t>(header.num_tensors)));
  return model;
}

}  // namespace nibble
