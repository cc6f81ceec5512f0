#include "trireme/plan/gradient_sums.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/cluster/lane_tree.h"
#include "trireme/cluster/slices.h"
#include "trireme/plan/absent_lanes.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/shards.h"
#include "trireme/plan/tensor_share.h"

namespace trireme::plan {

namespace {

/// Parts whose shared gradients are under way while the backward pass goes on.
constexpr size_t kSharedInFlight = 1;

/// Transfers that run while the backward pass goes on: pieces are added so many parts later.
constexpr size_t kPartsInFlight = 2;

int group_index(const Program& program, const std::vector<int>& members) {
  const auto found = std::ranges::find(program.groups, members);
  TRIREME_CHECK(found != program.groups.end(), "a group of {} ranks is not in the program",
                members.size());
  return static_cast<int>(found - program.groups.begin());
}

}  // namespace

std::vector<int64_t> lanes_of(const Strategy& strategy, int64_t index, int64_t ranks) {
  std::vector<int64_t> lanes;
  if (strategy.parallel.zero >= 2 || strategy.parallel.cp > 1) {
    // Blocks of ranks that share states have contiguous lanes.
    const int64_t block = strategy.parallel.shard > 0 ? strategy.parallel.shard : ranks;
    const cluster::LaneRange range =
        cluster::lane_range(index / block, ranks / block, strategy.lanes);
    for (int64_t lane = range.first + index % block; lane < range.last; lane += block)
      lanes.push_back(lane);
    return lanes;
  }
  const cluster::LaneRange range = cluster::lane_range(index, ranks, strategy.lanes);
  for (int64_t lane = range.first; lane < range.last; ++lane) lanes.push_back(lane);
  return lanes;
}

std::vector<int64_t> leaves_of(const Strategy& strategy, int64_t index, int64_t ranks,
                               int64_t context) {
  std::vector<int64_t> leaves = lanes_of(strategy, index, ranks);
  for (int64_t& lane : leaves) lane = lane * strategy.parallel.cp + context;
  return leaves;
}

GradientSums::GradientSums(const model::ModelSpec& spec, ProgramWriter& writer, int rank)
    : spec_(spec),
      writer_(writer),
      strategy_(writer.program().strategy),
      num_parts_(static_cast<int>(spec.parts.size())),
      accumulators_(spec.parts.size()),
      slices_(spec.parts.size()),
      held_(spec.parts.size()) {
  has_parameters_.assign(spec.parts.size(), 0);
  Program& program = writer_.program();
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (program.has(parameter.part)) has_parameters_[static_cast<size_t>(parameter.part)] = 1;
  }
  program.rank = rank;
  const cluster::Mesh mesh(mesh_shape(strategy_.parallel));
  owners_.count = mesh.group_size(cluster::Dimension::kShard);
  replicas_ = mesh.group_size(cluster::Dimension::kReplicate);
  program.slice = mesh.index_in_group(cluster::Dimension::kShard, rank);
  program.replica = mesh.index_in_group(cluster::Dimension::kReplicate, rank);
  block_ = program.block_lanes();
  replica_sums_.assign(spec.parts.size(), kNone);
  program.context = mesh.coordinates(rank).cp;
  program.lanes = lanes_with_absent(strategy_, mesh.index_in_group(cluster::Dimension::kData, rank),
                                    mesh.group_size(cluster::Dimension::kData));
  for (int64_t& lane : program.lanes) lane = lane * strategy_.parallel.cp + program.context;
  for (std::vector<int>& of_part : accumulators_)
    of_part.resize(static_cast<size_t>(std::max(strategy_.leaves(), program.lanes.back() + 1)),
                   kNone);
  for (int64_t i = 0; i < owners_.count; ++i) {
    const int64_t cp = strategy_.parallel.cp;
    owners_.lanes.push_back(leaves_of(strategy_, (program.replica * owners_.count + i) / cp,
                                      strategy_.parallel.dp, i % cp));
  }
  if (mesh.shape().ep > 1) spread_experts(mesh, rank);
  for (int part = 0; part < num_parts_; ++part) {
    program.slices.push_back(part_slices(spec, part, owners(part).count, strategy_.whole_matrices));
    program.squares.push_back(squares_ranges(spec, part));
    if (replicas_ == 1) continue;
    const std::vector<int64_t>& bounds = program.slices.back();
    const auto mine = static_cast<size_t>(program.slice);
    program.replica_slices.push_back(
        cluster::slice_bounds(bounds[mine + 1] - bounds[mine], replicas_, kSquaresBlock));
  }
  if (mesh.size() > 1) find_groups(mesh, rank);
}

void GradientSums::spread_experts(const cluster::Mesh& mesh, int rank) {
  Program& program = writer_.program();
  const int ep = mesh.shape().ep;
  expert_owners_.count = mesh.expert_data_size();
  program.expert_slice = mesh.index_in_group(cluster::Dimension::kExpertData, rank);
  // Each round has one lane of every rank whose tokens come here.
  for (int i = 0; i < expert_owners_.count; ++i) {
    std::vector<int64_t>& lanes = expert_owners_.lanes.emplace_back();
    std::vector<std::vector<int64_t>> sources;
    sources.reserve(static_cast<size_t>(ep));
    for (int source = 0; source < ep; ++source) {
      // Of the ranks of a stage, those that share sequences are next to one another.
      const int64_t rank = int64_t{i} * ep + source;
      const int64_t cp = strategy_.parallel.cp;
      sources.push_back(leaves_of(strategy_, rank / cp, strategy_.parallel.dp, rank % cp));
    }
    for (size_t round = 0; round < sources.front().size(); ++round) {
      for (const std::vector<int64_t>& source : sources) lanes.push_back(source.at(round));
    }
  }
  program.expert_lanes = expert_owners_.lanes[static_cast<size_t>(program.expert_slice)];
  const model::ModelSpec whole = whole_spec(spec_);
  for (int part = 0; part < num_parts_; ++part) {
    const bool spread = spec_.parts[static_cast<size_t>(part)].kind == model::PartKind::kExperts;
    program.is_expert_part.push_back(spread ? 1 : 0);
    program.whole_squares.push_back(spread ? squares_ranges(whole, part)
                                           : std::vector<SquaresRange>{});
  }
}

void GradientSums::find_groups(const cluster::Mesh& mesh, int rank) {
  Program& program = writer_.program();
  std::vector<int> world(static_cast<size_t>(mesh.size()));
  std::iota(world.begin(), world.end(), 0);
  program.groups.push_back(world);
  for (const cluster::Dimension dimension :
       {cluster::Dimension::kShard, cluster::Dimension::kReplicate, cluster::Dimension::kPipeline,
        cluster::Dimension::kExpert, cluster::Dimension::kExpertData}) {
    const bool of_experts =
        dimension == cluster::Dimension::kExpert || dimension == cluster::Dimension::kExpertData;
    if (of_experts && mesh.shape().ep == 1) continue;
    for (const std::vector<int>& group : mesh.groups(dimension)) {
      if (group.size() > 1 && std::ranges::find(program.groups, group) == program.groups.end())
        program.groups.push_back(group);
    }
  }
  const auto index = [&](cluster::Dimension dimension) {
    return mesh.group_size(dimension) > 1 ? group_index(program, mesh.group(dimension, rank)) : -1;
  };
  world_group_ = group_index(program, world);
  owners_.group = index(cluster::Dimension::kShard);
  replica_group_ = index(cluster::Dimension::kReplicate);
  find_tensor_groups(mesh);
  if (mesh.shape().cp > 1) {
    // Of their own, also where other transfers have the same members: those would wait for one another.
    const std::vector<std::vector<int>> contexts = mesh.groups(cluster::Dimension::kContext);
    const std::vector<int> mine = mesh.group(cluster::Dimension::kContext, rank);
    context_group_ = static_cast<int>(program.groups.size() +
                                      (std::ranges::find(contexts, mine) - contexts.begin()));
    program.groups.insert(program.groups.end(), contexts.begin(), contexts.end());
  }
  pipeline_group_ = index(cluster::Dimension::kPipeline);
  if (mesh.shape().ep == 1) return;
  expert_group_ = index(cluster::Dimension::kExpert);
  expert_owners_.group = index(cluster::Dimension::kExpertData);
}

std::vector<int> GradientSums::owner_groups() const {
  std::vector<int> groups;
  groups.reserve(static_cast<size_t>(num_parts_));
  for (int part = 0; part < num_parts_; ++part) groups.push_back(owners(part).group);
  return groups;
}

void GradientSums::find_tensor_groups(const cluster::Mesh& mesh) {
  if (!spec_.tensor.is_cut()) return;
  Program& program = writer_.program();
  std::vector<int64_t> holders = {spec_.tensor.ranks};
  for (int parameter = 0; parameter < static_cast<int>(spec_.parameters.size()); ++parameter) {
    const int64_t count = tensor_holders(spec_, parameter);
    if (count > 1 && std::ranges::find(holders, count) == holders.end()) holders.push_back(count);
  }
  std::ranges::sort(holders, std::greater<>());
  for (const int64_t count : holders) {
    for (const std::vector<int>& ranks : mesh.groups(cluster::Dimension::kTensor)) {
      for (size_t first = 0; first < ranks.size(); first += static_cast<size_t>(count)) {
        const std::vector<int> group(ranks.begin() + static_cast<std::ptrdiff_t>(first),
                                     ranks.begin() + static_cast<std::ptrdiff_t>(first) + count);
        if (std::ranges::find(program.groups, group) == program.groups.end())
          program.groups.push_back(group);
        if (std::ranges::find(group, program.rank) != group.end())
          holder_groups_[count] = group_index(program, group);
      }
    }
  }
  tensor_group_ = holder_groups_.at(spec_.tensor.ranks);
}

int GradientSums::count_targets() {
  if (world_group_ < 0) return kNone;
  Instruction& count = writer_.begin(OpKind::kCountTargets, kNone, kNone, kNone);
  count.resource = Resource::kCommunication;
  count.group = world_group_;
  return counted_ = writer_.current();
}

void GradientSums::gather_weights() {
  gathered_.assign(spec_.parts.size(), kNone);
  if (strategy_.parallel.zero == 0) return;
  for (int part = 0; part < num_parts_; ++part) {
    if (owners(part).count == 1 || !has_parameters(part) || gathers_for_use(spec_, strategy_, part))
      continue;
    Instruction& gather = writer_.begin(OpKind::kGatherParameters, part, kNone, kNone);
    gather.resource = Resource::kCommunication;
    gather.group = owners(part).group;
    gathered_[static_cast<size_t>(part)] = writer_.current();
  }
}

int GradientSums::take_gather(int part) {
  return std::exchange(gathered_[static_cast<size_t>(part)], kNone);
}

void GradientSums::accumulate(int64_t lane, int part) {
  // Nothing comes of an absent lane: who reads what the others have added waits for them.
  const Program& program = writer_.program();
  if (lane >= strategy_.leaves() && program.accumulator_of(part, lane) != lane) return;
  int& buffer = accumulator(part, lane);
  if (buffer != kNone) {
    writer_.write(buffer);
    return;
  }
  buffer = writer_.new_buffer(BufferKind::kParameterGradient, part, kNone,
                              writer_.program().accumulator_of(part, lane),
                              parameter_gradient_bytes(spec_, part));
  writer_.make(buffer);
}

void GradientSums::lane_done(int part, int64_t lane) {
  // One accumulator of several lanes is complete with the last of them.
  const std::vector<int64_t>& lanes = lanes_of_part(part);
  const bool is_one = writer_.program().accumulator_of(part, lanes.back()) == lanes.front();
  if (is_one && lane != lanes.back()) return;
  if (tensor_group_ < 0) {
    complete(part, lane);
  } else {
    share(part, lane);
  }
}

void GradientSums::share(int part, int64_t lane) {
  Shared shared{part, lane, {}};
  // Of a lane that others alone have there is nothing to add.
  const bool is_here = writer_.program().accumulator_of(part, lane) < strategy_.leaves();
  for (const auto& [holders, group] : holder_groups_) {
    const int64_t elements = num_shared_gradients(spec_, part, holders);
    if (elements == 0 || !is_here) continue;
    const int buffer =
        writer_.new_buffer(BufferKind::kSharedGradients, part, kNone, lane,
                           tensor_bytes(4 * elements) + tensor_bytes(4 * elements * holders));
    Instruction& instruction = writer_.begin(OpKind::kShareGradients, part, kNone, lane);
    instruction.resource = Resource::kCommunication;
    instruction.group = group;
    writer_.read(accumulator(part, lane));
    writer_.make(buffer);
    shared.buffers.push_back(buffer);
  }
  shared_.push_back(std::move(shared));
  while (shared_.size() > kSharedInFlight) add_oldest_shares();
}

void GradientSums::add_oldest_shares() {
  const Shared shared = std::move(shared_.front());
  shared_.pop_front();
  if (!shared.buffers.empty()) {
    writer_.begin(OpKind::kAddShares, shared.part, kNone, shared.lane);
    for (const int buffer : shared.buffers) writer_.read(buffer);
    writer_.write(accumulator(shared.part, shared.lane));
  }
  complete(shared.part, shared.lane);
}

void GradientSums::complete(int part, int64_t lane) {
  const std::vector<int64_t>& lanes = lanes_of_part(part);
  const Owners& owners = this->owners(part);
  std::vector<int>& buffers = accumulators_[static_cast<size_t>(part)];
  const bool in_transport = writer_.program().adds_in_transport(part);
  if (in_transport && !sends_by_lane(owners)) {
    reduce(part, one_of_each(owners), {accumulator(part, lane)}, true);
    return;
  }
  if (lane == lanes.front()) order_.push_back(part);
  if (sends_by_lane(owners)) {
    const auto round = static_cast<size_t>(std::ranges::find(lanes, lane) - lanes.begin());
    std::vector<int> sources;
    if (lane < strategy_.leaves()) sources.push_back(buffers[static_cast<size_t>(lane)]);
    reduce(part, round_of_lane(part, round), std::move(sources), round + 1 >= num_rounds(owners));
    return;
  }
  if (lane < strategy_.leaves()) combine_lanes(part, lane);
  if (owners.count == 1 || lane != lanes.back()) return;
  std::vector<Piece> pieces;
  std::vector<int> sources;
  for (int from = 0; from < owners.count; ++from) {
    // Contiguous, in whatever order.
    const auto [first, last] = std::ranges::minmax(owners.lanes[static_cast<size_t>(from)]);
    for (const cluster::LaneNode& node : cluster::cover(first, last + 1)) {
      pieces.push_back({node, from});
      if (from == slice_in(part)) sources.push_back(buffers[static_cast<size_t>(node.first)]);
    }
  }
  reduce(part, std::move(pieces), std::move(sources), true);
}

size_t GradientSums::num_rounds(const Owners& owners) {
  size_t most = 0;
  for (const std::vector<int64_t>& lanes : owners.lanes) most = std::max(most, lanes.size());
  return most;
}

// Carries like a binary counter: after lane 0 b...b 1...1 with k trailing ones, k pairs of groups meet, if the rank has both.
void GradientSums::combine_lanes(int part, int64_t lane) {
  std::vector<int>& buffers = accumulators_[static_cast<size_t>(part)];
  for (const cluster::LaneNode& left : cluster::carries(lanes_of_part(part).front(), lane)) {
    const int64_t right = left.first + left.size;
    Instruction& instruction = writer_.begin(OpKind::kCombineLanes, part, kNone, left.first);
    instruction.right_lane = right;
    if (strategy_.rounds_sums()) {
      const int64_t elements = std::min(kRoundedPiece, parameter_gradient_bytes(spec_, part) / 4);
      instruction.workspace_bytes = 2 * tensor_bytes(2 * elements);
    }
    writer_.write(buffers[static_cast<size_t>(left.first)]);
    writer_.read(buffers[static_cast<size_t>(right)]);
  }
}

std::vector<Piece> GradientSums::one_of_each(const Owners& owners) {
  std::vector<Piece> pieces;
  pieces.reserve(static_cast<size_t>(owners.count));
  for (int from = 0; from < owners.count; ++from)
    pieces.push_back({{owners.lanes[static_cast<size_t>(from)].front(), 1}, from});
  return pieces;
}

std::vector<Piece> GradientSums::round_of_lane(int part, size_t round) const {
  std::vector<Piece> pieces;
  const Owners& owners = this->owners(part);
  for (int from = 0; from < owners.count; ++from) {
    const std::vector<int64_t>& lanes = owners.lanes[static_cast<size_t>(from)];
    if (round < lanes.size()) pieces.push_back({{lanes[round], 1}, from});
  }
  return pieces;
}

int64_t GradientSums::slice_elements(int part) const {
  const Program& program = writer_.program();
  const std::vector<int64_t>& bounds = program.slices[static_cast<size_t>(part)];
  const auto mine = static_cast<size_t>(program.slice_of(part));
  return bounds[mine + 1] - bounds[mine];
}

int64_t GradientSums::slice_bytes(int part) const {
  return tensor_bytes(strategy_.sum_bytes() * slice_elements(part));
}

int64_t GradientSums::replica_slice_bytes(int part) const {
  const Program& program = writer_.program();
  const std::vector<int64_t>& bounds = program.replica_slices[static_cast<size_t>(part)];
  const auto mine = static_cast<size_t>(program.replica);
  return tensor_bytes(strategy_.sum_bytes() * (bounds[mine + 1] - bounds[mine]));
}

void GradientSums::reduce(int part, std::vector<Piece> pieces, std::vector<int> sources,
                          bool last) {
  const bool in_transport = writer_.program().adds_in_transport(part);
  const auto arriving = in_transport ? int64_t{1} : static_cast<int64_t>(pieces.size());
  int64_t bytes = arriving * slice_bytes(part);
  // Accumulators are float32.
  if (strategy_.rounds_sums())
    bytes += static_cast<int64_t>(sources.size()) *
             tensor_bytes(parameter_gradient_bytes(spec_, part) / 2);
  const int buffer = writer_.new_buffer(BufferKind::kGradientPieces, part, kNone,
                                        pieces.front().node.first, bytes);
  Instruction& instruction =
      writer_.begin(OpKind::kReduceGradients, part, kNone, pieces.front().node.first);
  instruction.resource = Resource::kCommunication;
  instruction.group = owners(part).group;
  instruction.pieces = pieces;
  for (const int source : sources) writer_.read(source);
  writer_.make(buffer);
  sent_.push_back({part, std::move(sources), buffer, std::move(pieces), last});
  // With replicas a part is sent twice.
  while (sent_.size() > (replicas_ > 1 ? 2 : 1) * kPartsInFlight) combine_oldest();
}

// A block's slice is one node of the tree: its lanes are contiguous and as many as any other's.
void GradientSums::reduce_over_replicas(int part) {
  std::vector<Piece> pieces;
  pieces.reserve(static_cast<size_t>(replicas_));
  const int64_t lanes = block_.last - block_.first;
  for (int from = 0; from < replicas_; ++from) pieces.push_back({{from * lanes, lanes}, from});
  const int64_t arriving = writer_.program().adds_in_transport(part) ? 1 : replicas_;
  const int buffer = writer_.new_buffer(BufferKind::kGradientPieces, part, kNone, 0,
                                        arriving * replica_slice_bytes(part));
  Instruction& instruction = writer_.begin(OpKind::kReduceGradients, part, kNone, 0);
  instruction.resource = Resource::kCommunication;
  instruction.group = replica_group_;
  instruction.of_replicas = true;
  instruction.pieces = pieces;
  writer_.read(slice_of(part));
  writer_.make(buffer);
  sent_.push_back({part, {slice_of(part)}, buffer, std::move(pieces), true, true});
}

void GradientSums::combine_oldest() {
  const Sent sent = std::move(sent_.front());
  sent_.pop_front();
  const auto at = static_cast<size_t>(sent.part);
  if (sent.of_replicas) {
    Instruction& combine = writer_.begin(OpKind::kCombinePieces, sent.part, kNone, 0);
    combine.pieces = sent.nodes;
    combine.of_replicas = true;
    writer_.read(sent.pieces);
    for (const int source : sent.sources) writer_.read(source);
    replica_sums_[at] = writer_.new_buffer(BufferKind::kReplicaSlice, sent.part, kNone, 0,
                                           replica_slice_bytes(sent.part));
    writer_.make(replica_sums_[at]);
    gather_gradients(sent.part, true);
    return;
  }
  Instruction& instruction =
      writer_.begin(OpKind::kCombinePieces, sent.part, kNone, sent.nodes.front().node.first);
  instruction.pieces = sent.nodes;
  writer_.read(sent.pieces);
  for (const int source : sent.sources) writer_.read(source);  // alive until the transfer ended
  if (writer_.program().adds_in_transport(sent.part)) {
    int& slice = slices_[at].emplace(block_.first, kNone).first->second;
    if (slice != kNone) {
      writer_.write(slice);
    } else {
      slice = writer_.new_buffer(BufferKind::kGradientSlice, sent.part, kNone, block_.first,
                                 slice_bytes(sent.part));
      writer_.make(slice);
    }
  } else {
    combine_in_tree(sent);
  }
  if (sent.last && strategy_.parallel.zero == 0) gather_gradients(sent.part, false);
  if (sent.last && replicas_ > 1) reduce_over_replicas(sent.part);
}

/// Of the current instruction, the nodes of the tree that its pieces and the sums held so far have.
void GradientSums::combine_in_tree(const Sent& sent) {
  const auto at = static_cast<size_t>(sent.part);
  std::vector<cluster::LaneNode>& held = held_[at];
  struct Sum {
    cluster::LaneNode node;
    int slice;  ///< its buffer; kNone: a piece
  };
  std::vector<Sum> sums;
  sums.reserve(held.size() + sent.nodes.size());
  for (const cluster::LaneNode& node : held) sums.push_back({node, slices_[at].at(node.first)});
  for (const Piece& piece : sent.nodes) sums.push_back({piece.node, kNone});
  std::ranges::sort(sums, {}, [](const Sum& sum) { return sum.node.first; });
  std::vector<cluster::LaneNode> nodes;
  nodes.reserve(sums.size());
  for (const Sum& sum : sums) nodes.push_back(sum.node);
  std::vector<char> stays(nodes.size(), 1);
  for (const cluster::LaneAddition& addition : cluster::tree_order(nodes)) {
    nodes[static_cast<size_t>(addition.left)].size *= 2;
    stays[static_cast<size_t>(addition.right)] = 0;
  }
  std::vector<cluster::LaneNode> next;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (sums[i].slice != kNone) writer_.write(sums[i].slice);
    if (stays[i] == 0) continue;
    next.push_back(nodes[i]);
    if (sums[i].slice != kNone) continue;
    const int slice = writer_.new_buffer(BufferKind::kGradientSlice, sent.part, kNone,
                                         nodes[i].first, slice_bytes(sent.part));
    writer_.make(slice);
    slices_[at][nodes[i].first] = slice;
  }
  held = std::move(next);
}

void GradientSums::gather_gradients(int part, bool of_replicas) {
  Instruction& instruction = writer_.begin(OpKind::kGatherGradients, part, kNone, kNone);
  instruction.resource = Resource::kCommunication;
  instruction.group = of_replicas ? replica_group_ : owners(part).group;
  instruction.of_replicas = of_replicas;
  writer_.read(of_replicas ? replica_sums_[static_cast<size_t>(part)] : slice_of(part));
  writer_.write(finished_gradient(part));
  if (of_replicas || !strategy_.rounds_sums()) return;
  widened_[part] = writer_.new_buffer(BufferKind::kGradientPieces, part, kNone, 0,
                                      tensor_bytes(4 * slice_elements(part)));
  writer_.make(widened_.at(part));
}

/// A slice as float32, where its sum is not.
int64_t GradientSums::widened_bytes(int part) const {
  if (owners(part).count == 1 || !strategy_.rounds_sums()) return 0;
  return tensor_bytes(4 * slice_elements(part));
}

/// What the optimizer reads: the whole gradient, or the owner's slice of it.
int GradientSums::finished_gradient(int part) const {
  const auto at = static_cast<size_t>(part);
  if (owners(part).count > 1 && strategy_.parallel.zero > 0) return slice_of(part);
  return accumulators_[at][static_cast<size_t>(lanes_of_part(part).front())];
}

void GradientSums::finish_step() {
  while (!shared_.empty()) add_oldest_shares();
  if (sends_by_lane(owners_)) {
    // The last lanes of others, where this rank has one less.
    const size_t rounds = num_rounds(owners_);
    for (size_t round = writer_.program().lanes.size(); round < rounds; ++round) {
      for (const int part : order_)
        reduce(part, round_of_lane(part, round), {}, round + 1 == rounds);
    }
  }
  while (!sent_.empty()) combine_oldest();
  int figures = kNone;
  if (world_group_ >= 0) {
    Instruction& sum = writer_.begin(OpKind::kSumSquares, kNone, kNone, kNone);
    for (int part = 0; part < num_parts_; ++part) {
      if (!has_parameters(part)) continue;
      writer_.read(owners(part).count > 1 ? slice_of(part) : finished_gradient(part));
      sum.workspace_bytes = std::max(sum.workspace_bytes, widened_bytes(part));
    }
    const int squares = writer_.current();
    Instruction& reduce = writer_.begin(OpKind::kReduceFigures, kNone, kNone, kNone);
    reduce.resource = Resource::kCommunication;
    reduce.group = world_group_;
    writer_.depend(squares);
    figures = writer_.current();
  }
  writer_.begin(OpKind::kGradNorm, kNone, kNone, kNone);
  writer_.depend(figures);
  // A rank without losses has not waited for it yet, and the mean loss is its too.
  if (!writer_.program().has(spec_.head_part())) writer_.depend(counted_);
  for (const auto& [transfer, buffer] : at_end_) {
    writer_.read(buffer);
    writer_.depend(transfer);
  }
  for (const int gather : gathered_) writer_.depend(gather);
  const int norm = writer_.current();
  for (int part = 0; part < num_parts_ && world_group_ < 0; ++part) {
    if (has_parameters(part)) writer_.read(finished_gradient(part));
  }
  std::vector<int> ends;
  for (int part = 0; part < num_parts_; ++part) {
    if (!has_parameters(part)) continue;
    Instruction& step = writer_.begin(OpKind::kOptimizerStep, part, kNone, kNone);
    const std::vector<int64_t>& workspace = strategy_.optimizer_workspace_bytes;
    if (!workspace.empty()) step.workspace_bytes = workspace[static_cast<size_t>(part)];
    if (strategy_.parallel.zero > 0) step.workspace_bytes += widened_bytes(part);
    writer_.depend(norm);
    writer_.read(finished_gradient(part));
    if (owners(part).count > 1 && strategy_.parallel.zero == 0)
      writer_.read(slice_of(part));  // alive until the gather ended
    if (widened_.contains(part)) writer_.read(widened_.at(part));
    if (replicas_ > 1) writer_.read(replica_sums_[static_cast<size_t>(part)]);
    ends.push_back(writer_.current());
  }
  writer_.begin(OpKind::kCommit, kNone, kNone, kNone).resource = Resource::kHost;
  for (const int end : ends) writer_.depend(end);
}

}  // namespace trireme::plan
