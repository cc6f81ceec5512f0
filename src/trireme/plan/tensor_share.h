// What one of several tensor parallel ranks holds of a model, and what it holds alike with others. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::plan {

/// Makes `spec`, of a whole model, the share of the rank at `place` of `ranks`: attention heads, columns of MLPs, rows of the
/// vocabulary. Key and value heads that are fewer than ranks are on several neighbouring ones. The sizes divide as
/// validate_parallel() says.
void cut_tensor(model::ModelSpec& spec, int64_t ranks, int64_t place);

/// The layers of a spec that is cut become the whole model's again; its parameters stay the share's.
void join_tensor(model::ModelSpec& spec);

/// How many tensor parallel ranks, next to one another, hold the same stretch of a parameter; 1: each rank has its own. Of a spec
/// that is cut.
int64_t tensor_holders(const model::ModelSpec& spec, int parameter);

/// Whether the ranks that hold the same of a parameter have each a part of its gradient: of their own tokens, or heads. Else they
/// all compute the whole one, with the same bits. False where a rank has a stretch of its own.
bool has_shared_gradient(const model::ModelSpec& spec, int parameter);

/// Parameters of a part with has_shared_gradient() that so many ranks hold, in order.
std::vector<int> shared_gradients(const model::ModelSpec& spec, int part, int64_t holders);
/// Their elements together.
int64_t num_shared_gradients(const model::ModelSpec& spec, int part, int64_t holders);

}  // namespace trireme::plan
