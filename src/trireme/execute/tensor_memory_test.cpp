// What the planner says that a tensor parallel rank holds, against what its device's allocator held.
#include <gtest/gtest.h>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

using plan::Precision;
using plan::Recompute;

model::ModelSpec medium(const std::string& family) {
  if (family == "gpt2")
    return model::spec_from_config(
        R"({"model_type":"gpt2","vocab_size":1000,"n_embd":128,"n_layer":2,"n_head":4,"n_positions":128})",
        "test");
  model::ModelSpec spec = model::spec_from_config(
      fmt::format(R"({{"model_type":"{}","vocab_size":1000,"hidden_size":128,
          "intermediate_size":320,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,
          "head_dim":32,"max_position_embeddings":128,"tie_word_embeddings":{}}})",
                  family == "latent" ? "llama" : family, family == "gemma2" ? "true" : "false"),
      "test");
  if (family != "latent") return spec;
  model::LatentSpec latent;
  latent.query_rank = 96;
  latent.kv_rank = 64;
  latent.nope_dim = 32;
  latent.rope_dim = 16;
  return nn::testing::with_latent_attention(spec, latent, 24, false);
}

struct TensorMemoryCase {
  const char* family;
  Recompute recompute;
  Precision precision;
  bool delayed = false;
  int64_t in_turn = 1;
  int64_t cp = 1;
  plan::ContextKind kind = plan::ContextKind::kRing;
};

void expect_as_predicted(const TensorMemoryCase& one) {
  std::vector<device::Device*> devices;
  for (int64_t rank = 0; rank < 2 * one.cp; ++rank)
    devices.push_back(&device::get_device(fmt::format("sim:{}", rank)));
  const model::ModelSpec whole = medium(one.family);
  const int64_t micro_batches = one.in_turn > 1 ? 6 : 2;
  plan::Strategy strategy = strategy_for(micro_batches, 2, 4, 128);
  strategy.in_turn = one.in_turn;
  strategy.precision = one.precision;
  strategy.recompute.assign(whole.parts.size(), one.recompute);
  strategy.delay_weight_gradients = one.delayed;
  strategy.kernels = kernel_workspace(devices.front()->torch_device(), one.precision);
  strategy.parallel.tp = 2;
  strategy.parallel.cp = one.cp;
  strategy.parallel.cp_kind = one.kind;
  const std::string what =
      fmt::format("{} {} {} delayed {} {}", one.family, plan::to_string(one.recompute),
                  to_string(one.precision), one.delayed, plan::describe(strategy.parallel));
  comm::run_ranks(static_cast<int>(2 * one.cp), [&](comm::World& world) {
    device::Device& device = *devices[static_cast<size_t>(world.rank())];
    const int64_t before = device.memory().allocated_bytes;
    const plan::Program program = plan::build_program(whole, strategy, world.rank());
    const model::ModelSpec spec = plan::local_spec(whole, strategy.parallel, world.rank());
    nn::ParameterStore store(spec, one.precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat,
                             at::kFloat, device.torch_device());
    store.initialize(1);
    nn::Model model(store);
    const auto optimizer =
        optim::make_optimizer({}, spec, device.torch_device(), optim::StatePlace::kDevice, {});
    Executor executor(model, store, *optimizer, &world);
    StepInput input;
    input.micro_batches = random_batches(whole, micro_batches, 4, 128, 3);
    if (one.cp > 1) join_documents(input.micro_batches);  // the most that tiles hold
    // Ranks that are threads hold one another's tensors until both have seen a transfer end: a step may show more than a rank alone
    // would hold, and of several steps one does not.
    std::vector<plan::Measurement> least;
    int64_t peak = 0;
    for (input.step = 0; input.step < 12; ++input.step) {
      const StepResult result = executor.run_step(program, input);
      peak = input.step == 0 ? result.peak_allocated_bytes
                             : std::min(peak, result.peak_allocated_bytes);
      if (least.empty()) least = result.measurements;
      for (size_t i = 0; i < least.size(); ++i) {
        least[i].held_bytes_after =
            std::min(least[i].held_bytes_after, result.measurements[i].held_bytes_after);
        least[i].peak_bytes = std::min(least[i].peak_bytes, result.measurements[i].peak_bytes);
      }
    }
    const plan::Simulation predicted = plan::simulate_in_issue_order(program);
    const auto ratio = [&](int64_t prediction, int64_t measured) {
      return static_cast<double>(prediction) / static_cast<double>(measured - before);
    };
    EXPECT_NEAR(ratio(predicted.peak_bytes, peak), 1.0, 0.02) << what;
    for (size_t i = 0; i < program.instructions.size(); ++i) {
      if (program.instructions[i].resource == plan::Resource::kHost) continue;
      const std::string name = what + ": " + plan::describe(spec, program.instructions[i]);
      EXPECT_NEAR(ratio(predicted.instructions[i].held_bytes_after, least[i].held_bytes_after), 1.0,
                  0.02)
          << name;
      const double at_most = ratio(predicted.instructions[i].peak_bytes, least[i].peak_bytes);
      EXPECT_GE(at_most, 0.98) << name;
      // A backward frees what was kept before it has made all its gradients, and workspaces are never negative.
      EXPECT_LE(at_most, 1.06) << name;
    }
  });
}

TEST(TensorMemory, OfEveryInstructionIsWhatTheAllocatorHeld) {
  for (const TensorMemoryCase& one :
       std::vector<TensorMemoryCase>{{"gpt2", Recompute::kNone, Precision::kFp32},
                                     {"llama", Recompute::kNone, Precision::kBf16},
                                     {"llama", Recompute::kNone, Precision::kFp32, true},
                                     {"llama", Recompute::kFull, Precision::kFp32, true},
                                     {"qwen3", Recompute::kSelective, Precision::kBf16},
                                     {"gemma2", Recompute::kNone, Precision::kFp32},
                                     {"gemma2", Recompute::kFull, Precision::kBf16},
                                     {"latent", Recompute::kSelective, Precision::kFp32},
                                     {"latent", Recompute::kNone, Precision::kBf16},
                                     {"llama", Recompute::kNone, Precision::kFp32, false, 2},
                                     {"llama", Recompute::kFull, Precision::kBf16, false, 4}})
    expect_as_predicted(one);
}

TEST(TensorMemory, OfEveryInstructionOfRanksThatShareSequencesIsWhatTheAllocatorHeld) {
  constexpr auto kGather = plan::ContextKind::kGather;
  constexpr auto kRing = plan::ContextKind::kRing;
  for (const TensorMemoryCase& one : std::vector<TensorMemoryCase>{
           {"gpt2", Recompute::kNone, Precision::kFp32, false, 1, 2, kGather},
           {"llama", Recompute::kFull, Precision::kBf16, true, 1, 2, kRing},
           {"qwen3", Recompute::kSelective, Precision::kBf16, false, 1, 2, kGather},
           {"qwen3", Recompute::kSelective, Precision::kFp32, true, 1, 2, kRing},
           {"gemma2", Recompute::kFull, Precision::kFp32, false, 1, 2, kGather},
           {"gemma2", Recompute::kNone, Precision::kBf16, false, 1, 4, kRing},
           {"llama", Recompute::kNone, Precision::kFp32, false, 2, 2, kRing}})
    expect_as_predicted(one);
}

}  // namespace
}  // namespace trireme::execute
