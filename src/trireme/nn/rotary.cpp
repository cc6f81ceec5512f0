#include "trireme/nn/rotary.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace trireme::nn {

std::vector<float> rotary_inverse_frequencies(const model::RotarySpec& spec) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < spec.dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(spec.dim);
    float frequency = 1.0F / std::pow(static_cast<float>(spec.theta), exponent);
    if (spec.scaling == model::RotaryScaling::kLinear) frequency /= static_cast<float>(spec.factor);
    if (spec.scaling == model::RotaryScaling::kLlama3) {
      // Long waves are slowed by the factor, short ones stay, those between are blended
      // (Llama 3.1).
      const double original = static_cast<double>(spec.original_max_positions);
      const double wave_length = 2.0 * std::numbers::pi / frequency;
      if (wave_length > original / spec.low_freq_factor) {
        frequency = static_cast<float>(frequency / spec.factor);
      } else if (wave_length >= original / spec.high_freq_factor) {
        const double smooth = (original / wave_length - spec.low_freq_factor) /
                              (spec.high_freq_factor - spec.low_freq_factor);
        frequency =
            static_cast<float>((1.0 - smooth) * frequency / spec.factor + smooth * frequency);
      }
    }
    frequencies.push_back(frequency);
  }
  return frequencies;
}

RotaryTable::RotaryTable(const model::RotarySpec& spec)
    : spec_(spec), inverse_frequencies_(rotary_inverse_frequencies(spec)) {}

void RotaryTable::reserve(int64_t positions) {
  const int64_t have = cos_.defined() ? cos_.size(0) : 0;
  if (positions <= have) return;
  // Exactly what training asks for first; generation, which asks for one more each time, grows by
  // doubling.
  const int64_t rows = std::max(positions, 2 * have);
  const auto pairs = static_cast<int64_t>(inverse_frequencies_.size());
  cos_ = at::empty({rows, pairs}, at::kFloat);
  sin_ = at::empty({rows, pairs}, at::kFloat);
  float* cos = cos_.data_ptr<float>();
  float* sin = sin_.data_ptr<float>();
  for (int64_t position = 0; position < rows; ++position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(position) * inverse_frequencies_[i];
      cos[position * pairs + i] = std::cos(angle);
      sin[position * pairs + i] = std::sin(angle);
    }
  }
}

}  // namespace trireme::nn
