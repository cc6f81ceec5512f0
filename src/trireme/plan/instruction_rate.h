// What instructions take on a device, as its profile says it: linear in what the tables of products, attention and memory say, and
// near measured ones as these. Pure.
//
// The tables alone do not know what an instruction costs beside its kernels, nor what caches keep from one kernel to the next. So an
// instruction's seconds are fixed + products x P + attention x A + memory x M, where P, A and M are the tables' seconds; the four
// numbers are fitted to measured instructions of its kind (fit_rate()), and what is left over counts for instructions of about the
// same size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/plan/efficiency.h"

namespace trireme::plan {

/// Seconds of an instruction by what it does, as the tables of its device say.
struct TableSeconds {
  double products = 0.0;
  double attention = 0.0;
  double memory = 0.0;
  double total() const { return products + attention + memory; }
};

/// One measured size of a kind of instruction.
struct MeasuredInstruction {
  TableSeconds tables;
  double seconds = 0.0;  ///< a mean of `spans`
  double spans = 1.0;
};

/// Instructions that do the same to parts of the same kind.
struct InstructionClass {
  std::string part;  ///< model::to_string(PartKind); "-" if it works on none
  /// to_string(OpKind); behind it "/full" or "/selective", how much the part recomputes, and "/add" where gradients are added to
  /// those that are there.
  std::string kind;
  ComputeType type = ComputeType::kFp32;
  auto operator<=>(const InstructionClass&) const = default;
};

struct InstructionRate {
  InstructionClass of;
  double fixed_s = 0.0;
  double products = 1.0;  ///< factors of TableSeconds
  double attention = 1.0;
  double memory = 1.0;
  double residual = 0.0;  ///< median of |fitted / measured - 1|
  std::vector<MeasuredInstruction> measured;

  double fitted(const TableSeconds& tables) const;
  /// fitted(), times what measured sizes near this one take beyond it.
  double seconds(const TableSeconds& tables) const;
};

/// Fits the four numbers to `measured`, none of them negative: least squares of relative errors, where large ones count in proportion
/// (Huber 1964), and what the sizes do not tell apart keeps the tables' proportions. Sizes that are the same are put together.
/// Error{kInternal} for none, or for one that took no time.
InstructionRate fit_rate(const InstructionClass& of,
                         const std::vector<MeasuredInstruction>& measured);

}  // namespace trireme::plan
