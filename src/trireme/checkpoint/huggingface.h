// Hugging Face directories in and out: config.json, model.safetensors (or shards with an index) and
// the texts beside them. Knows no family by name: model/disk_layout.h says what is transposed, packed,
// cut into experts or tied on disk.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/checkpoint/stored_form.h"
#include "trireme/model/model_spec.h"

namespace trireme::checkpoint {

/// A model as an HF directory holds it. Parameters are in our names and layout, in the order of
/// ModelSpec::parameters; `make` returns what is stored, of the stored type, as a view of the file's
/// map on the CPU; it is converted as it is copied or written. What is quantised (spec.quantization) is dequantised to float32 as it is
/// made, and config.json among the texts is that of the model dequantised.
struct HuggingFaceModel {
  model::ModelSpec spec;
  std::vector<TensorToWrite> parameters;  ///< dtype kF32
  std::map<std::string, std::string>
      texts;  ///< by name: config.json, tokenizer.json ..., additional_chat_templates/x.jinja; byte by byte, tokenizer.model is no text
  std::vector<std::string>
      other_files;  ///< names of the directory that are neither weights nor among `texts`; folders end with '/'
  Dtype stored_dtype = Dtype::kF32;  ///< type of the first matrix in the files
  StoredForm form;
  std::vector<TensorToWrite>
      scales;  ///< of fp8 in blocks of 128 x 128: "<stored name>_scale_inv", of float32
  std::string
      new_scales_of;  ///< the first fp8 weight whose scales are not among them: in other blocks, or of stacked experts
};

/// Opens an HF directory: model.safetensors, or model.safetensors.index.json with its shards.
/// Accepts base models (no "transformer." / "model." prefix), a stored copy of tied weights, experts stacked as in
/// transformers' modules or each by itself, fp8 in blocks and MXFP4 where config.json declares them, buffers that carry nothing, and the absence of all multi-token-prediction
/// tensors, whose parameters are then initialised. Error{kData} naming missing, unexpected and mis-shaped tensors; a
/// directory with only pickled weights is refused with a hint; Error{kConfig} for its config.json.
HuggingFaceModel open_huggingface(const std::filesystem::path& path);

struct ExportOptions {
  Dtype dtype = Dtype::kF32;  ///< kF32, kBf16 or kF16; written to config.json as well
  int64_t shard_bytes =
      int64_t{5'000'000'000};  ///< more data than this is cut into shards with an index
  StoredForm form = {};        ///< of tensors; an import's, to give back what was read
  /// Linear weights of the blocks as fp8 in blocks of 128 x 128 beside their scales, as DeepSeek-V3 publishes them; experts one by one.
  bool fp8 = false;
  std::vector<TensorToWrite> scales =
      {};  ///< an import's, kept for blocks that are as they were read; form.power_of_two_scales holds of others
  bool replace = false;        ///< replace a directory that is there (in one step)
  Storage* storage = nullptr;  ///< nullptr: the real disk
};

struct ExportResult {
  int64_t num_tensors = 0;
  uint64_t bytes = 0;  ///< of tensor data
  std::filesystem::path path;
};

/// Writes an HF directory, atomically: model.safetensors byte-equal to what transformers'
/// save_pretrained writes, config.json (spec.config_json with the written type),
/// generation_config.json and the given texts
/// ("tokenizer.json", "tokenizer_config.json", ...; "config.json" among them is used in place of
/// spec.config_json). `parameters` must have the names of spec.parameters, in any order; others are
/// ignored. Error{kConfig} if `path` is there and not to be replaced; Error{kData} for the disk.
ExportResult export_huggingface(const std::filesystem::path& path, const model::ModelSpec& spec,
                                const std::vector<TensorToWrite>& parameters,
                                const std::map<std::string, std::string>& texts,
                                const ExportOptions& options = {});
ExportResult export_huggingface(const std::filesystem::path& path, const model::ModelSpec& spec,
                                const std::vector<NamedTensor>& parameters,
                                const std::map<std::string, std::string>& texts,
                                const ExportOptions& options = {});

/// generation_config.json with the token ids of `spec`.
std::string make_generation_config(const model::ModelSpec& spec);

}  // namespace trireme::checkpoint
