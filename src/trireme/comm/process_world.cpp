#include "trireme/comm/process_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/comm/gloo/gloo_world.h"
#include "trireme/comm/plugin/plugin_world.h"
#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/torch_store.h"
#include "trireme/comm/serial_thread.h"

namespace trireme::comm {

namespace {

/// All ranks are started together; who is not there by then will not come.
constexpr double kLongestMeetingS = 120.0;

/// A world over TCP, and the rendezvous that tells it who is gone. It says goodbye when it ends, unless it was aborted.
class ProcessWorld final : public World {
 public:
  /// `address`: of this machine, for the other ranks.
  ProcessWorld(std::shared_ptr<Rendezvous> rendezvous, const std::string& address, double timeout_s)
      : rendezvous_(std::move(rendezvous)), timeout_s_(timeout_s) {
    GlooOptions options;
    options.timeout_s = timeout_s;
    options.address = address;
    const c10::intrusive_ptr<c10d::Store> store = as_torch_store(rendezvous_, timeout_s);
    world_ =
        make_plugin_world(make_gloo_world(store, rendezvous_->rank(), rendezvous_->size(), options),
                          store, timeout_s);
    // From a thread of its own: an abort asks the rendezvous, which waits for the end of this call.
    rendezvous_->on_peer_lost([this](const PeerLoss& loss) {
      note(describe(loss));
      news_.push([this, reason = describe(loss)] { world_->abort(reason); });
    });
  }

  ~ProcessWorld() override {
    rendezvous_->on_peer_lost({});
    news_.close();
    world_.reset();
    rendezvous_->leave(reason().empty() ? timeout_s_ : 0.0);
  }

  int rank() const override { return world_->rank(); }
  int size() const override { return world_->size(); }
  std::string transport() const override { return world_->transport(); }
  std::string host(int rank) const override { return world_->host(rank); }
  std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                    device::Device& device) override {
    return world_->make_group(members, device);
  }
  std::vector<std::string> exchange(const std::string& bytes) override {
    return world_->exchange(bytes);
  }
  void barrier() override { world_->barrier(); }
  void check() override {
    if (!ends_.load(std::memory_order_acquire)) return;  // asked before every instruction
    throw Error(ErrorCode::kDevice, reason(),
                "the last checkpoint is complete: start the run again");
  }
  void abort(const std::string& reason) override {
    note(reason);
    rendezvous_->abort(reason);
    world_->abort(reason);
  }

 private:
  /// The first reason stays.
  void note(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = reason;
    ends_.store(true, std::memory_order_release);
  }
  std::string reason() {
    const std::lock_guard lock(mutex_);
    return reason_;
  }

  std::shared_ptr<Rendezvous> rendezvous_;
  double timeout_s_;
  std::mutex mutex_;
  std::string reason_;  ///< why the run ends; empty: it does not
  std::atomic<bool> ends_{false};
  std::unique_ptr<World> world_;
  SerialThread news_{"comm-news"};
};

}  // namespace

std::unique_ptr<World> make_process_world(const Placement& placement,
                                          const Environment& environment, double timeout_s) {
  if (placement.size == 1) return nullptr;
  MeetingOptions meeting = meeting_options(placement, environment);
  meeting.timeout_s = std::min(timeout_s, kLongestMeetingS);
  std::shared_ptr<Rendezvous> rendezvous = meet(meeting);
  const auto bind = environment.find("TRIREME_BIND");
  const std::string address = bind != environment.end() ? bind->second : rendezvous->address();
  return std::make_unique<ProcessWorld>(std::move(rendezvous), address, timeout_s);
}

}  // namespace trireme::comm
