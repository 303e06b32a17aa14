#include <fmt/format.h>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/packed_expert.h"

namespace nibble {
namespace {

class PackedLoader final : public ExpertLoader {
 public:
  PackedLoader(ExpertFile file, std::unique_ptr<RecordReader> reader)
      : file_(std::move(file)), reader_(std::move(reader)) {}

  uint64_t record_bytes(int layer, int expert) const override {
    const ExpertIndexEntry* const entry = file_.find(layer, expert);
    return entry == nullptr ? 0 : entry->bytes;
  }
  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    const ExpertIndexEntry* const entry = file_.find(layer, expert);
    NIBBLE_CHECK(entry != nullptr && destination.size() == entry->bytes);
    return reader_->start(entry->offset, destination, urgent, std::move(done));
  }
  void hurry(uint64_t ticket) override { reader_->hurry(ticket); }
  bool cancel(uint64_t ticket) override { return reader_->cancel(ticket); }
  uint64_t bytes_read() const override { return reader_->bytes_read(); }
  double busy_seconds() const override { return reader_->busy_seconds(); }
  std::string description() const override {
    return fmt::format("{} by {}", file_.path().filename().string(), reader_->description());
  }

 private:
  ExpertFile file_;
  std::unique_ptr<RecordReader> reader_;
};

Status check_file(const ExpertFile& file, const ModelConfig& config, const Kernels& kernels,
                  bool with_mtp) {
  const ExpertFileHeader& header = file.header();
  if (file.layout() != kernels.packed_layout()) {
    return unsupported(
        fmt::format("{} is laid out as '{}', the {} backend reads '{}'; pack the model again",
                    file.path().string(), file.layout(), kernels.name(), kernels.packed_layout()));
  }
  if (header.hidden_size != config.hidden_size ||
      header.moe_intermediate_size != config.moe_intermediate_size ||
      header.num_experts != static_cast<uint32_t>(config.n_routed_experts)) {
    return corrupt(
        fmt::format("{} has {} experts of {} x {}, config.json {} of {} x {}", file.path().string(),
                    header.num_experts, header.moe_intermediate_size, header.hidden_size,
                    config.n_routed_experts, config.moe_intermediate_size, config.hidden_size));
  }
  for (const int layer : moe_layers(config, with_mtp)) {
    for (int e = 0; e < config.n_routed_experts; ++e) {
      if (file.find(layer, e) == nullptr) {
        return corrupt(
            fmt::format("{} lacks {}", file.path().string(), expert_record_name(layer, e)));
      }
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<ExpertLoader>> make_packed_loader(const std::filesystem::path& path,
                                                         const ModelConfig& config,
                                                         const Kernels& kernels, bool with_mtp,
                                                         const ReaderOptions& options) {
  ExpertFile file = NIBBLE_TRY(ExpertFile::open(path));
  NIBBLE_TRY(check_file(file, config, kernels, with_mtp));
  auto reader = NIBBLE_TRY(RecordReader::open(path, options));
  return std::unique_ptr<ExpertLoader>(
      std::make_unique<PackedLoader>(std::move(file), std::move(reader)));
}

}  // namespace nibble
