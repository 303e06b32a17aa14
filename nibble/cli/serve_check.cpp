// What the settings have to be together.
#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/cli/serve_options.h"

namespace nibble {

Status check_serve_options(ServeOptions* options) {
  ServeOptions& o = *options;
  o.model_options.backend = NIBBLE_TRY(backend_on_device(o.model_options.backend, o.device));
  if (o.http.certificate_file.empty() != o.http.key_file.empty()) {
    return invalid_argument("ssl_certfile and ssl_keyfile belong together");
  }
  const auto& origins = o.service.access.cors_origins;
  if (origins.size() > 1 && std::find(origins.begin(), origins.end(), "*") != origins.end()) {
    return invalid_argument("cors_origins names * beside others");
  }
  if (o.engine.num_drafts == 0 && !o.speculative_decoding_type.empty()) o.engine.num_drafts = 1;
  if (o.engine.num_drafts > 0) NIBBLE_TRY(validate(o.engine.draft, o.engine.num_drafts));
  const auto& recorded = o.engine.cuda_graph_batch_sizes;
  if (o.cuda_graph_max_batch_size && recorded.empty()) {
    o.notes.push_back(
        "cuda_graph_config.max_batch_size has no effect without batch_sizes: sizes are recorded as "
        "they come, up to max_batch_size");
  }
  if (o.cuda_graph_max_batch_size && !recorded.empty() &&
      *std::max_element(recorded.begin(), recorded.end()) != *o.cuda_graph_max_batch_size) {
    return invalid_argument(fmt::format(
        "cuda_graph_config.max_batch_size is {}, but the largest of its batch_sizes is {}",
        *o.cuda_graph_max_batch_size, *std::max_element(recorded.begin(), recorded.end())));
  }
  const int64_t needed = o.engine.max_batch_size * (1 + o.engine.num_drafts);
  if (o.engine.max_num_tokens < needed) {
    return invalid_argument(
        fmt::format("max_num_tokens is {}, expected at least max_batch_size * (1 + drafts) = {}",
                    o.engine.max_num_tokens, needed));
  }
  if (o.kv_cache_max_tokens) {
    o.engine.num_blocks = (*o.kv_cache_max_tokens + o.engine.block_size - 1) / o.engine.block_size;
  }
  o.model_options.load_mtp = o.engine.num_drafts > 0;
  o.service.max_batch_size = o.engine.max_batch_size;
  o.service.max_queue_size =
      o.max_queue_size.value_or(std::clamp<int64_t>(4 * o.engine.max_batch_size, 16, 4096));
  return {};
}

}  // namespace nibble
