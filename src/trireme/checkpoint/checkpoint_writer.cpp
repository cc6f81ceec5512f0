#include "trireme/checkpoint/checkpoint_writer.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "trireme/base/log.h"
#include "trireme/checkpoint/checkpoint_share.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

size_t aligned(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

/// Memory for the copies, kept between saves. Not of ATen's allocator: there it would count as memory of the step.
/// In huge pages where the system has them, since a first copy is mostly page faults.
class HostBuffer {
 public:
  HostBuffer() = default;
  ~HostBuffer() { release(); }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  /// Holds at least `bytes` afterwards; what was in it is lost if it grows.
  void reserve(size_t bytes) {
    if (bytes <= size_) return;
    release();
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TRIREME_USER_CHECK(data != MAP_FAILED, kDevice,
                       "a checkpoint needs memory for one copy of weights and optimizer state",
                       "no memory for a checkpoint's copy of {} bytes", bytes);
    (void)madvise(data, bytes, MADV_HUGEPAGE);
    data_ = data;
    size_ = bytes;
  }

 private:
  void release() {
    if (size_ > 0) munmap(data_, size_);
    size_ = 0;
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace

struct CheckpointWriter::Impl {
  Options options;
  Storage* storage = nullptr;
  HostBuffer copies;
  std::unique_ptr<FolderTransaction> transaction;  // rank 0's, of the checkpoint that is begun
  Extent begun;                                    // of that
  std::thread thread;
  std::atomic<bool> running{false};

  mutable std::mutex mutex;  // guards the rest
  std::exception_ptr failure;
  fs::path completed;
  double stall_s = 0;
  double write_s = 0;

  void join() {
    if (thread.joinable()) thread.join();
  }
  void rethrow() {
    std::exception_ptr error;
    {
      const std::lock_guard lock(mutex);
      std::swap(error, failure);
    }
    if (error) std::rethrow_exception(error);
  }

  /// Copies the tensors into `copies`, which grows once and then stays.
  std::vector<NamedTensor> snapshot(const std::vector<NamedTensor>& tensors) {
    size_t bytes = 0;
    for (const NamedTensor& named : tensors) bytes += aligned(named.tensor.nbytes());
    copies.reserve(bytes);
    std::vector<NamedTensor> result;
    result.reserve(tensors.size());
    size_t offset = 0;
    for (const NamedTensor& named : tensors) {
      const at::Tensor source = named.tensor.detach();
      const auto options = at::TensorOptions().dtype(source.scalar_type());
      at::Tensor copy = at::from_blob(copies.data() + offset, source.sizes(), options);
      if (source.nbytes() > 0 && source.is_cpu() && source.is_contiguous()) {
        // Not copy_: a parallel region a tensor waits for a descheduled thread each time when the machine is busy
        // (15 ms against 0.1 ms of copying, measured), and one core moves gigabytes a second.
        std::memcpy(copy.mutable_data_ptr(), source.const_data_ptr(), source.nbytes());
      } else {
        copy.copy_(source);
      }
      result.push_back({named.name, std::move(copy)});
      offset += aligned(source.nbytes());
    }
    return result;
  }

  /// The thread's work. Never throws.
  void write(const fs::path& folder, const std::vector<NamedTensor>& tensors,
             const CheckpointState& state) {
    const auto start = std::chrono::steady_clock::now();
    // The step's own threads come first. Where a thread may not do this, it shares evenly.
    (void)setpriority(PRIO_PROCESS, 0, 10);
    try {
      if (options.rank == 0) {
        complete(folder, tensors, state);
      } else {
        write_for_first(folder, tensors);
      }
      const std::lock_guard lock(mutex);
      write_s = seconds_since(start);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    transaction.reset();
    running = false;
  }

  /// "" where nobody else writes.
  std::string mark() const { return options.ranks == 1 ? "" : fmt::format(".{}", options.rank); }

  void complete(const fs::path& folder, const std::vector<NamedTensor>& tensors,
                const CheckpointState& state) {
    std::vector<Manifest> shares = {
        write_share(*storage, folder, to_write(tensors), options.shard_bytes, mark())};
    if (options.ranks > 1) {
      std::ranges::move(await_shares(*storage, folder, options.ranks, options.check),
                        std::back_inserter(shares));
      shares = {join_shares(*storage, folder, std::move(shares))};
    }
    TRIREME_CHECK(shares.front().tensors.size() == begun.tensors, "{} tensors of {} were written",
                  shares.front().tensors.size(), begun.tensors);
    commit_checkpoint(*transaction, std::move(shares.front()), state);
    {
      const std::lock_guard lock(mutex);
      completed = options.folder / step_folder_name(state.step);
    }
    prune(state.step);
  }

  void write_for_first(const fs::path& folder, const std::vector<NamedTensor>& tensors) {
    try {
      post_share(*storage, folder, options.rank,
                 write_share(*storage, folder, to_write(tensors), options.shard_bytes, mark()));
    } catch (const std::exception& error) {
      post_failure(*storage, folder, options.rank, error.what());
      throw;
    }
  }

  /// Keeps the newest `keep` of the steps up to `newest`. What a resumed run has yet to write again
  /// stays.
  void prune(int64_t newest) {
    std::vector<int64_t> steps;
    for (const auto& [step, path] : step_folders(options.folder)) {
      if (step <= newest) steps.push_back(step);
    }
    for (size_t i = 0; i + static_cast<size_t>(options.keep) < steps.size(); ++i) {
      const std::string name = step_folder_name(steps[i]);
      try {
        // Renamed first: a kill in the middle must not leave half a step-N.
        const fs::path doomed = options.folder / (".tmp-" + name + ".old");
        storage->rename(options.folder / name, doomed);
        storage->remove_all(doomed);
      } catch (const Error& error) {
        log::warning("cannot remove the old checkpoint {}: {}", name, error.what());
      }
    }
  }
};

Extent extent_of(const std::vector<NamedTensor>& tensors) {
  Extent all{0, tensors.size()};
  for (const NamedTensor& named : tensors) all.bytes += named.tensor.nbytes();
  return all;
}

CheckpointWriter::CheckpointWriter(Options options) : impl_(std::make_unique<Impl>()) {
  TRIREME_USER_CHECK(options.keep >= 1, kConfig, "keep at least the newest checkpoint",
                     "checkpoint.keep = {}", options.keep);
  impl_->options = std::move(options);
  impl_->storage = impl_->options.storage ? impl_->options.storage : &disk();
  if (impl_->options.rank == 0) {
    impl_->storage->make_folders(impl_->options.folder);
    clean_up_transactions(*impl_->storage, impl_->options.folder);
  } else {
    TRIREME_USER_CHECK(fs::is_directory(impl_->options.folder), kData,
                       "all ranks write checkpoints: put `out` on a file system that every machine "
                       "has at the same place",
                       "rank {} does not see the folder {} that rank 0 made", impl_->options.rank,
                       impl_->options.folder.string());
  }
  // Says now, not after the first hour, that nothing can be written here.
  const fs::path probe = impl_->options.folder / fmt::format(".tmp-probe-{}", impl_->options.rank);
  impl_->storage->create(probe)->sync_and_close();
  impl_->storage->remove_all(probe);
}

CheckpointWriter::~CheckpointWriter() {
  impl_->join();
  try {
    impl_->rethrow();
  } catch (const std::exception& error) {
    log::write(log::Level::kError,
               fmt::format("the last checkpoint was not written: {}", error.what()));
  }
}

void CheckpointWriter::save(const std::vector<NamedTensor>& tensors, CheckpointState state) {
  save_share(begin(state.step, extent_of(tensors)), tensors, std::move(state));
}

fs::path CheckpointWriter::begin(int64_t step, const Extent& all) {
  TRIREME_CHECK(impl_->options.rank == 0, "rank {} begins a checkpoint", impl_->options.rank);
  wait();
  impl_->transaction.reset();  // of a save that did not begin to write
  check_free_space(*impl_->storage, impl_->options.folder, all.bytes);
  impl_->begun = all;
  impl_->transaction = std::make_unique<FolderTransaction>(
      *impl_->storage, impl_->options.folder / step_folder_name(step));
  return fs::absolute(impl_->transaction->folder());
}

void CheckpointWriter::save_share(const fs::path& folder, const std::vector<NamedTensor>& tensors,
                                  CheckpointState state) {
  const auto start = std::chrono::steady_clock::now();
  wait();
  auto copies = impl_->snapshot(tensors);
  impl_->running = true;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->write_s = 0;
    impl_->stall_s = seconds_since(start);
  }
  impl_->thread = std::thread([impl = impl_.get(), folder, copies = std::move(copies),
                               state = std::move(state)] { impl->write(folder, copies, state); });
}

void CheckpointWriter::wait() {
  impl_->join();
  impl_->rethrow();
}

bool CheckpointWriter::busy() const {
  return impl_->running;
}

fs::path CheckpointWriter::last_completed() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->completed;
}

double CheckpointWriter::last_stall_s() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stall_s;
}

double CheckpointWriter::last_write_s() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->write_s;
}

}  // namespace trireme::checkpoint
