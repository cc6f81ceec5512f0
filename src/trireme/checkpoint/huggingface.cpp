#include "trireme/checkpoint/huggingface.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <array>
#include <set>

#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/tensor_stream.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

/// Files beside the weights that belong to a model and travel with it.
constexpr std::array kTextNames = {"config.json",
                                   "generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "chat_template.jinja"};

/// One tensor as the directory stores it, and the parameters that it is made of.
struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool transposed = false;
  std::vector<size_t>
      members;  ///< indices into ModelSpec::parameters, in their order along dimension 0
};

std::vector<StoredTensor> stored_tensors(const model::ModelSpec& spec) {
  std::vector<StoredTensor> stored;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const model::ParameterSpec& parameter = spec.parameters[i];
    const bool packed = !parameter.packed_on_disk.empty();
    if (packed && !stored.empty() && stored.back().name == parameter.packed_on_disk) {
      stored.back().shape[0] += parameter.shape[0];
      stored.back().members.push_back(i);
      continue;
    }
    stored.push_back({packed ? parameter.packed_on_disk : parameter.name,
                      parameter.shape,
                      parameter.transposed_on_disk,
                      {i}});
  }
  for (StoredTensor& tensor : stored) {
    if (tensor.transposed) std::reverse(tensor.shape.begin(), tensor.shape.end());
  }
  return stored;
}

/// Buffers that older files carry and that a model makes itself.
bool carries_nothing(const std::string& name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq");
}

/// The name without its first component: how a model without a head names "transformer.h.0..." or
/// "model.norm...".
std::string base_name(const std::string& name) {
  const size_t dot = name.find('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

/// A tensor and the file that holds it.
struct Found {
  std::shared_ptr<const TensorFile> file;
  const TensorInfo* info = nullptr;
};

std::map<std::string, Found> open_weights(const fs::path& path) {
  std::vector<fs::path> files;
  std::map<std::string, std::string> index;
  if (fs::exists(path / kIndexName)) {
    const std::string origin = (path / kIndexName).string();
    const Json document = parse_json(read_file(path / kIndexName), origin);
    const auto map = document.find("weight_map");
    TRIREME_USER_CHECK(map != document.end() && map->is_object(), kData, "save the model again",
                       "{} has no weight_map", origin);
    std::set<std::string> names;
    for (const auto& [tensor, file] : map->items()) {
      const bool plain = file.is_string() && file.get<std::string>().find('/') == std::string::npos;
      TRIREME_USER_CHECK(plain, kData, "save the model again", "{}: '{}' has no plain file name",
                         origin, tensor);
      index[tensor] = file.get<std::string>();
      names.insert(index[tensor]);
    }
    for (const std::string& name : names) files.push_back(path / name);
  } else if (fs::exists(path / kWeightsName)) {
    files.push_back(path / kWeightsName);
  } else {
    const bool pickled =
        fs::exists(path / "pytorch_model.bin") || fs::exists(path / "pytorch_model.bin.index.json");
    TRIREME_USER_CHECK(
        !pickled, kData,
        "loading a pickle runs code from it; save the model again with save_pretrained(), which "
        "writes safetensors",
        "{} has only pickled weights (pytorch_model.bin)", path.string());
    throw Error(ErrorCode::kData,
                fmt::format("{} has neither {} nor {}", path.string(), kWeightsName, kIndexName),
                "name a Hugging Face directory with safetensors weights");
  }
  std::map<std::string, Found> tensors;
  for (const fs::path& file_path : files) {
    TRIREME_USER_CHECK(fs::exists(file_path), kData, "copy or download the missing shard",
                       "{} is named by the index and missing", file_path.string());
    const auto file = std::make_shared<const TensorFile>(file_path);
    for (const TensorInfo& info : file->header().tensors) {
      if (!index.empty()) {
        const auto listed = index.find(info.name);
        if (listed != index.end() && listed->second != file_path.filename().string()) continue;
      }
      tensors[info.name] = {file, &info};
    }
  }
  for (const auto& [name, file] : index) {
    TRIREME_USER_CHECK(tensors.contains(name), kData, "copy or download the shard again",
                       "{} lacks the tensor '{}' that the index puts there", (path / file).string(),
                       name);
  }
  return tensors;
}

/// "a, b, c and 5 more".
std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > kShown ? fmt::format("{} and {} more", text, names.size() - kShown) : text;
}

/// A parameter's own piece of what the directory stores, in our layout.
at::Tensor parameter_of(const Found& found, const StoredTensor& stored, int64_t row, int64_t rows) {
  at::Tensor tensor = found.file->tensor(*found.info);
  if (stored.transposed) tensor = tensor.t();
  if (stored.members.size() > 1) tensor = tensor.narrow(0, row, rows);
  return tensor;
}

/// How `tensor` is made of parameters that follow each other along our dimension 0: piece by piece, but
/// for those that are packed and transposed.
void stream_members(const std::vector<const TensorToWrite*>& members, bool transposed,
                    TensorToWrite& tensor) {
  if (members.size() > 1 && transposed) {
    tensor.make = [members] {
      std::vector<at::Tensor> pieces;
      for (const TensorToWrite* member : members)
        pieces.push_back(member->make().detach().cpu().to(at::kFloat));
      return at::cat(pieces, 0).t();
    };
  } else {
    for (const TensorToWrite* member : members) {
      tensor.pieces.push_back([member, transposed] {
        const at::Tensor made = member->make().detach();
        return transposed ? made.t() : made;
      });
    }
  }
  tensor.release = [members] {
    for (const TensorToWrite* member : members)
      if (member->release) member->release();
  };
}

std::string torch_dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return "float32";
    case Dtype::kBf16:
      return "bfloat16";
    case Dtype::kF16:
      return "float16";
    default:
      TRIREME_CHECK(false, "weights are exported as F32, BF16 or F16, not {}", dtype_name(dtype));
  }
}

/// config.json as it was given but for the type of the weights and the class that has a head;
/// unchanged text if those agree already, so that import and export are byte-stable.
std::string config_for_export(const std::string& text, const model::ModelSpec& spec, Dtype dtype) {
  OrderedJson config = parse_ordered_json(text, "config.json", ErrorCode::kConfig);
  const OrderedJson before = config;
  const std::string type = torch_dtype_name(dtype);
  const char* key =
      config.contains("torch_dtype") && !config.contains("dtype") ? "torch_dtype" : "dtype";
  config[key] = type;
  if (!spec.architecture.empty()) config["architectures"] = OrderedJson::array({spec.architecture});
  return config == before ? text : config.dump(2) + "\n";
}

}  // namespace

HuggingFaceModel open_huggingface(const fs::path& path) {
  TRIREME_USER_CHECK(fs::is_directory(path), kData, "name a Hugging Face directory",
                     "{} is not a directory", path.string());
  TRIREME_USER_CHECK(fs::exists(path / "config.json"), kData, "name a Hugging Face directory",
                     "{} has no config.json", path.string());
  HuggingFaceModel result;
  for (const char* name : kTextNames) {
    if (fs::exists(path / name)) result.texts[name] = read_file(path / name);
  }
  result.spec =
      model::spec_from_config(result.texts.at("config.json"), (path / "config.json").string());
  std::map<std::string, Found> found = open_weights(path);

  const std::vector<StoredTensor> stored = stored_tensors(result.spec);
  std::vector<std::string> missing;
  std::vector<std::string> mismatched;
  std::vector<Found> places;
  result.parameters.resize(result.spec.parameters.size());
  bool first_matrix = true;
  std::string embedding;
  for (const StoredTensor& tensor : stored) {
    auto at = found.find(tensor.name);
    if (at == found.end()) at = found.find(base_name(tensor.name));
    if (at == found.end()) {
      missing.push_back(tensor.name);
      continue;
    }
    const Found place = at->second;
    found.erase(at);
    if (place.info->shape != tensor.shape) {
      mismatched.push_back(fmt::format("{} is {} and should be {}", tensor.name,
                                       shape_text(place.info->shape), shape_text(tensor.shape)));
      continue;
    }
    const Dtype dtype = place.info->dtype;
    TRIREME_USER_CHECK(dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16 ||
                           dtype == Dtype::kF64,
                       kData, "save the model in float32, bfloat16 or float16",
                       "{}: '{}' is of type {}", place.file->path().string(), tensor.name,
                       dtype_name(dtype));
    if (first_matrix && tensor.shape.size() == 2) {
      result.stored_dtype = dtype == Dtype::kF64 ? Dtype::kF32 : dtype;
      first_matrix = false;
    }
    int64_t row = 0;
    for (const size_t member : tensor.members) {
      const model::ParameterSpec& parameter = result.spec.parameters[member];
      const int64_t rows = parameter.shape[0];
      result.parameters[member] = {
          parameter.name,
          Dtype::kF32,
          parameter.shape,
          [place, tensor, row, rows] { return parameter_of(place, tensor, row, rows); },
          {},
          [place] { release_pages(place.file->bytes_of(*place.info)); }};
      row += rows;
      if (parameter.role == model::Role::kTokenEmbedding) places = {place};
    }
  }
  const char* const hint = "is config.json the one that the weights were saved with?";
  TRIREME_USER_CHECK(missing.empty(), kData, hint,
                     "{} lacks {} tensors that config.json asks for: {}", path.string(),
                     missing.size(), some_of(missing));
  TRIREME_USER_CHECK(mismatched.empty(), kData, hint, "{}: {}", path.string(), some_of(mismatched));

  std::vector<std::string> unexpected;
  for (const auto& [name, place] : found) {
    if (carries_nothing(name)) continue;
    if (result.spec.tied_embeddings && name == "lm_head.weight") {
      // The config wins, as in transformers; a different copy is worth a word.
      const Found& embedding_place = places.front();
      const bool equal = place.info->shape == embedding_place.info->shape &&
                         std::ranges::equal(place.file->bytes_of(*place.info),
                                            embedding_place.file->bytes_of(*embedding_place.info));
      release_pages(place.file->bytes_of(*place.info));
      release_pages(embedding_place.file->bytes_of(*embedding_place.info));
      if (!equal) {
        log::warning(
            "{}: lm_head.weight differs from the token embedding and config.json ties them; it is "
            "ignored",
            path.string());
      }
      continue;
    }
    unexpected.push_back(name);
  }
  TRIREME_USER_CHECK(unexpected.empty(), kData, hint,
                     "{} has {} tensors that config.json does not account for: {}", path.string(),
                     unexpected.size(), some_of(unexpected));
  return result;
}

std::string make_generation_config(const model::ModelSpec& spec) {
  OrderedJson config;
  config["_from_model_config"] = true;
  if (spec.bos_token_id >= 0) config["bos_token_id"] = spec.bos_token_id;
  if (spec.eos_token_id >= 0) config["eos_token_id"] = spec.eos_token_id;
  return config.dump(2) + "\n";
}

ExportResult export_huggingface(const fs::path& path, const model::ModelSpec& spec,
                                const std::vector<TensorToWrite>& parameters,
                                const std::map<std::string, std::string>& texts,
                                const ExportOptions& options) {
  if (!options.replace) {
    std::error_code ignored;
    TRIREME_USER_CHECK(!fs::exists(path) || (fs::is_directory(path) && fs::is_empty(path, ignored)),
                       kConfig, "name a new directory, or say --force to replace it",
                       "{} is there already", path.string());
  }
  TRIREME_USER_CHECK(!fs::exists(path) || is_model_folder(path), kConfig, "name another directory",
                     "{} holds more than a model: it is not replaced", path.string());
  Storage& storage = options.storage ? *options.storage : disk();
  std::map<std::string, const TensorToWrite*> by_name;
  for (const TensorToWrite& parameter : parameters) by_name[parameter.name] = &parameter;

  std::vector<TensorToWrite> tensors;
  uint64_t bytes = 0;
  int64_t num_parameters = 0;
  for (const StoredTensor& stored : stored_tensors(spec)) {
    std::vector<const TensorToWrite*> members;
    for (const size_t index : stored.members) {
      const std::string& name = spec.parameters[index].name;
      const auto member = by_name.find(name);
      TRIREME_USER_CHECK(member != by_name.end(), kData,
                         "was it written by a run of another model?",
                         "the parameter '{}' is missing", name);
      TRIREME_USER_CHECK(
          member->second->shape == spec.parameters[index].shape, kData,
          "was it written by a run of another model?", "the parameter '{}' is {} and should be {}",
          name, shape_text(member->second->shape), shape_text(spec.parameters[index].shape));
      members.push_back(member->second);
    }
    TensorToWrite tensor{stored.name, options.dtype, stored.shape, {}};
    stream_members(members, stored.transposed, tensor);
    bytes += byte_size(tensor);
    num_parameters += static_cast<int64_t>(byte_size(tensor)) / dtype_size(options.dtype);
    tensors.push_back(std::move(tensor));
  }

  FolderTransaction transaction(storage, path);
  check_free_space(storage, transaction.folder(), bytes);
  std::vector<const TensorToWrite*> all;
  for (const TensorToWrite& tensor : tensors) all.push_back(&tensor);
  const auto shards = cut_into_shards(all, options.shard_bytes);
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name("model", i, shards.size());
    write_tensor_file(storage, transaction.folder(), name, shards[i], {{"format", "pt"}});
    for (const TensorToWrite* tensor : shards[i]) weight_map[tensor->name] = name;
  }
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_parameters", num_parameters}, {"total_size", bytes}}},
                        {"weight_map", weight_map}};
    transaction.write_file(kIndexName, index.dump(2) + "\n");
  }
  std::map<std::string, std::string> files = texts;
  const auto given = texts.find("config.json");
  files["config.json"] = config_for_export(given == texts.end() ? spec.config_json : given->second,
                                           spec, options.dtype);
  if (!files.contains("generation_config.json"))
    files["generation_config.json"] = make_generation_config(spec);
  for (const auto& [name, text] : files) transaction.write_file(name, text);
  transaction.commit();
  return {static_cast<int64_t>(tensors.size()), bytes, path};
}

ExportResult export_huggingface(const fs::path& path, const model::ModelSpec& spec,
                                const std::vector<NamedTensor>& parameters,
                                const std::map<std::string, std::string>& texts,
                                const ExportOptions& options) {
  std::vector<TensorToWrite> to_write;
  to_write.reserve(parameters.size());
  for (const NamedTensor& named : parameters) {
    to_write.push_back({named.name, dtype_of(named.tensor.scalar_type()),
                        named.tensor.sizes().vec(), [tensor = named.tensor] { return tensor; }});
  }
  return export_huggingface(path, spec, to_write, texts, options);
}

}  // namespace trireme::checkpoint
