// Measured efficiencies of products and attention by shape, and what lies between them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme::plan {

/// How a product's inputs are stored, or what the device computes in.
enum class ComputeType { kFp32, kBf16, kFp8 };
const char* to_string(ComputeType type);

/// Which product of a linear layer: out = in W^T, grad_in = grad_out W, grad_W = grad_out^T in.
enum class ProductUse { kForward, kBackwardInput, kBackwardWeight };

/// `groups` products [m, k] x [k, n]; m counts tokens in forward and backward-input, output features in backward-weight, as
/// SimuMax's tables do.
struct ProductShape {
  ProductUse use = ProductUse::kForward;
  double groups = 1.0;
  double m = 1.0;
  double n = 1.0;
  double k = 1.0;
  double flops() const { return 2.0 * groups * m * n * k; }
};

struct AttentionShape {
  bool backward = false;
  double batch = 1.0;
  double seq_len = 1.0;
  double heads = 1.0;
  double kv_heads = 1.0;
  double head_dim = 128.0;
  double value_dim = 128.0;
};

struct MeasuredProduct {
  ProductShape shape;
  double efficiency = 0.0;  ///< share of the device's peak
  ComputeType type = ComputeType::kBf16;
};
struct MeasuredAttention {
  AttentionShape shape;
  /// Share of the peak, counting all pairs of positions although half are masked (as the tables' source does), and 2.5 times
  /// the forward's operations backward.
  double efficiency = 0.0;
  ComputeType type = ComputeType::kBf16;
};

struct EfficiencyTables {
  std::vector<MeasuredProduct> products;
  std::vector<MeasuredAttention> attention;

  /// Of exactly this shape; nullopt if it was not measured.
  std::optional<double> exact(const ProductShape& shape, ComputeType type) const;
  std::optional<double> exact(const AttentionShape& shape, ComputeType type) const;
  bool has_products(ComputeType type) const;
  bool has_attention(ComputeType type) const;
};

/// Distance of two shapes: root mean square of the logarithms of the ratios of their sizes.
double distance(const ProductShape& a, const ProductShape& b);
double distance(const AttentionShape& a, const AttentionShape& b);

}  // namespace trireme::plan
