// Optimizers over flat per-part buffers.
//
// A part's parameters lie in one flat buffer, in the order of ModelSpec::parameters, without gaps;
// the gradients and the optimizer's states have the same layout. One step of a part is one pass
// over its buffers, so the executor can run it as soon as that part's gradients and the global norm
// are known.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/model/element_range.h"
#include "trireme/model/model_spec.h"

namespace trireme::optim {

enum class OptimizerKind { kAdamW, kMuon };
enum class MuonLrAdjust { kOriginal, kMatchRmsAdamW };  ///< torch.optim.Muon's adjust_lr_fn

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double weight_decay = 0.1;
  // AdamW; with Muon: of the parameters that are not hidden matrices
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  // Muon (Jordan 2024; torch.optim.Muon)
  double momentum = 0.95;
  bool nesterov = true;
  int ns_steps = 5;
  double ns_eps = 1e-7;
  MuonLrAdjust adjust = MuonLrAdjust::kMatchRmsAdamW;
};

/// Reasons why the configuration cannot be used; empty if it can.
std::vector<std::string> validate(const OptimizerConfig& config);
/// Error{kConfig} naming the nearest known name otherwise. Names: adamw muon.
OptimizerKind optimizer_from_name(const std::string& name);
const char* to_string(OptimizerKind kind);

/// The flat buffers of one part, or of the slice of it that the optimizer is for. Borrowed; float32 [n] contiguous but
/// `compute`.
struct PartBuffers {
  at::Tensor weights;    ///< master weights, updated in place
  at::Tensor compute;    ///< bfloat16 [n], receives the rounded new weights; undefined when weights
                         ///< are used as they are
  at::Tensor gradients;  ///< of the whole global batch
  /// The part's states where the buffers are, as part_states() lists them: read and updated in place of the optimizer's
  /// own, which are elsewhere. Empty: its own are used.
  std::vector<at::Tensor> states = {};
};

struct StepParams {
  double lr = 0.0;
  double gradient_scale = 1.0;  ///< clip_scale() of the global norm
  int64_t step = 1;             ///< 1 for the run's first optimizer step
};

/// One state tensor of one parameter: a float32 view.
struct StateTensor {
  std::string parameter;  ///< ParameterSpec::name
  std::string key;        ///< "exp_avg", "exp_avg_sq" (AdamW); "momentum_buffer" (Muon)
  at::Tensor
      tensor;  ///< writing to it sets the state; of the parameter's shape, or flat if it is a piece of it
  int64_t first = 0;  ///< the parameter's element that the piece begins with
};

/// Updates parameters. Thread-safety: one call at a time. Ownership: owns its states, borrows the
/// buffers of a call. Blocking: step() returns when the update is done.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void step(int part, const PartBuffers& buffers, const StepParams& params) = 0;
  /// Every state tensor that this optimizer has any of, in the order of ModelSpec::parameters. Views stay valid as long as
  /// the optimizer.
  virtual std::vector<StateTensor> state() const = 0;
  /// The flat float32 tensors that a part's states lie in, where they are kept.
  virtual std::vector<at::Tensor> part_states(int part) const = 0;
  virtual int64_t state_bytes() const = 0;
  /// The largest memory that a step of one part holds beside states and buffers.
  virtual int64_t workspace_bytes() const = 0;
};

enum class StatePlace {
  kDevice,  ///< where the buffers are
  kHost     ///< in pinned host memory: every step() is given the part's states in PartBuffers
};

/// By part: the slice that an optimizer has states for and updates. Empty: all of every part. Muon's matrices are inside or
/// outside as a whole.
using Slices = std::vector<model::ElementRange>;

/// Makes an optimizer with zero states for buffers on `device`. Error{kConfig} with validate()'s first reason.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const model::ModelSpec& spec,
                                          at::Device device = at::kCPU,
                                          StatePlace place = StatePlace::kDevice,
                                          const Slices& slices = {});

/// What state() of an optimizer of whole parts lists, as views of given tensors: `part_states` by part as part_states() has
/// them, those of slices one after the other; nothing of parts whose tensors are undefined.
std::vector<StateTensor> state_views(const OptimizerConfig& config, const model::ModelSpec& spec,
                                     const std::vector<std::vector<at::Tensor>>& part_states);

/// The same of one part.
std::vector<StateTensor> part_state_views(const OptimizerConfig& config,
                                          const model::ModelSpec& spec, int part,
                                          const std::vector<at::Tensor>& states);
/// Elements of a whole part's first and second states.
std::array<int64_t, 2> part_state_sizes(const OptimizerConfig& config, const model::ModelSpec& spec,
                                        int part);

/// Whether Muon updates this parameter: matrices inside the blocks, of a stack of experts each one on its own; embeddings,
/// head, router and vectors get AdamW.
bool uses_muon(const model::ParameterSpec& parameter);

/// Bytes of the states of elements [first, last) of a part. For memory estimates.
int64_t state_bytes(const OptimizerConfig& config, const model::ModelSpec& spec, int part,
                    model::ElementRange elements);

/// State floats per element of the parameter: 2 for AdamW, 1 for Muon's matrices. For memory
/// estimates.
int64_t state_floats(const OptimizerConfig& config, const model::ParameterSpec& parameter);

/// The factor of torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)); 1 where max_norm
/// is 0.
double clip_scale(double norm, double max_norm);

}  // namespace trireme::optim
