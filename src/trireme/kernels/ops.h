// The contract of every kernel: what a layer may call, with shapes, dtypes and memory.
//
// Conventions of all functions below
//  - "compute dtype" is float32 or bfloat16 and is the same for all tensors of a call unless said
//    otherwise. Statistics, accumulations and gradients of parameters are float32.
//  - Rows are tokens: N = batch x sequence. A tensor's last dimension is contiguous; its rows may
//  be
//    strided where the comment says so, else the tensor is contiguous.
//  - Outputs are tensors the caller made (uninitialised is fine: nothing reads them, unless
//  `accumulate`
//    is true). No function keeps a reference to its arguments.
//  - `accumulate` false overwrites the output, true adds to it: nobody fills with zeros.
//  - Results depend neither on the number of threads nor on the number of rows beside a row:
//  reductions
//    over rows run over fixed blocks and a fixed tree.
//  - "Workspace" is memory held only during the call, in bytes, from the tensor allocator.
//  - Blocking: every function returns when its result is there. Thread-safety: one call at a time;
//  each
//    call spreads over ATen's thread pool.
//  - Shapes or dtypes that break the contract are defects of the caller (TRIREME_CHECK).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme::kernels {

/// Why no kernel can run the op of this name ("rms_norm") in `dtype` on `device`; empty if one can. Error{kConfig} for an
/// unknown op. Which kernel runs an op, and others in their place: registry.h, plugin.h.
std::optional<std::string> unsupported_reason(const std::string& op, at::ScalarType dtype,
                                              at::Device device);

// --- Products -----------------------------------------------------------------------------------
// x and dy may have strided rows (a column slice of a wider matrix); weights may too.

/// y = x weight^T (+ bias) (+ residual). x [N, in], weight [out, in], bias [out], residual [N, out]
/// and y [N, out] in compute dtype; y may also be float32 with bfloat16 inputs. residual may be y
/// itself. Row i of y is the same bits whatever N is. Workspace: none in float32 when N >= 16; see
/// product_workspace_bytes.
void linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
            const std::optional<at::Tensor>& residual, at::Tensor& y);

/// dx = dy weight, or dx += dy weight. dy [N, out], weight [out, in], dx [N, in]; compute dtype.
void linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, at::Tensor& dx,
                           bool accumulate = false);

/// dweight = dy^T x, or dweight += dy^T x. dy [N, out], x [N, in] compute dtype; dweight [out, in]
/// float32.
void linear_backward_weight(const at::Tensor& dy, const at::Tensor& x, at::Tensor& dweight,
                            bool accumulate);

/// dbias = column sums of dy [N, out], or added to it. dbias [out] float32.
void bias_gradient(const at::Tensor& dy, at::Tensor& dbias, bool accumulate);

/// y = x x^T, x [N, in] bfloat16, y [N, N] float32. Where products are of panels: half the work of linear(x, x), with its
/// bits, and exactly symmetric. Workspace: that of the product.
void gram(const at::Tensor& x, at::Tensor& y);

/// Workspace of one product of `rows` x `inner` by `inner` x `cols` in `dtype`.
int64_t product_workspace_bytes(int64_t rows, int64_t cols, int64_t inner, at::ScalarType dtype);

// --- Normalisation ------------------------------------------------------------------------------
// x, y, dy, dx: [N, d] or [N, heads, d] with any strides but a contiguous last dimension (so the q
// heads of a fused qkv matrix are normalised where they lie). rstd and mean: float32, contiguous,
// [N] or [N, heads]. y may be x. dx may be dy or x. add_to_dx: dx += gradient (the residual branch), for
// which dx is not dy. Workspace of a backward: 4 d (or 8 d) bytes for each of up to 64 blocks of
// rows.

/// y = x / sqrt(mean(x^2) + eps) * (weight + offset); rstd = 1 / sqrt(mean(x^2) + eps). Zhang & Sennrich 2019.
/// rstd may be undefined when no backward follows. The sum with the offset is float32.
void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
              at::Tensor rstd, double offset = 0.0);

/// Gradient of rms_norm. dweight [d] float32 (undefined: not computed); dx undefined: only dweight.
void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& rstd, at::Tensor dx, bool add_to_dx, at::Tensor dweight,
                       bool accumulate, double offset = 0.0);

/// y = (x - mean) * rstd * weight + bias; bias may be undefined. Ba, Kiros & Hinton 2016.
void layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                at::Tensor& y, at::Tensor mean, at::Tensor rstd);

/// Gradient of layer_norm. dweight, dbias [d] float32, each may be undefined; dx undefined: only
/// those.
void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& mean, const at::Tensor& rstd, at::Tensor dx,
                         bool add_to_dx, at::Tensor dweight, at::Tensor dbias, bool accumulate);

// --- Element-wise -------------------------------------------------------------------------------

enum class Activation { kSilu, kGeluTanh, kGelu, kRelu };  ///< kGelu is the erf form

/// y = act(x); same shape, contiguous; y may be x. Workspace: none.
void activation(Activation act, const at::Tensor& x, at::Tensor& y);

/// dx = dy * act'(x); dx may be dy or x.
void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x, at::Tensor& dx);

/// y = act(gate) * up over a fused matrix. gate_up [N, 2h] = gate | up, y [N, h]. With kSilu:
/// SwiGLU (Shazeer 2020). Workspace: none.
void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y);

/// dy [N, h] -> d_gate_up [N, 2h]; d_gate_up may be gate_up. If y is defined [N, h], the forward
/// result is made again in the same pass (y may be dy).
void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y = {});

// --- Rotary position embedding (Su et al. 2021; rotate-half as Hugging Face, or interleaved) -----

/// Rotates x in place: for i < dim/2, (x_i, x_{i+dim/2}), or (x_{2i}, x_{2i+1}) if interleaved, turns
/// by the angle of positions[n]; dimensions from `dim` on stay. x [N, heads, head_dim] with strides (any, any, 1), compute dtype;
/// positions [N] int64 contiguous; cos, sin [positions, dim/2] float32. q and k heads that lie side
/// by side are one call. inverse: the backward. Workspace: none.
void rotary_(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
             const at::Tensor& sin, bool inverse = false, bool interleaved = false);

// --- Keys of latent attention (DeepSeek-V2, arXiv 2405.04434) ------------------------------------
// Compute dtype; any strides but a contiguous last dimension. Workspace: none.

/// k[n, h] = own[n, h] | shared[n]: every head's own part, then the part that all heads share.
/// own [N, heads, a], shared [N, 1, b], k [N, heads, a + b].
void join_shared_key(const at::Tensor& own, const at::Tensor& shared, at::Tensor& k);

/// d_own[n, h] = dk[n, h, :a]; d_shared[n] = sum over heads of dk[n, h, a:], in float32 and in their
/// order. Both overwritten.
void join_shared_key_backward(const at::Tensor& dk, at::Tensor& d_own, at::Tensor& d_shared);

// --- Embedding ----------------------------------------------------------------------------------

/// out[n] = weight[tokens[n]] (+ position_weight[positions[n]]). tokens, positions [N] int64;
/// weight [V, d]; position_weight [P, d] or undefined; out [N, d]; compute dtype. An id outside the
/// table is Error{kData}.
void embedding(const at::Tensor& tokens, const at::Tensor& weight, const at::Tensor& positions,
               const at::Tensor& position_weight, at::Tensor& out);

/// dweight[tokens[n]] += dy[n], in row order (the same bits each time). dy [N, d] compute dtype,
/// dweight [V, d] float32; accumulate false makes the other rows zero. Workspace: 8 (N + V) bytes.
void embedding_backward(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                        bool accumulate);

// --- Attention ----------------------------------------------------------------------------------

/// Document segments of a batch: per row the start offsets, ascending, first 0
/// (nn::BatchTensors::segments).
using Segments = std::vector<std::vector<int32_t>>;

struct AttentionOptions {
  double scale = 0.0;                  ///< of the scores; > 0
  const Segments* segments = nullptr;  ///< a query sees only keys of its own segment; needs Tq = Tk
  int64_t window = 0;    ///< keys that a query sees, its own and those right before it; 0: all
  double softcap = 0.0;  ///< logits are softcap * tanh(scale q k^T / softcap); 0: no cap
  at::Tensor sinks;      ///< float32 [Hq], contiguous: a logit without a value, or undefined
  /// Keys before the place of the first query, at most as many as there are or more: keys of another stretch of the sequence. Not
  /// with segments; every query sees a key. -1: Tk - Tq, the queries are the last places.
  int64_t past = -1;
};

/// out = softmax(logits + causal mask) v, grouped-query: query head h uses kv head h / (Hq / Hkv).
/// q [B, Tq, Hq, D], k [B, Tk, Hkv, D], v [B, Tk, Hkv, Dv], Tq <= Tk (without `past`): query i sees keys
/// j <= i + Tk - Tq. out [B, Tq, Hq, Dv]. All may be strided views (slices of a fused qkv [B, T, (Hq + 2 Hkv)
/// D]) with a contiguous last dimension. logsumexp [B, Hq, Tq] float32 contiguous, the sink
/// included; undefined when no backward follows. Dao et al. 2022 (blocked softmax). Workspace:
/// attention_workspace_bytes.
void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const AttentionOptions& options, at::Tensor& out, at::Tensor logsumexp);

/// Gradients into dq, dk, dv: strided views of one fused gradient buffer; overwritten, with zeros where no query sees a key.
/// d_sinks float32 [Hq], overwritten; undefined without sinks.
void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv, at::Tensor d_sinks = {});

struct AttentionShape {
  int64_t batch;
  int64_t seq_len;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t value_dim;
};

/// Workspace of attention (backward false) and attention_backward (true) with `threads` threads.
int64_t attention_workspace_bytes(const AttentionShape& shape, at::ScalarType dtype, bool backward,
                                  int threads);

// --- Output head with loss ----------------------------------------------------------------------

inline constexpr int64_t kIgnoredTarget = -100;

/// What linear_cross_entropy computes beside the loss; undefined tensors are not computed.
struct CrossEntropyOutputs {
  at::Tensor d_hidden;      ///< [N, d] compute dtype: scale * dloss/dhidden
  at::Tensor d_weight;      ///< [V, d] float32: scale * dloss/dweight
  bool accumulate = false;  ///< of d_weight
  at::Tensor losses;        ///< [N] float32: the loss of each row, 0 where ignored
};

/// Sum over rows of -log softmax(hidden weight^T)[target], in `chunk_rows` rows at a time so that
/// the logits of the whole batch never exist at once. hidden [N, d], weight [V, d] compute dtype;
/// targets [N] int64, kIgnoredTarget where nothing counts. `scale` (1 / number of targets as a
/// rule) applies to the gradients, not to the result. Logits are float32 in both dtypes. Returns
/// the unscaled sum: double, rows in order, so it does not depend on chunk_rows or threads;
/// d_weight depends on chunk_rows in rounding alone. A target outside 0 .. V-1 is Error{kData}.
/// Workspace: cross_entropy_workspace_bytes.
/// softcap > 0: logits become softcap * tanh(logit / softcap) before the loss.
double linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, int64_t chunk_rows,
                            CrossEntropyOutputs outputs, double softcap = 0.0);

int64_t cross_entropy_workspace_bytes(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                                      at::ScalarType dtype, bool with_gradients);

// --- Optimizer passes over flat buffers ---------------------------------------------------------

struct AdamWParams {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  int64_t step = 1;             ///< 1 for the first step
  double gradient_scale = 1.0;  ///< multiplies the gradient first (clipping)
};

/// One AdamW step (Loshchilov & Hutter 2019; torch.optim.AdamW's order of operations). weights,
/// gradients, exp_avg, exp_avg_sq: float32 [n] contiguous; weights and states are updated in place.
/// compute: undefined, or bfloat16 [n], receives the rounded new weights in the same pass.
/// Workspace: none.
void adamw_(at::Tensor& weights, const at::Tensor& gradients, at::Tensor& exp_avg,
            at::Tensor& exp_avg_sq, at::Tensor compute, const AdamWParams& params);

/// Sum of squares of a float32 contiguous tensor: double, fixed blocks, independent of threads.
double sum_of_squares(const at::Tensor& x);

/// Elements of a block of squares_by_block().
inline constexpr int64_t kSquaresBlock = 1024;
/// out[b] = sum of squares of block b of x, the last of which may be shorter: what ranks that hold different blocks of one
/// gradient exchange, so that its norm does not depend on who holds what. x float32 contiguous, out float64
/// [ceil(n / kSquaresBlock)]. A block's bits depend on its elements alone. Does not wait for the device.
void squares_by_block(const at::Tensor& x, at::Tensor& out);

/// a += b, float32 contiguous, same number of elements (the combination of two lanes).
void add_(at::Tensor& a, const at::Tensor& b);

/// out = a x + b y, one float32 multiply-add on a x, rounded to out. x float32, y bfloat16, out float32 (x itself, too) or
/// bfloat16 (y itself, too); contiguous, same number of elements. Coefficients are rounded to float32.
void scaled_sum(const at::Tensor& x, double a, const at::Tensor& y, double b, at::Tensor& out);

/// Rounds src (float32) to dst (bfloat16 or float32), contiguous, same number of elements.
void convert(const at::Tensor& src, at::Tensor& dst);

}  // namespace trireme::kernels
