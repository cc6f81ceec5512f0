#include "trireme/comm/transfer_timing.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {
namespace {

constexpr int64_t kMaxRepeats = 2000;

/// What is timed: issues one and waits for it.
struct Timed {
  TransferKind kind;
  std::function<void()> run;
  int64_t theoretical_bytes;  ///< by all ranks
};

/// The longest of all ranks' values.
double longest(World& world, double value) {
  double result = value;
  for (const std::string& text : world.exchange(fmt::format("{:.9g}", value)))
    result = std::max(result, std::stod(text));
  return result;
}

int64_t sum_over_ranks(World& world, int64_t value) {
  int64_t result = 0;
  for (const std::string& text : world.exchange(std::to_string(value))) result += std::stoll(text);
  return result;
}

double seconds_of(const std::function<void()>& run) {
  const double start_s = steady_clock().now_s();
  run();
  return steady_clock().now_s() - start_s;
}

TransferTiming time_one(World& world, Group& group, const Timed& timed, int64_t bytes,
                        double seconds) {
  TransferTiming timing;
  timing.name = to_string(timed.kind);
  timing.bytes = bytes;
  timing.theoretical_bytes = timed.theoretical_bytes;
  const int64_t before = group.traffic().sent_bytes;
  timed.run();
  timing.sent_bytes = sum_over_ranks(world, group.traffic().sent_bytes - before);
  // All ranks repeat it as often.
  const double once_s = longest(world, seconds_of(timed.run));
  const auto repeats =
      std::clamp(static_cast<int64_t>(seconds / std::max(once_s, 1e-7)), int64_t{3}, kMaxRepeats);
  for (int64_t i = 0; i < repeats; ++i) timing.seconds.push_back(seconds_of(timed.run));
  world.barrier();
  return timing;
}

}  // namespace

std::vector<TransferTiming> time_transfers(World& world, device::Device& device,
                                           const std::vector<int64_t>& sizes, double seconds) {
  const int64_t ranks = world.size();
  std::vector<int> all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  const std::unique_ptr<Group> group = world.make_group(all, device);
  device::Queue& queue = device.compute_queue();
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device.torch_device());
  std::vector<TransferTiming> timings;
  for (const int64_t asked : sizes) {
    const int64_t piece = std::max<int64_t>(asked / 4 / ranks, 1);
    const int64_t elements = piece * ranks;
    const int64_t bytes = 4 * elements;
    const std::vector<int64_t> counts(static_cast<size_t>(ranks), piece);
    const at::Tensor whole = at::zeros({elements}, options);
    const at::Tensor other = at::zeros({elements}, options);
    const at::Tensor part = at::zeros({piece}, options);
    const auto wait = [&](const Group::Pending& work) {
      work->wait(queue);
      queue.synchronize();
    };
    std::vector<Timed> kinds = {
        {TransferKind::kAllToAll,
         [&] { wait(group->all_to_all(other, counts, whole, counts, queue)); },
         bytes * (ranks - 1)},
        {TransferKind::kAllGather, [&] { wait(group->all_gather(whole, counts, part, queue)); },
         bytes * (ranks - 1)},
        {TransferKind::kReduceScatter,
         [&] { wait(group->reduce_scatter(part, whole, counts, queue)); }, bytes * (ranks - 1)},
        {TransferKind::kAllReduce, [&] { wait(group->all_reduce(whole, queue)); },
         2 * bytes * (ranks - 1)},
        {TransferKind::kBroadcast, [&] { wait(group->broadcast(whole, 0, queue)); },
         bytes * (ranks - 1)}};
    if (ranks > 1) {
      // There and back, so that both know when it is over.
      kinds.push_back({TransferKind::kSend,
                       [&] {
                         if (world.rank() == 0) {
                           wait(group->send(whole, 1, queue));
                           wait(group->receive(other, 1, queue));
                         } else if (world.rank() == 1) {
                           wait(group->receive(other, 0, queue));
                           wait(group->send(whole, 0, queue));
                         }
                       },
                       2 * bytes});
    }
    for (const Timed& kind : kinds)
      timings.push_back(time_one(world, *group, kind, bytes, seconds));
  }
  return timings;
}

}  // namespace trireme::comm
