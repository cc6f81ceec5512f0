#include "trireme/plan/offload.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/memory.h"

namespace trireme::plan {

namespace {

constexpr int kNone = -1;

/// An instruction to insert. Ids of instructions that are not in the program yet are negative: see later().
struct Insertion {
  int before = 0;     ///< id in the program without insertions
  int first_use = 0;  ///< of a reload: who needs it first; what is needed first comes first
  Instruction instruction;
};

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
    if (!strategy.offload_activations.empty()) {
      for (const auto& [owner, buffers] : groups()) offload_activations(owner.second, buffers);
    }
    if (strategy.offload_optimizer) offload_optimizer();
    if (!insertions_.empty()) rebuild();
  }

 private:
  Instruction& at(int id) { return program_.instructions[static_cast<size_t>(id)]; }
  Buffer& buffer(int id) { return program_.buffers[static_cast<size_t>(id)]; }

  /// The id of insertion `index` until rebuild() knows it.
  static int later(size_t index) { return -2 - static_cast<int>(index); }

  int insert(int before, int first_use, Instruction instruction) {
    insertions_.push_back({before, first_use, std::move(instruction)});
    return later(insertions_.size() - 1);
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

  int last_compute_before(int id) {
    do {
      --id;
    } while (id >= 0 && at(id).resource != Resource::kCompute);
    return id;
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
    in_copy.depends_on = {out, release, last_compute_before(reload_before)};
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

  void offload_optimizer() {
    std::vector<int> steps;
    int norm = kNone;
    int commit = kNone;
    for (const Instruction& instruction : program_.instructions) {
      if (instruction.kind == OpKind::kOptimizerStep) steps.push_back(instruction.id);
      if (instruction.kind == OpKind::kGradNorm) norm = instruction.id;
      if (instruction.kind == OpKind::kCommit) commit = instruction.id;
    }
    std::vector<int> states;
    for (const int step : steps) {
      Buffer state;
      state.id = static_cast<int>(program_.buffers.size());
      state.kind = BufferKind::kOptimizerState;
      state.part = at(step).part;
      state.bytes = optimizer_state_bytes(spec_, program_.strategy, state.part);
      states.push_back(state.id);
      program_.buffers.push_back(state);
    }
    std::vector<int> offloads;
    const auto give_up = [&](Instruction& by, int by_id, size_t index) {
      by.releases.push_back(states[index]);
      by.depends_on.push_back(offloads[index]);
      buffer(states[index]).released_before = by_id;
      buffer(states[index]).freed_after = by_id;
    };
    const auto reload = [&](size_t index, int before) {
      Instruction copy = copy_of(OpKind::kReload, at(steps[index]).part, {states[index]});
      copy.depends_on.push_back(last_compute_before(before));
      const int id = later(insertions_.size());
      if (index >= 2) give_up(copy, id, index - 2);
      insert(before, static_cast<int>(index), std::move(copy));
      buffer(states[index]).made_by = id;
      buffer(states[index]).reloaded_by = id;
      at(steps[index]).uses.push_back(states[index]);
      at(steps[index]).depends_on.push_back(id);
    };
    if (!steps.empty()) reload(0, norm);
    for (size_t i = 0; i < steps.size(); ++i) {
      if (i + 1 < steps.size()) reload(i + 1, steps[i]);
      // The device's allocator hands out memory in the order of the compute queue: that is what waits for the copy.
      if (i >= 1) at(steps[i]).depends_on.push_back(offloads[i - 1]);
      Instruction copy = copy_of(OpKind::kOffload, at(steps[i]).part, {states[i]});
      copy.depends_on.push_back(steps[i]);
      offloads.push_back(insert(steps[i] + 1, 0, std::move(copy)));
      buffer(states[i]).offloaded_by = offloads.back();
    }
    for (size_t i = steps.size() - std::min<size_t>(steps.size(), 2); i < steps.size(); ++i)
      give_up(at(commit), commit, i);
  }

  void rebuild() {
    std::vector<size_t> order(insertions_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    // Copies out before copies in, which may wait for them.
    const auto key = [&](size_t i) {
      const Insertion& insertion = insertions_[i];
      return std::tuple(insertion.before, insertion.instruction.kind == OpKind::kReload,
                        insertion.first_use, i);
    };
    std::ranges::sort(order, [&](size_t a, size_t b) { return key(a) < key(b); });

    std::vector<Instruction> all;
    std::vector<int> id_of(program_.instructions.size());
    std::vector<int> id_of_inserted(insertions_.size());
    auto next = order.begin();
    for (size_t i = 0; i <= program_.instructions.size(); ++i) {
      for (; next != order.end() && insertions_[*next].before == static_cast<int>(i); ++next) {
        id_of_inserted[*next] = static_cast<int>(all.size());
        all.push_back(std::move(insertions_[*next].instruction));
      }
      if (i == program_.instructions.size()) break;
      id_of[i] = static_cast<int>(all.size());
      all.push_back(std::move(program_.instructions[i]));
    }
    const auto renumber = [&](int& id) {
      if (id == kNone) return;
      id = id >= 0 ? id_of[static_cast<size_t>(id)] : id_of_inserted[static_cast<size_t>(-2 - id)];
    };
    for (size_t i = 0; i < all.size(); ++i) {
      all[i].id = static_cast<int>(i);
      std::vector<int>& depends_on = all[i].depends_on;
      std::erase(depends_on, kNone);
      for (int& id : depends_on) renumber(id);
      std::ranges::sort(depends_on);
      depends_on.erase(std::unique(depends_on.begin(), depends_on.end()), depends_on.end());
      TRIREME_CHECK(depends_on.empty() || depends_on.back() < all[i].id,
                    "instruction {} waits for {}", i, depends_on.back());
    }
    for (Buffer& buffer : program_.buffers) {
      for (int* id : {&buffer.made_by, &buffer.freed_after, &buffer.offloaded_by,
                      &buffer.released_before, &buffer.reloaded_by})
        renumber(*id);
    }
    program_.instructions = std::move(all);
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
}

}  // namespace trireme::plan
