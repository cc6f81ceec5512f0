// Every way to compute products on this machine, for tests.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <vector>

#include "trireme/kernels/cpu/mkl_gemm.h"
#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/product.h"

namespace trireme::kernels::cpu {

/// Every way to multiply that this libtorch and processor have.
inline std::vector<ProductChoice> choices() {
  std::vector<ProductChoice> all = {{FloatProduct::kMkl, Bf16Product::kConvert}};
  if (cpu::has_mkl_bf16_gemm()) all.push_back({FloatProduct::kMkl, Bf16Product::kMkl});
  if (cpu::has_float_panels()) all.push_back({FloatProduct::kPanels, Bf16Product::kConvert});
  if (cpu::has_bf16_panels()) all.push_back({FloatProduct::kPanels, Bf16Product::kPanels});
  return all;
}

/// Runs body under every choice and puts back the one that was in force.
template <class Body>
void for_every_choice(Body&& body) {
  const ProductChoice kept = cpu::product_choice();
  for (const ProductChoice& choice : choices()) {
    cpu::set_product_choice(choice);
    SCOPED_TRACE(
        fmt::format("{}, {}", cpu::to_string(choice.float32), cpu::to_string(choice.bfloat16)));
    body();
  }
  cpu::set_product_choice(kept);
}

}  // namespace trireme::kernels::cpu
