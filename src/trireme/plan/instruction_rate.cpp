#include "trireme/plan/instruction_rate.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

// As of products (cost.cpp): a neighbour counts by exp(-(distance / kNear)^2), the fit as much as a neighbour at kFar.
constexpr double kNear = 0.25;
constexpr double kFar = 0.75;
constexpr double kSame = 1e-4;  ///< distance of sizes that are one: a profile has six digits
constexpr size_t kTerms = 4;    ///< fixed, products, attention, memory

double weight_at(double distance) {
  return std::exp(-(distance / kNear) * (distance / kNear));
}

std::array<double, kTerms> terms_of(const TableSeconds& tables) {
  return {1.0, tables.products, tables.attention, tables.memory};
}

// Root mean square of the logarithms of the ratios; what one has and the other has not makes them strangers.
double distance(const TableSeconds& a, const TableSeconds& b) {
  double sum = 0.0;
  double count = 0.0;
  const auto left = terms_of(a);
  const auto right = terms_of(b);
  for (size_t i = 1; i < kTerms; ++i) {
    if (left[i] <= 0.0 && right[i] <= 0.0) continue;
    if (left[i] <= 0.0 || right[i] <= 0.0) return 1e9;
    const double ratio = std::log(left[i] / right[i]);
    sum += ratio * ratio;
    count += 1.0;
  }
  return count > 0.0 ? std::sqrt(sum / count) : 0.0;
}

std::vector<MeasuredInstruction> put_together(const std::vector<MeasuredInstruction>& measured) {
  std::vector<MeasuredInstruction> sizes;
  for (const MeasuredInstruction& one : measured) {
    TRIREME_CHECK(one.seconds > 0.0 && one.spans > 0.0,
                  "a measured instruction of {} s in {} spans", one.seconds, one.spans);
    const auto same = std::ranges::find_if(sizes, [&](const MeasuredInstruction& other) {
      return distance(one.tables, other.tables) < kSame;
    });
    if (same == sizes.end()) {
      sizes.push_back(one);
      continue;
    }
    const double spans = same->spans + one.spans;
    same->seconds = (same->seconds * same->spans + one.seconds * one.spans) / spans;
    same->spans = spans;
  }
  return sizes;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2.0;
}

/// Minimises sum of w (x.c / y - 1)^2 + prior (share (c / c0 - 1))^2 over c >= 0, one number after the other.
class RelativeFit {
 public:
  explicit RelativeFit(const std::vector<MeasuredInstruction>& sizes) {
    std::vector<double> ratios;
    for (const MeasuredInstruction& size : sizes) {
      std::array<double, kTerms> row = terms_of(size.tables);
      for (double& x : row) x /= size.seconds;
      rows_.push_back(row);
      if (size.tables.total() > 0.0) ratios.push_back(size.seconds / size.tables.total());
    }
    weights_.assign(rows_.size(), 1.0);
    const double scale = ratios.empty() ? 0.0 : median(ratios);
    prior_ = {0.0, scale, scale, scale};
    numbers_ = prior_;
    for (size_t j = 0; j < kTerms; ++j) {
      for (const auto& row : rows_) share_[j] += row[j] / static_cast<double>(rows_.size());
    }
  }

  std::array<double, kTerms> run() {
    constexpr int kRounds = 20;
    constexpr double kHuber = 1.5;   // of the residuals' usual size
    constexpr double kLeast = 1e-4;  // of a residual that still counts in full
    for (int round = 0; round < kRounds; ++round) {
      descend();
      std::vector<double> errors;
      errors.reserve(rows_.size());
      for (const auto& row : rows_) errors.push_back(std::abs(error_of(row)));
      const double limit = std::max(kHuber * 1.4826 * median(errors), kLeast);
      for (size_t i = 0; i < rows_.size(); ++i)
        weights_[i] = errors[i] <= limit ? 1.0 : limit / errors[i];
    }
    return numbers_;
  }

 private:
  double error_of(const std::array<double, kTerms>& row) const {
    double sum = -1.0;
    for (size_t j = 0; j < kTerms; ++j) sum += row[j] * numbers_[j];
    return sum;
  }

  void descend() {
    constexpr int kSweeps = 2000;
    constexpr double kPrior = 1e-4;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      double moved = 0.0;
      for (size_t j = 0; j < kTerms; ++j) {
        const double pull = kPrior * static_cast<double>(rows_.size()) * share_[j] * share_[j];
        double top = pull * prior_[j];
        double bottom = pull;
        for (size_t i = 0; i < rows_.size(); ++i) {
          const double rest = -error_of(rows_[i]) + rows_[i][j] * numbers_[j];
          top += weights_[i] * rows_[i][j] * rest;
          bottom += weights_[i] * rows_[i][j] * rows_[i][j];
        }
        if (bottom <= 0.0) continue;  // nobody has any of it
        const double next = std::max(0.0, top / bottom);
        moved = std::max(moved, std::abs(next - numbers_[j]) * share_[j]);
        numbers_[j] = next;
      }
      if (moved < 1e-9) break;
    }
  }

  std::vector<std::array<double, kTerms>> rows_;  ///< over the measured seconds
  std::vector<double> weights_;
  std::array<double, kTerms> prior_{};
  std::array<double, kTerms> share_{};  ///< mean of the rows
  std::array<double, kTerms> numbers_{};
};

}  // namespace

double InstructionRate::fitted(const TableSeconds& tables) const {
  return fixed_s + products * tables.products + attention * tables.attention +
         memory * tables.memory;
}

double InstructionRate::seconds(const TableSeconds& tables) const {
  const double plain = fitted(tables);
  double weights = weight_at(kFar);
  double logarithms = 0.0;
  for (const MeasuredInstruction& one : measured) {
    const double apart = distance(one.tables, tables);
    if (apart < kSame) return one.seconds;
    const double expected = fitted(one.tables);
    if (expected <= 0.0) continue;
    const double weight = weight_at(apart);
    weights += weight;
    logarithms += weight * std::log(one.seconds / expected);
  }
  return plain * std::exp(logarithms / weights);
}

InstructionRate fit_rate(const InstructionClass& of,
                         const std::vector<MeasuredInstruction>& measured) {
  TRIREME_CHECK(!measured.empty(), "no measured {} of {}", of.kind, of.part);
  InstructionRate rate;
  rate.of = of;
  rate.measured = put_together(measured);
  const auto numbers = RelativeFit(rate.measured).run();
  rate.fixed_s = numbers[0];
  rate.products = numbers[1];
  rate.attention = numbers[2];
  rate.memory = numbers[3];
  std::vector<double> errors;
  errors.reserve(rate.measured.size());
  for (const MeasuredInstruction& one : rate.measured)
    errors.push_back(std::abs(rate.fitted(one.tables) / one.seconds - 1.0));
  rate.residual = median(errors);
  return rate;
}

}  // namespace trireme::plan
