// Writes an attention whose sequences ranks share: what lies before the exchange of keys and values, and what behind it. In a ring
// keys and values go round, and while those of one rank are worked on the next ones come. Internal to this room.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "trireme/plan/context_memory.h"
#include "trireme/plan/gradient_sums.h"
#include "trireme/plan/program_writer.h"

namespace trireme::plan {

struct MicroBatch;

/// Buffers of such an attention, as ContextBytes has them.
struct ContextBuffers {
  int between = ProgramWriter::kNone;
  int scored = ProgramWriter::kNone;
  int projected = ProgramWriter::kNone;
  int normed = ProgramWriter::kNone;
  int softmax = ProgramWriter::kNone;
  int attended = ProgramWriter::kNone;
  int keys = ProgramWriter::kNone;  ///< of the forward, then of the backward
  int sent = ProgramWriter::kNone;
  int received = ProgramWriter::kNone;
  int delayed_1 = ProgramWriter::kNone;
  int delayed_2 = ProgramWriter::kNone;
  // Of a ring.
  std::vector<int> ring_keys;  ///< by round: the own ones, then those that have come
  int ring_sums = ProgramWriter::kNone;
  int ring_gradients = ProgramWriter::kNone;
};

/// What the current instruction reads and makes for the rest of the part, where its work on keys begins and ends. The executor finds
/// the first of them before what is read of the attention itself.
struct ContextEdges {
  int phases_before = 0;  ///< phases of the part before its projection, each way
  std::function<void()> begin_forward;
  std::function<void()> end_forward;
  std::function<void()> begin_recompute;
  std::function<void()> begin_backward;
  std::function<void()> end_backward;
};

/// Ownership: borrows the writer, whose program has its strategy with its recompute, and the sums.
class ContextWriter {
 public:
  /// `spec`: of what is computed of an attention between its edges.
  ContextWriter(const model::ModelSpec& spec, ProgramWriter& writer, GradientSums& sums);

  /// Whether ranks exchange keys of the part; of one that the rank has.
  bool shares_sequences(int part) const { return bytes_.contains(part); }
  void forward(MicroBatch& micro, int part, const ContextEdges& edges);
  /// Keys and values that the backward of a part will want, while what lies behind it is computed; nothing of a part that has none.
  void bring_keys_ahead(MicroBatch& micro, int part);
  /// With what full recomputation makes again.
  void backward_input(MicroBatch& micro, int part, const ContextEdges& edges);
  /// What the current instruction reads for the gradients of the weights.
  void read_for_weights(const MicroBatch& micro, int part);

 private:
  static constexpr int kNone = ProgramWriter::kNone;

  void make(const MicroBatch& micro, int part, int& buffer, BufferKind kind, int64_t bytes);
  /// `phase`: 1 and up, among those between the edges.
  Instruction& begin_phase(OpKind kind, const MicroBatch& micro, int part, int64_t phase);
  Instruction& begin_exchange(const MicroBatch& micro, int part, int64_t phase);
  void make_projection(MicroBatch& micro, int part);
  void make_attention(MicroBatch& micro, int part);
  void exchange_keys(MicroBatch& micro, int part);
  Recompute recompute(int part) const { return strategy_.recompute[static_cast<size_t>(part)]; }

  // Of a ring (ring_writer.cpp).
  bool is_ring() const { return strategy_.parallel.cp_kind == ContextKind::kRing; }
  void ring_exchange(MicroBatch& micro, int part, int64_t round);
  void read_ring_keys(const MicroBatch& micro, int part, int64_t round);
  void ring_attention(MicroBatch& micro, int part, OpKind kind, const ContextEdges& edges);
  void ring_backward_input(MicroBatch& micro, int part, const ContextEdges& edges);

  ProgramWriter& writer_;
  GradientSums& sums_;
  const Strategy& strategy_;
  const double tokens_;
  std::map<int, ContextBytes> bytes_;
  std::map<int, model::TokenFlops> flops_;
};

}  // namespace trireme::plan
