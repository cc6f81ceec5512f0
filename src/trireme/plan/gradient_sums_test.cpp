// Programs of data-parallel ranks, executed on expressions: who adds what, who holds what, what crosses the wire.
#include "trireme/plan/gradient_sums.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "trireme/base/error.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/shards.h"
#include "trireme/plan/simulate.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

model::ModelSpec small_llama(bool tied = false) {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "llama", "vocab_size": 300, "hidden_size": 64,
      "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": {}}})",
                  tied),
      "test");
}

Strategy over_ranks(int64_t dp, int64_t zero, int64_t lanes, int64_t per_lane = 1) {
  Strategy strategy;
  strategy.seq_len = 8;
  strategy.lanes = lanes;
  strategy.sequences = lanes * per_lane;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = zero;
  return strategy;
}

/// The sum of lanes [first, first + size) as the tree of lanes has it.
std::string tree(int64_t first, int64_t size) {
  if (size == 1) return std::to_string(first);
  return fmt::format("({}+{})", tree(first, size / 2), tree(first + size / 2, size / 2));
}

/// What a rank sends: by part and the piece's first lane, the expression.
using Sent = std::map<std::pair<int, int64_t>, std::string>;

Sent sent_by(const Program& program) {
  Sent sent;
  std::map<std::pair<int, int64_t>, std::string> accumulators;
  const auto sum = [&](int part, int64_t lane) -> std::string& {
    return accumulators.try_emplace({part, lane}, std::to_string(lane)).first->second;
  };
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kCombineLanes) {
      std::string& left = sum(instruction.part, instruction.lane);
      left = fmt::format("({}+{})", left, sum(instruction.part, instruction.right_lane));
    }
    if (instruction.kind != OpKind::kReduceGradients || instruction.of_replicas) continue;
    for (const Piece& piece : instruction.pieces) {
      if (piece.from == program.slice)
        sent[{instruction.part, piece.node.first}] = sum(instruction.part, piece.node.first);
    }
  }
  return sent;
}

/// What an owner has of its block's lanes in the end: by part, the expression of its slice. `sent` by rank of the block.
std::map<int, std::string> owned_by(const Program& program, const std::vector<Sent>& sent) {
  std::map<int, std::string> finished;
  std::map<int, std::vector<std::pair<cluster::LaneNode, std::string>>> held;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind != OpKind::kCombinePieces || instruction.of_replicas) continue;
    auto& sums = held[instruction.part];
    std::vector<cluster::LaneNode> nodes;
    for (const Piece& piece : instruction.pieces) {
      sums.emplace_back(piece.node, sent[static_cast<size_t>(piece.from)].at(
                                        {instruction.part, piece.node.first}));
    }
    for (const auto& [node, text] : sums) nodes.push_back(node);
    std::vector<char> stays(sums.size(), 1);
    for (const cluster::LaneAddition& addition : cluster::tree_order(nodes)) {
      auto& left = sums[static_cast<size_t>(addition.left)];
      const auto& right = sums[static_cast<size_t>(addition.right)];
      left.second = fmt::format("({}+{})", left.second, right.second);
      left.first.size += right.first.size;
      stays[static_cast<size_t>(addition.right)] = 0;
    }
    std::vector<std::pair<cluster::LaneNode, std::string>> next;
    for (size_t i = 0; i < sums.size(); ++i) {
      if (stays[i] != 0) next.push_back(sums[i]);
    }
    sums = next;
  }
  for (const auto& [part, sums] : held) {
    EXPECT_EQ(sums.size(), 1u);
    finished[part] = sums.front().second;
  }
  return finished;
}

TEST(GradientSumsTest, EveryOwnerHasTheSumOfTheOneTreeWhateverTheRanks) {
  const model::ModelSpec spec = small_llama();
  for (const int64_t lanes : {1, 2, 4, 8, 16}) {
    for (int64_t dp = 2; dp <= lanes; ++dp) {
      for (const int64_t zero : {0, 1, 2, 3}) {
        for (const bool delay : {false, true}) {
          Strategy strategy = over_ranks(dp, zero, lanes, 2);
          strategy.delay_weight_gradients = delay;
          std::vector<Program> programs;
          std::vector<Sent> sent;
          for (int rank = 0; rank < dp; ++rank) {
            programs.push_back(build_program(spec, strategy, rank));
            sent.push_back(sent_by(programs.back()));
          }
          for (const Program& program : programs) {
            const auto finished = owned_by(program, sent);
            EXPECT_EQ(finished.size(), spec.parts.size());
            for (const auto& [part, text] : finished)
              EXPECT_EQ(text, tree(0, lanes))
                  << lanes << " lanes, " << dp << " ranks, part " << part;
          }
        }
      }
    }
  }
}

// Hybrid sharding: an owner has its block's node of the tree, and with its replicas the whole.
TEST(GradientSumsTest, ReplicasOfASliceHaveTheSumOfTheOneTree) {
  const model::ModelSpec spec = small_llama();
  for (const auto& [lanes, dp, shard] :
       {std::tuple{4, 4, 2}, {8, 4, 2}, {8, 8, 2}, {8, 8, 4}, {16, 8, 2}, {16, 16, 4}}) {
    for (const int64_t zero : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} lanes, dp {} zero {} shard {}", lanes, dp, zero, shard));
      Strategy strategy = over_ranks(dp, zero, lanes);
      strategy.parallel.shard = shard;
      std::vector<std::map<int, std::string>> owned;  // by rank
      std::vector<Program> programs;
      for (int first = 0; first < dp; first += shard) {
        std::vector<Sent> sent;
        for (int rank = first; rank < first + shard; ++rank) {
          programs.push_back(build_program(spec, strategy, rank));
          sent.push_back(sent_by(programs.back()));
        }
        for (int rank = first; rank < first + shard; ++rank)
          owned.push_back(owned_by(programs[static_cast<size_t>(rank)], sent));
      }
      for (const Program& program : programs) {
        const cluster::LaneRange lanes_here = program.block_lanes();
        for (const auto& [part, text] : owned[static_cast<size_t>(program.rank)])
          EXPECT_EQ(text, tree(lanes_here.first, lanes_here.last - lanes_here.first)) << part;
        size_t combined = 0;
        for (const Instruction& instruction : program.instructions) {
          if (instruction.kind != OpKind::kCombinePieces || !instruction.of_replicas) continue;
          std::vector<cluster::LaneNode> nodes;
          std::vector<std::string> texts;
          for (const Piece& piece : instruction.pieces) {
            nodes.push_back(piece.node);
            texts.push_back(owned[static_cast<size_t>(piece.from * shard + program.slice)].at(
                instruction.part));
          }
          for (const cluster::LaneAddition& addition : cluster::tree_order(nodes)) {
            std::string& left = texts[static_cast<size_t>(addition.left)];
            left = fmt::format("({}+{})", left, texts[static_cast<size_t>(addition.right)]);
          }
          EXPECT_EQ(texts.front(), tree(0, lanes)) << instruction.part;
          ++combined;
        }
        EXPECT_EQ(combined, spec.parts.size());
      }
    }
  }
}

TEST(GradientSumsTest, RanksIssueTheSameTransfersOfAGroupInTheSameOrder) {
  const model::ModelSpec spec = small_llama(true);
  for (const int64_t dp : {2, 3, 5, 8}) {
    for (const int64_t zero : {0, 1, 2, 3}) {
      std::vector<std::string> transfers;
      for (int rank = 0; rank < dp; ++rank) {
        std::string all;
        for (const Instruction& i :
             build_program(spec, over_ranks(dp, zero, 8), rank).instructions) {
          if (i.resource != Resource::kCommunication) continue;
          all += fmt::format("{} {} {} {};", to_string(i.kind), i.part, i.group, i.pieces.size());
        }
        transfers.push_back(all);
      }
      EXPECT_THAT(transfers, ::testing::Each(transfers.front())) << dp << " ranks, zero " << zero;
    }
  }
}

TEST(GradientSumsTest, LanesAreComputedOnce) {
  for (const int64_t lanes : {1, 4, 16}) {
    for (int64_t dp = 1; dp <= lanes; ++dp) {
      for (const int64_t zero : {1, 2}) {
        std::vector<int> times(static_cast<size_t>(lanes));
        for (int64_t i = 0; i < dp; ++i) {
          for (const int64_t lane : lanes_of(over_ranks(dp, zero, lanes), i, dp))
            ++times[static_cast<size_t>(lane)];
        }
        EXPECT_THAT(times, ::testing::Each(1));
      }
    }
  }
}

// A ring sends (n - 1) / n of the gradient per rank. So does the direct exchange for powers of two; slices are cut at blocks of
// 1024 elements, which the equality here counts exactly.
TEST(GradientSumsTest, ARankSendsEveryOtherOwnersSliceOnce) {
  const model::ModelSpec spec = small_llama();
  for (const int64_t dp : {2, 4, 8}) {
    for (int rank = 0; rank < dp; ++rank) {
      const Program program = build_program(spec, over_ranks(dp, 1, 8), rank);
      int64_t elements = 0;
      for (const Instruction& instruction : program.instructions) {
        if (instruction.kind != OpKind::kReduceGradients) continue;
        const auto& bounds = program.slices[static_cast<size_t>(instruction.part)];
        for (const Piece& piece : instruction.pieces) {
          if (piece.from == rank)
            elements += bounds.back() -
                        (bounds[static_cast<size_t>(rank) + 1] - bounds[static_cast<size_t>(rank)]);
        }
      }
      int64_t mine = 0;
      for (const auto& bounds : program.slices)
        mine += bounds[static_cast<size_t>(rank) + 1] - bounds[static_cast<size_t>(rank)];
      EXPECT_EQ(elements, spec.num_parameters() - mine);
    }
  }
}

TEST(GradientSumsTest, StatesAndMastersAreShared) {
  const model::ModelSpec spec = small_llama();
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    int64_t states = 0;
    int64_t masters = 0;
    for (int rank = 0; rank < 4; ++rank) {
      Strategy strategy = over_ranks(4, 1, 8);
      strategy.precision = precision;
      const Program program = build_program(spec, strategy, rank);
      const ResidentBytes bytes = resident_bytes(spec, strategy, program);
      states += bytes.optimizer_states;
      masters += bytes.master_weights;
    }
    EXPECT_EQ(states, 8 * spec.num_parameters());
    // In fp32 the masters are what products read: everybody has them.
    EXPECT_EQ(masters, (precision == Precision::kFp32 ? 4 : 1) * 4 * spec.num_parameters());
  }
}

/// Most bytes of gradients, pieces and slices of parts at once, in issue order.
int64_t peak_of_gradients(const Program& program) {
  int64_t held = 0;
  int64_t peak = 0;
  const auto add = [&](const std::vector<int>& buffers, int64_t sign) {
    for (const int id : buffers) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (buffer.kind == BufferKind::kParameterGradient ||
          buffer.kind == BufferKind::kGradientPieces || buffer.kind == BufferKind::kGradientSlice)
        held += sign * buffer.bytes;
    }
  };
  for (const Instruction& instruction : program.instructions) {
    add(instruction.makes, 1);
    peak = std::max(peak, held);
    add(instruction.frees, -1);
  }
  return peak;
}

// Under ZeRO 2 a rank holds its slices, at most one more node of lanes of each, and the gradients of the parts in flight.
TEST(GradientSumsTest, StageTwoNeverHoldsAWholeGradient) {
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 176,
      "num_hidden_layers": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
      "max_position_embeddings": 64, "tie_word_embeddings": false})",
      "test");
  const int64_t whole = 4 * spec.num_parameters();
  EXPECT_GT(peak_of_gradients(build_program(spec, over_ranks(8, 1, 16))), whole);
  EXPECT_LT(peak_of_gradients(build_program(spec, over_ranks(8, 2, 8))), whole / 4);
  EXPECT_LT(peak_of_gradients(build_program(spec, over_ranks(8, 2, 16))), whole / 8 * 3);
}

// Under ZeRO 0 and 1 all lanes have one accumulator a part and one transfer, which waits for the last of them; under ZeRO 2 and 3 there
// are as many transfers as any rank has lanes.
TEST(GradientSumsTest, SumsOfTheTransportNeedNoTree) {
  const model::ModelSpec spec = small_llama();
  for (const int64_t dp : {2, 3, 4}) {
    for (const int64_t pp : {1, 2}) {
      for (const int64_t zero : {0, 1, 2, 3}) {
        Strategy strategy = over_ranks(dp, zero, 8);
        strategy.parallel.pp = pp;
        strategy.parallel.reduction = Reduction::kFast;
        SCOPED_TRACE(describe(strategy.parallel));
        for (int rank = 0; rank < static_cast<int>(dp * pp); ++rank) {
          const Program program = build_program(spec, strategy, rank);
          std::map<int, int64_t> accumulators;
          std::map<int, int64_t> transfers;
          std::map<int, int> last_use;  // by buffer: who adds to it
          for (const Buffer& buffer : program.buffers) {
            if (buffer.kind == BufferKind::kParameterGradient) ++accumulators[buffer.part];
          }
          for (const Instruction& instruction : program.instructions) {
            EXPECT_NE(instruction.kind, OpKind::kCombineLanes);
            if (instruction.kind == OpKind::kReduceGradients) {
              ++transfers[instruction.part];
              for (const int id : instruction.uses) {
                EXPECT_THAT(instruction.depends_on, ::testing::Contains(last_use.at(id)))
                    << describe(spec, instruction);
              }
            } else if (instruction.resource == Resource::kCompute) {
              for (const auto* const list : {&instruction.makes, &instruction.uses}) {
                for (const int id : *list) last_use[id] = instruction.id;
              }
            }
          }
          EXPECT_FALSE(accumulators.empty());
          for (const auto& [part, count] : accumulators) {
            EXPECT_EQ(transfers[part], zero < 2 ? 1 : (8 + dp - 1) / dp) << "part " << part;
            EXPECT_EQ(count, zero < 2 ? 1 : std::ssize(program.lanes)) << "part " << part;
          }
        }
      }
    }
  }
}

TEST(GradientSumsTest, MoreRanksThanLanesAreRefused) {
  try {
    build_program(small_llama(), over_ranks(8, 0, 4));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("parallel.dp = 8"));
    EXPECT_THAT(error.what(), HasSubstr("batch.lanes = 4"));
  }
}

TEST(ShardsTest, BlocksNeverStraddleWhatMayBeCut) {
  const model::ModelSpec spec = small_llama();
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const std::vector<SquaresRange> ranges = squares_ranges(spec, part);
    int64_t elements = 0;
    for (const SquaresRange& range : ranges) {
      EXPECT_EQ(range.first, elements);
      elements += range.elements;
    }
    for (const bool whole : {false, true}) {
      for (int64_t owners = 1; owners <= 9; ++owners) {
        const std::vector<int64_t> bounds = part_slices(spec, part, owners, whole);
        ASSERT_EQ(bounds.size(), static_cast<size_t>(owners) + 1);
        EXPECT_EQ(bounds.front(), 0);
        EXPECT_EQ(bounds.back(), elements);
        int64_t blocks = 0;
        for (size_t i = 0; i + 1 < bounds.size(); ++i) {
          EXPECT_LE(bounds[i], bounds[i + 1]);
          const BlockRange mine =
              blocks_of(ranges, bounds[i], bounds[i + 1]);  // throws if inside a block
          EXPECT_EQ(mine.first, blocks);
          blocks = mine.last;
        }
        if (!whole) continue;
        int64_t begin = 0;
        for (const model::ParameterSpec& parameter : spec.parameters) {
          if (parameter.part != part) continue;
          for (const int64_t bound : bounds) {
            const bool inside = bound > begin && bound < begin + parameter.numel();
            EXPECT_FALSE(parameter.is_product() && inside) << parameter.name;
          }
          begin += parameter.numel();
        }
      }
    }
  }
}

TEST(ShardsTest, TheSumOfSquaresDoesNotDependOnTheCut) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> magnitude(-40, 40);
  for (int64_t count = 1; count < 70; ++count) {
    std::vector<double> sums;
    for (int64_t i = 0; i < count; ++i) sums.push_back(std::exp2(magnitude(random)));
    const std::vector<cluster::LaneNode> all = squares_nodes({0, count}, count);
    ASSERT_EQ(all.size(), 1u);
    const double expected = sum_of_tree(all, sums_of_nodes(all, {0, count}, sums));
    for (int trial = 0; trial < 20; ++trial) {
      std::vector<cluster::LaneNode> nodes;
      std::vector<double> of_nodes;
      for (int64_t first = 0; first < count;) {
        const int64_t last = std::uniform_int_distribution<int64_t>(first + 1, count)(random);
        const BlockRange blocks{first, last};
        const auto mine = squares_nodes(blocks, count);
        nodes.insert(nodes.end(), mine.begin(), mine.end());
        const auto of_mine =
            sums_of_nodes(mine, blocks, {sums.begin() + first, sums.begin() + last});
        of_nodes.insert(of_nodes.end(), of_mine.begin(), of_mine.end());
        first = last;
      }
      EXPECT_EQ(sum_of_tree(nodes, of_nodes), expected);
    }
  }
}

}  // namespace
}  // namespace trireme::plan
