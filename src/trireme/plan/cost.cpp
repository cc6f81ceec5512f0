#include "trireme/plan/cost.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

// Neighbours in shape count by exp(-(distance / kNear)^2), and the plain model as much as one measurement at kFar.
constexpr double kNear = 0.25;
constexpr double kFar = 0.75;

double weight_at(double distance) {
  return std::exp(-(distance / kNear) * (distance / kNear));
}

// Share of a product's tiles' slots that are used: of each tile, and of the last wave.
double tile_efficiency(const DeviceProfile& device, const ProductShape& shape, double peak) {
  const double rows = std::ceil(shape.m / device.tile_m);
  const double columns = std::ceil(shape.n / device.tile_n);
  const double tiles = rows * columns * shape.groups;
  const double inside = (shape.m / (rows * device.tile_m)) * (shape.n / (columns * device.tile_n));
  // Long inner dimensions are split over idle processors.
  const double splits = std::max(1.0, std::floor(shape.k / 1024.0));
  const double slots = std::ceil(tiles / device.units) * device.units;
  const double split_slots = std::ceil(tiles * splits / device.units) * device.units / splits;
  return peak * inside * (tiles / std::min(slots, split_slots)) *
         (shape.k / (shape.k + device.half_k));
}

// Tensor units read whole lines of memory: 64 elements of half precision.
double alignment_efficiency(const DeviceProfile& device, const ProductShape& shape) {
  double doublings = 3.0;  // from 8 to 64
  for (const double size : {shape.m, shape.n, shape.k}) {
    const auto elements = static_cast<int64_t>(size);
    double own = 0.0;
    for (int64_t multiple = 16; multiple <= 64 && elements % multiple == 0; multiple *= 2)
      own += 1.0;
    if (size >= 64.0) doublings = std::min(doublings, own);
  }
  return device.unaligned + (1.0 - device.unaligned) * doublings / 3.0;
}

double value_or(const std::map<ComputeType, double>& values, ComputeType type, double fallback) {
  const auto found = values.find(type);
  return found == values.end() ? fallback : found->second;
}

}  // namespace

GroupShape group_shape(const Parallel& p, int accelerators_per_node, cluster::Dimension along) {
  using cluster::Dimension;
  const auto stage = static_cast<double>(p.dp * p.cp * p.tp);
  double stride = 1.0;
  double size = 1.0;
  switch (along) {
    case Dimension::kTensor:
      size = static_cast<double>(p.tp);
      break;
    case Dimension::kContext:
      stride = static_cast<double>(p.tp);
      size = static_cast<double>(p.cp);
      break;
    case Dimension::kData:
      stride = static_cast<double>(p.tp * p.cp);
      size = static_cast<double>(p.dp);
      break;
    case Dimension::kDataContext:
      stride = static_cast<double>(p.tp);
      size = static_cast<double>(p.dp * p.cp);
      break;
    case Dimension::kShard:
      stride = static_cast<double>(p.tp);
      size = static_cast<double>((p.shard > 0 ? p.shard : p.dp) * p.cp);
      break;
    case Dimension::kReplicate:
      if (p.shard > 0) size = static_cast<double>(p.dp) / static_cast<double>(p.shard);
      stride = static_cast<double>(p.tp * p.cp * (p.shard > 0 ? p.shard : p.dp));
      break;
    case Dimension::kExpertTensor:
      size = static_cast<double>(p.etp);
      break;
    case Dimension::kExpert:
      stride = static_cast<double>(p.etp);
      size = static_cast<double>(p.ep);
      break;
    case Dimension::kExpertData:
      stride = static_cast<double>(p.ep * p.etp);
      size = std::max(1.0, stage / stride);
      break;
    case Dimension::kPipeline:
      stride = stage;
      size = static_cast<double>(p.pp);
      break;
    case Dimension::kStage:
      size = stage;
      break;
  }
  GroupShape shape;
  const double node = accelerators_per_node;
  shape.size = static_cast<int>(size);
  shape.per_node = static_cast<int>(std::clamp(std::floor(node / stride), 1.0, size));
  shape.span = static_cast<int>(std::min(node, stride * (shape.per_node - 1) + 1.0));
  // A node has as many groups of a kind as its accelerators make up; a small world does not fill the node.
  const double here = std::min(node, static_cast<double>(p.world()));
  shape.concurrent = static_cast<int>(std::max(1.0, std::floor(here / shape.per_node)));
  return shape;
}

CostModel::CostModel(const model::ModelSpec& spec, const Strategy& strategy,
                     const ShardingOptions& sharding, const StackProfile& stack,
                     const ClusterSpec& cluster, const EfficiencyTables& tables,
                     const CostFactors& factors)
    : spec_(spec),
      strategy_(strategy),
      sharding_(sharding),
      stack_(stack),
      cluster_(cluster),
      tables_(tables),
      factors_(factors) {
  // Layers of one shape do the same work.
  const auto same_layer = [&](int a, int b) {
    const model::LayerSpec& one = spec.layers[static_cast<size_t>(a)];
    const model::LayerSpec& other = spec.layers[static_cast<size_t>(b)];
    return one.moe.has_value() == other.moe.has_value() && one.mlp.hidden == other.mlp.hidden &&
           one.attention.num_heads == other.attention.num_heads &&
           one.attention.num_kv_heads == other.attention.num_kv_heads &&
           one.attention.window == other.attention.window;
  };
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const model::PartSpec& mine = spec.parts[static_cast<size_t>(part)];
    int first = part;
    for (int other = 0; other < part; ++other) {
      const model::PartSpec& theirs = spec.parts[static_cast<size_t>(other)];
      if (theirs.kind != mine.kind || mine.layer < 0 || theirs.layer < 0 ||
          alike_[static_cast<size_t>(other)] != other || !same_layer(mine.layer, theirs.layer))
        continue;
      first = other;
      break;
    }
    alike_.push_back(first);
  }
}

ComputeType CostModel::compute_type(bool low_precision) const {
  if (low_precision && cluster_.device.peak_flops.contains(ComputeType::kFp8))
    return ComputeType::kFp8;
  return strategy_.precision == Precision::kFp32 ? ComputeType::kFp32 : ComputeType::kBf16;
}

double CostModel::product_efficiency(const ProductShape& shape, ComputeType type) const {
  const DeviceProfile& device = cluster_.device;
  const double best = value_or(device.gemm_efficiency, type, 0.7);
  const double plain = tile_efficiency(device, shape, best) * alignment_efficiency(device, shape);
  if (!tables_.has_products(type)) return plain;
  if (const auto exact = tables_.exact(shape, type)) return *exact;
  double weights = weight_at(kFar);
  double logarithms = 0.0;
  for (const MeasuredProduct& one : tables_.products) {
    if (one.type != type || one.shape.use != shape.use ||
        (one.shape.groups > 1.0) != (shape.groups > 1.0))
      continue;
    const double weight = weight_at(distance(one.shape, shape));
    weights += weight;
    logarithms += weight * std::log(one.efficiency / tile_efficiency(device, one.shape, best));
  }
  return plain * std::exp(logarithms / weights);
}

double CostModel::product(const ProductShape& shape, ComputeType type) const {
  const DeviceProfile& device = cluster_.device;
  const double peak = value_or(device.peak_flops, type, 0.0);
  TRIREME_USER_CHECK(peak > 0.0, kConfig, "add it to the device's peak_flops",
                     "device \"{}\" has no peak rate of {}", device.name, to_string(type));
  const double rate = peak * product_efficiency(shape, type) * factors_.sustained;
  const double element = type == ComputeType::kFp32 ? 4.0 : type == ComputeType::kFp8 ? 1.0 : 2.0;
  const double result = shape.use == ProductUse::kBackwardWeight ? 8.0 : 2.0;
  const double bytes = shape.groups * (element * (shape.m * shape.k + shape.k * shape.n) +
                                       result * shape.m * shape.n);
  double seconds = std::max(shape.flops() / rate,
                            bytes / (device.memory_bytes_per_s * device.memory_efficiency));
  // The input in half precision becomes two copies in low precision, one of them transposed.
  if (type == ComputeType::kFp8 && shape.use != ProductUse::kBackwardWeight)
    seconds += memory(4.0 * shape.groups * shape.m * shape.k, 1.0);
  return seconds + device.kernel_gap_s;
}

double CostModel::attention(const AttentionShape& shape, bool causal) const {
  const DeviceProfile& device = cluster_.device;
  const ComputeType type =
      strategy_.precision == Precision::kFp32 ? ComputeType::kFp32 : ComputeType::kBf16;
  const double peak = value_or(device.peak_flops, type, 0.0);
  // All pairs of positions, scores and values.
  const double all = 2.0 * shape.batch * shape.heads * shape.seq_len * shape.seq_len *
                     (shape.head_dim + shape.value_dim) * (shape.backward ? 2.5 : 1.0);
  const double best = shape.backward ? device.attention_backward : device.attention_forward;
  const auto plain = [&](const AttentionShape& of) {
    const double rows =
        of.batch * of.heads * of.seq_len / 32.0;  // long or many: both fill the device
    return best * rows / (rows + device.attention_half_rows);
  };
  double efficiency = 2.0 * plain(shape);  // of all pairs
  // Published tables are of half precision, and count for others where those have none.
  const ComputeType measured = tables_.has_attention(type) ? type : ComputeType::kBf16;
  if (tables_.has_attention(measured)) {
    if (const auto exact = tables_.exact(shape, measured)) {
      efficiency = *exact;
    } else {
      double weights = weight_at(kFar);
      double logarithms = 0.0;
      for (const MeasuredAttention& one : tables_.attention) {
        if (one.type != measured || one.shape.backward != shape.backward) continue;
        const double weight = weight_at(distance(one.shape, shape));
        weights += weight;
        logarithms += weight * std::log(one.efficiency / (2.0 * plain(one.shape)));
      }
      efficiency *= std::exp(logarithms / weights);
    }
  }
  if (!causal) efficiency /= 2.0;
  return all / (peak * efficiency * factors_.sustained) + device.kernel_gap_s;
}

double CostModel::memory(double bytes, double kernels) const {
  const DeviceProfile& device = cluster_.device;
  return bytes / (device.memory_bytes_per_s * device.memory_efficiency * factors_.memory) +
         kernels * device.kernel_gap_s;
}

const LinkProfile& CostModel::link_of(int ranks) const {
  for (const LinkProfile& link : cluster_.node.links) {
    if (link.ranks == 0 || ranks <= link.ranks) return link;
  }
  TRIREME_USER_CHECK(!cluster_.node.links.empty(), kConfig, "add a link to the node's profile",
                     "node \"{}\" has no link between its accelerators", cluster_.node.name);
  return cluster_.node.links.back();
}

namespace {

double share_of(const LinkProfile& link, Collective kind) {
  switch (kind) {
    case Collective::kAllReduce:
      return link.all_reduce;
    case Collective::kAllGather:
      return link.all_gather;
    case Collective::kReduceScatter:
      return link.reduce_scatter;
    case Collective::kAllToAll:
      return link.all_to_all;
    case Collective::kSendReceive:
      return link.send_receive;
  }
  return link.all_reduce;
}

}  // namespace

double CostModel::latency(Collective kind, cluster::Dimension along) const {
  const GroupShape group = group_shape(strategy_.parallel, cluster_.node.accelerators, along);
  if (group.size == 1) return 0.0;
  const double rounds = kind == Collective::kAllReduce ? 2.0 : 1.0;
  double seconds = 0.0;
  double fixed = 0.0;
  if (group.per_node > 1) {
    const LinkProfile& link = link_of(group.per_node);
    const double hops = kind == Collective::kSendReceive || kind == Collective::kAllToAll
                            ? 1.0
                            : group.per_node - 1.0;
    seconds += rounds * hops * link.latency_s;
    fixed = link.fixed_s;
  }
  if (group.nodes() > 1) {
    const LinkProfile& link = cluster_.network.link;
    const double nodes = group.nodes();
    double hops = kind == Collective::kSendReceive ? 1.0 : nodes - 1.0;
    if (kind == Collective::kAllReduce) hops = std::min(hops, std::ceil(std::log2(nodes)) + 1.0);
    if (kind == Collective::kAllToAll) hops = std::min(hops, 8.0);
    seconds += rounds * hops * link.latency_s;
    fixed = std::max(fixed, link.fixed_s);
  }
  return seconds + fixed;
}

double CostModel::collective(Collective kind, double bytes, cluster::Dimension along) const {
  const GroupShape group = group_shape(strategy_.parallel, cluster_.node.accelerators, along);
  if (group.size == 1 || bytes <= 0.0) return 0.0;
  const double size = group.size;
  const double here = group.per_node;
  const double rounds = kind == Collective::kAllReduce ? 2.0 : 1.0;
  double inside = 0.0;
  double outside = 0.0;
  if (kind == Collective::kSendReceive) {
    if (group.per_node > 1) {
      const LinkProfile& link = link_of(2);
      inside = bytes / (link.bytes_per_s * link.send_receive);
    }
    if (group.nodes() > 1) {
      const LinkProfile& link = cluster_.network.link;
      outside = bytes / (link.bytes_per_s * link.send_receive);
    }
    return std::max(inside, outside) / factors_.network + latency(kind, along);
  }
  if (group.per_node > 1) {
    const LinkProfile& link = link_of(group.per_node);
    double rate = link.bytes_per_s * share_of(link, kind);
    if (cluster_.node.bridge_span > 0 && group.span > cluster_.node.bridge_span)
      rate = std::min(rate, cluster_.node.bridge_bytes_per_s / group.concurrent);
    const double moved = kind == Collective::kAllToAll ? (here - 1.0) / size : (size - 1.0) / size;
    inside = rounds * bytes * moved / rate;
  }
  if (group.nodes() > 1) {
    // Every member of a node brings its own adapters.
    const LinkProfile& link = cluster_.network.link;
    const double nodes = group.nodes();
    const double rate = link.bytes_per_s * share_of(link, kind);
    const double moved =
        kind == Collective::kAllToAll ? (size - here) / size : (nodes - 1.0) / nodes / here;
    outside = rounds * bytes * moved / rate *
              (1.0 + cluster_.network.growth_per_doubling * std::log2(nodes));
  }
  return std::max(inside, outside) / factors_.network + latency(kind, along);
}

double CostModel::sent_bytes(Collective kind, double bytes, cluster::Dimension along) const {
  const GroupShape group = group_shape(strategy_.parallel, cluster_.node.accelerators, along);
  if (group.size == 1) return 0.0;
  if (kind == Collective::kSendReceive) return bytes;
  const double share = (group.size - 1.0) / group.size;
  return bytes * share * (kind == Collective::kAllReduce ? 2.0 : 1.0);
}

const InstructionCost& CostModel::of(int part, OpKind kind) {
  const int first = alike_[static_cast<size_t>(part)];
  const auto [entry, is_new] = known_.try_emplace({first, kind});
  InstructionCost& cost = entry->second;
  if (!is_new) return cost;
  double kernels = 0.0;
  double collectives = 0.0;
  double members = 0.0;     // of all collectives
  double crossing_s = 0.0;  // latency of those between nodes
  double last_product = 0.0;
  for (const Operation& operation :
       part_operations(spec_, strategy_, sharding_, stack_, first, kind)) {
    kernels += operation.kernels;
    switch (operation.kind) {
      case WorkKind::kProduct:
        last_product = product(operation.product, compute_type(operation.low_precision));
        cost.products_s += last_product;
        break;
      case WorkKind::kAttention:
        cost.attention_s += attention(operation.attention, operation.causal);
        break;
      case WorkKind::kMemory:
        cost.memory_s += memory(operation.bytes, operation.kernels);
        break;
      case WorkKind::kCollective: {
        const double seconds = collective(operation.collective, operation.bytes, operation.along);
        double share = 1.0;
        if (operation.along == cluster::Dimension::kTensor) share = stack_.tensor_exposed;
        if (operation.along == cluster::Dimension::kExpert) share = stack_.expert_exposed;
        // Beside a product of about the size of the one before it.
        const double exposed =
            operation.hidden ? std::max(0.0, seconds - last_product) : share * seconds;
        const GroupShape group =
            group_shape(strategy_.parallel, cluster_.node.accelerators, operation.along);
        if (group.size > 1) {
          collectives += 1.0;
          members += group.size;
          if (group.nodes() > 1) crossing_s += latency(operation.collective, operation.along);
        }
        cost.exposed_transfer_s += exposed;
        cost.hidden_transfer_s += seconds - exposed;
        cost.sent_bytes[operation.along] +=
            sent_bytes(operation.collective, operation.bytes, operation.along);
        break;
      }
    }
  }
  const double device =
      cost.products_s + cost.attention_s + cost.memory_s + cost.exposed_transfer_s;
  double host = kernels * stack_.host_kernel_s + collectives * stack_.host_collective_s;
  if (strategy_.parallel.world() > cluster_.node.accelerators)
    host += members * stack_.host_crossing_s + (stack_.host_crossing_s > 0.0 ? crossing_s : 0.0);
  if (kind == OpKind::kForward || kind == OpKind::kRecompute) host += stack_.host_part_s;
  if (kind == OpKind::kBackwardInput || kind == OpKind::kBackwardWeight)
    host += 0.5 * stack_.host_part_s;
  host *= factors_.host;
  cost.host_s = std::max(0.0, host - device);
  cost.seconds = device + cost.host_s;
  return cost;
}

}  // namespace trireme::plan
