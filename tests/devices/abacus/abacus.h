// A device of a third party, for tests of plug-ins: host memory, queues that run on whichever thread waits for them, PyTorch's
// public interface and nothing else. It shares no code with Trireme. Internal to abacus/.
//
// ABACUS_DEFECT names what it lacks or does wrong, several with commas; the tests name them (plugin_device_test.py,
// device_conformance_test.py). ABACUS_MEMORY_BYTES is the memory of each of its two devices.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <optional>

namespace abacus {

constexpr int kDevices = 2;
constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

/// ABACUS_DEFECT has the word.
bool has_defect(const char* word);

int current_device();
void set_current_device(int device);
c10::Stream current_stream(int device);
void set_current_stream(const c10::Stream& stream);
c10::Stream make_stream(int device);

/// A point in a stream: so many pieces of work.
struct Point {
  c10::StreamId stream;
  int device;
  int64_t count;
};

/// Work waits in its stream until somebody waits for it.
void issue(const c10::Stream& stream, std::function<void()> work);
Point here(const c10::Stream& stream);
bool reached(const Point& point);
void run_to(const Point& point);
void run_all(int device);

/// The same elements as a CPU tensor, for use in issued work.
at::Tensor on_host(const at::Tensor& tensor);

bool is_pinned(const void* address);
void register_allocators();
void register_operators();
/// Takes `count` of the generator's numbers (of the device's, without one); each call gives the next, uniform in [0, 1).
std::function<double()> take_draws(const std::optional<at::Generator>& generator, int device,
                                   int64_t count);
void register_hooks();
void register_guard();

}  // namespace abacus
