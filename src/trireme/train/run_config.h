// The run file: what the user writes in RUN.toml, as a struct.
//
// One schema table (run_schema.cpp) names every key with its type, default, meaning and limits. It
// drives the parser, --set, error messages, docs/run_file.md and the effective run.toml, so that
// none of them can disagree. Paths are relative to the working directory, as on any command line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::train {

/// One entry of data.train: files that a pattern names, and their share of the blend.
struct DataSource {
  std::string path;
  double weight = 0.0;  ///< 0: by size, so that every token of every source is seen equally often
  bool operator==(const DataSource&) const = default;
};

/// The values of a run file. A default here is the default of the key.
struct RunConfig {
  std::string out;
  int64_t seed = 1234;

  struct Model {
    std::string config;
    std::string preset;
    std::string init = "random";
    int64_t vocab_size = 0;
  } model;

  struct Tokenizer {
    std::string path = "bytes";
  } tokenizer;

  struct Data {
    std::vector<DataSource> train;
    std::vector<DataSource> valid;
    double valid_fraction = 0.0;
    int64_t seq_len = 512;
    std::string packing = "documents";
    std::string jsonl_field = "text";
    std::string separator;
    std::string loss_mask = "none";
    std::string chat_template;
    std::string cache;
    int64_t prefetch = 4;
    std::string baselines;
  } data;

  struct Batch {
    int64_t sequences = 64;
    int64_t micro = 8;
    int64_t lanes = 8;
    int64_t ramp_start = 0;
    int64_t ramp_steps = 0;
  } batch;

  struct Optim {
    std::string name = "adamw";
    double lr = 3e-4;
    std::vector<double> betas = {0.9, 0.95};
    double eps = 1e-8;
    double weight_decay = 0.1;
    double clip = 1.0;
    double momentum = 0.95;
    bool nesterov = true;
    int64_t ns_steps = 5;
    std::string adjust = "match_rms_adamw";
  } optim;

  struct Schedule {
    std::string name = "cosine";
    int64_t steps = 2000;
    int64_t warmup = 100;
    double min_lr_ratio = 0.1;
    int64_t decay = 0;
    std::string decay_shape = "sqrt";
  } schedule;

  struct Precision {
    std::string recipe = "auto";
    std::string gradient_sums = "fp32";
  } precision;

  struct Loss {
    std::string non_finite = "stop";
    int64_t max_skips = 10;
    double mtp_weight = 0.3;
  } loss;

  struct Moe {
    std::string balance = "config";
    double aux_loss = -1.0;
    double z_loss = 0.0;
    double bias_update_rate = 0.001;
    double capacity_factor = 0.0;
    bool pad = false;
  } moe;

  struct Parallel {
    int64_t dp = 1;
    int64_t zero = 0;
    int64_t shard = 0;
    int64_t tp = 1;
    int64_t pp = 1;
    std::string schedule = "1f1b";
    int64_t chunks = 1;
    int64_t cp = 1;
    std::string cp_kind = "ring";
    int64_t ep = 1;
    int64_t etp = 1;
    std::string reduction = "exact";
    int64_t in_turn = 0;
    double timeout_s = 600.0;
  } parallel;

  struct Memory {
    std::vector<std::string> recompute = {"none"};
    std::vector<std::string> offload_activations = {"none"};
    bool offload_optimizer = false;
    int64_t loss_chunk_rows = 0;
    bool delay_weight_gradients = false;
  } memory;

  struct Eval {
    int64_t every = 200;
    int64_t sequences = 0;
  } eval;

  struct Checkpoint {
    int64_t every = 500;
    int64_t keep = 3;
  } checkpoint;

  struct Log {
    int64_t every = 10;
    bool tensorboard = true;
    bool report = true;
    int64_t trace_step = 3;
    std::vector<std::string> compare;
  } log;

  struct Sample {
    std::vector<std::string> prompts;
    int64_t tokens = 120;
    double temperature = 0.8;
    double top_p = 0.95;
  } sample;

  struct Export {
    bool enabled = true;
  } hf_export;

  struct Device {
    std::string name = "cpu";
    std::string
        plugin;  ///< the library of a device that is not ours; "": none, or one of the search path
    bool graphs = false;      ///< plan::Strategy::record
    std::string collectives;  ///< the library of its collectives, "host", or "": what is found
  } device;

  struct Kernels {
    std::vector<std::string> load;
    std::map<std::string, std::string> use;  ///< kernel by op
  } kernels;

  int64_t threads = 0;
};

/// Where a value comes from.
struct Origin {
  enum class Kind { kDefault, kFile, kSet, kDerived };
  Kind kind = Kind::kDefault;
  std::string where;  ///< "run.toml:12" for kFile, a reason for kDerived
  std::string text() const;
};

/// A run file that was read: its values, and where each of them comes from (by full key).
struct RunFile {
  RunConfig config;
  std::map<std::string, Origin> origins;
  std::string path;
};

/// Whether the user gave the key a value, in the file or with --set.
bool is_written(const RunFile& run, const std::string& key);

/// Parses TOML text named `origin` in messages, then applies `sets` ("table.key=value") in order.
/// Error{kConfig} with file:line and the nearest known key on anything that is not right.
RunFile parse_run_file(const std::string& text, const std::string& origin,
                       const std::vector<std::string>& sets = {});

/// Reads and parses a file. Error{kConfig} if it is missing.
RunFile load_run_file(const std::filesystem::path& path, const std::vector<std::string>& sets = {});

/// The complete run file with each value's origin as a comment. Reading it gives an equal
/// RunConfig.
std::string effective_toml(const RunFile& run);

/// [{key, value, origin}] in the order of the schema.
OrderedJson effective_json(const RunFile& run);

/// Keys whose values differ, as "key: a here, b there". Keys that do not shape the result of the
/// run (log, checkpoint, paths of outputs, schedule length unless `all`) are left out.
std::vector<std::string> differing_keys(const RunConfig& a, const RunConfig& b);

/// docs/run_file.md, from the schema.
std::string schema_markdown();

/// Every full key, in the order of the schema.
std::vector<std::string> schema_keys();

}  // namespace trireme::train
