#include "trireme/model/disk_layout.h"

#include <utility>

#include "trireme/base/error.h"

namespace trireme::model {

namespace {

/// `pattern` with the expert's number for "{}".
std::string numbered(const std::string& pattern, size_t hole, int64_t expert) {
  return pattern.substr(0, hole) + std::to_string(expert) + pattern.substr(hole + 2);
}

void add_experts(const ParameterSpec& parameter, int index, const std::string& pattern, size_t hole,
                 std::vector<DiskTensor>& tensors) {
  for (int64_t expert = 0; expert < parameter.shape[0]; ++expert) {
    DiskTensor& tensor = tensors.emplace_back();
    tensor.name = numbered(pattern, hole, expert);
    tensor.shape.assign(parameter.shape.begin() + 1, parameter.shape.end());
    tensor.pieces = {{index, expert}};
    tensor.fp32 = parameter.fp32_on_disk;
  }
}

/// Of a multi-token-prediction layer's own names for what it shares with the model.
void add_copies(const ModelSpec& spec, std::vector<DiskTensor>& tensors) {
  const int main_layers = spec.num_main_layers();
  int embedding = -1;
  int head = -1;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    if (spec.parameters[i].role == Role::kTokenEmbedding) embedding = static_cast<int>(i);
    if (spec.parameters[i].role == Role::kHead) head = static_cast<int>(i);
  }
  for (int i = 0; i < spec.num_mtp_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", main_layers + i);
    for (const auto& [name, parameter] :
         {std::pair{"embed_tokens.weight", embedding},
          {"shared_head.head.weight", head < 0 ? embedding : head}}) {
      DiskTensor& tensor = tensors.emplace_back();
      tensor.name = prefix + name;
      tensor.shape = spec.parameters[static_cast<size_t>(parameter)].shape;
      tensor.pieces = {{parameter, -1}};
      tensor.mtp = tensor.copy = true;
    }
  }
}

}  // namespace

std::vector<DiskTensor> disk_tensors(const ModelSpec& spec, DiskLayout layout) {
  std::vector<DiskTensor> tensors;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const ParameterSpec& parameter = spec.parameters[i];
    const auto index = static_cast<int>(i);
    const size_t before = tensors.size();
    const bool renamed = layout == DiskLayout::kFiles && !parameter.name_in_files.empty();
    const size_t hole = parameter.name_in_files.find("{}");
    const bool packed = !renamed && !parameter.packed_on_disk.empty();
    if (renamed && hole != std::string::npos) {
      add_experts(parameter, index, parameter.name_in_files, hole, tensors);
    } else if (packed && !tensors.empty() && tensors.back().name == parameter.packed_on_disk) {
      DiskTensor& whole = tensors.back();
      whole.shape[static_cast<size_t>(whole.dim)] +=
          parameter.shape[static_cast<size_t>(whole.dim)];
      whole.pieces.push_back({index, -1});
    } else {
      DiskTensor& tensor = tensors.emplace_back();
      tensor.name = renamed  ? parameter.name_in_files
                    : packed ? parameter.packed_on_disk
                             : parameter.name;
      tensor.shape = parameter.shape;
      tensor.pieces = {{index, -1}};
      tensor.dim = packed ? parameter.packed_dim : 0;
      tensor.interleaved = packed && parameter.packed_interleaved;
      tensor.transposed = parameter.transposed_on_disk;
      tensor.fp32 = parameter.fp32_on_disk;
    }
    for (size_t at = before; at < tensors.size(); ++at)
      tensors[at].mtp = spec.is_mtp(parameter.part);
  }
  for (DiskTensor& tensor : tensors) {
    const size_t rank = tensor.shape.size();
    if (tensor.transposed) std::swap(tensor.shape[rank - 1], tensor.shape[rank - 2]);
  }
  add_copies(spec, tensors);
  return tensors;
}

}  // namespace trireme::model
