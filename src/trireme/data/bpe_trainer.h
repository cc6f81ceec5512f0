// Trains byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909, over bytes as in GPT-2).
//
// The vocabulary and merges equal those of the `tokenizers` library's BpeTrainer with the
// byte-level initial alphabet, fed each file as one string. They do not depend on the number of
// threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/thread_pool.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

struct BpeTrainOptions {
  int64_t vocab_size = 8192;     ///< with special tokens and the 256 bytes
  std::string pattern = "gpt2";  ///< pre-tokenizer: "gpt2", "llama3" or "qwen2"
  std::vector<std::string> special_tokens = {
      "<|endoftext|>"};       ///< get the first ids, in this order
  int64_t min_frequency = 2;  ///< a pair seen less often is not merged
};

struct BpeTrainProgress {
  const char* phase = "";  ///< "count" (in bytes of text) or "merge" (in merges)
  int64_t done = 0;
  int64_t total = 0;
};
/// Called now and then, from one thread at a time.
using BpeTrainCallback = std::function<void(const BpeTrainProgress&)>;

/// Error{kConfig} for options that cannot work, Error{kData} for a file that cannot be read or no
/// text at all. Blocks.
std::unique_ptr<Tokenizer> train_bpe(const BpeTrainOptions& options,
                                     const std::vector<std::filesystem::path>& files,
                                     ThreadPool& pool, const BpeTrainCallback& progress = {});
std::unique_ptr<Tokenizer> train_bpe_on_texts(const BpeTrainOptions& options,
                                              std::span<const std::string_view> texts,
                                              ThreadPool& pool,
                                              const BpeTrainCallback& progress = {});

}  // namespace trireme::data
