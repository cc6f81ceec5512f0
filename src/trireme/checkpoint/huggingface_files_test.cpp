// What a Hugging Face directory holds beside its weights, and multi-token prediction left out.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/checkpoint/test_directory.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string every_byte() {
  std::string bytes;
  for (int i = 0; i < 1024; ++i) bytes += static_cast<char>(i * 37 % 256);
  return bytes;
}

Tensors write_model(const fs::path& path) {
  const Json config = config_of("deepseek_v3", {{"num_nextn_predict_layers", 1}});
  const model::ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
  const Tensors tensors = make_tensors(spec, model::DiskLayout::kFiles, true, true);
  write_directory(path, config.dump(2) + "\n", tensors);
  return tensors;
}

ExportResult export_to(const fs::path& path, const ModelSource& source, bool replace = false) {
  return export_huggingface(
      path, source.spec, source.parameters, source.texts,
      {.dtype = source.stored_dtype, .form = source.form, .replace = replace});
}

TEST(HuggingFaceFiles, TemplatesAndTokenizersComeBack) {
  const TestFolder folder;
  write_model(folder / "hf");
  fs::create_directories(folder / "hf" / "additional_chat_templates");
  const std::map<std::string, std::string> files = {
      {"additional_chat_templates/tool_use.jinja", "{{ tools }}\r\n"},
      {"additional_chat_templates/rag.v2.jinja", ""},
      {"chat_template.jinja", "{{ messages }}"},
      {"chat_template.json", "{\"chat_template\":   \"{{ 1 }}\"}"},
      {"tokenizer.model", every_byte()},
      {"tiktoken.model", "IQ== 0\nIg== 1\n"}};
  for (const auto& [name, content] : files) write_file_atomically(folder / "hf" / name, content);
  import_huggingface(folder / "hf", folder / "ours");
  EXPECT_TRUE(Checkpoint(folder / "ours").verify().empty());
  for (const std::string from : {"hf", "ours"}) {
    const ModelSource source = open_model(folder / from);
    export_to(folder / "back", source, from == "ours");
    for (const auto& [name, content] : files)
      EXPECT_EQ(read_file(folder / "back" / name), content) << name << " from " << from;
  }
  // What was written may be replaced, and only as long as it is a model.
  import_huggingface(folder / "hf", folder / "ours", true);
  write_file_atomically(folder / "back" / "additional_chat_templates" / "mine.txt", "keep me");
  EXPECT_THROW(export_to(folder / "back", open_model(folder / "ours"), true), Error);
  EXPECT_EQ(read_file(folder / "back" / "additional_chat_templates" / "mine.txt"), "keep me");
}

TEST(HuggingFaceFiles, NamesWhatIsNotKept) {
  const TestFolder folder;
  write_model(folder / "hf");
  fs::create_directories(folder / "hf" / "original");
  fs::create_directories(folder / "hf" / "additional_chat_templates");
  for (const char* name : {"README.md", "modeling_deepseek.py", "consolidated.safetensors",
                           "tokenizer.json", "additional_chat_templates/notes.txt"})
    write_file_atomically(folder / "hf" / name, "x");
  const std::vector<std::string> others = open_huggingface(folder / "hf").other_files;
  EXPECT_THAT(others, ElementsAre("README.md", "additional_chat_templates/notes.txt",
                                  "consolidated.safetensors", "modeling_deepseek.py", "original/"));
  const log::Level before = log::level();
  log::set_level(log::Level::kInfo);
  ::testing::internal::CaptureStderr();
  import_huggingface(folder / "hf", folder / "ours");
  const std::string said = ::testing::internal::GetCapturedStderr();
  log::set_level(before);
  EXPECT_THAT(said, HasSubstr("not kept: README.md, additional_chat_templates/notes.txt, "
                              "consolidated.safetensors, modeling_deepseek.py, original/\n"));
}

TEST(HuggingFaceFiles, LeavesMultiTokenPredictionOut) {
  const TestFolder folder;
  const Tensors tensors = write_model(folder / "hf");
  import_huggingface(folder / "hf", folder / "ours");
  for (const std::string from : {"hf", "ours"}) {
    const auto to = folder / ("from_" + from);
    export_to(to, without_mtp(open_model(folder / from)));
    Tensors left = read_tensors(to);
    for (const auto& [name, tensor] : tensors) {
      if (name.starts_with("model.layers.2.")) {
        EXPECT_FALSE(left.contains(name)) << name;
        continue;
      }
      ASSERT_TRUE(left.contains(name)) << name;
      EXPECT_TRUE(at::equal(left.at(name), tensor)) << name;
      left.erase(name);
    }
    EXPECT_TRUE(left.empty()) << left.begin()->first;
    EXPECT_EQ(
        parse_json(read_file(to / "config.json"), "config.json").at("num_nextn_predict_layers"), 0);
    EXPECT_EQ(open_model(to).spec.num_mtp_layers, 0);
  }
  // A model that has none stays what it is.
  export_to(folder / "again", without_mtp(open_model(folder / "from_hf")));
  for (const char* file : {"config.json", "model.safetensors"})
    EXPECT_EQ(read_file(folder / "from_hf" / file), read_file(folder / "again" / file)) << file;
}

}  // namespace
}  // namespace trireme::checkpoint
