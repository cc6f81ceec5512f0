// Weights that ranks share (ZeRO 3), made whole outside of a step.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Makes parts whole for work that no program is about, as evaluation. Of a part that is whole anyway every call does nothing.
/// Thread-safety: one thread, not during a step. Ownership: borrows store and world. Collective over the ranks that share states:
/// all call begin() for the same parts in the same order; making one is collective over the world.
class WeightGather {
 public:
  WeightGather(nn::ParameterStore& store, const plan::Program& program, comm::World& world);

  bool gathers(int part) const { return store_.is_gathered(part); }
  /// Makes room and begins to fill it. Does not block.
  void begin(int part);
  /// Blocks, on devices that work in the host's time, until the part is whole. Throws Error{kDevice} if a rank is lost.
  void wait(int part);
  /// After wait().
  void drop(int part);

 private:
  nn::ParameterStore& store_;
  device::Device& device_;
  std::vector<std::vector<int64_t>> counts_;   ///< by part and rank: elements
  std::vector<int64_t> first_;                 ///< by part: this rank's first element
  std::unique_ptr<comm::Group> ranks_;         ///< null: nobody shares
  std::unique_ptr<comm::Group> expert_ranks_;  ///< of parts whose experts are spread
  std::vector<char> is_expert_part_;
  std::map<int, comm::Group::Pending> under_way_;
};

/// Fills a part that has room from the shares of all ranks of `group`: `counts` elements each, this rank's from `first` on.
comm::Group::Pending gather_weights(nn::ParameterStore& store, int part, comm::Group& group,
                                    const std::vector<int64_t>& counts, int64_t first,
                                    device::Queue& queue);

}  // namespace trireme::execute
