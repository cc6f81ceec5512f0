// What a model directory is, and what is odd about it: for `trireme doctor MODEL_DIR`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/device/machine.h"
#include "trireme/model/model_spec.h"

namespace trireme::train {

/// Memory on one device at one precision, in bytes.
struct ModelMemory {
  std::string precision;          ///< "fp32", "bf16"
  int64_t run_bytes = 0;          ///< weights, and the cache of one sequence as long as the context
  int64_t cache_bytes = 0;        ///< of them the cache
  int64_t train_bytes = 0;        ///< the peak of a step of one sequence with AdamW
  int64_t train_least_bytes = 0;  ///< the same when everything is recomputed
  int64_t train_resident_bytes = 0;  ///< of them held between steps
};

struct ModelInspection {
  std::filesystem::path path;     ///< what was opened, resolved
  bool huggingface = true;        ///< else a checkpoint of ours
  model::ModelSpec spec;          ///< without a family if config.json cannot be read
  int64_t parameters = 0;         ///< without those of multi-token prediction, as published totals
  int64_t active_parameters = 0;  ///< of them, that one token's forward pass uses
  int64_t mtp_parameters = 0;     ///< of the modules that config.json asks for
  bool mtp_stored = false;        ///< false also if the weights cannot be read
  double flops_per_token = 0.0;   ///< of a training step, with the modules that are stored
  int64_t seq_len = 0;            ///< that memory and operations are said for
  std::vector<std::pair<std::string, uint64_t>> stored_bytes;  ///< by type ("BF16"), largest first
  int64_t stored_tensors = 0;
  std::string tokenizer_kind;  ///< "BPE on bytes", "Unigram" ...; "" if there is none
  int64_t tokenizer_vocab_size = 0;
  std::string bos, eos;  ///< as text
  std::string
      chat_template;  ///< "none", "covered", "covered, marks what is generated" or "not covered"
  std::vector<ModelMemory> memory;
  std::vector<device::Finding> findings;
  bool ok() const;  ///< no finding is a problem
};

/// Looks at a Hugging Face directory, a checkpoint or a run's folder. What is wrong becomes a finding,
/// not an error; reads headers and texts, no weights. Error{kData} only if there is nothing at `path`.
ModelInspection inspect_model(const std::filesystem::path& path);

OrderedJson to_json(const ModelInspection& inspection);
/// For a person.
std::string describe(const ModelInspection& inspection);

}  // namespace trireme::train
