// Muon: momentum, then the nearest orthogonal matrix by Newton-Schulz (Jordan 2024; torch.optim.Muon of 2.11).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trireme/optim/optimizer.h"

namespace trireme::optim {

/// One step of one matrix. gradients, weights, momentum: float32 [rows, cols] contiguous; the last two are updated in place.
/// Blocking; deterministic for any number of threads.
void muon_step(const OptimizerConfig& config, const StepParams& params, bool decays,
               const at::Tensor& gradients, at::Tensor& weights, at::Tensor& momentum);

/// The quintic iteration on a float32 matrix, rounded to bfloat16 between products as in torch.optim.Muon.
/// Returns bfloat16 of the same shape.
at::Tensor orthogonalize(const at::Tensor& matrix, int steps, double eps);

/// The learning rate of a [rows, cols] matrix.
double adjusted_lr(double lr, MuonLrAdjust adjust, int64_t rows, int64_t cols);

/// Memory that one step of a [rows, cols] matrix holds at most.
int64_t muon_workspace_bytes(int64_t rows, int64_t cols);

}  // namespace trireme::optim
