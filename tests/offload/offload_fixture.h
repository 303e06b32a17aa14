// The demo checkpoint's experts in packed files, made once for all tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/kernels/registry.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/expert_packer.h"
#include "nibble/offload/tiered_store.h"
#include "tests/model/demo.h"

namespace nibble::testing {

// A folder of this process, removed with it.
inline const std::filesystem::path& offload_folder() {
  struct Folder {
    Folder() {
      path =
          std::filesystem::temp_directory_path() / ("nibble_offload_" + std::to_string(::getpid()));
      std::filesystem::create_directories(path);
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::filesystem::path path;
  };
  static const Folder folder;
  return folder.path;
}

struct DemoParts {
  ModelConfig config;
  std::unique_ptr<SafetensorsSource> source;
  std::unique_ptr<Kernels> kernels;
};

inline DemoParts& demo_parts() {
  static DemoParts parts = [] {
    DemoParts made;
    made.config = load_config(demo_checkpoint()).value();
    made.source = SafetensorsSource::open(demo_checkpoint()).value();
    made.kernels = make_kernels("cpu", {}).value();
    return made;
  }();
  return parts;
}

// The demo checkpoint's experts, packed for the cpu backend.
inline const std::filesystem::path& packed_demo() {
  static const std::filesystem::path path = [] {
    const auto file = offload_folder() / "demo.nibble";
    auto& parts = demo_parts();
    const auto report = pack_experts(*parts.source, parts.config, *parts.kernels, file, {});
    if (!report) throw std::runtime_error(report.error().message);
    return file;
  }();
  return path;
}

inline std::filesystem::path copy_of_packed_demo(const std::string& name) {
  const auto path = offload_folder() / name;
  std::filesystem::copy_file(packed_demo(), path,
                             std::filesystem::copy_options::overwrite_existing);
  return path;
}

inline void flip_byte(const std::filesystem::path& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  char byte = 0;
  file.read(&byte, 1);
  byte = static_cast<char>(byte ^ 1);
  file.seekp(static_cast<std::streamoff>(offset));
  file.write(&byte, 1);
}

inline std::unique_ptr<TieredStore> make_store(std::unique_ptr<ExpertLoader> loader,
                                               TieredStoreOptions options) {
  auto store =
      TieredStore::create(std::move(loader), demo_parts().config, true, std::move(options));
  if (!store) throw std::runtime_error(store.error().message);
  return *std::move(store);
}

inline std::unique_ptr<ExpertLoader> packed_loader(const std::filesystem::path& path,
                                                   const ReaderOptions& options = {}) {
  auto& parts = demo_parts();
  auto loader = make_packed_loader(path, parts.config, *parts.kernels, true, options);
  if (!loader) throw std::runtime_error(loader.error().message);
  return *std::move(loader);
}

inline std::unique_ptr<ExpertLoader> checkpoint_loader() {
  auto& parts = demo_parts();
  auto loader = make_checkpoint_loader(*parts.source, parts.config, *parts.kernels, true, 2);
  if (!loader) throw std::runtime_error(loader.error().message);
  return *std::move(loader);
}

// Of one record of the demo checkpoint.
inline uint64_t demo_record_bytes() { return packed_loader(packed_demo())->record_bytes(1, 0); }

}  // namespace nibble::testing
