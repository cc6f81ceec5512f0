// The state of a run that ranks share, put together for checkpoints and exports, and taken apart again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/comm/group.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/optim/optimizer.h"

namespace trireme::train {

/// Whole flat tensors of parts, laid out as the whole model's. Of parts that do not come to this rank, undefined.
struct WholeState {
  std::vector<at::Tensor> masters;                   ///< by part, float32
  std::vector<std::vector<at::Tensor>> part_states;  ///< by part, as Optimizer::part_states()
};

/// Brings the shares of a run's ranks together, part by part, on the CPU; where the rank that they come to has all of a part, it is
/// the part's own tensor. Ownership: borrows all but the configuration. Collective over the world: all ranks make it, and
/// call it alike. Blocks.
class StateGather {
 public:
  /// `whole`: the model of which the store has a rank's part.
  StateGather(const model::ModelSpec& whole, const nn::ParameterStore& store,
              optim::OptimizerConfig config, const optim::Optimizer& optimizer, comm::World& world);
  WholeState masters();             ///< all on rank 0
  WholeState masters_and_states();  ///< each part on its part_writers()
  /// By part: the rank that has some of it and writes it to checkpoints, so that all write about as much.
  const std::vector<int>& part_writers() const { return writers_; }

 private:
  /// What ranks have that hold the same stretches of a part's parameters, or all of them.
  struct Holders {
    std::vector<int> ranks;  ///< ascending
    std::vector<int64_t>
        firsts;  ///< by parameter of the part: where its stretch begins; 0: at the begin. Then the tensor parallel place
  };

  at::Tensor gather(const at::Tensor& share, size_t which, const Holders& holders, int to);
  at::Tensor masters_of(int part, int to);
  std::vector<at::Tensor> states_of(int part, int to);
  std::vector<int> choose_writers() const;
  /// The store's spec as those ranks have it, for the parameters of a part.
  model::ModelSpec spec_of(int part, const Holders& holders) const;

  const model::ModelSpec& whole_;
  const nn::ParameterStore& store_;
  const optim::OptimizerConfig config_;
  const optim::Optimizer& optimizer_;
  comm::World& world_;
  device::Device& device_;
  std::unique_ptr<comm::Group> ranks_;  ///< from the first share on
  std::vector<std::vector<int64_t>>
      counts_;  ///< by share (a part's masters, first and second states), by rank: elements
  std::vector<std::vector<Holders>> holders_;  ///< by part; one of a part that is not cut
  std::vector<int> writers_;
};

/// Views with parameters' shapes: of masters alone, and of all that a checkpoint holds. Of parts that came to this rank. `spec` is the
/// whole model's.
std::vector<checkpoint::NamedTensor> parameter_tensors(const model::ModelSpec& spec,
                                                       const WholeState& whole);
std::vector<checkpoint::NamedTensor> state_tensors(const model::ModelSpec& spec,
                                                   const optim::OptimizerConfig& config,
                                                   const WholeState& whole);

}  // namespace trireme::train
