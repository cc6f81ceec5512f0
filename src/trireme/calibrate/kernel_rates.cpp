#include "trireme/calibrate/kernel_rates.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "trireme/kernels/ops.h"
#include "trireme/plan/measured_spans.h"

namespace trireme::calibrate {

namespace {

using plan::ComputeType;
using plan::ProductUse;

at::ScalarType dtype_of(ComputeType type) {
  return type == ComputeType::kFp32 ? at::kFloat : at::kBFloat16;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

/// One shape that is timed again and again.
struct Timed {
  std::function<void()> work;
  std::vector<double> seconds;
};

class KernelRates {
 public:
  KernelRates(device::Device& device, const KernelRatesOptions& options,
              plan::DeviceProfile& profile)
      : device_(device), options_(options), profile_(profile) {}

  void measure() {
    const c10::AutoGradMode no_grad(false);
    memory();
    // Twice as wide for every factor of eight in rate: the same time a product.
    const double rate = rate_of_one_product();
    const double size = std::cbrt(std::max(1.0, rate / 1e11));
    scale_ = int64_t{1} << static_cast<int>(std::clamp(std::floor(std::log2(size)), 0.0, 4.0));
    for (const ComputeType type : options_.types) {
      if (kernels::unsupported_reason("linear", dtype_of(type), device_.torch_device())) continue;
      products(type);
      attention(type);
    }
  }

 private:
  at::TensorOptions on_device(at::ScalarType dtype) const {
    return at::TensorOptions().dtype(dtype).device(device_.torch_device());
  }
  at::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype) const {
    return at::randn(sizes, at::TensorOptions().dtype(at::kFloat))
        .to(dtype)
        .to(device_.torch_device());
  }
  at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) const {
    return at::empty(sizes, on_device(dtype));
  }

  void say(const std::string& line) const {
    if (options_.progress) options_.progress(line);
  }

  /// Calls that take about 2 ms together, and at least one.
  int repeats_of(const std::function<void()>& work) const {
    work();
    const double once = seconds_on(device_, 1, work);
    return static_cast<int>(std::clamp(2e-3 / std::max(once, 1e-7), 1.0, 1000.0));
  }

  double usual(const std::function<void()>& work, int least = 5) const {
    const int repeats = repeats_of(work);
    std::vector<double> seconds;
    for (int i = 0; i < std::max(least, options_.rounds); ++i)
      seconds.push_back(seconds_on(device_, repeats, work));
    return plan::most_common(std::move(seconds));
  }

  void memory() {
    say("memory");
    constexpr int64_t kFloats = int64_t{16} << 20;
    at::Tensor a = at::zeros({kFloats}, on_device(at::kFloat));
    const at::Tensor b = at::zeros({kFloats}, on_device(at::kFloat));
    profile_.memory_bytes_per_s =
        12.0 * static_cast<double>(kFloats) / usual([&] { kernels::add_(a, b); });
    profile_.memory_efficiency = 1.0;
    at::Tensor small = at::zeros({16}, on_device(at::kFloat));
    const at::Tensor other = at::zeros({16}, on_device(at::kFloat));
    profile_.kernel_gap_s = usual([&] { kernels::add_(small, other); }, 9);
    profile_.memory_bytes = static_cast<double>(device_.total_memory_bytes());
    profile_.usable_bytes = 0.96 * profile_.memory_bytes;

    const at::Tensor host = device_.empty_pinned({kFloats}, at::kFloat);
    host.zero_();
    device::Queue& queue = device_.compute_queue();
    const double out = usual([&] { device_.copy(host, a, queue); });
    const double in = usual([&] { device_.copy(a, host, queue); });
    profile_.host_link_bytes_per_s = 4.0 * static_cast<double>(kFloats) / std::max(out, in);
  }

  double rate_of_one_product() const {
    constexpr int64_t kSize = 512;
    const at::Tensor x = random({kSize, kSize}, at::kFloat);
    const at::Tensor w = random({kSize, kSize}, at::kFloat);
    at::Tensor y = empty({kSize, kSize}, at::kFloat);
    const double seconds = usual([&] { kernels::linear(x, w, {}, {}, y); });
    return 2.0 * std::pow(static_cast<double>(kSize), 3.0) / seconds;
  }

  void time_all(const char* what, std::vector<Timed>& all) const {
    std::vector<int> repeats;
    for (const Timed& one : all) repeats.push_back(repeats_of(one.work));
    for (int round = 0; round < options_.rounds; ++round) {
      say(fmt::format("{}: {} shapes, round {} of {}", what, all.size(), round + 1,
                      options_.rounds));
      for (size_t i = 0; i < all.size(); ++i)
        all[i].seconds.push_back(seconds_on(device_, repeats[i], all[i].work));
    }
  }

  // Every combination of the sizes that layers have, a factor of four apart: what lies between is at most a factor of two from one.
  void products(ComputeType type) {
    const at::ScalarType dtype = dtype_of(type);
    std::vector<Timed> all;
    std::vector<plan::ProductShape> shapes;
    std::vector<int64_t> sizes;
    for (int64_t size = 128; size <= options_.largest; size *= 4) sizes.push_back(size * scale_);
    for (const int64_t m : sizes) {
      for (const int64_t n : sizes) {
        for (const int64_t k : sizes) {
          for (const ProductUse use :
               {ProductUse::kForward, ProductUse::kBackwardInput, ProductUse::kBackwardWeight}) {
            shapes.push_back(
                {use, 1.0, static_cast<double>(m), static_cast<double>(n), static_cast<double>(k)});
            all.push_back({product(use, m, n, k, dtype), {}});
          }
        }
      }
    }
    time_all(fmt::format("products in {}", plan::to_string(type)).c_str(), all);
    double peak = 0.0;
    std::vector<double> rates;
    for (size_t i = 0; i < all.size(); ++i) {
      const double seconds = plan::most_common(all[i].seconds);
      rates.push_back(shapes[i].flops() / std::max(seconds - profile_.kernel_gap_s, 0.1 * seconds));
      peak = std::max(peak, rates.back());
    }
    profile_.peak_flops[type] = peak;
    profile_.gemm_efficiency[type] = median(rates) / peak;
    for (size_t i = 0; i < all.size(); ++i)
      profile_.measured.products.push_back({shapes[i], rates[i] / peak, type});
  }

  /// [m, k] x [k, n] as the use has it; the tensors are made when it is first called.
  std::function<void()> product(ProductUse use, int64_t m, int64_t n, int64_t k,
                                at::ScalarType dtype) const {
    struct Tensors {
      at::Tensor a, b, out;
    };
    const auto held = std::make_shared<Tensors>();
    return [this, use, m, n, k, dtype, held] {
      const c10::AutoGradMode no_grad(false);
      Tensors& t = *held;
      switch (use) {
        case ProductUse::kForward:
          if (!t.a.defined())
            t = {random({m, k}, dtype), random({n, k}, dtype), empty({m, n}, dtype)};
          kernels::linear(t.a, t.b, {}, {}, t.out);
          break;
        case ProductUse::kBackwardInput:
          if (!t.a.defined())
            t = {random({m, k}, dtype), random({k, n}, dtype), empty({m, n}, dtype)};
          kernels::linear_backward_input(t.a, t.b, t.out);
          break;
        case ProductUse::kBackwardWeight:
          if (!t.a.defined())
            t = {random({k, m}, dtype), random({k, n}, dtype), empty({m, n}, at::kFloat)};
          kernels::linear_backward_weight(t.a, t.b, t.out, false);
          break;
      }
    };
  }

  void attention(ComputeType type) {
    const at::ScalarType dtype = dtype_of(type);
    std::vector<Timed> all;
    std::vector<plan::AttentionShape> shapes;
    for (const int64_t seq_len : {64, 128, 256, 512, 1024}) {
      for (const int64_t head_dim : {32, 64, 128}) {
        const int64_t batch = std::max<int64_t>(1, 512 * scale_ / seq_len);
        const int64_t heads = 4;
        const int64_t kv_heads = 2;
        for (const bool backward : {false, true}) {
          shapes.push_back({backward, static_cast<double>(batch), static_cast<double>(seq_len),
                            static_cast<double>(heads), static_cast<double>(kv_heads),
                            static_cast<double>(head_dim), static_cast<double>(head_dim)});
          all.push_back({attend(backward, batch, seq_len, heads, kv_heads, head_dim, dtype), {}});
        }
      }
    }
    time_all(fmt::format("attention in {}", plan::to_string(type)).c_str(), all);
    const double peak = profile_.peak_flops.at(type);
    std::map<bool, std::vector<double>> shares;
    for (size_t i = 0; i < all.size(); ++i) {
      const plan::AttentionShape& shape = shapes[i];
      const double seconds = plan::most_common(all[i].seconds);
      const double flops = 2.0 * shape.batch * shape.heads * shape.seq_len * shape.seq_len *
                           (shape.head_dim + shape.value_dim) * (shape.backward ? 2.5 : 1.0);
      const double share = flops / std::max(seconds - profile_.kernel_gap_s, 0.1 * seconds) / peak;
      profile_.measured.attention.push_back({shape, share, type});
      shares[shape.backward].push_back(share / 2.0);  // of causal operations
    }
    profile_.attention_forward = median(shares[false]);
    profile_.attention_backward = median(shares[true]);
    profile_.attention_half_rows = 0.0;  // the table has how short ones fare
  }

  std::function<void()> attend(bool backward, int64_t batch, int64_t seq_len, int64_t heads,
                               int64_t kv_heads, int64_t head_dim, at::ScalarType dtype) const {
    struct Tensors {
      at::Tensor q, k, v, out, logsumexp, dout, dq, dk, dv;
    };
    const auto held = std::make_shared<Tensors>();
    return [=, this] {
      const c10::AutoGradMode no_grad(false);
      Tensors& t = *held;
      kernels::AttentionOptions options;
      options.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
      if (!t.q.defined()) {
        t.q = random({batch, seq_len, heads, head_dim}, dtype);
        t.k = random({batch, seq_len, kv_heads, head_dim}, dtype);
        t.v = random({batch, seq_len, kv_heads, head_dim}, dtype);
        t.out = empty(t.q.sizes(), dtype);
        t.logsumexp = empty({batch, heads, seq_len}, at::kFloat);
        if (backward) {
          t.dout = random(t.q.sizes(), dtype);
          t.dq = empty(t.q.sizes(), dtype);
          t.dk = empty(t.k.sizes(), dtype);
          t.dv = empty(t.v.sizes(), dtype);
          kernels::attention(t.q, t.k, t.v, options, t.out, t.logsumexp);
        }
      }
      if (backward) {
        kernels::attention_backward(t.dout, t.q, t.k, t.v, t.out, t.logsumexp, options, t.dq, t.dk,
                                    t.dv);
      } else {
        kernels::attention(t.q, t.k, t.v, options, t.out, t.logsumexp);
      }
    };
  }

  device::Device& device_;
  const KernelRatesOptions& options_;
  plan::DeviceProfile& profile_;
  int64_t scale_ = 1;
};

}  // namespace

double seconds_on(device::Device& device, int repeats, const std::function<void()>& work) {
  device::Queue& queue = device.compute_queue();
  const std::unique_ptr<device::Event> begin = queue.record();
  for (int i = 0; i < repeats; ++i) work();
  const std::unique_ptr<device::Event> end = queue.record();
  queue.synchronize();
  // A clock that only counts some kinds of work may stand still.
  return std::max(end->seconds() - begin->seconds(), 1e-10) / repeats;
}

void measure_kernels(device::Device& device, const KernelRatesOptions& options,
                     plan::DeviceProfile& profile) {
  KernelRates(device, options, profile).measure();
}

}  // namespace trireme::calibrate
