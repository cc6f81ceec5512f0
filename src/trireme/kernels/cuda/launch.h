// What the device's kernels offer to the ops (*_ops.cpp): one function a kernel, over raw addresses, without ATen, so that
// the .cu files compile in seconds and the ops know no runtime.
//
// All addresses are the device's. A call issues its work to `stream` (the runtime's handle) and returns; work that cannot be
// issued is Error{kDevice}. Sums are float32 over fixed blocks and a fixed tree: the same bits each time, on any device.
// Sizes and strides are in elements; `type` is that of all tensors of the call unless said otherwise.
#pragma once

#include <cstdint>

namespace trireme::kernels::gpu {

using Stream = void*;

enum class Type { kFloat, kBf16 };

/// The upper half of a float32.
struct Bf16 {
  uint16_t bits;
};

/// As of kernels/ops.h, in that order.
enum class Act { kSilu, kGeluTanh, kGelu, kRelu };

/// Rows of `width` elements that may lie apart: row r is (r / heads) * stride + (r % heads) * head_stride further on.
struct Rows {
  void* data = nullptr;  ///< nullptr: not there
  int64_t stride = 0;
  int64_t head_stride = 0;
  int64_t heads = 1;
};

[[noreturn]] void launch_failed(const char* kernel, const char* reason);

/// The first number of the current device's compute capability; 0 in the emulation.
int compute_major();
/// Multiprocessors of the current device; 2 in the emulation.
int multiprocessors();

// --- Norms (norm.cu). Rows of x, y, dy, dx; weight and bias contiguous [width]; statistics float32 [rows] -----------------

struct NormForward {
  Type type;
  bool centred;  ///< layer norm; else RMS norm
  int64_t rows;
  int64_t width;
  float eps;
  float offset;  ///< of the weight
  Rows x;
  Rows y;
  const void* weight;
  const void* bias;  ///< or nullptr
  float* mean;       ///< or nullptr
  float* rstd;       ///< or nullptr
};
void norm_forward(const NormForward& norm, Stream stream);

struct NormBackward {
  Type type;
  bool centred;
  int64_t rows;
  int64_t width;
  float offset;
  Rows dy;
  Rows x;
  Rows dx;  ///< data nullptr: not computed
  bool add_to_dx;
  const void* weight;
  const float* mean;
  const float* rstd;
  float* dweight;  ///< [width] or nullptr
  float* dbias;    ///< [width] or nullptr
  bool accumulate;
  float* partial;  ///< norm_partial_floats() of workspace
};
void norm_backward(const NormBackward& norm, Stream stream);
int64_t norm_partial_floats(const NormBackward& norm);

/// out[c] = sum over rows of x[r, c], or added to it. partial: column_partial_floats(rows, width).
void column_sums(Type type, const Rows& x, int64_t rows, int64_t width, float* out, bool accumulate,
                 float* partial, Stream stream);
int64_t column_partial_floats(int64_t rows, int64_t width);

// --- Element-wise (activation.cu) ------------------------------------------------------------------------------------------

void activation(Type type, Act act, const void* x, void* y, int64_t count, Stream stream);
void activation_backward(Type type, Act act, const void* dy, const void* x, void* dx, int64_t count,
                         Stream stream);

struct Gated {
  Type type;
  Act act;
  float limit;  ///< > 0: gpt_oss's clamped gate, whatever `act` says
  int64_t rows;
  int64_t width;         ///< gate_up is [rows, 2 width], dy and y are [rows, width]
  const float* weights;  ///< [rows] or nullptr: 1
};
void gated(const Gated& gated, const void* gate_up, void* y, Stream stream);
/// y, d_weights: may be nullptr.
void gated_backward(const Gated& gated, const void* dy, const void* gate_up, void* d_gate_up,
                    float* d_weights, void* y, Stream stream);

/// y = sum + bias + residual, rounded once. sum float32 [rows, width].
void add_bias_residual(Type type, const float* sum, const void* bias, const Rows& residual,
                       const Rows& y, int64_t rows, int64_t width, Stream stream);

// --- Positions and tables (position.cu) ------------------------------------------------------------------------------------

struct Rotary {
  Type type;
  int64_t tokens;
  int64_t heads;
  int64_t half;  ///< columns of cos and sin
  int64_t table_rows;
  void* x;
  int64_t stride;
  int64_t head_stride;
  const int64_t* positions;
  const float* cos;
  const float* sin;
  bool inverse;
  bool interleaved;
};
void rotary(const Rotary& rotary, Stream stream);

/// found[0] = the index of the first id outside 0 .. limit - 1 that is not `ignored` either, or -1.
void find_outside(const int64_t* ids, int64_t count, int64_t limit, int64_t ignored, int64_t* found,
                  Stream stream);

/// out[n] = table[ids[n]] + more[positions[n]]; zero where an id is negative. more: or nullptr.
void gather(Type type, const int64_t* ids, const void* table, const int64_t* positions,
            const void* more, void* out, int64_t count, int64_t width, Stream stream);

/// table[ids[i]] += rows[order[i]] in the order of i. ids are ascending; table float32.
void scatter_sorted(Type type, const int64_t* ids, const int64_t* order, const void* rows,
                    float* table, int64_t count, int64_t width, Stream stream);

// --- Loss (cross_entropy.cu) -----------------------------------------------------------------------------------------------

struct CrossEntropy {
  Type type;  ///< of d_logits
  int64_t rows;
  int64_t vocab;
  const float* logits;  ///< [rows, vocab]
  const int64_t* targets;
  int64_t ignored;
  float scale;
  float softcap;   ///< 0: none
  float* losses;   ///< [rows]
  void* d_logits;  ///< [rows, vocab], may be logits in float32; nullptr: not computed
};
void cross_entropy(const CrossEntropy& loss, Stream stream);

// --- Flat buffers (flat.cu) ------------------------------------------------------------------------------------------------

struct AdamW {
  int64_t count;
  float* weights;
  const float* gradients;
  float* exp_avg;
  float* exp_avg_sq;
  Bf16* compute;  ///< or nullptr
  float gradient_scale;
  float decay;  ///< 1 - lr * weight_decay
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float step_size;         ///< lr / (1 - beta1^step)
  float root_correction2;  ///< sqrt(1 - beta2^step)
  float eps;
};
void adamw(const AdamW& step, Stream stream);

/// out[0] = sum of x^2. partial: squares_partial_doubles(count).
void sum_of_squares(const float* x, int64_t count, double* partial, double* out, Stream stream);
int64_t squares_partial_doubles(int64_t count);
/// out[b] = sum of x^2 over block b of `block` elements.
void squares_by_block(const float* x, int64_t count, int64_t block, double* out, Stream stream);

/// out = a x + b y; `type` is out's.
void scaled_sum(Type type, const float* x, float a, const Bf16* y, float b, void* out,
                int64_t count, Stream stream);

// --- Rows of experts (expert_rows.cu) --------------------------------------------------------------------------------------

/// out[n] = start[n] + sum over j of y[rows[n, j]] in order of j; start: or nullptr.
void sum_rows(Type type, const void* y, const int64_t* rows, int64_t tokens, int64_t choices,
              const void* start, void* out, int64_t width, Stream stream);

/// to[rows[i]] = from[i] where rows[i] >= 0. float32.
void scatter_values(const float* from, const int64_t* rows, float* to, int64_t count,
                    Stream stream);
/// to[i] = from[rows[i]], 0 where rows[i] < 0. float32.
void gather_values(const float* from, const int64_t* rows, float* to, int64_t count, Stream stream);

struct GroupedBias {
  Type type;
  int64_t groups;
  int64_t rows;
  int64_t width;
  const int64_t* offsets;  ///< [groups + 1]
  const float* weights;    ///< [rows] or nullptr: 1
};
/// y[m] = w[m] bias[group of m].
void grouped_bias(const GroupedBias& grouped, const void* bias, const Rows& y, Stream stream);
/// dbias[g] = sum of w[m] dy[m], or added to it; d_weights[m] += dy[m] . bias[g], or nullptr.
void grouped_bias_backward(const GroupedBias& grouped, const Rows& dy, const void* bias,
                           float* dbias, bool accumulate, float* d_weights, Stream stream);

}  // namespace trireme::kernels::gpu
