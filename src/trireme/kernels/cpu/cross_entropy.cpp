// The output head with its loss: logits exist for a chunk of rows only, become their own gradient
// in place, and feed both products of the backward at once.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/cross_entropy.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

/// Loss of one row of logits; with_gradient: the row becomes scale * (softmax - one_hot(target)).
double cross_entropy_row(float* logits, size_t n, size_t target, float scale, bool with_gradient) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  auto best = hn::Set(d, logits[0]);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) best = hn::Max(best, hn::LoadU(d, logits + i));
  float maximum = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < n; ++i) maximum = logits[i] > maximum ? logits[i] : maximum;
  const float at_target = logits[target];

  // Blocks of float32 sums, combined in double: the error does not grow with the vocabulary.
  constexpr size_t kBlock = 4096;
  double sum = 0.0;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    float* block = logits + begin;
    const size_t count = n - begin < kBlock ? n - begin : kBlock;
    sum += static_cast<double>(sum_lanes(count, [&](auto tag, size_t j) HWY_ATTR {
      const auto e = shifted_exp(tag, hn::LoadU(tag, block + j), 1.0f, maximum);
      if (with_gradient) hn::StoreU(e, tag, block + j);
      return e;
    }));
  }
  if (with_gradient) {
    const float factor = static_cast<float>(static_cast<double>(scale) / sum);
    for_lanes(n, [&](auto tag, size_t j) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(tag, logits + j), hn::Set(tag, factor)), tag, logits + j);
    });
    logits[target] -= scale;
  }
  return static_cast<double>(maximum) + std::log(sum) - static_cast<double>(at_target);
}

/// The same for logits that become softcap * tanh(logit / softcap) first; the gradient is the raw logits'.
double capped_cross_entropy_row(float* logits, size_t n, size_t target, float scale,
                                bool with_gradient, float softcap) {
  for_lanes(n, [&](auto tag, size_t i) HWY_ATTR {
    const auto raw = hn::LoadU(tag, logits + i);
    const auto t = tanh_of(tag, hn::Mul(raw, hn::Set(tag, 1.0f / softcap)));
    hn::StoreU(hn::Mul(t, hn::Set(tag, softcap)), tag, logits + i);
  });
  if (!with_gradient) return cross_entropy_row(logits, n, target, scale, false);
  const double loss = cross_entropy_row(logits, n, target, scale, false);
  const float lse = static_cast<float>(loss + static_cast<double>(logits[target]));
  const float at_target = logits[target];
  for_lanes(n, [&](auto tag, size_t i) HWY_ATTR {
    const auto capped = hn::LoadU(tag, logits + i);
    const auto p = shifted_exp(tag, capped, 1.0f, lse);
    const auto t = hn::Mul(capped, hn::Set(tag, 1.0f / softcap));
    const auto slope = hn::NegMulAdd(t, t, hn::Set(tag, 1.0f));
    hn::StoreU(hn::Mul(hn::Mul(p, slope), hn::Set(tag, scale)), tag, logits + i);
  });
  const float t = at_target / softcap;
  logits[target] -= scale * (1.0f - t * t);
  return loss;
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/dispatch.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/product.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
HWY_EXPORT(cross_entropy_row);
HWY_EXPORT(capped_cross_entropy_row);

namespace {

using cpu::Bf16Product;
using cpu::kMinRows;

/// Rows of the vocabulary widened at once in bfloat16.
constexpr int64_t kVocabPanel = 2048;

at::Tensor floats(int64_t rows, int64_t cols) {
  return at::empty({rows, cols}, at::TensorOptions().dtype(at::kFloat));
}

struct Head {
  at::Tensor hidden;
  at::Tensor weight;
  int64_t rows;
  int64_t d;
  int64_t vocab;
};

/// The three products of a chunk of rows, in float32 or in bfloat16's way of this machine.
class HeadProducts {
 public:
  HeadProducts(const Head& head, int64_t chunk, const CrossEntropyOutputs& outputs)
      : head_(head), outputs_(outputs) {
    bf16_ = head.hidden.scalar_type() == at::kBFloat16;
    const Bf16Product way = cpu::product_choice().bfloat16;
    native_ = bf16_ && way != Bf16Product::kConvert;
    panels_ = bf16_ && way == Bf16Product::kPanels;
    const bool gradients = outputs.d_hidden.defined() || outputs.d_weight.defined();
    if (!bf16_) return;
    if (!native_) wide_hidden_ = floats(chunk, head.d);
    if (outputs.d_hidden.defined() && !panels_) wide_d_hidden_ = floats(chunk, head.d);
    if (native_ && gradients)
      low_logits_ = at::empty({chunk, head.vocab}, at::TensorOptions().dtype(at::kBFloat16));
    if (!native_) wide_weight_ = floats(std::min(head.vocab, kVocabPanel), head.d);
  }

  /// logits[0, count) = hidden[first, first + count) weight^T. `count` is at least kMinRows: the
  /// caller pads.
  void logits(int64_t first, int64_t count, float* out) {
    if (!bf16_) {
      const float* hidden = padded_hidden(first, count);
      cpu::sgemm(false, true, std::max(count, kMinRows), head_.vocab, head_.d, hidden, head_.d,
                 head_.weight.const_data_ptr<float>(), head_.d, false, out, head_.vocab);
      return;
    }
    const at::BFloat16* hidden = head_.hidden.const_data_ptr<at::BFloat16>() + first * head_.d;
    if (native_) {
      at::Tensor few;
      if (count < kMinRows) {
        few = cpu::padded_rows(hidden, head_.d, count, head_.d);
        hidden = few.const_data_ptr<at::BFloat16>();
      }
      cpu::bf16_gemm(false, true, std::max(count, kMinRows), head_.vocab, head_.d, hidden, head_.d,
                     head_.weight.const_data_ptr<at::BFloat16>(), head_.d, false, out, head_.vocab);
      return;
    }
    float* wide = wide_hidden_.data_ptr<float>();
    cpu::widen(hidden, head_.d, wide, count, head_.d);
    if (count < kMinRows)
      std::memset(wide + count * head_.d, 0,
                  sizeof(float) * static_cast<size_t>((kMinRows - count) * head_.d));
    for_panels([&](int64_t begin, int64_t size, const float* weight) {
      cpu::sgemm(false, true, std::max(count, kMinRows), size, head_.d, wide, head_.d, weight,
                 head_.d, false, out + begin, head_.vocab);
    });
  }

  void backward(int64_t first, int64_t count, const float* d_logits) {
    if (native_) {
      cpu::round_rows(d_logits, head_.vocab, low_logits_.data_ptr<at::BFloat16>(), head_.vocab,
                      count, head_.vocab);
    }
    if (outputs_.d_hidden.defined()) backward_hidden(first, count, d_logits);
    if (outputs_.d_weight.defined()) backward_weight(first, count, d_logits);
  }

 private:
  const float* padded_hidden(int64_t first, int64_t count) {
    const float* hidden = head_.hidden.const_data_ptr<float>() + first * head_.d;
    if (count >= kMinRows) return hidden;
    padded_ = floats(kMinRows, head_.d);
    float* to = padded_.data_ptr<float>();
    std::memset(to, 0, sizeof(float) * static_cast<size_t>(kMinRows * head_.d));
    std::memcpy(to, hidden, sizeof(float) * static_cast<size_t>(count * head_.d));
    return to;
  }

  /// body(first row, rows, widened rows) over the vocabulary's panels.
  template <class Body>
  void for_panels(Body&& body) {
    if (!wide_weight_.defined()) wide_weight_ = floats(std::min(head_.vocab, kVocabPanel), head_.d);
    const at::BFloat16* weight = head_.weight.const_data_ptr<at::BFloat16>();
    float* wide = wide_weight_.data_ptr<float>();
    for (int64_t begin = 0; begin < head_.vocab; begin += kVocabPanel) {
      const int64_t size = std::min(kVocabPanel, head_.vocab - begin);
      cpu::widen(weight + begin * head_.d, head_.d, wide, size, head_.d);
      body(begin, size, wide);
    }
  }

  void backward_hidden(int64_t first, int64_t count, const float* d_logits) {
    if (!bf16_) {
      if (count >= kMinRows) {
        cpu::sgemm(false, false, count, head_.d, head_.vocab, d_logits, head_.vocab,
                   head_.weight.const_data_ptr<float>(), head_.d, false,
                   outputs_.d_hidden.data_ptr<float>() + first * head_.d, head_.d);
        return;
      }
      at::Tensor result = floats(kMinRows, head_.d);
      cpu::sgemm(false, false, kMinRows, head_.d, head_.vocab, d_logits, head_.vocab,
                 head_.weight.const_data_ptr<float>(), head_.d, false, result.data_ptr<float>(),
                 head_.d);
      std::memcpy(outputs_.d_hidden.data_ptr<float>() + first * head_.d,
                  result.const_data_ptr<float>(),
                  sizeof(float) * static_cast<size_t>(count * head_.d));
      return;
    }
    if (panels_) {
      cpu::panel_gemm(false, count, head_.d, head_.vocab,
                      low_logits_.const_data_ptr<at::BFloat16>(), head_.vocab,
                      head_.weight.const_data_ptr<at::BFloat16>(), head_.d, {},
                      outputs_.d_hidden.data_ptr<at::BFloat16>() + first * head_.d, head_.d);
      return;
    }
    float* wide = wide_d_hidden_.data_ptr<float>();
    if (native_) {
      cpu::bf16_gemm(false, false, std::max(count, kMinRows), head_.d, head_.vocab,
                     low_logits_.const_data_ptr<at::BFloat16>(), head_.vocab,
                     head_.weight.const_data_ptr<at::BFloat16>(), head_.d, false, wide, head_.d);
    } else {
      for_panels([&](int64_t begin, int64_t size, const float* weight) {
        cpu::sgemm(false, false, std::max(count, kMinRows), head_.d, size, d_logits + begin,
                   head_.vocab, weight, head_.d, begin > 0, wide, head_.d);
      });
    }
    cpu::round_rows(wide, head_.d, outputs_.d_hidden.data_ptr<at::BFloat16>() + first * head_.d,
                    head_.d, count, head_.d);
  }

  void backward_weight(int64_t first, int64_t count, const float* d_logits) {
    const bool add = first > 0 || outputs_.accumulate;
    float* out = outputs_.d_weight.data_ptr<float>();
    if (native_) {
      cpu::bf16_gemm(true, false, head_.vocab, head_.d, count,
                     low_logits_.const_data_ptr<at::BFloat16>(), head_.vocab,
                     head_.hidden.const_data_ptr<at::BFloat16>() + first * head_.d, head_.d, add,
                     out, head_.d);
      return;
    }
    const float* hidden = bf16_ ? wide_hidden_.const_data_ptr<float>()
                                : head_.hidden.const_data_ptr<float>() + first * head_.d;
    cpu::sgemm(true, false, head_.vocab, head_.d, count, d_logits, head_.vocab, hidden, head_.d,
               add, out, head_.d);
  }

  const Head& head_;
  const CrossEntropyOutputs& outputs_;
  bool bf16_ = false;
  bool native_ = false;  ///< bfloat16 products without widening
  bool panels_ = false;
  at::Tensor wide_hidden_;
  at::Tensor wide_d_hidden_;
  at::Tensor wide_weight_;
  at::Tensor low_logits_;
  at::Tensor padded_;
};

void check_targets(const int64_t* targets, int64_t rows, int64_t vocab) {
  for (int64_t r = 0; r < rows; ++r) {
    TRIREME_USER_CHECK(targets[r] == kIgnoredTarget || (targets[r] >= 0 && targets[r] < vocab),
                       kData, "use the tokenizer that belongs to the model, or a larger vocab_size",
                       "target id {} is outside the vocabulary of {}", targets[r], vocab);
  }
}

}  // namespace

namespace cpu {

double linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, int64_t chunk_rows,
                            CrossEntropyOutputs outputs, double softcap) {
  TRIREME_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.is_contiguous() &&
                    weight.is_contiguous() && hidden.size(1) == weight.size(1) &&
                    hidden.scalar_type() == weight.scalar_type(),
                "hidden must be [N, d], weight [V, d], contiguous and of one dtype");
  const Head head{hidden, weight, hidden.size(0), hidden.size(1), weight.size(0)};
  TRIREME_CHECK(
      targets.numel() == head.rows && targets.is_contiguous() && targets.scalar_type() == at::kLong,
      "targets must be {} contiguous int64 values", head.rows);
  TRIREME_CHECK(chunk_rows > 0 && head.vocab > 0, "chunk_rows and the vocabulary must be positive");
  if (outputs.d_hidden.defined()) {
    TRIREME_CHECK(outputs.d_hidden.is_contiguous() && outputs.d_hidden.sizes() == hidden.sizes() &&
                      outputs.d_hidden.scalar_type() == hidden.scalar_type(),
                  "d_hidden must be like hidden");
  }
  if (outputs.d_weight.defined()) {
    TRIREME_CHECK(outputs.d_weight.is_contiguous() && outputs.d_weight.sizes() == weight.sizes() &&
                      outputs.d_weight.scalar_type() == at::kFloat,
                  "d_weight must be float32 with weight's shape");
  }
  const int64_t* ids = targets.const_data_ptr<int64_t>();
  check_targets(ids, head.rows, head.vocab);
  if (head.rows == 0) {
    if (outputs.d_weight.defined() && !outputs.accumulate) outputs.d_weight.zero_();
    return 0.0;
  }
  const bool gradients = outputs.d_hidden.defined() || outputs.d_weight.defined();
  const int64_t chunk = std::max(kMinRows, std::min(chunk_rows, head.rows));
  at::Tensor buffer = floats(chunk, head.vocab);
  float* logits = buffer.data_ptr<float>();
  HeadProducts products(head, chunk, outputs);
  std::vector<double> losses(static_cast<size_t>(head.rows));
  const auto plain = TRIREME_KERNEL(cross_entropy_row);
  const auto capped = TRIREME_KERNEL(capped_cross_entropy_row);
  const auto softcap32 = static_cast<float>(softcap);
  const auto row_scale = static_cast<float>(scale);
  for (int64_t first = 0; first < head.rows; first += chunk) {
    const int64_t count = std::min(chunk, head.rows - first);
    products.logits(first, count, logits);
    at::parallel_for(0, std::max(count, kMinRows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* row = logits + r * head.vocab;
        const int64_t target = r < count ? ids[first + r] : kIgnoredTarget;
        if (target != kIgnoredTarget) {
          const auto vocab = static_cast<size_t>(head.vocab);
          const auto at = static_cast<size_t>(target);
          losses[static_cast<size_t>(first + r)] =
              softcap > 0.0 ? capped(row, vocab, at, row_scale, gradients, softcap32)
                            : plain(row, vocab, at, row_scale, gradients);
        } else if (gradients) {
          std::memset(row, 0, sizeof(float) * static_cast<size_t>(head.vocab));
        }
      }
    });
    if (gradients) products.backward(first, count, logits);
  }
  if (outputs.losses.defined()) {
    TRIREME_CHECK(outputs.losses.numel() == head.rows && outputs.losses.is_contiguous(),
                  "losses must be [N]");
    float* to = outputs.losses.data_ptr<float>();
    for (int64_t r = 0; r < head.rows; ++r)
      to[r] = static_cast<float>(losses[static_cast<size_t>(r)]);
  }
  double sum = 0.0;
  for (const double loss : losses) sum += loss;
  return sum;
}

}  // namespace cpu

int64_t cross_entropy_workspace_bytes(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                                      at::ScalarType dtype, bool with_gradients) {
  const int64_t chunk = std::max(kMinRows, chunk_rows);
  const cpu::ProductChoice choice = cpu::product_choice();
  const int64_t packed = with_gradients ? cpu::panel_workspace_elements(hidden, chunk_rows) : 0;
  int64_t bytes = 4 * chunk * vocab_size;
  if (dtype == at::kFloat)
    return bytes + (choice.float32 == cpu::FloatProduct::kPanels ? 4 * packed : 0);
  const int64_t low_logits = with_gradients ? 2 * chunk * vocab_size : 0;
  if (choice.bfloat16 == Bf16Product::kPanels) return bytes + low_logits + 2 * packed;
  if (choice.bfloat16 == Bf16Product::kMkl)
    return bytes + low_logits + (with_gradients ? 4 * chunk * hidden : 0);
  return bytes + 4 * chunk * hidden * (with_gradients ? 2 : 1) +
         4 * std::min(vocab_size, kVocabPanel) * hidden +
         (choice.float32 == cpu::FloatProduct::kPanels ? 4 * packed : 0);
}

}  // namespace trireme::kernels
#endif  // HWY_ONCE
