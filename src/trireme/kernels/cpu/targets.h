// Which instruction sets the kernels are compiled for: a baseline, AVX2 and AVX-512 on x86. Fewer
// targets keep the build short. Include before any Highway header.
#pragma once

#include "hwy/detect_compiler_arch.h"

#if HWY_ARCH_X86 && !defined(HWY_DISABLED_TARGETS)
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif
