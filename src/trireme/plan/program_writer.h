// Writes instructions and buffers one after the other and derives what waits for what. Internal to this room.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Dependencies come from who wrote a buffer last and who has read it since. Every call after begin() is about the
/// instruction that it began.
class ProgramWriter {
 public:
  static constexpr int kNone = -1;

  Program& program() { return program_; }
  Instruction& begin(OpKind kind, int part, int64_t micro_batch, int64_t lane);
  int current() const { return static_cast<int>(program_.instructions.size()) - 1; }
  int new_buffer(BufferKind kind, int part, int64_t micro_batch, int64_t lane, int64_t bytes);

  void depend(int on);     ///< kNone and the instruction itself are left out
  void make(int buffer);   ///< brings the buffer into being
  void read(int buffer);   ///< after who wrote it last
  void write(int buffer);  ///< after who wrote it last and everyone who has read it since
  void read_if_made(int buffer);
  /// As write(), but the buffer is not touched: what takes its place comes then.
  void after_everyone(int buffer);
  int last_write(int buffer) const { return access_[static_cast<size_t>(buffer)].last_write; }

  /// A buffer is dead after the last instruction that touches it. Sorts all dependencies; no instruction comes later.
  void free_after_last_use();

 private:
  struct Access {
    int last_write = kNone;
    std::vector<int> readers;
  };
  Program program_;
  std::vector<Access> access_;
};

}  // namespace trireme::plan
