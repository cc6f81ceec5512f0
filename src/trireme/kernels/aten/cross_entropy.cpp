// The output head with its loss, a chunk of rows at a time.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

double linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, int64_t chunk_rows,
                            CrossEntropyOutputs outputs, double softcap) {
  TRIREME_CHECK(chunk_rows > 0 && weight.size(0) > 0,
                "chunk_rows and the vocabulary must be positive");
  const at::Tensor ids = targets.view(-1);
  const int64_t vocab = weight.size(0);
  const at::Tensor ignored = ids.eq(kIgnoredTarget);
  const at::Tensor wrong =
      ids.masked_select(ids.lt(0).logical_or(ids.ge(vocab)).logical_and(ignored.logical_not()));
  TRIREME_USER_CHECK(wrong.numel() == 0, kData,
                     "use the tokenizer that belongs to the model, or a larger vocab_size",
                     "target id {} is outside the vocabulary of {}",
                     wrong.numel() == 0 ? 0 : wrong.select(0, 0).item<int64_t>(), vocab);
  if (outputs.d_weight.defined() && !outputs.accumulate) outputs.d_weight.zero_();
  const int64_t rows = hidden.size(0);
  const at::Tensor w = wide(weight);
  const at::Tensor losses = at::empty({rows}, w.options());
  for (int64_t first = 0; first < rows; first += chunk_rows) {
    const int64_t count = std::min(chunk_rows, rows - first);
    const at::Tensor h = wide(hidden.narrow(0, first, count));
    const at::Tensor skipped = ignored.narrow(0, first, count);
    const at::Tensor target = ids.narrow(0, first, count).masked_fill(skipped, 0).unsqueeze(1);
    at::Tensor logits = at::matmul(h, w.t());
    if (softcap > 0.0) logits = (logits / softcap).tanh() * softcap;
    const at::Tensor lse = logits.logsumexp(1, /*keepdim=*/true);
    losses.narrow(0, first, count)
        .copy_((lse - logits.gather(1, target)).squeeze(1).masked_fill(skipped, 0.0));
    if (!outputs.d_hidden.defined() && !outputs.d_weight.defined()) continue;
    at::Tensor d_logits = (logits - lse).exp();
    d_logits.scatter_add_(1, target, (d_logits.new_ones({count, 1})).neg());
    d_logits = d_logits * scale;
    if (softcap > 0.0) d_logits = d_logits * (1.0 - (logits / softcap).square());
    d_logits = d_logits.masked_fill(skipped.unsqueeze(1), 0.0);
    if (outputs.d_hidden.defined())
      put(outputs.d_hidden.narrow(0, first, count), at::matmul(d_logits, w));
    if (outputs.d_weight.defined()) outputs.d_weight.add_(at::matmul(d_logits.t(), h));
  }
  if (outputs.losses.defined()) put(outputs.losses, losses);
  if (rows == 0) return 0.0;
  // A running sum adds in the order of the rows, whatever the number of threads.
  return losses.to(at::kCPU).to(at::kDouble).cumsum(0).select(0, rows - 1).item<double>();
}

}  // namespace trireme::kernels::aten
