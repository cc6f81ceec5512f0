// Order: within a queue, between queues, and between the device and the host.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <memory>

#include "trireme/device/conformance/trials.h"

namespace trireme::device::conformance {
namespace {

constexpr int64_t kElements = int64_t{1} << 20;
constexpr int kSteps = 24;
// An event that is not polled to its end is waited for: queues may run only when somebody waits.
constexpr int kPolls = 10000;

/// So much work that what does not wait for it comes too early.
void count_up(at::Tensor& x) {
  for (int i = 0; i < kSteps; ++i) x.add_(1);
}

}  // namespace

void try_queue_order(Trials& trials) {
  for (const int64_t size : {int64_t{1}, int64_t{37}, kElements}) {
    trials.trial(fmt::format("{} elements", size), [&] {
      at::Tensor x = at::zeros({size}, trials.here());
      double want = 0;
      // Two operations that do not commute.
      for (int i = 1; i <= kSteps; ++i) {
        x.add_(i);
        x.mul_(-1);
        want = -(want + i);
      }
      return not_all(x, want);
    });
  }
}

void try_queues_and_events(Trials& trials) {
  Queue& compute = trials.device.compute_queue();
  for (int number = 0; number < 4; ++number) {
    trials.trial(fmt::format("a queue waits for another, {}", number), [&] {
      const std::unique_ptr<Queue> side = trials.device.new_queue();
      at::Tensor x = at::zeros({kElements}, trials.here());
      at::Tensor y;
      at::Tensor z;
      count_up(x);
      side->wait_for(*compute.record());
      {
        const QueueGuard guard(*side);
        y = x * 2;
        count_up(y);
      }
      compute.wait_for(*side->record());
      z = y + 1;
      // Only the compute queue is waited for.
      const std::string problem = not_all(z, 3 * kSteps + 1);
      trials.device.synchronize();
      return problem;
    });
  }
  trials.trial("a chain through four queues", [&] {
    at::Tensor x = at::zeros({kElements}, trials.here());
    std::vector<std::unique_ptr<Queue>> queues;
    std::unique_ptr<Event> before = compute.record();
    for (int i = 0; i < 4; ++i) {
      queues.push_back(trials.device.new_queue());
      queues.back()->wait_for(*before);
      const QueueGuard guard(*queues.back());
      x.mul_(2);
      x.add_(1);
      before = queues.back()->record();
    }
    compute.wait_for(*before);
    const std::string problem = not_all(x, 15);
    trials.device.synchronize();
    return problem;
  });
  trials.trial("an event that was reached before it is waited for", [&] {
    const std::unique_ptr<Queue> side = trials.device.new_queue();
    const at::Tensor x = at::full({5}, 3, trials.here());
    const std::unique_ptr<Event> event = compute.record();
    event->wait();
    side->wait_for(*event);
    const QueueGuard guard(*side);
    return not_all(x + 1, 4);
  });
}

void try_events(Trials& trials) {
  Queue& compute = trials.device.compute_queue();
  for (const bool poll : {true, false}) {
    trials.trial(poll ? "done() is true when the work before is done" : "wait() returns then", [&] {
      at::Tensor host = trials.device.empty_pinned({kElements}, at::kFloat);
      host.fill_(-1);
      at::Tensor x = at::zeros({kElements}, trials.here());
      count_up(x);
      trials.device.copy(host, x, compute);
      const std::unique_ptr<Event> event = compute.record();
      bool done = false;
      for (int i = 0; poll && i < kPolls && !done; ++i) done = event->done();
      if (!done) event->wait();
      const std::string problem = not_all(host, kSteps);
      trials.device.synchronize();
      if (!problem.empty()) return problem;
      return event->done() ? std::string() : "done() is false after it";
    });
  }
  trials.trial("an event does not wait for what comes after it", [&] {
    const at::Tensor x = at::full({3}, 2, trials.here());
    const std::unique_ptr<Event> event = compute.record();
    at::Tensor later = at::zeros({kElements}, trials.here());
    count_up(later);
    event->wait();
    if (!event->done()) return std::string("done() is false after wait()");
    return not_all(x, 2) + not_all(later, kSteps);
  });
}

void try_synchronize(Trials& trials) {
  const auto issue = [&](Queue& queue, at::Tensor& x, at::Tensor& host) {
    const QueueGuard guard(queue);
    x = at::zeros({kElements}, trials.here());
    count_up(x);
    trials.device.copy(host, x, queue);
  };
  trials.trial("of a queue", [&] {
    const std::unique_ptr<Queue> side = trials.device.new_queue();
    at::Tensor host = trials.device.empty_pinned({kElements}, at::kFloat).fill_(-1);
    at::Tensor x;
    issue(*side, x, host);
    side->synchronize();
    const std::string problem = not_all(host, kSteps);
    trials.device.synchronize();
    return problem;
  });
  trials.trial("of the device, for all its queues", [&] {
    std::vector<std::unique_ptr<Queue>> queues;
    std::vector<at::Tensor> hosts;
    std::vector<at::Tensor> tensors(3);
    for (at::Tensor& x : tensors) {
      queues.push_back(trials.device.new_queue());
      hosts.push_back(trials.device.empty_pinned({kElements}, at::kFloat).fill_(-1));
      issue(*queues.back(), x, hosts.back());
    }
    trials.device.synchronize();
    std::string problem;
    for (const at::Tensor& host : hosts) {
      if (problem.empty()) problem = not_all(host, kSteps);
    }
    for (const auto& queue : queues) queue->synchronize();
    return problem;
  });
}

void try_event_times(Trials& trials) {
  trials.trial("later events have later times", [&] {
    Queue& compute = trials.device.compute_queue();
    at::Tensor x = at::zeros({kElements}, trials.here());
    std::vector<std::unique_ptr<Event>> events;
    for (int i = 0; i < 4; ++i) {
      events.push_back(compute.record());
      x.add_(1);
    }
    std::vector<double> seconds;
    for (const auto& event : events) event->wait();
    for (const auto& event : events) seconds.push_back(event->seconds());
    for (size_t i = 0; i < seconds.size(); ++i) {
      if (!std::isfinite(seconds[i])) return fmt::format("event {} has no time", i);
      if (i > 0 && seconds[i] < seconds[i - 1])
        return fmt::format("event {} is {} s before the one before it", i,
                           seconds[i - 1] - seconds[i]);
    }
    return std::string();
  });
}

void try_host_reads(Trials& trials) {
  trials.trial("item() waits for the work before it", [&] {
    at::Tensor x = at::zeros({kElements}, trials.here());
    count_up(x);
    const auto got = x[kElements - 1].item<float>();
    return got == kSteps ? std::string() : fmt::format("it is {}, not {}", got, kSteps);
  });
  trials.trial("a copy to the CPU waits for the work before it", [&] {
    at::Tensor x = at::zeros({kElements}, trials.here());
    count_up(x);
    return not_all(x.cpu(), kSteps);
  });
  trials.trial("item() of every type", [&] {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kLong, at::kInt}) {
      const auto got = at::full({1}, 5, trials.here(dtype)).item().toDouble();
      if (got != 5) return fmt::format("{} 5 reads as {}", c10::toString(dtype), got);
    }
    return std::string();
  });
}

}  // namespace trireme::device::conformance
