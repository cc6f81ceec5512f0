// SiLU, GELU (tanh and erf), ReLU, alone and gated, forward and backward: one pass, float32 inside.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/activation.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/activation-inl.h"
// clang-format on
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/ops.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

template <class T>
void activate(Activation act, const T* x, size_t n, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for_lanes(n, [&](auto d, size_t i) HWY_ATTR { store(d, f.value(d, load(d, x + i)), y + i); });
  });
}

template <class T>
void activate_backward(Activation act, const T* dy, const T* x, size_t n, T* dx) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
      auto slope = hn::Zero(d);
      f.both(d, load(d, x + i), slope);
      store(d, hn::Mul(load(d, dy + i), slope), dx + i);
    });
  });
}

template <class T>
void gate(Activation act, const T* gate_up, size_t rows, size_t h, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* g = gate_up + r * 2 * h;
      T* out = y + r * h;
      for_lanes(h, [&](auto d, size_t i) HWY_ATTR {
        store(d, hn::Mul(f.value(d, load(d, g + i)), load(d, g + h + i)), out + i);
      });
    }
  });
}

/// y null: the forward result is not wanted.
template <class T>
void gate_backward(Activation act, const T* dy, const T* gate_up, size_t rows, size_t h,
                   T* d_gate_up, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* in = gate_up + r * 2 * h;
      T* out = d_gate_up + r * 2 * h;
      const T* grad = dy + r * h;
      T* again = y == nullptr ? nullptr : y + r * h;
      for_lanes(h, [&](auto d, size_t i) HWY_ATTR {
        const auto up = load(d, in + h + i);
        const auto g = load(d, grad + i);
        auto slope = hn::Zero(d);
        const auto value = f.both(d, load(d, in + i), slope);
        store(d, hn::Mul(hn::Mul(g, up), slope), out + i);
        store(d, hn::Mul(g, value), out + h + i);
        if (again != nullptr) store(d, hn::Mul(value, up), again + i);
      });
    }
  });
}

#define TRIREME_ACTIVATION_INSTANCES(T, S)                                                    \
  void activate_##S(Activation a, const T* x, size_t n, T* y) {                               \
    activate(a, x, n, y);                                                                     \
  }                                                                                           \
  void activate_backward_##S(Activation a, const T* dy, const T* x, size_t n, T* dx) {        \
    activate_backward(a, dy, x, n, dx);                                                       \
  }                                                                                           \
  void gate_##S(Activation a, const T* x, size_t rows, size_t h, T* y) {                      \
    gate(a, x, rows, h, y);                                                                   \
  }                                                                                           \
  void gate_backward_##S(Activation a, const T* dy, const T* x, size_t rows, size_t h, T* dx, \
                         T* y) {                                                              \
    gate_backward(a, dy, x, rows, h, dx, y);                                                  \
  }
TRIREME_ACTIVATION_INSTANCES(float, f32)
TRIREME_ACTIVATION_INSTANCES(at::BFloat16, bf16)
#undef TRIREME_ACTIVATION_INSTANCES

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(activate_f32);
HWY_EXPORT(activate_bf16);
HWY_EXPORT(activate_backward_f32);
HWY_EXPORT(activate_backward_bf16);
HWY_EXPORT(gate_f32);
HWY_EXPORT(gate_bf16);
HWY_EXPORT(gate_backward_f32);
HWY_EXPORT(gate_backward_bf16);

namespace {

constexpr int64_t kGrainElements = 8192;

auto activate_for(float) {
  return TRIREME_KERNEL(activate_f32);
}
auto activate_for(at::BFloat16) {
  return TRIREME_KERNEL(activate_bf16);
}
auto activate_backward_for(float) {
  return TRIREME_KERNEL(activate_backward_f32);
}
auto activate_backward_for(at::BFloat16) {
  return TRIREME_KERNEL(activate_backward_bf16);
}
auto gate_for(float) {
  return TRIREME_KERNEL(gate_f32);
}
auto gate_for(at::BFloat16) {
  return TRIREME_KERNEL(gate_bf16);
}
auto gate_backward_for(float) {
  return TRIREME_KERNEL(gate_backward_f32);
}
auto gate_backward_for(at::BFloat16) {
  return TRIREME_KERNEL(gate_backward_bf16);
}

void check_same(const at::Tensor& a, const at::Tensor& b, const char* what) {
  TRIREME_CHECK(a.is_contiguous() && b.is_contiguous() && a.sizes() == b.sizes() &&
                    a.scalar_type() == b.scalar_type(),
                "{} must be contiguous and alike", what);
}

template <class T>
void activation_typed(Activation act, const at::Tensor& x, at::Tensor& y) {
  const T* in = x.const_data_ptr<T>();
  T* out = y.data_ptr<T>();
  const auto kernel = activate_for(T{});
  at::parallel_for(0, x.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    kernel(act, in + begin, static_cast<size_t>(end - begin), out + begin);
  });
}

template <class T>
void activation_backward_typed(Activation act, const at::Tensor& dy, const at::Tensor& x,
                               at::Tensor& dx) {
  const T* grad = dy.const_data_ptr<T>();
  const T* in = x.const_data_ptr<T>();
  T* out = dx.data_ptr<T>();
  const auto kernel = activate_backward_for(T{});
  at::parallel_for(0, x.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    kernel(act, grad + begin, in + begin, static_cast<size_t>(end - begin), out + begin);
  });
}

int64_t gated_width(const at::Tensor& gate_up, const at::Tensor& y, const char* what) {
  TRIREME_CHECK(gate_up.dim() == 2 && y.dim() == 2 && gate_up.is_contiguous() &&
                    y.is_contiguous() && gate_up.size(0) == y.size(0) &&
                    gate_up.size(1) == 2 * y.size(1) && gate_up.scalar_type() == y.scalar_type(),
                "gate_up must be [N, 2h] and {} [N, h], both contiguous", what);
  return y.size(1);
}

template <class T>
void gated_typed(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  const int64_t h = gated_width(gate_up, y, "y");
  const T* in = gate_up.const_data_ptr<T>();
  T* out = y.data_ptr<T>();
  const auto kernel = gate_for(T{});
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, h));
  at::parallel_for(0, y.size(0), grain, [&](int64_t begin, int64_t end) {
    kernel(act, in + begin * 2 * h, static_cast<size_t>(end - begin), static_cast<size_t>(h),
           out + begin * h);
  });
}

template <class T>
void gated_backward_typed(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                          at::Tensor& d_gate_up, const at::Tensor& y) {
  const int64_t h = gated_width(gate_up, dy, "dy");
  check_same(gate_up, d_gate_up, "gate_up and d_gate_up");
  if (y.defined()) check_same(dy, y, "dy and y");
  const T* grad = dy.const_data_ptr<T>();
  const T* in = gate_up.const_data_ptr<T>();
  T* out = d_gate_up.data_ptr<T>();
  T* again = y.defined() ? y.data_ptr<T>() : nullptr;
  const auto kernel = gate_backward_for(T{});
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, h));
  at::parallel_for(0, dy.size(0), grain, [&](int64_t begin, int64_t end) {
    kernel(act, grad + begin * h, in + begin * 2 * h, static_cast<size_t>(end - begin),
           static_cast<size_t>(h), out + begin * 2 * h,
           again == nullptr ? nullptr : again + begin * h);
  });
}

}  // namespace

namespace cpu {

void activation(Activation act, const at::Tensor& x, at::Tensor& y) {
  check_same(x, y, "x and y");
  if (x.scalar_type() == at::kBFloat16) return activation_typed<at::BFloat16>(act, x, y);
  activation_typed<float>(act, x, y);
}

void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x,
                         at::Tensor& dx) {
  check_same(x, dy, "x and dy");
  check_same(x, dx, "x and dx");
  if (x.scalar_type() == at::kBFloat16)
    return activation_backward_typed<at::BFloat16>(act, dy, x, dx);
  activation_backward_typed<float>(act, dy, x, dx);
}

void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  if (gate_up.scalar_type() == at::kBFloat16) return gated_typed<at::BFloat16>(act, gate_up, y);
  gated_typed<float>(act, gate_up, y);
}

void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y) {
  if (gate_up.scalar_type() == at::kBFloat16) {
    return gated_backward_typed<at::BFloat16>(act, dy, gate_up, d_gate_up, y);
  }
  gated_backward_typed<float>(act, dy, gate_up, d_gate_up, y);
}

}  // namespace cpu

}  // namespace trireme::kernels
#endif  // HWY_ONCE
