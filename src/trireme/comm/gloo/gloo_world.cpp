#include "trireme/comm/gloo/gloo_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/comm/gloo/carrier.h"
#include "trireme/comm/gloo/session.h"

namespace trireme::comm {
namespace {

class GlooWorld final : public World {
 public:
  GlooWorld(std::shared_ptr<gloo::transport::Device> device, std::shared_ptr<GlooSession> session)
      : device_(std::move(device)), session_(std::move(session)) {}
  int rank() const override { return session_->rank(); }
  int size() const override { return session_->size(); }
  std::string transport() const override { return "gloo"; }
  std::string host(int rank) const override { return session_->host(rank); }

  std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                    device::Device& device) override {
    check_members(members, size());
    const int64_t number = num_groups_++;
    const std::string list = list_ranks(members);
    const std::vector<std::string> lists =
        session_->exchange(list, fmt::format("make_group {}", list));
    check_same_group(lists, rank());
    const auto place = std::ranges::find(members, rank());
    if (place == members.end()) return nullptr;
    const auto rank = static_cast<int>(place - members.begin());
    std::shared_ptr<Carrier> carrier;
    if (members.size() > 1)
      carrier = std::make_shared<GlooCarrier>(session_, number, members, rank, device_);
    return std::make_unique<StagedGroup>(members, rank, device, std::move(carrier));
  }

  std::vector<std::string> exchange(const std::string& bytes) override {
    return session_->exchange(bytes, fmt::format("exchange #{}", num_exchanges_++));
  }
  void barrier() override { session_->exchange("", fmt::format("barrier #{}", num_barriers_++)); }
  void abort(const std::string& reason) override {
    session_->abort(fmt::format("{} gave up: {}", session_->name_ranks({rank()}), reason));
  }

 private:
  const std::shared_ptr<gloo::transport::Device> device_;
  const std::shared_ptr<GlooSession> session_;
  int64_t num_groups_ = 0;
  int64_t num_exchanges_ = 0;
  int64_t num_barriers_ = 0;
};

}  // namespace

std::unique_ptr<World> make_gloo_world(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                       const GlooOptions& options) {
  std::shared_ptr<gloo::transport::Device> device = open_gloo_device(options);
  auto session = std::make_shared<GlooSession>(std::move(store), rank, size, options);
  return std::make_unique<GlooWorld>(std::move(device), std::move(session));
}

}  // namespace trireme::comm
