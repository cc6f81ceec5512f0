// A kernel that states its workspace, held to it: calls of random sizes with the allocator watched.
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>

#include "trireme/base/error.h"
#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/device.h"
#include "trireme/device/memory.h"
#include "trireme/kernels/conformance/conformance.h"
#include "trireme/kernels/registry.h"

namespace trireme::kernels::conformance {

namespace {

/// Tensors of a call on the device under test.
struct Maker {
  at::Device device;
  at::ScalarType dtype;
  at::Tensor input(at::IntArrayRef sizes) const { return at::randn(sizes).to(dtype).to(device); }
  at::Tensor floats(at::IntArrayRef sizes) const { return at::randn(sizes).to(device); }
  at::Tensor ids(int64_t count, int64_t limit) const {
    return at::randint(limit, {count}, at::kLong).to(device);
  }
};

/// Calls the kernel with tensors that were made before.
using Call = std::function<void()>;
using Prepare = Call (*)(const std::string& kernel, const CallSizes& c, const Maker& make);

template <auto kOp>
auto kernel(const std::string& name) {
  return registry().find_named<kOp>(name);
}

/// Equal groups; of an odd number of rows, one with all of them.
GroupOffsets groups_of(const CallSizes& c) {
  GroupOffsets offsets;
  for (int64_t g = 0; g <= c.groups; ++g)
    offsets.push_back(c.rows % 2 == 0 ? c.rows * g / c.groups : g < 1 ? 0 : c.rows);
  return offsets;
}

Call prepare_linear(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::linear>(name);
  const at::Tensor x = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.out, c.in});
  at::Tensor y = make.input({c.rows, c.out});
  std::optional<at::Tensor> bias;
  std::optional<at::Tensor> residual;
  if (c.bias_and_residual) {
    bias = make.input({c.out});
    residual = make.input({c.rows, c.out});
  }
  return [=]() mutable { call(x, weight, bias, residual, y); };
}

Call prepare_weight(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::linear_backward_weight>(name);
  const at::Tensor dy = make.input({c.rows, c.out});
  const at::Tensor x = make.input({c.rows, c.in});
  at::Tensor dweight = make.floats({c.out, c.in});
  return [=]() mutable { call(dy, x, dweight, true); };
}

Call prepare_bias(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::bias_gradient>(name);
  const at::Tensor dy = make.input({c.rows, c.in});
  at::Tensor dbias = make.floats({c.in});
  return [=]() mutable { call(dy, dbias, false); };
}

Call prepare_rms(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::rms_norm_backward>(name);
  const at::Tensor dy = make.input({c.rows, c.in});
  const at::Tensor x = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.in});
  const at::Tensor rstd = make.floats({c.rows});
  at::Tensor dx = make.input({c.rows, c.in});
  at::Tensor dweight = make.floats({c.in});
  return [=]() mutable { call(dy, x, weight, rstd, dx, false, dweight, false, 0.0); };
}

Call prepare_layer(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::layer_norm_backward>(name);
  const at::Tensor dy = make.input({c.rows, c.in});
  const at::Tensor x = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.in});
  const at::Tensor mean = make.floats({c.rows});
  const at::Tensor rstd = make.floats({c.rows});
  at::Tensor dx = make.input({c.rows, c.in});
  at::Tensor dweight = make.floats({c.in});
  at::Tensor dbias = make.floats({c.in});
  return [=]() mutable { call(dy, x, weight, mean, rstd, dx, false, dweight, dbias, false); };
}

struct AttentionTensors {
  AttentionTensors(const CallSizes& c, const Maker& make)
      : q(make.input({c.batch, c.places, c.heads, c.head_dim})),
        k(make.input({c.batch, c.places, c.kv_heads, c.head_dim})),
        v(make.input({c.batch, c.places, c.kv_heads, c.value_dim})),
        out(make.input({c.batch, c.places, c.heads, c.value_dim})),
        sums(make.floats({c.batch, c.heads, c.places})) {
    options.scale = 0.1;
    options.softcap = c.softcap ? 5.0 : 0.0;
    if (c.sinks) options.sinks = make.floats({c.heads});
  }
  at::Tensor q, k, v, out, sums;
  AttentionOptions options;
};

Call prepare_attention(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::attention>(name);
  AttentionTensors t(c, make);
  return [=]() mutable { call(t.q, t.k, t.v, t.options, t.out, t.sums); };
}

Call prepare_attention_backward(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::attention_backward>(name);
  AttentionTensors t(c, make);
  const at::Tensor dout = make.input({c.batch, c.places, c.heads, c.value_dim});
  at::Tensor dq = make.input(t.q.sizes());
  at::Tensor dk = make.input(t.k.sizes());
  at::Tensor dv = make.input(t.v.sizes());
  const at::Tensor d_sinks = c.sinks ? make.floats({c.heads}) : at::Tensor();
  return
      [=]() mutable { call(dout, t.q, t.k, t.v, t.out, t.sums, t.options, dq, dk, dv, d_sinks); };
}

Call prepare_cross_entropy(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::linear_cross_entropy>(name);
  const at::Tensor hidden = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.out, c.in});
  const at::Tensor targets = make.ids(c.rows, c.out);
  CrossEntropyOutputs outputs;
  outputs.d_hidden = make.input({c.rows, c.in});
  outputs.d_weight = make.floats({c.out, c.in});
  return [=] { call(hidden, weight, targets, 1.0, c.chunk_rows, outputs, 0.0); };
}

std::vector<at::Tensor> expert_weights(const CallSizes& c, const Maker& make, bool gradients) {
  std::vector<at::Tensor> weights;
  for (int64_t part = 0; part < c.parts; ++part) {
    const std::vector<int64_t> sizes = {c.groups, c.out / c.parts, c.in};
    weights.push_back(gradients ? make.floats(sizes) : make.input(sizes));
  }
  return weights;
}

Call prepare_grouped(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::grouped_linear>(name);
  const at::Tensor x = make.input({c.rows, c.in});
  at::Tensor y = make.input({c.rows, c.out});
  return [=, weights = expert_weights(c, make, false), offsets = groups_of(c)]() mutable {
    call(x, weights, offsets, false, y);
  };
}

Call prepare_grouped_input(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::grouped_linear_backward_input>(name);
  const at::Tensor dy = make.input({c.rows, c.out});
  at::Tensor dx = make.input({c.rows, c.in});
  return [=, weights = expert_weights(c, make, false), offsets = groups_of(c)]() mutable {
    call(dy, weights, offsets, dx);
  };
}

Call prepare_grouped_weight(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::grouped_linear_backward_weight>(name);
  const at::Tensor dy = make.input({c.rows, c.out});
  const at::Tensor x = make.input({c.rows, c.in});
  return [=, dweights = expert_weights(c, make, true), offsets = groups_of(c)] {
    call(dy, x, offsets, dweights, true);
  };
}

Call prepare_input(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::linear_backward_input>(name);
  const at::Tensor dy = make.input({c.rows, c.out});
  const at::Tensor weight = make.input({c.out, c.in});
  at::Tensor dx = make.input({c.rows, c.in});
  return [=]() mutable { call(dy, weight, dx, true); };
}

Call prepare_rms_forward(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::rms_norm>(name);
  const at::Tensor x = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.in});
  at::Tensor y = make.input({c.rows, c.in});
  const at::Tensor rstd = make.floats({c.rows});
  return [=]() mutable { call(x, weight, 1e-5, y, rstd, 0.0); };
}

Call prepare_layer_forward(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::layer_norm>(name);
  const at::Tensor x = make.input({c.rows, c.in});
  const at::Tensor weight = make.input({c.in});
  const at::Tensor bias = make.input({c.in});
  at::Tensor y = make.input({c.rows, c.in});
  const at::Tensor mean = make.floats({c.rows});
  const at::Tensor rstd = make.floats({c.rows});
  return [=]() mutable { call(x, weight, bias, 1e-5, y, mean, rstd); };
}

Call prepare_embedding(const std::string& name, const CallSizes& c, const Maker& make) {
  const auto call = kernel<&kernels::embedding_backward>(name);
  const at::Tensor tokens = make.ids(c.rows, c.out);
  const at::Tensor dy = make.input({c.rows, c.in});
  at::Tensor dweight = make.floats({c.out, c.in});
  return [=]() mutable { call(tokens, dy, dweight, true); };
}

Prepare prepare_of(const std::string& op) {
  static const std::map<std::string, Prepare> all = {
      {"linear", &prepare_linear},
      {"linear_backward_input", &prepare_input},
      {"rms_norm", &prepare_rms_forward},
      {"layer_norm", &prepare_layer_forward},
      {"embedding_backward", &prepare_embedding},
      {"linear_backward_weight", &prepare_weight},
      {"bias_gradient", &prepare_bias},
      {"rms_norm_backward", &prepare_rms},
      {"layer_norm_backward", &prepare_layer},
      {"attention", &prepare_attention},
      {"attention_backward", &prepare_attention_backward},
      {"linear_cross_entropy", &prepare_cross_entropy},
      {"grouped_linear", &prepare_grouped},
      {"grouped_linear_backward_input", &prepare_grouped_input},
      {"grouped_linear_backward_weight", &prepare_grouped_weight}};
  const auto found = all.find(op);
  return found == all.end() ? nullptr : found->second;
}

CallSizes draw(std::mt19937& random, at::ScalarType dtype) {
  const auto pick = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % most); };
  CallSizes c;
  c.dtype = dtype;
  c.rows = 64 + pick(400);
  c.in = 64 + 8 * pick(32);
  c.parts = pick(2);
  c.out = 8 * c.parts * pick(40);
  c.groups = 1 + pick(5);
  c.chunk_rows = 32 + pick(500);
  c.bias_and_residual = random() % 2 == 0;
  c.batch = pick(3);
  c.places = 16 + pick(140);
  c.kv_heads = pick(3);
  c.heads = c.kv_heads * pick(3);
  c.head_dim = 8 * pick(12);
  c.value_dim = random() % 3 == 0 ? std::max<int64_t>(8, c.head_dim / 16 * 8) : c.head_dim;
  c.softcap = random() % 4 == 0;
  c.sinks = random() % 4 == 0;
  return c;
}

std::string describe(const CallSizes& c, bool attention) {
  const std::string dtype = c.dtype == at::kFloat ? "float32" : "bfloat16";
  if (attention) {
    return fmt::format("{} x {}, {} heads of {} and {}, {} for keys{}{}, {}", c.batch, c.places,
                       c.heads, c.head_dim, c.value_dim, c.kv_heads, c.softcap ? ", soft cap" : "",
                       c.sinks ? ", sinks" : "", dtype);
  }
  return fmt::format("{} rows, {} to {}, {} groups, {} parts, {} at once{}, {}", c.rows, c.in,
                     c.out, c.groups, c.parts, c.chunk_rows,
                     c.bias_and_residual ? ", bias and residual" : "", dtype);
}

}  // namespace

bool tries_workspace(const std::string& op) {
  return prepare_of(op) != nullptr;
}

std::vector<Outcome> check_workspace(const std::string& op, const std::string& kernel,
                                     c10::DeviceType type) {
  const WorkspaceBytes stated = registry().info_of_kernel(op, kernel).workspace;
  const Prepare prepare = prepare_of(op);
  if (stated == nullptr || prepare == nullptr) return {};
  device::Device& device = device::get_device(
      type == c10::DeviceType::CPU ? "cpu" : c10::DeviceTypeName(type, /*lower_case=*/true));
  const auto* accelerator = dynamic_cast<const device::AcceleratorDevice*>(&device);
  if (accelerator != nullptr && !accelerator->support().memory_statistics) return {};
  TRIREME_CHECK(type != c10::DeviceType::CPU || device::cpu_allocator_installed(),
                "nobody counts the processor's memory");
  constexpr int kDraws = 12;
  // What an allocator rounds up, a tensor of each.
  constexpr int64_t kRounding = 8 * 512;
  std::vector<Outcome> outcomes;
  std::mt19937 random(5);
  for (const at::ScalarType dtype : registry().dtypes_of_kernel(op, kernel)) {
    for (int i = 0; i < kDraws; ++i) {
      const CallSizes sizes = draw(random, dtype);
      Outcome outcome{op, kernel, "workspace of " + describe(sizes, op.starts_with("attention")),
                      0.0, ""};
      try {
        const Call call = prepare(kernel, sizes, {device.torch_device(), dtype});
        call();  // what is made at first use is made
        device.synchronize();
        const int64_t before = device.memory().allocated_bytes;
        device.reset_peak_memory();
        call();
        device.synchronize();
        const int64_t held = device.memory().peak_allocated_bytes - before;
        const int64_t most = stated(sizes);
        outcome.worst =
            static_cast<double>(held) / static_cast<double>(std::max<int64_t>(most + kRounding, 1));
        if (held > most + kRounding) {
          outcome.problem = fmt::format("it holds {} bytes and states {}", held, most);
        } else if (most > held + held / 4 + kRounding) {
          outcome.problem = fmt::format(
              "it holds {} bytes and states {}: a plan would refuse what fits", held, most);
        }
      } catch (const std::exception& error) {
        outcome.problem = fmt::format("it throws: {}", error.what());
      }
      outcomes.push_back(std::move(outcome));
    }
  }
  return outcomes;
}

}  // namespace trireme::kernels::conformance
