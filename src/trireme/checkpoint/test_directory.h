// Hugging Face directories with tensors of one's choice, for tests.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/checkpoint/huggingface.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/model/moe_test_configs.h"

namespace trireme::checkpoint {

using Tensors = std::map<std::string, at::Tensor>;

inline Json config_of(const std::string& family, const Json& changes = Json::object()) {
  Json config = model::tiny_moe(family);
  config["dtype"] = "bfloat16";
  config.update(changes);
  return config;
}

/// Every tensor of a directory, all different; those that stay in fp32 with values that bfloat16 has not.
inline Tensors make_tensors(const model::ModelSpec& spec, model::DiskLayout layout, bool mtp,
                            bool copies) {
  Tensors tensors;
  int64_t number = 0;
  for (const model::DiskTensor& tensor : model::disk_tensors(spec, layout)) {
    if ((tensor.mtp && !mtp) || (tensor.copy && !copies)) continue;
    int64_t numel = 1;
    for (const int64_t extent : tensor.shape) numel *= extent;
    at::Tensor values = ((at::arange(numel) % 61 + 3 * number++) / 4.0).reshape(tensor.shape);
    if (tensor.copy) {
      const std::string& original =
          spec.parameters[static_cast<size_t>(tensor.pieces.front().parameter)].name;
      tensors[tensor.name] = tensors.at(original);
    } else {
      tensors[tensor.name] = tensor.fp32 ? values + 1e-4 : values.to(at::kBFloat16);
    }
  }
  return tensors;
}

inline void write_directory(const std::filesystem::path& folder, const std::string& config,
                            const Tensors& tensors) {
  std::filesystem::create_directories(folder);
  std::vector<TensorToWrite> to_write;
  for (const auto& [name, tensor] : tensors) {
    to_write.push_back(
        {name, dtype_of(tensor.scalar_type()), tensor.sizes().vec(), [t = tensor] { return t; }});
  }
  std::vector<const TensorToWrite*> pointers;
  for (const auto& tensor : to_write) pointers.push_back(&tensor);
  write_tensor_file(disk(), folder, "model.safetensors", pointers, {{"format", "pt"}});
  write_file_atomically(folder / "config.json", config);
}

inline Tensors read_tensors(const std::filesystem::path& folder) {
  const TensorFile file(folder / "model.safetensors");
  Tensors tensors;
  for (const TensorInfo& info : file.header().tensors) tensors[info.name] = file.tensor(info);
  return tensors;
}

inline at::Tensor made(const std::vector<TensorToWrite>& parameters, const std::string& name) {
  for (const TensorToWrite& parameter : parameters) {
    if (parameter.name == name) return parameter.make();
  }
  ADD_FAILURE() << "no parameter " << name;
  return {};
}

inline std::string problem_of(const std::filesystem::path& folder) {
  try {
    open_huggingface(folder);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace trireme::checkpoint
