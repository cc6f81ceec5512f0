#include "trireme/kernels/moe_ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "trireme/kernels/cpu/test_products.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

/// Offsets of groups of the given sizes.
GroupOffsets offsets_of(const std::vector<int64_t>& sizes) {
  GroupOffsets offsets = {0};
  for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
  return offsets;
}

at::Tensor rows_of(const at::Tensor& x, const GroupOffsets& offsets, size_t g) {
  return x.slice(0, offsets[g], offsets[g + 1]);
}

struct GroupedCase {
  std::vector<int64_t> sizes;
  int64_t in;
  std::vector<int64_t> outs;
};

std::vector<GroupedCase> grouped_cases() {
  std::vector<GroupedCase> cases = {
      {{5, 0, 130, 1}, 64, {64}},      // an empty expert, one row, more than a tile
      {{0, 700, 0}, 96, {80, 80}},     // one expert takes all; pieces that share no panel
      {{0, 0}, 32, {16}},              // no rows at all
      {{33, 64, 65}, 1543, {33, 33}},  // several inner blocks, odd widths
      {{1, 2, 3, 4, 5, 6, 7, 8}, 17, {9}}};
  std::mt19937 random(7);
  // Many groups, whose weight gradients are each one thread's: short ones and one that is not; some of two blocks of rows.
  GroupedCase many{std::vector<int64_t>(40, 31), 70, {66, 40}};
  many.sizes[7] = 700;
  many.sizes[20] = 0;
  cases.push_back(many);
  cases.push_back({std::vector<int64_t>(30, 600), 24, {20}});
  for (int i = 0; i < 6; ++i) {
    GroupedCase one{{}, static_cast<int64_t>(random() % 200 + 1), {}};
    for (uint64_t g = random() % 9 + 1; g > 0; --g)
      one.sizes.push_back(static_cast<int64_t>(random() % 90));
    for (uint64_t p = random() % 2 + 1; p > 0; --p)
      one.outs.push_back(static_cast<int64_t>(random() % 150 + 1));
    cases.push_back(std::move(one));
  }
  return cases;
}

class MoeTest : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(MoeTest, GroupedProductsMatchProductsOfEachGroup) {
  const at::ScalarType dtype = GetParam();
  for (const GroupedCase& one : grouped_cases()) {
    const GroupOffsets offsets = offsets_of(one.sizes);
    const auto groups = static_cast<int64_t>(one.sizes.size());
    const int64_t rows = offsets.back();
    const int64_t out = std::accumulate(one.outs.begin(), one.outs.end(), int64_t{0});
    const at::Tensor x = random_tensor({rows, one.in}, dtype, 1);
    const at::Tensor dy = random_tensor({rows, out}, dtype, 2);
    std::vector<at::Tensor> weights;
    std::vector<at::Tensor> start_gradients;
    for (size_t p = 0; p < one.outs.size(); ++p) {
      weights.push_back(
          random_tensor({groups, one.outs[p], one.in}, dtype, 3 + static_cast<uint32_t>(p)));
      start_gradients.push_back(random_tensor({groups, one.outs[p], one.in}, at::kFloat, 9));
    }
    const at::Tensor whole = at::cat(weights, 1).to(at::kDouble);
    at::Tensor y_expected = at::zeros({rows, out}, at::kDouble);
    at::Tensor dx_expected = at::zeros({rows, one.in}, at::kDouble);
    at::Tensor dw_expected = at::zeros({groups, out, one.in}, at::kDouble);
    for (size_t g = 0; g < one.sizes.size(); ++g) {
      const at::Tensor w = whole[static_cast<int64_t>(g)];
      const at::Tensor in = rows_of(x, offsets, g).to(at::kDouble);
      const at::Tensor grad = rows_of(dy, offsets, g).to(at::kDouble);
      rows_of(y_expected, offsets, g).copy_(at::matmul(in, w.t()));
      rows_of(dx_expected, offsets, g).copy_(at::matmul(grad, w));
      dw_expected[static_cast<int64_t>(g)].copy_(at::matmul(grad.t(), in));
    }
    cpu::for_every_choice([&] {
      at::Tensor y = garbage({rows, out}, dtype);
      grouped_linear(x, weights, offsets, false, y);
      expect_close(y, values_of(y_expected), tolerance_of(dtype), "y");
      const at::Tensor start = random_tensor({rows, out}, dtype, 5);
      y.copy_(start);
      grouped_linear(x, weights, offsets, true, y);
      expect_close(y, values_of(y_expected + start.to(at::kDouble)), tolerance_of(dtype),
                   "y added to");
      at::Tensor dx = garbage({rows, one.in}, dtype);
      grouped_linear_backward_input(dy, weights, offsets, dx);
      expect_close(dx, values_of(dx_expected), tolerance_of(dtype), "dx");
      for (const bool accumulate : {false, true}) {
        std::vector<at::Tensor> gradients;
        for (const at::Tensor& first : start_gradients)
          gradients.push_back(accumulate ? first.clone() : garbage(first.sizes(), at::kFloat));
        grouped_linear_backward_weight(dy, x, offsets, gradients, accumulate);
        at::Tensor expected = dw_expected;
        if (accumulate) expected = expected + at::cat(start_gradients, 1).to(at::kDouble);
        expect_close(at::cat(gradients, 1), values_of(expected), 1e-5, "dweight");
      }
    });
  }
}

TEST_P(MoeTest, ARowsResultDoesNotDependOnTheOtherRowsOfItsExpert) {
  const at::ScalarType dtype = GetParam();
  for (const int64_t in : {48, 300, 900}) {
    const at::Tensor x = random_tensor({600, in}, dtype, 1);
    const std::vector<at::Tensor> weights = {random_tensor({3, 70, in}, dtype, 2),
                                             random_tensor({3, 70, in}, dtype, 3)};
    cpu::for_every_choice([&] {
      at::Tensor all = garbage({600, 140}, dtype);
      grouped_linear(x, weights, {0, 100, 550, 600}, false, all);
      for (const int64_t row : {100, 137, 549}) {
        // The same row of expert 1, alone and with a few others before and after it.
        for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{row, row + 1},
                                         {std::max<int64_t>(100, row - 37), row + 1}}) {
          at::Tensor few = garbage({end - begin, 140}, dtype);
          grouped_linear(x.slice(0, begin, end), weights, {0, 0, end - begin, end - begin}, false,
                         few);
          ASSERT_TRUE(same_bits(few[row - begin], all[row])) << "row " << row << ", inner " << in;
        }
      }
    });
  }
}

TEST_P(MoeTest, AWeightGradientDoesNotDependOnTheOtherGroups) {
  const at::ScalarType dtype = GetParam();
  const int threads = at::get_num_threads();
  const std::vector<int64_t> sizes = {600, 40, 40, 40, 0,  40, 40, 40, 40, 40, 40,
                                      40,  40, 40, 40, 40, 40, 40, 40, 40, 9,  40,
                                      40,  40, 40, 40, 40, 40, 40, 40, 40, 40};
  const GroupOffsets offsets = offsets_of(sizes);
  const at::Tensor x = random_tensor({offsets.back(), 72}, dtype, 1);
  const at::Tensor dy = random_tensor({offsets.back(), 70}, dtype, 2);
  cpu::for_every_choice([&] {
    std::vector<at::Tensor> alone;
    for (size_t g = 0; g < sizes.size(); ++g) {
      alone.push_back(garbage({1, 70, 72}, at::kFloat));
      grouped_linear_backward_weight(rows_of(dy, offsets, g), rows_of(x, offsets, g), {0, sizes[g]},
                                     {alone.back()}, false);
    }
    for (const int count : {1, 2, 3}) {
      at::set_num_threads(count);
      at::Tensor all = garbage({static_cast<int64_t>(sizes.size()), 70, 72}, at::kFloat);
      grouped_linear_backward_weight(dy, x, offsets, {all}, false);
      EXPECT_TRUE(same_bits(all, at::cat(alone))) << count << " threads";
    }
    at::set_num_threads(threads);
  });
}

TEST_P(MoeTest, RowsAreGatheredAndSummed) {
  const at::ScalarType dtype = GetParam();
  std::mt19937 random(3);
  for (const auto& [tokens, experts, top_k, capacity, pad] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t, bool>{50, 8, 2, 0, false},
        {50, 8, 2, 9, false},
        {50, 8, 2, 9, true},
        {1, 4, 4, 0, false},
        {40, 3, 1, 5, true}}) {
    at::Tensor choice = at::empty({tokens, top_k}, at::kLong);
    for (int64_t n = 0; n < tokens; ++n) {
      std::vector<int64_t> all(static_cast<size_t>(experts));
      std::iota(all.begin(), all.end(), int64_t{0});
      std::shuffle(all.begin(), all.end(), random);
      for (int64_t j = 0; j < top_k; ++j) choice[n][j] = all[static_cast<size_t>(j)];
    }
    const at::Tensor weights = at::rand({tokens, top_k}, at::kFloat);
    const ExpertRows rows = sort_by_expert(choice, weights, experts, capacity, pad);
    // Every row is a token's that chose the expert; every choice has its row or was dropped for heavier ones.
    ASSERT_EQ(rows.offsets.size(), static_cast<size_t>(experts + 1));
    int64_t kept = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t begin = rows.offsets[static_cast<size_t>(e)];
      const int64_t end = rows.offsets[static_cast<size_t>(e) + 1];
      if (capacity > 0) {
        ASSERT_LE(end - begin, capacity);
      }
      if (pad) {
        ASSERT_EQ(end - begin, capacity);
      }
      int64_t last = -1;
      for (int64_t m = begin; m < end; ++m) {
        const auto token = rows.tokens[m].item<int64_t>();
        if (token < 0) continue;
        ASSERT_GT(token, last) << "tokens ascend within an expert";
        last = token;
        ++kept;
        ASSERT_TRUE((choice[token] == e).any().item<bool>());
      }
    }
    ASSERT_EQ(kept + rows.dropped, tokens * top_k);
    if (capacity == 0) {
      ASSERT_EQ(rows.dropped, 0);
    }
    for (int64_t n = 0; n < tokens; ++n) {
      for (int64_t j = 0; j < top_k; ++j) {
        const auto expert = choice[n][j].item<int64_t>();
        const auto m = rows.rows[n][j].item<int64_t>();
        if (m >= 0) {
          ASSERT_EQ(rows.tokens[m].item<int64_t>(), n);
          ASSERT_GE(m, rows.offsets[static_cast<size_t>(expert)]);
          ASSERT_LT(m, rows.offsets[static_cast<size_t>(expert) + 1]);
          continue;
        }
        // Dropped: at least `capacity` choices of this expert weigh as much.
        const at::Tensor of_expert = weights.masked_select(choice == expert);
        ASSERT_GE((of_expert >= weights[n][j]).sum().item<int64_t>(), capacity + 1);
      }
    }

    const int64_t width = 37;
    const at::Tensor x = random_tensor({tokens, width}, dtype, 4);
    at::Tensor gathered = garbage({rows.count(), width}, dtype);
    gather_rows(x, rows, gathered);
    for (int64_t m = 0; m < rows.count(); ++m) {
      const auto token = rows.tokens[m].item<int64_t>();
      const at::Tensor expected = token < 0 ? at::zeros({width}, gathered.options()) : x[token];
      ASSERT_TRUE(same_bits(gathered[m], expected));
    }
    const at::Tensor y = random_tensor({rows.count(), width}, dtype, 5);
    const at::Tensor start = random_tensor({tokens, width}, dtype, 6);
    for (const bool with_start : {false, true}) {
      at::Tensor out = garbage({tokens, width}, dtype);
      sum_rows(y, rows, with_start ? start : at::Tensor(), out);
      at::Tensor expected = at::zeros({tokens, width}, at::kDouble);
      if (with_start) expected += start.to(at::kDouble);
      for (int64_t n = 0; n < tokens; ++n) {
        for (int64_t j = 0; j < top_k; ++j) {
          const auto m = rows.rows[n][j].item<int64_t>();
          if (m >= 0) expected[n] += y[m].to(at::kDouble);
        }
      }
      expect_close(out, values_of(expected), tolerance_of(dtype), "sum");
    }
    at::Tensor of_rows = garbage({rows.count()}, at::kFloat);
    weights_of_rows(weights, rows, of_rows);
    at::Tensor again = garbage({tokens, top_k}, at::kFloat);
    weights_of_choices(of_rows, rows, again);
    ASSERT_TRUE(same_bits(again, at::where(rows.rows >= 0, weights, at::zeros_like(weights))));
    ASSERT_TRUE(same_bits(of_rows == 0, rows.tokens < 0));
  }
}

TEST_P(MoeTest, WeightedActivationMatchesAutograd) {
  const at::ScalarType dtype = GetParam();
  for (const double limit : {0.0, 0.8}) {
    for (const auto& [rows, f] : {std::pair<int64_t, int64_t>{70, 33}, {0, 8}, {3, 256}}) {
      const at::Tensor gate_up = random_tensor({rows, 2 * f}, dtype, 1);
      const at::Tensor weights = at::rand({rows}, at::kFloat);
      const at::Tensor dy = random_tensor({rows, f}, dtype, 2);
      at::Tensor in = gate_up.to(at::kDouble).requires_grad_(true);
      at::Tensor w = weights.to(at::kDouble).requires_grad_(true);
      const at::Tensor gate = in.slice(1, 0, f);
      const at::Tensor up = in.slice(1, f, 2 * f);
      at::Tensor value;
      if (limit > 0.0) {
        const at::Tensor g = gate.clamp_max(limit);
        value = (up.clamp(-limit, limit) + 1) * g * at::sigmoid(1.702 * g);
      } else {
        value = at::silu(gate) * up;
      }
      value = value * w.unsqueeze(1);
      value.backward(dy.to(at::kDouble));

      const ExpertActivation act{Activation::kSilu, limit};
      at::Tensor y = garbage({rows, f}, dtype);
      weighted_gated_activation(act, gate_up, weights, y);
      expect_close(y, values_of(value.detach()), tolerance_of(dtype), "y");
      at::Tensor d_gate_up = gate_up.clone();
      at::Tensor d_weights = garbage({rows}, at::kFloat);
      at::Tensor again = dy.clone();
      weighted_gated_activation_backward(act, again, d_gate_up, weights, d_gate_up, d_weights,
                                         again);
      ASSERT_TRUE(same_bits(again, y));
      expect_close(d_gate_up, values_of(in.grad()), tolerance_of(dtype), "d_gate_up");
      expect_close(d_weights, values_of(w.grad()), 2e-5, "d_weights");
    }
  }
}

TEST_P(MoeTest, BiasOfGroupsMatchesAutograd) {
  const at::ScalarType dtype = GetParam();
  const GroupOffsets offsets = offsets_of({3, 0, 5});
  const at::Tensor bias = random_tensor({3, 21}, dtype, 1);
  const at::Tensor dy = random_tensor({8, 21}, dtype, 2);
  for (const bool weighted : {false, true}) {
    const at::Tensor weights = weighted ? at::rand({8}, at::kFloat) : at::Tensor();
    at::Tensor b = bias.to(at::kDouble).requires_grad_(true);
    at::Tensor w = (weighted ? weights : at::ones({8})).to(at::kDouble).requires_grad_(true);
    const at::Tensor expert = at::tensor({0, 0, 0, 2, 2, 2, 2, 2}, at::kLong);
    const at::Tensor expected = b.index_select(0, expert) * w.unsqueeze(1);
    expected.backward(dy.to(at::kDouble));
    at::Tensor y = garbage({8, 21}, dtype);
    grouped_bias(bias, weights, offsets, y);
    expect_close(y, values_of(expected.detach()), tolerance_of(dtype), "y");
    at::Tensor dbias = garbage({3, 21}, at::kFloat);
    at::Tensor d_weights = at::ones({8}, at::kFloat);
    grouped_bias_backward(dy, bias, weights, offsets, dbias, false, d_weights);
    expect_close(dbias, values_of(b.grad()), 1e-5, "dbias");
    expect_close(d_weights, values_of(w.grad() + 1), 1e-5, "d_weights");
    grouped_bias_backward(dy, bias, weights, offsets, dbias, true, {});
    expect_close(dbias, values_of(2 * b.grad()), 1e-5, "dbias added to");
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, MoeTest, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

// --- The router against autograd in double precision ---

struct RouterCase {
  const char* name;
  RouterOptions options;
  bool bias;
};

std::vector<RouterCase> router_cases() {
  std::vector<RouterCase> cases(7);
  cases[0] = {"softmax", {.top_k = 2}, false};
  cases[1] = {"renormalised", {.top_k = 3, .normalize = true}, false};
  cases[2] = {"softmax after", {.top_k = 2, .softmax_after_top_k = true}, false};
  cases[3] = {"sigmoid with bias",
              {.score = RouterScore::kSigmoid, .top_k = 3, .normalize = true, .scaling = 2.5},
              true};
  cases[4] = {"groups by two best",
              {.score = RouterScore::kSigmoid,
               .top_k = 3,
               .normalize = true,
               .scaling = 2.5,
               .num_groups = 4,
               .top_groups = 2,
               .group_score_top2 = true},
              true};
  cases[5] = {
      "groups by best", {.top_k = 3, .scaling = 16.0, .num_groups = 4, .top_groups = 2}, false};
  cases[6] = {"all chosen", {.top_k = 12}, false};
  return cases;
}

/// The experts of every row by the definition, and weights that autograd can follow.
std::pair<at::Tensor, at::Tensor> route_by_definition(const at::Tensor& logits,
                                                      const at::Tensor& bias,
                                                      const RouterOptions& options) {
  const at::Tensor scores =
      options.score == RouterScore::kSigmoid ? at::sigmoid(logits) : at::softmax(logits, -1);
  at::Tensor values = scores.detach().clone();
  if (bias.defined()) values = values + bias.to(values.scalar_type());
  const int64_t rows = logits.size(0);
  const int64_t experts = logits.size(1);
  if (options.num_groups > 1) {
    const at::Tensor grouped = values.view({rows, options.num_groups, -1});
    const at::Tensor of_group = options.group_score_top2 ? std::get<0>(grouped.topk(2, -1)).sum(-1)
                                                         : std::get<0>(grouped.max(-1));
    const at::Tensor best = std::get<1>(of_group.topk(options.top_groups, -1));
    at::Tensor mask = at::zeros({rows, options.num_groups}, at::kBool);
    mask.scatter_(1, best, true);
    mask = mask.unsqueeze(-1).expand({rows, options.num_groups, experts / options.num_groups});
    values = values.masked_fill(mask.reshape({rows, experts}).logical_not(),
                                -std::numeric_limits<double>::infinity());
  }
  const at::Tensor choice = std::get<1>(values.topk(options.top_k, -1));
  at::Tensor weights = options.softmax_after_top_k ? at::softmax(logits.gather(1, choice), -1)
                                                   : scores.gather(1, choice);
  if (options.normalize) weights = weights / weights.sum(-1, true);
  return {choice, weights * options.scaling};
}

TEST(RouterTest, ChoiceAndGradientsMatchTheDefinition) {
  at::manual_seed(11);
  for (const RouterCase& one : router_cases()) {
    SCOPED_TRACE(one.name);
    const int64_t rows = 120;
    const int64_t experts = 12;
    const at::Tensor logits = random_tensor({rows, experts}, at::kFloat, 5);
    const at::Tensor bias = one.bias ? random_tensor({experts}, at::kFloat, 6, 0.3) : at::Tensor();
    at::Tensor choice = at::empty({rows, one.options.top_k}, at::kLong);
    at::Tensor weights = garbage({rows, one.options.top_k}, at::kFloat);
    route(logits, bias, one.options, choice, weights);

    at::Tensor z = logits.to(at::kDouble).requires_grad_(true);
    const auto [expected_choice, expected] = route_by_definition(z, bias, one.options);
    ASSERT_TRUE(at::equal(choice, expected_choice));
    expect_close(weights, values_of(expected.detach()), 1e-6, "weights");

    for (const int64_t sets : {1, 4}) {
      const RouterBalance result = balance(logits, choice, one.options, sets);
      // The loss by its formula, set by set.
      const at::Tensor shares = one.options.score == RouterScore::kSigmoid
                                    ? at::sigmoid(z) / at::sigmoid(z).sum(-1, true)
                                    : at::softmax(z, -1);
      const at::Tensor chosen = at::zeros({rows, experts}, at::kDouble).scatter_(1, choice, 1.0);
      at::Tensor loss = at::zeros({}, at::kDouble);
      for (int64_t s = 0; s < sets; ++s) {
        const int64_t size = rows / sets;
        const at::Tensor f = chosen.slice(0, s * size, (s + 1) * size).mean(0);
        const at::Tensor p = shares.slice(0, s * size, (s + 1) * size).mean(0);
        loss = loss + (f * p).sum() * static_cast<double>(experts) /
                          static_cast<double>(one.options.top_k * sets);
      }
      EXPECT_NEAR(result.loss, loss.item<double>(), 1e-6);
      const at::Tensor z_loss = z.logsumexp(-1).square().mean();
      EXPECT_NEAR(result.z_loss, z_loss.item<double>(), 1e-6);
      const at::Tensor entropy = -(shares * shares.log()).sum(-1).mean();
      EXPECT_NEAR(result.entropy, entropy.item<double>(), 1e-5);
      const at::Tensor load = chosen.sum(0);
      for (int64_t e = 0; e < experts; ++e)
        EXPECT_EQ(result.load[static_cast<size_t>(e)],
                  static_cast<int64_t>(load[e].item<double>()));

      const at::Tensor d_weights = random_tensor({rows, one.options.top_k}, at::kFloat, 8);
      const double aux = 0.7;
      const double z_coefficient = 0.3;
      const at::Tensor total =
          (expected * d_weights.to(at::kDouble)).sum() + aux * loss + z_coefficient * z_loss;
      z.mutable_grad() = at::Tensor();
      total.backward({}, /*retain_graph=*/true);
      at::Tensor d_logits = garbage({rows, experts}, at::kFloat);
      route_backward(logits, choice, d_weights, one.options, result.d_scores * aux,
                     z_coefficient / static_cast<double>(rows), d_logits);
      expect_close(d_logits, values_of(z.grad()), 2e-5, "d_logits");
    }
  }
}

TEST(RouterTest, EqualScoresGoToTheLowerNumber) {
  const at::Tensor logits = at::zeros({3, 6}, at::kFloat);
  at::Tensor choice = at::empty({3, 2}, at::kLong);
  at::Tensor weights = at::empty({3, 2}, at::kFloat);
  route(logits, {}, {.top_k = 2}, choice, weights);
  EXPECT_TRUE(at::equal(choice, at::tensor({0, 1, 0, 1, 0, 1}, at::kLong).view({3, 2})));
  EXPECT_TRUE(at::equal(weights, at::full({3, 2}, 1.0f / 6.0f)));
}

TEST(RouterTest, TheBiasEntersTheChoiceAndNotTheWeights) {
  const at::Tensor logits = random_tensor({20, 4}, at::kFloat, 1);
  const at::Tensor bias = at::tensor({0.0f, 0.0f, 0.0f, 100.0f});
  RouterOptions options{.score = RouterScore::kSigmoid, .top_k = 1};
  at::Tensor choice = at::empty({20, 1}, at::kLong);
  at::Tensor weights = at::empty({20, 1}, at::kFloat);
  route(logits, bias, options, choice, weights);
  EXPECT_TRUE((choice == 3).all().item<bool>());
  expect_close(weights.view({20}), values_of(at::sigmoid(logits.to(at::kDouble)).select(1, 3)),
               1e-6, "weights");
}

TEST(RouterTest, AGlobalBatchsCountsTakeThePlaceOfTheBatchs) {
  const at::Tensor logits = random_tensor({30, 4}, at::kFloat, 1);
  const RouterOptions options{.top_k = 1};
  at::Tensor choice = at::empty({30, 1}, at::kLong);
  at::Tensor weights = at::empty({30, 1}, at::kFloat);
  route(logits, {}, options, choice, weights);
  const RouterBalance result = balance(logits, choice, options, 1, {10, 0, 30, 60});
  const at::Tensor p = at::softmax(logits.to(at::kDouble), -1).mean(0);
  const double expected =
      4.0 * (0.1 * p[0].item<double>() + 0.3 * p[2].item<double>() + 0.6 * p[3].item<double>());
  EXPECT_NEAR(result.loss, expected, 1e-6);
}

}  // namespace
}  // namespace trireme::kernels
