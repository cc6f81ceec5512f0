#include "trireme/train/model_inspection.h"

#include <algorithm>
#include <map>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/data/chat_template.h"
#include "trireme/data/tokenizer.h"
#include "trireme/model/flops.h"
#include "trireme/model/mtp.h"
#include "trireme/nn/attention_part.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/simulate.h"
#include "trireme/train/progress.h"
#include "trireme/train/run_setup.h"

namespace trireme::train {

namespace {

namespace fs = std::filesystem;
using device::Finding;
using Level = device::Finding::Level;

constexpr int64_t kSeqLen = 2048;

void find(ModelInspection& m, Level level, std::string what, std::string advice = "") {
  m.findings.push_back({level, std::move(what), std::move(advice)});
}

/// Runs `body`; an Error becomes a finding. False if it failed.
template <typename Body>
bool attempt(ModelInspection& m, Level level, Body body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
    find(m, level, error.what(), error.hint());
    return false;
  }
}

/// Types and sizes of what the weight files hold.
void inspect_files(ModelInspection& m) {
  std::map<std::string, uint64_t> bytes;
  std::map<std::string, int64_t> matrices;
  bool stored_head = false;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(m.path, ignored)) {
    if (entry.path().extension() != ".safetensors") continue;
    attempt(m, Level::kProblem, [&] {
      const checkpoint::TensorFile file(entry.path());
      for (const checkpoint::TensorInfo& info : file.header().tensors) {
        if (info.name.starts_with(checkpoint::kOptimizerPrefix)) continue;
        bytes[checkpoint::dtype_name(info.dtype)] += info.bytes();
        if (info.shape.size() >= 2 && !m.spec.quantization)
          ++matrices[checkpoint::dtype_name(info.dtype)];
        stored_head = stored_head || info.name == "lm_head.weight";
        ++m.stored_tensors;
      }
    });
  }
  m.stored_bytes.assign(bytes.begin(), bytes.end());
  std::sort(m.stored_bytes.begin(), m.stored_bytes.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  if (matrices.size() > 1) {
    std::string kinds;
    for (const auto& [name, count] : matrices)
      kinds += fmt::format("{}{} of {}", kinds.empty() ? "" : ", ", count, name);
    find(m, Level::kNote, "the matrices are of different types: " + kinds);
  }
  if (stored_head && m.spec.tied_embeddings)
    find(m, Level::kNote,
         "lm_head.weight is stored although config.json ties it to the token embedding: it is not "
         "used");
}

/// What config.json says beside the model, against what is there.
void inspect_config(ModelInspection& m, const std::string& text) {
  const OrderedJson config = parse_ordered_json(text, "config.json", ErrorCode::kConfig);
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string() && *type != m.spec.family)
    find(m, Level::kNote,
         fmt::format("config.json says model_type = {}: it is read as {}, and exported as that",
                     type->dump(), m.spec.family));
  for (const char* key : {"attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"}) {
    const auto share = config.find(key);
    if (share != config.end() && share->is_number() && *share != 0)
      find(m, Level::kNote,
           fmt::format("config.json says {} = {}: training here has no dropout", key,
                       share->dump()));
  }
  const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
  static const std::map<std::string, std::string> names = {
      {"float32", "F32"}, {"bfloat16", "BF16"}, {"float16", "F16"}, {"float64", "F64"}};
  if (!config.contains(key) || !config[key].is_string() || m.stored_bytes.empty()) return;
  const auto said = names.find(config[key].get<std::string>());
  // Of quantised weights it is the type of the others.
  if (m.huggingface && !m.spec.quantization && said != names.end() &&
      said->second != m.stored_bytes.front().first)
    find(m, Level::kNote,
         fmt::format("config.json says {} = \"{}\", but most of the weights are {}", key,
                     said->first, m.stored_bytes.front().first));
}

std::string tokenizer_kind(const std::string& text, const std::string& origin) {
  const Json json = parse_json(text, origin);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) return "unknown";
  const Json& model = json["model"];
  const std::string type = model.value("type", "BPE");
  if (type != "BPE") return type;
  const std::string steps =
      json.value("pre_tokenizer", Json()).dump() + json.value("decoder", Json()).dump();
  if (steps.find("\"ByteLevel\"") != std::string::npos) return "BPE on bytes";
  return model.contains("byte_fallback") && model["byte_fallback"] == true
             ? "BPE on characters, others as bytes"
             : "BPE on characters";
}

void inspect_tokenizer(ModelInspection& m, const std::string& text, const std::string& config) {
  const std::string origin = (m.path / "tokenizer.json").string();
  if (text.empty()) {
    find(m, Level::kWarning, "there is no tokenizer.json: text cannot be encoded",
         "put the tokenizer.json that the model was trained with there, or work with ids");
    return;
  }
  std::unique_ptr<data::Tokenizer> tokenizer;
  if (!attempt(m, Level::kProblem, [&] {
        m.tokenizer_kind = tokenizer_kind(text, origin);
        tokenizer = data::parse_tokenizer(text, origin, config);
      }))
    return;
  m.tokenizer_vocab_size = tokenizer->vocab_size();
  if (tokenizer->bos_id()) m.bos = tokenizer->id_to_token(*tokenizer->bos_id());
  if (tokenizer->eos_id()) m.eos = tokenizer->id_to_token(*tokenizer->eos_id());
  const int64_t rows = m.spec.vocab_size;
  if (rows == 0) return;
  if (m.tokenizer_vocab_size > rows) {
    find(m, Level::kProblem,
         fmt::format("the tokenizer has ids up to {}, the model a vocabulary of {}",
                     m.tokenizer_vocab_size - 1, rows),
         "use the model's own tokenizer");
  } else if (m.tokenizer_vocab_size < rows) {
    find(m, Level::kNote,
         fmt::format("the model's vocabulary of {} is {} larger than the tokenizer's", rows,
                     rows - m.tokenizer_vocab_size));
  }
  const auto compare = [&](const char* name, int id, std::optional<int32_t> ours) {
    if (id >= 0 && ours && *ours != id)
      find(m, Level::kWarning,
           fmt::format("config.json says {} = {}, the tokenizer's is {} (\"{}\")", name, id, *ours,
                       tokenizer->id_to_token(*ours)));
  };
  compare("bos_token_id", m.spec.bos_token_id, tokenizer->bos_id());
  compare("eos_token_id", m.spec.eos_token_id, tokenizer->eos_id());
}

void inspect_chat_template(ModelInspection& m) {
  m.chat_template = "not covered";
  attempt(m, Level::kWarning, [&] {
    const auto chat = data::load_chat_template(m.path.string());
    m.chat_template = chat == nullptr          ? "none"
                      : chat->has_generation() ? "covered, marks what is generated"
                                               : "covered";
  });
}

/// What generation keeps of one sequence as long as the context.
int64_t cache_bytes(const model::ModelSpec& spec, int64_t element_bytes) {
  int64_t bytes = 0;
  for (const model::LayerSpec& layer : spec.layers) {
    const nn::CachedShape cached = nn::cached_shape(layer.attention);
    bytes +=
        spec.max_positions * cached.heads * (cached.key_dim + cached.value_dim) * element_bytes;
  }
  return bytes;
}

/// `trained`: m.spec with what training takes of its modules of multi-token prediction.
void inspect_memory(ModelInspection& m, const model::ModelSpec& trained) {
  RunConfig run;
  run.batch.sequences = run.batch.micro = run.batch.lanes = 1;
  run.data.seq_len = m.seq_len;
  const model::ModelSpec running = model::without_mtp(m.spec);
  attempt(m, Level::kNote, [&] {
    for (const plan::Precision precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      ModelMemory memory;
      memory.precision = plan::to_string(precision);
      for (const bool least : {false, true}) {
        run.memory.recompute = {least ? "full" : "none"};
        const plan::Strategy strategy = strategy_of(run, trained, precision);
        const plan::Program program = plan::build_program(trained, strategy);
        (least ? memory.train_least_bytes : memory.train_bytes) =
            plan::simulate(program, std::vector<double>(program.instructions.size(), 1e-3))
                .peak_bytes;
        memory.train_resident_bytes = program.resident_bytes;
        const plan::ResidentBytes held = plan::resident_bytes(running, strategy);
        memory.cache_bytes = cache_bytes(running, plan::element_bytes(precision));
        memory.run_bytes = held.total() - held.optimizer_states + memory.cache_bytes;
      }
      m.memory.push_back(memory);
    }
  });
}

}  // namespace

bool ModelInspection::ok() const {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& f) { return f.level == Level::kProblem; });
}

ModelInspection inspect_model(const fs::path& path) {
  TRIREME_USER_CHECK(fs::exists(path), kData, "check the path", "there is no {}", path.string());
  ModelInspection m;
  m.path = path;
  std::map<std::string, std::string> texts;
  std::error_code ignored;
  const auto read = [&](const char* name) {
    if (!texts.contains(name) && fs::exists(m.path / name, ignored))
      texts[name] = read_file(m.path / name);
    return texts[name];
  };
  const bool opened = attempt(m, Level::kProblem, [&] {
    checkpoint::ModelSource source = checkpoint::open_model(path);
    m.path = source.path;
    m.huggingface = source.huggingface;
    m.mtp_stored = source.spec.num_mtp_layers > 0 && source.form.mtp;
    m.spec = std::move(source.spec);
    texts = std::move(source.texts);
  });
  // Weights that do not fit leave a config that may still be read.
  if (!opened && fs::exists(m.path / "config.json", ignored)) {
    ModelInspection quiet = m;
    attempt(quiet, Level::kNote, [&] {
      m.spec = model::spec_from_config(read("config.json"), (m.path / "config.json").string());
    });
  }
  inspect_files(m);
  if (m.spec.quantization)
    find(m, Level::kNote,
         fmt::format("the weights are quantised ({}): they are dequantised as they are read, and "
                     "take memory as others do",
                     model::describe(*m.spec.quantization)));
  if (m.spec.vocab_size > 0) {
    inspect_config(m, read("config.json"));
    m.mtp_parameters = m.spec.num_mtp_parameters();
    m.parameters = m.spec.num_parameters() - m.mtp_parameters;
    m.active_parameters = m.spec.num_active_parameters();
    m.seq_len = std::min(m.spec.max_positions, kSeqLen);
    const model::ModelSpec trained = m.mtp_stored ? m.spec : model::without_mtp(m.spec);
    m.flops_per_token = model::flops_per_token(trained, m.seq_len).model();
    inspect_memory(m, trained);
  }
  inspect_tokenizer(m, read("tokenizer.json"), read("tokenizer_config.json"));
  inspect_chat_template(m);
  return m;
}

OrderedJson to_json(const ModelInspection& m) {
  OrderedJson json = {{"path", m.path.string()},
                      {"kind", m.huggingface ? "huggingface" : "checkpoint"}};
  json["family"] = m.spec.family;
  json["architecture"] = m.spec.architecture;
  json["parameters"] = m.parameters;
  json["active_parameters"] = m.active_parameters;
  json["multi_token_prediction"] = nullptr;
  if (m.spec.num_mtp_layers > 0)
    json["multi_token_prediction"] = {{"modules", m.spec.num_mtp_layers},
                                      {"parameters", m.mtp_parameters},
                                      {"stored", m.mtp_stored}};
  json["flops_per_token"] = m.flops_per_token;
  json["layers"] = m.spec.num_main_layers();
  json["hidden"] = m.spec.hidden;
  json["vocab_size"] = m.spec.vocab_size;
  json["context"] = m.spec.max_positions;
  json["tied_embeddings"] = m.spec.tied_embeddings;
  json["stored"] = {{"tensors", m.stored_tensors}, {"bytes", OrderedJson::object()}};
  for (const auto& [type, bytes] : m.stored_bytes) json["stored"]["bytes"][type] = bytes;
  json["quantization"] = nullptr;
  if (m.spec.quantization) json["quantization"] = model::describe(*m.spec.quantization);
  json["tokenizer"] = nullptr;
  if (!m.tokenizer_kind.empty())
    json["tokenizer"] = {{"kind", m.tokenizer_kind},
                         {"vocab_size", m.tokenizer_vocab_size},
                         {"bos", m.bos},
                         {"eos", m.eos}};
  json["chat_template"] = m.chat_template;
  json["memory"] = OrderedJson::array();
  for (const ModelMemory& memory : m.memory)
    json["memory"].push_back({{"precision", memory.precision},
                              {"run_bytes", memory.run_bytes},
                              {"cache_bytes", memory.cache_bytes},
                              {"train_bytes", memory.train_bytes},
                              {"train_least_bytes", memory.train_least_bytes},
                              {"train_resident_bytes", memory.train_resident_bytes},
                              {"seq_len", m.seq_len}});
  return json;
}

std::string describe(const ModelInspection& m) {
  const auto bytes = [](int64_t n) { return bytes_text(static_cast<double>(n)); };
  std::string text = fmt::format("{:<14} {} ({})\n", "model", m.path.string(),
                                 m.huggingface ? "Hugging Face directory" : "checkpoint");
  if (m.spec.vocab_size > 0) {
    text += fmt::format("{:<14} {}, {} layers of {}, vocabulary {}, context {}\n", "family",
                        m.spec.family, m.spec.num_main_layers(), m.spec.hidden, m.spec.vocab_size,
                        m.spec.max_positions);
    text +=
        fmt::format("{:<14} {} parameters", "size", count_text(static_cast<double>(m.parameters)));
    if (m.active_parameters < m.parameters)
      text += fmt::format(", {} active for a token",
                          count_text(static_cast<double>(m.active_parameters)));
    text += fmt::format("; {} operations a trained token\n", count_text(m.flops_per_token));
    if (m.spec.num_mtp_layers > 0)
      text += fmt::format("multi-token prediction: {}, {}\n",
                          mtp_text(m.spec.num_mtp_layers, m.mtp_parameters),
                          m.mtp_stored ? "stored" : "not stored");
  }
  std::string types;
  for (const auto& [type, size] : m.stored_bytes)
    types += fmt::format("{}{} of {}", types.empty() ? "" : ", ", bytes(static_cast<int64_t>(size)),
                         type);
  text += fmt::format("{:<14} {} tensors{}\n", "stored", m.stored_tensors,
                      types.empty() ? "" : ": " + types);
  for (const ModelMemory& memory : m.memory) {
    text += fmt::format(
        "{:<14} {} to run, {} of it the cache of a sequence of {}; {} to train on one of {}{}\n",
        "memory, " + memory.precision, bytes(memory.run_bytes), bytes(memory.cache_bytes),
        m.spec.max_positions, bytes(memory.train_bytes), m.seq_len,
        memory.train_least_bytes < memory.train_bytes
            ? fmt::format(", {} with recompute = \"full\"", bytes(memory.train_least_bytes))
            : "");
  }
  text += fmt::format("{:<14} {}\n", "tokenizer",
                      m.tokenizer_kind.empty()
                          ? "none"
                          : fmt::format("{}, {} ids, begins with \"{}\", ends with \"{}\"",
                                        m.tokenizer_kind, m.tokenizer_vocab_size, m.bos, m.eos));
  return text + fmt::format("{:<14} {}\n", "chat template", m.chat_template);
}

}  // namespace trireme::train
