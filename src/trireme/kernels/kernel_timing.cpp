#include "trireme/kernels/kernel_timing.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {

namespace {

/// Runs and collects the timings of one layer.
class Stopwatch {
 public:
  explicit Stopwatch(double budget_s) : budget_s_(budget_s) {}

  void flops(const char* name, double flop, const std::function<void()>& work) {
    time(name, "GFLOP/s", flop * 1e-9, work);
  }
  void bytes(const char* name, double count, const std::function<void()>& work) {
    time(name, "GB/s", count * 1e-9, work);
  }

  std::vector<KernelTiming> take() { return std::move(timings_); }

 private:
  void time(const char* name, const char* unit, double amount, const std::function<void()>& work) {
    const Clock& clock = steady_clock();
    work();
    KernelTiming timing{name, unit, {}};
    const double start = clock.now_s();
    while (timing.rates.size() < 3 || clock.now_s() - start < budget_s_) {
      const double before = clock.now_s();
      work();
      timing.rates.push_back(amount / std::max(clock.now_s() - before, 1e-9));
    }
    timings_.push_back(std::move(timing));
  }

  double budget_s_;
  std::vector<KernelTiming> timings_;
};

at::Tensor random(at::IntArrayRef shape, c10::ScalarType dtype) {
  return at::randn(shape, at::TensorOptions().dtype(c10::kFloat)).to(dtype);
}

at::Tensor empty(at::IntArrayRef shape, c10::ScalarType dtype) {
  return at::empty(shape, at::TensorOptions().dtype(dtype));
}

void time_products(const TimedLayer& layer, Stopwatch& watch) {
  const at::Tensor x = random({layer.rows, layer.hidden}, layer.dtype);
  const at::Tensor weight = random({layer.feed_forward, layer.hidden}, layer.dtype);
  const at::Tensor dy = random({layer.rows, layer.feed_forward}, layer.dtype);
  at::Tensor y = empty({layer.rows, layer.feed_forward}, layer.dtype);
  at::Tensor dx = empty({layer.rows, layer.hidden}, layer.dtype);
  at::Tensor dweight = empty({layer.feed_forward, layer.hidden}, c10::kFloat);
  const double flop = 2.0 * static_cast<double>(layer.rows * layer.hidden) *
                      static_cast<double>(layer.feed_forward);
  watch.flops("linear", flop, [&] { linear(x, weight, {}, {}, y); });
  watch.flops("linear_backward_input", flop, [&] { linear_backward_input(dy, weight, dx); });
  watch.flops("linear_backward_weight", flop,
              [&] { linear_backward_weight(dy, x, dweight, false); });
}

void time_norms(const TimedLayer& layer, Stopwatch& watch) {
  const at::Tensor x = random({layer.rows, layer.hidden}, layer.dtype);
  const at::Tensor dy = random({layer.rows, layer.hidden}, layer.dtype);
  const at::Tensor weight = random({layer.hidden}, layer.dtype);
  const at::Tensor bias = random({layer.hidden}, layer.dtype);
  at::Tensor y = empty({layer.rows, layer.hidden}, layer.dtype);
  at::Tensor mean = empty({layer.rows}, c10::kFloat);
  at::Tensor rstd = empty({layer.rows}, c10::kFloat);
  at::Tensor dweight = empty({layer.hidden}, c10::kFloat);
  at::Tensor dbias = empty({layer.hidden}, c10::kFloat);
  const double pass = static_cast<double>(x.numel() * x.element_size());
  watch.bytes("rms_norm", 2 * pass, [&] { rms_norm(x, weight, 1e-6, y, rstd); });
  watch.bytes("rms_norm_backward", 3 * pass,
              [&] { rms_norm_backward(dy, x, weight, rstd, y, false, dweight, false); });
  watch.bytes("layer_norm", 2 * pass, [&] { layer_norm(x, weight, bias, 1e-6, y, mean, rstd); });
  watch.bytes("layer_norm_backward", 3 * pass, [&] {
    layer_norm_backward(dy, x, weight, mean, rstd, y, false, dweight, dbias, false);
  });
}

void time_activations(const TimedLayer& layer, Stopwatch& watch) {
  const at::Tensor gate_up = random({layer.rows, 2 * layer.feed_forward}, layer.dtype);
  const at::Tensor dy = random({layer.rows, layer.feed_forward}, layer.dtype);
  at::Tensor y = empty({layer.rows, layer.feed_forward}, layer.dtype);
  at::Tensor d_gate_up = empty({layer.rows, 2 * layer.feed_forward}, layer.dtype);
  const double pass = static_cast<double>(dy.numel() * dy.element_size());
  watch.bytes("swiglu", 3 * pass, [&] { gated_activation(Activation::kSilu, gate_up, y); });
  watch.bytes("swiglu_backward", 5 * pass,
              [&] { gated_activation_backward(Activation::kSilu, dy, gate_up, d_gate_up); });
  const at::Tensor x = random({layer.rows, layer.feed_forward}, layer.dtype);
  watch.bytes("gelu_tanh", 2 * pass, [&] { activation(Activation::kGeluTanh, x, y); });
  watch.bytes("gelu_tanh_backward", 3 * pass,
              [&] { activation_backward(Activation::kGeluTanh, dy, x, y); });
}

void time_positions(const TimedLayer& layer, Stopwatch& watch) {
  const int64_t head_dim = layer.hidden / layer.heads;
  const at::Tensor positions = at::arange(layer.rows).remainder(layer.seq_len).contiguous();
  const at::Tensor angles = random({layer.seq_len, head_dim / 2}, c10::kFloat);
  const at::Tensor cosine = angles.cos();
  const at::Tensor sine = angles.sin();
  at::Tensor x = random({layer.rows, layer.heads, head_dim}, layer.dtype);
  const double pass = static_cast<double>(x.numel() * x.element_size());
  watch.bytes("rotary", 2 * pass, [&] { rotary_(x, positions, cosine, sine); });

  const at::Tensor tokens =
      at::randint(layer.vocab_size, {layer.rows}, at::TensorOptions().dtype(c10::kLong));
  const at::Tensor table = random({layer.vocab_size, layer.hidden}, layer.dtype);
  const at::Tensor dy = random({layer.rows, layer.hidden}, layer.dtype);
  at::Tensor out = empty({layer.rows, layer.hidden}, layer.dtype);
  at::Tensor dtable =
      at::zeros({layer.vocab_size, layer.hidden}, at::TensorOptions().dtype(c10::kFloat));
  watch.bytes("embedding", 2 * pass, [&] { embedding(tokens, table, {}, {}, out); });
  const double row_bytes = static_cast<double>(layer.rows * layer.hidden) * 8;
  watch.bytes("embedding_backward", pass + row_bytes,
              [&] { embedding_backward(tokens, dy, dtable, true); });
}

void time_attention(const TimedLayer& layer, Stopwatch& watch) {
  const int64_t batch = layer.rows / layer.seq_len;
  const int64_t head_dim = layer.hidden / layer.heads;
  const at::Tensor q = random({batch, layer.seq_len, layer.heads, head_dim}, layer.dtype);
  const at::Tensor k = random({batch, layer.seq_len, layer.kv_heads, head_dim}, layer.dtype);
  const at::Tensor v = random({batch, layer.seq_len, layer.kv_heads, head_dim}, layer.dtype);
  const at::Tensor dout = random(q.sizes(), layer.dtype);
  at::Tensor out = empty(q.sizes(), layer.dtype);
  at::Tensor logsumexp = empty({batch, layer.heads, layer.seq_len}, c10::kFloat);
  at::Tensor dq = empty(q.sizes(), layer.dtype);
  at::Tensor dk = empty(k.sizes(), layer.dtype);
  at::Tensor dv = empty(v.sizes(), layer.dtype);
  AttentionOptions options;
  options.scale = 0.125;
  // Two products of the causal half of seq_len x seq_len forward, five backward (one makes the scores again).
  const double product =
      static_cast<double>(layer.rows * layer.seq_len) * static_cast<double>(layer.hidden);
  watch.flops("attention", 2 * product, [&] { attention(q, k, v, options, out, logsumexp); });
  watch.flops("attention_backward", 5 * product,
              [&] { attention_backward(dout, q, k, v, out, logsumexp, options, dq, dk, dv); });
}

void time_head(const TimedLayer& layer, Stopwatch& watch) {
  const at::Tensor hidden = random({layer.rows, layer.hidden}, layer.dtype);
  const at::Tensor weight = random({layer.vocab_size, layer.hidden}, layer.dtype);
  const at::Tensor targets =
      at::randint(layer.vocab_size, {layer.rows}, at::TensorOptions().dtype(c10::kLong));
  CrossEntropyOutputs outputs;
  outputs.d_hidden = empty({layer.rows, layer.hidden}, layer.dtype);
  outputs.d_weight = empty({layer.vocab_size, layer.hidden}, c10::kFloat);
  const double flop =
      6.0 * static_cast<double>(layer.rows * layer.hidden) * static_cast<double>(layer.vocab_size);
  const double scale = 1.0 / static_cast<double>(layer.rows);
  watch.flops("linear_cross_entropy", flop, [&] {
    linear_cross_entropy(hidden, weight, targets, scale, std::min<int64_t>(layer.rows, 512),
                         outputs);
  });
}

void time_optimizer(const TimedLayer& layer, Stopwatch& watch) {
  const int64_t count = 4 * layer.hidden * layer.feed_forward;
  at::Tensor weights = random({count}, c10::kFloat);
  const at::Tensor gradients = random({count}, c10::kFloat);
  at::Tensor first = at::zeros({count}, at::TensorOptions().dtype(c10::kFloat));
  at::Tensor second = at::zeros({count}, at::TensorOptions().dtype(c10::kFloat));
  at::Tensor compute;
  if (layer.dtype == c10::kBFloat16) compute = empty({count}, layer.dtype);
  const double moved = static_cast<double>(count) * (compute.defined() ? 30 : 28);
  watch.bytes("adamw", moved, [&] { adamw_(weights, gradients, first, second, compute, {}); });
  watch.bytes("sum_of_squares", static_cast<double>(count) * 4, [&] { sum_of_squares(gradients); });
}

}  // namespace

std::vector<KernelTiming> time_kernels(const TimedLayer& layer, double budget_s) {
  TRIREME_USER_CHECK(layer.rows > 0 && layer.seq_len > 0 && layer.rows % layer.seq_len == 0,
                     kConfig, "make rows a multiple of the sequence length",
                     "{} rows in sequences of {}", layer.rows, layer.seq_len);
  TRIREME_USER_CHECK(layer.heads > 0 && layer.kv_heads > 0 && layer.hidden % layer.heads == 0 &&
                         layer.hidden / layer.heads % 2 == 0 && layer.heads % layer.kv_heads == 0,
                     kConfig, "let heads divide hidden into even parts, and kv heads divide heads",
                     "hidden {} with {} heads and {} kv heads", layer.hidden, layer.heads,
                     layer.kv_heads);
  const c10::AutoGradMode no_grad(false);
  Stopwatch watch(budget_s);
  time_products(layer, watch);
  time_norms(layer, watch);
  time_activations(layer, watch);
  time_positions(layer, watch);
  time_attention(layer, watch);
  time_head(layer, watch);
  time_optimizer(layer, watch);
  return watch.take();
}

}  // namespace trireme::kernels
