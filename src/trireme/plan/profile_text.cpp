#include "trireme/plan/profile_text.h"

#include <cmath>
#include <map>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

// A basic string of TOML.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      result += ' ';
      continue;
    }
    result += c;
  }
  return result + "\"";
}

// Always a float of TOML's: "1" would be an integer, which is read as well, "1e+06" too.
std::string number(double value) {
  TRIREME_CHECK(std::isfinite(value) && value >= 0.0, "{} in a profile", value);
  return fmt::format("{:.6g}", value);
}

const char* to_string(ProductUse use) {
  switch (use) {
    case ProductUse::kForward:
      return "forward";
    case ProductUse::kBackwardInput:
      return "backward-input";
    case ProductUse::kBackwardWeight:
      return "backward-weight";
  }
  return "?";
}

class Writer {
 public:
  Writer(const ClusterSpec& machine, const std::string& source)
      : machine_(machine), source_(source) {}

  std::string text() {
    device();
    measured();
    for (const InstructionRate& rate : machine_.device.instructions) instruction(rate);
    node();
    network();
    table("cluster");
    key("name", quoted(machine_.name));
    key("device", quoted(machine_.device.name));
    key("node", quoted(machine_.node.name));
    key("network", quoted(machine_.network.name));
    key("source", quoted(source_));
    return std::move(text_);
  }

 private:
  void table(const char* name) { text_ += fmt::format("\n[[{}]]\n", name); }
  void key(const char* name, const std::string& value) {
    text_ += fmt::format("{} = {}\n", name, value);
  }
  void key(const char* name, double value) { key(name, number(value)); }

  void by_type(const char* name, const std::map<ComputeType, double>& values) {
    std::string inner;
    for (const auto& [type, value] : values)
      inner +=
          fmt::format("{}{} = {}", inner.empty() ? "" : ", ", plan::to_string(type), number(value));
    key(name, "{ " + inner + " }");
  }

  void device() {
    const DeviceProfile& device = machine_.device;
    table("device");
    key("name", quoted(device.name));
    key("source", quoted(source_));
    key("asynchronous", device.asynchronous ? "true" : "false");
    by_type("peak_flops", device.peak_flops);
    by_type("gemm_efficiency", device.gemm_efficiency);
    key("memory_bytes", fmt::format("{:.0f}", device.memory_bytes));
    key("usable_bytes", fmt::format("{:.0f}", device.usable_bytes));
    key("memory_bytes_per_s", device.memory_bytes_per_s);
    key("memory_efficiency", device.memory_efficiency);
    key("units", device.units);
    key("tile_m", device.tile_m);
    key("tile_n", device.tile_n);
    key("half_k", device.half_k);
    key("attention_forward", device.attention_forward);
    key("attention_backward", device.attention_backward);
    key("attention_half_rows", device.attention_half_rows);
    key("kernel_gap_s", device.kernel_gap_s);
    key("host_link_bytes_per_s", device.host_link_bytes_per_s);
    key("instruction_gap_s", device.instruction_gap_s);
    key("step_overhead_s", device.step_overhead_s);
    key("step_slowdown", device.step_slowdown);
  }

  void measured() {
    const EfficiencyTables& tables = machine_.device.measured;
    for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kFp8}) {
      if (!tables.has_products(type) && !tables.has_attention(type)) continue;
      table("measured");
      key("device", quoted(machine_.device.name));
      key("type", quoted(plan::to_string(type)));
      key("source", quoted(source_));
      text_ += "# use, groups, m, n, k, share of peak_flops\nproducts = [\n";
      for (const MeasuredProduct& one : tables.products) {
        if (one.type != type) continue;
        const ProductShape& shape = one.shape;
        text_ +=
            fmt::format("  [\"{}\", {:.0f}, {:.0f}, {:.0f}, {:.0f}, {}],\n", to_string(shape.use),
                        shape.groups, shape.m, shape.n, shape.k, number(one.efficiency));
      }
      text_ += "]\n# direction, batch, seq_len, heads, kv_heads, head_dim, value_dim, share\n";
      text_ += "attention = [\n";
      for (const MeasuredAttention& one : tables.attention) {
        if (one.type != type) continue;
        const AttentionShape& shape = one.shape;
        text_ += fmt::format("  [\"{}\", {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f}, {}],\n",
                             shape.backward ? "backward" : "forward", shape.batch, shape.seq_len,
                             shape.heads, shape.kv_heads, shape.head_dim, shape.value_dim,
                             number(one.efficiency));
      }
      text_ += "]\n";
    }
  }

  void instruction(const InstructionRate& rate) {
    table("instruction");
    key("device", quoted(machine_.device.name));
    key("part", quoted(rate.of.part));
    key("kind", quoted(rate.of.kind));
    key("type", quoted(plan::to_string(rate.of.type)));
    key("source", quoted(source_));
    key("fixed_s", rate.fixed_s);
    key("products", rate.products);
    key("attention", rate.attention);
    key("memory", rate.memory);
    key("residual", rate.residual);
    text_ += "# seconds by the tables of products, attention, memory; measured seconds, spans\n";
    text_ += "measured = [\n";
    for (const MeasuredInstruction& one : rate.measured) {
      text_ += fmt::format("  [{}, {}, {}, {}, {:.0f}],\n", number(one.tables.products),
                           number(one.tables.attention), number(one.tables.memory),
                           number(one.seconds), one.spans);
    }
    text_ += "]\n";
  }

  void link(const LinkProfile& link) {
    key("source", quoted(source_));
    if (link.ranks > 0) key("ranks", static_cast<double>(link.ranks));
    key("bytes_per_s", link.bytes_per_s);
    key("latency_s", link.latency_s);
    key("fixed_s", link.fixed_s);
    key("all_reduce", link.all_reduce);
    key("all_gather", link.all_gather);
    key("reduce_scatter", link.reduce_scatter);
    key("all_to_all", link.all_to_all);
    key("send_receive", link.send_receive);
  }

  void node() {
    table("node");
    key("name", quoted(machine_.node.name));
    key("source", quoted(source_));
    key("accelerators", static_cast<double>(machine_.node.accelerators));
    key("busy_slowdown", machine_.node.busy_slowdown);
    for (const LinkProfile& one : machine_.node.links) {
      table("node.link");
      link(one);
    }
  }

  void network() {
    table("network");
    key("name", quoted(machine_.network.name));
    link(machine_.network.link);
  }

  const ClusterSpec& machine_;
  const std::string& source_;
  std::string text_;
};

}  // namespace

std::string profile_toml(const ClusterSpec& machine, const std::string& source,
                         const std::string& note) {
  std::string text;
  size_t begin = 0;
  while (begin < note.size()) {
    const size_t end = std::min(note.find('\n', begin), note.size());
    text += "# " + note.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return text + Writer(machine, source).text();
}

}  // namespace trireme::plan
