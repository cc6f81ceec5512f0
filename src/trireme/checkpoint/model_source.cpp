#include "trireme/checkpoint/model_source.h"

#include <algorithm>
#include <iterator>

#include <fmt/ranges.h>

#include "trireme/base/log.h"
#include "trireme/checkpoint/template_folder.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/weight_files.h"
#include "trireme/model/mtp.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kStoredDtypeKey = "imported_dtype";
constexpr const char* kFormKey = "imported_form";

Dtype imported_dtype(const Json& train) {
  if (!train.is_object()) return Dtype::kF32;
  const std::string name = train.value(kStoredDtypeKey, "F32");
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kF16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  return Dtype::kF32;
}

/// The name of a text in a checkpoint, where there are no folders: "additional_chat_templates.x.jinja" of one in a folder.
std::string file_name(std::string text_name) {
  std::ranges::replace(text_name, '/', '.');
  return text_name;
}
std::string text_name(std::string file_name) {
  const std::string folder = kTemplateFolder;
  if (file_name.starts_with(folder + ".")) file_name[folder.size()] = '/';
  return file_name;
}

ModelSource from_huggingface(const fs::path& path) {
  HuggingFaceModel opened = open_huggingface(path);
  ModelSource source;
  source.spec = std::move(opened.spec);
  source.parameters = std::move(opened.parameters);
  source.texts = std::move(opened.texts);
  source.stored_dtype = opened.stored_dtype;
  source.form = std::move(opened.form);
  source.scales = std::move(opened.scales);
  source.path = path;
  source.huggingface = true;
  return source;
}

ModelSource from_checkpoint(const fs::path& path) {
  const auto checkpoint = std::make_shared<const Checkpoint>(path);
  ModelSource source;
  source.path = checkpoint->path();
  source.step = checkpoint->step();
  const Json& train = checkpoint->train_state();
  source.stored_dtype = imported_dtype(train);
  if (train.is_object() && train.contains(kFormKey)) source.form = form_from_json(train[kFormKey]);
  std::map<std::string, const TensorEntry*> entries;
  for (const TensorEntry& entry : checkpoint->manifest().tensors) {
    const std::string& name = entry.info.name;
    entries[name] = &entry;
    if (!name.ends_with(kScaleSuffix)) continue;
    source.scales.push_back({name,
                             Dtype::kF32,
                             entry.info.shape,
                             [checkpoint, name] { return checkpoint->tensor(name); },
                             {},
                             [checkpoint, name] { checkpoint->release(name); }});
  }
  for (const FileEntry& file : checkpoint->manifest().files) {
    if (!file.name.ends_with(".safetensors"))
      source.texts[text_name(file.name)] = checkpoint->text(file.name);
  }
  TRIREME_USER_CHECK(source.texts.contains("config.json"), kData,
                     "write the checkpoint with trireme train or convert",
                     "the checkpoint {} has no config.json", source.path.string());
  source.spec = model::spec_from_config(source.texts.at("config.json"),
                                        (source.path / "config.json").string());
  for (const model::ParameterSpec& parameter : source.spec.parameters) {
    const auto found = entries.find(parameter.name);
    TRIREME_USER_CHECK(
        found != entries.end(), kData, "was config.json changed after the checkpoint was written?",
        "the checkpoint {} has no tensor '{}'", source.path.string(), parameter.name);
    TRIREME_USER_CHECK(found->second->info.shape == parameter.shape, kData,
                       "was config.json changed after the checkpoint was written?",
                       "the checkpoint {}: tensor '{}' is {} and config.json asks for {}",
                       source.path.string(), parameter.name, shape_text(found->second->info.shape),
                       shape_text(parameter.shape));
    source.parameters.push_back(
        {parameter.name,
         Dtype::kF32,
         parameter.shape,
         [checkpoint, name = parameter.name] { return checkpoint->tensor(name); },
         {},
         [checkpoint, name = parameter.name] { checkpoint->release(name); }});
  }
  return source;
}

}  // namespace

std::string ModelSource::text(const std::string& name) const {
  const auto found = texts.find(name);
  return found == texts.end() ? "" : found->second;
}

ModelSource open_model(const fs::path& path) {
  TRIREME_USER_CHECK(fs::exists(path), kData, "check the path", "there is no {}", path.string());
  const bool ours =
      fs::exists(path / kManifestName) || find_latest(path) || find_latest(path / "checkpoints");
  if (ours) return from_checkpoint(path);
  if (fs::exists(path / "config.json")) return from_huggingface(path);
  throw Error(
      ErrorCode::kData,
      fmt::format("{} is neither a Hugging Face directory nor a checkpoint: it has no config.json, "
                  "no {} and "
                  "no checkpoints/",
                  path.string(), kManifestName),
      "name a folder with config.json and model.safetensors, a step-N/ folder, or a run's folder");
}

std::map<std::string, std::string> checkpoint_texts(
    const std::map<std::string, std::string>& texts) {
  std::map<std::string, std::string> files;
  for (const auto& [name, text] : texts) files[file_name(name)] = text;
  return files;
}

ModelSource without_mtp(ModelSource source) {
  source.spec = model::without_mtp(source.spec);
  source.texts["config.json"] = source.spec.config_json;
  source.parameters.resize(source.spec.parameters.size());
  return source;
}

Manifest import_huggingface(const fs::path& huggingface, const fs::path& out, bool replace,
                            const SaveOptions& options) {
  if (!replace) {
    std::error_code ignored;
    TRIREME_USER_CHECK(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out, ignored)),
                       kConfig, "name a new folder, or say --force to replace it",
                       "{} is there already", out.string());
  }
  TRIREME_USER_CHECK(!fs::exists(out) || is_model_folder(out), kConfig, "name another folder",
                     "{} holds more than a model: it is not replaced", out.string());
  HuggingFaceModel opened = open_huggingface(huggingface);
  if (!opened.form.mtp) {
    log::info("{} has no tensors of its {} multi-token-prediction layers: they are initialised",
              huggingface.string(), opened.spec.num_mtp_layers);
  }
  if (!opened.new_scales_of.empty()) {
    log::warning(
        "{}: the scales of '{}' are not kept, as they are not of matrices in blocks of 128 x 128: "
        "export --fp8 makes new ones, and rounds the weights again",
        huggingface.string(), opened.new_scales_of);
  }
  if (!opened.other_files.empty()) {
    log::info("{}: not part of the model, and not kept: {}", huggingface.string(),
              fmt::join(opened.other_files, ", "));
  }
  CheckpointState state;
  state.train = {{kStoredDtypeKey, dtype_name(opened.stored_dtype)}};
  if (opened.form != StoredForm()) state.train[kFormKey] = form_to_json(opened.form);
  state.texts = checkpoint_texts(opened.texts);
  std::vector<TensorToWrite> tensors = std::move(opened.parameters);
  std::ranges::move(opened.scales, std::back_inserter(tensors));
  return write_checkpoint(out, std::move(tensors), state, options);
}

}  // namespace trireme::checkpoint
