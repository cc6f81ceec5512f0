#include "trireme/plan/offload.h"

#include <algorithm>
#include <map>
#include <utility>

#include "trireme/plan/insertions.h"
#include "trireme/plan/state_visits.h"

namespace trireme::plan {

namespace {

constexpr int kNone = -1;

class Inserter {
 public:
  Inserter(const model::ModelSpec& spec, Program& program) : spec_(spec), program_(program) {
    users_.resize(program.buffers.size());
    for (const Instruction& instruction : program.instructions) {
      for (const auto* buffers : {&instruction.makes, &instruction.uses}) {
        for (const int buffer : *buffers)
          users_[static_cast<size_t>(buffer)].push_back(instruction.id);
      }
      if (instruction.kind == OpKind::kLoadBatch || instruction.micro_batch < 0) continue;
      const auto micro = static_cast<size_t>(instruction.micro_batch);
      if (micro_batches_.size() <= micro) micro_batches_.resize(micro + 1);
      micro_batches_[micro].push_back(instruction.id);
    }
    for (const model::PartSpec& part : spec.parts) ++parts_in_layer_[part.layer];
  }

  void run() {
    const Strategy& strategy = program_.strategy;
    if (strategy.offload_activations.empty()) return;
    for (const auto& [owner, buffers] : groups()) offload_activations(owner.second, buffers);
    if (!insertions_.empty()) insert_all(program_, std::move(insertions_));
  }

 private:
  Instruction& at(int id) { return program_.instructions[static_cast<size_t>(id)]; }
  Buffer& buffer(int id) { return program_.buffers[static_cast<size_t>(id)]; }

  int insert(int before, int first_use, Instruction instruction) {
    insertions_.push_back({before, first_use, std::move(instruction)});
    return id_of_insertion(insertions_.size() - 1);
  }

  /// By micro-batch and part: what the part's forward kept and what it read.
  std::map<std::pair<int64_t, int>, std::vector<int>> groups() const {
    std::map<std::pair<int64_t, int>, std::vector<int>> result;
    for (const Buffer& buffer : program_.buffers) {
      int part = kNone;
      if (buffer.kind == BufferKind::kSaved) part = buffer.part;
      if (buffer.kind == BufferKind::kHidden) part = buffer.part + 1;  // its input
      if (part < 0 || part >= static_cast<int>(spec_.parts.size())) continue;
      const auto index = static_cast<size_t>(part);
      if (program_.strategy.offload_activations[index] != 0 && offloadable(spec_.parts[index]))
        result[{buffer.micro_batch, part}].push_back(buffer.id);
    }
    return result;
  }

  int layer_length(int part) const {
    return parts_in_layer_.at(spec_.parts[static_cast<size_t>(part)].layer);
  }

  void offload_activations(int part, const std::vector<int>& candidates) {
    std::vector<int> buffers;
    int last_forward = kNone;
    int first_backward = static_cast<int>(program_.instructions.size());
    for (const int id : candidates) {
      int forward = kNone;
      int backward = kNone;
      for (const int user : users_[static_cast<size_t>(id)]) {
        if (at(user).kind == OpKind::kForward) {
          forward = user;
        } else if (backward == kNone) {
          backward = user;
        }
      }
      // Made again for backward, or not needed there.
      if (forward == kNone || backward == kNone) continue;
      buffers.push_back(id);
      last_forward = std::max(last_forward, forward);
      first_backward = std::min(first_backward, backward);
    }
    if (buffers.empty()) return;

    const std::vector<int>& micro =
        micro_batches_[static_cast<size_t>(buffer(buffers.front()).micro_batch)];
    const auto find = [&](int after, auto matches) {
      const auto found = std::find_if(micro.begin(), micro.end(),
                                      [&](int id) { return id > after && matches(at(id)); });
      return found == micro.end() ? kNone : *found;
    };
    // The forward (or the loss) a layer further on, and the backward a layer ahead.
    const int released = at(last_forward).part + 1 + layer_length(at(last_forward).part);
    const int release = find(last_forward, [&](const Instruction& i) {
      return i.part >= released && (i.kind == OpKind::kForward || i.kind == OpKind::kLoss);
    });
    if (release == kNone) return;
    const int ahead = at(first_backward).part + layer_length(at(first_backward).part);
    const int reload_before = find(release, [&](const Instruction& i) {
      return i.part <= ahead && (i.kind == OpKind::kLoss || i.kind == OpKind::kRecompute ||
                                 i.kind == OpKind::kBackwardInput);
    });
    if (reload_before == kNone || reload_before > first_backward) return;

    const int out = insert(last_forward + 1, 0, copy_of(OpKind::kOffload, part, buffers));
    Instruction in_copy = copy_of(OpKind::kReload, part, buffers);
    in_copy.depends_on = {out, release, last_compute_before(program_, reload_before)};
    const int in = insert(reload_before, first_backward, std::move(in_copy));
    Instruction& out_copy = insertions_[insertions_.size() - 2].instruction;
    at(release).depends_on.push_back(out);
    for (const int id : buffers) {
      at(release).releases.push_back(id);
      buffer(id).offloaded_by = out;
      buffer(id).released_before = release;
      buffer(id).reloaded_by = in;
      for (const int user : users_[static_cast<size_t>(id)]) {
        if (user <= last_forward) {
          out_copy.depends_on.push_back(user);
        } else {
          at(user).depends_on.push_back(in);
        }
      }
    }
  }

  Instruction copy_of(OpKind kind, int part, const std::vector<int>& buffers) const {
    Instruction instruction;
    instruction.kind = kind;
    instruction.resource = kind == OpKind::kOffload ? Resource::kCopyOut : Resource::kCopyIn;
    instruction.part = part;
    const Buffer& first = program_.buffers[static_cast<size_t>(buffers.front())];
    instruction.micro_batch = first.micro_batch;
    if (first.micro_batch >= 0)
      instruction.lane = first.micro_batch / program_.strategy.micro_batches_per_lane();
    instruction.moves = buffers;
    return instruction;
  }

  const model::ModelSpec& spec_;
  Program& program_;
  std::vector<std::vector<int>> users_;          ///< by buffer, in issue order
  std::vector<std::vector<int>> micro_batches_;  ///< their instructions
  std::map<int, int> parts_in_layer_;
  std::vector<Insertion> insertions_;
};

}  // namespace

bool offloadable(const model::PartSpec& part) {
  return part.layer >= 0 && part.kind != model::PartKind::kEmbedding &&
         part.kind != model::PartKind::kHead && part.kind != model::PartKind::kMtpHead;
}

void insert_offload(const model::ModelSpec& spec, Program& program) {
  Inserter(spec, program).run();
  if (program.strategy.offload_optimizer) insert_state_visits(spec, program);
}

}  // namespace trireme::plan
