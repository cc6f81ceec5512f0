#include "trireme/comm/process_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "trireme/comm/gloo/gloo_world.h"
#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/torch_store.h"

namespace trireme::comm {

namespace {

/// All ranks are started together; who is not there by then will not come.
constexpr double kLongestMeetingS = 120.0;

/// A world over TCP, and the rendezvous that tells it who is gone. Destroyed well it says goodbye; by an error, why.
class ProcessWorld final : public World {
 public:
  /// `address`: of this machine, for ranks of others.
  ProcessWorld(std::shared_ptr<Rendezvous> rendezvous, const std::string& address, double timeout_s)
      : rendezvous_(std::move(rendezvous)),
        timeout_s_(timeout_s),
        exceptions_(std::uncaught_exceptions()) {
    GlooOptions options;
    options.timeout_s = timeout_s;
    for (int rank = 0; rank < rendezvous_->size(); ++rank) {
      if (rendezvous_->host(rank) != rendezvous_->host(0)) options.address = address;
    }
    world_ = make_gloo_world(as_torch_store(rendezvous_, timeout_s), rendezvous_->rank(),
                             rendezvous_->size(), options);
    rendezvous_->on_peer_lost([this](const PeerLoss& loss) { world_->abort(describe(loss)); });
  }

  ~ProcessWorld() override {
    rendezvous_->on_peer_lost({});
    // Others wait for this rank: they are told at once that it ends.
    if (std::uncaught_exceptions() > exceptions_) world_->abort("it ended with an error");
    world_.reset();
    rendezvous_->leave(timeout_s_);
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
  void abort(const std::string& reason) override {
    rendezvous_->abort(reason);
    world_->abort(reason);
  }

 private:
  std::shared_ptr<Rendezvous> rendezvous_;
  double timeout_s_;
  int exceptions_;
  std::unique_ptr<World> world_;
};

}  // namespace

std::unique_ptr<World> make_process_world(const Placement& placement,
                                          const Environment& environment, double timeout_s) {
  if (placement.size == 1) return nullptr;
  MeetingOptions meeting = meeting_options(placement, environment);
  meeting.timeout_s = std::min(timeout_s, kLongestMeetingS);
  std::shared_ptr<Rendezvous> rendezvous = meet(meeting);
  const auto bind = environment.find("TRIREME_BIND");
  const std::string address =
      bind != environment.end() ? bind->second : rendezvous->host(rendezvous->rank());
  return std::make_unique<ProcessWorld>(std::move(rendezvous), address, timeout_s);
}

}  // namespace trireme::comm
