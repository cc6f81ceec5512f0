#include "trireme/comm/plugin/plugin_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/comm/plugin/collectives_library.h"
#include "trireme/comm/plugin/open_collectives.h"
#include "trireme/comm/plugin/plugin_group.h"

namespace trireme::comm {
namespace {

/// For messages, and to compare: where it lies may differ from host to host.
std::string name_of(const std::string& path) {
  return path.empty() ? "none" : std::filesystem::path(path).filename().string();
}

class PluginWorld final : public World {
 public:
  PluginWorld(std::unique_ptr<World> host, c10::intrusive_ptr<c10d::Store> store, double timeout_s)
      : host_(std::move(host)), store_(std::move(store)), timeout_s_(timeout_s) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string transport() const override { return host_->transport(); }
  std::string host(int rank) const override { return host_->host(rank); }
  std::vector<std::string> exchange(const std::string& bytes) override {
    return host_->exchange(bytes);
  }
  void barrier() override { host_->barrier(); }
  void check() override {
    host_->check();
    const std::string reason = session_->reason();
    if (!reason.empty()) throw Error(ErrorCode::kDevice, reason);
  }
  void abort(const std::string& reason) override {
    host_->abort(reason);
    session_->abort(reason);
  }

  std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                    device::Device& device) override {
    const std::string library = collectives_of(device.type());
    agree(device, library);
    if (library.empty() || members.size() == 1) return host_->make_group(members, device);
    check_members(members, size());
    const std::string list = list_ranks(members);
    check_same_group(host_->exchange(list), rank());
    const int64_t number = num_groups_++;
    const auto place = std::ranges::find(members, rank());
    if (place == members.end()) return nullptr;
    const auto own = static_cast<int>(place - members.begin());
    if (!std::exchange(said_, true)) log::info("collectives of {}: {}", device.type(), library);
    GroupBackends backends;
    try {
      backends.collectives = open(device, number, "all", own, members.size());
      backends.up = open(device, number, "up", own, members.size());
      backends.down = open(device, number, "down", own, members.size());
    } catch (const std::exception& error) {
      const std::string reason =
          fmt::format("rank {} ({}) has no collectives of {} for group {}: {}", rank(),
                      host(rank()), name_of(library), list, error.what());
      abort(reason);
      throw Error(ErrorCode::kDevice, reason,
                  "device.collectives = \"host\" sends through the host's memory");
    }
    return std::make_unique<PluginGroup>(members, own, device, std::move(backends), session_);
  }

 private:
  /// A rank without the library would wait for ever.
  void agree(const device::Device& device, const std::string& library) {
    if (!agreed_.insert(device.type()).second) return;
    const std::vector<std::string> all = host_->exchange(name_of(library));
    for (size_t other = 1; other < all.size(); ++other) {
      TRIREME_USER_CHECK(all[other] == all[0], kConfig,
                         "install the same on all machines, or set device.collectives to \"host\"",
                         "the collectives of {} differ: rank 0 ({}) has {}, rank {} ({}) has {}",
                         device.type(), host(0), all[0], other, host(static_cast<int>(other)),
                         all[other]);
    }
  }

  c10::intrusive_ptr<c10d::Backend> open(const device::Device& device, int64_t number,
                                         const std::string& what, int own, size_t size) {
    CollectivesRequest request{
        c10::make_intrusive<c10d::PrefixStore>(fmt::format("collectives/{}/{}", number, what),
                                               store_),
        own, static_cast<int>(size), device.torch_device(),
        std::chrono::milliseconds(static_cast<int64_t>(timeout_s_ * 1e3) + 1)};
    return open_collectives(device.type(), request);
  }

  const std::unique_ptr<World> host_;
  const c10::intrusive_ptr<c10d::Store> store_;
  const double timeout_s_;
  const std::shared_ptr<PluginSession> session_ = std::make_shared<PluginSession>();
  std::set<std::string> agreed_;
  int64_t num_groups_ = 0;
  bool said_ = false;
};

}  // namespace

std::unique_ptr<World> make_plugin_world(std::unique_ptr<World> host,
                                         c10::intrusive_ptr<c10d::Store> store, double timeout_s) {
  return std::make_unique<PluginWorld>(std::move(host), std::move(store), timeout_s);
}

}  // namespace trireme::comm
