// Picks a kernel's version for this processor once.
#pragma once

#include "hwy/highway.h"

namespace trireme::kernels::cpu {

/// Asks the processor for its instruction sets on the first call. Until that has happened Highway's table yields a
/// function that asks again at each call, and asking costs tens of microseconds in a virtual machine.
inline bool choose_target() {
  static const bool chosen = [] {
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return true;
  }();
  return chosen;
}

}  // namespace trireme::kernels::cpu

/// The function of this name, exported with HWY_EXPORT, for this processor.
#define TRIREME_KERNEL(name) (::trireme::kernels::cpu::choose_target(), &HWY_DYNAMIC_DISPATCH(name))
