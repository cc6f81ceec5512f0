// The state of a run that ranks share, put together for checkpoints and exports, and taken apart again.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/comm/group.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/optim/optimizer.h"

namespace trireme::train {

/// Whole flat tensors of every part. On ranks that others' shares do not come to, undefined.
struct WholeState {
  std::vector<at::Tensor> masters;                   ///< by part, float32
  std::vector<std::vector<at::Tensor>> part_states;  ///< by part, as Optimizer::part_states()
};

/// Brings the shares of a run's ranks together on rank 0, on the CPU; where rank 0 has all of a part, it is
/// the part's own tensor. Ownership: borrows all three. Collective over the world: all ranks make it, and
/// call it alike. Blocks.
class StateGather {
 public:
  StateGather(const nn::ParameterStore& store, const optim::Optimizer& optimizer,
              comm::World& world);
  WholeState masters();
  WholeState masters_and_states();

 private:
  at::Tensor gather(const at::Tensor& share, size_t which);

  const nn::ParameterStore& store_;
  const optim::Optimizer& optimizer_;
  comm::World& world_;
  device::Device& device_;
  std::unique_ptr<comm::Group> ranks_;  ///< from the first share on
  std::vector<std::vector<int64_t>>
      counts_;  ///< by share (a part's masters, first and second states), by rank: elements
};

/// Views with parameters' shapes: of masters alone, and of all that a checkpoint holds.
std::vector<checkpoint::NamedTensor> parameter_tensors(const nn::ParameterStore& store,
                                                       const WholeState& whole);
std::vector<checkpoint::NamedTensor> state_tensors(const nn::ParameterStore& store,
                                                   const optim::OptimizerConfig& config,
                                                   const WholeState& whole);

}  // namespace trireme::train
