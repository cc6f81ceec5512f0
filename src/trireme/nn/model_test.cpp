// The parts against the plain reference in float64: values, gradients, save modes, delayed weight
// gradients.
#include "trireme/nn/model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <vector>

#include "trireme/device/device.h"
#include "trireme/nn/testing/reference_model.h"

namespace trireme::nn {
namespace {

using testing::ReferenceModel;

struct Gradients {
  double loss = 0.0;
  std::vector<at::Tensor> flat;  // per part, float32
};

struct Variant {
  std::vector<SaveMode> modes;  // per part; one entry: all parts
  bool delayed = false;
  int64_t chunk_rows = 7;
};

// Forward and backward over micro-batches, accumulating, as the executor does it. `scales`: of the heads' losses.
Gradients run(Model& model, const std::vector<BatchTensors>& batches,
              const std::vector<double>& scales, const Variant& how) {
  const ParameterStore& store = model.store();
  Gradients result;
  for (int part = 0; part < store.num_parts(); ++part) {
    // A value that would show if it were added to.
    result.flat.push_back(at::full({store.part_numel(part)}, 1e30, at::kFloat));
  }
  std::vector<char> written(store.num_parameters(), 0);
  const auto sink_of = [&](Part& part) {
    GradientSink sink;
    for (const int parameter : part.gradient_parameters()) {
      sink.gradients.push_back(
          store.view(result.flat[store.spec().parameters[parameter].part], parameter));
      sink.accumulate.push_back(written[parameter]);
      written[parameter] = 1;
    }
    return sink;
  };
  const model::ModelSpec& spec = model.spec();
  for (const BatchTensors& batch : batches) {
    const int last = model.num_parts() - 1;
    std::vector<std::unique_ptr<PartGraph>> graphs(last + 1);
    std::vector<at::Tensor> inputs(last + 1);
    std::vector<NormedState> states(last + 1);
    at::Tensor hidden;
    for (int part = 0; part <= last; ++part) {
      if (spec.is_head(part)) {
        inputs[part] = hidden;
        if (part < last) hidden = (states[part] = model.head(part).normalize(hidden)).normed;
        continue;
      }
      const SaveMode mode = how.modes[part % how.modes.size()];
      ForwardResult forward = model.part(part).forward(hidden, batch, true, mode);
      hidden = forward.output;
      graphs[part] = std::move(forward.graph);
    }
    hidden.reset();
    GradientSink sink;
    at::Tensor gradient;
    const auto delayed = [&](int part) {
      return how.delayed && spec.parts[part].kind != model::PartKind::kMtpInput;
    };
    for (int part = last; part >= 0; --part) {
      if (spec.is_head(part)) {
        sink = sink_of(model.head(part));
        LossOptions options;
        options.gradient_scale = scales.at(spec.mtp_depth(part));
        options.chunk_rows = how.chunk_rows;
        if (part < last) options.state = &states[part];
        options.d_normed = gradient;
        LossResult loss = model.head(part).loss(inputs[part], batch, options, &sink);
        result.loss += options.gradient_scale * loss.loss_sum;
        gradient = loss.grad_hidden;
        continue;
      }
      graphs[part]->recompute();
      gradient = graphs[part]->backward_input(gradient);
      if (delayed(part)) continue;
      sink = sink_of(model.part(part));
      graphs[part]->backward_weight(sink);
    }
    for (int part = last - 1; part >= 0; --part) {
      if (spec.is_head(part) || !delayed(part)) continue;
      sink = sink_of(model.part(part));
      graphs[part]->backward_weight(sink);
    }
  }
  return result;
}

double largest(const at::Tensor& x) {
  return x.abs().max().item<double>();
}

// `floor`: a scale below which differences do not count.
double relative_error(const at::Tensor& got, const at::Tensor& want, double floor = 1e-12) {
  return largest(got.to(at::kDouble) - want) / std::max(largest(want), floor);
}

double relative_norm_error(const at::Tensor& got, const at::Tensor& want) {
  return (got.to(at::kDouble) - want).norm().item<double>() /
         std::max(want.norm().item<double>(), 1e-12);
}

std::vector<BatchTensors> batches_of(const model::ModelSpec& spec, uint64_t seed, bool documents) {
  std::vector<BatchTensors> batches = {testing::random_batch(spec, 2, 19, documents, seed),
                                       testing::random_batch(spec, 2, 19, documents, seed + 1)};
  for (BatchTensors& batch : batches) batch.share_of_step = 0.5;
  return batches;
}

std::vector<int64_t> targets_of(const std::vector<BatchTensors>& batches) {
  std::vector<int64_t> sum = testing::count_targets(batches.at(0));
  const std::vector<int64_t> more = testing::count_targets(batches.at(1));
  for (size_t depth = 0; depth < sum.size(); ++depth) sum[depth] += more[depth];
  return sum;
}

// One thread: the models are too small to share, and several threads would wait for one another.
class Families : public ::testing::TestWithParam<int> {
 protected:
  Families() : threads_(at::get_num_threads()) {
    device::install_cpu_allocator();
    at::set_num_threads(1);
  }
  ~Families() override { at::set_num_threads(threads_); }

  static model::ModelSpec spec(uint64_t seed) {
    return testing::tiny_specs(seed).at(static_cast<size_t>(GetParam()));
  }

 private:
  int threads_;
};

TEST_P(Families, LogitsEqualTheReference) {
  for (const bool documents : {false, true}) {
    ParameterStore store(spec(3 + documents));
    store.initialize(7);
    Model model(store);
    const ReferenceModel reference(store);
    const BatchTensors batch = testing::random_batch(store.spec(), 3, 17, documents, 11);
    at::Tensor hidden;
    for (int part = 0; part < store.spec().head_part(); ++part) {
      hidden = model.part(part).forward(hidden, batch, false, SaveMode::kAll).output;
    }
    const at::Tensor logits = model.head().logits(hidden.flatten(0, 1));
    EXPECT_LT(relative_error(logits, reference.logits(batch).flatten(0, 1)), 1e-5)
        << "documents " << documents;
  }
}

TEST_P(Families, GradientsEqualAutogradInFloat64) {
  for (const bool documents : {false, true}) {
    ParameterStore store(spec(5 + documents));
    store.initialize(8);
    Model model(store);
    const ReferenceModel reference(store);
    const std::vector<BatchTensors> batches = batches_of(store.spec(), 21, documents);
    const std::vector<int64_t> targets = targets_of(batches);
    const at::Tensor loss = reference.loss(batches, targets);
    (loss + reference.auxiliary()).backward();
    const Gradients got =
        run(model, batches, testing::loss_scales(store.spec(), targets), {{SaveMode::kAll}});
    EXPECT_NEAR(got.loss / loss.item<double>(), 1.0, 1e-5);
    double largest_gradient = 0.0;
    for (const auto& parameter : store.spec().parameters) {
      if (!parameter.trainable) continue;
      largest_gradient = std::max(largest_gradient, largest(reference.leaf(parameter.name).grad()));
    }
    for (int i = 0; i < store.num_parameters(); ++i) {
      const auto& parameter = store.spec().parameters[i];
      if (!parameter.trainable) {
        EXPECT_EQ(largest(store.view(got.flat[parameter.part], i)), 0.0) << parameter.name;
        continue;
      }
      const at::Tensor want = reference.leaf(parameter.name).grad();
      // A key's bias shifts all scores of a query alike: its true gradient is zero, hence the floor.
      EXPECT_LT(
          relative_error(store.view(got.flat[parameter.part], i), want, 1e-2 * largest_gradient),
          1e-4)
          << parameter.name << " documents " << documents;
    }
  }
}

TEST_P(Families, GradientsInBfloat16StayNearTheReference) {
  model::ModelSpec chosen = spec(9);
  for (model::LayerSpec& layer : chosen.layers) {
    if (!layer.moe) continue;
    // Rounding may choose other experts, and drop other tokens: here all are chosen and none is dropped.
    layer.moe->top_k = layer.moe->num_experts;
    layer.moe->top_groups = layer.moe->num_groups;
    layer.moe->capacity_factor = 0.0;
  }
  ParameterStore store(chosen, at::kBFloat16);
  store.initialize(9);
  Model model(store);
  const ReferenceModel reference(store);  // from the rounded weights
  const std::vector<BatchTensors> batches = batches_of(store.spec(), 31, true);
  const std::vector<int64_t> targets = targets_of(batches);
  const at::Tensor loss = reference.loss(batches, targets);
  (loss + reference.auxiliary()).backward();
  const Gradients got =
      run(model, batches, testing::loss_scales(store.spec(), targets), {{SaveMode::kAll}});
  EXPECT_NEAR(got.loss / loss.item<double>(), 1.0, 2e-2);
  // Eight bits of mantissa through some 30 roundings; a ReLU near its kink, or a clamp, also flips its derivative.
  const auto& experts = store.spec().layers[0].moe;
  const bool kink = store.spec().layers[0].mlp.activation == model::Activation::kRelu ||
                    (experts && experts->clamp_limit > 0.0);
  const double bound = kink ? 0.2 : 6e-2;
  for (int i = 0; i < store.num_parameters(); ++i) {
    const auto& parameter = store.spec().parameters[i];
    if (!parameter.trainable) continue;
    const at::Tensor want = reference.leaf(parameter.name).grad();
    // A key's bias shifts all scores of a query alike: its true gradient is zero, what is left is
    // rounding; with sinks it is the small rest of large sums.
    const bool rest =
        store.spec().layers[0].attention.sinks && parameter.name.ends_with("k_proj.bias");
    if (want.abs().max().item<double>() < 1e-6) continue;
    EXPECT_LT(relative_norm_error(store.view(got.flat[parameter.part], i), want),
              rest ? 2 * bound : bound)
        << parameter.name;
  }
}

// Bits do not depend on what is kept, nor on when the weight gradients are made.
TEST_P(Families, SaveModesAndDelayedWeightGradientsAreBitEqual) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    ParameterStore store(spec(13), dtype);
    store.initialize(10);
    Model model(store);
    const std::vector<BatchTensors> batches = batches_of(store.spec(), 41, true);
    const std::vector<double> scales(4, 0.01);
    const Gradients want = run(model, batches, scales, {{SaveMode::kAll}});
    const std::vector<Variant> others = {
        {{SaveMode::kSelective}},
        {{SaveMode::kInputOnly}},
        {{SaveMode::kAll}, true},
        {{SaveMode::kSelective}, true},
        {{SaveMode::kInputOnly}, true},
        {{SaveMode::kInputOnly, SaveMode::kAll, SaveMode::kSelective}, false}};
    for (size_t i = 0; i < others.size(); ++i) {
      const Gradients got = run(model, batches, scales, others[i]);
      EXPECT_EQ(got.loss, want.loss);
      for (int part = 0; part < store.num_parts(); ++part) {
        EXPECT_TRUE(at::equal(got.flat[part], want.flat[part]))
            << store.spec().parts[part].name << ", variant " << i << ", " << at::toString(dtype);
      }
    }
  }
}

// With a key-value cache, one token at a time or in pieces: the bits of the training forward.
TEST_P(Families, GenerationPiecesGiveTheTrainingForwardsBits) {
  ParameterStore store(spec(17));
  store.initialize(11);
  Model model(store);
  const int64_t length = 23;
  const BatchTensors batch = testing::random_batch(store.spec(), 1, length, false, 51);
  at::Tensor want;
  for (int part = 0; part < store.spec().head_part(); ++part) {
    want = model.part(part).forward(want, batch, false, SaveMode::kAll).output;
  }
  std::vector<at::Tensor> keys(model.num_layers()), values(model.num_layers());
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    const CachedShape cached = cached_shape(model.attention(layer).attention_spec());
    keys[layer] = at::empty({1, length, cached.heads, cached.key_dim}, at::kFloat);
    values[layer] = at::empty({1, length, cached.heads, cached.value_dim}, at::kFloat);
  }
  // LongRoPE turns the keys of a sequence anew when it outgrows the original context: the first piece is longer than that.
  const auto& rotary = store.spec().layers[0].attention.rotary;
  const bool outgrown = rotary && rotary->scaling == model::RotaryScaling::kLongRope &&
                        rotary->original_max_positions < length;
  const int64_t first = outgrown ? rotary->original_max_positions + 1 : 9;
  std::vector<at::Tensor> outputs;
  for (int64_t begin = 0; begin < length;) {
    const int64_t count = begin == 0 ? first : 1;
    BatchTensors step;
    step.tokens = batch.tokens.narrow(1, begin, count).contiguous();
    step.positions = batch.positions.narrow(1, begin, count).contiguous();
    step.rows = 1;
    step.seq_len = count;
    at::Tensor hidden = model.embedding().forward({}, step, false, SaveMode::kAll).output;
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      AttentionPart& attention = model.attention(layer);
      const AttentionPart::Projected projected = attention.project(hidden, step.positions);
      keys[layer].narrow(1, begin, count).copy_(projected.k);
      values[layer].narrow(1, begin, count).copy_(projected.v);
      const at::Tensor attended =
          attention.attend(projected.q, keys[layer].narrow(1, 0, begin + count),
                           values[layer].narrow(1, 0, begin + count));
      hidden = model.feed_forward(layer, attention.finish(hidden, attended), step);
    }
    outputs.push_back(hidden);
    begin += count;
  }
  const at::Tensor got = at::cat(outputs, 1);
  // The blocked softmax may cut keys differently for one query than for many; everything else is
  // bit-equal.
  EXPECT_LT(relative_error(got, want.to(at::kDouble)), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, Families,
                         ::testing::Range(0, static_cast<int>(testing::tiny_specs(1).size())));

TEST(HeadPart, ChunksDoNotChangeTheLossAndIgnoredTargetsDoNotCount) {
  ParameterStore store(model::spec_from_config(testing::tiny_configs(1).at(3), "tiny.json"));
  store.initialize(3);
  Model model(store);
  BatchTensors batch = testing::random_batch(store.spec(), 2, 13, false, 5);
  at::Tensor hidden = at::randn({2, 13, store.spec().hidden});
  const LossResult whole = model.head().loss(hidden, batch, 1.0, 26, nullptr, true);
  for (const int64_t rows : {1, 5, 8, 0, 1000}) {
    EXPECT_EQ(model.head().loss(hidden, batch, 1.0, rows, nullptr).loss_sum, whole.loss_sum)
        << rows;
  }
  EXPECT_NEAR(whole.token_losses.to(at::kDouble).sum().item<double>(), whole.loss_sum, 1e-4);
  const at::Tensor ignored = batch.targets.eq(-100);
  EXPECT_EQ(whole.token_losses.masked_select(ignored).abs().sum().item<double>(), 0.0);
  batch.targets.fill_(-100);
  EXPECT_EQ(model.head().loss(hidden, batch, 1.0, 4, nullptr).loss_sum, 0.0);
}

}  // namespace
}  // namespace trireme::nn
