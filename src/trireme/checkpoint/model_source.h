// What a MODEL argument means: a Hugging Face directory or a checkpoint of our own (a run's folder
// stands for its newest checkpoint).
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trireme/checkpoint/huggingface.h"

namespace trireme::checkpoint {

/// A model to evaluate, to generate with, to train on from, or to export.
struct ModelSource {
  model::ModelSpec spec;
  std::vector<TensorToWrite>
      parameters;  ///< our names and layout, order of spec.parameters; make() gives the type that
                   ///< is stored, on the CPU
  std::map<std::string, std::string>
      texts;        ///< "config.json", "tokenizer.json" ... if there, as HuggingFaceModel::texts
  StoredForm form;  ///< of what was imported, as long as it was not trained on; where it says that
                    ///< modules of multi-token prediction are not stored, make() begins them anew
  std::vector<TensorToWrite>
      scales;  ///< of what was imported from fp8, for ExportOptions::scales; none once trained on
  Dtype stored_dtype = Dtype::kF32;  ///< an imported checkpoint remembers its origin's
  std::filesystem::path path;        ///< what was opened, resolved
  bool huggingface = false;
  int64_t step = 0;                                 ///< 0 for a Hugging Face directory
  std::string text(const std::string& name) const;  ///< "" if absent
};

/// Opens a MODEL argument. Checksums of a checkpoint's tensors are verified when they are made.
/// Error{kData} if the path is neither, naming what is missing.
ModelSource open_model(const std::filesystem::path& path);

/// The model without its modules of multi-token prediction: spec, parameters, and a config.json that has none. As it is if it has none.
ModelSource without_mtp(ModelSource source);

/// Texts of a model as CheckpointState::texts has them, where names are plain: "additional_chat_templates.x.jinja" for one in that
/// folder. open_model() turns them back.
std::map<std::string, std::string> checkpoint_texts(
    const std::map<std::string, std::string>& texts);

/// Imports an HF directory as a checkpoint of ours at `out`. Error{kConfig} if `out` is there and
/// not `replace`.
Manifest import_huggingface(const std::filesystem::path& huggingface,
                            const std::filesystem::path& out, bool replace = false,
                            const SaveOptions& options = {});

}  // namespace trireme::checkpoint
