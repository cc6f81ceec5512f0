// How a Hugging Face directory stores a model, beyond its config.json: what import keeps so that export gives the same
// tensors back, and the way between stored tensors and ours.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/checkpoint/safetensors.h"
#include "trireme/model/disk_layout.h"

namespace trireme::checkpoint {

struct StoredForm {
  model::DiskLayout layout = model::DiskLayout::kFiles;
  bool mtp = true;  ///< tensors of multi-token-prediction layers; transformers itself writes none
  bool mtp_copies =
      true;  ///< those layers' copies of embedding and head, as DeepSeek publishes them
  bool power_of_two_scales = false;  ///< of fp8: config.json's scale_fmt is "ue8m0"
  std::map<std::string, Dtype> other_dtypes =
      {};  ///< tensors of another type than the rest, and not as DiskTensor::fp32 says
  bool operator==(const StoredForm&) const = default;
};

/// As a checkpoint's state keeps it; of anything else than form_to_json's result the default.
Json form_to_json(const StoredForm& form);
StoredForm form_from_json(const Json& json);

/// Tensors of `spec` that a directory of this form holds.
std::vector<model::DiskTensor> tensors_of(const model::ModelSpec& spec, const StoredForm& form);

/// A view of one piece of a stored tensor, in our layout: a parameter, or one expert's slice of it.
at::Tensor piece_of(const at::Tensor& stored, const model::DiskTensor& tensor,
                    const model::ModelSpec& spec, size_t piece);

/// The tensor to store, of its pieces in our layout; maybe not contiguous.
at::Tensor joined(const model::DiskTensor& tensor, const std::vector<at::Tensor>& pieces);

}  // namespace trireme::checkpoint
