// One sequence on a loaded model: its tokens, its cache and the next logits.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/model/forward.h"
#include "nibble/model/workspace.h"

namespace nibble {

struct SessionOptions {
  DType kv_cache_dtype = DType::kBf16;
  int64_t max_tokens = 0;    // that the cache holds; 0: the model's max_seq_len
  int64_t chunk_size = 512;  // tokens of one forward pass during prefill
  bool with_mtp = false;     // run the MTP layer beside the model, for draft logits
};

// Not thread-safe. The model must outlive it.
class Session {
 public:
  // Errors: kInvalidArgument (limits below 1 or above the model's; MTP without an MTP layer),
  // kOutOfMemory.
  static Result<Session> create(LoadedModel& model, const SessionOptions& options);

  // Sees the logits [rows, vocab_size] of the appended tokens first .. first + rows - 1, counted
  // from the first token of this call; valid during the call.
  using LogitsSink = std::function<void(int64_t first, const MatrixView& logits)>;

  // Runs `token_ids` behind what is there already, in chunks. Prompts take MlaForm::kExpanded,
  // generated tokens kAbsorbed. Afterwards last_logits() are those of the last token.
  // Errors: kInvalidArgument (no tokens, an id outside the vocabulary, more than the cache holds),
  // kCancelled between two chunks after an interrupt. Tokens of finished chunks stay.
  Status append(std::span<const int32_t> token_ids, MlaForm form, const LogitsSink& all_logits = {},
                const HiddenObserver& observer = {});

  // [vocab_size], of the last token that was appended.
  std::span<const float> last_logits() const { return last_logits_; }

  // Draft logits [tokens, vocab_size] for each but the last token so far, in the order of append():
  // row t predicts token t + 2. Needs with_mtp; runs the MTP layer over all of them.
  Status mtp_logits(const LogitsSink& sink);

  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  int64_t max_tokens() const { return max_tokens_; }

 private:
  Session(LoadedModel& model, KvCache cache, Workspace workspace)
      : model_(&model), cache_(std::move(cache)), workspace_(std::move(workspace)) {}

  Status append_chunk(std::span<const int32_t> token_ids, MlaForm form, int64_t first,
                      bool want_last, const LogitsSink& all_logits, const HiddenObserver& observer);
  Status run_head(const MatrixView& hidden, int64_t first, const LogitsSink& sink);
  MatrixView hidden_view(int64_t rows) const;

  LoadedModel* model_;
  KvCache cache_;
  Workspace workspace_;
  int64_t chunk_size_ = 0;
  int64_t max_tokens_ = 0;
  bool with_mtp_ = false;
  std::vector<int32_t> block_table_;
  std::vector<int32_t> token_ids_;
  std::vector<float> last_logits_;
  std::vector<float> hidden_;  // with_mtp: [tokens, hidden_size] on the host
  // Memory that the host sees, too.
  Buffer hidden_rows_;  // [chunk_size, hidden_size]
  Buffer logits_;       // [kLogitRows, vocab_size]
};

}  // namespace nibble
