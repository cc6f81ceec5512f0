#include "trireme/comm/local/local_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/comm/local/hub.h"
#include "trireme/comm/rank_threads.h"
#include "trireme/comm/staged_group.h"
#include "trireme/comm/staging.h"
#include "trireme/device/sim/sim.h"

namespace trireme::comm {
namespace {

class LocalCarrier final : public Carrier {
 public:
  LocalCarrier(std::shared_ptr<LocalHub> hub, int64_t group, int rank)
      : hub_(std::move(hub)), group_(group), rank_(rank) {}
  void start(const TransferRef& transfer) override { hub_->post(group_, rank_, transfer); }
  void wait(const TransferRef& transfer) override { hub_->wait(transfer); }

 private:
  const std::shared_ptr<LocalHub> hub_;
  const int64_t group_;
  const int rank_;
};

/// That of device/sim.
class SimulatedClock final : public DeviceClock {
 public:
  double seconds() const override { return device::sim::host_clock(); }
  void set(double seconds) const override { device::sim::set_host_clock(seconds); }
};

class LocalWorld final : public World {
 public:
  LocalWorld(std::shared_ptr<LocalHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  ~LocalWorld() override { hub_->leave(rank_); }
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  std::string transport() const override { return "local"; }
  std::string host(int /*rank*/) const override { return hub_->host(); }

  std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                    device::Device& device) override {
    check_members(members, size());
    const int64_t number = num_groups_++;
    const std::string list = list_ranks(members);
    check_same_group(hub_->exchange(rank_, list, fmt::format("make_group {}", list)), rank_);
    const auto place = std::ranges::find(members, rank_);
    if (place == members.end()) return nullptr;
    hub_->add_group(number, members);
    const auto rank = static_cast<int>(place - members.begin());
    auto carrier = std::make_shared<LocalCarrier>(hub_, number, rank);
    std::shared_ptr<const DeviceClock> clock;
    if (hub_->is_simulated()) {
      TRIREME_CHECK(device.type() == "sim", "a group on {} on the clock of sim", device.type());
      clock = std::make_shared<SimulatedClock>();
    }
    return std::make_unique<StagedGroup>(members, rank, device, std::move(carrier),
                                         std::move(clock));
  }

  std::vector<std::string> exchange(const std::string& bytes) override {
    return hub_->exchange(rank_, bytes, fmt::format("exchange #{}", num_exchanges_++));
  }
  void barrier() override {
    hub_->exchange(rank_, "", fmt::format("barrier #{}", num_barriers_++));
  }
  void check() override { hub_->check(); }
  void abort(const std::string& reason) override {
    hub_->abort(fmt::format("{} gave up: {}", hub_->name_ranks({rank_}), reason));
  }

 private:
  const std::shared_ptr<LocalHub> hub_;
  const int rank_;
  int64_t num_groups_ = 0;
  int64_t num_exchanges_ = 0;
  int64_t num_barriers_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<World>> make_local_worlds(int size, const LocalOptions& options) {
  TRIREME_CHECK(size >= 1, "a world of {} ranks", size);
  const auto hub = std::make_shared<LocalHub>(size, options);
  std::vector<std::unique_ptr<World>> worlds;
  for (int rank = 0; rank < size; ++rank) worlds.push_back(std::make_unique<LocalWorld>(hub, rank));
  return worlds;
}

void run_ranks(int size, const std::function<void(World&)>& body, const LocalOptions& options) {
  std::vector<std::unique_ptr<World>> worlds = make_local_worlds(size, options);
  run_rank_threads(
      size, [&](int rank) { return std::move(worlds[static_cast<size_t>(rank)]); }, body);
}

}  // namespace trireme::comm
