#include "trireme/plan/held_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/model/model_spec.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/simulate.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

TEST(HeldMemory, AddsUpToTheSimulatorsCurve) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  for (const bool offload : {false, true}) {
    Strategy strategy;
    strategy.sequences = 4;
    strategy.micro = 1;
    strategy.lanes = 2;
    strategy.seq_len = 32;
    strategy.precision = Precision::kBf16;
    if (offload) strategy.offload_activations = offload_from_names(spec, {"all"});
    strategy.offload_optimizer = offload;
    const Program program = build_program(spec, strategy);
    const Simulation simulation = simulate_in_issue_order(program);
    int64_t before = program.resident_bytes;
    for (const Buffer& buffer : program.buffers)
      before += buffer.is_carried_in() ? buffer.bytes : 0;
    for (const Instruction& instruction : program.instructions) {
      int64_t released = 0;
      for (const int id : instruction.releases)
        released += program.buffers[static_cast<size_t>(id)].bytes;
      const HeldMemory held = held_before(spec, program, instruction.id);
      ASSERT_EQ(held.total(), before - released) << instruction.id;
      before = simulation.instructions[static_cast<size_t>(instruction.id)].held_bytes_after;
    }
  }
}

TEST(HeldMemory, IsToldByKind) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  Strategy strategy;
  strategy.seq_len = 32;
  const Program program = build_program(spec, strategy);
  int loss = 0;
  while (program.instructions[static_cast<size_t>(loss)].kind != OpKind::kLoss) ++loss;
  const HeldMemory held = held_before(spec, program, loss);
  EXPECT_EQ(held.weights, 4 * spec.num_parameters());
  EXPECT_EQ(held.optimizer_states, 8 * spec.num_parameters());
  EXPECT_EQ(held.gradients, 0);
  EXPECT_EQ(held.batches, batch_bytes(spec, strategy));
  const PartBytes kept = part_bytes(spec, strategy, 1, Recompute::kNone);
  EXPECT_EQ(held.activations.at(1),
            kept.saved_input + kept.saved_weight + hidden_bytes(spec, strategy, 1));
  const std::string text = describe(spec, held, 3'000'000);
  EXPECT_THAT(text, HasSubstr("weights "));
  EXPECT_THAT(text, HasSubstr("optimizer states "));
  EXPECT_THAT(text, HasSubstr("attention "));
  EXPECT_THAT(text, HasSubstr(" parts"));
  EXPECT_THAT(text, HasSubstr("workspace 3 MB"));
  EXPECT_EQ(memory_text(100), "100 bytes");
  EXPECT_EQ(memory_text(1'500'000'000), "1.5 GB");
}

}  // namespace
}  // namespace trireme::plan
