// profiles/*.toml into a ProfileLibrary.
#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/base/toml.h"
#include "trireme/plan/profile.h"

namespace trireme::plan {

namespace {

template <typename Profile>
struct NumberKey {
  const char* name;
  double Profile::* value;
};

constexpr std::array kDeviceNumbers = {
    NumberKey<DeviceProfile>{"memory_bytes", &DeviceProfile::memory_bytes},
    NumberKey<DeviceProfile>{"usable_bytes", &DeviceProfile::usable_bytes},
    NumberKey<DeviceProfile>{"memory_bytes_per_s", &DeviceProfile::memory_bytes_per_s},
    NumberKey<DeviceProfile>{"memory_efficiency", &DeviceProfile::memory_efficiency},
    NumberKey<DeviceProfile>{"tile_m", &DeviceProfile::tile_m},
    NumberKey<DeviceProfile>{"tile_n", &DeviceProfile::tile_n},
    NumberKey<DeviceProfile>{"units", &DeviceProfile::units},
    NumberKey<DeviceProfile>{"half_k", &DeviceProfile::half_k},
    NumberKey<DeviceProfile>{"unaligned", &DeviceProfile::unaligned},
    NumberKey<DeviceProfile>{"attention_forward", &DeviceProfile::attention_forward},
    NumberKey<DeviceProfile>{"attention_backward", &DeviceProfile::attention_backward},
    NumberKey<DeviceProfile>{"attention_half_rows", &DeviceProfile::attention_half_rows},
    NumberKey<DeviceProfile>{"kernel_gap_s", &DeviceProfile::kernel_gap_s},
    NumberKey<DeviceProfile>{"host_link_bytes_per_s", &DeviceProfile::host_link_bytes_per_s},
    NumberKey<DeviceProfile>{"instruction_gap_s", &DeviceProfile::instruction_gap_s},
    NumberKey<DeviceProfile>{"step_overhead_s", &DeviceProfile::step_overhead_s},
    NumberKey<DeviceProfile>{"step_slowdown", &DeviceProfile::step_slowdown},
};
constexpr std::array kRateNumbers = {
    NumberKey<InstructionRate>{"fixed_s", &InstructionRate::fixed_s},
    NumberKey<InstructionRate>{"products", &InstructionRate::products},
    NumberKey<InstructionRate>{"attention", &InstructionRate::attention},
    NumberKey<InstructionRate>{"memory", &InstructionRate::memory},
    NumberKey<InstructionRate>{"residual", &InstructionRate::residual},
};
constexpr std::array kLinkNumbers = {
    NumberKey<LinkProfile>{"bytes_per_s", &LinkProfile::bytes_per_s},
    NumberKey<LinkProfile>{"latency_s", &LinkProfile::latency_s},
    NumberKey<LinkProfile>{"fixed_s", &LinkProfile::fixed_s},
    NumberKey<LinkProfile>{"all_reduce", &LinkProfile::all_reduce},
    NumberKey<LinkProfile>{"all_gather", &LinkProfile::all_gather},
    NumberKey<LinkProfile>{"reduce_scatter", &LinkProfile::reduce_scatter},
    NumberKey<LinkProfile>{"all_to_all", &LinkProfile::all_to_all},
    NumberKey<LinkProfile>{"send_receive", &LinkProfile::send_receive},
};
constexpr std::array kStackNumbers = {
    NumberKey<StackProfile>{"pointwise_passes", &StackProfile::pointwise_passes},
    NumberKey<StackProfile>{"pointwise_kernels", &StackProfile::pointwise_kernels},
    NumberKey<StackProfile>{"host_kernel_s", &StackProfile::host_kernel_s},
    NumberKey<StackProfile>{"host_part_s", &StackProfile::host_part_s},
    NumberKey<StackProfile>{"host_collective_s", &StackProfile::host_collective_s},
    NumberKey<StackProfile>{"host_crossing_s", &StackProfile::host_crossing_s},
    NumberKey<StackProfile>{"network_send_s", &StackProfile::network_send_s},
    NumberKey<StackProfile>{"step_s", &StackProfile::step_s},
    NumberKey<StackProfile>{"gradient_bytes", &StackProfile::gradient_bytes},
    NumberKey<StackProfile>{"gathered_bytes", &StackProfile::gathered_bytes},
    NumberKey<StackProfile>{"bucket_bytes", &StackProfile::bucket_bytes},
    NumberKey<StackProfile>{"tensor_exposed", &StackProfile::tensor_exposed},
    NumberKey<StackProfile>{"expert_exposed", &StackProfile::expert_exposed},
    NumberKey<StackProfile>{"fsdp_contention", &StackProfile::fsdp_contention},
    NumberKey<StackProfile>{"optimizer_passes", &StackProfile::optimizer_passes},
    NumberKey<StackProfile>{"weight_bytes", &StackProfile::weight_bytes},
    NumberKey<StackProfile>{"main_gradient_bytes", &StackProfile::main_gradient_bytes},
    NumberKey<StackProfile>{"optimizer_bytes", &StackProfile::optimizer_bytes},
    NumberKey<StackProfile>{"context_bytes", &StackProfile::context_bytes},
    NumberKey<StackProfile>{"activation_factor", &StackProfile::activation_factor},
    NumberKey<StackProfile>{"loss_bytes", &StackProfile::loss_bytes},
};

constexpr std::array kReliabilityNumbers = {
    NumberKey<ReliabilityProfile>{"failures_per_accelerator_hour",
                                  &ReliabilityProfile::failures_per_accelerator_hour},
    NumberKey<ReliabilityProfile>{"restart_s", &ReliabilityProfile::restart_s},
    NumberKey<ReliabilityProfile>{"checkpoint_bytes_per_s",
                                  &ReliabilityProfile::checkpoint_bytes_per_s},
};

/// A table whose keys are asked for one by one, and which complains about the rest.
class Section {
 public:
  Section(const toml::table& table, std::string origin, std::string path,
          bool inherits_source = false)
      : table_(table), origin_(std::move(origin)), path_(std::move(path)) {
    has_source_ = optional_text("source").has_value() || inherits_source;
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what,
                         const std::string& hint = "") const {
    const toml::node* const node = table_.get(key);
    const auto& at = node != nullptr ? node->source().begin : table_.source().begin;
    throw Error(
        ErrorCode::kConfig,
        fmt::format("{}:{}: {}.{} {}", origin_, static_cast<int>(at.line), path_, key, what), hint);
  }

  std::optional<std::string> optional_text(const std::string& key) {
    asked_.insert(key);
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return std::nullopt;
    if (auto text = node->value_exact<std::string>()) return text;
    fail(key, "is not a text", "put it in quotes");
  }

  std::string text(const std::string& key) {
    const auto found = optional_text(key);
    if (!found) fail(key, "is missing");
    return *found;
  }

  std::optional<double> optional_number(const std::string& key) {
    asked_.insert(key);
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return std::nullopt;
    if (const toml::table* const pair = node->as_table()) {
      Section inner(*pair, origin_, path_ + "." + key, true);
      inner.text("source");
      const std::optional<double> value = inner.optional_number("value");
      if (!value) fail(key, "has no value", "write { value = 1.0, source = \"...\" }");
      inner.refuse_unknown();
      return value;
    }
    if (!has_source_)
      fail(key, "has no source",
           "write { value = 1.0, source = \"...\" }, or a source for the table");
    const std::optional<double> value = node->value<double>();
    if (!value || !node->is_number()) fail(key, "is not a number");
    if (!std::isfinite(*value) || *value < 0.0) fail(key, "is negative or not finite");
    return value;
  }

  template <typename Profile, size_t N>
  void numbers(const std::array<NumberKey<Profile>, N>& keys, Profile& profile) {
    for (const NumberKey<Profile>& key : keys) {
      if (const auto value = optional_number(key.name)) profile.*key.value = *value;
    }
  }

  void flag(const std::string& key, bool& value) {
    asked_.insert(key);
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    const auto found = node->value_exact<bool>();
    if (!found) fail(key, "is neither true nor false");
    value = *found;
  }

  /// Numbers by compute type.
  void by_type(const std::string& key, std::map<ComputeType, double>& values) {
    const toml::table* const inner = table(key);
    if (inner == nullptr) return;
    Section section(*inner, origin_, path_ + "." + key, has_source_);
    for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kFp8}) {
      if (const auto value = section.optional_number(to_string(type))) values[type] = *value;
    }
    section.refuse_unknown();
  }

  const toml::table* table(const std::string& key) {
    asked_.insert(key);
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return nullptr;
    if (node->as_table() == nullptr) fail(key, "is not a table");
    return node->as_table();
  }

  /// Calls `read` with a Section for every table of an array.
  template <typename Read>
  void each(const std::string& key, const Read& read) {
    asked_.insert(key);
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return;
    const toml::array* const array = node->as_array();
    if (array == nullptr) fail(key, "is not an array", "write [[" + key + "]]");
    for (const toml::node& entry : *array) {
      if (entry.as_table() == nullptr) fail(key, "has an entry that is not a table");
      Section section(*entry.as_table(), origin_, path_.empty() ? key : path_ + "." + key);
      read(section);
      section.refuse_unknown();
    }
  }

  /// Rows of `columns` numbers each; the first may be a text, which `code` turns into a number.
  template <typename Code>
  std::vector<std::vector<double>> rows(const std::string& key, size_t columns, const Code& code) {
    asked_.insert(key);
    std::vector<std::vector<double>> result;
    const toml::node* const node = table_.get(key);
    if (node == nullptr) return result;
    if (!has_source_) fail(key, "has no source");
    if (node->as_array() == nullptr) fail(key, "is not an array");
    for (const toml::node& entry : *node->as_array()) {
      const toml::array* const row = entry.as_array();
      if (row == nullptr || row->size() != columns)
        fail(key, fmt::format("has a row that is not {} values", columns));
      std::vector<double> values;
      for (const toml::node& cell : *row) {
        if (const auto text = cell.value_exact<std::string>()) {
          values.push_back(code(*text));
        } else {
          values.push_back(cell.value<double>().value_or(-1.0));
        }
        if (!(values.back() >= 0.0) || !std::isfinite(values.back()))
          fail(key, "has a value that is not understood");
      }
      result.push_back(std::move(values));
    }
    return result;
  }

  void refuse_unknown() const {
    for (const auto& [key, node] : table_) {
      const std::string name(key.str());
      if (asked_.contains(name)) continue;
      fail(name, "is not known",
           suggestion(name, std::vector<std::string>(asked_.begin(), asked_.end())));
    }
  }

 private:
  const toml::table& table_;
  std::string origin_;
  std::string path_;
  bool has_source_ = false;
  std::set<std::string> asked_;
};

double use_code(const std::string& text) {
  if (text == "forward") return static_cast<double>(ProductUse::kForward);
  if (text == "backward-input") return static_cast<double>(ProductUse::kBackwardInput);
  if (text == "backward-weight") return static_cast<double>(ProductUse::kBackwardWeight);
  return -1.0;
}

double direction_code(const std::string& text) {
  return text == "forward" ? 0.0 : text == "backward" ? 1.0 : -1.0;
}

DeviceProfile read_device(Section& section) {
  DeviceProfile device;
  device.name = section.text("name");
  section.by_type("peak_flops", device.peak_flops);
  section.by_type("gemm_efficiency", device.gemm_efficiency);
  section.numbers(kDeviceNumbers, device);
  if (device.peak_flops.empty()) section.fail("peak_flops", "is missing");
  if (device.memory_bytes <= 0.0) section.fail("memory_bytes", "is missing");
  if (device.memory_bytes_per_s <= 0.0) section.fail("memory_bytes_per_s", "is missing");
  if (device.usable_bytes <= 0.0) device.usable_bytes = 0.96 * device.memory_bytes;
  // Of a data sheet alone: what the measured devices of the library reach, their median (docs/planner.md).
  for (const auto& [type, peak] : device.peak_flops) device.gemm_efficiency.try_emplace(type, 0.72);
  device.tables = section.optional_text("tables").value_or("");
  section.flag("asynchronous", device.asynchronous);
  return device;
}

/// One of the types that a profile speaks of.
ComputeType read_type(Section& section, ComputeType fallback) {
  const std::string name = section.optional_text("type").value_or(to_string(fallback));
  std::vector<std::string> names;
  for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kFp8}) {
    if (name == to_string(type)) return type;
    names.emplace_back(to_string(type));
  }
  section.fail("type", fmt::format("= \"{}\" is not known", name), suggestion(name, names));
}

InstructionRate read_instruction(Section& section) {
  InstructionRate rate;
  rate.of.part = section.text("part");
  rate.of.kind = section.text("kind");
  rate.of.type = read_type(section, ComputeType::kBf16);
  section.numbers(kRateNumbers, rate);
  const auto no_text = [](const std::string&) { return -1.0; };
  // Seconds by the tables of products, attention and memory; measured seconds; how many spans they are a mean of.
  for (const std::vector<double>& row : section.rows("measured", 5, no_text)) {
    if (row[3] <= 0.0 || row[4] <= 0.0) section.fail("measured", "has a row that took no time");
    rate.measured.push_back({{row[0], row[1], row[2]}, row[3], row[4]});
  }
  return rate;
}

void read_measured(Section& section, ProfileLibrary& library) {
  const std::string name = section.text("device");
  const auto device = library.devices.find(name);
  if (device == library.devices.end())
    section.fail("device", fmt::format("= \"{}\" is not a device", name));
  EfficiencyTables& tables = device->second.measured;
  const ComputeType type = read_type(section, ComputeType::kBf16);
  // Most sizes come again and again: a row is use, groups, m, n, k, efficiency.
  for (const std::vector<double>& row : section.rows("products", 6, use_code))
    tables.products.push_back(
        {{static_cast<ProductUse>(static_cast<int>(row[0])), row[1], row[2], row[3], row[4]},
         row[5],
         type});
  for (const std::vector<double>& row : section.rows("attention", 8, direction_code))
    tables.attention.push_back(
        {{row[0] == 1.0, row[1], row[2], row[3], row[4], row[5], row[6]}, row[7], type});
}

LinkProfile read_link(Section& section) {
  LinkProfile link;
  link.ranks = static_cast<int>(std::min(section.optional_number("ranks").value_or(0.0), 1e6));
  section.numbers(kLinkNumbers, link);
  if (link.bytes_per_s <= 0.0)
    section.fail("bytes_per_s", "is missing: a link without a bandwidth");
  return link;
}

StackProfile read_stack(Section& section, const std::map<std::string, StackProfile>& known) {
  StackProfile stack;
  std::string usual_attention = "flash";
  if (const auto other = section.optional_text("version_of")) {
    const auto found = known.find(*other);
    if (found == known.end())
      section.fail("version_of", fmt::format("= \"{}\" is not a stack before this one", *other));
    stack = found->second;
    stack.version_of = *other;
    usual_attention.clear();
  }
  stack.name = section.text("name");
  const std::string attention = section.optional_text("attention").value_or(usual_attention);
  if (attention.empty()) {
    // as the other version's
  } else if (attention == "flash") {
    stack.attention = AttentionKernel::kFlash;
  } else if (attention == "flash-plain") {
    stack.attention = AttentionKernel::kFlashPlain;
  } else if (attention == "unfused") {
    stack.attention = AttentionKernel::kUnfused;
  } else {
    section.fail("attention", fmt::format("= \"{}\" is not known", attention),
                 suggestion(attention, {"flash", "flash-plain", "unfused"}));
  }
  section.flag("fused_loss", stack.fused_loss);
  // Fused: in half precision and in float32. Unfused: float32 logits and their gradient beside those in half precision.
  if (stack.version_of.empty()) stack.loss_bytes = stack.fused_loss ? 6.0 : 10.0;
  section.numbers(kStackNumbers, stack);
  section.flag("overlap_gradients", stack.overlap_gradients);
  section.flag("overlap_parameters", stack.overlap_parameters);
  section.flag("keeps_projections", stack.keeps_projections);
  section.flag("keeps_stage_outputs", stack.keeps_stage_outputs);
  section.flag("sums_in_transfer", stack.sums_in_transfer);
  section.flag("overlap_send", stack.overlap_send);
  section.flag("stages_by_cost", stack.stages_by_cost);
  return stack;
}

template <typename Map>
const typename Map::mapped_type& named(Section& section, const Map& map, const std::string& key) {
  const std::string name = section.text(key);
  const auto found = map.find(name);
  if (found != map.end()) return found->second;
  std::vector<std::string> names;
  names.reserve(map.size());
  for (const auto& entry : map) names.push_back(entry.first);
  section.fail(key, fmt::format("= \"{}\" has no profile", name), suggestion(name, names));
}

void read_patterns(Section& section, const std::string& name, std::vector<Pattern>& patterns) {
  std::vector<Pattern> mine;
  section.each("match", [&](Section& match) { mine.push_back({match.text("text"), name}); });
  patterns.insert(patterns.end(), mine.begin(), mine.end());
}

}  // namespace

void ProfileLibrary::add(const std::string& text, const std::string& origin) {
  toml::table root;
  try {
    root = toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    throw Error(ErrorCode::kConfig,
                fmt::format("{}:{}:{}: {}", origin, error.source().begin.line,
                            error.source().begin.column, std::string(error.description())),
                "a profile is TOML");
  }
  std::vector<Pattern> cluster_texts;
  std::vector<Pattern> stack_texts;
  Section file(root, origin, "");
  file.each("device", [&](Section& section) {
    DeviceProfile device = read_device(section);
    devices[device.name] = std::move(device);
  });
  file.each("measured", [&](Section& section) { read_measured(section, *this); });
  file.each("instruction", [&](Section& section) {
    const std::string name = section.text("device");
    const auto device = devices.find(name);
    if (device == devices.end())
      section.fail("device", fmt::format("= \"{}\" is not a device", name));
    device->second.instructions.push_back(read_instruction(section));
  });
  file.each("node", [&](Section& section) {
    NodeProfile node;
    node.name = section.text("name");
    node.accelerators = static_cast<int>(
        std::clamp(section.optional_number("accelerators").value_or(8.0), 1.0, 4096.0));
    node.bridge_span =
        static_cast<int>(std::min(section.optional_number("bridge_span").value_or(0.0), 4096.0));
    node.bridge_bytes_per_s = section.optional_number("bridge_bytes_per_s").value_or(0.0);
    node.busy_slowdown = std::max(1.0, section.optional_number("busy_slowdown").value_or(1.0));
    if (node.bridge_span > 0 && node.bridge_bytes_per_s <= 0.0)
      section.fail("bridge_bytes_per_s", "is missing");
    section.each("link", [&](Section& link) { node.links.push_back(read_link(link)); });
    if (node.links.empty() && node.accelerators > 1)
      section.fail("link", "is missing: several accelerators without a link");
    nodes[node.name] = std::move(node);
  });
  file.each("network", [&](Section& section) {
    NetworkProfile network;
    network.name = section.text("name");
    network.growth_per_doubling = section.optional_number("growth_per_doubling").value_or(0.0);
    network.link = read_link(section);
    for (const std::vector<double>& row :
         section.rows("usual_gather", 2, [](const std::string&) { return -1.0; })) {
      if (row[0] < 2.0 || row[0] > 1e6 || row[1] <= 0.0)
        section.fail("usual_gather", "has a row that is not a number of accelerators and a rate");
      network.usual_gather[static_cast<int>(row[0])] = row[1];
    }
    networks[network.name] = std::move(network);
  });
  file.each("cluster", [&](Section& section) {
    ClusterSpec cluster;
    cluster.name = section.text("name");
    cluster.device = named(section, devices, "device");
    cluster.node = named(section, nodes, "node");
    cluster.network = named(section, networks, "network");
    section.optional_text("source");
    read_patterns(section, cluster.name, cluster_texts);
    clusters[cluster.name] = std::move(cluster);
  });
  file.each("stack", [&](Section& section) {
    StackProfile stack = read_stack(section, stacks);
    std::vector<Pattern> patterns;
    read_patterns(section, stack.name, patterns);
    // A version's patterns are narrower than those of what it is a version of.
    stack_texts.insert(stack.version_of.empty() ? stack_texts.end() : stack_texts.begin(),
                       patterns.begin(), patterns.end());
    stacks[stack.name] = std::move(stack);
  });
  file.each("reliability", [&](Section& section) {
    ReliabilityProfile reliability;
    reliability.name = section.text("name");
    section.numbers(kReliabilityNumbers, reliability);
    if (reliability.checkpoint_bytes_per_s <= 0.0)
      section.fail("checkpoint_bytes_per_s", "is missing");
    reliabilities[reliability.name] = std::move(reliability);
  });
  file.each("calibration", [&](Section& section) {
    Calibration calibration;
    calibration.key = section.text("key");
    calibration.device = section.optional_text("device").value_or("");
    calibration.stack = section.optional_text("stack").value_or("");
    section.each("observation", [&](Section& one) {
      Observation observation;
      observation.source = one.text("source");
      const std::optional<double> value = one.optional_number("value");
      if (!value) one.fail("value", "is missing");
      observation.value = *value;
      calibration.observations.push_back(std::move(observation));
    });
    calibrations.push_back(std::move(calibration));
  });
  file.refuse_unknown();
  cluster_patterns.insert(cluster_patterns.begin(), cluster_texts.begin(), cluster_texts.end());
  stack_patterns.insert(stack_patterns.begin(), stack_texts.begin(), stack_texts.end());
}

}  // namespace trireme::plan
