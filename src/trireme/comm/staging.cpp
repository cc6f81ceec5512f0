#include "trireme/comm/staging.h"

#include <exception>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"

namespace trireme::comm {

Staging::Staging(device::Device& device, std::shared_ptr<const DeviceClock> clock)
    : device_(device), clock_(std::move(clock)), out_queue_(device.new_queue()) {}

void Staging::issue(const TransferRef& transfer, std::unique_ptr<device::Event> ready,
                    std::function<void(const TransferRef&)> start) {
  transfer->then = [staging = weak_from_this()](const TransferRef& arrived) {
    const auto self = staging.lock();
    const bool taken = self != nullptr && self->coming_.push([self, arrived] {
      try {
        self->copy_in(arrived);
      } catch (...) {
        arrived->fail(std::current_exception());
      }
    });
    if (!taken) {
      arrived->fail(std::make_exception_ptr(
          Error(ErrorCode::kDevice, arrived->name() + " arrived after its group had ended")));
    }
  };
  // Shared: a std::function is copied.
  std::shared_ptr<device::Event> event = std::move(ready);
  const bool taken = leaving_.push([this, transfer, event, start = std::move(start)] {
    try {
      copy_out(transfer, *event);
      start(transfer);
    } catch (...) {
      transfer->fail(std::current_exception());
    }
  });
  TRIREME_CHECK(taken, "{} is issued to a group that has ended", transfer->name());
}

void Staging::close() {
  leaving_.close();
  coming_.close();
}

void Staging::copy_out(const TransferRef& transfer, const device::Event& ready) {
  const Request& request = transfer->request();
  if (clock_ != nullptr) clock_->set(0.0);
  out_queue_->wait_for(ready);
  if (request.in.defined() && request.in.numel() > 0) {
    const at::Tensor from = request.in.view({-1});
    transfer->host_in = take(from);
    device_.copy(transfer->host_in, from, *out_queue_);
  }
  if (request.out.defined() && request.out.numel() > 0) {
    // In place, as all_reduce is: one copy of the bytes.
    const bool in_place = request.in.defined() && request.in.is_same(request.out);
    transfer->host_out = in_place ? transfer->host_in : take(request.out.view({-1}));
  }
  // Also what is written may be in use until then.
  transfer->event = out_queue_->record();
  transfer->event->wait();
  if (clock_ != nullptr) transfer->ready_s = clock_->seconds();
}

device::Queue& Staging::in_queue(const Request& request) {
  const bool pair = !is_collective(request.kind);
  std::unique_ptr<device::Queue>& queue =
      in_queues_[{pair ? request.kind : TransferKind::kAllToAll, pair ? request.peer : -1}];
  if (queue == nullptr) queue = device_.new_queue();
  return *queue;
}

void Staging::copy_in(const TransferRef& transfer) {
  const Request& request = transfer->request();
  device::Queue& queue = in_queue(request);
  if (clock_ != nullptr) clock_->set(transfer->end_s());
  queue.wait_for(*transfer->event);
  if (request.out.defined() && request.out.numel() > 0)
    device_.copy(request.out.view({-1}), transfer->host_out, queue);
  transfer->event = queue.record();
  transfer->event->wait();
  if (!transfer->host_in.is_same(transfer->host_out)) give_back(transfer->host_in);
  give_back(transfer->host_out);
  // On the device's clock: as long before the last copy's end as on the clock that the transfer had.
  const double end_s = transfer->event->seconds();
  const double now_s = clock_ != nullptr ? clock_->seconds() : steady_clock().now_s();
  transfer->finish(end_s - (now_s - transfer->start_s()), end_s);
}

at::Tensor Staging::take(const at::Tensor& like) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = spare_.find({like.scalar_type(), like.numel()});
    if (found != spare_.end()) {
      at::Tensor host = std::move(found->second);
      spare_.erase(found);
      return host;
    }
  }
  return device_.empty_pinned({like.numel()}, like.scalar_type());
}

void Staging::give_back(at::Tensor& host) {
  if (!host.defined()) return;
  const std::lock_guard lock(mutex_);
  const std::pair key(host.scalar_type(), host.numel());
  spare_.emplace(key, std::move(host));
}

}  // namespace trireme::comm
