// What a checkpoint costs the step thread, and how fast bytes are written, verified and read.
#include <ATen/ops/ones.h>
#include <benchmark/benchmark.h>

#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/checkpoint_writer.h"

namespace trireme::checkpoint {
namespace {

std::vector<NamedTensor> state_of_size(int64_t mb) {
  std::vector<NamedTensor> tensors;
  for (int64_t i = 0; i < mb; ++i)
    tensors.push_back({"t" + std::to_string(i), at::ones({250'000})});
  return tensors;
}

/// Seconds that save() keeps its caller: the copy. The write in the background is waited for outside of it.
void save_stall(benchmark::State& state) {
  const TestFolder folder;
  const auto tensors = state_of_size(state.range(0));
  CheckpointWriter writer({.folder = folder.path(), .keep = 1});
  int64_t step = 0;
  double write_s = 0;
  writer.save(tensors, {++step, Json(), {}});  // the first one also gets its memory
  const double first_s = writer.last_stall_s();
  writer.wait();
  for (auto _ : state) {
    writer.save(tensors, {++step, Json(), {}});
    state.SetIterationTime(writer.last_stall_s());
    writer.wait();
    write_s += writer.last_write_s();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * 1'000'000);
  state.counters["first_s"] = first_s;
  state.counters["write_s"] = benchmark::Counter(write_s, benchmark::Counter::kAvgIterations);
}
BENCHMARK(save_stall)->Arg(16)->Arg(128)->UseManualTime()->Iterations(10);

void write_whole(benchmark::State& state) {
  const TestFolder folder;
  const auto tensors = state_of_size(state.range(0));
  for (auto _ : state) write_checkpoint(folder / "step-1", tensors, {1, Json(), {}});
  state.SetBytesProcessed(state.iterations() * state.range(0) * 1'000'000);
}
BENCHMARK(write_whole)->Arg(128)->UseRealTime()->Iterations(10);

void verify_whole(benchmark::State& state) {
  const TestFolder folder;
  write_checkpoint(folder / "step-1", state_of_size(state.range(0)), {1, Json(), {}});
  for (auto _ : state) benchmark::DoNotOptimize(Checkpoint::verify(folder / "step-1"));
  state.SetBytesProcessed(state.iterations() * state.range(0) * 1'000'000);
}
BENCHMARK(verify_whole)->Arg(128)->UseRealTime()->Iterations(10);

}  // namespace
}  // namespace trireme::checkpoint
