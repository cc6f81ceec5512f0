#include "trireme/kernels/cpu/rows.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::kernels::cpu {

template <class T>
Rows<T> rows_of(const at::Tensor& tensor, const char* what) {
  TRIREME_CHECK(tensor.defined() && tensor.device().is_cpu(), "{} must be a CPU tensor", what);
  TRIREME_CHECK(tensor.scalar_type() == c10::CppTypeToScalarType<T>::value, "{} has dtype {}", what,
                c10::toString(tensor.scalar_type()));
  TRIREME_CHECK(tensor.dim() == 2 || tensor.dim() == 3,
                "{} must be [N, d] or [N, heads, d], not {}-dimensional", what, tensor.dim());
  TRIREME_CHECK(tensor.size(-1) <= 1 || tensor.stride(-1) == 1,
                "the last dimension of {} must be contiguous", what);
  Rows<T> rows;
  rows.base = tensor.data_ptr<T>();
  rows.outer_stride = tensor.stride(0);
  if (tensor.dim() == 3) {
    rows.heads = tensor.size(1);
    rows.head_stride = tensor.stride(1);
  }
  rows.count = tensor.size(0) * rows.heads;
  return rows;
}

template Rows<float> rows_of<float>(const at::Tensor&, const char*);
template Rows<at::BFloat16> rows_of<at::BFloat16>(const at::Tensor&, const char*);

int64_t reduction_blocks(int64_t rows) {
  constexpr int64_t kRowsPerBlock = 64;
  constexpr int64_t kMaxBlocks = 64;
  return std::clamp<int64_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock, 1, kMaxBlocks);
}

void combine_blocks(float* partials, int64_t blocks, int64_t width, float* out, bool accumulate) {
  constexpr int64_t kColumnGrain = 512;
  at::parallel_for(0, width, kColumnGrain, [&](int64_t begin, int64_t end) {
    for (int64_t step = 1; step < blocks; step *= 2) {
      for (int64_t b = 0; b + step < blocks; b += 2 * step) {
        float* left = partials + b * width;
        const float* right = partials + (b + step) * width;
        for (int64_t c = begin; c < end; ++c) left[c] += right[c];
      }
    }
    if (accumulate) {
      for (int64_t c = begin; c < end; ++c) out[c] += partials[c];
    } else {
      for (int64_t c = begin; c < end; ++c) out[c] = partials[c];
    }
  });
}

}  // namespace trireme::kernels::cpu
