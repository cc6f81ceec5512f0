#include "trireme/data/composed_tokenizer.h"

#include <algorithm>
#include <optional>
#include <unordered_set>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/data/aligned_text.h"
#include "trireme/data/bpe.h"
#include "trireme/data/model_factory.h"
#include "trireme/data/normalizer.h"
#include "trireme/data/pretokenizer.h"
#include "trireme/data/token_decoder.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

/// Tokens that a text has ended, and has begun, in the vocabularies people use; the first that is
/// there counts.
constexpr const char* kKnownEos[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>",
                                     "<|im_end|>",    "<|eot_id|>",      "[SEP]"};
constexpr const char* kKnownBos[] = {"<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>",
                                     "[CLS]"};

struct TokenText {
  std::string token;    ///< as the file spells it
  std::string bytes;    ///< what it decodes to amid others
  std::string decoded;  ///< what the decoder gets, if that is not the token
  bool special = false;
  bool skipped = false;  ///< when decoding for people
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

std::pair<int32_t, int32_t> spaces_at_ends(std::string_view text) {
  const auto is_space = [](uint32_t c) { return is_white_space(c) || c == byte_stand_in(' '); };
  int32_t leading = 0, trailing = 0;
  bool only_spaces = true;
  for (size_t at = 0; at < text.size();) {
    const bool space = is_space(next_code_point(text, at));
    only_spaces = only_spaces && space;
    leading += only_spaces;
    trailing = space ? trailing + 1 : 0;
  }
  return {leading, trailing};
}

class ComposedTokenizer final : public Tokenizer {
 public:
  ComposedTokenizer(TokenizerFile file, const std::string& origin, const std::string& bos,
                    const std::string& eos)
      : file_(std::move(file)),
        normalizer_(file_.normalizer, origin),
        pretokenizer_(file_.pre_tokenizer, origin),
        decoder_(file_.decoder, origin),
        model_(make_token_model(file_, pretokenizer_.is_byte_level(), origin)),
        matcher_(tokens_by(false, origin)),
        normalized_matcher_(tokens_by(true, origin)) {
    build_vocabulary(origin);
    choose_ends(origin, bos, eos);
    for (const PostStep& step : file_.post_steps)
      trims_ = trims_ || step.kind == PostStep::Kind::kTrimOffsets;
    splittable_ = may_be_split();
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

  std::unique_ptr<DecodingStream> start_decoding(bool skip_special) const override {
    class Stream final : public DecodingStream {
     public:
      Stream(const ComposedTokenizer& tokenizer, bool skip_special)
          : tokenizer_(tokenizer), skip_special_(skip_special), stream_(tokenizer.decoder_) {}
      std::string feed(int32_t id) override {
        if (const TokenText* token = tokenizer_.to_decode(id, skip_special_))
          stream_.feed(token->decoded.empty() ? token->token : token->decoded);
        return stream_.take();
      }
      std::string finish() override {
        stream_.finish();
        return stream_.take();
      }

     private:
      const ComposedTokenizer& tokenizer_;
      bool skip_special_;
      TokenDecoder::Stream stream_;
    };
    return std::make_unique<Stream>(*this, skip_special);
  }

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    if (decoder_.joins_bytes()) {  // the way of most
      std::string bytes;
      for (const int32_t id : ids) {
        if (const TokenText* token = to_decode(id, skip_special)) bytes += token->bytes;
      }
      return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
    }
    TokenDecoder::Stream stream(decoder_);
    for (const int32_t id : ids) {
      if (const TokenText* token = to_decode(id, skip_special))
        stream.feed(token->decoded.empty() ? token->token : token->decoded);
    }
    stream.finish();
    return stream.take();
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

  const TokenText* to_decode(int32_t id, bool skip_special) const {
    if (!known(id)) return nullptr;
    const TokenText& token = tokens_[static_cast<size_t>(id)];
    return skip_special && token.skipped ? nullptr : &token;
  }

  /// Added tokens that are looked for before the normalizer, or in what it makes of the text.
  std::vector<AddedToken> tokens_by(bool normalized, const std::string& origin) const {
    std::vector<AddedToken> tokens;
    std::unordered_set<std::string> seen;
    for (AddedToken token : file_.added_tokens) {
      if (token.normalized != normalized) continue;
      const std::string written = token.content;
      if (normalized) token.content = normalizer_.normalized(token.content);
      TRIREME_USER_CHECK(!token.content.empty() && seen.insert(token.content).second, kData,
                         "turn off 'normalized' for the token, or remove it",
                         "{}: added_tokens: nothing is left of '{}' after the normalizer, or what "
                         "is left of another token",
                         origin, written);
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  void set_token(int32_t id, const std::string& token, bool special, std::string decoded = "") {
    TokenText& entry = tokens_[static_cast<size_t>(id)];
    std::string bytes = decoder_.bytes_of(decoded.empty() ? token : decoded);
    entry = {token, std::move(bytes), std::move(decoded), special, false, true};
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
    token_ids_.reserve(count);
    std::unordered_set<std::string_view> special;
    for (const auto& [token, id] : file_.vocab) set_token(id, token, false);
    for (const AddedToken& token : file_.added_tokens) {
      std::string decoded;
      if (token.normalized) {
        decoded = normalizer_.normalized(token.content);
        if (decoded == token.content) decoded.clear();
      }
      set_token(token.id, token.content, token.special, std::move(decoded));
      if (token.special) special.insert(token.content);
    }
    // The library looks at what is to be decoded, not at the id.
    for (TokenText& token : tokens_)
      token.skipped =
          !special.empty() && special.contains(token.decoded.empty() ? token.token : token.decoded);
    for (const PostStep& step : file_.post_steps) {
      for (const auto* ids : {&step.before, &step.after}) {
        for (const int32_t id : *ids) {
          TRIREME_USER_CHECK(known(id), kData, "",
                             "{}: post_processor adds id {}, which no token has", origin, id);
        }
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

  /// See Tokenizer::splittable(); docs/formats/tokenizer.md has the cases.
  bool may_be_split() const {
    // What spaces have become where nothing else happens to them.
    const std::string& replacement = normalizer_.space_replacement().empty()
                                         ? pretokenizer_.replacement()
                                         : normalizer_.space_replacement();
    for (const AddedToken& token : file_.added_tokens) {
      // A cut before a space must not fall inside a token or into the white space that a token
      // takes along.
      const std::string content =
          token.normalized ? normalizer_.normalized(token.content) : token.content;
      if (token.rstrip || token.content.find(' ') != std::string::npos ||
          content.find(' ') != std::string::npos)
        return false;
      if (!normalizer_.space_replacement().empty() &&
          content.find(replacement) != std::string::npos)
        return false;
    }
    if (normalizer_.is_local() && pretokenizer_.splittable()) return true;
    // Or text stays whole, and the model ends a token there.
    if (!pretokenizer_.keeps_whole() || replacement.empty()) return false;
    const bool replaced_by_normalizer = !normalizer_.space_replacement().empty();
    if (replaced_by_normalizer ? !pretokenizer_.replacement().empty() : !normalizer_.is_local())
      return false;
    size_t at = 0;
    const uint32_t next = next_code_point(replacement, at);
    return next != ' ' && model_->parts_before(next);
  }

  void encode_into(std::string_view text, const EncodeOptions& options, Output& output) const {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = replace_invalid_utf8(text);
      text = repaired;
    }
    output.ids.reserve(text.size() / 3);
    auto cache = caches_.take();
    size_t counted = 0;
    int64_t first = 0;  // characters before `counted`
    const auto index_of = [&](size_t at) {
      if (at < counted) counted = static_cast<size_t>(first = 0);
      first += count_characters(text.substr(counted, at - counted));
      counted = at;
      return first;
    };
    matcher_.split(text, !options.parse_special,
                   [&](const AddedToken* token, size_t begin, size_t end) {
                     const int64_t index = output.with_offsets ? index_of(begin) : 0;
                     const std::string_view part = text.substr(begin, end - begin);
                     if (token != nullptr) {
                       const CharRange range{index, output.with_offsets ? index_of(end) : 0};
                       add_token(*token, part, range, output);
                     } else {
                       encode_section(part, begin == 0, index, options, *cache, output);
                     }
                   });
    caches_.give_back(std::move(cache));
    post_process(options, output);
  }

  void add_token(const AddedToken& token, std::string_view text, CharRange offsets,
                 Output& output) const {
    output.ids.push_back(token.id);
    if (!output.with_offsets) return;
    output.offsets.push_back(offsets);
    if (trims_) output.spaces.push_back(spaces_at_ends(text));
  }

  /// Text between tokens that are looked for before normalization.
  void encode_section(std::string_view part, bool is_start, int64_t first,
                      const EncodeOptions& options, PieceCache& cache, Output& output) const {
    const bool with_map =
        output.with_offsets || (is_start && pretokenizer_.asks_for_source(!normalizer_.empty()));
    AlignedText text = with_map ? AlignedText::with_map(std::string(part), first)
                                : AlignedText::without_map(std::string(part), is_start);
    normalizer_.apply(text);
    if (normalized_matcher_.empty()) {
      encode_plain(text, cache, output);
      return;
    }
    normalized_matcher_.split(text.text(), !options.parse_special,
                              [&](const AddedToken* token, size_t begin, size_t end) {
                                if (token != nullptr) {
                                  CharRange range;
                                  if (output.with_offsets) {
                                    const SourceRange source = text.source(begin, end);
                                    range = {source.begin, source.end};
                                  }
                                  add_token(*token, text.text().substr(begin, end - begin), range,
                                            output);
                                } else {
                                  AlignedText plain = text.part({begin, end});
                                  encode_plain(plain, cache, output);
                                }
                              });
  }

  /// Text without added tokens.
  void encode_plain(AlignedText& text, PieceCache& cache, Output& output) const {
    pretokenizer_.for_each_piece(text, [&](TextPiece piece) {
      if (output.with_offsets) {
        encode_piece_with_offsets(text, piece, output);
        return;
      }
      const std::string_view bytes = text.text().substr(piece.begin, piece.end - piece.begin);
      if (bytes.size() <= PieceCache::kMaxPieceBytes || !model_->has_parts()) {
        encode_piece(bytes, cache, output.ids);
        return;
      }
      for (size_t at = 0; at < bytes.size();) {
        const size_t end = model_->part_end(bytes, at);
        encode_piece(bytes.substr(at, end - at), cache, output.ids);
        at = end;
      }
    });
  }

  void encode_piece(std::string_view piece, PieceCache& cache, std::vector<int32_t>& ids) const {
    if (piece.size() > PieceCache::kMaxPieceBytes) {
      model_->encode(piece, ids, nullptr);
      return;
    }
    PieceCache::Slot& slot = cache.slot(piece);
    if (!PieceCache::matches(slot, piece)) {
      const size_t before = ids.size();
      model_->encode(piece, ids, nullptr);
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

  void encode_piece_with_offsets(const AlignedText& text, TextPiece piece, Output& output) const {
    const std::string_view bytes = text.text().substr(piece.begin, piece.end - piece.begin);
    static thread_local std::vector<TokenSpan> spans;
    spans.clear();
    const size_t first = output.ids.size();
    for (size_t at = 0; at < bytes.size();) {
      const size_t end = model_->has_parts() ? model_->part_end(bytes, at) : bytes.size();
      const size_t before = spans.size();
      model_->encode(bytes.substr(at, end - at), output.ids, &spans);
      // Spans follow each other through the piece: those of dropped text are missing.
      const uint32_t shift = before == 0 ? 0 : spans[before - 1].end;
      for (size_t i = before; i < spans.size(); ++i)
        spans[i] = {spans[i].begin + shift, spans[i].end + shift};
      at = end;
    }
    for (size_t i = 0; i < spans.size(); ++i) {
      const SourceRange source =
          text.source(piece.begin + spans[i].begin, piece.begin + spans[i].end);
      output.offsets.push_back({source.begin, source.end});
      if (!trims_) continue;
      const int32_t id = output.ids[first + i];
      const std::string_view own = bytes.substr(spans[i].begin, spans[i].end - spans[i].begin);
      output.spaces.push_back(spaces_at_ends(
          model_->is_spelled_as(id, own) ? own : tokens_[static_cast<size_t>(id)].token));
    }
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
        if (!trims_) continue;
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
  Normalizer normalizer_;
  Pretokenizer pretokenizer_;
  TokenDecoder decoder_;
  std::unique_ptr<TokenModel> model_;
  AddedTokenMatcher matcher_;
  AddedTokenMatcher normalized_matcher_;
  std::vector<TokenText> tokens_;  ///< by id
  StringToId token_ids_;
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
  bool trims_ = false;
  bool splittable_ = false;
  mutable PieceCachePool caches_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_composed_tokenizer(TokenizerFile file, const std::string& origin,
                                                   const std::string& bos, const std::string& eos) {
  return std::make_unique<ComposedTokenizer>(std::move(file), origin, bos, eos);
}

}  // namespace trireme::data
