#include "trireme/plan/kernel_workspace.h"

#include <algorithm>

namespace trireme::plan {

namespace {

// Constants of kernels/cpu: rows of a widened panel, fewest rows of a product, rows of the head's
// widened panel, stride of attention's scores, rows and number of reduction blocks.
constexpr int64_t kPanelRows = 512;
constexpr int64_t kMinRows = 16;
constexpr int64_t kVocabPanel = 2048;
constexpr int64_t kScoreStride = 1040;
constexpr int64_t kRowsPerBlock = 64;
constexpr int64_t kMaxBlocks = 64;
// Of packed panels: tokens of a block, their multiple, columns of a panel.
constexpr int64_t kWeightBlock = 512;
constexpr int64_t kInnerMultiple = 32;
constexpr int64_t kTile = 64;

int64_t floats(int64_t count) {
  return tensor_bytes(4 * count);
}

int64_t reduction_blocks(int64_t rows) {
  return std::clamp<int64_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock, 1, kMaxBlocks);
}

int64_t float_product(FloatProduct way, int64_t rows, int64_t cols, int64_t inner) {
  if (way == FloatProduct::kPanels || rows >= kMinRows) return 0;
  return floats(kMinRows * inner) + floats(kMinRows * cols);
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The block of x that a weight's gradient packs.
int64_t packed_block(int64_t rows, int64_t in) {
  return round_up(std::min(rows, kWeightBlock), kInnerMultiple) * round_up(in, kTile);
}

}  // namespace

int64_t tensor_bytes(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

int64_t KernelWorkspace::ask(WorkspaceOp op, const KernelCall& call,
                             const std::function<int64_t()>& of_cpu) const {
  if (stated != nullptr) {
    const auto found = stated->find(op);
    if (found != stated->end()) return found->second(call);
  }
  return in_device_memory ? of_cpu() : 0;
}

int64_t KernelWorkspace::product(int64_t rows, int64_t cols, int64_t inner, Precision precision,
                                 bool bias_and_residual) const {
  const KernelCall call{.precision = precision,
                        .rows = rows,
                        .in = inner,
                        .out = cols,
                        .bias_and_residual = bias_and_residual};
  return ask(WorkspaceOp::kLinear, call, [&]() -> int64_t {
    if (precision == Precision::kFp32) return float_product(float32, rows, cols, inner);
    if (bfloat16 == Bf16Product::kPanels) return 0;
    const int64_t panel = std::min(rows, kPanelRows + kMinRows);
    if (bfloat16 == Bf16Product::kMkl) {
      if (rows >= kMinRows) return floats(panel * cols);
      return tensor_bytes(2 * kMinRows * inner) + floats(kMinRows * cols);
    }
    return floats(panel * cols) + floats(cols * inner) + floats(panel * inner) +
           float_product(float32, panel, cols, inner);
  });
}

int64_t KernelWorkspace::weight_product(int64_t rows, int64_t out, int64_t in,
                                        Precision precision) const {
  const KernelCall call{.precision = precision, .rows = rows, .in = in, .out = out};
  return ask(WorkspaceOp::kLinearWeight, call, [&]() -> int64_t {
    if (precision == Precision::kFp32)
      return float32 == FloatProduct::kPanels ? floats(packed_block(rows, in)) : 0;
    if (bfloat16 == Bf16Product::kMkl) return 0;
    if (bfloat16 == Bf16Product::kPanels) return tensor_bytes(2 * packed_block(rows, in));
    const int64_t panel = std::min(rows, kPanelRows + kMinRows);
    return floats(panel * out) + floats(panel * in) +
           (float32 == FloatProduct::kPanels ? floats(packed_block(panel, in)) : 0);
  });
}

int64_t KernelWorkspace::attention_of_cpu(int64_t batch, int64_t seq_len,
                                          const model::AttentionSpec& spec, Precision precision,
                                          bool backward) const {
  const int64_t d = spec.head_dim;
  const int64_t value_d = spec.value_dim;
  const bool low = precision == Precision::kBf16;
  // What the products multiply: bfloat16 as it is, or float32.
  const bool native = low && bfloat16 == Bf16Product::kPanels && d % 2 == 0 && value_d % 2 == 0;
  const auto elements = [&](int64_t count) { return tensor_bytes((native ? 2 : 4) * count); };
  const int64_t columns = round_up(d, kTile);
  const int64_t value_columns = round_up(value_d, kTile);
  const int64_t inner = round_up(d, 2);
  const int64_t padded = round_up(seq_len, kTile);
  const int64_t rows = floats(seq_len * d) + floats(seq_len * value_d);
  int64_t scratch = 0;
  if (backward) {
    scratch = elements(padded * columns) + elements(kTile * inner) +
              elements(kTile * round_up(value_d, 2)) + elements(kTile * columns) +
              elements(kTile * value_columns) + 2 * floats(kTile * kTile) +
              elements(kTile * kTile) + floats(kTile);
    if (native) scratch += 2 * elements(kTile * kTile);
    if (low) scratch += floats(kTile * d) + rows;
    if (low && !native) scratch += 2 * rows;
  } else {
    scratch = elements(padded * inner) + elements(padded * value_columns) +
              floats(kTile * kScoreStride) + floats(kTile * value_columns) + 2 * floats(kTile);
    if (native) scratch += elements(kTile * kScoreStride);
    if (low && !native) scratch += floats(seq_len * d) + rows;
  }
  return std::min<int64_t>(threads, batch * (backward ? spec.num_kv_heads : spec.num_heads)) *
         scratch;
}

int64_t KernelWorkspace::attention(int64_t batch, int64_t seq_len, const model::AttentionSpec& spec,
                                   Precision precision, bool backward) const {
  const KernelCall call{.precision = precision,
                        .batch = batch,
                        .places = seq_len,
                        .heads = spec.num_heads,
                        .kv_heads = spec.num_kv_heads,
                        .head_dim = spec.head_dim,
                        .value_dim = spec.value_dim,
                        .softcap = spec.softcap > 0.0,
                        .sinks = spec.sinks};
  return ask(backward ? WorkspaceOp::kAttentionBackward : WorkspaceOp::kAttention, call,
             [&] { return attention_of_cpu(batch, seq_len, spec, precision, backward); });
}

int64_t KernelWorkspace::cross_entropy(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                                       Precision precision) const {
  const KernelCall call{.precision = precision,
                        .rows = chunk_rows,
                        .in = hidden,
                        .out = vocab_size,
                        .chunk_rows = chunk_rows};
  return ask(WorkspaceOp::kCrossEntropy, call,
             [&] { return cross_entropy_of_cpu(chunk_rows, vocab_size, hidden, precision); });
}

int64_t KernelWorkspace::cross_entropy_of_cpu(int64_t chunk_rows, int64_t vocab_size,
                                              int64_t hidden, Precision precision) const {
  const int64_t chunk = std::max(chunk_rows, kMinRows);
  const int64_t logits = floats(chunk * vocab_size);
  const int64_t packed = packed_block(chunk_rows, hidden);
  const bool panels = float32 == FloatProduct::kPanels;
  if (precision == Precision::kFp32) return logits + (panels ? floats(packed) : 0);
  const int64_t low_logits = tensor_bytes(2 * chunk * vocab_size);
  if (bfloat16 == Bf16Product::kPanels) return logits + low_logits + tensor_bytes(2 * packed);
  if (bfloat16 == Bf16Product::kMkl) return logits + low_logits + floats(chunk * hidden);
  return logits + 2 * floats(chunk * hidden) + floats(std::min(vocab_size, kVocabPanel) * hidden) +
         (panels ? floats(packed) : 0);
}

int64_t KernelWorkspace::norm_backward(int64_t rows, int64_t width,
                                       const model::NormSpec& norm) const {
  const bool rms = norm.kind == model::NormKind::kRmsNorm;
  const KernelCall call{.precision = precision, .rows = rows, .in = width};
  return ask(rms ? WorkspaceOp::kRmsNormBackward : WorkspaceOp::kLayerNormBackward, call, [&] {
    const int64_t blocks = reduction_blocks(rows);
    if (rms) return floats(blocks * width);
    return floats((blocks + 1) * width * (norm.bias ? 2 : 1));
  });
}

int64_t KernelWorkspace::grouped_product(int64_t rows, int64_t groups, int64_t in, int64_t out,
                                         int64_t parts, Precision precision) const {
  const KernelCall call{
      .precision = precision, .rows = rows, .in = in, .out = out, .groups = groups, .parts = parts};
  return ask(WorkspaceOp::kGroupedLinear, call, [] { return int64_t{0}; });
}

int64_t KernelWorkspace::grouped_input(int64_t rows, int64_t groups, int64_t in, int64_t out,
                                       int64_t parts, Precision precision) const {
  const KernelCall call{
      .precision = precision, .rows = rows, .in = in, .out = out, .groups = groups, .parts = parts};
  return ask(WorkspaceOp::kGroupedInput, call, [] { return int64_t{0}; });
}

int64_t KernelWorkspace::grouped_weight(int64_t rows, int64_t groups, int64_t in, int64_t out,
                                        int64_t parts, Precision precision) const {
  const KernelCall call{
      .precision = precision, .rows = rows, .in = in, .out = out, .groups = groups, .parts = parts};
  return ask(WorkspaceOp::kGroupedWeight, call, [&] {
    // Rows of all groups, each group's last block padded by half of the most on average.
    const int64_t padded = rows + std::min(groups, rows) * kInnerMultiple / 2;
    const bool native = precision == Precision::kBf16 && bfloat16 == Bf16Product::kPanels;
    return tensor_bytes((native ? 2 : 4) * padded * round_up(in, kTile));
  });
}

int64_t KernelWorkspace::bias_gradient(int64_t rows, int64_t width) const {
  return ask(WorkspaceOp::kBiasGradient, {.precision = precision, .rows = rows, .in = width},
             [&] { return floats(reduction_blocks(rows) * width); });
}

int64_t KernelWorkspace::embedding_gradient(int64_t rows, int64_t vocab) const {
  return ask(WorkspaceOp::kEmbeddingBackward, {.precision = precision, .rows = rows, .out = vocab},
             [] { return int64_t{0}; });
}

}  // namespace trireme::plan
