#include "trireme/train/run_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/suggest.h"
#include "trireme/base/toml.h"
#include "trireme/train/run_schema.h"

namespace trireme::train {

std::string Origin::text() const {
  switch (kind) {
    case Kind::kDefault:
      return "default";
    case Kind::kFile:
      return where;
    case Kind::kSet:
      return "--set " + where;
    case Kind::kDerived:
      return where;
  }
  return "";
}

namespace {

const char kDocHint[] = "every key is in docs/run_file.md, or type: trireme train --print-schema";

std::string node_kind(const toml::node& node) {
  if (node.is_table()) return "a table";
  if (node.is_array()) return "a list";
  if (node.is_string()) return "a text";
  if (node.is_integer()) return "a whole number";
  if (node.is_floating_point()) return "a number with a fraction";
  if (node.is_boolean()) return "true or false";
  return "a date or time";
}

/// Reads one value of the type that the key's default has. Throws Error{kConfig}.
class ValueReader {
 public:
  ValueReader(const SchemaEntry& entry, std::string where)
      : entry_(entry), where_(std::move(where)) {}

  Value read(const toml::node& node) const {
    const Value wanted = entry_.get(RunConfig());
    Value value = std::visit([&](const auto& example) { return convert(node, example); }, wanted);
    const std::string problem = entry_.limit.problem(value);
    TRIREME_USER_CHECK(problem.empty(), kConfig, hint(), "{}: {} = {} {}", where_, entry_.key,
                       toml_text(value), problem);
    return value;
  }

 private:
  [[noreturn]] void wrong_type(const toml::node& node) const {
    throw Error(ErrorCode::kConfig,
                fmt::format("{}: {} wants {}, but {} is written there", where_, entry_.key,
                            type_text(entry_.get(RunConfig())), node_kind(node)),
                hint());
  }

  std::string hint() const {
    return entry_.limit.text.empty()
               ? entry_.doc
               : fmt::format("{} Allowed: {}.", entry_.doc, entry_.limit.text);
  }

  Value convert(const toml::node& node, bool) const {
    if (!node.is_boolean()) wrong_type(node);
    return node.as_boolean()->get();
  }
  Value convert(const toml::node& node, int64_t) const {
    if (!node.is_integer()) wrong_type(node);
    return node.as_integer()->get();
  }
  Value convert(const toml::node& node, double) const { return real(node); }
  Value convert(const toml::node& node, const std::string&) const { return text(node); }

  Value convert(const toml::node& node, const std::vector<std::string>&) const {
    std::vector<std::string> result;
    if (const toml::array* list = node.as_array()) {
      for (const toml::node& item : *list) result.push_back(text(item));
    } else {
      result.push_back(text(node));
    }
    return result;
  }

  Value convert(const toml::node& node, const std::vector<double>&) const {
    std::vector<double> result;
    const toml::array* list = node.as_array();
    if (list == nullptr) wrong_type(node);
    for (const toml::node& item : *list) result.push_back(real(item));
    return result;
  }

  Value convert(const toml::node& node, const std::vector<DataSource>&) const {
    std::vector<DataSource> result;
    if (const toml::array* list = node.as_array()) {
      for (const toml::node& item : *list) result.push_back(source(item));
    } else {
      result.push_back(source(node));
    }
    return result;
  }

  Value convert(const toml::node& node, const std::map<std::string, std::string>&) const {
    const toml::table* table = node.as_table();
    if (table == nullptr) wrong_type(node);
    std::map<std::string, std::string> result;
    for (const auto& [name, item] : *table) result[std::string(name.str())] = text(item);
    return result;
  }

  double real(const toml::node& node) const {
    double x = 0;
    if (const auto* integer = node.as_integer()) {
      x = static_cast<double>(integer->get());
    } else if (const auto* floating = node.as_floating_point()) {
      x = floating->get();
    } else {
      wrong_type(node);
    }
    TRIREME_USER_CHECK(std::isfinite(x), kConfig, hint(), "{}: {} = {} is not a finite number",
                       where_, entry_.key, x);
    return x;
  }

  std::string text(const toml::node& node) const {
    if (!node.is_string()) wrong_type(node);
    return node.as_string()->get();
  }

  DataSource source(const toml::node& node) const {
    if (node.is_string()) return {node.as_string()->get(), 0.0};
    const toml::table* table = node.as_table();
    if (table == nullptr) wrong_type(node);
    DataSource result;
    bool has_path = false;
    for (const auto& [name, item] : *table) {
      if (name == "path") {
        result.path = text(item);
        has_path = true;
      } else if (name == "weight") {
        result.weight = real(item);
        TRIREME_USER_CHECK(result.weight > 0, kConfig, "leave the source out to leave it out",
                           "{}: {} has a weight of {}; a weight must be greater than 0", where_,
                           entry_.key, result.weight);
      } else {
        throw Error(ErrorCode::kConfig,
                    fmt::format("{}: {} has an unknown key '{}'", where_, entry_.key,
                                std::string(name.str())),
                    suggestion(std::string(name.str()), {"path", "weight"}));
      }
    }
    TRIREME_USER_CHECK(has_path, kConfig, "write { path = \"...\", weight = 1.0 }",
                       "{}: {} has a table without a path", where_, entry_.key);
    return result;
  }

  const SchemaEntry& entry_;
  std::string where_;
};

[[noreturn]] void unknown_key(const std::string& where, const std::string& key) {
  const size_t dot = key.rfind('.');
  const std::string table = dot == std::string::npos ? "" : key.substr(0, dot);
  const std::string name = dot == std::string::npos ? key : key.substr(dot + 1);
  std::vector<std::string> siblings;
  for (const SchemaEntry& entry : schema()) {
    if (entry.table() == table) siblings.push_back(entry.name());
  }
  if (table.empty()) {
    for (const SchemaTable& known : schema_tables()) {
      if (!known.name.empty()) siblings.push_back(known.name);
    }
  }
  std::string hint = nearest_name(name, siblings).empty() ? "" : suggestion(name, siblings);
  if (hint.empty()) {
    const std::string full = nearest_name(key, schema_keys());
    // The same name in another table is the likelier slip than a distant spelling.
    for (const SchemaEntry& entry : schema()) {
      if (entry.name() == name) hint = fmt::format("did you mean '{}'?", entry.key);
    }
    if (hint.empty() && !full.empty()) hint = fmt::format("did you mean '{}'?", full);
  }
  if (hint.empty()) hint = siblings.empty() ? kDocHint : suggestion(name, siblings);
  throw Error(ErrorCode::kConfig, fmt::format("{}: unknown key '{}'", where, key), hint);
}

bool is_table_name(const std::string& name) {
  return std::any_of(schema_tables().begin(), schema_tables().end(), [&](const SchemaTable& table) {
    return !table.name.empty() && table.name == name;
  });
}

void read_table(const toml::table& table, const std::string& prefix, const std::string& origin,
                RunFile& run) {
  // In file order, so that the first mistake in the file is the one reported.
  std::vector<std::pair<std::string, const toml::node*>> items;
  for (const auto& [name, node] : table) items.emplace_back(std::string(name.str()), &node);
  std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) {
    return a.second->source().begin.line < b.second->source().begin.line;
  });
  for (const auto& [name, node] : items) {
    const std::string key = prefix.empty() ? name : prefix + "." + name;
    const std::string where = fmt::format("{}:{}", origin, node->source().begin.line);
    if (const SchemaEntry* entry = find_entry(key)) {
      entry->set(run.config, ValueReader(*entry, where).read(*node));
      run.origins[key] = {Origin::Kind::kFile, where};
    } else if (is_table_name(key)) {
      const toml::table* inner = node->as_table();
      TRIREME_USER_CHECK(
          inner != nullptr, kConfig, fmt::format("write [{}] on a line of its own", key),
          "{}: {} is a table, but {} is written there", where, key, node_kind(*node));
      read_table(*inner, key, origin, run);
    } else {
      unknown_key(where, key);
    }
  }
}

toml::table parse_toml(const std::string& text, const std::string& origin) {
  try {
    return toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    throw Error(ErrorCode::kConfig,
                fmt::format("{}:{}:{}: {}", origin, error.source().begin.line,
                            error.source().begin.column, std::string(error.description())),
                "the file is TOML: key = value, texts in quotes, [table] lines");
  }
}

void apply_set(const std::string& text, RunFile& run) {
  const size_t equals = text.find('=');
  TRIREME_USER_CHECK(equals != std::string::npos && equals > 0, kConfig,
                     "write --set table.key=value", "--set {}: there is no '='", text);
  const auto trim = [](std::string s) {
    const size_t first = s.find_first_not_of(" \t");
    const size_t last = s.find_last_not_of(" \t");
    return first == std::string::npos ? std::string() : s.substr(first, last - first + 1);
  };
  const std::string key = trim(text.substr(0, equals));
  const std::string value = trim(text.substr(equals + 1));
  const std::string where = "--set " + text;
  const SchemaEntry* entry = find_entry(key);
  if (entry == nullptr) unknown_key(where, key);
  // A value that is not TOML, or not of the key's type, is a text: quotes are lost on most shells.
  toml::table table;
  bool as_text = false;
  try {
    table = toml::parse("v = " + value);
  } catch (const toml::parse_error&) {
    as_text = true;
  }
  const Value wanted = entry->get(RunConfig());
  const bool takes_text = wanted.index() == 3 || wanted.index() == 4 || wanted.index() == 6;
  if (!as_text && takes_text) {
    const toml::node* node = table.get("v");
    as_text = !node->is_string() && !node->is_array() && !node->is_table();
  }
  if (as_text) {
    table = toml::table{};
    table.insert("v", value);
  }
  entry->set(run.config, ValueReader(*entry, where).read(*table.get("v")));
  run.origins[key] = {Origin::Kind::kSet, text};
}

/// A default that a short run cannot have: nobody who writes steps = 20 means 100 steps of warm-up.
void fit_defaults(RunFile& run) {
  RunConfig::Schedule& schedule = run.config.schedule;
  Origin& origin = run.origins["schedule.warmup"];
  if (origin.kind == Origin::Kind::kDefault && schedule.warmup > schedule.steps / 4) {
    schedule.warmup = schedule.steps / 10;
    origin = {Origin::Kind::kDerived,
              "a tenth of the steps, since the default is too long for them"};
  }
}

/// What no single key can tell.
void check_whole(const RunFile& run) {
  const RunConfig& c = run.config;
  const auto where = [&](const std::string& key) {
    const auto found = run.origins.find(key);
    return found == run.origins.end() || found->second.kind == Origin::Kind::kDefault
               ? run.path
               : found->second.text();
  };
  for (const SchemaEntry& entry : schema()) {
    TRIREME_USER_CHECK(!entry.required || run.origins.count(entry.key) != 0, kConfig, entry.doc,
                       "{}: '{}' is missing; it has no default", run.path, entry.key);
  }
  TRIREME_USER_CHECK(!c.data.train.empty(), kConfig, "name at least one file or pattern",
                     "{}: data.train is empty", where("data.train"));
  TRIREME_USER_CHECK(c.model.config.empty() || c.model.preset.empty(), kConfig,
                     "keep one of the two",
                     "{}: model.config = \"{}\" and model.preset = \"{}\" are both given",
                     where("model.preset"), c.model.config, c.model.preset);
  TRIREME_USER_CHECK(
      !c.model.config.empty() || !c.model.preset.empty() || c.model.init != "random", kConfig,
      "write [model] preset = \"llama-11m\", or config = \"path/of/config.json\"",
      "{}: 'model' is missing: neither model.config nor model.preset is given", run.path);
  TRIREME_USER_CHECK(c.model.vocab_size == 0 || !c.model.preset.empty(), kConfig,
                     "write vocab_size into the config.json",
                     "{}: model.vocab_size is for presets only", where("model.vocab_size"));
  TRIREME_USER_CHECK(c.data.valid.empty() || c.data.valid_fraction == 0, kConfig,
                     "keep one of the two", "{}: data.valid and data.valid_fraction are both given",
                     where("data.valid_fraction"));
  TRIREME_USER_CHECK(c.schedule.warmup <= c.schedule.steps, kConfig,
                     "lower schedule.warmup or raise schedule.steps",
                     "{}: schedule.warmup = {} is more than schedule.steps = {}",
                     where("schedule.warmup"), c.schedule.warmup, c.schedule.steps);
  TRIREME_USER_CHECK(
      c.schedule.decay + c.schedule.warmup <= c.schedule.steps, kConfig,
      "lower schedule.decay or schedule.warmup",
      "{}: schedule.warmup = {} and schedule.decay = {} do not fit into schedule.steps = {}",
      where("schedule.decay"), c.schedule.warmup, c.schedule.decay, c.schedule.steps);
  TRIREME_USER_CHECK((c.batch.ramp_start == 0) == (c.batch.ramp_steps == 0), kConfig,
                     "give both batch.ramp_start and batch.ramp_steps, or neither",
                     "{}: batch.ramp_start = {} but batch.ramp_steps = {}",
                     where("batch.ramp_start"), c.batch.ramp_start, c.batch.ramp_steps);
  TRIREME_USER_CHECK(c.batch.ramp_start <= c.batch.sequences, kConfig, "start lower",
                     "{}: batch.ramp_start = {} is more than batch.sequences = {}",
                     where("batch.ramp_start"), c.batch.ramp_start, c.batch.sequences);
  TRIREME_USER_CHECK(
      !c.memory.offload_activations.empty(), kConfig, "write offload_activations = \"none\"",
      "{}: memory.offload_activations is an empty list", where("memory.offload_activations"));
  TRIREME_USER_CHECK(!c.memory.recompute.empty(), kConfig, "write recompute = \"none\"",
                     "{}: memory.recompute is an empty list", where("memory.recompute"));
}

}  // namespace

bool is_written(const RunFile& run, const std::string& key) {
  const auto origin = run.origins.find(key);
  return origin != run.origins.end() &&
         (origin->second.kind == Origin::Kind::kFile || origin->second.kind == Origin::Kind::kSet);
}

RunFile parse_run_file(const std::string& text, const std::string& origin,
                       const std::vector<std::string>& sets) {
  RunFile run;
  run.path = origin;
  for (const SchemaEntry& entry : schema()) {
    if (!entry.required) run.origins[entry.key] = {};
  }
  read_table(parse_toml(text, origin), "", origin, run);
  for (const std::string& set : sets) apply_set(set, run);
  fit_defaults(run);
  check_whole(run);
  return run;
}

RunFile load_run_file(const std::filesystem::path& path, const std::vector<std::string>& sets) {
  std::error_code ignored;
  TRIREME_USER_CHECK(std::filesystem::exists(path, ignored), kConfig,
                     "name a run file; examples/ has some to start from",
                     "{}: there is no such run file", path.string());
  TRIREME_USER_CHECK(std::filesystem::is_regular_file(path, ignored), kConfig,
                     "name the run file itself", "{}: this is not a file", path.string());
  return parse_run_file(read_file(path), path.string(), sets);
}

std::string effective_toml(const RunFile& run) {
  std::string result =
      "# The effective run: every key, its value, and where the value comes from.\n";
  for (const SchemaTable& table : schema_tables()) {
    if (!table.name.empty()) result += fmt::format("\n[{}]\n", table.name);
    for (const SchemaEntry& entry : schema()) {
      if (entry.table() != table.name) continue;
      const auto origin = run.origins.find(entry.key);
      const std::string line =
          fmt::format("{} = {}", entry.name(), toml_text(entry.get(run.config)));
      result += fmt::format("{:<40} # {}\n", line,
                            origin == run.origins.end() ? "" : origin->second.text());
    }
  }
  return result;
}

namespace {

struct ToJson {
  OrderedJson operator()(const std::vector<DataSource>& sources) const {
    OrderedJson list = OrderedJson::array();
    for (const DataSource& source : sources) {
      list.push_back({{"path", source.path}, {"weight", source.weight}});
    }
    return list;
  }
  template <typename T>
  OrderedJson operator()(const T& x) const {
    return x;
  }
};

}  // namespace

OrderedJson effective_json(const RunFile& run) {
  OrderedJson result = OrderedJson::array();
  for (const SchemaEntry& entry : schema()) {
    const auto origin = run.origins.find(entry.key);
    result.push_back({{"key", entry.key},
                      {"value", std::visit(ToJson{}, entry.get(run.config))},
                      {"origin", origin == run.origins.end() ? "" : origin->second.text()}});
  }
  return result;
}

std::vector<std::string> differing_keys(const RunConfig& a, const RunConfig& b) {
  std::vector<std::string> result;
  for (const SchemaEntry& entry : schema()) {
    if (!entry.shapes_result) continue;
    const Value left = entry.get(a);
    const Value right = entry.get(b);
    if (left != right)
      result.push_back(
          fmt::format("{}: {} there, {} now", entry.key, toml_text(left), toml_text(right)));
  }
  return result;
}

std::vector<std::string> schema_keys() {
  std::vector<std::string> keys;
  for (const SchemaEntry& entry : schema()) keys.push_back(entry.key);
  return keys;
}

std::string schema_markdown() {
  std::string result =
      "# The run file\n\n"
      "TOML. Every key has a default but `model`, `data.train` and `out`. Paths are relative to "
      "the working\n"
      "directory. `trireme train RUN.toml --set table.key=value` overrides a key; `--dry-run` "
      "prints the whole\n"
      "effective run with each value's origin. A list of one may be written without its "
      "brackets.\n\n"
      "This page is written by `trireme train --print-schema`.\n";
  for (const SchemaTable& table : schema_tables()) {
    result += table.name.empty() ? "\n## Top level\n\n" : fmt::format("\n## [{}]\n\n", table.name);
    result += table.doc + "\n\n| key | type | default | meaning |\n|---|---|---|---|\n";
    for (const SchemaEntry& entry : schema()) {
      if (entry.table() != table.name) continue;
      const Value value = entry.get(RunConfig());
      const std::string limit =
          entry.limit.text.empty() ? "" : fmt::format(" Allowed: {}.", entry.limit.text);
      result += fmt::format("| `{}` | {} | {} | {}{} |\n", entry.name(), type_text(value),
                            entry.required ? "required" : fmt::format("`{}`", toml_text(value)),
                            entry.doc, limit);
    }
  }
  return result;
}

}  // namespace trireme::train
