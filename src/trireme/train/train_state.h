// What a run saves and reads back so that continuing is the same as never having stopped.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/comm/group.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/optim/optimizer.h"

namespace trireme::train {

/// The counters of a run. With the tensors and the run file this is all of its state: the order of samples and the
/// learning rate are functions of them.
struct TrainState {
  int64_t step = 0;           ///< steps done
  int64_t tokens = 0;         ///< seen
  int64_t updates = 0;        ///< steps that were applied: the optimizer's own count
  int64_t micro_batches = 0;  ///< taken from the loader
  int64_t skips = 0;          ///< steps left out in a row
  std::string precision;      ///< that "auto" took
  /// By MoE layer: tokens of every expert in the last step, for balancing losses over the global batch.
  std::map<int, std::vector<int64_t>> expert_load;
  std::string data;  ///< fingerprints of the training and validation data
  std::string
      arithmetic;  ///< how products are computed and by which torch: other last bits elsewhere
};

Json to_json(const TrainState& state);
/// Error{kData} naming `origin` if a key is missing or of another type.
TrainState train_state_from_json(const Json& json, const std::string& origin);

/// A state tensor's name in a checkpoint.
std::string state_name(const optim::StateTensor& state);

/// Copies a checkpoint's tensors into store and optimizer, of a rank that shares them its share. Checksums are verified: a tensor's
/// by one of the ranks, so that a rank reads its share and 1/n of the bytes. Error{kData} naming a tensor that is damaged, on all
/// ranks, is missing or has another shape. Collective over the world. Blocks.
void restore(const checkpoint::Checkpoint& checkpoint, nn::ParameterStore& store,
             optim::Optimizer& optimizer, comm::World& world);

}  // namespace trireme::train
