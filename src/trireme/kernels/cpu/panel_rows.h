// Rows times a packed panel, on any processor. Private to cpu/.
#pragma once

#include <cstdint>

namespace trireme::kernels::cpu {

/// C[rows, nb] (= or +=) A[rows, inner] panel, float32, on the caller's thread; the panel's rows have kPanelColumns columns, nb
/// of which count. An element is one chain of multiply-adds along the inner dimension, whatever rows and columns surround it:
/// what MKL's small products are not (without AVX-512 a row's bits change with the number of rows).
void multiply_rows(int64_t rows, int64_t nb, int64_t inner, const float* a, int64_t lda,
                   const float* panel, bool add, float* c, int64_t ldc);

}  // namespace trireme::kernels::cpu
