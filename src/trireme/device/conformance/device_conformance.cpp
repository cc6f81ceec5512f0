#include "trireme/device/conformance/device_conformance.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <c10/core/ScalarType.h>

#include <cstring>

#include "trireme/base/suggest.h"
#include "trireme/device/conformance/trials.h"

namespace trireme::device::conformance {
namespace {

struct Entry {
  const char* name;
  void (*run)(Trials&);
};
constexpr Entry kEntries[] = {
    {"queue-order", &try_queue_order},
    {"queue-events", &try_queues_and_events},
    {"events", &try_events},
    {"synchronize", &try_synchronize},
    {"event-times", &try_event_times},
    {"recorded-work", &try_recorded_work},
    {"copies", &try_copies},
    {"peer-copies", &try_peer_copies},
    {"memory-statistics", &try_memory_statistics},
    {"out-of-memory", &try_out_of_memory},
    {"memory-reuse", &try_memory_reuse},
    {"random-numbers", &try_random_numbers},
    {"views", &try_views},
    {"host-reads", &try_host_reads},
};

Behaviour run(const Entry& entry, Device& device, Device* peer) {
  Trials trials(entry.name, device, peer);
  // Outside of a trial only the device's own preparations throw.
  try {
    entry.run(trials);
  } catch (const c10::Error& error) {
    trials.result.problems.push_back(fmt::format("it throws: {}", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    trials.result.problems.push_back(fmt::format("it throws: {}", error.what()));
  }
  if (trials.result.trials == 0 && trials.result.skipped.empty()) ++trials.result.trials;
  return std::move(trials.result);
}

}  // namespace

std::string difference(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor ours = got.cpu().contiguous();
  const at::Tensor theirs = want.cpu().contiguous();
  if (ours.sizes() != theirs.sizes() || ours.scalar_type() != theirs.scalar_type())
    return "it has another shape or type";
  const auto* a = static_cast<const char*>(ours.const_data_ptr());
  const auto* b = static_cast<const char*>(theirs.const_data_ptr());
  const size_t size = ours.element_size();
  for (int64_t i = 0; i < ours.numel(); ++i) {
    const size_t at = static_cast<size_t>(i) * size;
    if (std::memcmp(a + at, b + at, size) == 0) continue;
    const auto value = [i](const at::Tensor& tensor) {
      return tensor.flatten()[i].item().toDouble();
    };
    return fmt::format("element {} of {} is {}, not {}", i, ours.numel(), value(ours),
                       value(theirs));
  }
  return "";
}

std::string not_all(const at::Tensor& got, double value) {
  return difference(got, at::full(got.sizes(), value, at::TensorOptions().dtype(got.dtype())));
}

std::vector<std::string> behaviour_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return names;
}

std::vector<Behaviour> check_behaviours(Device& device, Device* peer) {
  std::vector<Behaviour> results;
  for (const Entry& entry : kEntries) results.push_back(run(entry, device, peer));
  return results;
}

Behaviour check_behaviour(const std::string& name, Device& device, Device* peer) {
  for (const Entry& entry : kEntries) {
    if (name == entry.name) return run(entry, device, peer);
  }
  throw Error(ErrorCode::kConfig, fmt::format("there is no behaviour '{}'", name),
              suggestion(name, behaviour_names()));
}

}  // namespace trireme::device::conformance
