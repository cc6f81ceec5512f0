// Element-wise passes of attention over blocks of scores: plain pointers, one thread, vectorised for the machine.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstddef>
#include <cstdint>

namespace trireme::kernels::cpu {

/// How a raw score becomes a logit: scale * s, and softcap * tanh(. / softcap) where softcap > 0.
struct ScoreMap {
  float scale = 1.0f;
  float softcap = 0.0f;
};

/// Logits of s[begin, end) become exp(logit - new maximum), the rest of [0, n) zero. Updates the row's running maximum
/// and sum; returns what earlier blocks' results must be multiplied with.
float softmax_row(float* s, size_t begin, size_t end, size_t n, const ScoreMap& map, float* maximum,
                  float* sum);

/// x[0, n) *= factor.
void scale_row(float* x, size_t n, float factor);
/// out = x * factor.
void scale_into(const float* x, size_t n, float factor, float* out);
void scale_into(const float* x, size_t n, float factor, at::BFloat16* out);

/// One tile of the backward, transposed: rows are keys, columns queries, both of stride 64. Row r has columns
/// [max(0, r - offset), min(queries, r - offset + window)) that count, with offset = first query - first key and window
/// the keys that a query sees. There p = exp(logit(s) - lse[column]) and ds = the gradient of the raw score,
/// p (dp - delta[column]) times the map's derivative; elsewhere both are zero. p may be s and ds may be dp.
template <class E>
struct BackwardTile {
  float* s;
  float* dp;
  const float* lse;
  const float* delta;
  int64_t keys;
  int64_t queries;
  int64_t offset;
  int64_t window;
  E* p;
  E* ds;
};
void backward_tile(const BackwardTile<float>& tile, const ScoreMap& map);
void backward_tile(const BackwardTile<at::BFloat16>& tile, const ScoreMap& map);

float dot(const float* a, const float* b, size_t n);
float dot(const at::BFloat16* a, const at::BFloat16* b, size_t n);

}  // namespace trireme::kernels::cpu
