#include "trireme/plan/shards.h"

#include <algorithm>
#include <bit>

#include "trireme/base/error.h"
#include "trireme/cluster/slices.h"
#include "trireme/plan/tensor_share.h"

namespace trireme::plan {

namespace {

/// Of one part: parameters are in the order of parts.
auto parameters_of(const model::ModelSpec& spec, int part) {
  return std::ranges::equal_range(spec.parameters, part, {}, &model::ParameterSpec::part);
}

/// The places in a part where a parameter, or a matrix of a stack, begins, and its end.
std::vector<int64_t> matrix_places(const model::ModelSpec& spec, int part) {
  std::vector<int64_t> places = {0};
  for (const model::ParameterSpec& parameter : parameters_of(spec, part)) {
    const int64_t matrices = parameter.is_expert() ? parameter.shape.front() : 1;
    for (int64_t i = 0; i < matrices; ++i)
      places.push_back(places.back() + parameter.numel() / matrices);
  }
  return places;
}

/// By the same places: tensor parallel ranks that hold what begins there.
std::vector<int64_t> holders_of(const model::ModelSpec& spec, int part) {
  std::vector<int64_t> holders;
  for (const model::ParameterSpec& parameter : parameters_of(spec, part)) {
    const int64_t matrices = parameter.is_expert() ? parameter.shape.front() : 1;
    holders.insert(holders.end(), static_cast<size_t>(matrices),
                   tensor_holders(spec, static_cast<int>(&parameter - spec.parameters.data())));
  }
  return holders;
}

/// Whether what begins at this place of matrix_places() is a matrix that is updated at once.
std::vector<char> matrices_of(const model::ModelSpec& spec, int part) {
  std::vector<char> whole;
  for (const model::ParameterSpec& parameter : parameters_of(spec, part)) {
    const int64_t matrices = parameter.is_expert() ? parameter.shape.front() : 1;
    whole.insert(whole.end(), static_cast<size_t>(matrices), parameter.is_product() ? 1 : 0);
  }
  return whole;
}

double sum_below(const cluster::LaneNode& node, BlockRange blocks,
                 const std::vector<double>& sums) {
  if (node.first >= blocks.last) return 0.0;
  if (node.size == 1) return sums[static_cast<size_t>(node.first - blocks.first)];
  const int64_t half = node.size / 2;
  return sum_below({node.first, half}, blocks, sums) +
         sum_below({node.first + half, half}, blocks, sums);
}

}  // namespace

std::vector<SquaresRange> squares_ranges(const model::ModelSpec& spec, int part) {
  const std::vector<int64_t> places = matrix_places(spec, part);
  const std::vector<int64_t> holders = holders_of(spec, part);
  std::vector<SquaresRange> ranges;
  for (size_t i = 0; i + 1 < places.size(); ++i) {
    const int64_t elements = places[i + 1] - places[i];
    if (elements == 0) continue;
    if (!ranges.empty() && ranges.back().elements % kSquaresBlock == 0 &&
        ranges.back().holders == holders[i]) {
      ranges.back().elements += elements;
    } else {
      ranges.push_back({places[i], elements, holders[i]});
    }
  }
  return ranges;
}

int64_t num_blocks(const std::vector<SquaresRange>& ranges) {
  int64_t blocks = 0;
  for (const SquaresRange& range : ranges) blocks += range.blocks();
  return blocks;
}

namespace {

// cluster::slice_bounds_at() with the places where blocks begin, and the end, without a list of them: large models have
// hundreds of millions.
std::vector<int64_t> block_slices(const std::vector<SquaresRange>& ranges, int64_t owners) {
  const int64_t elements = ranges.empty() ? 0 : ranges.back().first + ranges.back().elements;
  std::vector<int64_t> bounds;
  for (int64_t r = 0; r < owners; ++r) {
    const int64_t even = r * elements / owners;
    int64_t below = 0;
    int64_t above = elements;
    for (const SquaresRange& range : ranges) {
      const int64_t last = range.first + (range.blocks() - 1) * kSquaresBlock;
      if (last < even) {
        below = last;
        continue;
      }
      const int64_t blocks =
          (std::max<int64_t>(even - range.first, 0) + kSquaresBlock - 1) / kSquaresBlock;
      above = range.first + blocks * kSquaresBlock;
      if (blocks > 0) below = above - kSquaresBlock;
      break;
    }
    bounds.push_back(above > 0 && even - below <= above - even ? below : above);
  }
  bounds.push_back(elements);
  return bounds;
}

}  // namespace

std::vector<int64_t> part_slices(const model::ModelSpec& spec, int part, int64_t owners,
                                 bool whole_matrices) {
  const std::vector<SquaresRange> ranges = squares_ranges(spec, part);
  if (ranges.size() == 1 && !whole_matrices)
    return cluster::slice_bounds(ranges.front().elements, owners, kSquaresBlock);
  if (!whole_matrices) return block_slices(ranges, owners);
  const std::vector<int64_t> matrices = matrix_places(spec, part);
  const std::vector<char> whole = matrices_of(spec, part);
  std::vector<int64_t> cuts;
  size_t matrix = 0;
  for (const SquaresRange& range : ranges) {
    for (int64_t at = range.first; at < range.first + range.elements; at += kSquaresBlock) {
      while (matrices[matrix + 1] <= at) ++matrix;
      if (whole[matrix] == 0 || matrices[matrix] == at) cuts.push_back(at);
    }
  }
  cuts.push_back(matrices.back());
  if (cuts.size() == 1) cuts.insert(cuts.begin(), 0);
  return cluster::slice_bounds_at(cuts, owners);
}

namespace {

bool has_selection_bias(const model::ModelSpec& spec, int part) {
  return std::ranges::any_of(spec.parameters, [&](const model::ParameterSpec& parameter) {
    return parameter.part == part && parameter.role == model::Role::kSelectionBias;
  });
}

}  // namespace

int64_t owners_of(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const Parallel& parallel = strategy.parallel;
  const bool experts = spec.parts[static_cast<size_t>(part)].kind == model::PartKind::kExperts;
  if (!experts || parallel.ep == 1) return strategy.owners();
  return parallel.dp * parallel.cp * parallel.tp / (parallel.ep * parallel.etp);
}

bool gathers_for_use(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  return strategy.parallel.zero >= 3 && owners_of(spec, strategy, part) > 1 &&
         !has_selection_bias(spec, part);
}

bool shares_masters(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  if (gathers_for_use(spec, strategy, part)) return true;
  return strategy.parallel.zero > 0 && strategy.precision == Precision::kBf16 &&
         !has_selection_bias(spec, part);
}

BlockRange blocks_of(const std::vector<SquaresRange>& ranges, int64_t first, int64_t last) {
  const auto block_at = [&](int64_t element) {
    int64_t blocks = 0;
    for (const SquaresRange& range : ranges) {
      if (element >= range.first + range.elements) {
        blocks += range.blocks();
        continue;
      }
      const int64_t inside = element - range.first;
      TRIREME_CHECK(inside % kSquaresBlock == 0, "element {} begins no block", element);
      return blocks + inside / kSquaresBlock;
    }
    return blocks;
  };
  return {block_at(first), block_at(last)};
}

SlicePlace slice_place(const Program& program, const cluster::Mesh& mesh, int rank) {
  const int index = mesh.index_in_group(cluster::Dimension::kDataContext, rank);
  SlicePlace place;
  place.slice = index % program.strategy.owners();
  place.has_squares = index < program.strategy.owners();
  if (mesh.shape().ep == 1) return place;
  place.expert_slice = mesh.index_in_group(cluster::Dimension::kExpertData, rank);
  place.expert_place = mesh.expert_coordinates(rank).ep;
  return place;
}

std::vector<BlockRange> blocks_on_rank(const model::ModelSpec& spec, const Program& program,
                                       int part, const SlicePlace& place) {
  const auto at = static_cast<size_t>(part);
  const std::vector<int64_t>& bounds = program.slices[at];
  if (!program.spreads(part)) {
    const auto slice = static_cast<size_t>(place.slice);
    return {blocks_of(program.squares[at], bounds[slice], bounds[slice + 1])};
  }
  const auto slice = static_cast<size_t>(place.expert_slice);
  std::vector<BlockRange> blocks;
  int64_t here = 0;
  int64_t whole = 0;
  for (const model::ParameterSpec& parameter : parameters_of(spec, part)) {
    const int64_t elements =
        parameter.shard ? parameter.numel() : parameter.numel() / program.strategy.parallel.ep;
    const int64_t first = std::max(here, bounds[slice]);
    const int64_t last = std::min(here + elements, bounds[slice + 1]);
    if (first < last) {
      const int64_t shift = whole + place.expert_place * elements - here;
      const BlockRange range = blocks_of(program.whole_squares[at], first + shift, last + shift);
      if (!blocks.empty() && blocks.back().last == range.first) {
        blocks.back().last = range.last;
      } else {
        blocks.push_back(range);
      }
    }
    here += elements;
    whole += program.strategy.parallel.ep * elements;
  }
  return blocks;
}

int64_t num_blocks_of_part(const Program& program, int part) {
  const auto at = static_cast<size_t>(part);
  return num_blocks(program.spreads(part) ? program.whole_squares[at] : program.squares[at]);
}

std::vector<cluster::LaneNode> squares_nodes(BlockRange blocks, int64_t count) {
  if (blocks.first == blocks.last) return {};
  const auto leaves = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
  return cluster::cover(blocks.first, blocks.last == count ? leaves : blocks.last);
}

std::vector<double> sums_of_nodes(const std::vector<cluster::LaneNode>& nodes, BlockRange blocks,
                                  const std::vector<double>& sums) {
  TRIREME_CHECK(static_cast<int64_t>(sums.size()) == blocks.last - blocks.first,
                "{} sums of {} blocks", sums.size(), blocks.last - blocks.first);
  std::vector<double> result;
  result.reserve(nodes.size());
  for (const cluster::LaneNode& node : nodes) result.push_back(sum_below(node, blocks, sums));
  return result;
}

double sum_of_tree(const std::vector<cluster::LaneNode>& nodes, std::vector<double> sums) {
  TRIREME_CHECK(nodes.size() == sums.size(), "{} sums of {} nodes", sums.size(), nodes.size());
  if (nodes.empty()) return 0.0;
  const std::vector<cluster::LaneAddition> order = cluster::tree_order(nodes);
  TRIREME_CHECK(order.size() + 1 == nodes.size(), "{} nodes do not make one tree", nodes.size());
  for (const cluster::LaneAddition& addition : order)
    sums[static_cast<size_t>(addition.left)] += sums[static_cast<size_t>(addition.right)];
  return sums.front();
}

}  // namespace trireme::plan
