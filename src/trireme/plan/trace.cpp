#include "trireme/plan/trace.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

TraceEvent event_of(const model::ModelSpec& spec, const Instruction& instruction) {
  TraceEvent event;
  event.instruction = instruction.id;
  event.name = describe(spec, instruction);
  event.kind = to_string(instruction.kind);
  if (instruction.part >= 0) event.part = spec.parts[static_cast<size_t>(instruction.part)].name;
  event.resource = to_string(instruction.resource);
  event.micro_batch = instruction.micro_batch;
  event.lane = instruction.lane;
  event.flops = instruction.flops;
  return event;
}

std::string model_title(const model::ModelSpec& spec) {
  return fmt::format("{} with {} parameters", spec.family, spec.num_parameters());
}

constexpr Resource kResources[] = {Resource::kHost, Resource::kCompute, Resource::kCopyOut,
                                   Resource::kCopyIn, Resource::kCommunication};

// Thread 1 is the host's queue, 2 the compute queue.
int thread_of(const std::string& resource) {
  for (const Resource one : kResources) {
    if (resource == to_string(one)) return static_cast<int>(one) + 1;
  }
  return 2;
}

std::string resource_of(int64_t thread) {
  const bool known = thread >= 1 && thread <= static_cast<int64_t>(std::size(kResources));
  return to_string(known ? kResources[thread - 1] : Resource::kCompute);
}

}  // namespace

Trace measured_trace(const model::ModelSpec& spec, const Program& program,
                     const std::vector<Measurement>& measurements, int64_t step) {
  TRIREME_CHECK(measurements.size() == program.instructions.size(),
                "{} measurements for {} instructions", measurements.size(),
                program.instructions.size());
  Trace trace;
  trace.source = "measured";
  trace.rank = program.rank;
  trace.model = model_title(spec);
  trace.step = step;
  for (const Instruction& instruction : program.instructions) {
    const Measurement& measured = measurements[static_cast<size_t>(instruction.id)];
    TraceEvent event = event_of(spec, instruction);
    event.start_us = measured.start_s * 1e6;
    event.duration_us = measured.duration_s * 1e6;
    event.held_bytes_after = measured.held_bytes_after;
    event.peak_bytes = measured.peak_bytes;
    trace.peak_bytes = std::max(trace.peak_bytes, measured.peak_bytes);
    trace.events.push_back(std::move(event));
  }
  return trace;
}

Trace predicted_trace(const model::ModelSpec& spec, const Program& program,
                      const Simulation& simulation) {
  TRIREME_CHECK(simulation.instructions.size() == program.instructions.size(),
                "simulation of {} instructions for a program of {}", simulation.instructions.size(),
                program.instructions.size());
  Trace trace;
  trace.source = "predicted";
  trace.rank = program.rank;
  trace.model = model_title(spec);
  trace.peak_bytes = simulation.peak_bytes;
  for (const Instruction& instruction : program.instructions) {
    const auto& simulated = simulation.instructions[static_cast<size_t>(instruction.id)];
    TraceEvent event = event_of(spec, instruction);
    // What runs on is shown as this step sees it, which the step before began.
    const double begin_s = runs_on(program, instruction) ? simulation.step_s : 0.0;
    event.start_us = (simulated.start_s - begin_s) * 1e6;
    event.duration_us = (simulated.end_s - simulated.start_s) * 1e6;
    event.held_bytes_after = simulated.held_bytes_after;
    event.peak_bytes = simulated.peak_bytes;
    trace.events.push_back(std::move(event));
  }
  return trace;
}

std::vector<double> durations_of(const Trace& trace, const Program& program) {
  const std::string hint = "the trace must come from a run with the same model and batch tables";
  TRIREME_USER_CHECK(trace.events.size() == program.instructions.size(), kData, hint,
                     "the trace has {} instructions, the program {}", trace.events.size(),
                     program.instructions.size());
  std::vector<double> durations(trace.events.size(), -1.0);
  for (const TraceEvent& event : trace.events) {
    const bool known = event.instruction >= 0 &&
                       event.instruction < static_cast<int>(durations.size()) &&
                       durations[static_cast<size_t>(event.instruction)] < 0.0;
    TRIREME_USER_CHECK(known, kData, hint, "the trace has instruction {} twice or wrongly",
                       event.instruction);
    const auto at = static_cast<size_t>(event.instruction);
    TRIREME_USER_CHECK(event.kind == to_string(program.instructions[at].kind), kData, hint,
                       "instruction {} is \"{}\" in the trace and \"{}\" in the program",
                       event.instruction, event.kind, to_string(program.instructions[at].kind));
    durations[at] = event.duration_us * 1e-6;
  }
  return durations;
}

namespace {

/// Of one rank: names, instructions, memory.
void add_events(const Trace& trace, const std::string& process, OrderedJson& events) {
  const auto metadata = [&](const char* name, int thread, const std::string& value) {
    events.push_back({{"name", name},
                      {"ph", "M"},
                      {"pid", trace.rank},
                      {"tid", thread},
                      {"args", {{"name", value}}}});
  };
  metadata("process_name", 0, process);
  for (const Resource resource : kResources) {
    const std::string name = to_string(resource);
    const bool used = std::ranges::any_of(
        trace.events, [&](const TraceEvent& event) { return event.resource == name; });
    const bool always = resource == Resource::kHost || resource == Resource::kCompute;
    if (used || always) metadata("thread_name", thread_of(name), name);
  }
  for (const TraceEvent& event : trace.events) {
    OrderedJson args;
    args["instruction"] = event.instruction;
    if (!event.part.empty()) args["part"] = event.part;
    if (event.micro_batch >= 0) args["micro_batch"] = event.micro_batch;
    if (event.lane >= 0) args["lane"] = event.lane;
    if (event.flops > 0) args["flops"] = event.flops;
    args["held_bytes_after"] = event.held_bytes_after;
    args["peak_bytes"] = event.peak_bytes;
    events.push_back({{"name", event.name},
                      {"cat", event.kind},
                      {"ph", "X"},
                      {"ts", event.start_us},
                      {"dur", event.duration_us},
                      {"pid", trace.rank},
                      {"tid", thread_of(event.resource)},
                      {"args", std::move(args)}});
  }
  for (const TraceEvent& event : trace.events) {
    const auto counter = [&](double time_us, int64_t bytes) {
      events.push_back({{"name", "memory"},
                        {"ph", "C"},
                        {"ts", time_us},
                        {"pid", trace.rank},
                        {"tid", 0},
                        {"args", {{"bytes", bytes}}}});
    };
    counter(event.start_us, event.peak_bytes);
    counter(event.start_us + event.duration_us, event.held_bytes_after);
  }
}

std::string document_text(OrderedJson header, OrderedJson events) {
  OrderedJson document;
  document["displayTimeUnit"] = "ms";
  document["otherData"] = std::move(header);
  document["traceEvents"] = std::move(events);
  return document.dump(-1, ' ', true, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

std::string to_chrome_json(const Trace& trace) {
  OrderedJson events = OrderedJson::array();
  add_events(trace, fmt::format("rank {} ({})", trace.rank, trace.source), events);
  return document_text({{"format", "trireme-trace-1"},
                        {"source", trace.source},
                        {"model", trace.model},
                        {"step", trace.step},
                        {"rank", trace.rank},
                        {"peak_bytes", trace.peak_bytes}},
                       std::move(events));
}

std::string to_chrome_json(const std::vector<Trace>& ranks, const std::vector<std::string>& names) {
  TRIREME_CHECK(ranks.size() == names.size() && !ranks.empty(), "{} names for {} ranks",
                names.size(), ranks.size());
  OrderedJson events = OrderedJson::array();
  for (size_t i = 0; i < ranks.size(); ++i) add_events(ranks[i], names[i], events);
  return document_text({{"format", "trireme-world-1"},
                        {"source", ranks.front().source},
                        {"model", ranks.front().model},
                        {"ranks", ranks.size()}},
                       std::move(events));
}

namespace {

// Typed look-ups in a trace that anyone may have edited.
class TraceReader {
 public:
  TraceReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    require(object_.is_object(), "is not an object");
  }

  void require(bool condition, const std::string& problem) const {
    TRIREME_USER_CHECK(condition, kData, "give a trace.json that trireme wrote", "{} {}", where_,
                       problem);
  }

  std::string text(const char* key) const {
    const auto found = object_.find(key);
    require(found != object_.end() && found->is_string(), fmt::format("has no text \"{}\"", key));
    return found->get<std::string>();
  }

  double number(const char* key, double default_value = NAN) const {
    const auto found = object_.find(key);
    if (found == object_.end() && !std::isnan(default_value)) return default_value;
    require(found != object_.end() && found->is_number() && std::isfinite(found->get<double>()),
            fmt::format("has no number \"{}\"", key));
    return found->get<double>();
  }

  int64_t integer(const char* key, int64_t default_value) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return default_value;
    // Other tools may rewrite whole numbers as 3.0.
    const double value = number(key);
    require(std::abs(value) < 9e15 && value == std::floor(value),
            fmt::format("has no whole number \"{}\"", key));
    return found->is_number_integer() ? found->get<int64_t>() : static_cast<int64_t>(value);
  }

 private:
  const Json& object_;
  std::string where_;
};

}  // namespace

Trace parse_chrome_json(std::string_view text, const std::string& origin) {
  const Json document = parse_json(text, origin, ErrorCode::kData);
  const bool shaped = document.is_object() && document.contains("traceEvents") &&
                      document["traceEvents"].is_array() && document.contains("otherData");
  TRIREME_USER_CHECK(shaped, kData, "give a trace.json that trireme wrote",
                     "{}: this is not a trace of trireme", origin);
  const TraceReader header(document["otherData"], origin + ": otherData");
  header.require(header.text("format") == "trireme-trace-1",
                 "has the format \"" + header.text("format") + "\", not \"trireme-trace-1\"");
  Trace trace;
  trace.source = header.text("source");
  trace.model = header.text("model");
  trace.step = header.integer("step", -1);
  trace.rank = static_cast<int>(header.integer("rank", 0));
  trace.peak_bytes = header.integer("peak_bytes", 0);
  size_t index = 0;
  for (const Json& item : document["traceEvents"]) {
    const std::string where = fmt::format("{}: traceEvents[{}]", origin, index++);
    const TraceReader reader(item, where);
    if (reader.text("ph") != "X") continue;
    reader.require(item.contains("args"), "has no \"args\"");
    const TraceReader args(item["args"], where + ".args");
    TraceEvent event;
    event.name = reader.text("name");
    event.kind = reader.text("cat");
    event.start_us = reader.number("ts");
    event.duration_us = reader.number("dur");
    reader.require(event.duration_us >= 0, "has a negative duration");
    event.resource = resource_of(reader.integer("tid", 2));
    event.instruction = static_cast<int>(args.integer("instruction", -1));
    args.require(event.instruction >= 0, "has no instruction number");
    if (item["args"].contains("part")) event.part = args.text("part");
    event.micro_batch = args.integer("micro_batch", -1);
    event.lane = args.integer("lane", -1);
    event.flops = args.number("flops", 0.0);
    event.held_bytes_after = args.integer("held_bytes_after", 0);
    event.peak_bytes = args.integer("peak_bytes", 0);
    trace.events.push_back(std::move(event));
  }
  std::stable_sort(
      trace.events.begin(), trace.events.end(),
      [](const TraceEvent& a, const TraceEvent& b) { return a.instruction < b.instruction; });
  return trace;
}

std::string to_csv(const Trace& trace) {
  std::string text =
      "instruction,kind,part,micro_batch,lane,resource,start_us,duration_us,flops,held_bytes_after,"
      "peak_bytes\n";
  for (const TraceEvent& event : trace.events) {
    text += fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{},{},{}\n", event.instruction, event.kind,
                        event.part, event.micro_batch, event.lane, event.resource, event.start_us,
                        event.duration_us, event.flops, event.held_bytes_after, event.peak_bytes);
  }
  return text;
}

}  // namespace trireme::plan
