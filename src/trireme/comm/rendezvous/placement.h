// Which rank this process is: from explicit options, else from the variables that launchers set. Pure: no I/O, torch-free.
#pragma once

#include <map>
#include <optional>
#include <string>

namespace trireme::comm {

/// Variables by name.
using Environment = std::map<std::string, std::string, std::less<>>;

/// Those of this process.
Environment process_environment();

/// What a user or a program says itself; goes over what the environment says.
struct PlacementOptions {
  std::optional<int> rank;
  std::optional<int> size;
  std::optional<int> local_rank;
  std::string address;      ///< of rank 0
  std::optional<int> port;  ///< of rank 0
};

struct Placement {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  /// Ranks on this machine; `size` where all are. 0: not known.
  int local_size = 1;
  /// Where rank 0 can be met; "" and 0: the launcher does not say, and all ranks are on this machine.
  std::string address;
  int port = 0;
  /// "options", "torchrun" (and everybody who sets its variables), "mpirun", "srun"; "" for one process alone.
  std::string launcher;
  /// torchrun's agent listens at address:port itself, with a store in which rank 0 says where it really is.
  bool agent_store = false;
  /// The same text in all ranks of a job on this machine, and in no other job at the same time; "" if the variables have none.
  std::string job;

  bool operator==(const Placement&) const = default;
};

/// Reads, in this order: options; RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT (trireme launch, torchrun);
/// OMPI_COMM_WORLD_* (Open MPI); PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS (MPICH, Intel MPI); SLURM_PROCID, SLURM_NTASKS,
/// SLURM_LOCALID, SLURM_NODELIST (srun). MASTER_ADDR and MASTER_PORT count with every launcher. Throws Error{kConfig} that names the
/// variables which are half set, no numbers, out of range, or say different things.
Placement read_placement(const PlacementOptions& options, const Environment& environment);

/// The first host of Slurm's list: "node[08-11,14],other" begins with "node08". Error{kConfig}.
std::string first_slurm_host(const std::string& list);

}  // namespace trireme::comm
