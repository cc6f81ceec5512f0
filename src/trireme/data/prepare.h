// From files of text to a tokenized .bin/.idx pair.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trireme/data/chat_template.h"
#include "trireme/data/document_source.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

struct PrepareProgress {
  int64_t files_done = 0;
  int64_t files = 0;
  int64_t bytes_done = 0;  ///< of the input files, as they are on disk
  int64_t bytes = 0;
  int64_t tokens = 0;
};

struct PrepareOptions {
  DocumentFormat format;
  /// With format.conversations: what writes them out; <prefix>.mask says which tokens are answers.
  std::shared_ptr<const ChatTemplate> chat;
  bool deduplicate = false;   ///< a document with the same text as an earlier one is left out
  double valid_fraction = 0;  ///< > 0: those documents go to <prefix>-valid.bin/.idx
  int num_threads = 0;        ///< 0: all
  size_t batch_bytes =
      size_t{16} << 20;  ///< text encoded at a time; longer documents come in pieces
  /// Called after each batch of documents, from the calling thread.
  std::function<void(const PrepareProgress&)> progress;
};

/// What one written pair holds; also what its description <prefix>.json says.
struct PreparedPart {
  std::filesystem::path prefix;
  int64_t documents = 0;
  int64_t tokens = 0;     ///< with one end-of-text id a document
  int64_t predicted = 0;  ///< of the tokens, those that a mask leaves to be predicted
  int64_t bytes = 0;      ///< of text
  int32_t max_id = -1;
};

struct PrepareResult {
  PreparedPart train;
  PreparedPart valid;  ///< an empty prefix without valid_fraction
  int64_t duplicates = 0;
};

/// Tokenizes the documents of `files` in order, each followed by the tokenizer's end-of-text id if
/// it has one, and writes <prefix>.bin, .idx and .json. Conversations end as their template ends
/// them, and a <prefix>.mask is written beside. The result does not depend on the number of
/// threads. Bounded memory: documents longer than batch_bytes pass in pieces (and are not compared for
/// duplicates). Blocks; Error{kInterrupted} on a signal, and nothing is left. Error{kData} naming
/// the file; also if no document remains for one of the parts.
PrepareResult prepare(const std::vector<std::filesystem::path>& files, const Tokenizer& tokenizer,
                      const std::filesystem::path& prefix, const PrepareOptions& options = {});

/// True for a document that a validation split of `fraction` holds out: a function of its content's
/// hash alone, so equal documents fall on the same side whatever their order.
bool held_out(uint64_t content_hash, double fraction);

/// Bytes of text behind every id, 0 for special ones: what makes bits per byte exact.
std::vector<int32_t> byte_lengths_of(const Tokenizer& tokenizer);

}  // namespace trireme::data
