#include "trireme/checkpoint/stored_form.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::checkpoint {

using model::DiskTensor;

Json form_to_json(const StoredForm& form) {
  Json others = Json::object();
  for (const auto& [name, dtype] : form.other_dtypes) others[name] = dtype_name(dtype);
  return {{"stacked_experts", form.layout == model::DiskLayout::kModules},
          {"mtp", form.mtp},
          {"mtp_copies", form.mtp_copies},
          {"power_of_two_scales", form.power_of_two_scales},
          {"other_dtypes", others}};
}

StoredForm form_from_json(const Json& json) {
  StoredForm form;
  if (!json.is_object()) return form;
  if (json.value("stacked_experts", false)) form.layout = model::DiskLayout::kModules;
  form.mtp = json.value("mtp", true);
  form.mtp_copies = json.value("mtp_copies", true);
  form.power_of_two_scales = json.value("power_of_two_scales", false);
  const auto others = json.find("other_dtypes");
  if (others == json.end() || !others->is_object()) return form;
  for (const auto& [name, value] : others->items()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      if (value == dtype_name(dtype)) form.other_dtypes[name] = dtype;
    }
  }
  return form;
}

std::vector<DiskTensor> tensors_of(const model::ModelSpec& spec, const StoredForm& form) {
  std::vector<DiskTensor> tensors = model::disk_tensors(spec, form.layout);
  std::erase_if(tensors, [&](const DiskTensor& tensor) {
    return (tensor.mtp && !form.mtp) || (tensor.copy && !form.mtp_copies);
  });
  return tensors;
}

at::Tensor piece_of(const at::Tensor& stored, const DiskTensor& tensor,
                    const model::ModelSpec& spec, size_t piece) {
  const at::Tensor whole = tensor.transposed ? stored.transpose(-1, -2) : stored;
  const auto count = static_cast<int64_t>(tensor.pieces.size());
  if (count == 1) return whole;
  const auto at = static_cast<int64_t>(piece);
  if (tensor.interleaved) return whole.slice(tensor.dim, at, whole.size(tensor.dim), count);
  const auto size_of = [&](size_t i) {
    const auto& shape = spec.parameters[static_cast<size_t>(tensor.pieces[i].parameter)].shape;
    return shape[static_cast<size_t>(tensor.dim)];
  };
  int64_t start = 0;
  for (size_t i = 0; i < piece; ++i) start += size_of(i);
  return whole.narrow(tensor.dim, start, size_of(piece));
}

at::Tensor joined(const DiskTensor& tensor, const std::vector<at::Tensor>& pieces) {
  at::Tensor whole = pieces.front();
  if (pieces.size() > 1) {
    // In turn: [..., n, count, ...] with the two dimensions flattened to one.
    whole = tensor.interleaved
                ? at::stack(pieces, tensor.dim + 1).flatten(tensor.dim, tensor.dim + 1)
                : at::cat(pieces, tensor.dim);
  }
  return tensor.transposed ? whole.transpose(-1, -2) : whole;
}

}  // namespace trireme::checkpoint
