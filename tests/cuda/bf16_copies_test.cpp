// BF16 copies that operations leave of what they write (nibble/device/cuda/bf16_copies.h): products
// give the bits that they give without them, and none is found of a matrix written since.
#include "nibble/device/cuda/bf16_copies.h"

#include <gtest/gtest.h>

#include <functional>
#include <span>

#include "nibble/kernels/cuda/cuda_kernels.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

// The largest twice: memory that grows is waited for, which makes copies void.
constexpr int64_t kManyFirst[] = {300, 300, 160, 127, 30, 16, 9, 8, 5, 1};

// Matrices and operations in the device's own memory; nothing but those operations writes between.
class Bf16CopiesTest : public ::testing::Test {
 protected:
  struct Matrix {
    Buffer memory;
    MatrixView view;
  };

  Device& device() { return kernels_->device(); }
  Bf16Copies& copies() { return bf16_copies(device()); }

  template <typename T>
  Buffer on_device(const std::vector<T>& values) {
    Buffer memory = device().allocate(values.size() * sizeof(T)).value();
    EXPECT_TRUE(device().copy_to_device(memory.data(), std::as_bytes(std::span(values))));
    return memory;
  }
  Matrix matrix(int64_t rows, int64_t cols) {
    Matrix m{device().allocate(static_cast<size_t>(rows * cols) * sizeof(float)).value(), {}};
    m.view = {m.memory.data(), DType::kF32, rows, cols, cols};
    return m;
  }
  Matrix random(int64_t rows, int64_t cols, uint32_t seed) {
    Matrix m = matrix(rows, cols);
    write(m.view, TestMatrix::random(rows, cols, seed).values());
    return m;
  }
  void write(const MatrixView& to, const std::vector<float>& values) {
    EXPECT_TRUE(device().copy_to_device(to.data, std::as_bytes(std::span(values))));
  }
  template <typename T>
  std::vector<T> read(const void* from, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    EXPECT_TRUE(device().synchronize());
    EXPECT_TRUE(device().copy_to_host(std::as_writable_bytes(std::span(values)), from));
    return values;
  }
  std::vector<float> read(const MatrixView& from) {
    return read<float>(from.data, from.rows * from.cols);
  }
  PackedWeight packed(const TestWeight& weight) {
    HostLinear host = weight.host;  // the vectors may have moved since bind()
    host.data = weight.data.data();
    host.scales = weight.scales.empty() ? nullptr : weight.scales.data();
    PackedWeight result;
    const size_t bytes = kernels_->packed_bytes(host.format, host.rows, host.cols);
    result.buffer = device().allocate(bytes).value();
    result.weight = kernels_->pack(host, kAsIs, result.buffer.data()).value();
    return result;
  }
  PackedMlp packed_mlp(const TestMlp& mlp) {
    return {packed(mlp.gate), packed(mlp.up), packed(mlp.down)};
  }
  PackedMlaUp packed_up(const TestWeight& kv_b_proj, const MlaShape& shape) {
    HostLinear host = kv_b_proj.host;
    host.data = kv_b_proj.data.data();
    host.scales = kv_b_proj.scales.empty() ? nullptr : kv_b_proj.scales.data();
    PackedMlaUp result;
    result.buffer = device().allocate(kernels_->packed_mla_up_bytes(host.format, shape)).value();
    result.weight = kernels_->pack_mla_up(host, shape, result.buffer.data()).value();
    return result;
  }
  // 16 experts and a shared one, four a token.
  struct SmallMoe {
    static constexpr int64_t kHidden = 4096;
    static constexpr int64_t kPerToken = 4;
    std::vector<PackedMlp> memory;
    std::vector<MlpWeight> experts;
    MlpWeight shared;
    RouterShape shape;
  };
  SmallMoe small_moe() {
    SmallMoe layer;
    for (uint32_t e = 0; e <= 16; ++e) {
      layer.memory.push_back(
          packed_mlp(TestMlp::random(LinearFormat::kNvfp4, SmallMoe::kHidden, 144, 20 + 3 * e)));
      layer.experts.push_back(layer.memory.back().weight());
    }
    layer.shared = layer.experts.back();
    layer.experts.pop_back();
    layer.shape.n_routed_experts = 16;
    layer.shape.num_experts_per_tok = SmallMoe::kPerToken;
    return layer;
  }
  bool has_copy(const MatrixView& x, int parts = 1) {
    return copies().find(x.row<const float>(0), x.rows, x.cols, x.stride, parts).data != nullptr;
  }

  // What `consume` makes of a norm over a sum, with its copy and without: the same bits.
  void compare(int64_t tokens, int64_t cols,
               const std::function<std::vector<float>(const MatrixView& x)>& consume) {
    const Matrix weight = random(1, cols, 3);
    const Matrix y = random(tokens, cols, 4);
    const Matrix normed = matrix(tokens, cols);
    std::vector<float> results[2];
    for (const bool copied : {true, false}) {
      const Matrix x = random(tokens, cols, 5);
      copies().set_enabled(copied);
      kernels_->add_rms_norm(x.view, y.view, weight.view.row<float>(0), 1e-6F, normed.view);
      ASSERT_EQ(has_copy(normed.view, tokens > 8 ? 3 : 1), copied);
      results[copied ? 0 : 1] = consume(normed.view);
    }
    copies().set_enabled(true);
    EXPECT_TRUE(same_bits(results[0], results[1]));
  }

  std::unique_ptr<Kernels> kernels_ = make_cuda_kernels({}).value();
};

// Every kernel that reads tokens: rings, straight to registers, through shared memory, cuBLASLt.
TEST_F(Bf16CopiesTest, LinearsKeepTheirBits) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const LinearFormat format :
       {LinearFormat::kBf16, LinearFormat::kFp8Block, LinearFormat::kNvfp4}) {
    for (const Shape& shape : {Shape{200, 4096}, {2112, 1536}, {72, 256}, {16, 7168}}) {
      const int64_t rows = shape.rows;
      const int64_t cols = shape.cols;
      const PackedWeight weight = packed(TestWeight::random(format, rows, cols, 6));
      for (const int64_t tokens : {1, 4, 5, 8, 9, 16, 33, 127, 130, 512}) {
        SCOPED_TRACE(testing::Message()
                     << format_name(format) << " [" << rows << ", " << cols << "] x " << tokens);
        compare(tokens, cols, [&](const MatrixView& x) {
          const Matrix out = matrix(tokens, rows);
          kernels_->linear(x, weight.weight, out.view);
          return read(out.view);
        });
        if (tokens < 4) continue;
        // Some of the rows that were written.
        compare(tokens, cols, [&](const MatrixView& x) {
          const Matrix out = matrix(tokens - 3, rows);
          kernels_->linear(x.slice_rows(2, tokens - 3), weight.weight, out.view);
          return read(out.view);
        });
      }
    }
  }
}

TEST_F(Bf16CopiesTest, TwoLinearsKeepTheirBits) {
  const PackedWeight first = packed(TestWeight::random(LinearFormat::kBf16, 48, 7168, 7));
  const PackedWeight second = packed(TestWeight::random(LinearFormat::kBf16, 17, 7168, 8));
  for (const int64_t tokens : {1, 7, 40}) {
    SCOPED_TRACE(tokens);
    compare(tokens, 7168, [&](const MatrixView& x) {
      const Matrix a = matrix(tokens, 48);
      const Matrix b = matrix(tokens, 17);
      kernels_->linear_two(x, first.weight, a.view, second.weight, b.view);
      std::vector<float> both = read(a.view);
      const std::vector<float> more = read(b.view);
      both.insert(both.end(), more.begin(), more.end());
      return both;
    });
  }
}

// As one launch for gate and up, and apart (formats that differ, many tokens).
TEST_F(Bf16CopiesTest, MlpsKeepTheirBits) {
  for (const LinearFormat up : {LinearFormat::kNvfp4, LinearFormat::kBf16}) {
    TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 4096, 272, 9);
    mlp.up = TestWeight::random(up, 272, 4096, 10);
    const PackedMlp weights = packed_mlp(mlp);
    for (const int64_t tokens : kManyFirst) {
      SCOPED_TRACE(testing::Message() << format_name(up) << " x " << tokens);
      compare(tokens, 4096, [&](const MatrixView& x) {
        const Matrix out = matrix(tokens, 4096);
        kernels_->mlp(x, weights.weight(), out.view);
        return read(out.view);
      });
    }
  }
}

TEST_F(Bf16CopiesTest, ExpertsAndTheirChoiceKeepTheirBits) {
  const SmallMoe layer = small_moe();
  const PackedWeight gate =
      packed(TestWeight::random(LinearFormat::kBf16, 16, SmallMoe::kHidden, 11));
  const Matrix bias = random(1, 16, 12);
  for (const int64_t tokens : kManyFirst) {
    SCOPED_TRACE(tokens);
    compare(tokens, SmallMoe::kHidden, [&](const MatrixView& x) {
      const int64_t slots = tokens * SmallMoe::kPerToken;
      const Buffer ids = device().allocate(static_cast<size_t>(slots) * 4).value();
      const Buffer weights = device().allocate(static_cast<size_t>(slots) * 4).value();
      const Matrix out = matrix(tokens, SmallMoe::kHidden);
      kernels_->route(x, gate.weight, bias.view.row<float>(0), layer.shape, ids.as<int32_t>(),
                      weights.as<float>());
      kernels_->moe(x, layer.experts, &layer.shared, layer.shape, ids.as<int32_t>(),
                    weights.as<float>(), out.view);
      std::vector<float> all = read(out.view);
      const auto chosen = read<float>(weights.data(), slots);
      all.insert(all.end(), chosen.begin(), chosen.end());
      return all;
    });
  }
}

// From q to what o_proj gives, which takes a copy.
TEST_F(Bf16CopiesTest, AttentionKeepsItsBits) {
  constexpr int64_t kHeads = 4;
  constexpr int64_t kOutputs = 320;
  const MlaShape shape = real_mla_shape(kHeads);
  const TestRope rope(100, 32);
  const Buffer cos = on_device(rope.cos);
  const Buffer sin = on_device(rope.sin);
  const RopeTable table{cos.as<float>(), sin.as<float>(), 100, 32};
  const Matrix layernorm = random(1, shape.kv_lora_rank, 31);
  const PackedWeight o_proj =
      packed(TestWeight::random(LinearFormat::kNvfp4, kOutputs, kHeads * shape.v_head_dim, 32));
  bool is_warm = false;  // memory has grown
  for (const LinearFormat format : {LinearFormat::kBf16, LinearFormat::kNvfp4}) {
    const PackedMlaUp up = packed_up(random_kv_b_proj(format, shape, 33), shape);
    for (const DType dtype : {DType::kBf16, DType::kF8E4m3, DType::kF32}) {
      for (const int64_t tokens : {90, 90, 40, 5, 4, 1}) {
        SCOPED_TRACE(testing::Message()
                     << format_name(format) << " " << dtype_name(dtype) << " x " << tokens);
        TestCache filled(dtype, shape.entry_size(), 16, {97});
        filled.fill(34);
        const Matrix kv_a = random(tokens, shape.entry_size(), 35);
        std::vector<float> results[2];
        for (const bool copied : {true, false}) {
          copies().set_enabled(copied);
          const Buffer cache_memory = on_device(filled.bytes());
          KvCacheView cache = filled.view();
          cache.data = cache_memory.data();
          const std::vector<AttentionSegment> segments = {
              {0, tokens, 97 - tokens, filled.block_table(0), MlaForm::kAbsorbed}};
          const AttentionBatch batch{tokens, segments};
          const Matrix q = random(tokens, kHeads * shape.qk_head_dim(), 36);
          const Matrix heads = matrix(tokens, kHeads * shape.v_head_dim);
          const Matrix out = matrix(tokens, kOutputs);
          kernels_->mla_prepare(q.view, kv_a.view, layernorm.view.row<float>(0), 1e-6F, shape,
                                table, batch, cache);
          kernels_->mla_attention(q.view, up.weight, shape, batch, cache, heads.view);
          if (is_warm) {
            EXPECT_EQ(has_copy(heads.view), copied);
          }
          kernels_->linear(heads.view, o_proj.weight, out.view);
          std::vector<float>& all = results[copied ? 0 : 1];
          for (const Matrix* m : {&q, &heads, &out}) {
            const std::vector<float> values = read(m->view);
            all.insert(all.end(), values.begin(), values.end());
          }
        }
        is_warm = true;
        copies().set_enabled(true);
        EXPECT_TRUE(same_bits(results[0], results[1]));
      }
    }
  }
}

// Whoever writes the matrix, or a part of it, after its norm did.
TEST_F(Bf16CopiesTest, NoneIsFoundOfWhatWasWrittenSince) {
  constexpr int64_t kTokens = 6;
  constexpr int64_t kCols = 256;
  const Matrix x = random(kTokens, kCols, 41);
  const Matrix y = random(kTokens, kCols, 42);
  const Matrix weight = random(1, kCols, 43);
  const Matrix normed = matrix(kTokens, kCols);
  const PackedWeight square = packed(TestWeight::random(LinearFormat::kNvfp4, kCols, kCols, 44));
  const MatrixView table{x.view.data, DType::kF32, kTokens, kCols, kCols};
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5, 2};
  const std::vector<RowCopy> copy = {{y.view.row<float>(1), normed.view.row<float>(4)}};
  const std::vector<float> values = TestMatrix::random(1, kCols, 45).values();
  const MatrixView last = normed.view.slice_rows(kTokens - 1, 1);
  const PackedMlp mlp = packed_mlp(TestMlp::random(LinearFormat::kBf16, kCols, 128, 46));
  const std::vector<std::pair<const char*, std::function<void()>>> writers = {
      {"add", [&] { kernels_->add(normed.view, y.view); }},
      {"add of a row", [&] { kernels_->add(last, y.view.slice_rows(0, 1)); }},
      {"add_rms_norm's sum",
       [&] {
         kernels_->add_rms_norm(normed.view, y.view, weight.view.row<float>(0), 1e-6F, x.view);
       }},
      {"linear", [&] { kernels_->linear(y.view, square.weight, normed.view); }},
      {"linear_two",
       [&] { kernels_->linear_two(y.view, square.weight, x.view, square.weight, normed.view); }},
      {"mlp", [&] { kernels_->mlp(y.view, mlp.weight(), normed.view); }},
      {"embed", [&] { kernels_->embed(table, ids, normed.view); }},
      {"copy_rows", [&] { kernels_->copy_rows(copy, kCols); }},
      {"copy_matrix", [&] { kernels_->copy_matrix(y.view, normed.view); }},
      {"the host", [&] { write(last, values); }},
      {"a wait, after which the host may", [&] { EXPECT_TRUE(device().synchronize()); }},
  };
  const Matrix plain = matrix(kTokens, kCols);
  const Matrix got = matrix(kTokens, kCols);
  const Matrix want = matrix(kTokens, kCols);
  for (const auto& [name, write_it] : writers) {
    SCOPED_TRACE(name);
    kernels_->rms_norm(y.view, weight.view.row<float>(0), 1e-6F, normed.view);
    ASSERT_TRUE(has_copy(normed.view));
    write_it();
    EXPECT_FALSE(has_copy(normed.view));
    kernels_->linear(normed.view, square.weight, got.view);
    kernels_->copy_matrix(normed.view, plain.view);
    kernels_->linear(plain.view, square.weight, want.view);
    EXPECT_TRUE(same_bits(read(got.view), read(want.view)));
  }
  // And what was given back may be somebody else's.
  {
    kernels_->rms_norm(y.view, weight.view.row<float>(0), 1e-6F, normed.view);
    ASSERT_TRUE(has_copy(normed.view));
    const Matrix gone = matrix(1, 1);
  }
  EXPECT_FALSE(has_copy(normed.view));
}

// Widths that are no whole units, more rows than there is room for, exact activations.
TEST_F(Bf16CopiesTest, NoneIsMadeWhereNoneIsTaken) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const auto& [rows, cols] : {Shape{3, 200}, {513, 128}}) {
    const Matrix x = random(rows, cols, 51);
    const Matrix out = matrix(rows, cols);
    kernels_->rms_norm(x.view, x.view.row<float>(0), 1e-6F, out.view);
    EXPECT_FALSE(has_copy(out.view)) << rows << " " << cols;
  }
  CudaOptions exact;
  exact.activation_parts = 3;
  kernels_ = make_cuda_kernels(exact).value();
  const Matrix x = random(3, 128, 52);
  const Matrix out = matrix(3, 128);
  kernels_->rms_norm(x.view, x.view.row<float>(0), 1e-6F, out.view);
  EXPECT_FALSE(has_copy(out.view));
}

}  // namespace
}  // namespace nibble
