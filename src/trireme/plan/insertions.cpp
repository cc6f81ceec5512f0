#include "trireme/plan/insertions.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::plan {

void insert_all(Program& program, std::vector<Insertion> insertions) {
  constexpr int kNone = -1;
  std::vector<size_t> order(insertions.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto key = [&](size_t i) {
    const Insertion& insertion = insertions[i];
    return std::tuple(insertion.before, insertion.instruction.kind == OpKind::kReload,
                      insertion.first_use, i);
  };
  std::ranges::sort(order, [&](size_t a, size_t b) { return key(a) < key(b); });

  std::vector<Instruction> all;
  std::vector<int> id_of(program.instructions.size());
  std::vector<int> id_of_inserted(insertions.size());
  auto next = order.begin();
  for (size_t i = 0; i <= program.instructions.size(); ++i) {
    for (; next != order.end() && insertions[*next].before == static_cast<int>(i); ++next) {
      id_of_inserted[*next] = static_cast<int>(all.size());
      all.push_back(std::move(insertions[*next].instruction));
    }
    if (i == program.instructions.size()) break;
    id_of[i] = static_cast<int>(all.size());
    all.push_back(std::move(program.instructions[i]));
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
  for (Buffer& buffer : program.buffers) {
    for (int* id : {&buffer.made_by, &buffer.freed_after, &buffer.offloaded_by,
                    &buffer.released_before, &buffer.reloaded_by})
      renumber(*id);
  }
  program.instructions = std::move(all);
}

int last_compute_before(const Program& program, int id) {
  do {
    --id;
  } while (id >= 0 && program.instructions[static_cast<size_t>(id)].resource != Resource::kCompute);
  return id;
}

}  // namespace trireme::plan
