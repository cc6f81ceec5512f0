// How a run is spread over ranks: the run file's [parallel] table. plan/validate_parallel.h says whether a model can run so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/cluster/mesh.h"

namespace trireme::plan {

/// Orders of a pipeline's work; plan/schedule.h has them.
enum class ScheduleKind {
  kGPipe,
  k1F1B,
  kInterleaved,
  kZeroBubbleH1,  ///< zb-h1
  kZeroBubbleV,   ///< zbv
  kDualPipeV,
  kVHalf,
  kText  ///< read from a file
};
const char* to_string(ScheduleKind kind);  ///< as in the run file; "file" of kText
/// Error{kConfig} with the nearest name for an unknown one.
ScheduleKind schedule_from_name(const std::string& name);
/// Whether `parallel.schedule` names a file: it has a slash or a dot, which no schedule's name has.
bool names_schedule_file(const std::string& name);
/// In the order of ScheduleKind, without kText.
std::vector<std::string> schedule_names();

enum class ContextKind {
  kRing,
  kGather,
  kUlysses
};  ///< how context parallel ranks share keys and values
const char* to_string(ContextKind kind);
ContextKind context_kind_from_name(const std::string& name);  ///< as schedule_from_name()

enum class Reduction {
  kExact,  ///< over the tree of lanes: the layout does not change the result
  kFast    ///< the transport's own sums
};
const char* to_string(Reduction reduction);
Reduction reduction_from_name(const std::string& name);  ///< as schedule_from_name()

/// Sizes count ranks; world = dp x tp x pp x cp.
struct Parallel {
  int64_t dp = 1;
  int64_t zero = 0;  ///< ZeRO stage, 0 to 3
  int64_t shard =
      0;  ///< data parallel ranks among which ZeRO shards, replicas across (hybrid); 0: all
  int64_t tp = 1;
  int64_t pp = 1;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  std::string schedule_file = {};  ///< kText: its name, for messages
  std::string schedule_text = {};  ///< kText: its content
  int64_t chunks = 1;              ///< pipeline stages a rank
  int64_t cp = 1;
  ContextKind cp_kind = ContextKind::kRing;
  int64_t ep = 1;
  int64_t etp = 1;
  Reduction reduction = Reduction::kExact;

  int64_t world() const { return dp * tp * pp * cp; }
  /// Data parallel ranks that share states; every block of so many has all of them.
  int64_t sharing() const { return shard > 0 ? shard : dp; }
  int64_t stages() const { return pp * chunks; }  ///< of the pipeline
  bool operator==(const Parallel&) const = default;
};

/// For cluster::Mesh, of a valid Parallel.
cluster::MeshShape mesh_shape(const Parallel& parallel);

/// What differs from one rank, for people: "dp 4 zero 3 pp 2 zbv"; "one rank".
std::string describe(const Parallel& parallel);

}  // namespace trireme::plan
