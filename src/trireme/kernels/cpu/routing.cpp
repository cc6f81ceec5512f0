// The router's choice: scores, groups, top-k, weights, balancing, and rows sorted by expert. Small integer and float32
// work, one row at a time; products and sums over rows of activations are elsewhere.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/router_scores.h"
#include "trireme/kernels/cpu/rows.h"
#include "trireme/kernels/moe_ops.h"

namespace trireme::kernels {
namespace {

constexpr int64_t kGrainRows = 64;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Shape {
  int64_t rows;
  int64_t experts;
  int64_t top_k;
};

Shape shape_of(const at::Tensor& logits, const at::Tensor& choice, const RouterOptions& options) {
  TRIREME_CHECK(logits.dim() == 2 && logits.is_contiguous() && logits.scalar_type() == at::kFloat,
                "logits must be float32 [N, E]");
  const Shape shape{logits.size(0), logits.size(1), options.top_k};
  TRIREME_CHECK(options.top_k >= 1 && options.top_k <= shape.experts,
                "{} of {} experts cannot be chosen", options.top_k, shape.experts);
  TRIREME_CHECK(options.num_groups >= 1 && shape.experts % options.num_groups == 0 &&
                    options.top_groups >= 1 && options.top_groups <= options.num_groups &&
                    options.top_groups * (shape.experts / options.num_groups) >= options.top_k,
                "{} of {} groups of {} experts cannot give {} experts", options.top_groups,
                options.num_groups, shape.experts, options.top_k);
  TRIREME_CHECK(choice.is_contiguous() && choice.scalar_type() == at::kLong &&
                    choice.numel() == shape.rows * shape.top_k,
                "choice must be int64 [{}, {}]", shape.rows, shape.top_k);
  return shape;
}

/// p = softmax(z), which may be z; returns logsumexp(z).
float softmax(const float* z, int64_t n, float* p) {
  return cpu::router_score_kernels().softmax(z, at(n), p);
}

void sigmoid(const float* z, int64_t n, float* s) {
  cpu::router_score_kernels().sigmoid(z, at(n), s);
}

/// What the choice is made by (without the bias), and what P in the balancing loss is made from.
void scores_of(const RouterOptions& options, const float* z, int64_t n, float* s) {
  if (options.score == RouterScore::kSigmoid) {
    sigmoid(z, n, s);
  } else {
    softmax(z, n, s);
  }
}

/// Numbers of the `count` largest of values[0, n), best first, the lower number among equals.
void largest(const float* values, int64_t n, int64_t count, std::vector<int64_t>& order) {
  order.resize(at(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
}

/// Only experts of the best groups stay: the others' values become minus infinity.
void keep_best_groups(const RouterOptions& options, int64_t experts, std::vector<float>& values,
                      std::vector<int64_t>& order) {
  const int64_t size = experts / options.num_groups;
  std::vector<float> of_group(at(options.num_groups));
  for (int64_t g = 0; g < options.num_groups; ++g) {
    const float* first = values.data() + g * size;
    const int64_t best = options.group_score_top2 ? std::min<int64_t>(2, size) : 1;
    largest(first, size, best, order);
    float sum = 0.0f;
    for (int64_t i = 0; i < best; ++i) sum += first[order[at(i)]];
    of_group[at(g)] = sum;
  }
  largest(of_group.data(), options.num_groups, options.top_groups, order);
  std::vector<char> kept(at(options.num_groups), 0);
  for (int64_t i = 0; i < options.top_groups; ++i) kept[at(order[at(i)])] = 1;
  for (int64_t e = 0; e < experts; ++e) {
    if (kept[at(e / size)] == 0) values[at(e)] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

namespace cpu {

void route(const at::Tensor& logits, const at::Tensor& selection_bias, const RouterOptions& options,
           at::Tensor& choice, at::Tensor& weights) {
  const Shape shape = shape_of(logits, choice, options);
  TRIREME_CHECK(weights.is_contiguous() && weights.scalar_type() == at::kFloat &&
                    weights.numel() == choice.numel(),
                "weights must be float32 [{}, {}]", shape.rows, shape.top_k);
  TRIREME_CHECK(!selection_bias.defined() ||
                    (selection_bias.scalar_type() == at::kFloat && selection_bias.is_contiguous() &&
                     selection_bias.numel() == shape.experts),
                "the selection bias must be float32 [{}]", shape.experts);
  const float* z = logits.const_data_ptr<float>();
  const float* bias = selection_bias.defined() ? selection_bias.const_data_ptr<float>() : nullptr;
  int64_t* chosen = choice.data_ptr<int64_t>();
  float* out = weights.data_ptr<float>();
  at::parallel_for(0, shape.rows, kGrainRows, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(at(shape.experts));
    std::vector<float> values(at(shape.experts));
    std::vector<float> few(at(shape.top_k));
    std::vector<int64_t> order;
    for (int64_t n = begin; n < end; ++n) {
      const float* row = z + n * shape.experts;
      scores_of(options, row, shape.experts, scores.data());
      values = scores;
      // Far-apart logits have equal (rounded) probabilities: the order of the logits decides.
      if (options.score == RouterScore::kSoftmax && bias == nullptr && options.num_groups == 1)
        std::copy(row, row + shape.experts, values.begin());
      if (bias != nullptr) {
        for (int64_t e = 0; e < shape.experts; ++e) values[at(e)] += bias[e];
      }
      if (options.num_groups > 1) keep_best_groups(options, shape.experts, values, order);
      largest(values.data(), shape.experts, shape.top_k, order);
      float* w = out + n * shape.top_k;
      for (int64_t j = 0; j < shape.top_k; ++j) {
        chosen[n * shape.top_k + j] = order[at(j)];
        w[j] = scores[at(order[at(j)])];
      }
      if (options.softmax_after_top_k) {
        for (int64_t j = 0; j < shape.top_k; ++j) few[at(j)] = row[order[at(j)]];
        softmax(few.data(), shape.top_k, w);
      }
      if (options.normalize) {
        const float sum = std::accumulate(w, w + shape.top_k, 0.0f);
        for (int64_t j = 0; j < shape.top_k; ++j) w[j] /= sum;
      }
      for (int64_t j = 0; j < shape.top_k; ++j) w[j] *= static_cast<float>(options.scaling);
    }
  });
}

void route_backward(const at::Tensor& logits, const at::Tensor& choice, const at::Tensor& d_weights,
                    const RouterOptions& options, const at::Tensor& d_scores, double z_gradient,
                    at::Tensor& d_logits) {
  const Shape shape = shape_of(logits, choice, options);
  TRIREME_CHECK(d_weights.is_contiguous() && d_weights.scalar_type() == at::kFloat &&
                    d_weights.numel() == choice.numel(),
                "d_weights must be float32 [{}, {}]", shape.rows, shape.top_k);
  TRIREME_CHECK(d_logits.is_contiguous() && d_logits.scalar_type() == at::kFloat &&
                    d_logits.sizes() == logits.sizes(),
                "d_logits must be float32 [{}, {}]", shape.rows, shape.experts);
  int64_t set_rows = shape.rows;
  if (d_scores.defined()) {
    TRIREME_CHECK(d_scores.dim() == 2 && d_scores.is_contiguous() &&
                      d_scores.size(1) == shape.experts && shape.rows % d_scores.size(0) == 0,
                  "d_scores must be float32 [sets, {}]", shape.experts);
    set_rows = shape.rows / d_scores.size(0);
  }
  const float* z = logits.const_data_ptr<float>();
  const int64_t* chosen = choice.const_data_ptr<int64_t>();
  const float* dw = d_weights.const_data_ptr<float>();
  const float* balance = d_scores.defined() ? d_scores.const_data_ptr<float>() : nullptr;
  float* dz = d_logits.data_ptr<float>();
  const bool sigmoids = options.score == RouterScore::kSigmoid;
  at::parallel_for(0, shape.rows, kGrainRows, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(at(shape.experts));
    std::vector<float> ds(at(shape.experts));
    std::vector<float> few(at(shape.top_k));
    std::vector<float> w(at(shape.top_k));
    for (int64_t n = begin; n < end; ++n) {
      const float* row = z + n * shape.experts;
      const int64_t* experts = chosen + n * shape.top_k;
      float* out = dz + n * shape.experts;
      std::fill_n(out, shape.experts, 0.0f);
      std::fill(ds.begin(), ds.end(), 0.0f);
      scores_of(options, row, shape.experts, scores.data());
      // Back through scaling and normalisation.
      for (int64_t j = 0; j < shape.top_k; ++j) {
        few[at(j)] = options.softmax_after_top_k ? row[experts[j]] : scores[at(experts[j])];
        w[at(j)] = dw[n * shape.top_k + j] * static_cast<float>(options.scaling);
      }
      if (options.softmax_after_top_k) softmax(few.data(), shape.top_k, few.data());
      if (options.normalize) {
        const float sum = std::accumulate(few.begin(), few.end(), 0.0f);
        float dot = 0.0f;
        for (int64_t j = 0; j < shape.top_k; ++j) dot += w[at(j)] * few[at(j)];
        for (int64_t j = 0; j < shape.top_k; ++j) w[at(j)] = (w[at(j)] - dot / sum) / sum;
      }
      if (options.softmax_after_top_k) {
        float dot = 0.0f;
        for (int64_t j = 0; j < shape.top_k; ++j) dot += w[at(j)] * few[at(j)];
        for (int64_t j = 0; j < shape.top_k; ++j) out[experts[j]] = few[at(j)] * (w[at(j)] - dot);
      } else {
        for (int64_t j = 0; j < shape.top_k; ++j) ds[at(experts[j])] = w[at(j)];
      }
      // The balancing loss sees shares of one: of sigmoids, over their sum.
      if (balance != nullptr) {
        const float* g = balance + n / set_rows * shape.experts;
        float sum = 1.0f;
        float dot = 0.0f;
        if (sigmoids) {
          sum = std::accumulate(scores.begin(), scores.end(), 0.0f);
          for (int64_t e = 0; e < shape.experts; ++e) dot += g[e] * scores[at(e)] / sum;
        }
        for (int64_t e = 0; e < shape.experts; ++e) ds[at(e)] += (g[e] - dot) / sum;
      }
      if (sigmoids) {
        for (int64_t e = 0; e < shape.experts; ++e)
          out[e] += ds[at(e)] * scores[at(e)] * (1.0f - scores[at(e)]);
      } else {
        float dot = 0.0f;
        for (int64_t e = 0; e < shape.experts; ++e) dot += ds[at(e)] * scores[at(e)];
        for (int64_t e = 0; e < shape.experts; ++e) out[e] += scores[at(e)] * (ds[at(e)] - dot);
      }
      if (z_gradient != 0.0) {
        const float lse = softmax(row, shape.experts, scores.data());
        const float factor = static_cast<float>(z_gradient) * 2.0f * lse;
        for (int64_t e = 0; e < shape.experts; ++e) out[e] += factor * scores[at(e)];
      }
    }
  });
}

RouterBalance balance(const at::Tensor& logits, const at::Tensor& choice,
                      const RouterOptions& options, int64_t sets,
                      const std::vector<int64_t>& load_of_all) {
  const Shape shape = shape_of(logits, choice, options);
  TRIREME_CHECK(sets >= 1 && shape.rows % sets == 0, "{} rows do not make {} sets", shape.rows,
                sets);
  TRIREME_CHECK(load_of_all.empty() ||
                    (sets == 1 && static_cast<int64_t>(load_of_all.size()) == shape.experts),
                "the load of all is one set's of {} experts", shape.experts);
  const float* z = logits.const_data_ptr<float>();
  const int64_t* chosen = choice.const_data_ptr<int64_t>();
  const int64_t set_rows = shape.rows / sets;
  // Sums over rows run in blocks within a set, then over blocks in order: the same on any number of threads.
  const int64_t blocks_a_set = std::min<int64_t>(cpu::reduction_blocks(set_rows), 16);
  const int64_t block_rows = (set_rows + blocks_a_set - 1) / std::max<int64_t>(1, blocks_a_set);
  const int64_t blocks = sets * blocks_a_set;
  std::vector<double> shares(at(blocks * shape.experts), 0.0);
  std::vector<int64_t> loads(at(blocks * shape.experts), 0);
  std::vector<double> squares(at(blocks), 0.0);
  std::vector<double> entropies(at(blocks), 0.0);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    std::vector<float> p(at(shape.experts));
    for (int64_t b = first; b < last; ++b) {
      const int64_t set = b / blocks_a_set;
      const int64_t begin = std::min(set_rows, b % blocks_a_set * block_rows);
      const int64_t end = std::min(set_rows, begin + block_rows);
      for (int64_t n = set * set_rows + begin; n < set * set_rows + end; ++n) {
        const float* row = z + n * shape.experts;
        const float lse = softmax(row, shape.experts, p.data());
        squares[at(b)] += static_cast<double>(lse) * lse;
        float inverse = 1.0f;
        if (options.score == RouterScore::kSigmoid) {
          sigmoid(row, shape.experts, p.data());
          inverse = 1.0f / std::accumulate(p.begin(), p.end(), 0.0f);
        }
        entropies[at(b)] += cpu::router_score_kernels().add_shares(
            p.data(), p.size(), inverse, shares.data() + b * shape.experts);
        for (int64_t j = 0; j < shape.top_k; ++j)
          ++loads[at(b * shape.experts + chosen[n * shape.top_k + j])];
      }
    }
  });

  RouterBalance result;
  result.load.assign(at(shape.experts), 0);
  result.d_scores = at::empty({sets, shape.experts}, at::TensorOptions().dtype(at::kFloat));
  float* gradient = result.d_scores.data_ptr<float>();
  const double rows = static_cast<double>(shape.rows);
  for (int64_t set = 0; set < sets; ++set) {
    double all = static_cast<double>(set_rows * shape.top_k);
    if (!load_of_all.empty()) {
      all =
          static_cast<double>(std::accumulate(load_of_all.begin(), load_of_all.end(), int64_t{0}));
    }
    for (int64_t e = 0; e < shape.experts; ++e) {
      double share = 0.0;
      int64_t load = 0;
      for (int64_t b = set * blocks_a_set; b < (set + 1) * blocks_a_set; ++b) {
        share += shares[at(b * shape.experts + e)];
        load += loads[at(b * shape.experts + e)];
      }
      result.load[at(e)] += load;
      const double counted = static_cast<double>(load_of_all.empty() ? load : load_of_all[at(e)]);
      // E / k * f_e with f_e = load / N: E times the fraction of all choices.
      const double factor = all > 0.0 ? static_cast<double>(shape.experts) * counted / all : 0.0;
      result.loss += factor * share / std::max(rows, 1.0);
      gradient[set * shape.experts + e] = static_cast<float>(factor / std::max(rows, 1.0));
    }
  }
  if (shape.rows > 0) {
    result.z_loss = std::accumulate(squares.begin(), squares.end(), 0.0) / rows;
    result.entropy = std::accumulate(entropies.begin(), entropies.end(), 0.0) / rows;
  }
  return result;
}

ExpertRows sort_by_expert(const at::Tensor& choice, const at::Tensor& weights, int64_t num_experts,
                          int64_t capacity, bool pad) {
  TRIREME_CHECK(choice.dim() == 2 && choice.is_contiguous() && choice.scalar_type() == at::kLong,
                "choice must be int64 [N, k]");
  const int64_t tokens = choice.size(0);
  const int64_t top_k = choice.size(1);
  const int64_t all = tokens * top_k;
  const int64_t* chosen = choice.const_data_ptr<int64_t>();
  std::vector<std::vector<int64_t>> of_expert(at(num_experts));
  for (int64_t i = 0; i < all; ++i) of_expert[at(chosen[i])].push_back(i);

  ExpertRows result;
  result.offsets.assign(at(num_experts + 1), 0);
  for (int64_t e = 0; e < num_experts; ++e) {
    auto& choices = of_expert[at(e)];
    const auto size = static_cast<int64_t>(choices.size());
    if (capacity > 0 && size > capacity) {
      const float* w = weights.const_data_ptr<float>();
      std::nth_element(choices.begin(), choices.begin() + (capacity - 1), choices.end(),
                       [&](int64_t a, int64_t b) { return w[a] != w[b] ? w[a] > w[b] : a < b; });
      choices.resize(at(capacity));
      std::sort(choices.begin(), choices.end());
      result.dropped += size - capacity;
    }
    const int64_t rows = pad && capacity > 0 ? capacity : static_cast<int64_t>(choices.size());
    result.offsets[at(e + 1)] = result.offsets[at(e)] + rows;
  }
  const auto integers = at::TensorOptions().dtype(at::kLong);
  result.tokens = at::empty({result.count()}, integers);
  result.rows = at::empty({tokens, top_k}, integers);
  int64_t* token_of = result.tokens.data_ptr<int64_t>();
  int64_t* row_of = result.rows.data_ptr<int64_t>();
  std::fill_n(token_of, result.count(), int64_t{-1});
  std::fill_n(row_of, all, int64_t{-1});
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t row = result.offsets[at(e)];
    for (const int64_t i : of_expert[at(e)]) {
      token_of[row] = i / top_k;
      row_of[i] = row++;
    }
  }
  return result;
}

}  // namespace cpu

}  // namespace trireme::kernels
