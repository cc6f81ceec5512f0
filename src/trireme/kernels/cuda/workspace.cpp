// What the ops of this folder hold while they run, by their sizes.
#include <algorithm>

#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

namespace {

constexpr int64_t kFlashWidest = 256;
constexpr int64_t kFlashMultiple = 8;
constexpr int64_t kFlashRows = 128;  ///< of a block: its statistics are of whole blocks

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The device's allocator hands out multiples of 512 bytes.
int64_t tensor(int64_t bytes) {
  return round_up(bytes, 512);
}
int64_t floats(int64_t count) {
  return tensor(4 * count);
}
int64_t compute(const CallSizes& c, int64_t count) {
  return tensor((c.dtype == at::kFloat ? 4 : 2) * count);
}

int64_t none(const CallSizes& /*c*/) {
  return 0;
}

/// Ids and their order, sorted, and a copy of the ids while they are.
int64_t embedding_backward(const CallSizes& c) {
  return 3 * tensor(8 * c.rows);
}

int64_t linear(const CallSizes& c) {
  return c.bias_and_residual ? floats(c.rows * c.out) : 0;
}

int64_t bias_gradient(const CallSizes& c) {
  return floats(column_partial_floats(c.rows, c.in));
}

int64_t norm_backward(const CallSizes& c, bool centred) {
  NormBackward norm{};
  norm.centred = centred;
  norm.rows = c.rows;
  norm.width = c.in;
  float any = 0.0F;
  norm.dweight = &any;
  return floats(norm_partial_floats(norm));
}

int64_t cross_entropy(const CallSizes& c) {
  const int64_t rows = std::min(c.chunk_rows, c.rows);
  const int64_t low = c.dtype == at::kFloat ? 0 : compute(c, rows * c.out);
  return floats(c.rows) + floats(rows * c.out) + low;
}

bool takes_flash(const CallSizes& c) {
  return c.dtype == at::kBFloat16 && !c.softcap && c.head_dim <= kFlashWidest &&
         c.head_dim % kFlashMultiple == 0 && c.value_dim <= c.head_dim;
}

/// As for_slices() cuts them.
CallSizes slice_of(const CallSizes& c) {
  CallSizes slice = c;
  const int64_t of_head = 4 * (c.heads / c.kv_heads) * c.places * c.places;
  if (of_head * c.kv_heads * c.batch > attention_score_bytes()) slice.batch = 1;
  if (of_head * c.kv_heads > attention_score_bytes()) {
    slice.heads = c.heads / c.kv_heads;
    slice.kv_heads = 1;
  }
  return slice;
}

int64_t widened(const CallSizes& c, int64_t heads) {
  return c.value_dim == c.head_dim ? 0 : compute(c, c.batch * c.places * heads * c.head_dim);
}

int64_t attention(const CallSizes& c) {
  if (!takes_flash(c)) return aten::attention_workspace(slice_of(c), false);
  const int64_t out = compute(c, c.batch * c.places * c.heads * c.head_dim);
  const int64_t sums = floats(c.batch * c.heads * c.places);
  int64_t bytes = out + sums + widened(c, c.kv_heads);
  if (c.sinks) bytes += 3 * sums;  // with the sink, the difference and the factor
  return bytes;
}

int64_t attention_backward(const CallSizes& c) {
  if (!takes_flash(c)) return aten::attention_workspace(slice_of(c), true);
  const int64_t queries = c.batch * c.places * c.heads;
  const int64_t keys = c.batch * c.places * c.kv_heads;
  const int64_t of_queries = compute(c, queries * c.head_dim);
  const int64_t results = of_queries + 2 * compute(c, keys * c.head_dim);
  // While it runs: gradients by the keys, one for each query head first,
  int64_t meanwhile = c.kv_heads != c.heads ? 2 * of_queries : 0;
  // statistics of whole blocks, and sums in a fixed order, for which every share of the blocks adds for itself.
  const int64_t places = round_up(c.places, kFlashRows);
  const int64_t width = c.head_dim <= 192 ? round_up(c.head_dim, 32) : 256;
  const int64_t shares = (multiprocessors() + c.batch * c.heads - 1) / (c.batch * c.heads);
  meanwhile +=
      floats(c.batch * c.heads * places) + floats(shares * c.batch * places * c.heads * width);
  if (c.value_dim != c.head_dim) meanwhile += 2 * of_queries + widened(c, c.kv_heads);
  // After it: both factors of the sinks' gradient and their product, in float32.
  const int64_t after = c.sinks ? 3 * floats(queries * c.value_dim) : 0;
  return results + std::max(meanwhile, after);
}

int64_t grouped_linear(const CallSizes& c) {
  // The wheel's product of groups makes its result, which is copied to its place; a product of each group does not.
  return grouped_products() && c.dtype == at::kBFloat16 ? compute(c, c.rows * c.out / c.parts) : 0;
}

int64_t grouped_input(const CallSizes& c) {
  if (c.parts == 1 || c.dtype == at::kFloat) return 0;
  return floats(std::min(c.rows, kRowsOfSum) * c.in);
}

}  // namespace

WorkspaceBytes workspace_of(std::string_view op) {
  if (op == "linear") return &linear;
  if (op == "bias_gradient") return &bias_gradient;
  if (op == "rms_norm_backward") return [](const CallSizes& c) { return norm_backward(c, false); };
  if (op == "layer_norm_backward") return [](const CallSizes& c) { return norm_backward(c, true); };
  if (op == "attention") return &attention;
  if (op == "attention_backward") return &attention_backward;
  if (op == "linear_cross_entropy") return &cross_entropy;
  if (op == "grouped_linear") return &grouped_linear;
  if (op == "grouped_linear_backward_input") return &grouped_input;
  if (op == "embedding_backward") return &embedding_backward;
  return &none;
}

}  // namespace trireme::kernels::gpu
