// What the kernels' rules ask of the processor.
#pragma once

namespace trireme::kernels::cpu {

/// Instruction sets count only where the operating system saves their registers.
struct Processor {
  bool intel = false;
  bool avx512 = false;  ///< F, BW, DQ and VL
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
};

/// Asked once. Thread-safety: any thread.
const Processor& processor();

}  // namespace trireme::kernels::cpu
