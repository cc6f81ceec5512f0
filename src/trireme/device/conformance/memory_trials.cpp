// Memory that is counted, that ends and that is used again; random numbers.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <memory>

#include "trireme/device/conformance/trials.h"

namespace trireme::device::conformance {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;
/// More than addresses reach: systems promise memory that they do not have.
constexpr int64_t kMoreThanAnyHas = int64_t{1} << 50;

/// What is wrong with a demand that no device can meet; "" if it is refused as it should be.
std::string refusal_of(int64_t bytes, const Trials& trials) {
  try {
    at::empty({bytes}, trials.here(at::kByte));
  } catch (const c10::OutOfMemoryError&) {
    return "";
  } catch (const Error& error) {
    return error.code() == ErrorCode::kDevice ? "" : error.what();
  } catch (const std::exception& error) {
    return fmt::format("it throws, but no c10::OutOfMemoryError: {}", error.what());
  }
  return fmt::format("{} bytes are given out", bytes);
}

std::string compute_after(const Trials& trials) {
  at::Tensor x = at::full({kMebibyte}, 3, trials.here());
  x.mul_(2);
  return not_all(x + 1, 7);
}

}  // namespace

void try_memory_statistics(Trials& trials) {
  if (!trials.support().memory_statistics)
    return trials.skip("its allocator is no c10::DeviceAllocator, so nothing is counted");
  Device& device = trials.device;
  device.synchronize();
  for (const int64_t bytes : {int64_t{4096}, kMebibyte, 16 * kMebibyte}) {
    trials.trial(fmt::format("{} bytes come and go", bytes), [&]() -> std::string {
      const MemoryStatistics before = device.memory();
      device.reset_peak_memory();
      if (device.memory().peak_allocated_bytes != device.memory().allocated_bytes)
        return "the peak does not start again from what is held";
      MemoryStatistics during;
      {
        const at::Tensor x = at::zeros({bytes / 4}, trials.here());
        during = device.memory();
      }
      device.synchronize();
      const MemoryStatistics after = device.memory();
      if (during.allocated_bytes < before.allocated_bytes + bytes)
        return fmt::format("{} bytes are held before, {} with them", before.allocated_bytes,
                           during.allocated_bytes);
      if (after.allocated_bytes != before.allocated_bytes)
        return fmt::format("{} bytes are held before, {} after", before.allocated_bytes,
                           after.allocated_bytes);
      if (after.peak_allocated_bytes < before.allocated_bytes + bytes)
        return fmt::format("the peak is {}", after.peak_allocated_bytes);
      if (during.reserved_bytes < during.allocated_bytes)
        return fmt::format("{} bytes are reserved, {} given out", during.reserved_bytes,
                           during.allocated_bytes);
      if (after.num_allocations <= before.num_allocations) return "the allocation is not counted";
      return "";
    });
  }
}

void try_out_of_memory(Trials& trials) {
  Device& device = trials.device;
  std::vector<int64_t> demands = {kMoreThanAnyHas};
  // The CPU's memory is what its system promises, which may be more than there is.
  if (!trials.is_cpu() && device.total_memory_bytes() > 0)
    demands.push_back(device.total_memory_bytes() + kMebibyte);
  for (const int64_t bytes : demands) {
    trials.trial(fmt::format("{} bytes are refused", bytes),
                 [&] { return refusal_of(bytes, trials); });
    trials.trial("then it computes", [&] { return compute_after(trials); });
    trials.trial("then memory is what it was", [&]() -> std::string {
      device.synchronize();
      const int64_t before = device.memory().allocated_bytes;
      refusal_of(bytes, trials);
      const int64_t after = device.memory().allocated_bytes;
      return before == after ? ""
                             : fmt::format("{} bytes are held before, {} after", before, after);
    });
  }
  trials.trial("in the middle of work", [&] {
    at::Tensor x = at::zeros({kMebibyte}, trials.here());
    for (int i = 0; i < 16; ++i) x.add_(1);
    const std::string refused = refusal_of(kMoreThanAnyHas, trials);
    for (int i = 0; i < 16; ++i) x.add_(1);
    return refused + not_all(x, 32);
  });
}

void try_memory_reuse(Trials& trials) {
  Device& device = trials.device;
  const std::unique_ptr<Queue> side = device.new_queue();
  for (const int64_t size : {int64_t{64}, int64_t{4096}, kMebibyte}) {
    for (const bool by_another : {false, true}) {
      const auto run = [&] {
        at::Tensor x = at::zeros({size}, trials.here());
        for (int i = 0; i < 8; ++i) {
          {
            const at::Tensor addend = at::full({size}, 1, trials.here());
            device.synchronize();  // it holds ones; what reads them is still to come
            x.add_(addend);
          }
          const at::Tensor in_its_place = at::full({size}, 100, trials.here());
          if (!by_another) continue;
          const QueueGuard guard(*side);
          const at::Tensor of_another = at::full({size}, 100, trials.here());
          side->synchronize();
        }
        return not_all(x, 8);
      };
      trials.trial(fmt::format("{} elements that are freed while work needs them{}", size,
                               by_another ? ", and wanted by another queue" : ""),
                   run);
    }
  }
  trials.trial("the source of a copy to pinned memory", [&] {
    Queue& queue = trials.device.compute_queue();
    const at::Tensor host = trials.device.empty_pinned({kMebibyte}, at::kFloat).fill_(-1);
    {
      const at::Tensor x = at::full({kMebibyte}, 5, trials.here());
      trials.device.copy(host, x, queue);
    }
    const at::Tensor in_its_place = at::full({kMebibyte}, 100, trials.here());
    queue.synchronize();
    return not_all(host, 5);
  });
}

void try_random_numbers(Trials& trials) {
  if (!trials.support().generator) return trials.skip("it gives no generator");
  Device& device = trials.device;
  const auto normal = [&] { return at::randn({512}, trials.here()); };
  const auto uniform = [&] { return at::rand({512}, trials.here()); };
  const auto same = [](const at::Tensor& a, const at::Tensor& b) {
    return difference(a, b).empty();
  };
  for (const bool gaussian : {true, false}) {
    const char* kind = gaussian ? "normal" : "uniform";
    const auto draw = [&] { return gaussian ? normal() : uniform(); };
    trials.trial(fmt::format("{}: a seed is the numbers", kind), [&]() -> std::string {
      device.seed(7);
      const at::Tensor first = draw();
      const at::Tensor second = draw();
      device.seed(7);
      if (!same(draw(), first) || !same(draw(), second)) return "the same seed gives other numbers";
      if (same(first, second)) return "the same numbers come again";
      device.seed(8);
      return same(draw(), first) ? "another seed gives the same numbers" : "";
    });
    trials.trial(fmt::format("{}: the state goes on", kind), [&]() -> std::string {
      device.seed(9);
      draw();
      const at::Tensor state = device.random_state();
      const at::Tensor want = draw();
      draw();
      device.set_random_state(state);
      return same(draw(), want) ? "" : "a state that was set gives other numbers";
    });
    if (trials.is_cpu()) continue;
    trials.trial(fmt::format("{}: what the host draws is apart", kind), [&]() -> std::string {
      device.seed(3);
      const at::Tensor want = draw();
      device.seed(3);
      at::rand({17});
      return same(draw(), want) ? "" : "numbers drawn on the CPU change those of the device";
    });
  }
  // A mean of n numbers of deviation s lies within 6 s / sqrt(n), but for one in 5e8.
  trials.trial("the mean and the spread", [&]() -> std::string {
    device.seed(11);
    constexpr int64_t kCount = 1 << 16;
    const double n = static_cast<double>(kCount);
    const at::Tensor x = at::randn({kCount}, trials.here()).cpu().to(at::kDouble);
    const at::Tensor u = at::rand({kCount}, trials.here()).cpu().to(at::kDouble);
    const double mean = x.mean().item<double>();
    const double square = x.square().mean().item<double>();
    const double middle = u.mean().item<double>();
    if (std::abs(mean) > 6 / std::sqrt(n)) return fmt::format("normal numbers have mean {}", mean);
    if (std::abs(square - 1) > 6 * std::sqrt(2 / n))
      return fmt::format("normal numbers have variance {}", square);
    if (std::abs(middle - 0.5) > 6 / std::sqrt(12 * n))
      return fmt::format("uniform numbers have mean {}", middle);
    if (u.min().item<double>() < 0 || u.max().item<double>() >= 1)
      return "uniform numbers lie outside of [0, 1)";
    return "";
  });
}

}  // namespace trireme::device::conformance
