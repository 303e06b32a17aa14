#include "nibble/kernels/cuda/host/tile_host_mlp.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/cpu_features.h"
#include "nibble/base/thread_pool.h"
#include "nibble/kernels/cuda/host/tile_isa.h"
#include "nibble/kernels/cuda/host/tile_values.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/numeric/bf16.h"

namespace nibble::cuda {
namespace {

// What one row takes of one unit, in words: floats [128], or the order of tile_isa.h.
constexpr int64_t kRowWords = 128;

void prepare_bf16(const float* x, int64_t cols, int64_t units, uint32_t* out) {
  constexpr int kPair[4][2] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}};
  const auto bits = [&](int64_t col) {
    return col < cols ? uint32_t{float_to_bf16(x[col])} : uint32_t{0};
  };
  for (int64_t half = 0; half < 2 * units; ++half) {
    for (int64_t t = 0; t < 4; ++t) {
      for (int64_t group = 0; group < 4; ++group) {
        for (int64_t o = 0; o < 2; ++o) {
          const int64_t col = 64 * half + 16 * t + 2 * kPair[group][o];
          const uint32_t word = bits(col) | bits(col + 1) << 16;
          uint32_t* const to = out + half * 64 + 16 * group + 4 * t + o;
          to[0] = to[2] = word;
        }
      }
    }
  }
}

void prepare_floats(const float* x, int64_t cols, int64_t units, uint32_t* out) {
  auto* const to = reinterpret_cast<float*>(out);
  std::copy_n(x, cols, to);
  std::fill(to + cols, to + units * kRowWords, 0.0f);
}

// out[16 k + r], each row added in the order of its columns.
void multiply_plain(LinearFormat format, const uint8_t* tile, const PackedShape& shape,
                    const uint32_t* const* rows, int64_t tokens, float* out) {
  std::fill_n(out, tokens * kTileRows, 0.0f);
  float values[kTileRows * kUnitCols];
  for (int64_t unit = 0; unit < shape.units; ++unit) {
    unit_values(format, tile + unit * shape.unit_bytes, values);
    for (int64_t k = 0; k < tokens; ++k) {
      const auto* const x =
          reinterpret_cast<const float*>(rows[k]) + unit % shape.x_units * kRowWords;
      for (int r = 0; r < kTileRows; ++r) {
        float sum = out[k * kTileRows + r];
        for (int c = 0; c < kUnitCols; ++c) sum += values[r * kUnitCols + c] * x[c];
        out[k * kTileRows + r] = sum;
      }
    }
  }
}

class TileHostMlp final : public HostMlp {
 public:
  TileHostMlp(int num_threads, bool fast)
      : pool_(num_threads),
        fast_(fast),
        name_(fmt::format("tiles {}, {} threads", fast ? "avx512bf16" : "portable", num_threads)) {}

  const char* name() const override { return name_.c_str(); }

  void run(std::span<const HostMlpRun> runs) override {
    plan(runs);
    pool_.parallel_for(static_cast<int64_t>(inputs_.size()), 1,
                       [&](int64_t begin, int64_t end, int) {
                         for (int64_t i = begin; i < end; ++i)
                           prepare_input(static_cast<size_t>(i));
                       });
    pool_.parallel_for(num_product_tasks_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) make_products(i);
    });
    pool_.parallel_for(static_cast<int64_t>(rows_.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        prepare_product(static_cast<size_t>(i));
      }
    });
    pool_.parallel_for(num_down_tasks_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) make_outputs(i);
    });
  }

 private:
  // A row of x as a matrix takes it.
  struct Input {
    const float* x;
    int64_t cols;
    bool fast;
    size_t place;  // in words_
  };
  struct Row {
    const HostMlpRun* run;
    float* product;  // [moe_intermediate_size], then prepared at prepared
    uint32_t* prepared;
    float* out;
  };
  struct Task {
    const HostMlpRun* run;
    size_t first_row;    // in rows_
    int64_t first_task;  // of its tiles, among the products' and among the outputs'
    int64_t first_down;
    std::vector<size_t> gate;  // inputs_, by token
    std::vector<size_t> up;
  };

  bool is_fast(const LinearWeight& w) const { return fast_ && w.format == LinearFormat::kNvfp4; }

  static int64_t row_words(const LinearWeight& w) {
    return packed_shape(w.format, w.rows, w.cols).x_units * kRowWords;
  }

  size_t input(const float* x, const LinearWeight& w) {
    const bool fast = is_fast(w);
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].x == x && inputs_[i].cols == w.cols && inputs_[i].fast == fast) return i;
    }
    inputs_.push_back({x, w.cols, fast, num_words_});
    num_words_ += static_cast<size_t>(row_words(w));
    return inputs_.size() - 1;
  }

  void plan(std::span<const HostMlpRun> runs) {
    inputs_.clear();
    rows_.clear();
    tasks_.clear();
    num_words_ = 0;
    num_product_tasks_ = num_down_tasks_ = 0;
    size_t num_products = 0;
    for (const HostMlpRun& run : runs) {
      const MlpWeight& w = *run.weight;
      for (const LinearWeight* m : {&w.gate_proj, &w.up_proj, &w.down_proj}) {
        NIBBLE_CHECK(m->activation == ActivationFormat::kUnquantized && m->data != nullptr);
      }
      NIBBLE_CHECK(run.x.size() == run.out.size());
      Task task{&run, rows_.size(), num_product_tasks_, num_down_tasks_, {}, {}};
      for (size_t k = 0; k < run.x.size(); ++k) {
        task.gate.push_back(input(run.x[k], w.gate_proj));
        task.up.push_back(input(run.x[k], w.up_proj));
        rows_.push_back({&run, nullptr, nullptr, run.out[k]});
        num_products += static_cast<size_t>(w.gate_proj.rows + row_words(w.down_proj));
      }
      num_product_tasks_ += ceil_div(w.gate_proj.rows, kTileRows);
      num_down_tasks_ += ceil_div(w.down_proj.rows, kTileRows);
      tasks_.push_back(std::move(task));
    }
    words_.resize(std::max(words_.size(), num_words_));
    products_.resize(std::max(products_.size(), num_products));
    float* next = products_.data();
    for (Row& row : rows_) {
      row.product = next;
      row.prepared = reinterpret_cast<uint32_t*>(next + row.run->weight->gate_proj.rows);
      next += row.run->weight->gate_proj.rows + row_words(row.run->weight->down_proj);
    }
  }

  static void prepare(const float* x, int64_t cols, bool fast, uint32_t* out) {
    (fast ? prepare_bf16 : prepare_floats)(x, cols, ceil_div(cols, kUnitCols), out);
  }
  void prepare_input(size_t i) {
    prepare(inputs_[i].x, inputs_[i].cols, inputs_[i].fast, words_.data() + inputs_[i].place);
  }
  void prepare_product(size_t i) {
    const LinearWeight& down = rows_[i].run->weight->down_proj;
    prepare(rows_[i].product, down.cols, is_fast(down), rows_[i].prepared);
  }

  // out[16 k + r] for all `rows`.
  void multiply(const LinearWeight& w, int64_t tile, std::span<const uint32_t* const> rows,
                float* out) const {
    const PackedShape shape = packed_shape(w.format, w.rows, w.cols);
    const auto* const data =
        static_cast<const uint8_t*>(w.data) + tile * shape.units * shape.unit_bytes;
    const auto tokens = static_cast<int64_t>(rows.size());
#ifdef NIBBLE_HAVE_FAST_TILES
    if (is_fast(w)) {
      for (int64_t k = 0; k < tokens; k += 2) {
        const bool two = k + 1 < tokens;
        const auto i = static_cast<size_t>(k);
        multiply_nvfp4_tile_avx512bf16(data, shape.units, rows[i], two ? rows[i + 1] : nullptr,
                                       out + k * kTileRows);
      }
      return scale(w, tokens, out);
    }
#endif
    multiply_plain(w.format, data, shape, rows.data(), tokens, out);
    scale(w, tokens, out);
  }
  static void scale(const LinearWeight& w, int64_t tokens, float* out) {
    if (w.format != LinearFormat::kNvfp4) return;
    for (int64_t i = 0; i < tokens * kTileRows; ++i) out[i] *= w.global_scale;
  }

  const Task& task_of(int64_t index, int64_t Task::*first) const {
    const auto after =
        std::upper_bound(tasks_.begin(), tasks_.end(), index,
                         [&](int64_t i, const Task& task) { return i < task.*first; });
    return *(after - 1);
  }

  void make_products(int64_t index) {
    const Task& task = task_of(index, &Task::first_task);
    const MlpWeight& w = *task.run->weight;
    const int64_t tile = index - task.first_task;
    const size_t tokens = task.gate.size();
    std::vector<const uint32_t*> rows(tokens);
    std::vector<float> gate(tokens * kTileRows);
    std::vector<float> up(gate.size());
    for (size_t k = 0; k < tokens; ++k) rows[k] = words_.data() + inputs_[task.gate[k]].place;
    multiply(w.gate_proj, tile, rows, gate.data());
    for (size_t k = 0; k < tokens; ++k) rows[k] = words_.data() + inputs_[task.up[k]].place;
    multiply(w.up_proj, tile, rows, up.data());
    const int64_t count = std::min<int64_t>(kTileRows, w.gate_proj.rows - tile * kTileRows);
    for (size_t k = 0; k < tokens; ++k) {
      float* const product = rows_[task.first_row + k].product + tile * kTileRows;
      for (int64_t r = 0; r < count; ++r) {
        const size_t i = k * kTileRows + static_cast<size_t>(r);
        product[r] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
      }
    }
  }

  void make_outputs(int64_t index) {
    const Task& task = task_of(index, &Task::first_down);
    const LinearWeight& down = task.run->weight->down_proj;
    const int64_t tile = index - task.first_down;
    const size_t tokens = task.gate.size();
    std::vector<const uint32_t*> rows(tokens);
    std::vector<float> out(tokens * kTileRows);
    for (size_t k = 0; k < tokens; ++k) rows[k] = rows_[task.first_row + k].prepared;
    multiply(down, tile, rows, out.data());
    const int64_t count = std::min<int64_t>(kTileRows, down.rows - tile * kTileRows);
    for (size_t k = 0; k < tokens; ++k) {
      std::copy_n(out.data() + k * kTileRows, count,
                  rows_[task.first_row + k].out + tile * kTileRows);
    }
  }

  ThreadPool pool_;
  bool fast_;
  std::string name_;
  std::vector<Input> inputs_;
  std::vector<Row> rows_;
  std::vector<Task> tasks_;
  std::vector<uint32_t> words_;
  std::vector<float> products_;
  size_t num_words_ = 0;
  int64_t num_product_tasks_ = 0;
  int64_t num_down_tasks_ = 0;
};

}  // namespace

bool has_fast_tiles() {
#ifdef NIBBLE_HAVE_FAST_TILES
  const auto isa = selected_isa();
  return isa && *isa >= Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::unique_ptr<HostMlp> make_tile_host_mlp(int num_threads, bool fast) {
  return std::make_unique<TileHostMlp>(num_threads, fast && has_fast_tiles());
}

}  // namespace nibble::cuda
