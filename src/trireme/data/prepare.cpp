#include "trireme/data/prepare.h"

#include <cmath>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/json.h"
#include "trireme/base/thread_pool.h"
#include "trireme/data/indexed_dataset.h"
#include "trireme/data/token_mask.h"

namespace trireme::data {

namespace {

namespace fs = std::filesystem;

constexpr size_t kBatchPieces = 8192;

uint64_t hash_of(std::string_view text) {
  return xxh3(std::as_bytes(std::span(text)));
}

int64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

/// One pair being written, with its description.
class PartWriter {
 public:
  PartWriter(const fs::path& prefix, const Tokenizer& tokenizer, bool masked)
      : tokenizer_(tokenizer), writer_(prefix, narrowest_token_type(tokenizer.vocab_size())) {
    part_.prefix = prefix;
    if (masked) mask_.emplace(mask_path());
  }

  void append(std::span<const int32_t> ids, size_t bytes) {
    writer_.append(ids);
    part_.bytes += static_cast<int64_t>(bytes);
  }
  void add(const EncodedConversation& conversation) {
    writer_.add(conversation.ids);
    mask_->append(conversation.predicted);
    part_.bytes += static_cast<int64_t>(conversation.bytes);
  }
  void end_document(const std::optional<int32_t>& end) {
    if (end) writer_.append(std::span(&*end, 1));
    writer_.end_document();
  }
  int64_t num_tokens() const { return writer_.num_tokens(); }
  int64_t num_documents() const { return writer_.num_documents(); }

  PreparedPart finish() {
    part_.documents = writer_.num_documents();
    part_.tokens = writer_.num_tokens();
    part_.max_id = writer_.max_id();
    part_.predicted = mask_ ? mask_->num_predicted() : part_.tokens;
    OrderedJson description = {{"format", "trireme-tokens"},
                               {"documents", part_.documents},
                               {"tokens", part_.tokens},
                               {"bytes", part_.bytes},
                               {"max_id", part_.max_id},
                               {"fingerprint", hash_text(writer_.fingerprint())},
                               {"vocab_size", tokenizer_.vocab_size()},
                               {"tokenizer", tokenizer_.fingerprint()}};
    if (mask_) {
      description["loss_mask"] = "answers";
      description["predicted"] = part_.predicted;
    }
    // What an earlier set left there is invalid before the first file is replaced.
    std::error_code ignored;
    fs::remove(part_.prefix.string() + ".idx", ignored);
    if (mask_) {
      mask_->finish();
    } else {
      fs::remove(mask_path(), ignored);
    }
    // The .idx, written last, is what makes the set valid.
    write_file_atomically(fs::path(part_.prefix.string() + ".json"), description.dump(2) + "\n");
    writer_.finish();
    return part_;
  }

 private:
  fs::path mask_path() const { return part_.prefix.string() + ".mask"; }

  const Tokenizer& tokenizer_;
  IndexedDatasetWriter writer_;
  std::optional<TokenMaskWriter> mask_;
  PreparedPart part_;
};

/// Collects pieces, encodes them together, writes them in order.
class Preparation {
 public:
  Preparation(const Tokenizer& tokenizer, const fs::path& prefix, const PrepareOptions& options)
      : tokenizer_(tokenizer),
        options_(options),
        end_(tokenizer.eos_id()),
        pool_(options.num_threads),
        train_(prefix, tokenizer, options.chat != nullptr) {
    if (options.valid_fraction > 0) {
      valid_ = std::make_unique<PartWriter>(fs::path(prefix.string() + "-valid"), tokenizer,
                                            options.chat != nullptr);
    }
  }

  bool add(TextPiece piece) {
    pending_bytes_ += piece.text.size();
    pending_.push_back(std::move(piece));
    return pending_bytes_ >= options_.batch_bytes || pending_.size() >= kBatchPieces;
  }

  void flush() {
    if (options_.deduplicate) drop_duplicates();
    if (options_.chat != nullptr) return flush_conversations();
    std::vector<std::string_view> texts(pending_.size());
    for (size_t i = 0; i < pending_.size(); ++i) texts[i] = pending_[i].text;
    // A special token spelled out in a text is text.
    const auto ids = encode_parallel(pool_, tokenizer_, texts,
                                     {.add_special_tokens = false, .parse_special = false});
    for (size_t i = 0; i < pending_.size(); ++i) {
      const TextPiece& piece = pending_[i];
      if (piece.begins) part_ = part_of(piece);
      part_->append(ids[i], piece.text.size());
      if (piece.ends) part_->end_document(end_);
    }
    pending_.clear();
    pending_bytes_ = 0;
  }

  int64_t num_tokens() const { return train_.num_tokens() + (valid_ ? valid_->num_tokens() : 0); }

  PrepareResult finish() {
    flush();
    TRIREME_USER_CHECK(train_.num_documents() > 0, kData,
                       "name files with text, or lower the valid fraction",
                       "no document remains for training");
    TRIREME_USER_CHECK(!valid_ || valid_->num_documents() > 0, kData,
                       "raise it or give more documents",
                       "a valid fraction of {} holds out none of {} documents",
                       options_.valid_fraction, train_.num_documents());
    PrepareResult result;
    result.duplicates = duplicates_;
    if (valid_) result.valid = valid_->finish();
    result.train = train_.finish();
    return result;
  }

 private:
  PartWriter* part_of(const TextPiece& piece) {
    const bool out = valid_ && held_out(hash_of(piece.text), options_.valid_fraction);
    return out ? valid_.get() : &train_;
  }

  void flush_conversations() {
    std::vector<EncodedConversation> encoded(pending_.size());
    pool_.parallel_for(static_cast<int64_t>(pending_.size()), [&](int64_t i) {
      const TextPiece& piece = pending_[static_cast<size_t>(i)];
      const auto conversation = parse_conversation(piece.text, piece.origin);
      encoded[static_cast<size_t>(i)] =
          encode_conversation(*options_.chat, tokenizer_, *conversation, piece.origin);
    });
    for (size_t i = 0; i < pending_.size(); ++i) part_of(pending_[i])->add(encoded[i]);
    pending_.clear();
    pending_bytes_ = 0;
  }

  void drop_duplicates() {
    const auto seen_before = [this](const TextPiece& piece) {
      return piece.begins && piece.ends && !seen_.insert(hash_of(piece.text)).second;
    };
    duplicates_ += static_cast<int64_t>(std::erase_if(pending_, seen_before));
  }

  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
  std::optional<int32_t> end_;
  ThreadPool pool_;
  PartWriter train_;
  std::unique_ptr<PartWriter> valid_;
  PartWriter* part_ = nullptr;  // of the document that is open
  std::vector<TextPiece> pending_;
  size_t pending_bytes_ = 0;
  std::unordered_set<uint64_t> seen_;
  int64_t duplicates_ = 0;
};

}  // namespace

bool held_out(uint64_t content_hash, double fraction) {
  // The hash is mixed again: its own bits may serve to find duplicates or to shard.
  const double uniform =
      std::ldexp(static_cast<double>(mix(content_hash, 0x76616c6964) >> 11), -53);
  return uniform < fraction;
}

std::vector<int32_t> byte_lengths_of(const Tokenizer& tokenizer) {
  std::vector<int32_t> lengths(static_cast<size_t>(tokenizer.vocab_size()), 0);
  for (size_t id = 0; id < lengths.size(); ++id) {
    const auto token = static_cast<int32_t>(id);
    if (tokenizer.is_special(token)) continue;
    lengths[id] = static_cast<int32_t>(tokenizer.id_to_bytes(token).size());
  }
  return lengths;
}

PrepareResult prepare(const std::vector<fs::path>& files, const Tokenizer& tokenizer,
                      const fs::path& prefix, const PrepareOptions& options) {
  TRIREME_USER_CHECK(options.valid_fraction >= 0 && options.valid_fraction < 1, kConfig,
                     "give a part of one, e.g. 0.01", "valid fraction {}", options.valid_fraction);
  TRIREME_CHECK(options.format.conversations == (options.chat != nullptr),
                "conversations and a template come together");
  PrepareProgress progress;
  progress.files = static_cast<int64_t>(files.size());
  for (const fs::path& file : files) progress.bytes += size_of(file);

  Preparation preparation(tokenizer, prefix, options);
  const auto report = [&] {
    if (interrupted()) throw Error(ErrorCode::kInterrupted, "interrupted while preparing data");
    progress.tokens = preparation.num_tokens();
    if (options.progress) options.progress(progress);
  };
  const SafeCut cut = [&tokenizer](std::string_view text) { return safe_prefix(tokenizer, text); };
  for (const fs::path& file : files) {
    const auto documents = open_documents(file, options.format, options.batch_bytes, cut);
    TextPiece piece;
    while (documents->next(piece)) {
      if (!preparation.add(std::move(piece))) continue;
      preparation.flush();
      report();
    }
    ++progress.files_done;
    progress.bytes_done += size_of(file);
  }
  report();
  return preparation.finish();
}

}  // namespace trireme::data
