#include "trireme/plan/program_writer.h"

#include <algorithm>

namespace trireme::plan {

int ProgramWriter::new_buffer(BufferKind kind, int part, int64_t micro_batch, int64_t lane,
                              int64_t bytes) {
  const int id = static_cast<int>(program_.buffers.size());
  program_.buffers.push_back({id, kind, part, micro_batch, lane, bytes, kNone, kNone});
  access_.emplace_back();
  return id;
}

Instruction& ProgramWriter::begin(OpKind kind, int part, int64_t micro_batch, int64_t lane) {
  Instruction instruction;
  instruction.id = static_cast<int>(program_.instructions.size());
  instruction.kind = kind;
  instruction.part = part;
  instruction.micro_batch = micro_batch;
  instruction.lane = lane;
  return program_.instructions.emplace_back(std::move(instruction));
}

void ProgramWriter::depend(int on) {
  if (on != kNone && on != current()) program_.instructions.back().depends_on.push_back(on);
}

void ProgramWriter::make(int buffer) {
  program_.instructions.back().makes.push_back(buffer);
  program_.buffers[static_cast<size_t>(buffer)].made_by = current();
  access_[static_cast<size_t>(buffer)].last_write = current();
}

void ProgramWriter::read(int buffer) {
  program_.instructions.back().uses.push_back(buffer);
  depend(access_[static_cast<size_t>(buffer)].last_write);
  access_[static_cast<size_t>(buffer)].readers.push_back(current());
}

void ProgramWriter::after_everyone(int buffer) {
  Access& access = access_[static_cast<size_t>(buffer)];
  depend(access.last_write);
  for (const int reader : access.readers) depend(reader);
}

void ProgramWriter::write(int buffer) {
  program_.instructions.back().uses.push_back(buffer);
  after_everyone(buffer);
  access_[static_cast<size_t>(buffer)] = {current(), {}};
}

// A buffer is dead after the last instruction that touches it.
void ProgramWriter::free_after_last_use() {
  std::vector<int> last(program_.buffers.size(), kNone);
  for (const Instruction& instruction : program_.instructions) {
    for (const auto* buffers : {&instruction.makes, &instruction.uses}) {
      for (const int buffer : *buffers) last[static_cast<size_t>(buffer)] = instruction.id;
    }
  }
  for (Buffer& buffer : program_.buffers) {
    buffer.freed_after = last[static_cast<size_t>(buffer.id)];
    Instruction& freeing = program_.instructions[static_cast<size_t>(buffer.freed_after)];
    freeing.frees.push_back(buffer.id);
    const Access& access = access_[static_cast<size_t>(buffer.id)];
    for (const int reader : access.readers) freeing.depends_on.push_back(reader);
    freeing.depends_on.push_back(access.last_write);
  }
  for (Instruction& instruction : program_.instructions) {
    auto& depends_on = instruction.depends_on;
    std::erase(depends_on, instruction.id);
    std::ranges::sort(depends_on);
    depends_on.erase(std::unique(depends_on.begin(), depends_on.end()), depends_on.end());
  }
}
void ProgramWriter::read_if_made(int buffer) {
  if (buffer != kNone) read(buffer);
}

}  // namespace trireme::plan
