// The tensors that a Hugging Face directory holds of a model: the table between ParameterSpec and files, read in both
// directions. Pure: no I/O, no torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::model {

/// What one stored tensor holds of a parameter.
struct DiskPiece {
  int parameter = 0;    ///< index into ModelSpec::parameters
  int64_t expert = -1;  ///< this one's slice [rows, columns] of a stack, or all of the parameter
};

/// One stored tensor. Its pieces, in our layout, are joined along `dim`, one after the other or (interleaved) index by
/// index in turn; the result is stored with its last two dimensions exchanged if transposed.
struct DiskTensor {
  std::string name;
  std::vector<int64_t> shape;  ///< as stored
  std::vector<DiskPiece> pieces;
  int dim = 0;
  bool interleaved = false;
  bool transposed = false;
  bool fp32 = false;  ///< whatever the type of the others
  bool mtp = false;   ///< of a multi-token-prediction layer: files may lack all of these
  bool copy =
      false;  ///< a second copy of a tensor above, of which its pieces say the parameter; files may lack it
};

/// Where experts are stored in two ways, which.
enum class DiskLayout {
  kFiles,  ///< as models are published and save_pretrained writes: one tensor an expert, but for gpt_oss
  kModules  ///< as transformers' modules hold them: stacked [experts, ...], gate and up as one
};

/// All tensors, in the order of ModelSpec::parameters (experts' tensors by product, then expert), copies last. Every
/// parameter is in exactly one place, copies aside.
std::vector<DiskTensor> disk_tensors(const ModelSpec& spec, DiskLayout layout);

}  // namespace trireme::model
