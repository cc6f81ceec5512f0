// Scores of one token over all experts, vectorised for the machine's instruction set: plain pointers, single-threaded.
#pragma once

#include <cstddef>

namespace trireme::kernels::cpu {

struct RouterScoreKernels {
  /// p = softmax(z), which may be z; returns logsumexp(z). NaN where z is not finite.
  float (*softmax)(const float* z, size_t n, float* p);
  /// s = 1 / (1 + exp(-z)).
  void (*sigmoid)(const float* z, size_t n, float* s);
  /// sums[e] += share[e] with share = p times `scale`; returns -sum of share log share.
  double (*add_shares)(const float* p, size_t n, float scale, double* sums);
};
const RouterScoreKernels& router_score_kernels();

}  // namespace trireme::kernels::cpu
