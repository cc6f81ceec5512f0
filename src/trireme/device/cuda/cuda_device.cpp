#include "trireme/device/cuda/cuda_device.h"

#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/profiler/stubs/base.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/library.h"

namespace trireme::device::cuda {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

cudaDeviceProp properties_of(int index) {
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return properties;
}

struct CudaGraphMemory final : GraphMemory {
  /// `total`: of all memory of recorded work on the device; outlives this.
  explicit CudaGraphMemory(std::atomic<int64_t>& total) : total_(total) {}
  ~CudaGraphMemory() override { total_ -= bytes_; }

  /// What the allocator holds for it now.
  void count() {
    int64_t bytes = 0;
    // Without what is in use: the allocator counts that itself.
    for (const auto& segment : allocator::snapshot(pool).segments)
      bytes += static_cast<int64_t>(segment.total_size - segment.active_size);
    total_ += bytes - bytes_;
    bytes_ = bytes;
  }

  at::cuda::MempoolId_t pool = at::cuda::graph_pool_handle();
  bool used = false;

 private:
  std::atomic<int64_t>& total_;
  int64_t bytes_ = 0;
};

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(std::shared_ptr<CudaGraphMemory> memory) : memory_(std::move(memory)) {}
  void replay(Queue& queue) override {
    const QueueGuard guard(queue);
    graph.replay();
  }
  at::cuda::CUDAGraph graph;

 private:
  const std::shared_ptr<CudaGraphMemory> memory_;
};

class CudaDevice final : public AcceleratorDevice {
 public:
  explicit CudaDevice(int index)
      : AcceleratorDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index))),
        properties_(properties_of(index)),
        recording_(c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(index))) {}

  std::string name() const override { return properties_.name; }

  Capabilities capabilities() const override {
    Capabilities result = AcceleratorDevice::capabilities();
    result.graph_capture = true;
    result.records_aten = true;
    // Of cuBLAS, for the stream that computes.
    result.library_bytes = static_cast<int64_t>(at::cuda::getChosenWorkspaceSize());
    const int mine = torch_device().index();
    for (int other = 0; other < c10::cuda::device_count(); ++other) {
      int can = 0;
      if (other != mine) C10_CUDA_CHECK(cudaDeviceCanAccessPeer(&can, mine, other));
      result.peer_access = result.peer_access || can != 0;
    }
    return result;
  }

  /// The allocator takes a share of the device: the next one below `bytes` that a double holds.
  void set_memory_cap(int64_t bytes) override {
    const int64_t total = total_memory_bytes();
    TRIREME_USER_CHECK(bytes >= 0 && bytes <= total, kConfig, "lower the cap, or leave it away",
                       "a memory cap of {} bytes on {}, which has {}", bytes, torch_device().str(),
                       total);
    const double share = bytes == 0 ? 1.0 : static_cast<double>(bytes) / static_cast<double>(total);
    allocator::setMemoryFraction(share, torch_device().index());
    const std::lock_guard lock(mutex_);
    cap_bytes_ = bytes;
  }

  MemoryStatistics memory() const override {
    MemoryStatistics result = AcceleratorDevice::memory();
    const std::lock_guard lock(mutex_);
    result.cap_bytes = cap_bytes_;
    // Tensors of recorded work are gone when it is recorded; their memory is not.
    result.allocated_bytes += graph_bytes_;
    result.peak_allocated_bytes =
        std::max(recorded_peak_, result.peak_allocated_bytes + graph_bytes_);
    return result;
  }
  void reset_peak_memory() override {
    AcceleratorDevice::reset_peak_memory();
    const std::lock_guard lock(mutex_);
    recorded_peak_ = 0;
  }

  std::shared_ptr<GraphMemory> new_graph_memory() override {
    return std::make_shared<CudaGraphMemory>(graph_bytes_);
  }
  /// On a stream beside: the default stream cannot be recorded.
  std::unique_ptr<Graph> record(const std::function<void()>& work,
                                const std::shared_ptr<GraphMemory>& memory) override {
    const auto pool = std::dynamic_pointer_cast<CudaGraphMemory>(memory);
    TRIREME_CHECK(pool != nullptr, "work of {} is recorded into other memory",
                  torch_device().str());
    // What earlier steps left in the allocator would be held twice.
    if (!std::exchange(pool->used, true)) allocator::emptyCache();
    auto graph = std::make_unique<CudaGraph>(pool);
    const int64_t before = this->memory().peak_allocated_bytes;
    const c10::cuda::CUDAStreamGuard guard(recording_);
    try {
      try {
        graph->graph.capture_begin(pool->pool, cudaStreamCaptureModeThreadLocal);
        work();
        graph->graph.capture_end();
      } catch (...) {
        abandon(graph->graph, pool->pool);
        throw;
      }
      keep_peak(before, *pool);
    } catch (const c10::OutOfMemoryError&) {
      throw;  // says what was held
    } catch (const c10::Error& error) {
      throw Error(ErrorCode::kDevice,
                  fmt::format("{}: {}", torch_device().str(), error.what_without_backtrace()),
                  "run it without graphs");
    }
    return graph;
  }

  // NVTX, as the wheel binds it: nothing happens where no profiler listens.
  bool has_ranges() const override { return torch::profiler::impl::cudaStubs()->enabled(); }
  void begin_range(const std::string& name) override {
    torch::profiler::impl::cudaStubs()->rangePush(name.c_str());
  }
  void end_range() override { torch::profiler::impl::cudaStubs()->rangePop(); }

 private:
  /// While it was recorded, the allocator counted the tensors of the work itself; from now on its memory is counted.
  void keep_peak(int64_t before, CudaGraphMemory& pool) {
    const int64_t during = AcceleratorDevice::memory().peak_allocated_bytes + graph_bytes_;
    pool.count();
    AcceleratorDevice::reset_peak_memory();
    const std::lock_guard lock(mutex_);
    recorded_peak_ = std::max({recorded_peak_, before, during});
  }

  /// After an error: what it throws says less than what was thrown before. A recording that the driver gave up does not end by
  /// itself, and tensors would be of its memory ever after.
  void abandon(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool) const {
    try {
      graph.capture_end();
    } catch (const c10::Error&) {  // it had ended
    }
    const auto quietly = [](const auto& call) {
      try {
        call();
      } catch (const c10::Error&) {  // it was not left open
      }
    };
    at::HostAllocator* const host = at::getHostAllocator(at::kCUDA);
    quietly([&] { allocator::endAllocateToPool(torch_device().index(), pool); });
    quietly([&] { host->end_allocate_to_pool(pool); });
  }

  const cudaDeviceProp properties_;
  /// All work is recorded on this one: libraries keep a workspace for each stream that they meet.
  const c10::cuda::CUDAStream recording_;
  mutable std::mutex mutex_;
  int64_t cap_bytes_ = 0;
  int64_t recorded_peak_ = 0;  ///< since reset_peak_memory(), of what was recorded and before it
  std::atomic<int64_t> graph_bytes_{0};
};

int count_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // not the next call's
    throw Error(ErrorCode::kDevice,
                fmt::format("there is no NVIDIA device to use: {}", cudaGetErrorString(error)),
                "`nvidia-smi` shows driver and devices; in a container they must be passed in");
  }
  return count;
}

/// Once, before the first tensor.
void start() {
  if (std::getenv("PYTORCH_CUDA_ALLOC_CONF") == nullptr &&
      std::getenv("PYTORCH_ALLOC_CONF") == nullptr)
    c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  // torch asks for the device's hooks once: whoever did so before this library was there has turned CUDA off for good.
  TRIREME_CHECK(at::globalContext().hasCUDA(),
                "torch was asked for CUDA before libtrireme_cuda.so was open");
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  // A product that is split along its inner dimension may round its parts to bfloat16 otherwise.
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
}

}  // namespace

Device& cuda_device(int index) {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, std::unique_ptr<CudaDevice>>();
  const std::lock_guard lock(mutex);
  const int count = count_devices();
  TRIREME_USER_CHECK(index < count, kDevice, "CUDA_VISIBLE_DEVICES hides devices",
                     "no device \"cuda:{}\": there are {}", index, count);
  if (devices.empty()) start();
  auto& device = devices[index];
  if (device == nullptr) device = std::make_unique<CudaDevice>(index);
  return *device;
}

}  // namespace trireme::device::cuda

TRIREME_DEVICE(index) {
  return trireme::device::cuda::cuda_device(index);
}
