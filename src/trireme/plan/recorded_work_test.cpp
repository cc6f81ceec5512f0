#include "trireme/plan/recorded_work.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "trireme/plan/simulate.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

model::ModelSpec dense(int layers = 2) {
  return model::spec_from_config(
      fmt::format(
          R"({{"model_type":"llama","vocab_size":320,"hidden_size":16,"intermediate_size":32,
          "num_hidden_layers":{},"num_attention_heads":2,"num_key_value_heads":1,"max_position_embeddings":64}})",
          layers),
      "test");
}

Strategy strategy_of(int64_t micro_batches, int64_t lanes, int64_t dp = 1, int64_t zero = 0) {
  Strategy strategy;
  strategy.sequences = 2 * micro_batches;
  strategy.micro = 2;
  strategy.lanes = lanes;
  strategy.seq_len = 16;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = zero;
  return strategy;
}

size_t likenesses(const RecordedWork& work) {
  std::set<std::string> all;
  for (const auto& [micro_batch, alike] : work.alike) all.insert(alike);
  return all.size();
}

TEST(RecordedWork, IsForwardAndBackwardOfAllLayersAtOnce) {
  const model::ModelSpec spec = dense();
  const Program program = build_program(spec, strategy_of(2, 1));
  const RecordedWork work = recorded_work(spec, program);
  ASSERT_THAT(work.runs, SizeIs(4));
  const RecordedRun& forward = work.runs[0];
  const RecordedRun& backward = work.runs[1];
  EXPECT_EQ(forward.end - forward.first, 4);    // attention and MLP of two layers
  EXPECT_EQ(backward.end - backward.first, 8);  // of the input and of the weights
  const auto only = [&](const std::vector<int>& buffers) {
    EXPECT_THAT(buffers, SizeIs(1));
    const Buffer& buffer = program.buffers[static_cast<size_t>(buffers.front())];
    return std::pair(buffer.kind, buffer.part);
  };
  EXPECT_EQ(only(forward.takes), std::pair(BufferKind::kHidden, 0));
  EXPECT_EQ(only(forward.gives), std::pair(BufferKind::kHidden, 4));
  EXPECT_EQ(only(backward.takes), std::pair(BufferKind::kHiddenGradient, 4));
  EXPECT_EQ(only(backward.gives), std::pair(BufferKind::kHiddenGradient, 0));
}

TEST(RecordedWork, MicroBatchesAreAlikeButForTheFirstOfALane) {
  const model::ModelSpec spec = dense();
  const auto count = [&](int64_t micro_batches, int64_t lanes) {
    return likenesses(recorded_work(spec, build_program(spec, strategy_of(micro_batches, lanes))));
  };
  EXPECT_EQ(count(1, 1), 1);
  EXPECT_EQ(count(2, 1), 2);
  EXPECT_EQ(count(16, 1), 2);  // the first writes, the others add
  // The two lanes of a pair have places of their own, and the second's last adds them up.
  EXPECT_EQ(count(8, 2), 5);
}

/// No two accumulators of a part are in one place at once, transfers under way counted; and no fewer places would do.
TEST(RecordedWork, PlacesAreNobodyElsesMeanwhile) {
  std::mt19937_64 random(5);
  const model::ModelSpec spec = dense();
  for (int draw = 0; draw < 60; ++draw) {
    const int64_t lanes = int64_t{1} << random() % 4;
    const int64_t dp = std::min<int64_t>(lanes, 1 + static_cast<int64_t>(random() % 4));
    const Strategy strategy = strategy_of(lanes * (1 + static_cast<int64_t>(random() % 2)), lanes,
                                          dp, dp == 1 ? 0 : static_cast<int64_t>(random() % 3));
    for (int rank = 0; rank < dp; ++rank) {
      const Program program = build_program(spec, strategy, rank);
      const RecordedWork work = recorded_work(spec, program);
      std::map<std::pair<int, int>, int> held;  // buffer by part and place
      std::map<int, std::vector<std::pair<int, int>>> read_by;
      std::vector<size_t> most(spec.parts.size(), 0);
      for (const Instruction& instruction : program.instructions) {
        for (const int other : instruction.depends_on) {
          for (const auto& where : read_by[other]) held.erase(where);
          read_by.erase(other);
        }
        for (const int id : instruction.makes) {
          const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
          if (buffer.kind != BufferKind::kParameterGradient) continue;
          const std::pair where(buffer.part, work.places[static_cast<size_t>(id)]);
          EXPECT_TRUE(held.emplace(where, id).second) << describe(spec, instruction);
          const auto count = static_cast<size_t>(std::ranges::count_if(
              held, [&](const auto& one) { return one.first.first == buffer.part; }));
          most[static_cast<size_t>(buffer.part)] =
              std::max(most[static_cast<size_t>(buffer.part)], count);
        }
        for (const int id : instruction.frees) {
          const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
          if (buffer.kind != BufferKind::kParameterGradient) continue;
          const std::pair where(buffer.part, work.places[static_cast<size_t>(id)]);
          if (instruction.resource == Resource::kCommunication) {
            read_by[instruction.id].push_back(where);
          } else {
            held.erase(where);
          }
        }
      }
      for (size_t part = 0; part < most.size(); ++part)
        EXPECT_EQ(static_cast<size_t>(work.num_places[part]), most[part]);
    }
  }
}

TEST(RecordedWork, IsHeldAllTheTime) {
  const model::ModelSpec spec = dense(6);
  Strategy strategy = strategy_of(4, 1);
  const Program plain = build_program(spec, strategy);
  strategy.record = true;
  const Program recorded = build_program(spec, strategy);
  EXPECT_GT(recorded.recorded_bytes, 0);
  EXPECT_EQ(recorded.resident_bytes, plain.resident_bytes + recorded.recorded_bytes);
  EXPECT_EQ(recorded.instructions.size(), plain.instructions.size());
  const auto peak = [](const Program& program) {
    return simulate_in_issue_order(program).peak_bytes;
  };
  EXPECT_GE(peak(recorded), peak(plain));
  // Gradients are held in the last backward of either; what goes with them there is most of the rest.
  EXPECT_LT(static_cast<double>(peak(recorded)), 1.25 * static_cast<double>(peak(plain)));
}

TEST(RecordedWork, SaysWhatItDoesNotGoWith) {
  const model::ModelSpec spec = dense(4);
  Strategy strategy = strategy_of(4, 4);
  strategy.record = true;
  EXPECT_TRUE(validate(spec, strategy).empty());
  strategy.offload_optimizer = true;
  EXPECT_THAT(validate(spec, strategy).front(), HasSubstr("device.graphs and memory.offload"));
  strategy.offload_optimizer = false;
  strategy.parallel.pp = 2;
  EXPECT_THAT(validate(spec, strategy).front(), HasSubstr("parallel.pp = 2"));
}

}  // namespace
}  // namespace trireme::plan
