#include "trireme/kernels/cpu/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace trireme::kernels::cpu {
namespace {

Processor ask() {
  Processor result;
#if defined(__x86_64__)
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return result;
  result.intel = ebx == signature_INTEL_ebx;
  result.avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) result.amx_bf16 = (edx >> 22 & 1U) != 0;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0)
    result.avx512_bf16 = result.avx512 && (eax >> 5 & 1U) != 0;
#endif
  return result;
}

}  // namespace

const Processor& processor() {
  static const Processor asked = ask();
  return asked;
}

}  // namespace trireme::kernels::cpu
