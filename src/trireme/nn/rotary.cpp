#include "trireme/nn/rotary.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "trireme/kernels/ops.h"

namespace trireme::nn {
namespace {

/// Llama 3.1: long waves are slowed by the factor, short ones stay, those between are blended.
float llama3_frequency(const model::RotarySpec& spec, float frequency) {
  const double original = static_cast<double>(spec.original_max_positions);
  const double wave_length = 2.0 * std::numbers::pi / frequency;
  if (wave_length > original / spec.low_freq_factor)
    return static_cast<float>(frequency / spec.factor);
  if (wave_length < original / spec.high_freq_factor) return frequency;
  const double smooth = (original / wave_length - spec.low_freq_factor) /
                        (spec.high_freq_factor - spec.low_freq_factor);
  return static_cast<float>((1.0 - smooth) * frequency / spec.factor + smooth * frequency);
}

/// YaRN: the share of pair `pair` that is extrapolated (turns as ever) instead of interpolated.
float yarn_extrapolation(const model::RotarySpec& spec, int64_t pair) {
  const auto dimension = [&](double rotations) {
    return static_cast<double>(spec.dim) *
           std::log(static_cast<double>(spec.original_max_positions) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.theta));
  };
  double low = dimension(spec.beta_fast);
  double high = dimension(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(spec.dim - 1));
  if (low == high) high += 0.001;
  const auto ramp =
      (static_cast<float>(pair) - static_cast<float>(low)) / static_cast<float>(high - low);
  return 1.0F - std::clamp(ramp, 0.0F, 1.0F);
}

RotaryTable::Rows make_rows(const model::RotarySpec& spec, bool long_sequence, int64_t count) {
  const std::vector<float> frequencies = rotary_inverse_frequencies(spec, long_sequence);
  const auto pairs = static_cast<int64_t>(frequencies.size());
  RotaryTable::Rows rows{at::empty({count, pairs}, at::kFloat),
                         at::empty({count, pairs}, at::kFloat)};
  float* cos = rows.cos.data_ptr<float>();
  float* sin = rows.sin.data_ptr<float>();
  const auto factor = static_cast<float>(spec.attention_factor);
  for (int64_t position = 0; position < count; ++position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      cos[position * pairs + i] = std::cos(angle) * factor;
      sin[position * pairs + i] = std::sin(angle) * factor;
    }
  }
  return rows;
}

}  // namespace

std::vector<float> rotary_inverse_frequencies(const model::RotarySpec& spec, bool long_sequence) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < spec.dim; i += 2) {
    const auto pair = static_cast<size_t>(i / 2);
    const float exponent = static_cast<float>(i) / static_cast<float>(spec.dim);
    const float power = std::pow(static_cast<float>(spec.theta), exponent);
    float frequency = 1.0F / power;
    switch (spec.scaling) {
      case model::RotaryScaling::kNone:
        break;
      case model::RotaryScaling::kLinear:
        frequency /= static_cast<float>(spec.factor);
        break;
      case model::RotaryScaling::kLlama3:
        frequency = llama3_frequency(spec, frequency);
        break;
      case model::RotaryScaling::kYarn: {
        const float interpolated = 1.0F / (static_cast<float>(spec.factor) * power);
        const float share = yarn_extrapolation(spec, i / 2);
        frequency = interpolated * (1.0F - share) + frequency * share;
        break;
      }
      case model::RotaryScaling::kLongRope: {
        const std::vector<double>& factors = long_sequence ? spec.long_factor : spec.short_factor;
        frequency = 1.0F / (static_cast<float>(factors[pair]) * power);
        break;
      }
    }
    frequencies.push_back(frequency);
  }
  return frequencies;
}

const RotaryTable::Rows& RotaryTable::rows(int64_t length) {
  const bool long_sequence =
      spec_.scaling == model::RotaryScaling::kLongRope && length > spec_.original_max_positions;
  Rows& rows = long_sequence ? long_ : usual_;
  const int64_t have = rows.cos.defined() ? rows.cos.size(0) : 0;
  // Exactly what training asks for first; generation, which asks for one more each time, grows by
  // doubling.
  if (length > have) {
    if (have > 0 && !device_.is_cpu()) replaced_.push_back(rows);
    rows = make_rows(spec_, long_sequence, std::max(length, 2 * have));
    rows.cos = rows.cos.to(device_);
    rows.sin = rows.sin.to(device_);
  }
  return rows;
}

void RotaryTable::turn(at::Tensor heads, const at::Tensor& positions, int64_t length,
                       bool inverse) {
  const Rows& table = rows(length);
  kernels::rotary_(heads, positions.flatten(), table.cos, table.sin, inverse, spec_.interleaved);
}

void RotaryTable::turn_rows(const at::Tensor& heads, const at::Tensor& positions) {
  const int64_t count = positions.size(1);
  for (int64_t row = 0; row < positions.size(0); ++row) {
    const at::Tensor places = positions[row];
    turn(heads.narrow(0, row * count, count), places, places.max().item<int64_t>() + 1, false);
  }
}

}  // namespace trireme::nn
