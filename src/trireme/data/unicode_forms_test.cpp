#include "trireme/data/unicode_forms.h"

#include <gtest/gtest.h>

#include "trireme/data/aligned_text.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

struct NfcCase {
  const char* source;
  const char* wanted;
};

TEST(Nfc, ComposesAsAnnex15Says) {
  const NfcCase cases[] = {
      {"plain", "plain"},
      {"e\u0301", "\u00e9"},
      {"\u212b", "\u00c5"},              // singleton: ANGSTROM SIGN
      {"\u1e9b\u0323", "\u1e9b\u0323"},  // annex 15, figure 6
      {"s\u0323\u0307", "\u1e69"},       // figure 5: both orders give one character
      {"s\u0307\u0323", "\u1e69"},
      {"\u1e0b\u0323", "\u1e0d\u0307"},  // figure 5: d with dot above, dot below
      {"\u0958", "\u0915\u093c"},        // composition exclusion
      {"\u1112\u1161\u11ab", "\ud55c"},  // Hangul
      {"\uac00\u11a8", "\uac01"},
      {"\u304b\u3099", "\u304c"},
      {"x\u0301y", "x\u0301y"},           // no composite exists
      {"a\u0334\u0301", "\u00e1\u0334"},  // a mark of lower class does not block
      {"a\u0301\u0301", "\u00e1\u0301"},
  };
  for (const auto& test : cases)
    EXPECT_EQ(to_normal_form(test.source, NormalForm::kNfc), test.wanted) << test.source;
}

TEST(NormalForms, DecomposeAsAnnex15Says) {
  // Annex 15, figures 3 to 6, and table 1.
  EXPECT_EQ(to_normal_form("\u1e69", NormalForm::kNfd), "s\u0323\u0307");
  EXPECT_EQ(to_normal_form("\ud55c", NormalForm::kNfd), "\u1112\u1161\u11ab");
  EXPECT_EQ(to_normal_form("\ufb01", NormalForm::kNfd), "\ufb01");
  EXPECT_EQ(to_normal_form("\ufb01", NormalForm::kNfkd), "fi");
  EXPECT_EQ(to_normal_form("\u1e9b\u0323", NormalForm::kNfkc), "\u1e69");
  EXPECT_EQ(to_normal_form("2\u2075", NormalForm::kNfkc), "25");
}

std::vector<uint32_t> sources(std::string text, NormalForm form) {
  AlignedText aligned = AlignedText::with_map(std::move(text), 0);
  if (!is_settled(aligned.text(), form)) aligned.transform(normal_form(aligned.text(), form));
  std::vector<uint32_t> result;
  for (size_t at = 0; at < aligned.text().size();) {
    result.push_back(aligned.source(at, at + 1).begin);
    next_code_point(aligned.text(), at);
  }
  return result;
}

TEST(NormalForms, MapCharactersToTheSource) {
  EXPECT_TRUE(is_settled("unchanged \u00e9", NormalForm::kNfc));
  EXPECT_EQ(sources("xe\u0301y", NormalForm::kNfc), (std::vector<uint32_t>{0, 1, 3}));
  // One character becomes two: both stem from it.
  EXPECT_EQ(sources("a\u0958z", NormalForm::kNfc), (std::vector<uint32_t>{0, 1, 1, 2}));
  EXPECT_EQ(sources("a\ufb01z", NormalForm::kNfkd), (std::vector<uint32_t>{0, 1, 1, 2}));
}

TEST(UnicodeSets, WordCharactersFollowUts18) {
  for (const uint32_t c :
       {uint32_t{'a'}, uint32_t{'_'}, uint32_t{'5'}, 0x0301u, 0x200Du, 0x24B6u, 0x203Fu}) {
    EXPECT_TRUE(word_characters().contains(c)) << c;
  }
  for (const uint32_t c : {uint32_t{'-'}, uint32_t{' '}, 0x00BDu, 0x1F600u})
    EXPECT_FALSE(word_characters().contains(c)) << c;
}

TEST(UnicodeSets, LowerCaseIsThatOfUnicodeData) {
  EXPECT_EQ(lower_case('Z'), uint32_t{'z'});
  EXPECT_EQ(lower_case(0xC0), 0xE0u);
  EXPECT_EQ(lower_case(0xD7), 0xD7u);
  EXPECT_EQ(lower_case(0x100), 0x101u);
  EXPECT_EQ(lower_case(0x101), 0x101u);
  EXPECT_EQ(lower_case(0x3A9), 0x3C9u);
  EXPECT_EQ(lower_case(0x212A), uint32_t{'k'});  // KELVIN SIGN
  EXPECT_EQ(lower_case(0x10400), 0x10428u);      // DESERET
  EXPECT_EQ(lower_case(0x4E00), 0x4E00u);
}

}  // namespace
}  // namespace trireme::data
