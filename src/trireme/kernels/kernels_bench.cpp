// Our kernels beside what ATen offers for the same work. Names: <kernel>/<ours|aten>/<shape>/<bf16?>.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <benchmark/benchmark.h>

#include <cmath>

#include "trireme/kernels/ops.h"
#include "trireme/kernels/registry.h"

namespace trireme::kernels {
namespace {

at::ScalarType dtype_of(const benchmark::State& state, int argument) {
  return state.range(argument) != 0 ? at::kBFloat16 : at::kFloat;
}

at::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randn(sizes, at::TensorOptions().dtype(at::kFloat)).to(dtype);
}

void rate(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * static_cast<double>(state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

/// Arguments: batch, seq_len, heads, head_dim, bf16.
struct AttentionBench {
  explicit AttentionBench(const benchmark::State& state) {
    const int64_t b = state.range(0);
    const int64_t t = state.range(1);
    const int64_t h = state.range(2);
    const int64_t d = state.range(3);
    const at::ScalarType dtype = dtype_of(state, 4);
    qkv = random({b, t, 3 * h * d}, dtype);
    dout = random({b, t, h, d}, dtype);
    out = at::empty({b, t, h, d}, qkv.options());
    grad = at::empty_like(qkv);
    logsumexp = at::empty({b, h, t}, at::TensorOptions().dtype(at::kFloat));
    for (int64_t i = 0; i < 3; ++i) {
      parts.push_back(qkv.narrow(2, i * h * d, h * d).view({b, t, h, d}));
      grads.push_back(grad.narrow(2, i * h * d, h * d).view({b, t, h, d}));
    }
    options.scale = 1.0 / std::sqrt(static_cast<double>(d));
    // Two products forward, five backward, half of each under the causal mask.
    forward_flops = 2.0 * 2.0 * static_cast<double>(b * h * d) * static_cast<double>(t) *
                    static_cast<double>(t) / 2;
  }
  at::Tensor qkv, dout, out, grad, logsumexp;
  std::vector<at::Tensor> parts, grads;
  AttentionOptions options;
  double forward_flops = 0.0;
};

void attention_forward_ours(benchmark::State& state) {
  AttentionBench bench(state);
  for (auto _ : state) {
    attention(bench.parts[0], bench.parts[1], bench.parts[2], bench.options, bench.out,
              bench.logsumexp);
  }
  rate(state, bench.forward_flops);
}

void attention_forward_aten(benchmark::State& state) {
  AttentionBench bench(state);
  for (auto _ : state) {
    benchmark::DoNotOptimize(at::_scaled_dot_product_flash_attention_for_cpu(
        bench.parts[0].transpose(1, 2), bench.parts[1].transpose(1, 2),
        bench.parts[2].transpose(1, 2), 0.0, true));
  }
  rate(state, bench.forward_flops);
}

void attention_backward_ours(benchmark::State& state) {
  AttentionBench bench(state);
  attention(bench.parts[0], bench.parts[1], bench.parts[2], bench.options, bench.out,
            bench.logsumexp);
  for (auto _ : state) {
    attention_backward(bench.dout, bench.parts[0], bench.parts[1], bench.parts[2], bench.out,
                       bench.logsumexp, bench.options, bench.grads[0], bench.grads[1],
                       bench.grads[2]);
  }
  rate(state, 2.5 * bench.forward_flops);
}

void attention_backward_aten(benchmark::State& state) {
  AttentionBench bench(state);
  const at::Tensor q = bench.parts[0].transpose(1, 2);
  const at::Tensor k = bench.parts[1].transpose(1, 2);
  const at::Tensor v = bench.parts[2].transpose(1, 2);
  const auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true);
  const at::Tensor dout = bench.dout.transpose(1, 2);
  for (auto _ : state) {
    benchmark::DoNotOptimize(at::_scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, logsumexp, 0.0, true));
  }
  rate(state, 2.5 * bench.forward_flops);
}

void attention_shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t bf16 : {0, 1}) {
    bench->Args({8, 256, 8, 48, bf16});
    bench->Args({2, 1024, 12, 64, bf16});
  }
  bench->UseRealTime()->MeasureProcessCPUTime()->MinTime(0.3);
}
BENCHMARK(attention_forward_ours)->Apply(attention_shapes);
BENCHMARK(attention_forward_aten)->Apply(attention_shapes);
BENCHMARK(attention_backward_ours)->Apply(attention_shapes);
BENCHMARK(attention_backward_aten)->Apply(attention_shapes);

/// Arguments: rows, in, out, bf16.
void linear_ours(benchmark::State& state) {
  const at::Tensor x = random({state.range(0), state.range(1)}, dtype_of(state, 3));
  const at::Tensor w = random({state.range(2), state.range(1)}, dtype_of(state, 3));
  at::Tensor y = at::empty({state.range(0), state.range(2)}, x.options());
  for (auto _ : state) linear(x, w, std::nullopt, std::nullopt, y);
  rate(state, 2.0 * static_cast<double>(state.range(0) * state.range(1) * state.range(2)));
}
void linear_aten(benchmark::State& state) {
  const at::Tensor x = random({state.range(0), state.range(1)}, dtype_of(state, 3));
  const at::Tensor w = random({state.range(2), state.range(1)}, dtype_of(state, 3));
  at::Tensor y = at::empty({state.range(0), state.range(2)}, x.options());
  for (auto _ : state) at::mm_out(y, x, w.t());
  rate(state, 2.0 * static_cast<double>(state.range(0) * state.range(1) * state.range(2)));
}
void linear_shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t bf16 : {0, 1})
    bench->Args({2048, 768, 4096, bf16})->Args({2048, 384, 1152, bf16});
  bench->UseRealTime()->MeasureProcessCPUTime()->MinTime(0.3);
}
BENCHMARK(linear_ours)->Apply(linear_shapes);
BENCHMARK(linear_aten)->Apply(linear_shapes);

/// Arguments: rows, width, bf16. Bytes read and written once.
void rms_norm_ours(benchmark::State& state) {
  const at::Tensor x = random({state.range(0), state.range(1)}, dtype_of(state, 2));
  const at::Tensor w = random({state.range(1)}, dtype_of(state, 2));
  at::Tensor y = at::empty_like(x);
  at::Tensor rstd = at::empty({state.range(0)}, at::TensorOptions().dtype(at::kFloat));
  for (auto _ : state) rms_norm(x, w, 1e-6, y, rstd);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * 2 *
                          static_cast<int64_t>(x.nbytes()));
}
void rms_norm_aten(benchmark::State& state) {
  const at::Tensor x = random({state.range(0), state.range(1)}, dtype_of(state, 2));
  const at::Tensor w = random({state.range(1)}, dtype_of(state, 2));
  for (auto _ : state) benchmark::DoNotOptimize(at::rms_norm(x, {state.range(1)}, w, 1e-6));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * 2 *
                          static_cast<int64_t>(x.nbytes()));
}
void swiglu_ours(benchmark::State& state) {
  const at::Tensor x = random({state.range(0), 2 * state.range(1)}, dtype_of(state, 2));
  at::Tensor y = at::empty({state.range(0), state.range(1)}, x.options());
  for (auto _ : state) gated_activation(Activation::kSilu, x, y);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * 3 *
                          static_cast<int64_t>(y.nbytes()));
}
void swiglu_aten(benchmark::State& state) {
  const int64_t h = state.range(1);
  const at::Tensor x = random({state.range(0), 2 * h}, dtype_of(state, 2));
  for (auto _ : state) benchmark::DoNotOptimize(at::silu(x.narrow(1, 0, h)).mul(x.narrow(1, h, h)));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * 3 * state.range(0) * h *
                          x.element_size());
}

/// What finding a kernel costs a call.
void find_kernel(benchmark::State& state) {
  const at::Tensor x = random({1, 1}, at::kFloat);
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        registry().find<&kernels::rms_norm>(x.device().type(), x.scalar_type()));
  }
}
BENCHMARK(find_kernel);

void row_shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t bf16 : {0, 1}) bench->Args({4096, 768, bf16})->Args({4096, 2048, bf16});
  bench->UseRealTime()->MeasureProcessCPUTime()->MinTime(0.2);
}
BENCHMARK(rms_norm_ours)->Apply(row_shapes);
BENCHMARK(rms_norm_aten)->Apply(row_shapes);
BENCHMARK(swiglu_ours)->Apply(row_shapes);
BENCHMARK(swiglu_aten)->Apply(row_shapes);

}  // namespace
}  // namespace trireme::kernels
