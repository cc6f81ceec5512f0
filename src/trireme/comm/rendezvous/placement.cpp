#include "trireme/comm/rendezvous/placement.h"

#include <unistd.h>

#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/base/error.h"

namespace trireme::comm {

namespace {

constexpr int kMaxRanks = 1 << 16;

/// The variables of one kind of launcher.
struct Names {
  const char* launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;
};

constexpr Names kTorchrun = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr Names kOpenMpi = {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                            "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr Names kPmi = {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
constexpr Names kSlurm = {"srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr};

class Reader {
 public:
  explicit Reader(const Environment& environment) : environment_(environment) {}

  /// nullptr if it is not set, or empty.
  const std::string* text(const char* name) const {
    if (name == nullptr) return nullptr;
    const auto found = environment_.find(name);
    return found == environment_.end() || found->second.empty() ? nullptr : &found->second;
  }

  std::string text_or(const char* name, const std::string& fallback) const {
    const std::string* value = text(name);
    return value == nullptr ? fallback : *value;
  }

  std::optional<int> number(const char* name, int low, int high) const {
    const std::string* value = text(name);
    if (value == nullptr) return std::nullopt;
    int result = 0;
    const char* end = value->data() + value->size();
    const auto [rest, error] = std::from_chars(value->data(), end, result);
    TRIREME_USER_CHECK(error == std::errc() && rest == end && result >= low && result <= high,
                       kConfig, "launchers set it; unset it to run one process",
                       "{} = '{}' is not a number from {} to {}", name, *value, low, high);
    return result;
  }

 private:
  const Environment& environment_;
};

/// Rank and size as one kind of launcher says them; nothing if it sets neither.
std::optional<Placement> read_ranks(const Reader& reader, const Names& names) {
  const std::optional<int> rank = reader.number(names.rank, 0, kMaxRanks - 1);
  const std::optional<int> size = reader.number(names.size, 1, kMaxRanks);
  if (!rank && !size) return std::nullopt;
  TRIREME_USER_CHECK(rank, kConfig, "set both, or neither for one process",
                     "{} = {} is set, but {} is not", names.size, *size, names.rank);
  TRIREME_USER_CHECK(size, kConfig, "set both, or neither for one process",
                     "{} = {} is set, but {} is not", names.rank, *rank, names.size);
  TRIREME_USER_CHECK(*rank < *size, kConfig, "ranks go from 0 to the number of ranks - 1",
                     "{} = {}, but {} = {}", names.rank, *rank, names.size, *size);
  Placement placement;
  placement.rank = *rank;
  placement.size = *size;
  placement.launcher = names.launcher;
  const std::optional<int> local_size = reader.number(names.local_size, 1, kMaxRanks);
  const std::optional<int> local_rank = reader.number(names.local_rank, 0, kMaxRanks - 1);
  if (local_size) {
    TRIREME_USER_CHECK(*local_size <= *size, kConfig,
                       "a machine cannot have more ranks than the run", "{} = {}, but {} = {}",
                       names.local_size, *local_size, names.size, *size);
  }
  if (local_rank) {
    const char* bound = local_size ? names.local_size : names.size;
    const int most = local_size ? *local_size : *size;
    TRIREME_USER_CHECK(*local_rank < most, kConfig,
                       "local ranks go from 0 to the number of ranks on the machine - 1",
                       "{} = {}, but {} = {}", names.local_rank, *local_rank, bound, most);
    TRIREME_USER_CHECK(*local_rank <= *rank, kConfig,
                       "a rank is at least as large as its number on its machine",
                       "{} = {}, but {} = {}", names.local_rank, *local_rank, names.rank, *rank);
  }
  placement.local_size = local_size.value_or(*size == 1 ? 1 : 0);
  placement.local_rank = local_rank.value_or(placement.local_size == *size ? *rank : 0);
  return placement;
}

/// Ranks on this machine, of "2(x3),1" (two on each of three machines, one on the fourth); 0 if it cannot be told.
int slurm_local_size(const std::string& counts, int node) {
  size_t at = 0;
  while (at < counts.size()) {
    int tasks = 0;
    int machines = 1;
    const char* end = counts.data() + counts.size();
    auto parsed = std::from_chars(counts.data() + at, end, tasks);
    if (parsed.ec != std::errc()) return 0;
    at = static_cast<size_t>(parsed.ptr - counts.data());
    if (counts.compare(at, 2, "(x") == 0) {
      parsed = std::from_chars(counts.data() + at + 2, end, machines);
      if (parsed.ec != std::errc() || parsed.ptr == end || *parsed.ptr != ')') return 0;
      at = static_cast<size_t>(parsed.ptr - counts.data()) + 1;
    }
    if (node < machines) return tasks;
    node -= machines;
    if (at < counts.size() && counts[at] != ',') return 0;
    ++at;
  }
  return 0;
}

std::optional<Placement> read_slurm(const Reader& reader, const Environment& environment) {
  // A batch script itself has SLURM_PROCID = 0 and the allocation's SLURM_NTASKS. What srun starts is a step.
  if (reader.text(kSlurm.rank) == nullptr) return std::nullopt;
  const bool step =
      reader.text("SLURM_STEP_ID") != nullptr || reader.text("SLURM_STEPID") != nullptr;
  if (!step && reader.text("SLURM_JOB_ID") != nullptr && *reader.text(kSlurm.rank) == "0")
    return std::nullopt;
  Environment own = environment;
  if (const std::string* tasks = reader.text("SLURM_STEP_NUM_TASKS")) own["SLURM_NTASKS"] = *tasks;
  std::optional<Placement> placement = read_ranks(Reader(own), kSlurm);
  if (!placement) return std::nullopt;
  const char* counts = reader.text("SLURM_STEP_TASKS_PER_NODE") != nullptr
                           ? "SLURM_STEP_TASKS_PER_NODE"
                           : "SLURM_TASKS_PER_NODE";
  const int node = reader.number("SLURM_NODEID", 0, kMaxRanks - 1).value_or(0);
  const int local_size = slurm_local_size(reader.text_or(counts, ""), node);
  if (local_size > 0 && local_size <= placement->size) placement->local_size = local_size;
  const char* nodes =
      reader.text("SLURM_STEP_NODELIST") != nullptr ? "SLURM_STEP_NODELIST" : "SLURM_NODELIST";
  if (placement->local_size != placement->size && reader.text(nodes) != nullptr) {
    placement->address = first_slurm_host(*reader.text(nodes));
    // Below the ports that systems give away, and another one for the next job.
    placement->port = 10000 + reader.number("SLURM_JOB_ID", 0, 1 << 30).value_or(0) % 20000;
  }
  placement->job = "srun " + reader.text_or("SLURM_JOB_ID", "") + "." +
                   reader.text_or("SLURM_STEP_ID", reader.text_or("SLURM_STEPID", ""));
  return placement;
}

void read_address(const Reader& reader, Placement& placement) {
  const std::string* address = reader.text("MASTER_ADDR");
  const std::optional<int> port = reader.number("MASTER_PORT", 1, 65535);
  TRIREME_USER_CHECK(port || address == nullptr, kConfig, "set both, or neither",
                     "MASTER_ADDR = {} is set, but MASTER_PORT is not", *address);
  if (address != nullptr) placement.address = *address;
  if (port) placement.port = *port;
  TRIREME_USER_CHECK(!port || !placement.address.empty(), kConfig, "set both, or neither",
                     "MASTER_PORT = {} is set, but MASTER_ADDR is not", *port);
}

void read_options(const PlacementOptions& options, Placement& placement) {
  if (options.rank || options.size) {
    TRIREME_USER_CHECK(options.rank && options.size, kConfig, "give both, or neither",
                       "of rank and world size only one is given");
    TRIREME_USER_CHECK(*options.size >= 1 && *options.size <= kMaxRanks && *options.rank >= 0 &&
                           *options.rank < *options.size,
                       kConfig, "ranks go from 0 to the number of ranks - 1",
                       "rank {} of {} cannot be", *options.rank, *options.size);
    placement.rank = *options.rank;
    placement.size = *options.size;
    placement.local_rank = 0;
    placement.local_size = placement.size == 1 ? 1 : 0;
    placement.launcher = "options";
    placement.agent_store = false;
    placement.job.clear();
  }
  if (options.local_rank) {
    TRIREME_USER_CHECK(*options.local_rank >= 0 && *options.local_rank <= placement.rank, kConfig,
                       "a rank is at least as large as its number on its machine",
                       "local rank {} of rank {} cannot be", *options.local_rank, placement.rank);
    placement.local_rank = *options.local_rank;
  }
  if (!options.address.empty()) placement.address = options.address;
  if (options.port) {
    TRIREME_USER_CHECK(*options.port >= 1 && *options.port <= 65535, kConfig,
                       "ports go from 1 to 65535", "port {} cannot be", *options.port);
    placement.port = *options.port;
  }
  if (!options.address.empty() || options.port) placement.agent_store = false;
}

/// Two launchers that are not one inside the other must say the same.
void check_agreement(const Placement& chosen, const Names& chosen_names, const Placement& other,
                     const Names& other_names) {
  TRIREME_USER_CHECK(chosen.rank == other.rank && chosen.size == other.size, kConfig,
                     "unset the variables of the launcher that is not meant",
                     "{} = {} of {} = {}, but {} = {} of {} = {}", chosen_names.rank, chosen.rank,
                     chosen_names.size, chosen.size, other_names.rank, other.rank, other_names.size,
                     other.size);
}

}  // namespace

Environment process_environment() {
  Environment environment;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos)
      environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

std::string first_slurm_host(const std::string& list) {
  const size_t open = list.find_first_of("[,");
  if (open == std::string::npos || list[open] == ',') return list.substr(0, open);
  const size_t end = list.find_first_of(",-]", open + 1);
  TRIREME_USER_CHECK(end != std::string::npos && end > open + 1, kConfig,
                     "set MASTER_ADDR to the host of rank 0",
                     "SLURM_NODELIST = '{}' cannot be read", list);
  const size_t close = list.find(']', open);
  TRIREME_USER_CHECK(close != std::string::npos, kConfig, "set MASTER_ADDR to the host of rank 0",
                     "SLURM_NODELIST = '{}' cannot be read", list);
  std::string host = list.substr(0, open) + list.substr(open + 1, end - open - 1);
  // What follows the brackets, up to the next host.
  const size_t next = list.find(',', close);
  host += list.substr(close + 1, next == std::string::npos ? next : next - close - 1);
  return host;
}

Placement read_placement(const PlacementOptions& options, const Environment& environment) {
  const Reader reader(environment);
  const bool explicit_rank = options.rank.has_value() || options.size.has_value();
  // Each launcher that speaks, the innermost first.
  std::vector<std::pair<Placement, const Names*>> found;
  if (!explicit_rank) {
    const std::optional<Placement> torchrun = read_ranks(reader, kTorchrun);
    if (torchrun) found.emplace_back(*torchrun, &kTorchrun);
    // trireme launch and torchrun may themselves have been started by another launcher, once per machine.
    if (!torchrun || reader.text("GROUP_RANK") == nullptr) {
      for (const Names* names : {&kOpenMpi, &kPmi}) {
        if (const auto placement = read_ranks(reader, *names))
          found.emplace_back(*placement, names);
      }
      // mpirun inside an allocation starts its helpers by srun, whose variables the ranks inherit.
      if (found.empty() || found.front().second == &kTorchrun) {
        if (const auto placement = read_slurm(reader, environment))
          found.emplace_back(*placement, &kSlurm);
      }
    }
  }
  Placement placement;
  if (!found.empty()) {
    const Names* names = found.front().second;
    placement = found.front().first;
    for (size_t i = 1; i < found.size(); ++i) {
      check_agreement(placement, *names, found[i].first, *found[i].second);
      // An outer launcher may know more.
      if (placement.local_size == 0) {
        placement.local_size = found[i].first.local_size;
        if (reader.text(names->local_rank) == nullptr)
          placement.local_rank = found[i].first.local_rank;
      }
    }
    if (names == &kTorchrun) {
      placement.agent_store = reader.text_or("TORCHELASTIC_USE_AGENT_STORE", "") == "True";
      placement.job = "torchrun " + reader.text_or("MASTER_ADDR", "") + ":" +
                      reader.text_or("MASTER_PORT", "") + " " +
                      reader.text_or("TORCHELASTIC_RUN_ID", "") + " " +
                      reader.text_or("TORCHELASTIC_RESTART_COUNT", "");
    } else if (names == &kOpenMpi && reader.text("PMIX_NAMESPACE") != nullptr) {
      placement.job = "mpirun " + *reader.text("PMIX_NAMESPACE");
    }
  }
  if (placement.size > 1 || explicit_rank) read_address(reader, placement);
  read_options(options, placement);
  if (placement.size == 1) {
    // Nobody has to be met.
    placement.address.clear();
    placement.port = 0;
    placement.agent_store = false;
    return placement;
  }
  const bool one_machine = placement.local_size == placement.size;
  TRIREME_USER_CHECK(
      (!placement.address.empty() && placement.port > 0) || one_machine, kConfig,
      "set MASTER_ADDR and MASTER_PORT to where rank 0 listens, the same in all ranks",
      "rank {} of {} does not know where rank 0 is: {} set", placement.rank, placement.size,
      placement.address.empty() ? "MASTER_ADDR and MASTER_PORT are not" : "MASTER_PORT is not");
  return placement;
}

}  // namespace trireme::comm
