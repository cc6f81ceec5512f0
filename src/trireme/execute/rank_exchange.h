// What the ranks of a step tell each other: issues communication instructions, keeps what is under way, and adds an owner's
// pieces. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/plan/program.h"
#include "trireme/plan/trace.h"

namespace trireme::execute {

/// Lives from step to step; begin_step() forgets the step before. Thread-safety: the step thread only. Ownership: borrows world
/// and store. Blocking: issuing does not; wait() may.
class RankExchange {
 public:
  RankExchange(comm::World& world, nn::ParameterStore& store);

  /// Collective over the world the first time, when it makes the program's groups. The program outlives the step.
  void begin_step(const plan::Program& program);

  /// Every rank of the group's `in`, `counts[r]` elements of rank r, one after the other in `out`.
  void all_gather(const plan::Instruction& instruction, const at::Tensor& out,
                  const std::vector<int64_t>& counts, const at::Tensor& in);
  /// `in_counts[r]` elements of `in` to rank r, `out_counts[r]` of `out` from it.
  void all_to_all(const plan::Instruction& instruction, const at::Tensor& out,
                  const std::vector<int64_t>& out_counts, const at::Tensor& in,
                  const std::vector<int64_t>& in_counts);

  void count_targets(const plan::Instruction& instruction, const std::vector<int64_t>& mine);
  /// Sums over the ranks that have the first part, each of which has other micro-batches; after wait().
  std::vector<int64_t> counted() const;

  /// `accumulator` gives the flat gradient of a lane, or of a group of lanes by its first.
  void reduce_gradients(const plan::Instruction& instruction,
                        const std::function<at::Tensor(int64_t lane)>& accumulator);
  /// After wait() for the pieces.
  void combine_pieces(const plan::Instruction& instruction);
  /// This rank's slice of a part's gradient: over its block's lanes once every piece is combined, over all once replicas are.
  at::Tensor slice(int part) const;
  void drop_slice(int part) { sums_.at(static_cast<size_t>(part)).clear(); }
  void drop_replica_slice(int part) { replica_sums_.at(static_cast<size_t>(part)).clear(); }
  void gather_gradients(const plan::Instruction& instruction, const at::Tensor& whole);
  /// Owners have new weights: the next step gathers them, or gather_now().
  void owe_weights();
  /// A part that is gathered for its use, into the room that was made for it; of another what is owed of it.
  void gather_parameters(const plan::Instruction& instruction);
  /// Collective over the ranks that share states. All weights are whole afterwards. Blocks where a transfer does.
  void gather_now();

  void send(const plan::Instruction& instruction, const at::Tensor& tensor);
  /// A part's hidden state, or its gradient: [micro, seq_len, hidden] in the compute dtype, filled after wait().
  at::Tensor receive(const plan::Instruction& instruction);

  /// For exchanges that others make: the group of an instruction of this rank, and what was issued for it.
  comm::Group& group(const plan::Instruction& instruction);
  void issued(const plan::Instruction& instruction, comm::Group::Pending work);
  at::Tensor empty_compute(int64_t elements) const;  ///< in the compute dtype, on the device

  void reduce_figures(const plan::Instruction& instruction, const std::vector<double>& mine);
  std::vector<double> figures() const;  ///< of all ranks; after wait()

  /// Throws Error{kDevice} if a rank is lost: nothing computes for long without asking.
  void check() { world_.check(); }
  /// Work issued to `queue` from now on sees what the instruction brought; a second wait does nothing. Throws Error{kDevice}.
  void wait(int instruction, device::Queue& queue);
  /// When transfers ran, by instruction, in place of when they were issued: they run beside the queues. Seconds since `begin_s`, on
  /// steady_clock(); nothing where the device has a clock of its own.
  void place_times(double begin_s, std::vector<plan::Measurement>& measurements) const;

 private:
  using Sum = std::pair<cluster::LaneNode, at::Tensor>;
  /// A part whose weights are new in its owners' slices alone.
  struct Owed {
    int group;
    std::vector<int64_t> bounds;  ///< of the slices
    size_t mine;
    bool masters_are_shared;  ///< what everybody has whole is the compute copy
  };

  /// What the members of the instruction's group own of what it sends, in elements, and which of them is this rank's.
  struct Owners {
    std::vector<int64_t> sizes;
    size_t mine;
  };
  Owners owners(const plan::Instruction& instruction) const;
  /// Of all lanes that are added up before replicas' sums are.
  cluster::LaneNode whole_node() const;
  void add(at::Tensor& left, const at::Tensor& right) const;
  comm::Group::Pending gather(int part, const Owed& owed);

  comm::World& world_;
  nn::ParameterStore& store_;
  device::Device& device_;
  const bool on_device_;  ///< it works while the host goes on
  const plan::Program* program_ = nullptr;
  std::vector<std::vector<int>> members_;  ///< of groups_
  std::vector<std::unique_ptr<comm::Group>> groups_;
  std::map<int, std::vector<comm::Group::Pending>> under_way_;  ///< by instruction
  std::map<int, std::pair<double, double>> times_;
  std::map<std::pair<int, int64_t>, std::vector<Sum>> pieces_;  ///< by part and first lane
  std::vector<std::vector<Sum>> sums_;                          ///< by part: of this rank's slice
  std::vector<std::vector<Sum>>
      replica_sums_;          ///< by part: of what it adds up of its slice for its replicas
  std::map<int, Owed> owed_;  ///< by part
  std::map<int, bool>
      refreshes_;  ///< by gather under way: whether the compute copy follows from it
  at::Tensor counts_;
  at::Tensor figures_;
};

}  // namespace trireme::execute
