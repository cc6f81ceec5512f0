#include "trireme/data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/data/indexed_dataset.h"
#include "trireme/data/open_dataset.h"
#include "trireme/data/prepare.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kTests = TRIREME_SOURCE_DIR "/tests/";
const std::vector<std::pair<std::string, std::string>> kSpecial = {{"bos_token", "<s>"},
                                                                   {"eos_token", "</s>"}};

ChatTemplate published(const std::string& name) {
  return ChatTemplate(read_file(kTests + "chat/templates/" + name), name, kSpecial, 0);
}

Conversation conversation(const std::string& messages) {
  return *parse_conversation("{\"messages\": " + messages + "}", "c.jsonl:1");
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "";
}

// Made by transformers (tests/goldens/make_chat_goldens.py).
TEST(ChatTemplate, WritesConversationsAsTransformersDoes) {
  const OrderedJson goldens =
      parse_ordered_json(read_file(kTests + "goldens/chat.json"), "chat.json");
  int texts = 0;
  int refused = 0;
  for (const OrderedJson& golden : goldens["cases"]) {
    const ChatTemplate chat = published(golden["template"]);
    const Conversation given{golden["messages"], golden["tools"], golden["variables"]};
    const std::string label =
        golden["template"].get<std::string>() + ": " + golden["name"].get<std::string>();
    if (golden["text"].is_null()) {
      EXPECT_NE(error_of([&] { chat.render(given, "c.jsonl:1", golden["prompt"]); }), "") << label;
      ++refused;
    } else {
      EXPECT_EQ(chat.render(given, "c.jsonl:1", golden["prompt"]).text.bytes(), golden["text"])
          << label;
      ++texts;
    }
  }
  EXPECT_GT(texts, 100);
  EXPECT_GT(refused, 20);
}

/// The text of the tokens that are to be predicted, runs of them apart by "|".
std::string predicted_text(const EncodedConversation& encoded, const Tokenizer& tokenizer) {
  std::string text;
  std::vector<int32_t> run;
  for (size_t i = 0; i <= encoded.ids.size(); ++i) {
    if (i < encoded.ids.size() && encoded.predicted[i] != 0) {
      run.push_back(encoded.ids[i]);
    } else if (!run.empty()) {
      text += (text.empty() ? "" : "|") + tokenizer.decode(run, false);
      run.clear();
    }
  }
  return text;
}

TEST(ChatTemplate, MarksAnswersAndTheEndOfTheTurn) {
  const auto qwen = load_tokenizer(kTests + "goldens/tokenizers/qwen2.tokenizer.json");
  const auto two = conversation(
      R"([{"role": "user", "content": "hello"}, {"role": "assistant", "content": " Good day. "},
          {"role": "user", "content": "bye"}, {"role": "assistant", "content": "naïve 🦜"}])");
  const auto answers = [](const ChatTemplate& chat, const Tokenizer& tokenizer,
                          const Conversation& given) {
    return predicted_text(encode_conversation(chat, tokenizer, given, "c.jsonl:1"), tokenizer);
  };
  EXPECT_EQ(answers(published("chatml.jinja"), *qwen, two),
            " Good day. <|im_end|>|naïve 🦜<|im_end|>");
  EXPECT_EQ(answers(published("chatml_generation.jinja"), *qwen, two),
            " Good day. <|im_end|>|naïve 🦜<|im_end|>");
  // What a template trims away is not there to be predicted; markup between is learned with it.
  const auto reasoning = conversation(
      R"([{"role": "user", "content": "2 + 2?"},
          {"role": "assistant", "content": "<think>\nwell\n</think>\n\nFour."}])");
  EXPECT_EQ(answers(published("qwen3.jinja"), *qwen, reasoning),
            "well\n</think>\n\nFour.<|im_end|>");
  const auto call = conversation(
      R"([{"role": "user", "content": "?"},
          {"role": "assistant", "content": "I look.", "tool_calls": [{"type": "function",
           "function": {"name": "look", "arguments": {"at": "it", "n": 3}}}]}])");
  EXPECT_EQ(
      answers(published("qwen2_5.jinja"), *qwen, call),
      "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"it\", \"n\": 3}}\n"
      "</tool_call><|im_end|>");
  // A turn that ends with the next one's header: the end is what the next begins with.
  const auto glm = load_tokenizer(kTests + "goldens/tokenizers/glm4.tokenizer.json");
  EXPECT_EQ(answers(published("glm4.jinja"), *glm, two), "Good day.<|user|>|naïve 🦜");
  // Without special tokens there is no end of the turn, and another message's text is never in it.
  const auto bytes = make_byte_tokenizer();
  EXPECT_EQ(answers(published("chatml.jinja"), *bytes, two), " Good day. |naïve 🦜");
}

TEST(ChatTemplate, ASpecialTokenBehindAnotherMessageIsNotTheEnd) {
  const auto tokenizer = make_byte_tokenizer();
  const ChatTemplate chat(
      "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}<|endoftext|>", "t", {},
      0);
  const auto given = conversation(
      R"([{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"},
          {"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}])");
  EXPECT_EQ(predicted_text(encode_conversation(chat, *tokenizer, given, "c"), *tokenizer),
            "one|two\n<|endoftext|>");
}

TEST(ChatTemplate, NamesWhatIsWrongWithALine) {
  const auto parse = [](const std::string& line) {
    return error_of([&] { parse_conversation(line, "c.jsonl:7"); });
  };
  EXPECT_EQ(parse_conversation("  \n", "c"), std::nullopt);
  EXPECT_THAT(parse("{\"messages\": ["), HasSubstr("c.jsonl:7"));
  EXPECT_THAT(parse("[1]"), HasSubstr("c.jsonl:7: not a JSON object but array"));
  EXPECT_THAT(parse("{\"text\": \"x\"}"), HasSubstr("c.jsonl:7: no key \"messages\" | write"));
  EXPECT_THAT(parse("{\"messages\": []}"), HasSubstr("not a list of messages"));
  EXPECT_THAT(parse("{\"messages\": \"x\"}"), HasSubstr("not a list of messages"));
  EXPECT_THAT(parse(R"({"messages": [{"content": "x"}]})"), HasSubstr("message 1"));
  EXPECT_THAT(parse(R"({"messages": [{"role": "user", "content": "x"}, "y"]})"),
              HasSubstr("message 2"));
  EXPECT_THAT(parse(R"({"messages": [{"role": "user"}]})"), HasSubstr("no \"content\""));
  EXPECT_THAT(
      parse(R"({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": 1})"),
      HasSubstr("chat_template_kwargs"));

  const auto bytes = make_byte_tokenizer();
  const auto encode = [&](const ChatTemplate& chat, const std::string& messages) {
    return error_of(
        [&] { encode_conversation(chat, *bytes, conversation(messages), "c.jsonl:7"); });
  };
  EXPECT_THAT(encode(published("chatml.jinja"), R"([{"role": "user", "content": "x"}])"),
              HasSubstr("c.jsonl:7: no message has the role \"assistant\""));
  EXPECT_THAT(
      encode(published("chatml.jinja"),
             R"([{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}])"),
      HasSubstr("c.jsonl:7: the conversation as the chat template writes it holds nothing"));
  EXPECT_THAT(
      encode(published("gemma.jinja"),
             R"([{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}])"),
      HasSubstr("c.jsonl:7: gemma.jinja refuses the conversation: System role not supported"));
}

class ChatFilesTest : public ::testing::Test {
 protected:
  ChatFilesTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-chat-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ChatFilesTest() override { fs::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  fs::path folder_;
};

TEST_F(ChatFilesTest, TheTemplateIsFoundBesideTheTokenizer) {
  EXPECT_EQ(load_chat_template("bytes"), nullptr);
  EXPECT_EQ(load_chat_template(folder_.string()), nullptr);
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default",
            "template": "{{ bos_token }}old"}], "bos_token": {"content": "<b>"}})");
  write("special_tokens_map.json", R"({"eos_token": "<e>", "bos_token": "<other>"})");
  const Conversation given{OrderedJson::array({{{"role", "user"}, {"content", "x"}}}), {}, {}};
  const auto text = [&](const std::string& name, const std::string& file = "") {
    return load_chat_template(name, file)->render(given, "c").text.bytes();
  };
  EXPECT_EQ(text(folder_.string()), "<b>old");
  write("chat_template.jinja", "{{ bos_token }}{{ eos_token }}");
  EXPECT_EQ(text(folder_.string()), "<b><e>");
  EXPECT_EQ(text((folder_ / "tokenizer.json").string()), "<b><e>")
      << "a file stands for its folder";
  write("mine.jinja", "{{ unk_token }}mine");
  EXPECT_EQ(text(folder_.string(), (folder_ / "mine.jinja").string()), "mine");
  write("chat_template.jinja", "a\n{% extends 'b' %}");
  EXPECT_THAT(error_of([&] { load_chat_template(folder_.string()); }),
              HasSubstr("chat_template.jinja, line 2: the statement {% extends %} is not covered"));
}

constexpr const char* kLines =
    R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}

{"messages": [{"role": "assistant", "content": "d"}]}
)";

TEST_F(ChatFilesTest, PreparedConversationsHaveAMask) {
  write("c.jsonl", kLines);
  const auto tokenizer = make_byte_tokenizer();
  PrepareOptions options;
  options.format.conversations = true;
  options.chat = std::make_shared<const ChatTemplate>(
      "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}<|endoftext|>", "t",
      kSpecial, 0);
  const auto prepared = prepare({folder_ / "c.jsonl"}, *tokenizer, folder_ / "out", options);
  EXPECT_EQ(prepared.train.documents, 2);
  EXPECT_EQ(prepared.train.tokens, 6 + 3) << "the template ends a conversation, nothing else does";
  EXPECT_EQ(prepared.train.predicted, 3 + 2);
  const IndexedDataset dataset(folder_ / "out", true);
  const auto read = [&](int64_t document) {
    std::vector<uint8_t> mask(static_cast<size_t>(dataset.document_length(document)));
    dataset.read_mask(document, 0, mask);
    return mask;
  };
  EXPECT_THAT(read(0), testing::ElementsAre(0, 0, 0, 1, 1, 1));  // u a a b c end
  EXPECT_THAT(read(1), testing::ElementsAre(0, 1, 1));           // a d end
  std::vector<uint8_t> part(2);
  dataset.read_mask(0, 2, part);
  EXPECT_THAT(part, testing::ElementsAre(0, 1));
  const Json description = parse_json(read_file(folder_ / "out.json"), "out.json");
  EXPECT_EQ(description["loss_mask"], "answers");
  EXPECT_EQ(description["predicted"], 5);

  // Text in place of the conversations: their mask goes with them.
  write("c.txt", "some text");
  prepare({folder_ / "c.txt"}, *tokenizer, folder_ / "out");
  EXPECT_FALSE(fs::exists(folder_ / "out.mask"));
  EXPECT_THAT(error_of([&] { IndexedDataset(folder_ / "out", true); }),
              HasSubstr("out has no mask"));
}

TEST_F(ChatFilesTest, WrongLinesLeaveNothingBehind) {
  write("c.jsonl",
        std::string(kLines) + "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n");
  const auto tokenizer = make_byte_tokenizer();
  PrepareOptions options;
  options.format.conversations = true;
  options.chat = std::make_shared<const ChatTemplate>(
      "{% for m in messages %}{{ m.content }}{% endfor %}", "t", kSpecial, 0);
  EXPECT_THAT(
      error_of([&] { prepare({folder_ / "c.jsonl"}, *tokenizer, folder_ / "out", options); }),
      HasSubstr("c.jsonl:4: no message has the role"));
  write("c.txt", "text");
  EXPECT_THAT(error_of([&] { prepare({folder_ / "c.txt"}, *tokenizer, folder_ / "out", options); }),
              HasSubstr("c.txt: conversations are read from JSONL"));
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_THAT(entry.path().filename().string(), testing::StartsWith("c.")) << entry.path();
}

TEST_F(ChatFilesTest, TheLossIsOnAnswersAlone) {
  write("c.jsonl", kLines);
  const auto tokenizer = make_byte_tokenizer();
  DataOptions options;
  options.train = {{(folder_ / "c.jsonl").string(), 0}};
  options.seq_len = 9;
  options.cache = folder_ / "cache";
  options.mask_answers = true;
  EXPECT_THROW(open_data(options, tokenizer.get()), Error) << "no template";
  const auto chat = [](const std::string& head) {
    return std::make_shared<const ChatTemplate>(
        head + "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}<|endoftext|>",
        "t", kSpecial, 0);
  };
  options.chat = chat("");
  const auto dataset = open_data(options, tokenizer.get()).train;
  const Batch batch = dataset->windows(0, 1);
  const auto no = kIgnoredTarget;
  EXPECT_THAT(batch.tokens, testing::ElementsAre('u', 'a', 'a', 'b', 'c', 256, 'a', 'd', 0));
  EXPECT_THAT(batch.targets, testing::ElementsAre(no, no, 'b', 'c', 256, no, 'd', 256, no));
  EXPECT_EQ(batch.num_targets, 5);
  EXPECT_EQ(batch.num_bytes, 3) << "of the answers";

  // Another mask over the same tokens is other data.
  const uint64_t before = dataset->fingerprint();
  EXPECT_EQ(open_data(options, tokenizer.get()).train->fingerprint(), before);
  std::string mask;
  fs::path mask_path;
  for (const auto& entry : fs::directory_iterator(options.cache))
    if (entry.path().extension() == ".mask") mask_path = entry.path();
  mask = read_file(mask_path);
  mask.back() = static_cast<char>(mask.back() ^ 1);
  write_file_atomically(mask_path, mask);
  EXPECT_NE(open_data(options, tokenizer.get()).train->fingerprint(), before);
  // Another template is tokenized anew.
  options.chat = chat("#");
  EXPECT_EQ(open_data(options, tokenizer.get()).train->num_tokens(), dataset->num_tokens() + 2);
}

}  // namespace
}  // namespace trireme::data
