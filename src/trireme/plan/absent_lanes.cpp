#include "trireme/plan/absent_lanes.h"

#include <algorithm>
#include <utility>

namespace trireme::plan {

namespace {

constexpr int kNone = -1;

bool is_of_micro_batch(OpKind kind) {
  switch (kind) {
    case OpKind::kLoadBatch:
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kLoss:
    case OpKind::kBackwardInput:
    case OpKind::kBackwardWeight:
    case OpKind::kSend:
    case OpKind::kReceive:
    case OpKind::kGatherTokens:
    case OpKind::kScatterSums:
    case OpKind::kGatherRows:
    case OpKind::kExchangeContext:
      return true;
    default:
      return false;
  }
}

class Remover {
 public:
  explicit Remover(Program& program) : program_(program) {}

  void run() {
    id_of_.assign(program_.instructions.size(), kNone);
    buffer_of_.assign(program_.buffers.size(), kNone);
    for (const Instruction& instruction : program_.instructions) uses_.push_back(instruction.uses);
    std::vector<Instruction> all;
    for (Instruction& instruction : program_.instructions) {
      const bool absent = is_of_micro_batch(instruction.kind) && is_absent(instruction.lane);
      if (absent) leave_to_next(instruction);
      if (absent && !becomes_release(instruction)) continue;
      id_of_[static_cast<size_t>(instruction.id)] = static_cast<int>(all.size());
      if (instruction.resource == Resource::kCompute) take_left(instruction);
      all.push_back(std::move(instruction));
    }
    std::vector<Buffer> buffers;
    for (const Buffer& buffer : program_.buffers) {
      // What became a release makes nothing any more.
      const int maker = id_of_[static_cast<size_t>(buffer.made_by)];
      if (maker == kNone || std::ranges::find(all[static_cast<size_t>(maker)].makes, buffer.id) ==
                                all[static_cast<size_t>(maker)].makes.end())
        continue;
      buffer_of_[static_cast<size_t>(buffer.id)] = static_cast<int>(buffers.size());
      buffers.push_back(buffer);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      Instruction& instruction = all[i];
      instruction.id = static_cast<int>(i);
      renumber(instruction.depends_on, id_of_);
      for (auto* const list : {&instruction.makes, &instruction.uses, &instruction.frees})
        renumber(*list, buffer_of_);
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      buffers[i].id = static_cast<int>(i);
      buffers[i].made_by = id_of_[static_cast<size_t>(buffers[i].made_by)];
      buffers[i].freed_after = id_of_[static_cast<size_t>(buffers[i].freed_after)];
    }
    program_.instructions = std::move(all);
    program_.buffers = std::move(buffers);
    std::erase_if(program_.lanes, [&](int64_t lane) { return is_absent(lane); });
  }

 private:
  bool is_absent(int64_t lane) const { return lane >= program_.strategy.leaves(); }

  /// What was sent for a lane that there is may be waited for, and freed, while an absent one is computed: that is left to what
  /// this rank computes next.
  void leave_to_next(const Instruction& instruction) {
    for (const int id : instruction.frees) {
      const Buffer& buffer = program_.buffers[static_cast<size_t>(id)];
      if (buffer.kind == BufferKind::kGatheredWeights ||
          id_of_[static_cast<size_t>(buffer.made_by)] == kNone)
        continue;
      left_.push_back(id);
      for (const int on : instruction.depends_on) {
        const std::vector<int>& uses = uses_[static_cast<size_t>(on)];
        if (std::ranges::find(uses, id) != uses.end()) left_dependencies_.push_back(on);
      }
    }
  }

  void take_left(Instruction& instruction) {
    for (const int id : left_) {
      instruction.uses.push_back(id);
      instruction.frees.push_back(id);
      program_.buffers[static_cast<size_t>(id)].freed_after = instruction.id;
    }
    std::vector<int>& on = instruction.depends_on;
    on.insert(on.end(), left_dependencies_.begin(), left_dependencies_.end());
    std::ranges::sort(on);
    on.erase(std::unique(on.begin(), on.end()), on.end());
    left_.clear();
    left_dependencies_.clear();
  }

  /// Turns the last use of gathered weights into their release; false if it is none.
  bool becomes_release(Instruction& instruction) const {
    Instruction release;
    release.id = instruction.id;
    release.kind = OpKind::kReleaseParameters;
    for (const int id : instruction.frees) {
      const Buffer& buffer = program_.buffers[static_cast<size_t>(id)];
      if (buffer.kind != BufferKind::kGatheredWeights) continue;
      release.part = buffer.part;
      release.uses.push_back(id);
      release.frees.push_back(id);
      release.depends_on.push_back(buffer.made_by);
    }
    if (release.frees.empty()) return false;
    std::ranges::sort(release.depends_on);
    instruction = std::move(release);
    return true;
  }

  static void renumber(std::vector<int>& ids, const std::vector<int>& number_of) {
    for (int& id : ids) id = number_of[static_cast<size_t>(id)];
    std::erase(ids, kNone);
  }

  Program& program_;
  std::vector<int> id_of_;              ///< by old id; kNone: taken out
  std::vector<int> buffer_of_;          ///< the same of buffers
  std::vector<std::vector<int>> uses_;  ///< by old id
  std::vector<int> left_;               ///< buffers that the next one that computes frees
  std::vector<int> left_dependencies_;
};

}  // namespace

std::vector<int64_t> lanes_with_absent(const Strategy& strategy, int64_t index, int64_t ranks) {
  std::vector<int64_t> lanes = lanes_of(strategy, index, ranks);
  const Parallel& parallel = strategy.parallel;
  // Then parts of two lanes are done in turn.
  const bool in_turn =
      parallel.tp > 1 && strategy.in_turn > 1 && (parallel.zero == 2 || parallel.cp > 1);
  if (parallel.zero < 3 && parallel.pp == 1 && !in_turn) return lanes;
  // Lanes are spread evenly: a rank has one less than others, or none.
  const auto most = static_cast<size_t>((strategy.lanes + ranks - 1) / ranks);
  if (lanes.size() < most) lanes.push_back(strategy.lanes + index);
  return lanes;
}

void remove_absent_lanes(Program& program) {
  if (program.lanes.back() >= program.strategy.leaves()) Remover(program).run();
}

}  // namespace trireme::plan
