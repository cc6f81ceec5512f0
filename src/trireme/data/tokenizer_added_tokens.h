// Tokens that are found in the text before it is cut into pieces: "<|endoftext|>" and whatever a
// user added.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::data {

/// An entry of added_tokens in a tokenizer.json.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      ///< left out when decoding for people
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< takes the white space after it along
  bool normalized = false;   ///< looked for in the normalized text
};

/// Finds added tokens, leftmost first and the longest where several start. Thread-safety: const
/// access from any thread.
class AddedTokenMatcher {
 public:
  /// Keeps copies of the tokens; empty contents are ignored.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  /// Calls visit(token or nullptr, begin, end) for the parts of `text` in order: a match, with the
  /// white space it takes along, or the text between. With `skip_special`, special tokens are text.
  template <typename Visit>
  void split(std::string_view text, bool skip_special, const Visit& visit) const {
    size_t done = 0;
    size_t at = 0;
    Match match;
    while (find(text, at, match)) {
      at = match.end;
      const AddedToken& token = *match.token;
      if ((skip_special && token.special) || !extend(text, match)) continue;
      // Only lstrip minds what the token before took along: so it is in the `tokenizers` library.
      const size_t begin = token.lstrip && match.begin < done ? done : match.begin;
      if (done < begin) visit(static_cast<const AddedToken*>(nullptr), done, begin);
      if (begin < match.end) visit(&token, begin, match.end);
      done = match.end;
    }
    if (done < text.size()) visit(static_cast<const AddedToken*>(nullptr), done, text.size());
  }

 private:
  struct Match {
    const AddedToken* token = nullptr;
    size_t begin = 0;
    size_t end = 0;
  };
  struct Node {
    std::vector<std::pair<unsigned char, uint32_t>> children;
    int32_t token = -1;
  };
  bool find(std::string_view text, size_t from, Match& match) const;
  /// Applies single_word (false: no match), lstrip and rstrip.
  static bool extend(std::string_view text, Match& match);

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  bool starts_[256] = {};
};

}  // namespace trireme::data
