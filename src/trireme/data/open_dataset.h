// From the run file's [data] table to data sets: inputs are recognised, tokenized once into a
// cache, split, blended.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "trireme/data/dataset.h"

namespace trireme::data {

class ChatTemplate;
class Tokenizer;

/// One entry of data.train or data.valid: a file, a glob, or the prefix of a .bin/.idx pair.
struct DataInput {
  std::string path;
  double weight = 0;  ///< 0: no weight given
};

/// The [data] table.
struct DataOptions {
  /// Without weights all entries are one stream; with weights (every entry must have one) each is
  /// its own part of a blend.
  std::vector<DataInput> train;
  std::vector<DataInput> valid;  ///< empty: none, or held out of `train` by valid_fraction
  double valid_fraction =
      0;  ///< of the documents, chosen by their content: equal documents fall on one side
  int64_t seq_len = 512;
  Packing packing = Packing::kDocuments;
  std::string jsonl_field = "text";
  /// The loss is on answers only: JSONL holds conversations, .bin/.idx pairs have a mask.
  bool mask_answers = false;
  std::shared_ptr<const ChatTemplate> chat;  ///< writes conversations out; null: none is at hand
  std::string separator;  ///< cuts a text file into documents; empty: a file is a document
  uint64_t seed = 0;
  std::filesystem::path cache;  ///< folder for tokenized text, e.g. out/cache
  int num_threads = 0;          ///< for tokenizing; 0: all
};

struct DataPair {
  std::shared_ptr<const Dataset> train;
  std::shared_ptr<const Dataset> valid;  ///< null if neither `valid` nor `valid_fraction` is given
};

/// Opens what a run needs. Text and JSONL are tokenized into `cache` unless they are there already
/// (keyed by paths, sizes, modification times, tokenizer and options). `tokenizer` may be null if
/// every input is .bin/.idx; it also gives the byte lengths for bits per byte. Blocks. Error{kData}
/// or {kConfig} naming the entry.
DataPair open_data(const DataOptions& options, const Tokenizer* tokenizer);

/// One data set of `inputs`, without a split: what `trireme eval --data` reads. All other options
/// as above.
std::shared_ptr<const Dataset> open_inputs(const std::vector<DataInput>& inputs,
                                           const DataOptions& options, const Tokenizer* tokenizer);

}  // namespace trireme::data
