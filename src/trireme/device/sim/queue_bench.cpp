// What the simulated device costs beside the CPU it runs on.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include "trireme/device/device.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device::sim {
namespace {

c10::Device prepared(Schedule schedule) {
  const c10::Device device = get_device("sim").torch_device();
  set_schedule(schedule);
  return device;
}

void submit_and_wait(benchmark::State& state) {
  prepared(static_cast<Schedule>(state.range(0)));
  for (auto _ : state) {
    submit({"nothing"}, [] {});
    synchronize();
  }
}
BENCHMARK(submit_and_wait)->Arg(0)->Arg(1)->Arg(2)->UseRealTime();

void submit_1000_and_wait(benchmark::State& state) {
  prepared(static_cast<Schedule>(state.range(0)));
  for (auto _ : state) {
    for (int i = 0; i < 1000; ++i) submit({"nothing"}, [] {});
    synchronize();
  }
}
BENCHMARK(submit_1000_and_wait)->Arg(0)->Arg(1)->Arg(2)->UseRealTime();

void multiply_by_fallback(benchmark::State& state) {
  const at::Tensor x = at::ones({state.range(0)}, prepared(Schedule::kLate));
  for (auto _ : state) benchmark::DoNotOptimize(x.mul(x));
}
BENCHMARK(multiply_by_fallback)->Arg(64)->Arg(1 << 20)->UseRealTime();

void multiply_on_the_cpu(benchmark::State& state) {
  get_device("cpu");
  const at::Tensor x = at::ones({state.range(0)});
  for (auto _ : state) benchmark::DoNotOptimize(x.mul(x));
}
BENCHMARK(multiply_on_the_cpu)->Arg(64)->Arg(1 << 20)->UseRealTime();

}  // namespace
}  // namespace trireme::device::sim
