#include "trireme/calibrate/link_rates.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/calibrate/kernel_rates.h"
#include "trireme/device/device.h"
#include "trireme/plan/measured_spans.h"

namespace trireme::calibrate {

namespace {

enum class Kind { kAllToAll, kAllGather, kReduceScatter, kAllReduce, kSend };
constexpr Kind kKinds[] = {Kind::kAllToAll, Kind::kAllGather, Kind::kReduceScatter,
                           Kind::kAllReduce, Kind::kSend};
constexpr int64_t kSizes[] = {1024, 16 * 1024, 256 * 1024, 2 * 1024 * 1024, 8 * 1024 * 1024};
constexpr int kRepeats = 8;

/// A rank's transfers of one size, float32.
class Transfers {
 public:
  Transfers(comm::World& world, comm::Group& group, device::Device& device, int64_t bytes)
      : world_(world), group_(group), queue_(device.compute_queue()) {
    const auto ranks = static_cast<int64_t>(world.size());
    const int64_t piece = std::max<int64_t>(bytes / 4 / ranks, 1);
    const auto options = at::TensorOptions().dtype(at::kFloat).device(device.torch_device());
    counts_.assign(static_cast<size_t>(ranks), piece);
    whole_ = at::zeros({piece * ranks}, options);
    other_ = at::zeros({piece * ranks}, options);
    part_ = at::zeros({piece}, options);
  }

  void run(Kind kind) {
    switch (kind) {
      case Kind::kAllToAll:
        wait(group_.all_to_all(other_, counts_, whole_, counts_, queue_));
        break;
      case Kind::kAllGather:
        wait(group_.all_gather(whole_, counts_, part_, queue_));
        break;
      case Kind::kReduceScatter:
        wait(group_.reduce_scatter(part_, whole_, counts_, queue_));
        break;
      case Kind::kAllReduce:
        wait(group_.all_reduce(whole_, queue_));
        break;
      case Kind::kSend:  // there and back, so that both know when it is over
        if (world_.rank() == 0) {
          wait(group_.send(whole_, 1, queue_));
          wait(group_.receive(other_, 1, queue_));
        } else if (world_.rank() == 1) {
          wait(group_.receive(other_, 0, queue_));
          wait(group_.send(whole_, 0, queue_));
        }
        break;
    }
  }

  /// What one rank sends, of one transfer.
  double sent(Kind kind) const {
    const auto bytes = 4.0 * static_cast<double>(whole_.numel());
    const double ranks = world_.size();
    if (kind == Kind::kSend) return bytes;
    return bytes * (ranks - 1.0) / ranks * (kind == Kind::kAllReduce ? 2.0 : 1.0);
  }
  static double transfers(Kind kind) { return kind == Kind::kSend ? 2.0 : 1.0; }

 private:
  void wait(comm::Group::Pending work) { work->wait(queue_); }

  comm::World& world_;
  comm::Group& group_;
  device::Queue& queue_;
  std::vector<int64_t> counts_;
  at::Tensor whole_;
  at::Tensor other_;
  at::Tensor part_;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

LineFit fit_line(const std::vector<std::pair<double, double>>& points) {
  TRIREME_CHECK(points.size() >= 2, "a line through {} points", points.size());
  // Divided by the seconds, so that small transfers count as much as large ones.
  double uu = 0.0;
  double uv = 0.0;
  double vv = 0.0;
  double u = 0.0;
  double v = 0.0;
  for (const auto& [bytes, seconds] : points) {
    const double a = 1.0 / seconds;
    const double b = bytes / seconds;
    uu += a * a;
    uv += a * b;
    vv += b * b;
    u += a;
    v += b;
  }
  const double determinant = uu * vv - uv * uv;
  double fixed = determinant > 0.0 ? (u * vv - v * uv) / determinant : 0.0;
  double slope = determinant > 0.0 ? (v * uu - u * uv) / determinant : v / vv;
  if (fixed < 0.0) {
    fixed = 0.0;
    slope = v / vv;
  }
  // Bytes that take no time: as if they went at a rate that nobody waits for.
  constexpr double kNoTime = 1e15;
  return {fixed, slope > 1.0 / kNoTime ? 1.0 / slope : kNoTime};
}

plan::LinkProfile measure_links(int ranks, const MachineUse& use, int rounds) {
  TRIREME_CHECK(ranks > 1, "links of {} rank", ranks);
  constexpr size_t kNumKinds = std::size(kKinds);
  std::vector<std::vector<std::pair<double, double>>> points(kNumKinds);
  comm::run_ranks(
      ranks,
      [&](comm::World& world) {
        device::Device& device =
            device::get_device(device_of_rank(use.device, world.rank(), ranks));
        std::vector<int> members(static_cast<size_t>(ranks));
        std::iota(members.begin(), members.end(), 0);
        const std::unique_ptr<comm::Group> group = world.make_group(members, device);
        for (const int64_t size : kSizes) {
          Transfers transfers(world, *group, device, size);
          std::vector<std::vector<double>> seconds(kNumKinds);
          for (int round = 0; round <= rounds; ++round) {
            for (size_t i = 0; i < kNumKinds; ++i) {
              world.barrier();
              const double taken = seconds_on(device, kRepeats, [&] { transfers.run(kKinds[i]); });
              if (round > 0) seconds[i].push_back(taken / Transfers::transfers(kKinds[i]));
            }
          }
          if (world.rank() != 0) continue;
          for (size_t i = 0; i < kNumKinds; ++i)
            points[i].emplace_back(transfers.sent(kKinds[i]),
                                   plan::most_common(std::move(seconds[i])));
        }
      },
      use.links);
  plan::LinkProfile link;
  std::vector<LineFit> fits;
  std::vector<double> fixed;
  for (size_t i = 0; i < kNumKinds; ++i) {
    fits.push_back(fit_line(points[i]));
    fixed.push_back(fits.back().fixed_s);
    link.bytes_per_s = std::max(link.bytes_per_s, fits.back().bytes_per_s);
  }
  link.fixed_s = median(std::move(fixed));
  link.latency_s = 0.0;  // a call's and a hop's are one here
  const auto share = [&](Kind kind) {
    return fits[static_cast<size_t>(kind)].bytes_per_s / link.bytes_per_s;
  };
  link.all_to_all = share(Kind::kAllToAll);
  link.all_gather = share(Kind::kAllGather);
  link.reduce_scatter = share(Kind::kReduceScatter);
  link.all_reduce = share(Kind::kAllReduce);
  link.send_receive = share(Kind::kSend);
  return link;
}

}  // namespace trireme::calibrate
