#include "trireme/data/open_dataset.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/log.h"
#include "trireme/data/prepare.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

namespace {

namespace fs = std::filesystem;

/// What one entry of the run file stands for.
struct Inputs {
  std::vector<fs::path> prefixes;  // of .bin/.idx pairs
  std::vector<fs::path> texts;
};

bool is_pair(const fs::path& prefix) {
  std::error_code error;
  return fs::is_regular_file(prefix.string() + ".idx", error);
}

bool is_pair_file(const fs::path& path) {
  const auto extension = path.extension();
  return extension == ".bin" || extension == ".idx";
}

Inputs find_inputs(const DataInput& input, const std::string& key) {
  Inputs inputs;
  const fs::path whole = token_prefix(input.path);
  if (is_pair(whole)) {
    inputs.prefixes.push_back(whole);
    return inputs;
  }
  std::error_code error;
  TRIREME_USER_CHECK(
      !fs::is_directory(input.path, error), kData,
      fmt::format("name its files, e.g. \"{}\"", (fs::path(input.path) / "**/*.txt").string()),
      "{}: \"{}\" is a folder", key, input.path);
  std::set<fs::path> prefixes;
  for (const fs::path& path : expand_glob(input.path)) {
    if (is_pair_file(path)) {
      prefixes.insert(token_prefix(path));
    } else {
      inputs.texts.push_back(path);
    }
  }
  inputs.prefixes.assign(prefixes.begin(), prefixes.end());
  TRIREME_USER_CHECK(!inputs.prefixes.empty() || !inputs.texts.empty(), kData,
                     "check the path; it is taken from the working directory",
                     "{}: no file matches \"{}\"", key, input.path);
  return inputs;
}

/// A name for the tokenized form of `texts` that changes when any of them, the tokenizer or the
/// format does.
std::string cache_name(const std::vector<fs::path>& texts, const PrepareOptions& options,
                       const Tokenizer& tokenizer) {
  std::string key = "1\n" + tokenizer.fingerprint() + "\n" + options.format.jsonl_field + "\n" +
                    options.format.separator + "\n";
  if (options.chat != nullptr) key += "answers\n" + options.chat->fingerprint() + "\n";
  for (const fs::path& path : texts) {
    std::error_code error;
    const auto size = fs::file_size(path, error);
    const auto time = fs::last_write_time(path, error).time_since_epoch().count();
    key += fmt::format("{}\n{} {}\n", fs::absolute(path, error).string(), size, time);
  }
  return "tokens-" + hash_text(xxh3(std::as_bytes(std::span(key))));
}

class Opener {
 public:
  Opener(const DataOptions& options, const Tokenizer* tokenizer)
      : options_(options), tokenizer_(tokenizer) {
    TRIREME_USER_CHECK(options.seq_len >= 1, kConfig, "set data.seq_len to 1 or more",
                       "data.seq_len = {}", options.seq_len);
    if (tokenizer != nullptr) {
      byte_lengths_ = std::make_shared<const ByteLengths>(byte_lengths_of(*tokenizer));
    }
  }

  /// The data sets of every entry.
  std::vector<std::vector<std::shared_ptr<const IndexedDataset>>> open(
      const std::vector<DataInput>& entries, const std::string& key) {
    std::vector<std::vector<std::shared_ptr<const IndexedDataset>>> all;
    for (const DataInput& entry : entries) {
      const Inputs inputs = find_inputs(entry, key);
      auto& datasets = all.emplace_back();
      for (const fs::path& prefix : inputs.prefixes) datasets.push_back(open_prefix(prefix));
      if (!inputs.texts.empty()) datasets.push_back(tokenized(inputs.texts, entry, key));
    }
    return all;
  }

  std::shared_ptr<const Dataset> dataset(std::vector<Dataset::Part> parts) const {
    return std::make_shared<const Dataset>(std::move(parts), options_.seq_len, options_.packing,
                                           options_.seed, byte_lengths_);
  }

 private:
  std::shared_ptr<const IndexedDataset> open_prefix(const fs::path& prefix) {
    auto& dataset = opened_[fs::absolute(prefix).lexically_normal()];
    if (!dataset) dataset = std::make_shared<const IndexedDataset>(prefix, options_.mask_answers);
    return dataset;
  }

  std::shared_ptr<const IndexedDataset> tokenized(const std::vector<fs::path>& texts,
                                                  const DataInput& entry, const std::string& key) {
    TRIREME_USER_CHECK(tokenizer_ != nullptr, kConfig,
                       "set tokenizer.path to a tokenizer.json or \"bytes\"",
                       "{}: \"{}\" is text, but there is no tokenizer", key, entry.path);
    TRIREME_USER_CHECK(!options_.cache.empty(), kConfig, "run `trireme data prepare` on it first",
                       "{}: \"{}\" is text, and there is no folder for its tokens", key,
                       entry.path);
    TRIREME_USER_CHECK(!options_.mask_answers || options_.chat != nullptr, kConfig,
                       "put the model's chat_template.jinja beside tokenizer.json, or name one in "
                       "data.chat_template",
                       "{}: \"{}\" are conversations, but the tokenizer has no chat template", key,
                       entry.path);
    PrepareOptions prepare_options;
    prepare_options.format = {options_.jsonl_field, options_.separator, options_.mask_answers};
    if (options_.mask_answers) prepare_options.chat = options_.chat;
    prepare_options.num_threads = options_.num_threads;
    const fs::path prefix = options_.cache / cache_name(texts, prepare_options, *tokenizer_);
    if (!is_pair(prefix)) {
      log::info("tokenizing {} files of \"{}\"", texts.size(), entry.path);
      try {
        const PrepareResult result = prepare(texts, *tokenizer_, prefix, prepare_options);
        log::info("tokenized {} documents: {} tokens", result.train.documents, result.train.tokens);
        if (options_.mask_answers)
          log::info("{} of the tokens are answers, and predicted", result.train.predicted);
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kInterrupted) throw;
        throw Error(error.code(), fmt::format("{}: \"{}\": {}", key, entry.path, error.what()),
                    error.hint());
      }
    }
    return open_prefix(prefix);
  }

  const DataOptions& options_;
  const Tokenizer* tokenizer_;
  std::shared_ptr<const ByteLengths> byte_lengths_;
  std::map<fs::path, std::shared_ptr<const IndexedDataset>> opened_;
};

/// With weights every entry is a part; without, all entries are one.
bool is_weighted(const std::vector<DataInput>& entries, const std::string& key) {
  const auto given = [](const DataInput& entry) { return entry.weight != 0; };
  const auto count = std::count_if(entries.begin(), entries.end(), given);
  if (count == 0) return false;
  const auto missing = std::find_if_not(entries.begin(), entries.end(), given);
  TRIREME_USER_CHECK(missing == entries.end(), kConfig,
                     "give every entry a weight above 0, or none of them",
                     "{}: \"{}\" has no weight", key, missing->path);
  return true;
}

/// The hash that decides on which side of the split a document falls: of its ids, so equal
/// documents stay together. Of a long document the beginning and the length stand for all of it.
uint64_t document_hash(const IndexedDataset& dataset, int64_t document) {
  constexpr int64_t kBeginning = 4096;
  std::vector<int32_t> ids(
      static_cast<size_t>(std::min(kBeginning, dataset.document_length(document))));
  dataset.read(document, 0, ids);
  return mix(xxh3(std::as_bytes(std::span(ids))),
             static_cast<uint64_t>(dataset.document_length(document)));
}

using DatasetsByEntry = std::vector<std::vector<std::shared_ptr<const IndexedDataset>>>;

struct Split {
  std::vector<Dataset::Part> train;
  std::vector<Dataset::Part> valid;
};

/// Distributes the documents of every entry over parts. A fraction of 0 holds nothing out.
Split split_documents(const std::vector<DataInput>& entries, const DatasetsByEntry& datasets,
                      const std::string& key, double fraction) {
  const bool weighted = is_weighted(entries, key);
  Split split;
  std::vector<std::shared_ptr<TokenStream>> train;
  std::vector<std::shared_ptr<TokenStream>> valid;
  for (size_t e = 0; e < entries.size(); ++e) {
    if (e == 0 || weighted) {
      train.push_back(std::make_shared<TokenStream>());
      valid.push_back(std::make_shared<TokenStream>());
      const std::string name =
          weighted || entries.size() == 1 ? fmt::format("{}: \"{}\"", key, entries[e].path) : key;
      const double weight = weighted ? entries[e].weight : 1.0;
      split.train.push_back({train.back(), weight, name});
      split.valid.push_back({valid.back(), weight, name + " (held out)"});
    }
    for (const auto& dataset : datasets[e]) {
      if (fraction == 0) {
        train.back()->add_all(dataset);
        continue;
      }
      for (int64_t d = 0; d < dataset->num_documents(); ++d) {
        const bool out = held_out(document_hash(*dataset, d), fraction);
        (out ? valid : train).back()->add(dataset, d);
      }
    }
  }
  // A small entry of a blend may hold nothing out; validation needs one that does.
  std::erase_if(split.valid,
                [](const Dataset::Part& part) { return part.stream->num_tokens() < 2; });
  return split;
}

void warn_of_overlap(const DatasetsByEntry& train, const DatasetsByEntry& valid) {
  for (const auto& held : valid) {
    for (const auto& dataset : held) {
      for (const auto& trained : train) {
        if (std::find(trained.begin(), trained.end(), dataset) != trained.end()) {
          log::warning_once(
              dataset->prefix().string(),
              "the validation data " + dataset->prefix().string() + " is also trained on");
        }
      }
    }
  }
}

}  // namespace

DataPair open_data(const DataOptions& options, const Tokenizer* tokenizer) {
  TRIREME_USER_CHECK(!options.train.empty(), kConfig,
                     "name text, .jsonl or .bin/.idx files in data.train", "data.train is empty");
  const double fraction = options.valid_fraction;
  TRIREME_USER_CHECK(fraction >= 0 && fraction < 1, kConfig, "give a part of one, e.g. 0.01",
                     "data.valid_fraction = {}", fraction);
  TRIREME_USER_CHECK(fraction == 0 || options.valid.empty(), kConfig, "give one of them",
                     "data.valid and data.valid_fraction are both given");
  Opener opener(options, tokenizer);
  const DatasetsByEntry train = opener.open(options.train, "data.train");
  Split split = split_documents(options.train, train, "data.train", fraction);
  DataPair pair;
  pair.train = opener.dataset(std::move(split.train));
  if (fraction > 0) {
    TRIREME_USER_CHECK(!split.valid.empty(), kData,
                       "raise it, give more documents, or name files in data.valid",
                       "data.valid_fraction = {} holds out none of {} documents", fraction,
                       pair.train->num_documents());
    pair.valid = opener.dataset(std::move(split.valid));
  } else if (!options.valid.empty()) {
    const DatasetsByEntry valid = opener.open(options.valid, "data.valid");
    warn_of_overlap(train, valid);
    pair.valid = opener.dataset(split_documents(options.valid, valid, "data.valid", 0).train);
  }
  return pair;
}

std::shared_ptr<const Dataset> open_inputs(const std::vector<DataInput>& inputs,
                                           const DataOptions& options, const Tokenizer* tokenizer) {
  TRIREME_USER_CHECK(!inputs.empty(), kConfig, "name text, .jsonl or .bin/.idx files",
                     "no data is named");
  Opener opener(options, tokenizer);
  const DatasetsByEntry datasets = opener.open(inputs, "data");
  return opener.dataset(split_documents(inputs, datasets, "data", 0).train);
}

}  // namespace trireme::data
