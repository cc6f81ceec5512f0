// Small models, clusters and stacks at random, for tests of what must hold for all of them. Header only, for tests.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

class RandomRuns {
 public:
  explicit RandomRuns(unsigned seed) : random_(seed) {}

  template <typename T>
  T pick(const std::vector<T>& values) {
    return values[random_() % values.size()];
  }
  double between(double low, double high) {
    return low + (high - low) * std::uniform_real_distribution<double>()(random_);
  }
  bool coin() { return random_() % 2 == 0; }

  model::ModelSpec model() {
    const bool experts = random_() % 4 == 0;
    const std::string sizes = fmt::format(
        R"("vocab_size": {}, "hidden_size": {}, "intermediate_size": {}, "num_hidden_layers": {},
           "num_attention_heads": 8, "num_key_value_heads": {}, "max_position_embeddings": 512)",
        pick<int>({512, 4096, 32768}), pick<int>({64, 256, 1024}), pick<int>({128, 512, 4096}),
        pick<int>({2, 4, 6, 8}), pick<int>({2, 8}));
    if (!experts)
      return model::spec_from_config(R"({"model_type": "llama", )" + sizes + "}", "test");
    return model::spec_from_config(R"({"model_type": "mixtral", "num_local_experts": 4,
        "num_experts_per_tok": 2, )" + sizes +
                                       "}",
                                   "test");
  }

  /// With rates anywhere from those of a laptop to those of a data center.
  ClusterSpec cluster() {
    ClusterSpec cluster = shipped_profiles().cluster(
        pick<std::string>({"dgx-h100", "a100-pcie", "jean-zay", "sim", "nanotron-h100"}));
    for (auto& [type, peak] : cluster.device.peak_flops) peak *= between(0.01, 2.0);
    cluster.device.memory_bytes_per_s *= between(0.1, 2.0);
    cluster.device.kernel_gap_s *= between(0.0, 2.0);
    for (LinkProfile& link : cluster.node.links) link.bytes_per_s *= between(0.01, 2.0);
    cluster.network.link.bytes_per_s *= between(0.01, 2.0);
    cluster.network.link.latency_s *= between(0.0, 2.0);
    cluster.node.accelerators = pick<int>({1, 2, 4, 8});
    return cluster;
  }

  StackProfile stack() {
    StackProfile stack = shipped_profiles().stack(
        pick<std::string>({"trireme", "megatron-core", "torchtitan", "nanotron"}));
    stack.overlap_gradients = coin();
    stack.overlap_parameters = coin();
    stack.overlap_send = coin();
    stack.sums_in_transfer = coin();
    return stack;
  }

  std::mt19937& generator() { return random_; }

 private:
  std::mt19937 random_;
};

}  // namespace trireme::plan
