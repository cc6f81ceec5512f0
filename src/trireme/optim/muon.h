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

/// Matrices in a parameter: the experts of a stack [experts, rows, cols], else 1.
int64_t num_matrices(const model::ParameterSpec& parameter);

/// How many of them are updated at once, each on one thread: all threads where experts are small and many. Else one after
/// the other, with all threads inside the products. The bits are the same.
int64_t matrices_at_once(const model::ParameterSpec& parameter);

/// Memory of the device that one step of a parameter holds at most.
int64_t muon_workspace_bytes(const model::ParameterSpec& parameter, at::Device device = at::kCPU);

}  // namespace trireme::optim
