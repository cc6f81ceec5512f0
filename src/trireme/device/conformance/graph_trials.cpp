// Work that is recorded and run again.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <fmt/format.h>

#include <utility>

#include "trireme/device/conformance/trials.h"

namespace trireme::device::conformance {
namespace {

constexpr int64_t kElements = int64_t{1} << 18;
constexpr int64_t kMoreThanAnyHas = int64_t{1} << 50;

/// y = x by way of memory that the work makes for itself.
void copy_by_way_of(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor between = at::empty_like(x);
  between.copy_(x);
  y.copy_(between);
}

}  // namespace

void try_recorded_work(Trials& trials) {
  Device& device = trials.device;
  if (!device.capabilities().graph_capture) {
    trials.skip("it records no work");
    return;
  }
  Queue& compute = device.compute_queue();
  trials.trial("it is done when it is asked for, each time with what is there then", [&] {
    const at::Tensor x = at::full({kElements}, 1, trials.here());
    const at::Tensor y = at::full({kElements}, -1, trials.here());
    const auto graph = device.record([&] { copy_by_way_of(x, y); }, device.new_graph_memory());
    std::string problem = not_all(y, -1);
    for (int i = 2; i < 5 && problem.empty(); ++i) {
      x.fill_(i);
      graph->replay(compute);
      problem = not_all(y, i);
    }
    device.synchronize();
    return problem;
  });
  trials.trial("its memory is nobody else's", [&] {
    const at::Tensor x = at::full({kElements}, 1, trials.here());
    const at::Tensor y = at::full({kElements}, -1, trials.here());
    const auto memory = device.new_graph_memory();
    const auto graph = device.record([&] { copy_by_way_of(x, y); }, memory);
    std::vector<at::Tensor> others;
    for (int i = 0; i < 4; ++i) others.push_back(at::full({kElements}, 7, trials.here()));
    graph->replay(compute);
    std::string problem = not_all(y, 1);
    for (const at::Tensor& other : others) {
      if (problem.empty()) problem = not_all(other, 7);
    }
    return problem;
  });
  trials.trial("one after the other in the same memory", [&] {
    const at::Tensor x = at::full({kElements}, 1, trials.here());
    const at::Tensor y = at::full({kElements}, -1, trials.here());
    const at::Tensor z = at::full({kElements}, -1, trials.here());
    const auto memory = device.new_graph_memory();
    at::Tensor kept;
    const auto first = device.record(
        [&] {
          kept = at::empty_like(x);
          kept.copy_(x);
        },
        memory);
    const auto second = device.record([&] { copy_by_way_of(kept, y); }, memory);
    kept.reset();
    const auto third = device.record([&] { copy_by_way_of(y, z); }, memory);
    std::string problem;
    for (int i = 2; i < 5 && problem.empty(); ++i) {
      x.fill_(i);
      for (Graph* graph : {first.get(), second.get(), third.get()}) graph->replay(compute);
      problem = not_all(z, i);
    }
    device.synchronize();
    return problem;
  });
  trials.trial("its memory is counted as long as it lives", [&] {
    const at::Tensor x = at::full({kElements}, 1, trials.here());
    const at::Tensor y = at::full({kElements}, -1, trials.here());
    device.synchronize();
    const int64_t before = device.memory().allocated_bytes;
    {
      const auto graph = device.record([&] { copy_by_way_of(x, y); }, device.new_graph_memory());
      device.synchronize();
      const int64_t during = device.memory().allocated_bytes;
      if (during < before + kElements * 4)
        return fmt::format("{} bytes are held before, {} with it", before, during);
    }
    device.synchronize();
    const int64_t after = device.memory().allocated_bytes;
    return before == after ? std::string()
                           : fmt::format("{} bytes are held before, {} after", before, after);
  });
  trials.trial("memory that ends while it is recorded says so, and all goes on", [&] {
    const at::Tensor x = at::full({kElements}, 1, trials.here());
    const at::Tensor y = at::full({kElements}, -1, trials.here());
    const auto memory = device.new_graph_memory();
    try {
      device.record(
          [&] {
            copy_by_way_of(x, y);
            at::empty({kMoreThanAnyHas}, trials.here(at::kByte));
          },
          memory);
      return std::string("it is given out");
    } catch (const c10::OutOfMemoryError&) {  // as outside of a recording
    }
    std::string problem = not_all(y, -1);
    x.fill_(3);
    const at::Tensor z = at::full({kElements}, 7, trials.here());
    const auto graph = device.record([&] { copy_by_way_of(x, y); }, memory);
    graph->replay(compute);
    for (const auto& [tensor, value] : {std::pair{y, 3.0}, std::pair{z, 7.0}}) {
      if (problem.empty()) problem = not_all(tensor, value);
    }
    return problem;
  });
  trials.trial("what throws while it is recorded leaves the device as it was", [&] {
    const at::Tensor x = at::full({3}, 1, trials.here());
    try {
      device.record(
          [&] {
            x.fill_(5);
            throw Error(ErrorCode::kData, "on purpose");
          },
          device.new_graph_memory());
      return std::string("it does not throw");
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kData) return std::string(error.what());
    }
    return not_all(x, 1);
  });
}

}  // namespace trireme::device::conformance
