#include "trireme/checkpoint/huggingface.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <set>

#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/fp8_export.h"
#include "trireme/checkpoint/template_folder.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/tensor_stream.h"
#include "trireme/checkpoint/weight_files.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

/// Files beside the weights that belong to a model and travel with it.
constexpr std::array kTextNames = {"config.json",
                                   "generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "chat_template.jinja",
                                   "chat_template.json",
                                   "tokenizer.model",
                                   "tiktoken.model",
                                   "spiece.model",
                                   "sentencepiece.bpe.model",
                                   "tekken.json"};

/// The files above, and the templates beside the default one.
std::map<std::string, std::string> read_texts(const fs::path& path) {
  std::map<std::string, std::string> texts;
  for (const char* name : kTextNames) {
    if (fs::exists(path / name)) texts[name] = read_file(path / name);
  }
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path / kTemplateFolder, ignored)) {
    if (entry.is_regular_file(ignored) && entry.path().extension() == ".jinja")
      texts[std::string(kTemplateFolder) + "/" + entry.path().filename().string()] =
          read_file(entry.path());
  }
  return texts;
}

/// What `path` holds beside a model's weights and texts; sorted.
std::vector<std::string> other_files(const fs::path& path,
                                     const std::map<std::string, StoredWeight>& weights,
                                     const std::map<std::string, std::string>& texts) {
  std::set<std::string> known = {kWeightsIndexName};
  for (const auto& [name, weight] : weights) known.insert(weight.path().filename().string());
  for (const auto& [name, text] : texts) known.insert(name);
  std::vector<std::string> others;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool folder = entry.is_directory(ignored);
    if (!folder && !known.contains(name)) others.push_back(name);
    if (!folder) continue;
    if (name != kTemplateFolder) {
      others.push_back(name + "/");
      continue;
    }
    for (const auto& inner : fs::directory_iterator(entry.path(), ignored)) {
      const std::string both = name + "/" + inner.path().filename().string();
      if (!known.contains(both)) others.push_back(both);
    }
  }
  std::ranges::sort(others);
  return others;
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

/// "a, b, c and 5 more".
std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > kShown ? fmt::format("{} and {} more", text, names.size() - kShown) : text;
}

/// A parameter's pieces as a directory stores them: the whole of it, or one an expert.
struct Source {
  StoredWeight stored;
  size_t tensor = 0;  ///< index into the directory's tensors
  size_t piece = 0;
};

/// The tensors that a spec asks of a directory; shared by the parameters' makers.
struct Asked {
  model::ModelSpec spec;
  std::vector<model::DiskTensor> tensors;
};

/// Pieces of one parameter, in the order of its experts.
using Sources = std::vector<Source>;

/// A source in our layout: a parameter or one expert of it; a view of the memory map, or dequantised.
at::Tensor read_source(const Asked& asked, const Source& source) {
  return piece_of(source.stored.whole(), asked.tensors[source.tensor], asked.spec, source.piece);
}

int64_t expert_of(const Asked& asked, const Source& source) {
  return asked.tensors[source.tensor].pieces[source.piece].expert;
}

/// A parameter in our layout, of the type it is stored in.
at::Tensor parameter_of(const Asked& asked, const Sources& sources, size_t index) {
  const at::Tensor first = read_source(asked, sources.front());
  if (expert_of(asked, sources.front()) < 0) return first;
  at::Tensor stack = at::empty(asked.spec.parameters[index].shape, first.options());
  stack.select(0, expert_of(asked, sources.front())).copy_(first);
  for (size_t i = 1; i < sources.size(); ++i)
    stack.select(0, expert_of(asked, sources[i])).copy_(read_source(asked, sources[i]));
  return stack;
}

/// The same in turn by rows of dimension 0, where that needs less memory than the whole; else nothing.
std::vector<std::function<at::Tensor()>> pieces_of(const std::shared_ptr<const Asked>& asked,
                                                   const Sources& sources, size_t index) {
  std::vector<std::function<at::Tensor()>> pieces;
  if (expert_of(*asked, sources.front()) >= 0) {
    for (const Source& source : sources)
      pieces.emplace_back([asked, source] { return read_source(*asked, source).unsqueeze(0); });
    return pieces;
  }
  const Source& source = sources.front();
  const model::DiskTensor& tensor = asked->tensors[source.tensor];
  const std::vector<int64_t>& shape = asked->spec.parameters[index].shape;
  const bool rows_are_apart = shape.size() == 2 ? !tensor.transposed && tensor.pieces.size() == 1
                                                : tensor.dim > 0 || tensor.pieces.size() == 1;
  if (!source.stored.quantised() || !rows_are_apart) return pieces;
  const int64_t row = asked->spec.parameters[index].numel() / shape[0];
  // Of a stack expert by expert: so are experts exported.
  const int64_t step = shape.size() == 3 ? 1 : std::max<int64_t>(1, kPieceElements / row);
  for (int64_t at = 0; at < shape[0]; at += step) {
    pieces.emplace_back([asked, source, at, count = std::min(step, shape[0] - at)] {
      return piece_of(source.stored.rows(at, count), asked->tensors[source.tensor], asked->spec,
                      source.piece);
    });
  }
  return pieces;
}

/// A parameter that a directory lacks and that training may begin anew.
at::Tensor initial_of(const model::ParameterSpec& parameter) {
  at::Tensor tensor = at::empty(parameter.shape, at::kFloat);
  switch (parameter.init.kind) {
    case model::InitKind::kOnes:
      return tensor.fill_(1.0);
    case model::InitKind::kZeros:
      return tensor.zero_();
    case model::InitKind::kNormal:
      break;
  }
  const uint64_t seed = xxh3(std::as_bytes(std::span(parameter.name)));
  return tensor.normal_(0.0, parameter.init.std, at::make_generator<at::CPUGeneratorImpl>(seed));
}

int embedding_index(const model::ModelSpec& spec) {
  const auto found =
      std::ranges::find(spec.parameters, model::Role::kTokenEmbedding, &model::ParameterSpec::role);
  return static_cast<int>(found - spec.parameters.begin());
}

auto find_tensor(std::map<std::string, StoredWeight>& found, const std::string& name) {
  const auto at = found.find(name);
  return at == found.end() ? found.find(base_name(name)) : at;
}

/// Which of the ways to store the directory uses.
StoredForm form_of(const model::ModelSpec& spec, std::map<std::string, StoredWeight>& found) {
  StoredForm form;
  const auto missing = [&](model::DiskLayout layout) {
    int64_t count = 0;
    for (const model::DiskTensor& tensor : model::disk_tensors(spec, layout))
      count += tensor.mtp || find_tensor(found, tensor.name) != found.end() ? 0 : 1;
    return count;
  };
  const int64_t missing_of_files = missing(model::DiskLayout::kFiles);
  if (missing_of_files > 0 && missing(model::DiskLayout::kModules) < missing_of_files)
    form.layout = model::DiskLayout::kModules;
  form.mtp = form.mtp_copies = false;
  for (const model::DiskTensor& tensor : model::disk_tensors(spec, form.layout)) {
    if (!tensor.mtp || find_tensor(found, tensor.name) == found.end()) continue;
    (tensor.copy ? form.mtp_copies : form.mtp) = true;
  }
  if (spec.num_mtp_layers == 0) form.mtp = form.mtp_copies = true;
  return form;
}

/// Whether what a directory stores a second time equals the first; a different copy is worth a word.
void compare_copy(const fs::path& path, const std::string& name, const StoredWeight& copy,
                  const StoredWeight& first) {
  if (copy.same_bytes(first)) return;
  log::warning("{}: {} differs from the tensor that it is a copy of by config.json; it is ignored",
               path.string(), name);
}

/// Makes experts of stacks that are being written. A stack that has a maker for each expert is never made as a whole. Another, a view
/// of memory or of a memory map, is made once, when its first expert is wanted, and dropped after its last: its checksum is then
/// verified once, and not by each expert.
class Stacks {
 public:
  /// [rows, columns] (of biases [columns]), on the host.
  at::Tensor slice(const TensorToWrite& whole, int64_t expert) {
    const int64_t num_experts = whole.shape.at(0);
    if (static_cast<int64_t>(whole.pieces.size()) == num_experts)
      return whole.pieces[static_cast<size_t>(expert)]().detach().cpu().squeeze(0);
    Entry& entry = entries_[&whole];
    if (!entry.tensor.defined()) entry = {whole.make().detach().cpu(), num_experts};
    const at::Tensor tensor = entry.tensor.select(0, expert);
    if (--entry.left == 0) entries_.erase(&whole);
    return tensor;
  }

 private:
  struct Entry {
    at::Tensor tensor;
    int64_t left = 0;
  };
  std::map<const TensorToWrite*, Entry> entries_;
};

/// A stored stack of matrices expert by expert, so that memory for one of them is enough; nothing of other tensors.
std::vector<std::function<at::Tensor()>> experts_of(const model::DiskTensor& stored,
                                                    const std::vector<const TensorToWrite*>& wholes,
                                                    const std::shared_ptr<Stacks>& stacks) {
  std::vector<std::function<at::Tensor()>> experts;
  if (stored.shape.size() != 3 || (stored.dim == 0 && wholes.size() > 1)) return experts;
  for (int64_t expert = 0; expert < stored.shape[0]; ++expert) {
    experts.emplace_back([stored, wholes, stacks, expert] {
      std::vector<at::Tensor> slices;
      for (const TensorToWrite* whole : wholes)
        slices.push_back(stacks->slice(*whole, expert).unsqueeze(0));
      return joined(stored, slices);
    });
  }
  return experts;
}

bool is_fp8(const model::ModelSpec& spec) {
  return spec.quantization->method == model::QuantMethod::kFp8Blocks;
}

/// Whether a quantised weight is cut into blocks as export cuts it.
bool has_export_scales(const model::ModelSpec& spec, const StoredWeight& stored) {
  return is_fp8(spec) && spec.quantization->block_rows == kFp8Block.rows &&
         spec.quantization->block_columns == kFp8Block.columns && stored.shape().size() == 2;
}

TensorToWrite scales_of(const model::DiskTensor& tensor, const StoredWeight& stored) {
  return {tensor.name + kScaleSuffix,           Dtype::kF32, scale_shape(stored.shape(), kFp8Block),
          [stored] { return stored.scales(); }, {},          [stored] { stored.release(); }};
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
std::string config_for_export(const std::string& text, const model::ModelSpec& spec, Dtype dtype,
                              const OrderedJson& quantization) {
  OrderedJson config = parse_ordered_json(text, "config.json", ErrorCode::kConfig);
  const OrderedJson before = config;
  const std::string type = torch_dtype_name(dtype);
  const char* key =
      config.contains("torch_dtype") && !config.contains("dtype") ? "torch_dtype" : "dtype";
  config[key] = type;
  if (!spec.architecture.empty()) config["architectures"] = OrderedJson::array({spec.architecture});
  config["model_type"] = spec.family;
  config.erase("auto_map");  // names code that does not travel with the weights
  config.erase("quantization_config");
  if (!quantization.is_null()) config = with_key(config, "quantization_config", quantization);
  return config == before ? text : config.dump(2) + "\n";
}

}  // namespace

HuggingFaceModel open_huggingface(const fs::path& path) {
  TRIREME_USER_CHECK(fs::is_directory(path), kData, "name a Hugging Face directory",
                     "{} is not a directory", path.string());
  TRIREME_USER_CHECK(fs::exists(path / "config.json"), kData, "name a Hugging Face directory",
                     "{} has no config.json", path.string());
  HuggingFaceModel result;
  result.texts = read_texts(path);
  result.spec =
      model::spec_from_config(result.texts.at("config.json"), (path / "config.json").string());
  const bool powers_of_two = declares_powers_of_two(result.texts.at("config.json"));
  // What is opened is the model dequantised, and says so.
  result.texts["config.json"] = without_quantization(result.texts.at("config.json"));
  std::map<std::string, StoredWeight> found = open_weights(path, result.spec.quantization);
  result.other_files = other_files(path, found, result.texts);

  result.form = form_of(result.spec, found);
  result.form.power_of_two_scales = powers_of_two;
  const auto asked = std::make_shared<Asked>();
  asked->spec = result.spec;
  asked->tensors = tensors_of(result.spec, result.form);
  std::vector<std::string> missing;
  std::vector<std::string> mismatched;
  std::vector<std::pair<const model::DiskTensor*, Dtype>> types;
  std::map<int, StoredWeight> places;  // by parameter, of those stored as one
  std::vector<Sources> sources(result.spec.parameters.size());
  bool first_matrix = true;
  for (size_t i = 0; i < asked->tensors.size(); ++i) {
    const model::DiskTensor& tensor = asked->tensors[i];
    const auto at = find_tensor(found, tensor.name);
    if (at == found.end()) {
      if (!tensor.copy) missing.push_back(tensor.name);
      continue;
    }
    const StoredWeight place = at->second;
    found.erase(at);
    if (place.shape() != tensor.shape) {
      mismatched.push_back(fmt::format("{} is {} and should be {}", tensor.name,
                                       shape_text(place.shape()), shape_text(tensor.shape)));
      continue;
    }
    const Dtype dtype = place.dtype();
    TRIREME_USER_CHECK(
        dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16 ||
            dtype == Dtype::kF64,
        kData,
        dtype == Dtype::kF8E4m3
            ? "config.json needs the quantization_config that the weights were saved with"
            : "save the model in float32, bfloat16 or float16",
        "{}: '{}' is of type {}", place.path().string(), tensor.name, dtype_name(dtype));
    if (place.quantised()) {
      if (has_export_scales(result.spec, place)) {
        result.scales.push_back(scales_of(tensor, place));
      } else if (is_fp8(result.spec) && result.new_scales_of.empty()) {
        result.new_scales_of = tensor.name;
      }
    } else {
      const Dtype kept = dtype == Dtype::kF64 ? Dtype::kF32 : dtype;
      types.emplace_back(&tensor, kept);
      if (first_matrix && tensor.shape.size() == 2) {
        result.stored_dtype = kept;
        first_matrix = false;
      }
    }
    if (tensor.copy) {
      const auto original = places.find(tensor.pieces.front().parameter);
      if (original != places.end()) compare_copy(path, tensor.name, place, original->second);
      continue;
    }
    for (size_t piece = 0; piece < tensor.pieces.size(); ++piece) {
      const int parameter = tensor.pieces[piece].parameter;
      places.insert_or_assign(parameter, place);
      sources[static_cast<size_t>(parameter)].push_back({place, i, piece});
    }
  }
  const char* const hint = "is config.json the one that the weights were saved with?";
  TRIREME_USER_CHECK(missing.empty(), kData, hint,
                     "{} lacks {} tensors that config.json asks for: {}", path.string(),
                     missing.size(), some_of(missing));
  TRIREME_USER_CHECK(mismatched.empty(), kData, hint, "{}: {}", path.string(), some_of(mismatched));
  for (const auto& [tensor, dtype] : types) {
    if (dtype != (tensor->fp32 ? Dtype::kF32 : result.stored_dtype))
      result.form.other_dtypes[tensor->name] = dtype;
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    const model::ParameterSpec& parameter = result.spec.parameters[i];
    TensorToWrite& made = result.parameters.emplace_back(
        TensorToWrite{parameter.name, Dtype::kF32, parameter.shape, {}});
    if (sources[i].empty()) {
      made.make = [asked, i] { return initial_of(asked->spec.parameters[i]); };
    } else {
      made.make = [asked, pieces = sources[i], i] { return parameter_of(*asked, pieces, i); };
      made.pieces = pieces_of(asked, sources[i], i);
      made.release = [pieces = sources[i]] {
        for (const Source& source : pieces) source.stored.release();
      };
    }
  }

  std::vector<std::string> unexpected;
  for (const auto& [name, place] : found) {
    if (carries_nothing(name)) continue;
    if (result.spec.tied_embeddings && name == "lm_head.weight") {
      // The config wins, as in transformers.
      compare_copy(path, name, place, places.at(embedding_index(result.spec)));
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
  const std::vector<int>& ends = spec.eos_token_ids;
  if (!ends.empty())
    config["eos_token_id"] = ends.size() > 1 ? OrderedJson(ends) : OrderedJson(ends.front());
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
  std::map<std::string, const TensorToWrite*> kept_scales;
  for (const TensorToWrite& scales : options.scales) kept_scales[scales.name] = &scales;

  std::vector<TensorToWrite> tensors;
  uint64_t bytes = 0;
  int64_t num_parameters = 0;
  const auto stacks = std::make_shared<Stacks>();
  StoredForm form = options.form;
  if (options.fp8) form.layout = model::DiskLayout::kFiles;
  const std::vector<model::DiskTensor> disk_tensors = tensors_of(spec, form);
  if (options.fp8) require_fp8_layout(spec, disk_tensors);
  for (const model::DiskTensor& stored : disk_tensors) {
    std::vector<std::function<at::Tensor()>> pieces;
    std::vector<const TensorToWrite*> wholes;  // whose memory maps may go once this is written
    for (const model::DiskPiece& piece : stored.pieces) {
      const model::ParameterSpec& parameter = spec.parameters[static_cast<size_t>(piece.parameter)];
      const auto member = by_name.find(parameter.name);
      TRIREME_USER_CHECK(member != by_name.end(), kData,
                         "was it written by a run of another model?",
                         "the parameter '{}' is missing", parameter.name);
      TRIREME_USER_CHECK(member->second->shape == parameter.shape, kData,
                         "was it written by a run of another model?",
                         "the parameter '{}' is {} and should be {}", parameter.name,
                         shape_text(member->second->shape), shape_text(parameter.shape));
      const TensorToWrite* whole = member->second;
      wholes.push_back(whole);
      if (piece.expert < 0) {
        pieces.emplace_back([whole] { return whole->make().detach().cpu(); });
      } else {
        pieces.emplace_back(
            [whole, stacks, expert = piece.expert] { return stacks->slice(*whole, expert); });
      }
    }
    const auto other = form.other_dtypes.find(stored.name);
    const Dtype dtype = other != form.other_dtypes.end() ? other->second
                        : stored.fp32                    ? Dtype::kF32
                                                         : options.dtype;
    TensorToWrite tensor{stored.name, dtype, stored.shape, {}};
    tensor.release = [wholes] {
      for (const TensorToWrite* whole : wholes) {
        if (whole->release) whole->release();
      }
    };
    // The writer converts row by row.
    tensor.make = [pieces, stored] {
      std::vector<at::Tensor> made;
      for (const auto& make : pieces) made.push_back(make());
      return joined(stored, made);
    };
    tensor.pieces = experts_of(stored, wholes, stacks);
    num_parameters += static_cast<int64_t>(byte_size(tensor)) / dtype_size(dtype);
    if (options.fp8 && is_fp8_weight(spec, stored)) {
      const auto kept = kept_scales.find(stored.name + kScaleSuffix);
      const bool fits =
          kept != kept_scales.end() && kept->second->shape == scale_shape(stored.shape, kFp8Block);
      auto [values, scales] =
          to_fp8(tensor, form.power_of_two_scales, fits ? kept->second : nullptr);
      tensors.push_back(std::move(values));
      tensors.push_back(std::move(scales));
    } else {
      tensors.push_back(std::move(tensor));
    }
  }

  for (const TensorToWrite& tensor : tensors) bytes += byte_size(tensor);

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
    transaction.write_file(kWeightsIndexName, index.dump(2) + "\n");
  }
  std::map<std::string, std::string> files = texts;
  const auto given = texts.find("config.json");
  files["config.json"] = config_for_export(
      given == texts.end() ? spec.config_json : given->second, spec, options.dtype,
      options.fp8 ? fp8_config(spec, disk_tensors, form.power_of_two_scales) : OrderedJson());
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
