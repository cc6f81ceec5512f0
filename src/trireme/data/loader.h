// Batches prepared ahead of the training loop by threads of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "trireme/data/batch.h"
#include "trireme/data/dataset.h"

namespace trireme::data {

/// A contiguous range of global samples.
struct SampleRange {
  int64_t first = 0;
  int64_t rows = 0;
};

/// The samples of the n-th micro-batch since the start of the run (n >= 0): a pure function, called
/// from any thread. Batch ramp-up and the share of one rank are expressed here, so the loader keeps
/// no state of the run.
using SampleOrder = std::function<SampleRange(int64_t micro_batch)>;

/// Micro-batches of `rows` samples each, from sample 0 on.
SampleOrder consecutive_samples(int64_t rows);

struct LoaderOptions {
  int64_t first_micro_batch = 0;  ///< where to start; resuming is starting elsewhere
  int64_t prefetch = 4;           ///< micro-batches held ready
  int num_readers = 1;            ///< threads; the batches do not depend on it
};

/// Hands out the micro-batches of `order` one after the other.
/// Thread-safety: next(), seek() and exposed_seconds() from one thread. Ownership: shares the data
/// set; joins its threads on destruction.
class Loader {
 public:
  Loader(std::shared_ptr<const Dataset> dataset, SampleOrder order, LoaderOptions options = {});
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next micro-batch; blocks until it is ready. An error of a reader is thrown here.
  Batch next();
  /// Continues with micro-batch `micro_batch`, what was prepared is dropped.
  void seek(int64_t micro_batch);
  int64_t position() const;  ///< the micro-batch that next() will return
  /// Seconds that next() has waited since construction: the loader's share of the step that nothing
  /// hides.
  double exposed_seconds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trireme::data
