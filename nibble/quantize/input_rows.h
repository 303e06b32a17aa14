// The inputs of a layer's linears, on the disk while the layer is worked on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/result.h"
#include "nibble/numeric/bf16.h"

namespace nibble {

// A file of BF16 rows that is written once and then mapped. What a Hessian is made of needs no
// more.
class RowFile {
 public:
  // Errors: those of open.
  static Result<RowFile> create(const std::filesystem::path& path, int64_t cols) {
    return RowFile(NIBBLE_TRY(OutputFile::create(path)), cols);
  }

  Status append(const float* row) {
    std::vector<uint16_t> halves(static_cast<size_t>(cols_));
    std::transform(row, row + cols_, halves.begin(), float_to_bf16);
    ++rows_;
    return file_.write(std::as_bytes(std::span(halves)));
  }

  Status finish() {
    NIBBLE_TRY(file_.commit());
    mapped_.emplace(NIBBLE_TRY(MappedFile::open(file_.path())));
    return {};
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  void read(int64_t row, float* out) const {
    const auto* const values = reinterpret_cast<const uint16_t*>(mapped_->bytes().data());
    std::transform(values + row * cols_, values + (row + 1) * cols_, out, bf16_to_float);
  }
  void release() const { mapped_->release(0, mapped_->bytes().size()); }

 private:
  RowFile(OutputFile file, int64_t cols) : file_(std::move(file)), cols_(cols) {}
  OutputFile file_;
  std::optional<MappedFile> mapped_;
  int64_t cols_;
  int64_t rows_ = 0;
};

// Which rows of which file are a module's inputs.
struct ModuleRows {
  const RowFile* file = nullptr;
  std::vector<int64_t> rows;  // empty with `all`
  bool all = false;

  int64_t count() const {
    if (file == nullptr) return 0;
    return all ? file->rows() : static_cast<int64_t>(rows.size());
  }
};

}  // namespace nibble
