#include "trireme/comm/staged_group.h"

#include <utility>

#include "trireme/base/error.h"
#include "trireme/comm/staging.h"

namespace trireme::comm {
namespace {

/// A transfer over a carrier.
class CarriedWork final : public Work {
 public:
  CarriedWork(TransferRef transfer, std::shared_ptr<Carrier> carrier)
      : transfer_(std::move(transfer)), carrier_(std::move(carrier)) {}
  bool done() const override { return transfer_->done(); }
  void wait(device::Queue& queue) override {
    carrier_->wait(transfer_);
    transfer_->rethrow();
    if (transfer_->event != nullptr) queue.wait_for(*transfer_->event);
    transfer_->let_go();
  }
  double start_s() const override { return transfer_->start_s(); }
  double end_s() const override { return transfer_->end_s(); }

 private:
  const TransferRef transfer_;
  const std::shared_ptr<Carrier> carrier_;
};

}  // namespace

StagedGroup::StagedGroup(std::vector<int> members, int rank, device::Device& device,
                         std::shared_ptr<Carrier> carrier, std::shared_ptr<const DeviceClock> clock)
    : RequestGroup(std::move(members), rank, device), carrier_(std::move(carrier)) {
  TRIREME_CHECK(carrier_ != nullptr || size() == 1, "group {} has no carrier",
                list_ranks(this->members()));
  if (!device.torch_device().is_cpu() && size() > 1)
    staging_ = std::make_shared<Staging>(device, std::move(clock));
}

StagedGroup::~StagedGroup() {
  if (staging_ != nullptr) staging_->close();
}

Group::Pending StagedGroup::start(Request request, device::Queue& after) {
  std::string name = describe(request, members());
  auto transfer = std::make_shared<Transfer>(std::move(request), std::move(name));
  if (staging_ != nullptr) {
    staging_->issue(transfer, after.record(),
                    [carrier = carrier_](const TransferRef& ready) { carrier->start(ready); });
  } else {
    transfer->host_in = transfer->request().in;
    transfer->host_out = transfer->request().out;
    carrier_->start(transfer);
  }
  return std::make_unique<CarriedWork>(std::move(transfer), carrier_);
}

}  // namespace trireme::comm
