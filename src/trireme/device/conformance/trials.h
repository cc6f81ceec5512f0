// The trials of one behaviour. Private to conformance/.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <string>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/conformance/device_conformance.h"

namespace trireme::device::conformance {

class Trials {
 public:
  Trials(std::string name, Device& device, Device* peer) : device(device), peer(peer) {
    result.name = std::move(name);
  }

  /// One trial: what `run` returns is what went wrong, "" if nothing did.
  template <class Run>
  void trial(const std::string& what, const Run& run) {
    ++result.trials;
    std::string problem;
    try {
      problem = run();
    } catch (const c10::Error& error) {
      problem = fmt::format("it throws: {}", error.what_without_backtrace());
    } catch (const std::exception& error) {
      problem = fmt::format("it throws: {}", error.what());
    }
    if (!problem.empty()) result.problems.push_back(fmt::format("{}: {}", what, problem));
  }
  void skip(const std::string& why) { result.skipped = why; }

  at::TensorOptions here(at::ScalarType dtype = at::kFloat) const {
    return at::TensorOptions().dtype(dtype).device(device.torch_device());
  }
  bool is_cpu() const { return device.torch_device().is_cpu(); }
  AcceleratorSupport support() const {
    const auto* accelerator = dynamic_cast<const AcceleratorDevice*>(&device);
    return accelerator == nullptr ? AcceleratorSupport{} : accelerator->support();
  }

  Device& device;
  Device* peer;
  Behaviour result;
};

/// "" if the tensors are equal in every bit; else the first element that is not. Both may lie anywhere.
std::string difference(const at::Tensor& got, const at::Tensor& want);
/// "" if every element is `value`.
std::string not_all(const at::Tensor& got, double value);

void try_queue_order(Trials& trials);
void try_queues_and_events(Trials& trials);
void try_events(Trials& trials);
void try_synchronize(Trials& trials);
void try_event_times(Trials& trials);
void try_copies(Trials& trials);
void try_peer_copies(Trials& trials);
void try_memory_statistics(Trials& trials);
void try_out_of_memory(Trials& trials);
void try_memory_reuse(Trials& trials);
void try_random_numbers(Trials& trials);
void try_views(Trials& trials);
void try_host_reads(Trials& trials);
void try_recorded_work(Trials& trials);

}  // namespace trireme::device::conformance
