#include "trireme/data/loader.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "trireme/base/error.h"

namespace trireme::data {

SampleOrder consecutive_samples(int64_t rows) {
  return [rows](int64_t micro_batch) { return SampleRange{micro_batch * rows, rows}; };
}

/// Readers claim the next micro-batch that lies within the window of `prefetch` ahead of the
/// consumer, read it without the lock, and put it into `ready` under its number. A seek raises
/// `generation`, so that what was read for the old position is dropped on arrival.
struct Loader::Impl {
  struct Prepared {
    Batch batch;
    std::exception_ptr error;
  };

  Impl(std::shared_ptr<const Dataset> dataset_in, SampleOrder order_in, LoaderOptions options)
      : dataset(std::move(dataset_in)),
        order(std::move(order_in)),
        prefetch(options.prefetch),
        wanted(options.first_micro_batch),
        claimed(options.first_micro_batch) {
    TRIREME_CHECK(prefetch >= 1 && options.num_readers >= 1 && wanted >= 0,
                  "prefetch {}, readers {}, first micro-batch {}", prefetch, options.num_readers,
                  wanted);
    for (int i = 0; i < options.num_readers; ++i) {
      readers.emplace_back([this](const std::stop_token& stop) { read(stop); });
    }
  }

  void read(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    while (changed.wait(lock, stop, [this] { return claimed < wanted + prefetch; })) {
      const int64_t number = claimed++;
      const uint64_t born = generation;
      lock.unlock();
      Prepared prepared;
      try {
        const SampleRange range = order(number);
        prepared.batch = dataset->samples(range.first, range.rows);
      } catch (...) {
        prepared.error = std::current_exception();
      }
      lock.lock();
      if (born != generation) continue;
      ready.emplace(number, std::move(prepared));
      changed.notify_all();
    }
  }

  std::shared_ptr<const Dataset> dataset;
  SampleOrder order;
  int64_t prefetch;
  std::mutex mutex;
  std::condition_variable_any changed;
  int64_t wanted;   // what next() returns next
  int64_t claimed;  // what a reader takes next
  uint64_t generation = 0;
  std::map<int64_t, Prepared> ready;
  double exposed_seconds = 0;
  std::vector<std::jthread> readers;  // last: they use all of the above
};

Loader::Loader(std::shared_ptr<const Dataset> dataset, SampleOrder order, LoaderOptions options)
    : impl_(std::make_unique<Impl>(std::move(dataset), std::move(order), options)) {}

Loader::~Loader() = default;

Batch Loader::next() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [this] { return impl_->ready.contains(impl_->wanted); });
  Impl::Prepared prepared = std::move(impl_->ready.extract(impl_->wanted).mapped());
  ++impl_->wanted;
  impl_->changed.notify_all();
  impl_->exposed_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (prepared.error) std::rethrow_exception(prepared.error);
  return std::move(prepared.batch);
}

void Loader::seek(int64_t micro_batch) {
  TRIREME_CHECK(micro_batch >= 0, "micro-batch {}", micro_batch);
  const std::lock_guard lock(impl_->mutex);
  ++impl_->generation;
  impl_->ready.clear();
  impl_->wanted = impl_->claimed = micro_batch;
  impl_->changed.notify_all();
}

int64_t Loader::position() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->wanted;
}

double Loader::exposed_seconds() const {
  return impl_->exposed_seconds;
}

}  // namespace trireme::data
