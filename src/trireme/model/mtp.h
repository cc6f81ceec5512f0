// Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): D modules, one after the other, that predict
// further tokens than the next.
//
// Module k (k = 1 .. D) computes at position i
//   h_k = block_k(W_k [enorm_k(embedding(t_{i+k})) | hnorm_k(h_{k-1})])        parts kMtpInput, attention, MLP or experts
//   logits_k = head(norm_k(h_k)), which predict t_{i+k+1}                       part kMtpHead
// with the model's own embedding and head. The report leaves open what exactly a module hands on. Here it is what the head
// multiplies with: h_0 is the model's hidden state after its final norm, and h_k the block's after the module's own norm
// (shared_head.norm). So do the modelling code that comes with DeepSeek's published checkpoints (as quoted in ROCm/ATOM
// pull request 1764), Megatron-LM (multi_token_prediction.py), vLLM (pull requests 45895 and 47448) and SGLang.
//
// A target counts where the model's own target at position i + k counts and i + k lies in the document of i: documents
// do not look into one another, and the last k positions of a row have no target. The loss of a module is the mean over
// its own counted targets of the global batch; the step's is
//   loss + mtp_loss_weight / D * (loss_1 + ... + loss_D).
#pragma once

#include "trireme/model/model_spec.h"

namespace trireme::model {

/// The model without its multi-token-prediction layers, which lie after the head and take no part in the logits: what
/// evaluation and generation work on, and training with a loss weight of 0. The config says so. Parameters keep their
/// indices.
ModelSpec without_mtp(const ModelSpec& spec);

}  // namespace trireme::model
