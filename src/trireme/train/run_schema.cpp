#include "trireme/train/run_schema.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/suggest.h"
#include "trireme/plan/parallel.h"

namespace trireme::train {

std::string SchemaEntry::table() const {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

std::string SchemaEntry::name() const {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? key : key.substr(dot + 1);
}

namespace {

Limit any() {
  return {[](const Value&) { return std::string(); }, ""};
}

Limit at_least(int64_t low) {
  return {[low](const Value& value) {
            return std::get<int64_t>(value) >= low ? "" : fmt::format("must be at least {}", low);
          },
          fmt::format("at least {}", low)};
}

Limit integer_between(int64_t low, int64_t high) {
  return {[low, high](const Value& value) {
            const int64_t n = std::get<int64_t>(value);
            return n >= low && n <= high ? "" : fmt::format("must be from {} to {}", low, high);
          },
          fmt::format("{} to {}", low, high)};
}

Limit power_of_two() {
  return {[](const Value& value) -> std::string {
            const int64_t n = std::get<int64_t>(value);
            return n >= 1 && (n & (n - 1)) == 0
                       ? ""
                       : "must be a power of two: lanes are combined by a binary tree";
          },
          "a power of two"};
}

Limit positive() {
  return {[](const Value& value) -> std::string {
            return std::get<double>(value) > 0 ? "" : "must be greater than 0";
          },
          "greater than 0"};
}

Limit not_negative() {
  return {[](const Value& value) -> std::string {
            return std::get<double>(value) >= 0 ? "" : "must not be negative";
          },
          "at least 0"};
}

Limit between(double low, double high, bool open_high) {
  const std::string text = open_high ? fmt::format("at least {} and below {}", low, high)
                                     : fmt::format("from {} to {}", low, high);
  return {[=](const Value& value) {
            const double x = std::get<double>(value);
            return x >= low && (open_high ? x < high : x <= high) ? "" : "must be " + text;
          },
          text};
}

Limit above_zero_to_one() {
  return {[](const Value& value) {
            const double x = std::get<double>(value);
            return x > 0 && x <= 1 ? "" : "must be above 0 and at most 1";
          },
          "above 0, at most 1"};
}

Limit one_of(std::vector<std::string> names) {
  std::string list;
  for (const std::string& name : names) {
    list += (list.empty() ? "`" : ", `") + name + "`";
  }
  return {[names](const Value& value) -> std::string {
            const std::string& text = std::get<std::string>(value);
            if (std::find(names.begin(), names.end(), text) != names.end()) return "";
            return "is not known; " + suggestion(text, names);
          },
          list};
}

/// The name of a schedule, or a path.
Limit schedule() {
  const Limit name = one_of(plan::schedule_names());
  return {[name](const Value& value) -> std::string {
            if (plan::names_schedule_file(std::get<std::string>(value))) return "";
            return name.problem(value);
          },
          name.text + ", or the path of a file (with a slash or a dot in it)"};
}

Limit two_betas() {
  return {[](const Value& value) -> std::string {
            const auto& betas = std::get<std::vector<double>>(value);
            if (betas.size() != 2) return fmt::format("must be two numbers, not {}", betas.size());
            for (double beta : betas) {
              if (!(beta >= 0 && beta < 1)) return "must each be at least 0 and below 1";
            }
            return "";
          },
          "two numbers, each at least 0 and below 1"};
}

Limit sources() {
  return {[](const Value& value) -> std::string {
            for (const DataSource& source : std::get<std::vector<DataSource>>(value)) {
              if (source.path.empty()) return "has an empty path";
              if (!(source.weight >= 0) || !std::isfinite(source.weight)) {
                return fmt::format("has a weight of {}; a weight must be greater than 0",
                                   source.weight);
              }
            }
            return "";
          },
          ""};
}

Limit not_empty_text() {
  return {[](const Value& value) -> std::string {
            return std::get<std::string>(value).empty() ? "must not be empty" : "";
          },
          ""};
}

/// Binds a key to the member that `ref` returns.
template <typename Ref>
SchemaEntry key(std::string name, Ref ref, Limit limit, std::string doc,
                bool shapes_result = true) {
  SchemaEntry entry;
  entry.key = std::move(name);
  entry.doc = std::move(doc);
  entry.limit = std::move(limit);
  entry.shapes_result = shapes_result;
  entry.get = [ref](const RunConfig& config) { return Value(ref(const_cast<RunConfig&>(config))); };
  entry.set = [ref](RunConfig& config, Value value) {
    auto& member = ref(config);
    member = std::get<std::remove_reference_t<decltype(member)>>(std::move(value));
  };
  return entry;
}

SchemaEntry required(SchemaEntry entry) {
  entry.required = true;
  return entry;
}

#define REF(member) [](RunConfig& c) -> auto& { return c.member; }

std::vector<SchemaEntry> make_schema() {
  constexpr bool kNoEffect = false;  // shapes_result
  std::vector<SchemaEntry> s;
  s.push_back(
      required(key("out", REF(out), not_empty_text(),
                   "Folder for everything the run leaves behind. Made if absent.", kNoEffect)));
  s.push_back(key("seed", REF(seed), at_least(0),
                  "Seed of the initial weights and of the order of samples."));
  s.push_back(key("threads", REF(threads), at_least(0),
                  "Compute threads; 0: as many as the process has cores.", kNoEffect));

  s.push_back(key("model.config", REF(model.config), any(),
                  "Path of a Hugging Face `config.json`. Give this or `preset`."));
  s.push_back(key("model.preset", REF(model.preset), any(),
                  "A named model, e.g. `llama-11m`. Give this or `config`."));
  s.push_back(
      key("model.init", REF(model.init), not_empty_text(),
          "Initial weights: `random`, a Hugging Face directory or a checkpoint. With a directory, "
          "`config` and `preset` may be left out."));
  s.push_back(key("model.vocab_size", REF(model.vocab_size), at_least(0),
                  "Vocabulary of a preset; 0: the tokenizer's, rounded up to a multiple of 64."));

  s.push_back(key("tokenizer.path", REF(tokenizer.path), not_empty_text(),
                  "Path of a Hugging Face `tokenizer.json`, or `bytes`."));

  s.push_back(required(
      key("data.train", REF(data.train), sources(),
          "Training data: a file, a pattern (`**` for any depth), `.jsonl[.gz|.zst]`, or the "
          "prefix of a `.bin`/`.idx` pair; a list of these; `{ path, weight }` to blend.")));
  s.push_back(key("data.valid", REF(data.valid), sources(), "Validation data, as `train`."));
  s.push_back(key("data.valid_fraction", REF(data.valid_fraction), between(0, 1, true),
                  "Share of the training documents kept for validation, instead of `valid`."));
  s.push_back(key("data.seq_len", REF(data.seq_len), at_least(1), "Tokens a sequence predicts."));
  s.push_back(
      key("data.packing", REF(data.packing), one_of({"documents", "stream"}),
          "`documents`: attention and positions stay inside a document; `stream`: they do not."));
  s.push_back(key("data.jsonl_field", REF(data.jsonl_field), not_empty_text(),
                  "Name of the field of a JSONL line that holds the text."));
  s.push_back(key("data.separator", REF(data.separator), any(),
                  "Cuts a text file into documents; empty: a file is a document."));
  s.push_back(
      key("data.loss_mask", REF(data.loss_mask), one_of({"none", "answers"}),
          "`answers`: JSONL lines are conversations (`messages`), written out by the chat "
          "template, and only what the assistant says is predicted. `none`: every token is."));
  s.push_back(key("data.chat_template", REF(data.chat_template), any(),
                  "Path of a Jinja chat template; empty: the one beside the tokenizer."));
  s.push_back(key("data.cache", REF(data.cache), any(),
                  "Folder for tokenized text; empty: `cache/` in the output folder.", kNoEffect));
  s.push_back(key("data.prefetch", REF(data.prefetch), integer_between(1, 1024),
                  "Micro-batches that the reading thread keeps ready.", kNoEffect));
  s.push_back(key("data.baselines", REF(data.baselines), any(),
                  "JSON file with the bits per byte that compressors reach on the validation files "
                  "(`trireme data corpus` writes it); quoted in the last line.",
                  kNoEffect));

  s.push_back(key("batch.sequences", REF(batch.sequences), at_least(1),
                  "Global batch: sequences per optimizer step."));
  s.push_back(key("batch.micro", REF(batch.micro), at_least(1),
                  "Sequences per forward pass. `sequences` is a multiple of `micro` x `lanes`."));
  s.push_back(
      key("batch.lanes", REF(batch.lanes), power_of_two(),
          "Lanes of the exact reduction: how the global batch is cut. Part of the result."));
  s.push_back(key("batch.ramp_start", REF(batch.ramp_start), at_least(0),
                  "Batch ramp-up: sequences of the first step; 0: no ramp-up. A multiple of "
                  "`micro` x `lanes`."));
  s.push_back(key("batch.ramp_steps", REF(batch.ramp_steps), at_least(0),
                  "Steps over which the batch grows from `ramp_start` to `sequences`."));

  s.push_back(
      key("optim.name", REF(optim.name), one_of({"adamw", "muon"}),
          "`muon` orthogonalises the updates of hidden matrices and uses AdamW for the rest."));
  s.push_back(key("optim.lr", REF(optim.lr), positive(), "Peak learning rate."));
  s.push_back(key("optim.betas", REF(optim.betas), two_betas(), "Decay of AdamW's two moments."));
  s.push_back(key("optim.eps", REF(optim.eps), positive(), "AdamW's epsilon."));
  s.push_back(key("optim.weight_decay", REF(optim.weight_decay), not_negative(),
                  "Decoupled weight decay of matrices; never of norms, biases and positions."));
  s.push_back(key("optim.clip", REF(optim.clip), not_negative(),
                  "Largest global norm of the gradient; 0: no clipping."));
  s.push_back(key("optim.momentum", REF(optim.momentum), between(0, 1, true), "Muon's momentum."));
  s.push_back(key("optim.nesterov", REF(optim.nesterov), any(), "Nesterov momentum in Muon."));
  s.push_back(key("optim.ns_steps", REF(optim.ns_steps), integer_between(1, 20),
                  "Newton-Schulz iterations of Muon."));
  s.push_back(
      key("optim.adjust", REF(optim.adjust), one_of({"match_rms_adamw", "original"}),
          "How Muon scales its update: `match_rms_adamw` lets it share AdamW's learning rate."));

  s.push_back(key("schedule.name", REF(schedule.name),
                  one_of({"cosine", "linear", "constant", "wsd", "inverse-sqrt"}),
                  "Shape of the learning rate after the warm-up."));
  s.push_back(
      key("schedule.steps", REF(schedule.steps), at_least(1), "Optimizer steps of the run."));
  s.push_back(key("schedule.warmup", REF(schedule.warmup), at_least(0),
                  "Steps in which the learning rate rises linearly to its peak: step s has s / "
                  "warmup of it. By default a tenth of the steps "
                  "where 100 would be more than a quarter of them."));
  s.push_back(key("schedule.min_lr_ratio", REF(schedule.min_lr_ratio), between(0, 1, false),
                  "Last learning rate as a share of the peak (cosine, linear, wsd)."));
  s.push_back(key("schedule.decay", REF(schedule.decay), at_least(0),
                  "Steps of the final decay of `wsd`; 0: a fifth of the run."));
  s.push_back(key("schedule.decay_shape", REF(schedule.decay_shape),
                  one_of({"sqrt", "linear", "cosine"}), "Shape of the final decay of `wsd`."));

  s.push_back(
      key("precision.recipe", REF(precision.recipe), one_of({"auto", "fp32", "bf16"}),
          "`bf16`: bf16 parameters for compute, fp32 master weights and gradients. `auto` measures "
          "both products at the start and says which it took."));
  s.push_back(key(
      "precision.gradient_sums", REF(precision.gradient_sums), one_of({"fp32", "bf16"}),
      "Type in which lanes' gradients are added up, and sent between ranks; a lane's own are "
      "summed in fp32. `bf16` sends half the bytes. Part of the result, which ranks do not change "
      "where `parallel.reduction` is `exact`."));

  s.push_back(
      key("loss.non_finite", REF(loss.non_finite), one_of({"stop", "skip"}),
          "What a loss or gradient that is not finite does: `stop` ends the run with status 5 and "
          "leaves the last checkpoint; `skip` leaves the step out."));
  s.push_back(key("loss.max_skips", REF(loss.max_skips), at_least(1),
                  "Steps that `skip` may leave out in a row before the run stops."));
  s.push_back(key("loss.mtp_weight", REF(loss.mtp_weight), not_negative(),
                  "Weight of the mean loss of multi-token prediction, for models that have modules "
                  "for it (`num_nextn_predict_layers`). 0: they are left out of the run and of "
                  "what it exports, as are, where this key is not written, modules that "
                  "`model.init` has no tensors of."));

  s.push_back(key(
      "moe.balance", REF(moe.balance), one_of({"config", "none", "batch", "sequence", "global"}),
      "What the balancing loss is computed over: each micro-batch, each sequence, or the "
      "global batch (tokens counted in the step before). `config`: as the model's config says "
      "(a batch, or with `seq_aux` a sequence)."));
  s.push_back(key("moe.aux_loss", REF(moe.aux_loss), any(),
                  "Coefficient of the balancing loss, which is 1 when experts are even; below 0: "
                  "the model's config has it (`router_aux_loss_coef`, `aux_loss_alpha`)."));
  s.push_back(key("moe.z_loss", REF(moe.z_loss), not_negative(),
                  "Coefficient of the mean squared logsumexp of the router's logits."));
  s.push_back(key("moe.bias_update_rate", REF(moe.bias_update_rate), not_negative(),
                  "How far the selection bias of an expert moves a step (models that have one): "
                  "down if it took more than the mean of the global batch, else up."));
  s.push_back(key("moe.capacity_factor", REF(moe.capacity_factor), not_negative(),
                  "Tokens of an expert at most, in shares of an even load; those with the smallest "
                  "weights are dropped. 0: nothing is dropped."));
  s.push_back(key("moe.pad", REF(moe.pad), any(),
                  "With a capacity, experts always compute that many rows."));

  s.push_back(key("parallel.dp", REF(parallel.dp), at_least(1),
                  "Data parallel ranks, at most `batch.lanes`. Any number gives the same result.",
                  kNoEffect));
  s.push_back(key("parallel.zero", REF(parallel.zero), integer_between(0, 3),
                  "ZeRO stage: what data parallel ranks share. 1: optimizer states (and, in bf16, "
                  "float32 weights); 2: gradients too; 3: all weights, which come for their use. "
                  "The result is the same.",
                  kNoEffect));
  s.push_back(key("parallel.shard", REF(parallel.shard), at_least(0),
                  "Hybrid sharding: how many of the data parallel ranks share what `zero` says; "
                  "every block of so many has all of it. 0: all ranks. The result is the same.",
                  kNoEffect));
  s.push_back(key("parallel.tp", REF(parallel.tp), at_least(1),
                  "Tensor parallel ranks, which share every layer of the model. Another number "
                  "changes the result by rounding.",
                  kNoEffect));
  s.push_back(key("parallel.pp", REF(parallel.pp), at_least(1),
                  "Ranks of a pipeline: each has the layers of its stages. Any number gives the "
                  "same result.",
                  kNoEffect));
  s.push_back(key("parallel.schedule", REF(parallel.schedule), schedule(),
                  "Pipeline schedule, or a file that has one "
                  "([formats/pipeline_schedule.md](formats/pipeline_schedule.md)); without effect "
                  "where `pp` is 1. The result is the same.",
                  kNoEffect));
  s.push_back(key("parallel.chunks", REF(parallel.chunks), at_least(1),
                  "Pipeline stages a rank: 2 for `zbv`, `dualpipev` and `v-half`, at least 2 for "
                  "`interleaved`, 1 for the others.",
                  kNoEffect));
  s.push_back(
      key("parallel.cp", REF(parallel.cp), at_least(1),
          "Context parallel ranks, a power of two: they share every sequence. Another number gives "
          "the same result within rounding.",
          kNoEffect));
  s.push_back(key(
      "parallel.cp_kind", REF(parallel.cp_kind), one_of({"ring", "gather", "ulysses"}),
      "How context parallel attention communicates, `ring` or `gather` today; without effect where "
      "`cp` is 1.",
      kNoEffect));
  s.push_back(
      key("parallel.ep", REF(parallel.ep), at_least(1),
          "Expert parallel ranks: data parallel ranks next to one another that have a layer's "
          "experts between them; rows go to them and come back. Divides `dp` x `cp`; `dp` divides "
          "`batch.lanes`. The result is the same.",
          kNoEffect));
  s.push_back(key("parallel.etp", REF(parallel.etp), at_least(1),
                  "Tensor parallel ranks of experts.", kNoEffect));
  s.push_back(
      key("parallel.reduction", REF(parallel.reduction), one_of({"exact", "fast"}),
          "`exact`: the layout never changes the result. `fast`: the transport's own sums, in "
          "less memory, within rounding of it. On one rank both are exact.",
          kNoEffect));
  s.push_back(
      key("parallel.in_turn", REF(parallel.in_turn), integer_between(0, 4),
          "Without a pipeline: micro-batches that go through the parts in turn, so that what "
          "ranks exchange of one lies behind what others compute; the activations of all "
          "are held. With `ep` 2: one forward with the one before it backward. With `tp` 2: "
          "two forward, then both backward; 4: two forward with the two before them "
          "backward; where the head multiplies with the embedding, with one micro-batch a "
          "lane. 1: none. 0: 2 with `ep`, else 1. The result is the same.",
          kNoEffect));
  s.push_back(key("parallel.timeout_s", REF(parallel.timeout_s), positive(),
                  "Seconds after which a rank that others wait for counts as lost.", kNoEffect));

  s.push_back(
      key("memory.recompute", REF(memory.recompute), any(),
          "`none`, `selective`, `full`, or a list of parts to recompute: `layer.3.mlp`, `mlp`, "
          "`attention`, `layer.3`; with `:selective` after a name, only its element-wise results.",
          kNoEffect));
  s.push_back(key("memory.offload_activations", REF(memory.offload_activations), any(),
                  "`none`, `all`, or a list of parts (`layer.3.mlp`, `mlp`, `attention`, "
                  "`experts`, `layer.3`) whose "
                  "activations are in the host's memory between forward and backward (same bits). "
                  "For a device with "
                  "memory of its own; parts next to the loss stay where they are.",
                  kNoEffect));
  s.push_back(key(
      "memory.offload_optimizer", REF(memory.offload_optimizer), any(),
      "Optimizer states are kept in the host's memory; those of a part are on the device for its "
      "step, and before and after it "
      "while others need no memory (same bits). For a device with memory of its own.",
      kNoEffect));
  s.push_back(key("memory.loss_chunk_rows", REF(memory.loss_chunk_rows), at_least(0),
                  "Rows of logits that exist at once; 0: chosen by the planner."));
  s.push_back(key("memory.delay_weight_gradients", REF(memory.delay_weight_gradients), any(),
                  "Weight gradients of a micro-batch after all its input gradients (same bits).",
                  kNoEffect));

  s.push_back(key("eval.every", REF(eval.every), at_least(0),
                  "Steps between evaluations; 0: only after the last step.", kNoEffect));
  s.push_back(
      key("eval.sequences", REF(eval.sequences), at_least(0),
          "Validation sequences of an evaluation during the run; 0: all. The last one uses all.",
          kNoEffect));

  s.push_back(key("checkpoint.every", REF(checkpoint.every), at_least(0),
                  "Steps between checkpoints; 0: only after the last step.", kNoEffect));
  s.push_back(key("checkpoint.keep", REF(checkpoint.keep), at_least(1), "Newest checkpoints kept.",
                  kNoEffect));

  s.push_back(key("log.every", REF(log.every), at_least(1),
                  "Steps between lines when output is piped.", kNoEffect));
  s.push_back(key("log.tensorboard", REF(log.tensorboard), any(), "Write TensorBoard event files.",
                  kNoEffect));
  s.push_back(key("log.report", REF(log.report), any(), "Write `report.html`.", kNoEffect));
  s.push_back(key("log.compare", REF(log.compare), any(),
                  "Folders of other runs whose losses the report draws beside this run's, over "
                  "training time; those that are not there are left out.",
                  kNoEffect));
  s.push_back(key("log.trace_step", REF(log.trace_step), at_least(0),
                  "Step whose timeline goes to `trace.json`; 0: none.", kNoEffect));

  s.push_back(key("sample.prompts", REF(sample.prompts), any(),
                  "Prompts that the trained model continues after the last step.", kNoEffect));
  s.push_back(
      key("sample.tokens", REF(sample.tokens), at_least(1), "Tokens of a sample.", kNoEffect));
  s.push_back(key("sample.temperature", REF(sample.temperature), not_negative(),
                  "Temperature of samples; 0: greedy.", kNoEffect));
  s.push_back(key("sample.top_p", REF(sample.top_p), above_zero_to_one(), "Nucleus of samples.",
                  kNoEffect));

  s.push_back(key("export.enabled", REF(hf_export.enabled), any(),
                  "Write a Hugging Face directory to `export/` after the last step.", kNoEffect));

  s.push_back(key("device.name", REF(device.name), any(),
                  "Where the run's tensors lie and its kernels run: `cpu`, or `sim`, the simulated "
                  "accelerator (`sim:1`: the second one), which trains to the same bits, or the "
                  "device that a plug-in brings.",
                  kNoEffect));
  s.push_back(key("device.plugin", REF(device.plugin), any(),
                  "The library that brings the device (`docs/devices.md`), or several with `:` "
                  "between them. Empty: `libtorch_NAME.so` or "
                  "`libNAME.so` in the folders of the variable `TRIREME_DEVICE_PATH`.",
                  kNoEffect));
  s.push_back(
      key("device.graphs", REF(device.graphs), any(),
          "Record the attentions and MLPs of a micro-batch once and run them again at one "
          "call (CUDA's graphs); with `data.packing = \"stream\"`: for models so small that "
          "launching their kernels takes longer than running them.",
          kNoEffect));
  s.push_back(key("device.collectives", REF(device.collectives), any(),
                  "How ranks that are processes talk: the library of the device's collectives "
                  "(`docs/devices.md`), or `host`: through the host's memory, over TCP. Empty: "
                  "`libtrireme_NAME_collectives.so` where device libraries are found, else `host`.",
                  kNoEffect));

  s.push_back(key("kernels.load", REF(kernels.load), any(),
                  "Shared libraries with kernels (`examples/kernel`)."));
  s.push_back(key("kernels.use", REF(kernels.use), any(),
                  "Kernels by op, as `{ rms_norm = \"my_rms_norm\" }`, in place of those of the "
                  "highest priority. `trireme doctor --kernels` lists both."));
  return s;
}

#undef REF

}  // namespace

const std::vector<SchemaEntry>& schema() {
  static const std::vector<SchemaEntry> entries = make_schema();
  return entries;
}

const std::vector<SchemaTable>& schema_tables() {
  static const std::vector<SchemaTable> tables = {
      {"", "At the top of the file."},
      {"model", "What is trained."},
      {"tokenizer", "How text becomes ids."},
      {"data", "What it is trained on."},
      {"batch", "How much of it an optimizer step sees."},
      {"optim", "The optimizer."},
      {"schedule", "The learning rate over the run."},
      {"precision", "Number formats of compute."},
      {"loss", "What the loss is made of, and what happens when it is not a number."},
      {"moe", "Balance and capacity of experts, for models that have them."},
      {"parallel", "How the run is laid out over ranks: `trireme launch`."},
      {"memory", "What is kept for the backward pass and what is made again."},
      {"eval", "Loss and bits per byte on the validation data."},
      {"checkpoint", "Saved state."},
      {"log", "What is written while training."},
      {"sample", "Text that the trained model writes."},
      {"export", "The finished model."},
      {"device", "What computes."},
      {"kernels", "Which function computes an op."}};
  return tables;
}

const SchemaEntry* find_entry(const std::string& key) {
  for (const SchemaEntry& entry : schema()) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

std::string type_text(const Value& value) {
  static const char* const kNames[] = {"true or false",
                                       "a whole number",
                                       "a number",
                                       "a text in quotes",
                                       "a text or a list of texts",
                                       "a list of numbers",
                                       "a path, a { path, weight } table, or a list of these",
                                       "a table of texts"};
  return kNames[value.index()];
}

namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (c == '\n') {
      result += "\\n";
    } else if (c == '\t') {
      result += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\u{:04X}", byte);
    } else {
      result += c;
    }
  }
  return result + '"';
}

std::string number(double x) {
  std::string text = fmt::format("{}", x);
  // TOML takes 1e-05 for a float, but 3 for an integer: keep the type in sight.
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

template <typename List, typename Text>
std::string list_text(const List& list, Text text) {
  std::string result = "[";
  for (size_t i = 0; i < list.size(); ++i) result += (i == 0 ? "" : ", ") + text(list[i]);
  return result + "]";
}

}  // namespace

std::string toml_text(const Value& value) {
  struct Visitor {
    std::string operator()(bool x) const { return x ? "true" : "false"; }
    std::string operator()(int64_t x) const { return std::to_string(x); }
    std::string operator()(double x) const { return number(x); }
    std::string operator()(const std::string& x) const { return quoted(x); }
    std::string operator()(const std::vector<std::string>& x) const {
      return x.size() == 1 ? quoted(x[0]) : list_text(x, quoted);
    }
    std::string operator()(const std::vector<double>& x) const { return list_text(x, number); }
    std::string operator()(const std::map<std::string, std::string>& x) const {
      std::string result;
      for (const auto& [name, text] : x)
        result += fmt::format("{} {} = {}", result.empty() ? "" : ",", quoted(name), quoted(text));
      return result.empty() ? "{}" : "{" + result + " }";
    }
    std::string operator()(const std::vector<DataSource>& x) const {
      return list_text(x, [](const DataSource& source) {
        if (source.weight == 0) return quoted(source.path);
        return fmt::format("{{ path = {}, weight = {} }}", quoted(source.path),
                           number(source.weight));
      });
    }
  };
  return std::visit(Visitor{}, value);
}

}  // namespace trireme::train
