// Rewrites text before it is cut into pieces: what a tokenizer.json calls normalizer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/aligned_text.h"

namespace trireme::data {

/// One step of a normalizer. Thread-safety: const access from any thread.
class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  virtual void apply(AlignedText& text) const = 0;
  /// Characters change each for itself or with the marks that follow, and ASCII but letters stays: a
  /// cut before a space that follows a printable ASCII character makes no difference.
  virtual bool is_local() const = 0;
};

/// Any of BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, StripAccents and
/// Sequences of them; null changes nothing. Thread-safety: const access from any thread.
class Normalizer {
 public:
  /// Error{kData} naming the part that is not supported.
  Normalizer(const Json& json, const std::string& origin);
  ~Normalizer();

  bool empty() const { return steps_.empty(); }
  void apply(AlignedText& text) const {
    for (const auto& step : steps_) step->apply(text);
  }
  std::string normalized(std::string text) const;

  bool is_local() const;
  /// What is put for every space if that is all that happens, else "".
  const std::string& space_replacement() const { return space_replacement_; }

 private:
  void add_step(const Json& json, const std::string& origin);
  std::vector<std::unique_ptr<NormalizerStep>> steps_;
  std::string space_replacement_;
};

}  // namespace trireme::data
