#include "trireme/execute/weight_gather.h"

#include "trireme/cluster/mesh.h"

namespace trireme::execute {

comm::Group::Pending gather_weights(nn::ParameterStore& store, int part, comm::Group& group,
                                    const std::vector<int64_t>& counts, int64_t first,
                                    device::Queue& queue) {
  store.refresh_compute(part);  // this rank's share, in its place
  const at::Tensor& whole = store.part_compute(part);
  return group.all_gather(whole, counts,
                          whole.narrow(0, first, counts[static_cast<size_t>(group.rank())]), queue);
}

WeightGather::WeightGather(nn::ParameterStore& store, const plan::Program& program,
                           comm::World& world)
    : store_(store), device_(device::get_device(store.device().str())) {
  for (const std::vector<int64_t>& bounds : program.slices) {
    std::vector<int64_t>& counts = counts_.emplace_back();
    for (size_t i = 0; i + 1 < bounds.size(); ++i) counts.push_back(bounds[i + 1] - bounds[i]);
    const auto part = static_cast<int>(first_.size());
    first_.push_back(bounds[static_cast<size_t>(program.slice_of(part))]);
    is_expert_part_.push_back(program.spreads(part));
  }
  if (program.strategy.parallel.zero < 3) return;
  const cluster::Mesh mesh(plan::mesh_shape(program.strategy.parallel));
  const auto make = [&](cluster::Dimension dimension, std::unique_ptr<comm::Group>& ranks) {
    for (const std::vector<int>& members : mesh.groups(dimension)) {
      if (members.size() == 1) continue;
      if (auto group = world.make_group(members, device_)) ranks = std::move(group);
    }
  };
  make(cluster::Dimension::kShard, ranks_);
  if (program.strategy.parallel.ep > 1) make(cluster::Dimension::kExpertData, expert_ranks_);
}

void WeightGather::begin(int part) {
  if (!gathers(part)) return;
  store_.make_room(part);
  const auto at = static_cast<size_t>(part);
  under_way_[part] =
      gather_weights(store_, part, is_expert_part_[at] != 0 ? *expert_ranks_ : *ranks_, counts_[at],
                     first_[at], device_.compute_queue());
}

void WeightGather::wait(int part) {
  const auto found = under_way_.extract(part);
  if (!found.empty()) found.mapped()->wait(device_.compute_queue());
}

void WeightGather::drop(int part) {
  if (gathers(part)) store_.drop(part);
}

}  // namespace trireme::execute
