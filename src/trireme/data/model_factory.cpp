#include "trireme/data/model_factory.h"

#include "trireme/base/error.h"
#include "trireme/data/bpe.h"
#include "trireme/data/char_bpe.h"
#include "trireme/data/unigram.h"
#include "trireme/data/wordpiece.h"

namespace trireme::data {
namespace {

using ViewToId = std::unordered_map<std::string_view, int32_t>;

std::vector<BpeMerge> read_merges(const TokenizerFile& file, const ViewToId& ids,
                                  const std::string& origin) {
  std::vector<BpeMerge> merges;
  merges.reserve(file.merges.size());
  std::string merged;
  for (const auto& [left, right] : file.merges) {
    const auto find = [&](std::string_view token) {
      const auto it = ids.find(token);
      TRIREME_USER_CHECK(it != ids.end(), kData, "the file is damaged",
                         "{}: model: merge '{} {}': '{}' is not in the vocabulary", origin, left,
                         right, token);
      return it->second;
    };
    merged.assign(left).append(right);
    merges.push_back({find(left), find(right), find(merged)});
  }
  return merges;
}

std::unique_ptr<TokenModel> make_bpe(const TokenizerFile& file, bool byte_level,
                                     const std::string& origin) {
  ViewToId ids;
  ids.reserve(file.vocab.size());
  for (const auto& [token, id] : file.vocab) ids.emplace(token, id);
  const std::vector<BpeMerge> merges = read_merges(file, ids, origin);
  if (!byte_level) {
    return std::make_unique<CharBpe>(file.vocab, merges,
                                     CharBpeOptions{file.unknown_token, file.fuse_unknown,
                                                    file.byte_fallback, file.ignore_merges});
  }
  std::vector<int32_t> byte_ids(256, -1);
  bool complete = true;
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    const std::string token = bytes_to_token(std::string_view(&byte, 1));
    const auto it = ids.find(token);
    if (it != ids.end()) byte_ids[static_cast<size_t>(b)] = it->second;
    complete = complete && it != ids.end();
  }
  const bool has_unknown = file.unknown_token.has_value() && !file.unknown_token->empty();
  TRIREME_USER_CHECK(complete || !(has_unknown || file.byte_fallback), kData,
                     "train with the whole byte alphabet",
                     "{}: ByteLevel and {} with a vocabulary that lacks some of the 256 bytes is "
                     "not supported",
                     origin, has_unknown ? "unk_token" : "byte_fallback");
  StringToId whole;
  if (file.ignore_merges) {
    for (const auto& [token, id] : file.vocab) {
      if (const auto bytes = token_to_bytes(token)) whole.emplace(*bytes, id);
    }
  }
  return std::make_unique<ByteBpe>(byte_ids, merges, std::move(whole));
}

}  // namespace

std::unique_ptr<TokenModel> make_token_model(const TokenizerFile& file, bool byte_level,
                                             const std::string& origin) {
  TRIREME_USER_CHECK(file.model == ModelKind::kBpe || !byte_level, kData, "ByteLevel goes with BPE",
                     "{}: pre_tokenizer ByteLevel with a model other than BPE is not supported",
                     origin);
  switch (file.model) {
    case ModelKind::kUnigram:
      return std::make_unique<Unigram>(file.vocab, file.scores, file.unknown_id,
                                       file.byte_fallback);
    case ModelKind::kWordPiece:
      return std::make_unique<WordPiece>(
          file.vocab, WordPieceOptions{file.unknown_token.value_or(""), file.continuing_prefix,
                                       file.max_word_characters});
    case ModelKind::kBpe:
      break;
  }
  return make_bpe(file, byte_level, origin);
}

}  // namespace trireme::data
