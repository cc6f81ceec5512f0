// Bytes of what execution holds: per buffer of the program, and the workspace of every instruction.
//
// Mirrors what the parts in nn/ keep and what the kernels allocate; a test beside the executor
// holds the two together (predicted against allocated bytes, instruction by instruction). Notation:
// N tokens of a micro-batch, d hidden, q = heads * head_dim, kv = kv_heads * head_dim, F width of
// the MLP, e bytes of a compute element.
#pragma once

#include <cstdint>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Bytes of one compute element.
int64_t element_bytes(Precision precision);

/// One part and one micro-batch.
struct PartBytes {
  int64_t saved_input = 0;   ///< kSaved that backward-input frees
  int64_t saved_weight = 0;  ///< kSaved that backward-weight frees
  int64_t delayed = 0;       ///< kDelayed
  // Held only while the instruction runs, beyond the buffers alive before and those it makes. Never
  // negative, although an instruction may free some buffers before it makes others.
  int64_t forward_workspace = 0;
  int64_t recompute_workspace = 0;
  int64_t backward_input_workspace = 0;
  int64_t backward_weight_workspace = 0;
};

/// Of a part under `mode`; saved and delayed bytes of kFull are those after kRecompute. The embedding keeps none; a head has
/// what its norm keeps where multi-token prediction goes on from it, the rest is loss_workspace_bytes().
PartBytes part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                     Recompute mode);

/// Tokens, targets and positions as int64; tokens and targets once more for every module of multi-token prediction.
int64_t batch_bytes(const model::ModelSpec& spec, const Strategy& strategy);
/// Output of a part: [N, d], of a spec that is cut over tensor parallel ranks the rank's rows of it; or [M, d] between dispatch and
/// combine.
int64_t hidden_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part);
/// A float32 for every choice of the router of a MoE part's layer; 0 of other parts.
int64_t routed_choices_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part);
/// A float32 for every row of the experts of a MoE part's layer.
int64_t row_weights_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part);
int64_t parameter_gradient_bytes(const model::ModelSpec& spec, int part);
/// Of all of a part's elements; what a rank holds of it under ZeRO is in resident_bytes().
int64_t optimizer_state_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part);
/// Workspace of kLoss with the strategy's (chosen) loss_chunk_rows; `with_norm`: the norm's forward is part of it.
int64_t loss_workspace_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                             bool with_norm = true);

/// What is held between steps, by kind.
struct ResidentBytes {
  int64_t master_weights = 0;  ///< float32
  int64_t compute_weights =
      0;  ///< bfloat16 copies; 0 in fp32, and of what is gathered for every use
  int64_t optimizer_states = 0;
  int64_t tables = 0;     ///< rotary cosines and sines
  int64_t libraries = 0;  ///< of the device's vendor: KernelWorkspace::library_bytes
  int64_t host_optimizer_states =
      0;  ///< in place of `optimizer_states`, on the host: not in total()
  int64_t total() const {
    return master_weights + compute_weights + optimizer_states + tables + libraries;
  }
};
/// On the rank that the program is of, whose spec this is (local_spec()); of a program without slices, of a rank that shares nothing.
ResidentBytes resident_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                             const Program& program = {});

}  // namespace trireme::plan
