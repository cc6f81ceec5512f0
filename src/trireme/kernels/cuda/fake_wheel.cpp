// What the wheel has for the device alone, as slow operators of the processor with the same shapes, layouts and meaning: so
// that the ops of this folder run whole in the emulation. Only in its test.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::gpu {

namespace {

using at::Tensor;

/// While it lives, tensors are of memory that nobody counts: what the device's libraries do without.
class Uncounted {
 public:
  Uncounted() : counted_(c10::GetCPUAllocator()) {
    c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority);
  }
  ~Uncounted() { c10::SetCPUAllocator(counted_, kPriority); }
  Uncounted(const Uncounted&) = delete;
  Uncounted& operator=(const Uncounted&) = delete;

 private:
  static constexpr uint8_t kPriority = 255;
  c10::Allocator* counted_;
};

Tensor& mm_dtype_out(const Tensor& a, const Tensor& b, at::ScalarType dtype, Tensor& out) {
  const Uncounted memory;
  return out.copy_(a.to(dtype).mm(b.to(dtype)));
}
Tensor& addmm_dtype_out(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType dtype,
                        const at::Scalar& beta, const at::Scalar& alpha, Tensor& out) {
  const Uncounted memory;
  return out.copy_(self.to(dtype) * beta + a.to(dtype).mm(b.to(dtype)) * alpha);
}

// The processor's own packs what it multiplies; the device's library does not.
Tensor& mm_out(const Tensor& a, const Tensor& b, Tensor& out) {
  const Uncounted memory;
  return at::cpu::mm_out(out, a, b);
}
Tensor& addmm_out(const Tensor& self, const Tensor& a, const Tensor& b, const at::Scalar& beta,
                  const at::Scalar& alpha, Tensor& out) {
  const Uncounted memory;
  return at::cpu::addmm_out(out, self, a, b, beta, alpha);
}

// By way of copies where dtypes differ, which the device does not make.
Tensor& mul_out(const Tensor& a, const Tensor& b, Tensor& out) {
  const Uncounted memory;
  return at::cpu::mul_out(out, a, b);
}

AttentionOptions options_of(bool causal, std::optional<double> scale, std::optional<int64_t> left,
                            std::optional<int64_t> right, const Tensor& k) {
  TORCH_CHECK(scale.has_value(), "a scale is given");
  // FlashAttention: `causal` closes the right side, or the window does; with neither every query sees every key.
  const bool window = left.has_value() || right.has_value();
  TORCH_CHECK(!window || (!causal && left && right && *right == 0), "causal, or a window");
  AttentionOptions options;
  options.scale = *scale;
  options.window = left ? *left + 1 : 0;
  if (!causal && !window) options.past = k.size(-3);
  return options;
}

/// Calls body(first, count) for every sequence.
template <class Body>
void for_sequences(const Tensor& starts, Body&& body) {
  for (int64_t i = 0; i + 1 < starts.numel(); ++i) {
    const auto first = starts[i].item<int64_t>();
    body(first, starts[i + 1].item<int64_t>() - first);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& starts_q,
    const std::optional<Tensor>& starts_k, int64_t longest_q, int64_t longest_k, double dropout,
    bool causal, bool /*return_debug_mask*/, std::optional<double> scale,
    std::optional<int64_t> left, std::optional<int64_t> right,
    const std::optional<Tensor>& /*used_k*/, const std::optional<Tensor>& /*slopes*/) {
  TORCH_CHECK(dropout == 0.0 && q.size(-1) == v.size(-1), "one width, no dropout");
  const AttentionOptions options = options_of(causal, scale, left, right, k);
  Tensor out = at::empty(q.sizes(), q.options());
  const auto floats = q.options().dtype(at::kFloat);
  Tensor sums;
  if (starts_q) {
    TORCH_CHECK(starts_k->equal(*starts_q) && q.dim() == 3 && starts_q->scalar_type() == at::kInt,
                "documents are sequences of all rows");
    sums = at::empty({q.size(1), q.size(0)}, floats);
    const Uncounted memory;
    for_sequences(*starts_q, [&](int64_t first, int64_t count) {
      TORCH_CHECK(count <= longest_q && count <= longest_k, "longer than the longest");
      const auto of = [&](const Tensor& x) { return x.narrow(0, first, count).unsqueeze(0); };
      Tensor mine = of(out);
      const Tensor of_rows = at::empty({1, q.size(1), count}, floats);
      aten::attention(of(q), of(k), of(v), options, mine, of_rows);
      sums.narrow(1, first, count).copy_(of_rows[0]);
    });
  } else {
    sums = at::empty({q.size(0), q.size(2), q.size(1)}, floats);
    const Uncounted memory;
    aten::attention(q, k, v, options, out, sums);
  }
  return {out, sums, Tensor(), Tensor(), Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& sums, const Tensor& starts_q, const Tensor& /*starts_k*/, int64_t /*longest_q*/,
    int64_t /*longest_k*/, double /*dropout*/, bool causal, const Tensor& /*seed*/,
    const Tensor& /*unused*/, std::optional<double> scale, std::optional<int64_t> left,
    std::optional<int64_t> right) {
  TORCH_CHECK(at::globalContext().deterministicAlgorithms(), "the order of additions is asked for");
  const AttentionOptions options = options_of(causal, scale, left, right, k);
  Tensor dq = at::empty(q.sizes(), q.options());
  Tensor dk = at::empty(k.sizes(), k.options());
  Tensor dv = at::empty(v.sizes(), v.options());
  // What the wheel's makes besides: statistics and sums of whole blocks of 128 places, by shares of the multiprocessors (2
  // here); gradients of each query head by its keys.
  const bool of_documents = starts_q.defined();
  const int64_t heads = q.size(-2);
  const int64_t batch = of_documents ? 1 : q.size(0);
  const int64_t places = ((of_documents ? q.size(0) : q.size(1)) + 127) / 128 * 128;
  const int64_t width = (q.size(-1) + 31) / 32 * 32;
  const auto floats = q.options().dtype(at::kFloat);
  const Tensor statistics = at::empty({batch, heads, places}, floats);
  const int64_t shares = (2 + batch * heads - 1) / (batch * heads);
  const Tensor shared = at::empty({shares, batch, places, heads, width}, floats);
  Tensor by_head[2];
  if (k.size(-2) != heads) {
    for (Tensor& tensor : by_head) tensor = at::empty(q.sizes(), q.options());
  }
  const Uncounted memory;
  if (starts_q.defined()) {
    TORCH_CHECK(sums.is_contiguous() && sums.size(0) == q.size(1) && sums.size(1) == q.size(0),
                "sums are [heads, places]");
    for_sequences(starts_q, [&](int64_t first, int64_t count) {
      const auto of = [&](const Tensor& x) { return x.narrow(0, first, count).unsqueeze(0); };
      Tensor mine_q = of(dq);
      Tensor mine_k = of(dk);
      Tensor mine_v = of(dv);
      aten::attention_backward(of(dout), of(q), of(k), of(v), of(out),
                               sums.narrow(1, first, count).unsqueeze(0).contiguous(), options,
                               mine_q, mine_k, mine_v, {});
    });
  } else {
    aten::attention_backward(dout, q, k, v, out, sums, options, dq, dk, dv, {});
  }
  return {dq, dk, dv};
}

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("mm.out", TORCH_FN(mm_out));
  library.impl("mul.out", TORCH_FN(mul_out));
  library.impl("addmm.out", TORCH_FN(addmm_out));
  library.impl("mm.dtype_out", TORCH_FN(mm_dtype_out));
  library.impl("addmm.dtype_out", TORCH_FN(addmm_dtype_out));
  library.impl("_flash_attention_forward", TORCH_FN(flash_forward));
  library.impl("_flash_attention_backward", TORCH_FN(flash_backward));
}

}  // namespace

}  // namespace trireme::kernels::gpu
