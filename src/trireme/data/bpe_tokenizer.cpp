#include "trireme/data/bpe_tokenizer.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/data/bpe.h"
#include "trireme/data/pretokenizer.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

/// Tokens that a text has ended, and has begun, in the vocabularies people use; the first that is
/// there counts.
constexpr const char* kKnownEos[] = {"<|endoftext|>", "<|end_of_text|>", "</s>",
                                     "<eos>",         "<|im_end|>",      "<|eot_id|>"};
constexpr const char* kKnownBos[] = {"<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"};

struct TokenBytes {
  std::string token;  ///< as the file spells it
  std::string bytes;
  bool special = false;
  bool present = false;
};

/// The ids of one call and, if asked for, what their offsets need.
struct Output {
  std::vector<int32_t> ids;
  bool with_offsets = false;
  std::vector<CharRange> offsets;
  /// White space characters at the ends of each token's text, which post-processing may trim.
  std::vector<std::pair<int32_t, int32_t>> spaces;
};

/// Maps bytes of a normalized section to characters of the source.
class SourceMap {
 public:
  SourceMap(std::string_view text, const std::vector<int64_t>& source, int64_t first) {
    character_.reserve(text.size());
    int64_t index = -1;
    for (const char c : text) {
      if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) ++index;
      character_.push_back(first + (source.empty() ? index : source[static_cast<size_t>(index)]));
    }
  }
  CharRange range(size_t begin, size_t end) const {
    return {character_[begin], character_[end - 1] + 1};
  }

 private:
  std::vector<int64_t> character_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(TokenizerFile file, const std::string& origin, const std::string& bos,
               const std::string& eos)
      : file_(std::move(file)),
        pretokenizer_(file_.pre_tokenizer, origin),
        matcher_(tokens_by(false)),
        normalized_matcher_(tokens_by(true)) {
    build_vocabulary(origin);
    build_model(origin);
    choose_ends(origin, bos, eos);
    for (const AddedToken& token : file_.added_tokens) {
      // A cut before a space must not fall inside a token or into the white space that a token
      // takes along.
      if (token.rstrip || token.content.find(' ') != std::string::npos) splittable_ = false;
    }
    splittable_ = splittable_ && pretokenizer_.splittable();
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    Output output;
    encode_into(text, options, output);
    return std::move(output.ids);
  }

  Encoding encode_with_offsets(std::string_view text, const EncodeOptions& options) const override {
    Output output;
    output.with_offsets = true;
    encode_into(text, options, output);
    return {std::move(output.ids), std::move(output.offsets)};
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }

  std::optional<int32_t> token_to_id(std::string_view token) const override {
    const auto it = token_ids_.find(token);
    return it == token_ids_.end() ? std::nullopt : std::optional<int32_t>(it->second);
  }

  std::string id_to_token(int32_t id) const override {
    return known(id) ? tokens_[static_cast<size_t>(id)].token : "";
  }
  std::string id_to_bytes(int32_t id) const override {
    return known(id) ? tokens_[static_cast<size_t>(id)].bytes : "";
  }
  bool is_special(int32_t id) const override {
    return known(id) && tokens_[static_cast<size_t>(id)].special;
  }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  std::string to_json() const override { return write_tokenizer_file(file_); }
  bool splittable() const override { return splittable_; }

 private:
  bool known(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(tokens_.size()) &&
           tokens_[static_cast<size_t>(id)].present;
  }

  std::vector<AddedToken> tokens_by(bool normalized) const {
    std::vector<AddedToken> tokens;
    for (AddedToken token : file_.added_tokens) {
      if (token.normalized != normalized) continue;
      if (normalized && file_.nfc) token.content = normalize_nfc(token.content).text;
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  void set_token(int32_t id, const std::string& token, bool special) {
    TokenBytes& entry = tokens_[static_cast<size_t>(id)];
    entry = {token, token_to_bytes(token).value_or(token), special, true};
    token_ids_.insert_or_assign(token, id);
  }

  void build_vocabulary(const std::string& origin) {
    int32_t largest = -1;
    for (const auto& [token, id] : file_.vocab) largest = std::max(largest, id);
    for (const AddedToken& token : file_.added_tokens) largest = std::max(largest, token.id);
    const size_t count = file_.vocab.size() + file_.added_tokens.size();
    TRIREME_USER_CHECK(largest >= 0, kData, "train one with 'trireme tokenize train'",
                       "{}: the vocabulary is empty", origin);
    TRIREME_USER_CHECK(static_cast<size_t>(largest) < 16 * count + 65536, kData,
                       "number the tokens without large gaps", "{}: {} tokens have ids up to {}",
                       origin, count, largest);
    tokens_.resize(static_cast<size_t>(largest) + 1);
    for (const auto& [token, id] : file_.vocab) set_token(id, token, false);
    for (const AddedToken& token : file_.added_tokens)
      set_token(token.id, token.content, token.special);
    for (const PostStep& step : file_.post_steps) {
      for (const auto* ids : {&step.before, &step.after}) {
        for (const int32_t id : *ids) {
          TRIREME_USER_CHECK(known(id), kData, "",
                             "{}: post_processor adds id {}, which no token has", origin, id);
        }
      }
    }
  }

  void build_model(const std::string& origin) {
    StringToId ids;
    ids.reserve(file_.vocab.size());
    for (const auto& [token, id] : file_.vocab) ids.emplace(token, id);
    std::vector<int32_t> byte_ids(256, -1);
    bool complete = true;
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      const auto it = ids.find(bytes_to_token(std::string_view(&byte, 1)));
      if (it != ids.end()) byte_ids[static_cast<size_t>(b)] = it->second;
      complete = complete && it != ids.end();
    }
    TRIREME_USER_CHECK(
        complete || !file_.has_unknown_token, kData, "train with the whole byte alphabet",
        "{}: unk_token with a vocabulary that lacks some of the 256 bytes is not supported",
        origin);
    std::vector<BpeMerge> merges;
    merges.reserve(file_.merges.size());
    for (const auto& [left, right] : file_.merges) {
      const auto find = [&](const std::string& token) {
        const auto it = ids.find(token);
        TRIREME_USER_CHECK(it != ids.end(), kData, "the file is damaged",
                           "{}: model: merge '{} {}': '{}' is not in the vocabulary", origin, left,
                           right, token);
        return it->second;
      };
      merges.push_back({find(left), find(right), find(left + right)});
    }
    has_all_bytes_ = complete;
    model_ = std::make_unique<BpeModel>(byte_ids, merges);
    if (file_.ignore_merges) {
      for (const auto& [token, id] : file_.vocab) {
        if (const auto bytes = token_to_bytes(token)) whole_pieces_.emplace(*bytes, id);
      }
    }
  }

  void choose_ends(const std::string& origin, const std::string& bos, const std::string& eos) {
    const auto named = [&](const std::string& token, const char* what) -> std::optional<int32_t> {
      if (token.empty()) return std::nullopt;
      const auto id = token_to_id(token);
      if (!id) {
        log::warning(
            "{}: tokenizer_config.json names {} '{}', which is not in the vocabulary; it is "
            "ignored",
            origin, what, token);
      }
      return id;
    };
    const auto first_special = [&](std::span<const char* const> names) -> std::optional<int32_t> {
      for (const char* name : names) {
        const auto id = token_to_id(name);
        if (id && is_special(*id)) return id;
      }
      return std::nullopt;
    };
    bos_ = named(bos, "bos_token");
    eos_ = named(eos, "eos_token");
    if (!bos_) bos_ = first_special(kKnownBos);
    if (!eos_) eos_ = first_special(kKnownEos);
  }

  void encode_into(std::string_view text, const EncodeOptions& options, Output& output) const {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = replace_invalid_utf8(text);
      text = repaired;
    }
    output.ids.reserve(text.size() / 3);
    auto cache = caches_.take();
    int64_t first = 0;  // index of the section's first character
    matcher_.split(
        text, !options.parse_special, [&](const AddedToken* token, size_t begin, size_t end) {
          const std::string_view part = text.substr(begin, end - begin);
          if (token != nullptr) {
            add_token(*token, part,
                      {first, output.with_offsets ? first + count_characters(part) : 0}, output);
          } else {
            encode_section(part, first, options, *cache, output);
          }
          if (output.with_offsets) first += count_characters(part);
        });
    caches_.give_back(std::move(cache));
    post_process(options, output);
  }

  void add_token(const AddedToken& token, std::string_view text, CharRange offsets,
                 Output& output) const {
    output.ids.push_back(token.id);
    if (!output.with_offsets) return;
    output.offsets.push_back(offsets);
    output.spaces.push_back(spaces_of_text(text));
  }

  /// Text between tokens that are looked for before normalization.
  void encode_section(std::string_view text, int64_t first, const EncodeOptions& options,
                      PieceCache& cache, Output& output) const {
    NormalizedText normalized;
    if (file_.nfc) {
      normalized = normalize_nfc(text);
      text = normalized.text;
    }
    std::optional<SourceMap> map;
    if (output.with_offsets) map.emplace(text, normalized.source, first);
    if (normalized_matcher_.empty()) {
      encode_plain(text, 0, map ? &*map : nullptr, cache, output);
      return;
    }
    normalized_matcher_.split(
        text, !options.parse_special, [&](const AddedToken* token, size_t begin, size_t end) {
          const std::string_view part = text.substr(begin, end - begin);
          if (token != nullptr) {
            add_token(*token, part, map ? map->range(begin, end) : CharRange{}, output);
          } else {
            encode_plain(part, begin, map ? &*map : nullptr, cache, output);
          }
        });
  }

  /// Text without added tokens; it starts at byte `at` of the section that `map` is of.
  void encode_plain(std::string_view text, size_t at, const SourceMap* map, PieceCache& cache,
                    Output& output) const {
    std::string prefixed;
    const bool prefix = pretokenizer_.add_prefix_space() && !text.empty() && text[0] != ' ';
    if (prefix) {
      prefixed.reserve(text.size() + 1);
      prefixed += ' ';
      prefixed += text;
      text = prefixed;
    }
    pretokenizer_.for_each_piece(text, [&](TextPiece piece) {
      const std::string_view bytes = text.substr(piece.begin, piece.end - piece.begin);
      if (map == nullptr) {
        encode_piece(bytes, cache, output.ids);
      } else {
        encode_piece_with_offsets(bytes, piece.begin, prefix, at, *map, output);
      }
    });
  }

  void encode_piece(std::string_view piece, PieceCache& cache, std::vector<int32_t>& ids) const {
    if (piece.size() > PieceCache::kMaxPieceBytes) {
      encode_uncached(piece, ids, nullptr);
      return;
    }
    PieceCache::Slot& slot = cache.slot(piece);
    if (!PieceCache::matches(slot, piece)) {
      const size_t before = ids.size();
      encode_uncached(piece, ids, nullptr);
      const size_t count = ids.size() - before;
      if (count > PieceCache::kMaxIds) return;
      slot.piece_bytes = static_cast<uint8_t>(piece.size());
      slot.num_ids = static_cast<uint8_t>(count);
      std::copy(piece.begin(), piece.end(), slot.piece);
      std::copy(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), slot.ids);
      return;
    }
    ids.insert(ids.end(), slot.ids, slot.ids + slot.num_ids);
  }

  void encode_uncached(std::string_view piece, std::vector<int32_t>& ids,
                       std::vector<uint32_t>* lengths) const {
    if (file_.ignore_merges) {
      if (const auto it = whole_pieces_.find(piece); it != whole_pieces_.end()) {
        ids.push_back(it->second);
        if (lengths != nullptr) lengths->push_back(static_cast<uint32_t>(piece.size()));
        return;
      }
    }
    model_->encode(piece, ids, lengths);
  }

  void encode_piece_with_offsets(std::string_view piece, size_t begin, bool prefix, size_t at,
                                 const SourceMap& map, Output& output) const {
    std::vector<uint32_t> lengths;
    const size_t first = output.ids.size();
    encode_uncached(piece, output.ids, &lengths);
    // The space that was put before the text counts as part of its first character.
    const auto source = [&](size_t byte) {
      byte += begin;
      return map.range(at + (prefix ? byte - (byte > 0) : byte),
                       at + (prefix ? byte - (byte > 0) : byte) + 1);
    };
    const std::vector<uint32_t> spelling =
        has_all_bytes_ ? std::vector<uint32_t>() : spelling_of(piece);
    size_t done = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int32_t id = output.ids[first + i];
      const size_t length =
          has_all_bytes_ ? lengths[i] : tokens_[static_cast<size_t>(id)].token.size();
      const auto byte_at = [&](size_t place) { return has_all_bytes_ ? place : spelling[place]; };
      output.offsets.push_back(
          {source(byte_at(done)).begin, source(byte_at(done + length - 1)).end});
      output.spaces.push_back(spaces_of_token(id));
      done += length;
    }
  }

  /// For every byte of the piece as tokens spell it, the byte of the piece. Where bytes are missing from the vocabulary
  /// offsets count in the spelling, without the dropped bytes: so does the `tokenizers` library.
  static std::vector<uint32_t> spelling_of(std::string_view piece) {
    std::vector<uint32_t> owner;
    for (uint32_t i = 0; i < piece.size(); ++i) {
      owner.insert(owner.end(), bytes_to_token(piece.substr(i, 1)).size(), i);
    }
    return owner;
  }

  /// Of a vocabulary token: only the stand-in of the byte 0x20 is white space there.
  std::pair<int32_t, int32_t> spaces_of_token(int32_t id) const {
    const std::string& bytes = tokens_[static_cast<size_t>(id)].bytes;
    const size_t first = bytes.find_first_not_of(' ');
    if (first == std::string::npos)
      return {static_cast<int32_t>(bytes.size()), static_cast<int32_t>(bytes.size())};
    return {static_cast<int32_t>(first),
            static_cast<int32_t>(bytes.size() - 1 - bytes.find_last_not_of(' '))};
  }

  static std::pair<int32_t, int32_t> spaces_of_text(std::string_view text) {
    std::vector<bool> is_space;
    for (size_t at = 0; at < text.size();) {
      const uint32_t c = next_code_point(text, at);
      is_space.push_back(CharClassTable::instance()[c] == kSpaceChar || c == byte_stand_in(' '));
    }
    const auto leading = std::find(is_space.begin(), is_space.end(), false) - is_space.begin();
    const auto trailing = std::find(is_space.rbegin(), is_space.rend(), false) - is_space.rbegin();
    return {static_cast<int32_t>(leading), static_cast<int32_t>(trailing)};
  }

  void post_process(const EncodeOptions& options, Output& output) const {
    for (const PostStep& step : file_.post_steps) {
      if (step.kind == PostStep::Kind::kTrimOffsets) {
        if (output.with_offsets) trim_offsets(step.add_prefix_space, output);
      } else if (options.add_special_tokens) {
        output.ids.insert(output.ids.begin(), step.before.begin(), step.before.end());
        output.ids.insert(output.ids.end(), step.after.begin(), step.after.end());
        if (!output.with_offsets) continue;
        output.offsets.insert(output.offsets.begin(), step.before.size(), CharRange{});
        output.offsets.insert(output.offsets.end(), step.after.size(), CharRange{});
        output.spaces.insert(output.spaces.begin(), step.before.size(), {0, 0});
        output.spaces.insert(output.spaces.end(), step.after.size(), {0, 0});
      }
    }
  }

  static void trim_offsets(bool add_prefix_space, Output& output) {
    for (size_t i = 0; i < output.ids.size(); ++i) {
      auto [leading, trailing] = output.spaces[i];
      CharRange& range = output.offsets[i];
      if (leading > 0) {
        // A single space at the start may be the one that was added; more than one were read.
        if (add_prefix_space && leading == 1 && (i == 0 || range.begin == 0)) leading = 0;
        range.begin = std::min(range.begin + leading, range.end);
      }
      if (trailing > 0 && range.end >= trailing)
        range.end = std::max(range.end - trailing, range.begin);
    }
  }

  TokenizerFile file_;
  Pretokenizer pretokenizer_;
  AddedTokenMatcher matcher_;
  AddedTokenMatcher normalized_matcher_;
  std::vector<TokenBytes> tokens_;  ///< by id
  StringToId token_ids_;
  StringToId whole_pieces_;  ///< bytes of tokens, if pieces that are tokens are taken whole
  std::unique_ptr<BpeModel> model_;
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
  bool splittable_ = true;
  bool has_all_bytes_ = true;
  mutable PieceCachePool caches_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerFile file, const std::string& origin,
                                              const std::string& bos, const std::string& eos) {
  return std::make_unique<BpeTokenizer>(std::move(file), origin, bos, eos);
}

}  // namespace trireme::data
