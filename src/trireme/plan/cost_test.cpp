// Expected times by hand, from the profile's numbers.
#include "trireme/plan/cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme::plan {
namespace {

using cluster::Dimension;

// Eight accelerators a node, 100 GB/s inside and 10 GB/s between, no latency, all shares 1.
ClusterSpec plain_cluster() {
  ClusterSpec cluster;
  cluster.device.name = "plain";
  cluster.device.peak_flops = {{ComputeType::kBf16, 1e14}, {ComputeType::kFp8, 2e14}};
  cluster.device.gemm_efficiency = {{ComputeType::kBf16, 0.5}, {ComputeType::kFp8, 0.5}};
  cluster.device.memory_bytes_per_s = 1e12;
  cluster.device.memory_efficiency = 0.5;
  cluster.device.units = 4;
  cluster.device.half_k = 0.0;
  cluster.device.kernel_gap_s = 1e-6;
  LinkProfile link{0, 1e11, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0};
  cluster.node.links = {link};
  link.bytes_per_s = 1e10;
  cluster.network.link = link;
  return cluster;
}

model::ModelSpec tiny() {
  return model::spec_from_config(R"({"model_type": "llama", "vocab_size": 1024, "hidden_size": 256,
      "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 4, "max_position_embeddings": 128})",
                                 "test");
}

class CostTest : public ::testing::Test {
 protected:
  CostModel model() const {
    return CostModel(spec_, strategy_, sharding_, stack_, cluster_, tables_, factors_);
  }
  model::ModelSpec spec_ = tiny();
  Strategy strategy_ = [] {
    Strategy strategy;
    strategy.precision = Precision::kBf16;
    strategy.seq_len = 128;
    return strategy;
  }();
  ShardingOptions sharding_;
  StackProfile stack_;
  ClusterSpec cluster_ = plain_cluster();
  EfficiencyTables tables_;
  CostFactors factors_;
};

TEST_F(CostTest, AProductThatFillsItsTilesRunsAtTheDevicesShareOfThePeak) {
  // Four tiles of 128 x 128 on four processors: 2 x 256 x 256 x 512 operations at 0.5 x 1e14, which memory does not slow down.
  const ProductShape shape{ProductUse::kForward, 1.0, 256.0, 256.0, 51200.0};
  cluster_.device.memory_bytes_per_s = 1e15;
  EXPECT_NEAR(model().product(shape, ComputeType::kBf16), shape.flops() / 5e13 + 1e-6, 1e-12);
}

TEST_F(CostTest, AFifthTileTakesAnotherWave) {
  cluster_.device.memory_bytes_per_s = 1e15;
  const double four =
      model().product({ProductUse::kForward, 1.0, 128.0, 512.0, 512.0}, ComputeType::kBf16);
  const double five =
      model().product({ProductUse::kForward, 1.0, 128.0, 640.0, 512.0}, ComputeType::kBf16);
  EXPECT_NEAR((five - 1e-6) / (four - 1e-6), 2.0, 1e-9);
}

TEST_F(CostTest, AMeasuredShapeCountsAsItIsAndItsNeighboursGoAlong) {
  const ProductShape shape{ProductUse::kForward, 1.0, 4096.0, 4096.0, 4096.0};
  tables_.products = {{shape, 0.25}};
  cluster_.device.memory_bytes_per_s = 1e15;
  EXPECT_NEAR(model().product(shape, ComputeType::kBf16), shape.flops() / 2.5e13 + 1e-6, 1e-12);
  ProductShape near = shape;
  near.n = 4224.0;
  const double rate = near.flops() / (model().product(near, ComputeType::kBf16) - 1e-6);
  EXPECT_GT(rate, 2.4e13);
  EXPECT_LT(rate, 3.0e13);
}

TEST_F(CostTest, MemoryBoundWorkMovesItsBytes) {
  EXPECT_NEAR(model().memory(1e9, 2.0), 1e9 / 5e11 + 2e-6, 1e-15);
}

TEST_F(CostTest, ARingMovesAllButAShareOnce) {
  strategy_.parallel.tp = 4;
  // (n - 1) / n of the tensor over 100 GB/s, twice for an all-reduce.
  EXPECT_NEAR(model().collective(Collective::kAllGather, 4e9, Dimension::kTensor), 0.03, 1e-12);
  EXPECT_NEAR(model().collective(Collective::kAllReduce, 4e9, Dimension::kTensor), 0.06, 1e-12);
  EXPECT_EQ(model().collective(Collective::kAllReduce, 4e9, Dimension::kContext), 0.0);
}

TEST_F(CostTest, AGroupOfWholeNodesUsesAllItsAdapters) {
  strategy_.parallel.dp = 16;
  // Two nodes of eight: half of 16 GB over eight adapters of 10 GB/s, slower than 15/16 of it over 100 GB/s inside.
  EXPECT_NEAR(model().collective(Collective::kAllGather, 16e9, Dimension::kDataContext),
              std::max(8e9 / 8e10, 15e9 / 1e11), 1e-12);
  strategy_.parallel.dp = 2;
  strategy_.parallel.tp = 8;
  // One member a node: its own adapter alone.
  EXPECT_NEAR(model().collective(Collective::kAllGather, 16e9, Dimension::kDataContext), 0.8,
              1e-12);
}

TEST_F(CostTest, GroupsThatCrossABridgeShareIt) {
  strategy_.parallel.dp = 2;
  strategy_.parallel.tp = 4;
  cluster_.node.bridge_span = 4;
  cluster_.node.bridge_bytes_per_s = 4e9;
  // Pairs of places 0 and 4, ..., 3 and 7: four groups at once, 1 GB/s each.
  EXPECT_NEAR(model().collective(Collective::kAllGather, 2e9, Dimension::kDataContext), 1.0, 1e-12);
}

TEST_F(CostTest, TensorParallelRanksShareProductsAndExchangeHiddenStates) {
  const InstructionCost whole = model().of(1, OpKind::kForward);
  EXPECT_EQ(whole.exposed_transfer_s, 0.0);
  strategy_.parallel.tp = 2;
  CostModel shared = model();
  const InstructionCost& half = shared.of(1, OpKind::kForward);
  // A gather and a scatter of 128 tokens x 256 x 2 bytes, half of each over 100 GB/s.
  EXPECT_NEAR(half.exposed_transfer_s, 2.0 * 65536.0 / 2.0 / 1e11, 1e-15);
  EXPECT_NEAR(half.sent_bytes.at(Dimension::kTensor), 65536.0, 1e-9);
}

TEST_F(CostTest, AHostThatIsLateHoldsTheDeviceUp) {
  stack_.host_part_s = 1.0;
  CostModel late = model();
  EXPECT_NEAR(late.of(1, OpKind::kForward).seconds, 1.0, 1e-12);
  EXPECT_NEAR(late.of(1, OpKind::kBackwardInput).seconds, 0.5, 1e-12);
}

TEST_F(CostTest, AHostThatDrivesTheNetworkTooTakesLongerForACollective) {
  stack_.host_crossing_s = 1.0;
  strategy_.parallel.tp = 2;
  strategy_.parallel.dp = 4;
  EXPECT_LT(model().of(1, OpKind::kForward).seconds, 0.1);  // one node
  strategy_.parallel.dp = 8;
  // A gather and a scatter of two members each, inside nodes.
  EXPECT_NEAR(model().of(1, OpKind::kForward).seconds, 4.0, 1e-9);
  strategy_.parallel.tp = 16;
  strategy_.parallel.dp = 1;
  cluster_.network.link.latency_s = 0.25;
  // Of sixteen each, on two nodes: a hop of the network too.
  EXPECT_NEAR(model().of(1, OpKind::kForward).seconds, 2.0 * (16.0 + 0.25), 1e-9);
}

TEST_F(CostTest, SelectiveRecomputationRunsAttentionsCoreAgain) {
  stack_.attention = AttentionKernel::kUnfused;
  const InstructionCost once = model().of(1, OpKind::kBackwardInput);
  strategy_.recompute.assign(spec_.parts.size(), Recompute::kSelective);
  const InstructionCost again = model().of(1, OpKind::kBackwardInput);
  strategy_.recompute.clear();
  // Two products more of every head and a pass over the scores: what a forward has beyond its projections.
  stack_.attention = AttentionKernel::kFlash;
  const double projections = model().of(1, OpKind::kForward).products_s;
  stack_.attention = AttentionKernel::kUnfused;
  const double core = model().of(1, OpKind::kForward).products_s - projections;
  EXPECT_NEAR(again.products_s - once.products_s, core, 1e-12);
  EXPECT_GT(again.memory_s, once.memory_s);
}

TEST_F(CostTest, ExpertsSpreadOverRanksKeepTheirRows) {
  const model::ModelSpec moe = model::spec_from_preset("trireme-moe");
  strategy_.parallel.dp = 4;
  double rows = 0.0;
  for (const int64_t ep : {1, 4}) {
    strategy_.parallel.ep = ep;
    for (const Operation& operation :
         part_operations(moe, strategy_, sharding_, stack_, 4, OpKind::kForward)) {
      if (operation.kind != WorkKind::kProduct) continue;
      const double now = operation.product.groups * operation.product.m;
      if (rows > 0.0) {
        EXPECT_NEAR(now, rows, 1e-9);
      }
      rows = now;
    }
  }
  EXPECT_GT(rows, 0.0);
}

}  // namespace
}  // namespace trireme::plan
