// Copies and views: every layout on either side, with what lies between a view's elements.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <memory>

#include "trireme/device/conformance/trials.h"

namespace trireme::device::conformance {
namespace {

struct Layout {
  const char* name;
  at::Tensor (*view)(const at::Tensor& base);  ///< [5, 3] of a [12, 10] base
};
const Layout kLayouts[] = {
    {"in a wider matrix", [](const at::Tensor& b) { return b.narrow(0, 2, 5).narrow(1, 4, 3); }},
    {"transposed", [](const at::Tensor& b) { return b.narrow(0, 1, 3).narrow(1, 2, 5).t(); }},
    {"every second element",
     [](const at::Tensor& b) { return b.slice(0, 1, 11, 2).slice(1, 0, 6, 2); }},
    {"contiguous", [](const at::Tensor& b) { return b.flatten().narrow(0, 7, 15).view({5, 3}); }},
};

/// Counts up, with other numbers for another `from`; whole numbers below 128 that bfloat16 holds too.
at::Tensor numbers(int from, at::ScalarType dtype) {
  return at::arange(120, at::TensorOptions().dtype(at::kFloat))
      .add(from)
      .remainder(dtype == at::kBool ? 2 : 101)
      .reshape({12, 10})
      .to(dtype);
}

bool has(const Capabilities& can, at::ScalarType dtype) {
  return std::find(can.dtypes.begin(), can.dtypes.end(), dtype) != can.dtypes.end();
}

/// Waits for the queue by an event, as a run does.
void wait(Queue& queue) {
  queue.record()->wait();
}

class CopyTrials {
 public:
  explicit CopyTrials(Trials& trials) : trials_(trials), device_(trials.device) {}

  void run(const Layout& from, const Layout& to, at::ScalarType in, at::ScalarType out) {
    // What a CPU copy makes of it, and of what lies around it.
    const at::Tensor source = numbers(0, in);
    const at::Tensor target = numbers(50, out);
    at::Tensor want = target.clone();
    to.view(want).copy_(from.view(source));
    const std::string what =
        fmt::format("{} {} to {} {}", c10::toString(in), from.name, c10::toString(out), to.name);
    for (const bool pinned : {false, true}) {
      trials_.trial(fmt::format("{} host to device, {}", pinned ? "pinned" : "pageable", what),
                    [&] {
                      at::Tensor host = host_copy(source, pinned);
                      const at::Tensor device = on_device(target);
                      device_.copy(to.view(device), from.view(host), queue_);
                      if (pinned) wait(queue_);
                      host.zero_();  // the host may do so now
                      return difference(device, want);
                    });
      trials_.trial(fmt::format("device to {} host, {}", pinned ? "pinned" : "pageable", what),
                    [&] {
                      const at::Tensor device = on_device(source);
                      const at::Tensor host = host_copy(target, pinned);
                      device_.copy(to.view(host), from.view(device), queue_);
                      if (pinned) wait(queue_);
                      const std::string problem = difference(host, want);
                      device_.synchronize();
                      return problem;
                    });
    }
    trials_.trial(fmt::format("on the device, {}", what), [&] {
      const at::Tensor device = on_device(source);
      const at::Tensor other = on_device(target);
      device_.copy(to.view(other), from.view(device), queue_);
      return difference(other, want);
    });
  }

  /// Of one more than the contents; waits, for a device that forgets to has its own trials.
  at::Tensor on_device(const at::Tensor& host) const {
    at::Tensor copy = host.to(device_.torch_device());
    device_.synchronize();
    return copy;
  }

 private:
  at::Tensor host_copy(const at::Tensor& tensor, bool pinned) const {
    if (!pinned) return tensor.clone();
    at::Tensor copy = device_.empty_pinned(tensor.sizes(), tensor.scalar_type());
    return copy.copy_(tensor);
  }

  Trials& trials_;
  Device& device_;
  Queue& queue_{device_.compute_queue()};
};

}  // namespace

void try_copies(Trials& trials) {
  CopyTrials copies(trials);
  const Capabilities can = trials.device.capabilities();
  const std::pair<at::ScalarType, at::ScalarType> types[] = {
      {at::kFloat, at::kFloat},    {at::kBFloat16, at::kBFloat16}, {at::kLong, at::kLong},
      {at::kInt, at::kInt},        {at::kBool, at::kBool},         {at::kFloat, at::kBFloat16},
      {at::kBFloat16, at::kFloat}, {at::kLong, at::kFloat},        {at::kFloat, at::kLong},
      {at::kInt, at::kLong},
  };
  for (const auto& [in, out] : types) {
    if (!has(can, in) || !has(can, out)) continue;
    for (const Layout& from : kLayouts) {
      for (const Layout& to : kLayouts) copies.run(from, to, in, out);
    }
  }
  trials.trial("an expanded source", [&] {
    const at::Tensor row = at::arange(7, at::TensorOptions().dtype(at::kFloat));
    at::Tensor device = at::empty({5, 7}, trials.here());
    trials.device.copy(device, row.expand({5, 7}), trials.device.compute_queue());
    return difference(device, row.expand({5, 7}));
  });
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0}, {4, 0}}) {
    trials.trial("nothing", [&] {
      at::Tensor device = at::empty(sizes, trials.here());
      trials.device.copy(device, at::empty(sizes), trials.device.compute_queue());
      return difference(device, at::empty(sizes));
    });
  }
  trials.trial("a scalar", [&] {
    at::Tensor device = at::empty({}, trials.here());
    trials.device.copy(device, at::full({}, 3.5), trials.device.compute_queue());
    return not_all(device, 3.5);
  });
  trials.trial("to the same place", [&] {
    at::Tensor device = at::full({9}, 4, trials.here());
    trials.device.copy(device, device, trials.device.compute_queue());
    return not_all(device, 4);
  });
}

void try_peer_copies(Trials& trials) {
  if (trials.peer == nullptr) return trials.skip("there is one device of this type");
  Device& peer = *trials.peer;
  for (const bool back : {false, true}) {
    Device& from = back ? peer : trials.device;
    Device& to = back ? trials.device : peer;
    trials.trial(
        fmt::format("from {} to {}", from.torch_device().str(), to.torch_device().str()), [&] {
          at::Tensor x = at::full({1 << 16}, 1, at::TensorOptions().device(from.torch_device()));
          for (int i = 0; i < 8; ++i) x.add_(1);
          at::Tensor y = x.to(to.torch_device());
          y.add_(1);
          // The target first: to look at the source would wait for it.
          const std::string problem = not_all(y, 10);
          return problem.empty() ? not_all(x, 9) : problem;
        });
  }
  trials.trial("of a view", [&] {
    const at::Tensor host = numbers(3, at::kFloat);
    const at::Tensor x = host.to(trials.device.torch_device());
    return difference(x.t().to(peer.torch_device()), host.t());
  });
}

void try_views(Trials& trials) {
  const CopyTrials copies(trials);
  const at::Tensor host = numbers(11, at::kFloat);
  for (const Layout& layout : kLayouts) {
    trials.trial(fmt::format("read, {}", layout.name), [&] {
      const at::Tensor device = copies.on_device(host);
      return difference(layout.view(device) * 2 + 1, layout.view(host) * 2 + 1);
    });
    trials.trial(fmt::format("written, {}", layout.name), [&] {
      const at::Tensor device = copies.on_device(host);
      at::Tensor want = host.clone();
      layout.view(device).add_(3);
      layout.view(want).add_(3);
      return difference(device, want);
    });
    trials.trial(fmt::format("filled, {}", layout.name), [&] {
      const at::Tensor device = copies.on_device(host);
      at::Tensor want = host.clone();
      layout.view(device).fill_(7);
      layout.view(want).fill_(7);
      return difference(device, want);
    });
    trials.trial(fmt::format("summed, {}", layout.name), [&] {
      const at::Tensor device = copies.on_device(host);
      return difference(layout.view(device).sum(0), layout.view(host).sum(0));
    });
    for (const Layout& other : kLayouts) {
      trials.trial(fmt::format("{} plus {}", layout.name, other.name), [&] {
        const at::Tensor device = copies.on_device(host);
        return difference(layout.view(device) + other.view(device),
                          layout.view(host) + other.view(host));
      });
      // Products of whole numbers below 2^24 are exact.
      trials.trial(fmt::format("{} times {}", layout.name, other.name), [&] {
        const at::Tensor device = copies.on_device(host);
        return difference(layout.view(device).matmul(other.view(device).t()),
                          layout.view(host).matmul(other.view(host).t()));
      });
    }
  }
  trials.trial("broadcast", [&] {
    const at::Tensor device = copies.on_device(host);
    return difference(device + device[0].expand({12, 10}), host + host[0]);
  });
}

}  // namespace trireme::device::conformance
