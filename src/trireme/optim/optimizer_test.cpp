// Optimizers against goldens made by PyTorch (tests/goldens/make_optim_goldens.py).
#include "trireme/optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/kernels/ops.h"
#include "trireme/optim/muon.h"

namespace trireme::optim {
namespace {

Json goldens() {
  std::ifstream file(std::string(TRIREME_SOURCE_DIR) + "/tests/goldens/optim.json");
  return Json::parse(file);
}

/// The golden script's generator: values exact in float32.
class Generator {
 public:
  explicit Generator(uint32_t seed) : x_(seed) {}
  at::Tensor tensor(at::IntArrayRef shape, double scale) {
    at::Tensor result = at::empty(shape, at::kFloat);
    for (int64_t i = 0; i < result.numel(); ++i) {
      x_ = x_ * 1664525u + 1013904223u;
      result.data_ptr<float>()[i] =
          static_cast<float>((static_cast<double>(x_ >> 8) / 16777216.0 - 0.5) * scale);
    }
    return result;
  }

 private:
  uint32_t x_;
};

/// Of gradients in flat buffers, one after the other.
double norm_of(const std::vector<at::Tensor>& gradients) {
  double sum = 0.0;
  for (const at::Tensor& gradient : gradients) sum += kernels::sum_of_squares(gradient);
  return std::sqrt(sum);
}

at::Tensor tensor_of(const Json& bits) {
  at::Tensor result = at::empty({static_cast<int64_t>(bits.size())}, at::kFloat);
  for (size_t i = 0; i < bits.size(); ++i) {
    const auto word = bits[i].get<uint32_t>();
    std::memcpy(result.data_ptr<float>() + i, &word, sizeof(word));
  }
  return result;
}

model::ParameterSpec parameter(std::string name, std::vector<int64_t> shape, model::Role role,
                               int part) {
  model::ParameterSpec spec;
  spec.name = std::move(name);
  spec.shape = std::move(shape);
  spec.role = role;
  spec.part = part;
  return spec;
}

model::ModelSpec spec_of(std::vector<model::ParameterSpec> parameters, int parts) {
  model::ModelSpec spec;
  for (int p = 0; p < parts; ++p) spec.parts.push_back({model::PartKind::kMlp, p, "part"});
  spec.parameters = std::move(parameters);
  return spec;
}

at::Tensor state_of(const Optimizer& optimizer, const std::string& name, const std::string& key) {
  for (const StateTensor& state : optimizer.state()) {
    if (state.parameter == name && state.key == key) return state.tensor;
  }
  ADD_FAILURE() << "no state " << key << " of " << name;
  return {};
}

/// Largest difference in units of the larger value's last place; values below `floor`, where terms cancel, count as it.
double worst_ulps(const at::Tensor& a, const at::Tensor& b, float floor = 0x1p-10f) {
  double worst = 0.0;
  const at::Tensor x = a.contiguous().reshape({-1});
  const at::Tensor y = b.contiguous().reshape({-1});
  EXPECT_EQ(x.numel(), y.numel());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float p = x.const_data_ptr<float>()[i];
    const float q = y.const_data_ptr<float>()[i];
    const float size = std::max({std::abs(p), std::abs(q), floor});
    const float ulp = std::nextafter(size, 2.0f * size) - size;
    worst = std::max(worst, static_cast<double>(std::abs(p - q)) / static_cast<double>(ulp));
  }
  return worst;
}

TEST(AdamWGoldenTest, StaysWithinUlpsOfPyTorchOver100Steps) {
  const Json golden = goldens()["adamw"];

  const auto spec = spec_of({parameter("matrix", {7, 5}, model::Role::kDown, 0),
                             parameter("vector", {9}, model::Role::kNormWeight, 0)},
                            1);
  OptimizerConfig config;
  config.beta1 = golden["beta1"];
  config.beta2 = golden["beta2"];
  config.eps = golden["eps"];
  config.weight_decay = golden["weight_decay"];
  const auto optimizer = make_optimizer(config, spec);
  Generator generator(1);
  at::Tensor weights = at::cat({generator.tensor({35}, 2.0), generator.tensor({9}, 2.0)});
  at::Tensor compute = at::zeros({44}, at::kBFloat16);
  for (int step = 1; step <= golden["steps"].get<int>(); ++step) {
    const at::Tensor gradients =
        at::cat({generator.tensor({35}, 0.25), generator.tensor({9}, 0.25)});
    const double norm = norm_of({gradients.narrow(0, 0, 35), gradients.narrow(0, 35, 9)});
    EXPECT_NEAR(norm, golden["norms"][static_cast<size_t>(step - 1)].get<double>(), 1e-6 * norm);
    StepParams params;
    params.lr = golden["lr"].get<double>() * (step < 50 ? 1.0 : 0.5);
    params.gradient_scale = clip_scale(norm, golden["max_norm"]);
    params.step = step;
    optimizer->step(0, {weights, compute, gradients}, params);
    const std::string key = std::to_string(step);
    if (!golden["snapshots"].contains(key)) continue;
    const Json& snapshot = golden["snapshots"][key];
    EXPECT_LE(worst_ulps(weights.narrow(0, 0, 35), tensor_of(snapshot["matrix"])), 4.0)
        << "step " << step;
    EXPECT_LE(worst_ulps(weights.narrow(0, 35, 9), tensor_of(snapshot["vector"])), 4.0)
        << "step " << step;
    // A moving average of gradients up to 0.06: their size sets the last place.
    EXPECT_LE(worst_ulps(state_of(*optimizer, "matrix", "exp_avg"),
                         tensor_of(snapshot["matrix.exp_avg"]), 0x1p-5f),
              4.0);
    EXPECT_LE(worst_ulps(state_of(*optimizer, "matrix", "exp_avg_sq"),
                         tensor_of(snapshot["matrix.exp_avg_sq"]), 0x1p-20f),
              4.0);
  }
  EXPECT_TRUE(at::equal(compute, weights.to(at::kBFloat16)));
}

TEST(MuonGoldenTest, FollowsPyTorch) {
  const Json all = goldens();
  for (const Json& golden : all["muon"]) {
    const auto shape = golden["shape"].get<std::vector<int64_t>>();
    SCOPED_TRACE(golden["shape"].dump() + golden["adjust"].dump());
    OptimizerConfig config;
    config.kind = OptimizerKind::kMuon;
    config.weight_decay = golden["weight_decay"];
    config.nesterov = golden["nesterov"];
    config.adjust =
        golden["adjust"] == "original" ? MuonLrAdjust::kOriginal : MuonLrAdjust::kMatchRmsAdamW;
    const auto optimizer =
        make_optimizer(config, spec_of({parameter("weight", shape, model::Role::kUp, 0)}, 1));
    Generator generator(2);
    at::Tensor weights = generator.tensor(shape, 2.0).reshape({-1});
    const int steps = golden["steps"];
    const double lr = golden["lr"];
    for (int step = 1; step <= steps; ++step) {
      const at::Tensor gradients = generator.tensor(shape, 0.25).reshape({-1});
      optimizer->step(0, {weights, {}, gradients}, {lr, 1.0, step});
    }
    EXPECT_LE(worst_ulps(state_of(*optimizer, "weight", "momentum_buffer"),
                         tensor_of(golden["momentum_buffer"])),
              2.0);
    // PyTorch rounds to bfloat16 between products; another order of addition moves an entry by a bfloat16 step of the
    // orthogonal matrix (entries below 2: 2^-7) now and then.
    const double step_size = adjusted_lr(lr, config.adjust, shape[0], shape[1]);
    const at::Tensor difference = weights - tensor_of(golden["weight"]);
    EXPECT_LE(difference.abs().max().item<double>(), steps * step_size * 0x1p-7);
    EXPECT_LE(difference.abs().mean().item<double>(), step_size * 0x1p-9);
  }
}

TEST(MuonTest, OrthogonalizesInBothOrientations) {
  Generator generator(3);
  for (const auto& shape : {std::vector<int64_t>{24, 60}, {60, 24}, {32, 32}, {1, 9}}) {
    const at::Tensor matrix = generator.tensor(shape, 1.0);
    const at::Tensor result = orthogonalize(matrix, 5, 1e-7).to(at::kFloat);
    ASSERT_EQ(result.sizes(), matrix.sizes());
    const at::Tensor singular = std::get<1>(at::linalg_svd(result, false));
    if (shape[0] != shape[1]) {  // square ones may be near singular
      EXPECT_GT(singular.min().item<double>(), 0.5);
    }
    EXPECT_LT(singular.max().item<double>(), 1.3);
    // Same row and column spaces: the polar factor's trace against the input is the sum of singular values.
    const double aligned = (result * matrix).sum().item<double>();
    EXPECT_GT(aligned, 0.5 * std::get<1>(at::linalg_svd(matrix, false)).sum().item<double>());
  }
  EXPECT_TRUE(orthogonalize(at::zeros({3, 4}), 5, 1e-7).eq(0).all().item<bool>());
}

TEST(MuonTest, LeavesEmbeddingsHeadAndVectorsToAdamW) {
  const auto spec = spec_of(
      {parameter("embedding", {6, 4}, model::Role::kTokenEmbedding, 0),
       parameter("norm", {4}, model::Role::kNormWeight, 1),
       parameter("up", {8, 4}, model::Role::kUp, 1), parameter("bias", {8}, model::Role::kBias, 1),
       parameter("head", {6, 4}, model::Role::kHead, 2)},
      3);
  OptimizerConfig config;
  config.kind = OptimizerKind::kMuon;
  const auto optimizer = make_optimizer(config, spec);
  std::vector<std::string> keys;
  for (const StateTensor& state : optimizer->state())
    keys.push_back(state.parameter + "." + state.key);
  EXPECT_EQ(keys,
            (std::vector<std::string>{"embedding.exp_avg", "embedding.exp_avg_sq", "norm.exp_avg",
                                      "norm.exp_avg_sq", "up.momentum_buffer", "bias.exp_avg",
                                      "bias.exp_avg_sq", "head.exp_avg", "head.exp_avg_sq"}));
  EXPECT_EQ(optimizer->state_bytes(), 4 * (2 * 24 + 2 * 4 + 32 + 2 * 8 + 2 * 24));
  int64_t floats = 0;
  for (const auto& p : spec.parameters) floats += p.numel() * state_floats(config, p);
  EXPECT_EQ(4 * floats, optimizer->state_bytes());

  // In the middle of a part Muon's matrix and its AdamW neighbours get their own updates.
  Generator generator(5);
  at::Tensor weights = generator.tensor({44}, 1.0);
  const at::Tensor before = weights.clone();
  const at::Tensor gradients = generator.tensor({44}, 1.0);
  at::Tensor compute = at::zeros({44}, at::kBFloat16);
  optimizer->step(1, {weights, compute, gradients}, {0.01, 1.0, 1});
  EXPECT_TRUE(at::equal(compute, weights.to(at::kBFloat16)));
  // AdamW's first step moves by lr * sign(gradient), without decay for vectors.
  for (const auto& [offset, count] : {std::pair<int64_t, int64_t>{0, 4}, {36, 8}}) {
    const at::Tensor moved = (before - weights).narrow(0, offset, count);
    EXPECT_TRUE(at::allclose(moved, 0.01 * gradients.narrow(0, offset, count).sign(), 1e-3, 1e-6));
  }
}

TEST(MuonTest, UpdatesEveryExpertAsAMatrixOfItsOwn) {
  for (const auto& shape : {std::vector<int64_t>{6, 10}, {10, 6}, {8, 8}}) {
    SCOPED_TRACE(shape.front());
    const int64_t numel = shape[0] * shape[1];
    OptimizerConfig config;
    config.kind = OptimizerKind::kMuon;
    const auto stacked = make_optimizer(
        config, spec_of({parameter("norm", {4}, model::Role::kNormWeight, 0),
                         parameter("experts", {3, shape[0], shape[1]}, model::Role::kExpertUp, 0),
                         parameter("bias", {3, shape[0]}, model::Role::kExpertUpBias, 0)},
                        1));
    Generator generator(11);
    at::Tensor weights = generator.tensor({4 + 3 * numel + 3 * shape[0]}, 1.0);
    at::Tensor compute = at::zeros(weights.sizes(), at::kBFloat16);
    std::vector<std::unique_ptr<Optimizer>> alone;
    std::vector<at::Tensor> slices;
    for (int64_t expert = 0; expert < 3; ++expert) {
      alone.push_back(
          make_optimizer(config, spec_of({parameter("expert", shape, model::Role::kUp, 0)}, 1)));
      slices.push_back(weights.narrow(0, 4 + expert * numel, numel).clone());
    }
    for (int step = 1; step <= 3; ++step) {
      at::Tensor gradients = generator.tensor(weights.sizes(), 0.5);
      gradients.narrow(0, 4 + numel, numel).zero_();  // nobody went to the second expert
      stacked->step(0, {weights, compute, gradients}, {0.02, 0.5, step});
      for (int64_t expert = 0; expert < 3; ++expert) {
        const auto i = static_cast<size_t>(expert);
        alone[i]->step(0, {slices[i], {}, gradients.narrow(0, 4 + expert * numel, numel)},
                       {0.02, 0.5, step});
        EXPECT_TRUE(at::equal(weights.narrow(0, 4 + expert * numel, numel), slices[i]));
      }
    }
    EXPECT_TRUE(at::equal(compute, weights.to(at::kBFloat16)));
    std::vector<std::string> keys;
    for (const StateTensor& state : stacked->state())
      keys.push_back(state.parameter + "." + state.key);
    EXPECT_EQ(keys, (std::vector<std::string>{"norm.exp_avg", "norm.exp_avg_sq",
                                              "experts.momentum_buffer", "bias.exp_avg",
                                              "bias.exp_avg_sq"}));
  }
}

TEST(OptimizerTest, WritingAStateContinuesARun) {
  const auto spec = spec_of({parameter("a", {8, 4}, model::Role::kUp, 0),
                             parameter("b", {4}, model::Role::kNormWeight, 0)},
                            1);
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
    OptimizerConfig config;
    config.kind = kind;
    const auto whole = make_optimizer(config, spec);
    Generator generator(7);
    at::Tensor weights = generator.tensor({36}, 1.0);
    std::vector<at::Tensor> gradients;
    for (int i = 0; i < 4; ++i) gradients.push_back(generator.tensor({36}, 1.0));
    at::Tensor resumed;
    const auto other = make_optimizer(config, spec);
    for (int step = 1; step <= 4; ++step) {
      whole->step(0, {weights, {}, gradients[static_cast<size_t>(step - 1)]}, {0.01, 0.5, step});
      if (step < 2) continue;
      if (step == 2) {
        resumed = weights.clone();
        const auto from = whole->state();
        const auto to = other->state();
        for (size_t i = 0; i < from.size(); ++i) at::Tensor(to[i].tensor).copy_(from[i].tensor);
        continue;
      }
      other->step(0, {resumed, {}, gradients[static_cast<size_t>(step - 1)]}, {0.01, 0.5, step});
    }
    EXPECT_TRUE(at::equal(resumed, weights)) << to_string(kind);
  }
}

TEST(OptimizerTest, DoesNotDependOnThreads) {
  const int threads = at::get_num_threads();
  // Of stacks: one matrix a thread with up to 3 threads, or with one only.
  const auto spec = spec_of({parameter("a", {200, 300}, model::Role::kUp, 0),
                             parameter("b", {5000}, model::Role::kNormWeight, 0),
                             parameter("c", {13, 20, 30}, model::Role::kExpertUp, 0),
                             parameter("d", {4, 40, 20}, model::Role::kExpertDown, 0)},
                            1);
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
    std::vector<at::Tensor> results;
    for (const int count : {1, 2, 3}) {
      at::set_num_threads(count);
      OptimizerConfig config;
      config.kind = kind;
      const auto optimizer = make_optimizer(config, spec);
      Generator generator(7);
      at::Tensor weights = generator.tensor({76000}, 1.0);
      const at::Tensor gradients = generator.tensor({76000}, 1.0);
      optimizer->step(0, {weights, {}, gradients},
                      {0.01, clip_scale(norm_of({gradients}), 1.0), 1});
      results.push_back(weights);
    }
    EXPECT_TRUE(at::equal(results[0], results[1])) << to_string(kind);
    EXPECT_TRUE(at::equal(results[0], results[2])) << to_string(kind);
  }
  at::set_num_threads(threads);
}

TEST(OptimizerTest, ClipsAsPyTorchDoes) {
  EXPECT_DOUBLE_EQ(clip_scale(0.5, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(clip_scale(4.0, 1.0), 1.0 / (4.0 + 1e-6));
  EXPECT_DOUBLE_EQ(clip_scale(4.0, 0.0), 1.0);
}

TEST(OptimizerTest, RefusesAWrongConfiguration) {
  OptimizerConfig config;
  config.beta2 = 1.0;
  EXPECT_THROW(make_optimizer(config, {}), Error);
  config = {};
  config.ns_steps = 0;
  config.weight_decay = -1;
  EXPECT_EQ(validate(config).size(), 2U);
  try {
    optimizer_from_name("adam");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.hint().find("adamw"), std::string::npos);
  }
}

// Ranks that share a part end with the weights and states of one that has all of it.
TEST(OptimizerSlices, SlicesSideBySideAreTheWholePart) {
  const auto spec = spec_of({parameter("matrix", {8, 6}, model::Role::kDown, 0),
                             parameter("vector", {9}, model::Role::kNormWeight, 0),
                             parameter("other", {5, 7}, model::Role::kUp, 0),
                             parameter("experts", {4, 3, 6}, model::Role::kExpertDown, 1)},
                            2);
  const std::vector<int64_t> numel = {48 + 9 + 35, 72};
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
    OptimizerConfig config;
    config.kind = kind;
    const std::vector<std::vector<int64_t>> cuts =
        kind == OptimizerKind::kMuon
            ? std::vector<std::vector<int64_t>>{{0, 48, 57, 92}, {0, 18, 54, 72}}
            : std::vector<std::vector<int64_t>>{{0, 31, 50, 92}, {0, 1, 1, 72}};
    const auto whole = make_optimizer(config, spec);
    std::vector<std::unique_ptr<Optimizer>> slices;
    for (size_t i = 0; i < 3; ++i) {
      slices.push_back(
          make_optimizer(config, spec, at::kCPU, StatePlace::kDevice,
                         {{cuts[0][i], cuts[0][i + 1]}, {cuts[1][i], cuts[1][i + 1]}}));
    }
    Generator generator(4);
    std::vector<at::Tensor> weights;
    std::vector<at::Tensor> shared;
    for (const int64_t n : numel) {
      weights.push_back(generator.tensor({n}, 2.0));
      shared.push_back(weights.back().clone());
    }
    for (int64_t step = 1; step <= 4; ++step) {
      for (int part = 0; part < 2; ++part) {
        const auto at = static_cast<size_t>(part);
        const at::Tensor gradients = generator.tensor({numel[at]}, 0.5);
        const StepParams params{0.01, 0.7, step};
        whole->step(part, {weights[at], {}, gradients, {}}, params);
        for (size_t i = 0; i < 3; ++i) {
          const int64_t first = cuts[at][i];
          const int64_t count = cuts[at][i + 1] - first;
          slices[i]->step(
              part, {shared[at].narrow(0, first, count), {}, gradients.narrow(0, first, count), {}},
              params);
        }
        EXPECT_TRUE(at::equal(shared[at], weights[at]));
      }
    }
    std::vector<std::vector<at::Tensor>> joined;
    int64_t bytes = 0;
    for (int part = 0; part < 2; ++part) {
      joined.emplace_back();
      for (size_t which = 0; which < 2; ++which) {
        std::vector<at::Tensor> pieces;
        for (const auto& slice : slices) pieces.push_back(slice->part_states(part)[which]);
        joined.back().push_back(at::cat(pieces));
        EXPECT_TRUE(at::equal(joined.back().back(), whole->part_states(part)[which]));
      }
      for (size_t i = 0; i < 3; ++i) {
        const auto& cut = cuts[static_cast<size_t>(part)];
        bytes += state_bytes(config, spec, part, {cut[i], cut[i + 1]});
      }
    }
    EXPECT_EQ(bytes, whole->state_bytes());
    const auto views = state_views(config, spec, joined);
    const auto want = whole->state();
    ASSERT_EQ(views.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(views[i].parameter, want[i].parameter);
      EXPECT_EQ(views[i].key, want[i].key);
      EXPECT_TRUE(at::equal(views[i].tensor, want[i].tensor));
      // What each slice says it has lies where it says.
      for (const auto& slice : slices) {
        for (const StateTensor& piece : slice->state()) {
          if (piece.parameter != want[i].parameter || piece.key != want[i].key) continue;
          EXPECT_TRUE(at::equal(piece.tensor.flatten(), want[i].tensor.flatten().narrow(
                                                            0, piece.first, piece.tensor.numel())));
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme::optim
