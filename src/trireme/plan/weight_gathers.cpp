#include "trireme/plan/weight_gathers.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "trireme/plan/insertions.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/shards.h"

namespace trireme::plan {

namespace {

/// Instructions in issue order that read the same parts' weights, without one between them that reads others.
struct Use {
  std::vector<int> parts;
  std::vector<int> instructions;
};

/// Uses [first, last] that one gather is for.
struct Stay {
  int part = 0;
  int first = 0;
  int last = 0;
};

/// Whose weights an instruction reads. Products of backward-weight read none.
std::vector<int> parts_read(const model::ModelSpec& spec, const Instruction& instruction) {
  switch (instruction.kind) {
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kBackwardInput:
      if (spec.parts[static_cast<size_t>(instruction.part)].kind == model::PartKind::kMtpInput)
        return {instruction.part, 0};  // embeddings of the tokens further ahead
      return {instruction.part};
    case OpKind::kLoss: {
      const int shared = spec.tied_embeddings ? 0 : spec.head_part();  // by all heads
      if (shared == instruction.part) return {shared};
      return {instruction.part, shared};
    }
    default:
      return {};
  }
}

class Gathers {
 public:
  Gathers(const model::ModelSpec& spec, Program& program) : program_(program) {
    std::vector<char> gathered(spec.parts.size(), 0);
    bytes_.assign(spec.parts.size(), 0);
    for (const model::ParameterSpec& parameter : spec.parameters) {
      const auto part = static_cast<size_t>(parameter.part);
      gathered[part] = gathers_for_use(spec, program.strategy, parameter.part) ? 1 : 0;
      bytes_[part] += parameter.numel() * element_bytes(program.strategy.precision);
    }
    std::map<int, int> in_layer;
    for (size_t part = 0; part < gathered.size(); ++part) {
      if (gathered[part] == 0 || spec.parts[part].layer < 0) continue;
      ahead_ = std::max(ahead_, ++in_layer[spec.parts[part].layer]);
    }
    ahead_ *= static_cast<int>(program.strategy.weights_ahead);
    for (const Instruction& instruction : program.instructions) {
      std::vector<int> parts = parts_read(spec, instruction);
      std::erase_if(parts, [&](int part) { return gathered[static_cast<size_t>(part)] == 0; });
      if (parts.empty()) continue;
      if (uses_.empty() || uses_.back().parts != parts) uses_.push_back({std::move(parts), {}});
      uses_.back().instructions.push_back(instruction.id);
    }
  }

  void insert(const std::vector<int>& groups) {
    std::vector<Insertion> insertions;
    for (const Stay& stay : stays()) {
      const int id = id_of_insertion(insertions.size());
      const Use* const before = stay.first > ahead_ ? &use(stay.first - ahead_ - 1) : nullptr;
      Insertion insertion;
      insertion.before = before == nullptr ? 0 : before->instructions.back() + 1;
      insertion.first_use = use(stay.first).instructions.front();
      Instruction& gather = insertion.instruction;
      gather.kind = OpKind::kGatherParameters;
      gather.resource = Resource::kCommunication;
      gather.group = groups[static_cast<size_t>(stay.part)];
      gather.part = stay.part;
      // Its memory is what the part before has left.
      if (before != nullptr) gather.depends_on = {before->instructions.back()};
      gather.makes = {make_buffer(stay, id)};
      insertions.push_back(std::move(insertion));
    }
    if (!insertions.empty()) insert_all(program_, std::move(insertions));
  }

 private:
  const Use& use(int index) const { return uses_[static_cast<size_t>(index)]; }

  std::vector<Stay> stays() const {
    std::vector<Stay> all;
    std::map<int, size_t> latest;  // by part
    for (int at = 0; at < static_cast<int>(uses_.size()); ++at) {
      for (const int part : use(at).parts) {
        const auto found = latest.find(part);
        if (found != latest.end() && at - all[found->second].last <= ahead_ + 1) {
          all[found->second].last = at;
          continue;
        }
        latest[part] = all.size();
        all.push_back({part, at, at});
      }
    }
    return all;
  }

  int make_buffer(const Stay& stay, int gather) {
    Buffer buffer;
    buffer.id = static_cast<int>(program_.buffers.size());
    buffer.kind = BufferKind::kGatheredWeights;
    buffer.part = stay.part;
    buffer.bytes = tensor_bytes(bytes_[static_cast<size_t>(stay.part)]);
    buffer.made_by = gather;
    for (int at = stay.first; at <= stay.last; ++at) {
      if (std::ranges::find(use(at).parts, stay.part) == use(at).parts.end()) continue;
      for (const int id : use(at).instructions) {
        Instruction& reader = program_.instructions[static_cast<size_t>(id)];
        reader.uses.push_back(buffer.id);
        reader.depends_on.push_back(gather);
        buffer.freed_after = id;
      }
    }
    program_.instructions[static_cast<size_t>(buffer.freed_after)].frees.push_back(buffer.id);
    program_.buffers.push_back(buffer);
    return buffer.id;
  }

  Program& program_;
  int ahead_ = 0;               ///< uses
  std::vector<int64_t> bytes_;  ///< by part: of what products read
  std::vector<Use> uses_;
};

}  // namespace

void insert_weight_gathers(const model::ModelSpec& spec, Program& program,
                           const std::vector<int>& groups) {
  Gathers(spec, program).insert(groups);
}

}  // namespace trireme::plan
