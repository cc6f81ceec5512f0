#include "trireme/plan/efficiency.h"

#include <algorithm>
#include <cmath>

namespace trireme::plan {

namespace {

double squared_log(double a, double b) {
  const double ratio = std::log(a / b);
  return ratio * ratio;
}

constexpr double kSame = 1e-9;

}  // namespace

double distance(const ProductShape& a, const ProductShape& b) {
  return std::sqrt((squared_log(a.groups, b.groups) + squared_log(a.m, b.m) +
                    squared_log(a.n, b.n) + squared_log(a.k, b.k)) /
                   4.0);
}

double distance(const AttentionShape& a, const AttentionShape& b) {
  return std::sqrt((squared_log(a.batch, b.batch) + squared_log(a.seq_len, b.seq_len) +
                    squared_log(a.heads, b.heads) + squared_log(a.kv_heads, b.kv_heads) +
                    squared_log(a.head_dim, b.head_dim) + squared_log(a.value_dim, b.value_dim)) /
                   6.0);
}

std::optional<double> EfficiencyTables::exact(const ProductShape& shape, ComputeType type) const {
  double sum = 0.0;
  int count = 0;
  for (const MeasuredProduct& one : products) {
    if (one.type != type || one.shape.use != shape.use || distance(one.shape, shape) > kSame)
      continue;
    sum += one.efficiency;
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / count;
}

std::optional<double> EfficiencyTables::exact(const AttentionShape& shape, ComputeType type) const {
  double sum = 0.0;
  int count = 0;
  for (const MeasuredAttention& one : attention) {
    if (one.type != type || one.shape.backward != shape.backward ||
        distance(one.shape, shape) > kSame)
      continue;
    sum += one.efficiency;
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / count;
}

bool EfficiencyTables::has_products(ComputeType type) const {
  return std::ranges::any_of(products,
                             [&](const MeasuredProduct& one) { return one.type == type; });
}

bool EfficiencyTables::has_attention(ComputeType type) const {
  return std::ranges::any_of(attention,
                             [&](const MeasuredAttention& one) { return one.type == type; });
}

}  // namespace trireme::plan
