// Turns tokens back into text, as they come: what a tokenizer.json calls decoder.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::data {

/// Takes the texts of tokens, each in one or more parts. Not thread-safe.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void text(std::string_view part) = 0;
  virtual void end_token() = 0;
  virtual void finish() = 0;  ///< no token follows; ready for another sequence
};

/// One step of a decoder. Thread-safety: const access from any thread.
class DecoderStep {
 public:
  virtual ~DecoderStep() = default;
  /// The step's work on one sequence of tokens; what comes out goes to `next`, which must outlive it.
  virtual std::unique_ptr<TokenSink> start(TokenSink& next) const = 0;
  /// The bytes that come out for a token amid others.
  virtual std::string bytes_amid(std::string token) const = 0;
};

/// Any of ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip, WordPiece and Sequences of them;
/// null puts spaces between tokens. Thread-safety: const access from any thread.
class TokenDecoder {
 public:
  /// Error{kData} naming the part that is not supported.
  TokenDecoder(const Json& json, const std::string& origin);
  ~TokenDecoder();

  /// Decodes one sequence after the other. Keeps a reference to the decoder.
  class Stream {
   public:
    explicit Stream(const TokenDecoder& decoder);
    ~Stream();
    void feed(std::string_view token);
    void finish();
    /// The text that is certain by now and was not taken yet. Valid UTF-8.
    std::string take() { return std::exchange(text_, {}); }

   private:
    class Collector;
    std::string text_;
    std::vector<std::unique_ptr<TokenSink>> sinks_;  ///< last step first
  };

  /// True if ByteLevel is all there is: the bytes of tokens just follow one another.
  bool joins_bytes() const { return joins_bytes_; }
  std::string bytes_of(const std::string& token) const;

 private:
  void add_step(const Json& json, const std::string& origin);
  std::vector<std::unique_ptr<DecoderStep>> steps_;
  bool joins_bytes_ = false;
};

}  // namespace trireme::data
