#include "trireme/plan/state_visits.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/plan/insertions.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/simulate.h"

namespace trireme::plan {

namespace {

constexpr int kNever = -1;  ///< in this step: the next one gives it up

/// An instruction of the compute queue and what other queues but the copies' are issued until the next one.
struct Slot {
  int compute = -1;
  int64_t room = 0;         ///< bytes that states may have while it runs
  int64_t room_before = 0;  ///< right before it, when what it releases is still there
};

/// One part's states.
struct Visitor {
  int part = 0;
  int64_t bytes = 0;
  int step_slot = 0;
};

/// Where visits of one step begin and end, by visitor; slots.
struct Schedule {
  std::vector<int> load;
  std::vector<int> give_up;  ///< as many as there are slots: by the commit
  /// Of visits that the step before began: kNever where it began none that is left.
  std::vector<int> give_up_carried;
  int first_left = 0;  ///< this one and those after it are there when the step ends
};

class Scheduler {
 public:
  Scheduler(const std::vector<Slot>& slots, const std::vector<Visitor>& visitors, int first_slot,
            int last_loss, int64_t room_between)
      : slots_(slots),
        visitors_(visitors),
        first_slot_(first_slot),
        last_loss_(last_loss),
        room_between_(room_between) {}

  /// A schedule that begins with what it leaves.
  Schedule run() {
    const int count = static_cast<int>(visitors_.size());
    int carried = walk(count, 0).first_left;
    for (;;) {
      const Schedule schedule = walk(carried, carried);
      if (schedule.first_left == carried) return schedule;
      carried = schedule.first_left;  // fewer each time
    }
  }

 private:
  struct Leaving {
    int visitor = 0;
    bool carried = false;
  };

  /// A step that begins with the visits of `first_carried` and later ones, and may leave those from `first_to_stay` on.
  Schedule walk(int first_carried, int first_to_stay) {
    const auto count = visitors_.size();
    plan_ = {std::vector<int>(count, kNever), std::vector<int>(count, kNever),
             std::vector<int>(count, kNever), static_cast<int>(count)};
    leaving_.clear();
    resident_ = 0;
    next_ = 0;
    step_ = 0;
    for (int i = first_carried; i < static_cast<int>(count); ++i) {
      leaving_.push_back({i, true});
      resident_ += bytes(i);
    }
    for (int slot = 0; slot < static_cast<int>(slots_.size()); ++slot) {
      const bool steps = step_ < static_cast<int>(count) && visitor(step_).step_slot == slot;
      while (steps && next_ <= step_) {
        make_room(slot, static_cast<int>(leaving_.size()));
        load(slot);
      }
      while (resident_ > at(slot).room && !leaving_.empty()) give_up(slot);
      TRIREME_CHECK(resident_ <= at(slot).room, "{} bytes of states where {} have room", resident_,
                    at(slot).room);
      while (next_ < static_cast<int>(count) && slot >= first_slot_ && has_room_later(slot) &&
             make_room(slot, may_give_up(slot))) {
        load(slot);
      }
      if (steps) leaving_.push_back({step_++, false});
    }
    const int commit = static_cast<int>(slots_.size());
    while (!leaving_.empty() &&
           (resident_ > room_between_ || leaving_.front().visitor < first_to_stay))
      give_up(commit);
    if (!leaving_.empty()) plan_.first_left = leaving_.front().visitor;
    return plan_;
  }

  const Visitor& visitor(int index) const { return visitors_[static_cast<size_t>(index)]; }
  const Slot& at(int slot) const { return slots_[static_cast<size_t>(slot)]; }
  int64_t bytes(int index) const { return visitor(index).bytes; }

  void load(int slot) {
    plan_.load[static_cast<size_t>(next_)] = slot;
    resident_ += bytes(next_++);
  }

  void give_up(int slot) {
    const Leaving& first = leaving_.front();
    (first.carried ? plan_.give_up_carried : plan_.give_up)[static_cast<size_t>(first.visitor)] =
        slot;
    resident_ -= bytes(first.visitor);
    leaving_.pop_front();
  }

  /// Whether the next visitor, and those that wait for their step, can stay until then.
  bool has_room_later(int slot) const {
    int64_t sum = 0;
    for (int i = step_; i <= next_; ++i) sum += bytes(i);
    int first = step_;
    for (int later = slot; later <= visitor(next_).step_slot; ++later) {
      if (sum > at(later).room) return false;
      if (visitor(first).step_slot == later) sum -= bytes(first++);
    }
    return true;
  }

  /// How many that are leaving may be given up at a slot for one that comes early. The compute queue waits for their copies:
  /// those of the step before have had a forward's time. Of this step's, the last but one at most, or the next part would
  /// be late.
  int may_give_up(int slot) const {
    const auto may = [&](const Leaving& one) {
      if (one.carried) return slot > last_loss_;
      return one.visitor + 2 <= step_ || next_ <= step_ + 1;
    };
    const auto stop = std::ranges::find_if_not(leaving_, may);
    return static_cast<int>(stop - leaving_.begin());
  }

  /// Room for the next visitor, whose last visit must be over; false and nothing done if that takes more than `most`.
  bool make_room(int slot, int most) {
    const int64_t room = std::min(at(slot).room, at(slot).room_before) - bytes(next_);
    int64_t left = resident_;
    int count = 0;
    const auto in_the_way = [&] {
      if (left > room) return true;
      return std::any_of(leaving_.begin() + count, leaving_.end(),
                         [&](const Leaving& one) { return one.carried && one.visitor == next_; });
    };
    while (in_the_way()) {
      if (count == most) return false;
      left -= bytes(leaving_[static_cast<size_t>(count++)].visitor);
    }
    for (int i = 0; i < count; ++i) give_up(slot);
    return true;
  }

  const std::vector<Slot>& slots_;
  const std::vector<Visitor>& visitors_;
  const int first_slot_;
  const int last_loss_;
  const int64_t room_between_;
  Schedule plan_;
  std::deque<Leaving> leaving_;  ///< copied out; the longest ago first
  int64_t resident_ = 0;
  int next_ = 0;  ///< the next to come
  int step_ = 0;  ///< the next whose step comes
};

/// Of a program that has no states yet.
class Visits {
 public:
  Visits(const model::ModelSpec& spec, Program& program) : program_(program) {
    const Simulation simulation = simulate_in_issue_order(program);
    const auto& held = simulation.instructions;
    for (const Instruction& instruction : program.instructions) {
      if (instruction.kind == OpKind::kLoss) last_loss_ = static_cast<int>(slots_.size());
      const auto id = static_cast<size_t>(instruction.id);
      if (instruction.kind == OpKind::kCommit) commit_ = instruction.id;
      if (instruction.resource == Resource::kCompute) {
        if (instruction.kind == OpKind::kOptimizerStep) {
          visitors_.push_back({instruction.part,
                               optimizer_state_bytes(spec, program.strategy, instruction.part),
                               static_cast<int>(slots_.size())});
        }
        if (instruction.micro_batch == program.strategy.micro_batches() - 1 && first_slot_ < 0)
          first_slot_ = static_cast<int>(slots_.size());
        slots_.push_back({instruction.id, held[id].peak_bytes,
                          id == 0 ? program.resident_bytes : held[id - 1].held_bytes_after});
      } else if (slots_.empty() || instruction.kind == OpKind::kCommit) {
        held_between_ = std::max(held_between_, held[id].peak_bytes);
      } else {
        slots_.back().room = std::max(slots_.back().room, held[id].peak_bytes);
      }
    }
    int64_t peak = simulation.peak_bytes;
    for (size_t i = 0; i < visitors_.size(); ++i) {
      const int64_t next = i + 1 < visitors_.size() ? visitors_[i + 1].bytes : 0;
      const Slot& slot = slots_[static_cast<size_t>(visitors_[i].step_slot)];
      peak = std::max(peak, slot.room + visitors_[i].bytes + next);
    }
    for (Slot& slot : slots_) {
      slot.room = peak - slot.room;
      slot.room_before = peak - slot.room_before;
    }
    room_between_ = peak - held_between_;
  }

  void insert() {
    if (visitors_.empty()) return;
    const Schedule schedule =
        Scheduler(slots_, visitors_, std::max(first_slot_, 0), last_loss_, room_between_).run();
    std::vector<int> first_load(slots_.size(), kNever);  // insertion, by slot
    for (size_t i = 0; i < visitors_.size(); ++i) {
      const int slot = schedule.load[i];
      const int in = reload(i, slots_[static_cast<size_t>(slot)].compute);
      int& first = first_load[static_cast<size_t>(slot)];
      if (first == kNever) first = in;
    }
    for (size_t i = 0; i < visitors_.size(); ++i) offload(i);
    for (size_t i = 0; i < visitors_.size(); ++i) {
      if (schedule.give_up[i] != kNever) give_up(states_[i], schedule.give_up[i], first_load, true);
      if (schedule.give_up_carried[i] == kNever) continue;
      Buffer carried = buffer(states_[i]);
      carried.id = static_cast<int>(program_.buffers.size());
      carried.made_by = carried.reloaded_by = -1;
      program_.buffers.push_back(carried);
      give_up(carried.id, schedule.give_up_carried[i], first_load, false);
    }
    insert_all(program_, std::move(insertions_));
  }

 private:
  Instruction& at(int id) { return program_.instructions[static_cast<size_t>(id)]; }
  Buffer& buffer(int id) { return program_.buffers[static_cast<size_t>(id)]; }
  int compute_of(int slot) const { return slots_[static_cast<size_t>(slot)].compute; }

  int insert(int before, size_t order, Instruction instruction) {
    insertions_.push_back({before, static_cast<int>(order), std::move(instruction)});
    return id_of_insertion(insertions_.size() - 1);
  }

  int reload(size_t index, int before) {
    Buffer state;
    state.id = static_cast<int>(program_.buffers.size());
    state.kind = BufferKind::kOptimizerState;
    state.part = visitors_[index].part;
    state.bytes = visitors_[index].bytes;
    Instruction copy;
    copy.kind = OpKind::kReload;
    copy.resource = Resource::kCopyIn;
    copy.part = state.part;
    copy.moves = {state.id};
    // What was free by then.
    copy.depends_on = {last_compute_before(program_, before)};
    state.made_by = state.reloaded_by = insert(before, index, std::move(copy));
    Instruction& step = at(compute_of(visitors_[index].step_slot));
    step.uses.push_back(state.id);
    step.depends_on.push_back(state.made_by);
    states_.push_back(state.id);
    program_.buffers.push_back(state);
    return state.made_by;
  }

  void offload(size_t index) {
    const int step = compute_of(visitors_[index].step_slot);
    Instruction copy;
    copy.kind = OpKind::kOffload;
    copy.resource = Resource::kCopyOut;
    copy.part = visitors_[index].part;
    copy.moves = {states_[index]};
    copy.depends_on = {step};
    buffer(states_[index]).offloaded_by = insert(step + 1, index, std::move(copy));
  }

  /// By what is issued first at the slot. `in_step`: the copy out is one of this step.
  void give_up(int id, int slot, const std::vector<int>& first_load, bool in_step) {
    const bool at_commit = slot == static_cast<int>(slots_.size());
    const int compute = at_commit ? commit_ : compute_of(slot);
    const int load = at_commit ? kNever : first_load[static_cast<size_t>(slot)];
    const int by = load == kNever ? compute : load;
    Instruction& releasing =
        load == kNever ? at(compute) : insertions_[static_cast<size_t>(-2 - load)].instruction;
    releasing.releases.push_back(id);
    buffer(id).released_before = buffer(id).freed_after = by;
    if (!in_step) return;
    releasing.depends_on.push_back(buffer(id).offloaded_by);
    // The device's allocator hands out memory in the order of the compute queue: that is what waits for the copy.
    if (by != compute) at(compute).depends_on.push_back(buffer(id).offloaded_by);
  }

  Program& program_;
  std::vector<Slot> slots_;
  std::vector<Visitor> visitors_;
  int first_slot_ = -1;  ///< of the last micro-batch
  int last_loss_ = -1;
  int commit_ = -1;
  int64_t held_between_ = 0;  ///< where no slot is: by the commit, and before the first slot
  int64_t room_between_ = 0;
  std::vector<int> states_;  ///< by visitor: its buffer
  std::vector<Insertion> insertions_;
};

}  // namespace

void insert_state_visits(const model::ModelSpec& spec, Program& program) {
  Visits(spec, program).insert();
}

}  // namespace trireme::plan
