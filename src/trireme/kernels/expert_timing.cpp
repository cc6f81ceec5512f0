#include "trireme/kernels/expert_timing.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/kernels/moe_ops.h"

namespace trireme::kernels {

namespace {

at::Tensor random(at::IntArrayRef shape, c10::ScalarType dtype) {
  return at::randn(shape, at::TensorOptions().dtype(c10::kFloat)).to(dtype);
}

/// Operations a second of `work`, repeated for about `budget_s`.
double rate(double flop, double budget_s, const std::function<void()>& work) {
  const Clock& clock = steady_clock();
  const double start = clock.now_s();
  int64_t count = 0;
  do {
    work();
    ++count;
  } while (clock.now_s() - start < budget_s);
  return flop * static_cast<double>(count) * 1e-9 / std::max(clock.now_s() - start, 1e-9);
}

}  // namespace

std::vector<int64_t> rows_of_experts(const TimedExperts& layer) {
  std::vector<double> shares(static_cast<size_t>(layer.experts), 1.0);
  for (size_t e = 0; layer.skewed && e < shares.size(); ++e)
    shares[e] = 1.0 / static_cast<double>(e + 1);
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> rows;
  double sum = 0.0;
  int64_t given = 0;
  for (const double share : shares) {
    sum += share;
    const auto until = static_cast<int64_t>(static_cast<double>(layer.rows) * sum / all + 0.5);
    rows.push_back(until - given);
    given = until;
  }
  rows.back() += layer.rows - given;
  return rows;
}

std::vector<ExpertTiming> time_experts(const TimedExperts& layer, int rounds, double budget_s) {
  TRIREME_USER_CHECK(layer.rows > 0 && layer.experts > 0 && layer.hidden > 0 &&
                         layer.expert_hidden > 0 && rounds > 0,
                     kConfig, "give sizes of at least 1", "{} rows of {} experts, {} x {}",
                     layer.rows, layer.experts, layer.hidden, layer.expert_hidden);
  const c10::AutoGradMode no_grad(false);
  GroupOffsets offsets = {0};
  for (const int64_t rows : rows_of_experts(layer)) offsets.push_back(offsets.back() + rows);
  const int64_t out = 2 * layer.expert_hidden;
  const at::Tensor x = random({layer.rows, layer.hidden}, layer.dtype);
  const at::Tensor dy = random({layer.rows, out}, layer.dtype);
  const std::vector<at::Tensor> weights = {
      random({layer.experts, layer.expert_hidden, layer.hidden}, layer.dtype),
      random({layer.experts, layer.expert_hidden, layer.hidden}, layer.dtype)};
  const at::Tensor dense = random({out, layer.hidden}, layer.dtype);
  at::Tensor y = at::empty({layer.rows, out}, x.options());
  at::Tensor dx = at::empty({layer.rows, layer.hidden}, x.options());
  const auto floats = at::TensorOptions().dtype(c10::kFloat);
  const std::vector<at::Tensor> dweights = {
      at::zeros({layer.experts, layer.expert_hidden, layer.hidden}, floats),
      at::zeros({layer.experts, layer.expert_hidden, layer.hidden}, floats)};
  at::Tensor ddense = at::zeros({out, layer.hidden}, floats);
  const double flop = 2.0 * static_cast<double>(layer.rows) * static_cast<double>(out) *
                      static_cast<double>(layer.hidden);

  struct Pair {
    const char* name;
    std::function<void()> grouped;
    std::function<void()> dense;
  };
  const std::vector<Pair> pairs = {
      {"gate_up", [&] { grouped_linear(x, weights, offsets, false, y); },
       [&] { linear(x, dense, std::nullopt, std::nullopt, y); }},
      {"gate_up.dx", [&] { grouped_linear_backward_input(dy, weights, offsets, dx); },
       [&] { linear_backward_input(dy, dense, dx); }},
      {"gate_up.dw", [&] { grouped_linear_backward_weight(dy, x, offsets, dweights, true); },
       [&] { linear_backward_weight(dy, x, ddense, true); }}};
  std::vector<ExpertTiming> timings;
  for (const Pair& pair : pairs) {
    pair.grouped();
    pair.dense();
    ExpertTiming timing{pair.name, {}, {}};
    for (int round = 0; round < rounds; ++round) {
      timing.dense.push_back(rate(flop, budget_s, pair.dense));
      timing.grouped.push_back(rate(flop, budget_s, pair.grouped));
    }
    timings.push_back(std::move(timing));
  }
  return timings;
}

}  // namespace trireme::kernels
