// The corpus of `make train`: text that the machine already has, made ready for a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::data {

struct CorpusOptions {
  std::vector<std::filesystem::path> sources;  ///< folders, searched to any depth
  std::filesystem::path out;                   ///< folder for everything below
  std::vector<std::string> extensions = {".py"};
  double valid_fraction = 0.01;  ///< of the files, chosen by their content
  int64_t vocab_size = 4096;
  int num_threads = 0;  ///< 0: all
  /// Called now and then with what is being done and how far it is (0 to 1).
  std::function<void(const std::string& phase, double share)> progress;
};

/// A compressor's size of the validation text, the files one after the other as one stream: a
/// stronger baseline than file by file, because matches reach across files.
struct CompressedSize {
  int64_t bytes = 0;
  double bits_per_byte = 0;
};
CompressedSize gzip_size(std::string_view text);  ///< gzip -9, header and trailer included;
                                                  ///< Error{kInternal} if zlib fails
CompressedSize xz_size(std::string_view text);    ///< xz -9 with CRC64, as the program's default

/// The files of a corpus after the selection.
struct CorpusFiles {
  std::vector<std::filesystem::path> train;
  std::vector<std::filesystem::path> valid;
  int64_t found = 0;
  int64_t duplicates = 0;    ///< same content as an earlier file
  int64_t unfit = 0;         ///< empty or not UTF-8
  uint64_t fingerprint = 0;  ///< of the contents, in order
};

/// Finds, deduplicates and splits; every file in exactly one of train and valid, or counted as left
/// out. Sources in the order given, files sorted by path. Error{kData} if fewer than two files
/// remain.
CorpusFiles select_corpus_files(const CorpusOptions& options);

/// Writes into `out`: tokenizer.json (byte-level BPE trained on the training files),
/// train.bin/.idx/.json, valid.bin/.idx/.json, and last corpus.json, which is returned:
///   {files, duplicates, unfit, vocab_size, fingerprint, train: {documents, tokens, bytes},
///    valid: {...}, compressed_bytes: {"gzip -9", "xz -9"}, bits_per_byte: {"gzip -9", "xz -9"}}
/// (the run file's data.baselines).
/// Does nothing but read the sources when corpus.json is there and was made from the same files and
/// options. Blocks (tens of seconds for tens of MB). Error{kData}, {kInterrupted}.
OrderedJson make_corpus(const CorpusOptions& options);

}  // namespace trireme::data
