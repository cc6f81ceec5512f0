#ifdef _FORTIFY_SOURCE
#undef _FORTIFY_SOURCE  // its longjmp takes another stack for a broken one
#endif
#include "trireme/kernels/cuda/emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace trireme::kernels::gpu::emulation {

thread_local Index thread_index;
thread_local Index block_index;
thread_local Index block_size;
thread_local Index grid_size;

namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = size_t{128} << 10;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

/// A thread of the block: a stack, and where it goes on. Lives on for the next blocks.
struct Thread {
  std::unique_ptr<char[]> stack;
  ucontext_t context;
  jmp_buf place;
  bool started = false;
  State state = State::kDone;
  void* sanitizer_state = nullptr;
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<uint64_t> values;  ///< of exchanges: two for each lane, used in turn
  std::vector<unsigned char> turn;
  std::vector<double> shared;  ///< doubles: aligned for whatever a kernel keeps there
  ucontext_t scheduler;
  jmp_buf scheduler_place;
  void* scheduler_state = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_bytes = 0;
  const std::function<void()>* body = nullptr;
  Order order = Order::kForward;
  std::mutex mutex;
};

Machine& machine() {
  static Machine& only = *new Machine();
  return only;
}

thread_local Thread* running = nullptr;

// A switch of stacks. swapcontext saves the signal mask by a system call, setjmp does not: a tenth of the time. Sanitizers
// keep an account of stacks and of setjmp, so they get the plain way and are told.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
void switch_to_scheduler() {
  Thread& self = *running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self.sanitizer_state, machine().scheduler_bottom,
                                 machine().scheduler_bytes);
#else
  __tsan_switch_to_fiber(machine().scheduler_state, 0);
#endif
  swapcontext(&self.context, &machine().scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.sanitizer_state, &machine().scheduler_bottom,
                                  &machine().scheduler_bytes);
#endif
}
void switch_to(Thread& thread) {
#if defined(__SANITIZE_ADDRESS__)
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(&mine, thread.stack.get(), kStackBytes);
#else
  machine().scheduler_state = __tsan_get_current_fiber();
  if (thread.sanitizer_state == nullptr) thread.sanitizer_state = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(thread.sanitizer_state, 0);
#endif
  thread.started = true;
  swapcontext(&machine().scheduler, &thread.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
}
#else
void switch_to_scheduler() {
  if (_setjmp(running->place) == 0) _longjmp(machine().scheduler_place, 1);
}
void switch_to(Thread& thread) {
  if (_setjmp(machine().scheduler_place) != 0) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  setcontext(&thread.context);
}
#endif

/// What every thread runs: the kernel, block after block.
void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_bottom, &machine().scheduler_bytes);
#endif
  for (;;) {
    (*machine().body)();
    running->state = State::kDone;
    switch_to_scheduler();
  }
}

void add_thread(Machine& m) {
  auto thread = std::make_unique<Thread>();
  thread->stack = std::unique_ptr<char[]>(new char[kStackBytes]);
  getcontext(&thread->context);
  thread->context.uc_stack.ss_sp = thread->stack.get();
  thread->context.uc_stack.ss_size = kStackBytes;
  thread->context.uc_link = nullptr;
  makecontext(&thread->context, &thread_main, 0);
  m.threads.push_back(std::move(thread));
}

/// Lets the lanes of a warp go on that all wait for each other; a lane that is gone cannot be asked for its value. False if
/// they do not.
bool release_warp(Machine& m, unsigned first, unsigned end) {
  for (unsigned i = first; i < end; ++i) {
    if (m.threads[i]->state != State::kAtWarp) return false;
  }
  for (unsigned i = first; i < end; ++i) m.threads[i]->state = State::kReady;
  return true;
}

/// Lets the threads of the block go on that are not done, if all of them wait at its barrier.
bool release_block(Machine& m, unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    const State state = m.threads[i]->state;
    if (state != State::kAtBlock && state != State::kDone) return false;
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (m.threads[i]->state == State::kAtBlock) m.threads[i]->state = State::kReady;
  }
  return true;
}

/// The n-th of `count`, in the order that is set.
unsigned nth(const Machine& m, unsigned n, unsigned count) {
  return m.order == Order::kForward ? n : count - 1 - n;
}

/// Runs a warp as far as it comes by itself: so that one that needs no barrier gets ahead of the others.
void run_warp(Machine& m, unsigned first, unsigned end) {
  do {
    for (unsigned n = 0; n < end - first; ++n) {
      const unsigned i = first + nth(m, n, end - first);
      if (m.threads[i]->state != State::kReady) continue;
      thread_index = {i};
      running = m.threads[i].get();
      switch_to(*running);
    }
  } while (release_warp(m, first, end));
}

void run_block(Machine& m, unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) m.threads[i]->state = State::kReady;
  std::fill(m.turn.begin(), m.turn.end(), 0);
  std::fill(m.shared.begin(), m.shared.end(), std::numeric_limits<double>::quiet_NaN());
  const unsigned warps = (threads + kLanes - 1) / kLanes;
  for (;;) {
    for (unsigned n = 0; n < warps; ++n) {
      const unsigned first = nth(m, n, warps) * kLanes;
      run_warp(m, first, std::min(first + kLanes, threads));
    }
    bool live = false;
    for (unsigned i = 0; i < threads; ++i) live = live || m.threads[i]->state != State::kDone;
    if (!live) return;
    if (!release_block(m, threads)) {
      m.threads.clear();  // their stacks are in the middle of a kernel
      throw std::logic_error("a barrier is not reached by all threads of the block or warp");
    }
  }
}

}  // namespace

void set_order(Order order) {
  const std::lock_guard lock(machine().mutex);
  machine().order = order;
}

void run(unsigned blocks, unsigned threads, size_t shared_bytes,
         const std::function<void()>& body) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  while (m.threads.size() < threads) add_thread(m);
  m.values.assign(size_t{2} * threads, 0);
  m.turn.assign(threads, 0);
  m.shared.resize(shared_bytes / sizeof(double) + 1);
  m.body = &body;
  block_size = {threads};
  grid_size = {blocks};
  for (unsigned block = 0; block < blocks; ++block) {
    block_index = {block};
    run_block(m, threads);
  }
}

void wait_for_block() {
  running->state = State::kAtBlock;
  switch_to_scheduler();
}

uint64_t exchange(uint64_t value, unsigned other_lane) {
  Machine& m = machine();
  const unsigned me = thread_index.x;
  const unsigned turn = m.turn[me]++ % 2;
  m.values[2 * me + turn] = value;
  running->state = State::kAtWarp;
  switch_to_scheduler();
  return m.values[2 * (me / kLanes * kLanes + other_lane) + turn];
}

void* dynamic_shared() {
  return machine().shared.data();
}

}  // namespace trireme::kernels::gpu::emulation
