// A MODEL argument brought into memory: parameters, parts and the tokenizer that came with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "trireme/data/tokenizer.h"
#include "trireme/nn/model.h"
#include "trireme/nn/parameter_store.h"

namespace trireme::infer {

/// Ownership: owns all of it; the model borrows the store, so both move together.
struct LoadedModel {
  std::unique_ptr<nn::ParameterStore> store;
  std::unique_ptr<nn::Model> model;
  std::unique_ptr<data::Tokenizer> tokenizer;  ///< null if the source has none
  /// Ids that end a generated text: those of generation_config.json, else of config.json.
  std::vector<int32_t> end_ids;
  std::filesystem::path path;  ///< what was opened, resolved
  int64_t step = 0;            ///< of a checkpoint of ours

  /// The tokenizer, or Error{kData} that says how to do without.
  const data::Tokenizer& require_tokenizer() const;
};

/// Opens a Hugging Face directory, a checkpoint of ours or a run's folder (its newest checkpoint).
/// Products run in `compute_dtype` (kFloat, kBFloat16; kDouble for checks) on `device`. Blocks. Error{kData} or
/// {kConfig}.
LoadedModel load_model(const std::filesystem::path& path, at::ScalarType compute_dtype = at::kFloat,
                       at::Device device = at::kCPU);

/// "fp32" or "bf16"; Error{kConfig} otherwise.
at::ScalarType parse_precision(const std::string& name);

}  // namespace trireme::infer
