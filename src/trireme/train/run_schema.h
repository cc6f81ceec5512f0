// The schema table behind RunConfig: one entry per key. Private to train/.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "trireme/train/run_config.h"

namespace trireme::train {

using Value =
    std::variant<bool, int64_t, double, std::string, std::vector<std::string>, std::vector<double>,
                 std::vector<DataSource>, std::map<std::string, std::string>>;

/// What a value must satisfy beyond its type. `problem` returns "" for a good value, else what is
/// wrong, to be read after "key = value"; `text` says the rule in the documentation.
struct Limit {
  std::function<std::string(const Value&)> problem;
  std::string text;
};

/// One key of the run file.
struct SchemaEntry {
  std::string key;  ///< full, "batch.micro"
  std::string doc;
  Limit limit;
  bool required = false;
  bool shapes_result = true;  ///< another value gives another model
  std::function<Value(const RunConfig&)> get;
  std::function<void(RunConfig&, Value)> set;

  std::string table() const;  ///< "" at the top
  std::string name() const;
};

/// One table of the file.
struct SchemaTable {
  std::string name;
  std::string doc;
};

const std::vector<SchemaEntry>& schema();
const std::vector<SchemaTable>& schema_tables();
const SchemaEntry* find_entry(const std::string& key);

/// "a whole number", for messages and the documentation.
std::string type_text(const Value& value);

/// A value as TOML.
std::string toml_text(const Value& value);

}  // namespace trireme::train
