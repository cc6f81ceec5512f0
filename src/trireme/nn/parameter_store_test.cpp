#include "trireme/nn/parameter_store.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trireme/nn/rotary.h"
#include "trireme/nn/testing/reference_model.h"

namespace trireme::nn {
namespace {

model::ModelSpec tiny(size_t index) {
  return model::spec_from_config(testing::tiny_configs(2).at(index), "tiny.json");
}

TEST(ParameterStore, PartsTileTheirFlatBuffersWithoutGaps) {
  for (size_t config = 0; config < testing::tiny_configs(2).size(); ++config) {
    const ParameterStore store(tiny(config));
    int64_t total = 0;
    for (int part = 0; part < store.num_parts(); ++part) {
      int64_t end = 0;
      for (const int parameter : store.part_parameters(part)) {
        EXPECT_EQ(store.offset(parameter), end);
        end += store.spec().parameters[parameter].numel();
      }
      EXPECT_EQ(store.part_numel(part), end);
      total += end;
    }
    EXPECT_EQ(total, store.spec().num_parameters());
  }
}

TEST(ParameterStore, AFusedViewIsItsMatricesOneBelowTheOther) {
  ParameterStore store(tiny(3));
  store.initialize(1);
  const int q = store.spec().parameter_index("model.layers.1.self_attn.q_proj.weight");
  const int part = store.spec().parameters[q].part;
  const at::Tensor fused = store.fused_view(store.part_master(part), q, 3);
  EXPECT_TRUE(
      at::equal(fused, at::cat({store.master(q), store.master(q + 1), store.master(q + 2)})));
  fused.fill_(4.0);
  EXPECT_EQ(store.master("model.layers.1.self_attn.v_proj.weight").min().item<float>(), 4.0F);
}

TEST(ParameterStore, AnElementsBitsDependOnSeedNameAndIndexAlone) {
  ParameterStore store(tiny(3));
  const int threads = at::get_num_threads();
  store.initialize(77);
  const at::Tensor before = store.part_master(1).clone();
  at::set_num_threads(1);
  ParameterStore again(tiny(3));
  again.initialize(77);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(before, again.part_master(1)));
  again.initialize(78);
  EXPECT_FALSE(at::equal(before, again.part_master(1)));

  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  const int index = store.spec().parameter_index(name);
  const at::Tensor values = store.master(index).flatten();
  for (const int64_t element : {int64_t{0}, int64_t{1}, values.numel() - 1}) {
    EXPECT_EQ(
        values[element].item<float>(),
        static_cast<float>(normal_at(77, name, element) * store.spec().parameters[index].init.std));
  }
}

TEST(ParameterStore, InitialValuesFollowTheirSpec) {
  ParameterStore store(model::spec_from_preset("llama-11m"));
  store.initialize(5);
  for (int i = 0; i < store.num_parameters(); ++i) {
    const model::ParameterSpec& parameter = store.spec().parameters[i];
    const at::Tensor values = store.master(i).to(at::kDouble);
    if (parameter.init.kind == model::InitKind::kOnes) {
      EXPECT_TRUE(values.eq(1.0).all().item<bool>()) << parameter.name;
    } else if (parameter.init.kind == model::InitKind::kZeros) {
      EXPECT_TRUE(values.eq(0.0).all().item<bool>()) << parameter.name;
    } else {
      // Five standard errors of the mean, of the standard deviation and of the share beyond two
      // deviations.
      const double n = static_cast<double>(values.numel());
      const double std = parameter.init.std;
      EXPECT_LT(std::abs(values.mean().item<double>()), 5.0 * std / std::sqrt(n)) << parameter.name;
      EXPECT_NEAR(values.square().mean().sqrt().item<double>() / std, 1.0,
                  5.0 / std::sqrt(2.0 * n));
      const double tail = std::erfc(std::sqrt(2.0));
      EXPECT_NEAR(values.abs().gt(2.0 * std).to(at::kDouble).mean().item<double>(), tail,
                  5.0 * std::sqrt(tail * (1.0 - tail) / n));
    }
  }
}

TEST(ParameterStore, TheComputeCopyIsTheRoundedMaster) {
  ParameterStore store(tiny(0), at::kBFloat16);
  store.initialize(6);
  for (int part = 0; part < store.num_parts(); ++part) {
    EXPECT_TRUE(at::equal(store.part_compute(part), store.part_master(part).to(at::kBFloat16)));
  }
  const ParameterStore plain(tiny(0));
  EXPECT_FALSE(plain.has_compute_copy());
  EXPECT_TRUE(plain.part_compute(1).is_same(plain.part_master(1)));
}

TEST(ParameterStore, ASliceOfMastersHasTheBitsOfTheWhole) {
  ParameterStore whole(tiny(3), at::kBFloat16);
  for (const double from : {0.0, 0.3, 1.0}) {
    whole.initialize(9);
    std::vector<model::ElementRange> shares;
    for (int part = 0; part < whole.num_parts(); ++part) {
      const auto numel = static_cast<double>(whole.part_numel(part));
      const auto first = static_cast<int64_t>(from * numel);
      shares.push_back({first, std::max(first, static_cast<int64_t>(0.7 * numel))});
    }
    ParameterStore slice(tiny(3), at::kBFloat16, at::kFloat, at::kCPU, shares);
    slice.initialize(9);
    const auto expect_equal = [&] {
      for (int part = 0; part < whole.num_parts(); ++part) {
        const model::ElementRange share = shares[static_cast<size_t>(part)];
        EXPECT_TRUE(at::equal(slice.part_master(part),
                              whole.part_master(part).narrow(0, share.first, share.count())));
        EXPECT_TRUE(at::equal(slice.part_compute(part), whole.part_compute(part)));
      }
    };
    expect_equal();
    for (int i = 0; i < whole.num_parameters(); ++i) {
      const at::Tensor values = at::rand(whole.spec().parameters[i].shape);
      whole.set(i, values);
      slice.set(i, values);
    }
    expect_equal();
  }
}

TEST(ParameterStore, AStretchOfAParameterHasTheBitsOfTheWhole) {
  ParameterStore whole(tiny(3));
  whole.initialize(9);
  for (const size_t dim : {0, 1}) {
    for (int64_t index = 0; index < 4; ++index) {
      model::ModelSpec spec = tiny(3);
      int64_t cut = 0;
      for (model::ParameterSpec& parameter : spec.parameters) {
        if (dim >= parameter.shape.size() || parameter.shape[dim] % 4 != 0) continue;
        // In two steps it is the same stretch.
        parameter.cut(dim, 2, index / 2);
        parameter.cut(dim, 2, index % 2);
        ++cut;
      }
      ASSERT_GT(cut, 0);
      ParameterStore store(spec);
      store.initialize(9);
      for (int i = 0; i < store.num_parameters(); ++i) {
        const model::ParameterSpec& parameter = spec.parameters[static_cast<size_t>(i)];
        const at::Tensor all = whole.master(i);
        const at::Tensor expected =
            parameter.shard ? all.chunk(4, static_cast<int64_t>(dim))[static_cast<size_t>(index)]
                            : all;
        EXPECT_TRUE(at::equal(store.master(i), expected)) << parameter.name;
        EXPECT_TRUE(at::equal(stretch(all, parameter), expected)) << parameter.name;
        store.set(i, stretch(all + 1.0, parameter));
        EXPECT_TRUE(at::equal(store.master(i), expected + 1.0)) << parameter.name;
      }
    }
  }
}

TEST(ParameterStore, PartsThatComeAreDrawnByTheirSharesAndHaveRoomOnlyWhereAsked) {
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    ParameterStore whole(tiny(3), compute);
    whole.initialize(9);
    // Shares that begin and end inside parameters, at odd elements too.
    for (const double from : {0.0, 0.31, 0.8}) {
      std::vector<model::ElementRange> shares;
      for (int part = 0; part < whole.num_parts(); ++part) {
        const auto numel = static_cast<double>(whole.part_numel(part));
        shares.push_back(
            {static_cast<int64_t>(from * numel) | 1, static_cast<int64_t>(0.9 * numel)});
      }
      ParameterStore comes(tiny(3), compute, at::kFloat, at::kCPU, shares, {},
                           std::vector<char>(shares.size(), 1));
      comes.initialize(9);
      for (int part = 0; part < whole.num_parts(); ++part) {
        const model::ElementRange share = shares[static_cast<size_t>(part)];
        const auto of_share = [&](const at::Tensor& flat) {
          return flat.narrow(0, share.first, share.count());
        };
        EXPECT_TRUE(at::equal(comes.part_master(part), of_share(whole.part_master(part))));
        const at::Tensor view = comes.compute(comes.part_parameters(part).front());
        EXPECT_EQ(comes.part_compute(part).storage().data(), nullptr);
        comes.make_room(part);
        comes.refresh_compute(part);
        EXPECT_TRUE(
            at::equal(of_share(comes.part_compute(part)), of_share(whole.part_compute(part))));
        EXPECT_EQ(view.data_ptr(),
                  comes.part_compute(part).data_ptr());  // a part's view has it too
        comes.drop(part);
        EXPECT_EQ(view.storage().data(), nullptr);
      }
    }
  }
}

TEST(Rotary, FrequenciesOfTheThreeScalings) {
  model::RotarySpec spec;
  spec.dim = 8;
  spec.theta = 10000.0;
  const std::vector<float> plain = rotary_inverse_frequencies(spec);
  ASSERT_EQ(plain.size(), 4u);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(plain[i], std::pow(10.0, -i), 1e-7 * std::pow(10.0, -i) + 1e-9);
  spec.scaling = model::RotaryScaling::kLinear;
  spec.factor = 4.0;
  EXPECT_FLOAT_EQ(rotary_inverse_frequencies(spec)[1], 0.025F);

  // Llama 3.1: waves shorter than 8192 / 4 stay, longer than 8192 are slowed by 8, those between
  // are blended.
  spec.scaling = model::RotaryScaling::kLlama3;
  spec.factor = 8.0;
  spec.low_freq_factor = 1.0;
  spec.high_freq_factor = 4.0;
  spec.original_max_positions = 8192;
  const std::vector<float> scaled = rotary_inverse_frequencies(spec);
  EXPECT_FLOAT_EQ(scaled[0], plain[0]);
  EXPECT_FLOAT_EQ(scaled[1], plain[1]);
  EXPECT_FLOAT_EQ(scaled[2], plain[2]);                           // wave of 628
  const double turns = 8192.0 * 1e-3 / (2.0 * std::numbers::pi);  // 1.3038: between 1 and 4
  const double blend = (turns - 1.0) / 3.0;
  EXPECT_NEAR(scaled[3], 1e-3 * (blend + (1.0 - blend) / 8.0), 1e-9);
}

TEST(Rotary, TheTableGrowsAndKeepsItsRows) {
  model::RotarySpec spec;
  spec.dim = 4;
  RotaryTable table(spec);
  EXPECT_EQ(table.rows(10).cos.size(0), 10);
  const at::Tensor first = table.rows(10).sin.clone();
  EXPECT_EQ(table.rows(5).cos.size(0), 10);
  EXPECT_GE(table.rows(11).cos.size(0), 11);
  EXPECT_TRUE(at::equal(table.rows(10).sin.narrow(0, 0, 10), first));
}

TEST(Rotary, LongSequencesTurnByTheirOwnFactors) {
  model::RotarySpec spec;
  spec.dim = 4;
  spec.scaling = model::RotaryScaling::kLongRope;
  spec.original_max_positions = 8;
  spec.short_factor = {1.0, 2.0};
  spec.long_factor = {4.0, 8.0};
  spec.attention_factor = 1.5;
  RotaryTable table(spec);
  // Position 1 of pair 0, whose plain frequency is 1; both lengths may be asked for in turn.
  for (int round = 0; round < 2; ++round) {
    EXPECT_NEAR(table.rows(8).cos[1][0].item<double>(), 1.5 * std::cos(1.0), 1e-6);
    EXPECT_NEAR(table.rows(9).cos[1][0].item<double>(), 1.5 * std::cos(0.25), 1e-6);
    EXPECT_NEAR(table.rows(9).sin[1][1].item<double>(), 1.5 * std::sin(0.01 / 8.0), 1e-6);
  }
}

}  // namespace
}  // namespace trireme::nn
