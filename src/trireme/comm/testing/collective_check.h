// Random transfers against plain loops over all ranks' inputs; of any back end, on any device.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::comm::testing {

/// One transfer as all ranks know it.
struct Drawn {
  enum class Kind { kPair, kAllToAll, kAllGather, kBroadcast, kAllReduce, kReduceScatter } kind;
  size_t group = 0;
  c10::ScalarType dtype = c10::kFloat;
  int from = 0;                              ///< kPair, kBroadcast
  int to = 0;                                ///< kPair
  std::vector<std::vector<int64_t>> counts;  ///< kAllToAll: [from][to]; else [0][rank] or [0][0]
  uint64_t seed = 0;
};

inline int64_t total(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return sum;
}

inline std::vector<int64_t> draw_counts(std::mt19937_64& random, size_t size) {
  std::vector<int64_t> counts(size);
  // Nothing, a little, more than a thread is woken for.
  for (int64_t& count : counts) {
    constexpr int64_t kMost[] = {0, 7, 300, 20000};
    count = std::uniform_int_distribution<int64_t>(0, kMost[random() % 4])(random);
  }
  return counts;
}

inline Drawn draw(std::mt19937_64& random, const std::vector<std::vector<int>>& groups) {
  Drawn drawn;
  drawn.group = random() % groups.size();
  const size_t size = groups[drawn.group].size();
  drawn.kind = static_cast<Drawn::Kind>(random() % 6);
  if (size == 1 && drawn.kind == Drawn::Kind::kPair) drawn.kind = Drawn::Kind::kAllGather;
  constexpr c10::ScalarType kTypes[] = {
      c10::kFloat, c10::kBFloat16, c10::kLong,   c10::kByte,
      c10::kBool,  c10::kHalf,     c10::kDouble, c10::ScalarType::Float8_e4m3fn};
  const bool adds =
      drawn.kind == Drawn::Kind::kAllReduce || drawn.kind == Drawn::Kind::kReduceScatter;
  drawn.dtype = kTypes[random() % (adds ? 2 : std::size(kTypes))];
  drawn.from = static_cast<int>(random() % size);
  drawn.to = static_cast<int>(
      (static_cast<size_t>(drawn.from) + 1 + random() % std::max<size_t>(size - 1, 1)) % size);
  for (size_t r = 0; r < size; ++r) drawn.counts.push_back(draw_counts(random, size));
  drawn.seed = random();
  return drawn;
}

/// What a rank gives: any bits, or whole numbers that any order of additions sums exactly, also in bfloat16.
inline at::Tensor given(const Drawn& drawn, int rank, int64_t elements) {
  std::mt19937_64 random(drawn.seed + 1000003 * static_cast<uint64_t>(rank));
  const bool adds =
      drawn.kind == Drawn::Kind::kAllReduce || drawn.kind == Drawn::Kind::kReduceScatter;
  if (adds) {
    at::Tensor numbers = at::empty({elements}, at::kFloat);
    for (int64_t i = 0; i < elements; ++i)
      numbers.data_ptr<float>()[i] = static_cast<float>(random() % 33) - 16.0F;
    return numbers.to(drawn.dtype);
  }
  at::Tensor bits = at::empty({elements}, drawn.dtype);
  auto* bytes = static_cast<unsigned char*>(bits.data_ptr());
  for (size_t i = 0; i < bits.nbytes(); ++i)
    bytes[i] = static_cast<unsigned char>(drawn.dtype == c10::kBool ? random() % 2 : random());
  return bits;
}

/// A transfer of this rank that was issued, and what has to be in `out` in the end.
struct Issued {
  Group::Pending work;
  at::Tensor in;  ///< what may change once it was waited for; undefined: nothing
  at::Tensor out;
  at::Tensor expected;
  int64_t sent_bytes = 0;  ///< as theory has it
  size_t group = 0;
  std::string name;
};

/// One after the other; as bytes, since not every type can do more.
inline at::Tensor pieces(const std::vector<at::Tensor>& list, c10::ScalarType dtype) {
  std::vector<at::Tensor> bytes;
  for (const at::Tensor& piece : list) bytes.push_back(piece.contiguous().view(at::kByte));
  return at::cat(bytes).view(dtype);
}

/// Issues it, if this rank takes part.
inline bool issue(const Drawn& drawn, Group& group, device::Device& device, Issued* issued) {
  const int size = group.size();
  const int me = group.rank();
  const auto mine = static_cast<size_t>(me);
  device::Queue& queue = device.compute_queue();
  const auto options = at::TensorOptions().dtype(drawn.dtype);
  const auto there = options.device(device.torch_device());
  // On an accelerator what is given is still to be made when the transfer is issued.
  const auto put = [&](const at::Tensor& host) {
    if (device.torch_device().is_cpu()) return host.clone();
    at::Tensor result = at::empty(host.sizes(), there);
    device.copy(result, host, queue);
    return result.clone();
  };
  const std::vector<int64_t>& counts = drawn.counts[0];
  const auto element = static_cast<int64_t>(c10::elementSize(drawn.dtype));
  switch (drawn.kind) {
    case Drawn::Kind::kPair: {
      const at::Tensor value = given(drawn, drawn.from, counts[0]);
      if (me == drawn.from) {
        issued->name = "send";
        issued->out = put(value);
        issued->sent_bytes = counts[0] * element;
        issued->work = group.send(issued->out, drawn.to, queue);
      } else if (me == drawn.to) {
        issued->name = "receive";
        issued->out = at::empty({counts[0]}, there);
        issued->work = group.receive(issued->out, drawn.from, queue);
      } else {
        return false;
      }
      issued->expected = value;
      return true;
    }
    case Drawn::Kind::kAllToAll: {
      issued->name = "all_to_all";
      std::vector<at::Tensor> expected;
      std::vector<int64_t> out_counts;
      for (int from = 0; from < size; ++from) {
        const std::vector<int64_t>& row = drawn.counts[static_cast<size_t>(from)];
        const int64_t before = total({row.begin(), row.begin() + me});
        expected.push_back(given(drawn, from, total(row)).narrow(0, before, row[mine]));
        out_counts.push_back(row[mine]);
      }
      issued->expected = pieces(expected, drawn.dtype);
      issued->out = at::empty({issued->expected.numel()}, there);
      const std::vector<int64_t>& row = drawn.counts[mine];
      issued->sent_bytes = (total(row) - row[mine]) * element;
      issued->in = put(given(drawn, me, total(row)));
      issued->work = group.all_to_all(issued->out, out_counts, issued->in, row, queue);
      return true;
    }
    case Drawn::Kind::kAllGather: {
      issued->name = "all_gather";
      std::vector<at::Tensor> expected;
      for (int from = 0; from < size; ++from)
        expected.push_back(given(drawn, from, counts[static_cast<size_t>(from)]));
      issued->expected = pieces(expected, drawn.dtype);
      issued->out = at::empty({total(counts)}, there);
      at::Tensor in = put(expected[mine]);
      if (drawn.seed % 2 == 0) {  // from its place
        const at::Tensor place =
            issued->out.narrow(0, total({counts.begin(), counts.begin() + me}), counts[mine]);
        place.copy_(in);
        in = place;
      } else {
        issued->in = in;
      }
      issued->sent_bytes = (size - 1) * counts[mine] * element;
      issued->work = group.all_gather(issued->out, counts, in, queue);
      return true;
    }
    case Drawn::Kind::kBroadcast: {
      issued->name = "broadcast";
      issued->expected = given(drawn, drawn.from, counts[0]);
      issued->out = me == drawn.from ? put(issued->expected) : at::empty({counts[0]}, there);
      if (me == drawn.from) issued->sent_bytes = (size - 1) * counts[0] * element;
      issued->work = group.broadcast(issued->out, drawn.from, queue);
      return true;
    }
    case Drawn::Kind::kAllReduce:
    case Drawn::Kind::kReduceScatter: {
      const bool scatter = drawn.kind == Drawn::Kind::kReduceScatter;
      const int64_t elements = scatter ? total(counts) : counts[0];
      at::Tensor sum = at::zeros({elements}, at::kFloat);
      for (int from = 0; from < size; ++from) sum += given(drawn, from, elements).to(at::kFloat);
      sum = sum.to(drawn.dtype);
      const at::Tensor in = put(given(drawn, me, elements));
      if (scatter) {
        issued->name = "reduce_scatter";
        const int64_t before = total({counts.begin(), counts.begin() + me});
        issued->expected = sum.narrow(0, before, counts[mine]).clone();
        issued->out = at::empty({counts[mine]}, there);
        issued->sent_bytes = (elements - counts[mine]) * element;
        issued->in = in;
        issued->work = group.reduce_scatter(issued->out, in, counts, queue);
      } else {
        issued->name = "all_reduce";
        issued->expected = sum;
        issued->out = in;
        // A piece for each of the others, then this rank's sum to each of them.
        const int64_t own = (me + 1) * elements / size - me * elements / size;
        issued->sent_bytes = (elements - own + (size - 1) * own) * element;
        issued->work = group.all_reduce(issued->out, queue);
      }
      return true;
    }
  }
  return false;
}

/// Whether the bits are equal.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  return a.numel() == 0 ||
         at::equal(a.contiguous().view(at::kByte), b.contiguous().view(at::kByte));
}

/// `count` random transfers in flight at once over all given groups of the world, waited for in an order of this rank's own.
inline void check_transfers(World& world, device::Device& device, uint64_t seed, int count,
                            const std::vector<std::vector<int>>& groups) {
  std::vector<std::unique_ptr<Group>> mine;
  for (const std::vector<int>& members : groups) mine.push_back(world.make_group(members, device));
  std::mt19937_64 random(seed);
  std::vector<Issued> issued;
  std::vector<int64_t> sent_bytes(groups.size(), 0);
  for (int i = 0; i < count; ++i) {
    const Drawn drawn = draw(random, groups);
    if (mine[drawn.group] == nullptr) continue;
    Issued next;
    next.group = drawn.group;
    if (!issue(drawn, *mine[drawn.group], device, &next)) continue;
    sent_bytes[drawn.group] += next.sent_bytes;
    issued.push_back(std::move(next));
  }
  std::shuffle(issued.begin(), issued.end(),
               std::mt19937_64(seed + static_cast<uint64_t>(world.rank())));
  for (Issued& each : issued) {
    each.work->wait(device.compute_queue());
    if (each.in.defined()) each.in.zero_();
    EXPECT_TRUE(same_bits(each.out.cpu(), each.expected))
        << each.name << " on rank " << world.rank() << ", seed " << seed;
    device.synchronize();
    EXPECT_TRUE(each.work->done());
    EXPECT_LE(each.work->start_s(), each.work->end_s());
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    if (mine[g] == nullptr) continue;
    EXPECT_EQ(mine[g]->traffic().sent_bytes, sent_bytes[g])
        << "group " << g << " on rank " << world.rank() << ", seed " << seed;
  }
  world.barrier();
}

/// All ranks, and some random others of them; each rank draws the same.
inline std::vector<std::vector<int>> draw_groups(uint64_t seed, int size) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<int>> groups(1);
  for (int r = 0; r < size; ++r) groups[0].push_back(r);
  for (int g = 0; g < 3; ++g) {
    std::vector<int> members;
    for (int r = 0; r < size; ++r) {
      if (random() % 2 == 0) members.push_back(r);
    }
    if (!members.empty()) groups.push_back(members);
  }
  return groups;
}

}  // namespace trireme::comm::testing
