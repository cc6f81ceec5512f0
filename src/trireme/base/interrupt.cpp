#include "trireme/base/interrupt.h"

#include <signal.h>

#include <atomic>

namespace trireme {

namespace {

std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "used in a signal handler");

extern "C" void handle_interrupt(int) {
  g_interrupted.store(true, std::memory_order_relaxed);
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action{};
  action.sa_handler = handle_interrupt;
  sigemptyset(&action.sa_mask);
  // Once only: a second signal finds the default action again and ends the process.
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() {
  return g_interrupted.load(std::memory_order_relaxed);
}

void set_interrupted(bool value) {
  g_interrupted.store(value, std::memory_order_relaxed);
}

}  // namespace trireme
