// What hardware and training software can do, as the planner needs it: read from profiles/*.toml. Pure: the caller reads files.
//
// Every number of a profile is a table { value = ..., source = "..." } or lies in one that has a `source`; one without is
// refused. Units are SI: bytes, seconds, bytes a second, operations a second.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/plan/efficiency.h"
#include "trireme/plan/instruction_rate.h"

namespace trireme::plan {

/// One published measurement of the same quantity; `sources` of the quantity are combined by their median.
struct Observation {
  double value = 0.0;
  std::string source;  ///< as the ground truth's files are called ("simumax"), or a paper
};

/// Median of all observations but those whose source is `without`; `fallback` of none.
double combined(const std::vector<Observation>& observations, const std::string& without,
                double fallback);

/// A calibrated quantity of a device and a kind of software.
struct Calibration {
  std::string device;  ///< name of a DeviceProfile; empty: any
  std::string stack;   ///< name of a StackProfile; empty: any
  std::string key;     ///< "sustained", "host_kernel_s", "interval"
  std::vector<Observation> observations;
};

struct DeviceProfile {
  std::string name;
  std::map<ComputeType, double> peak_flops;  ///< dense
  double memory_bytes = 0.0;                 ///< all of it
  double usable_bytes = 0.0;  ///< what a program can have, context and libraries taken off
  double memory_bytes_per_s = 0.0;
  double memory_efficiency = 0.8;  ///< reached by element-wise kernels
  /// Best share of the peak that a product reaches, and how it falls with shape where no measurement is near: tiles of
  /// `tile_m` x `tile_n` on `units` processors in waves, k / (k + half_k).
  std::map<ComputeType, double> gemm_efficiency;
  double tile_m = 128.0;
  double tile_n = 128.0;
  double units = 108.0;
  double half_k = 128.0;
  /// Share of its rate that a product keeps with a size that is a multiple of 8 elements only; between that and 64 in proportion
  /// to the doublings.
  double unaligned = 1.0;
  double attention_forward = 0.4;      ///< share of the peak, counting causal operations only
  double attention_backward = 0.3;     ///< the same; 2.5 times the forward's operations
  double attention_half_rows = 512.0;  ///< rows of a head at which attention reaches half of that
  double kernel_gap_s = 2e-6;          ///< between two kernels of a queue
  std::string tables;                  ///< device whose measured shapes apply, scaled by the peaks
  EfficiencyTables measured;
  /// False: the host's thread does the device's work, so copies and loads take their turn in the order of issue.
  bool asynchronous = true;
  double host_link_bytes_per_s = 0.0;  ///< to the host, and as many from it; 0: unknown
  double instruction_gap_s = 0.0;      ///< between two instructions that the host's thread does
  double step_overhead_s = 0.0;        ///< of a step, beside its instructions
  double step_slowdown = 1.0;          ///< HostTimes::slowdown
  /// What instructions of Trireme's programs take there; with any, its own runs are predicted program by program
  /// (own_prediction.h).
  std::vector<InstructionRate> instructions;
};

/// Links of a group of accelerators: all of it within reach of a node, or of the network.
struct LinkProfile {
  int ranks = 0;             ///< for groups of up to so many; 0: any
  double bytes_per_s = 0.0;  ///< of an accelerator, one direction
  double latency_s = 5e-6;   ///< of a hop
  double fixed_s = 10e-6;    ///< of a call
  double all_reduce = 0.8;   ///< shares of bytes_per_s that collectives reach
  double all_gather = 0.8;
  double reduce_scatter = 0.8;
  double all_to_all = 0.6;
  double send_receive = 0.8;
};

struct NodeProfile {
  std::string name;
  int accelerators = 8;
  std::vector<LinkProfile> links;  ///< by group size, ascending
  /// A host bridge: groups that span more than `bridge_span` neighbours share `bridge_bytes_per_s`; 0: none.
  int bridge_span = 0;
  double bridge_bytes_per_s = 0.0;
  /// So many times longer an accelerator computes while the others of the node do: processors that share memory and clocks.
  double busy_slowdown = 1.0;
};

struct NetworkProfile {
  std::string name;
  LinkProfile link;  ///< bytes_per_s of an accelerator's share of the node's adapters
  /// Time of a collective grows by this share with every doubling of the nodes beyond the first (stragglers, congestion).
  double growth_per_doubling = 0.0;
  /// What an all-gather among so many accelerators usually reaches there, by their number; a run that has measured its own says
  /// by it how good a network it had (published_run.cpp).
  std::map<int, double> usual_gather;
};

struct ClusterSpec {
  std::string name;
  DeviceProfile device;
  NodeProfile node;
  NetworkProfile network;
};

enum class AttentionKernel {
  kFlash,
  kFlashPlain,
  kUnfused
};  ///< kFlashPlain: does not skip what the causal mask hides

/// Habits of a training framework.
struct StackProfile {
  std::string name;
  std::string
      version_of;  ///< another stack: what this one does not say is as there, calibrations too
  AttentionKernel attention = AttentionKernel::kFlash;
  bool fused_loss = true;  ///< logits are not kept in float32 beside their gradient
  double pointwise_passes =
      1.0;  ///< memory traffic of element-wise work, relative to fused kernels
  double pointwise_kernels = 1.0;  ///< number of kernels, relative to fused ones
  double host_kernel_s = 0.0;      ///< host's time to launch a kernel; 0: graphs
  double host_part_s =
      0.0;  ///< host's time of a part's forward, and half of that of each half of its backward
  /// Host's time of a collective inside a part: ranks that their hosts drive drift apart, and each one waits for the last.
  double host_collective_s = 0.0;
  /// So much more of it for every member, and the latency of collectives between nodes, where ranks are on several nodes: the same
  /// host drives the adapters.
  double host_crossing_s = 0.0;
  /// What a transfer between stages takes at least where it crosses nodes, whatever its size: a defect of the software.
  double network_send_s = 0.0;
  /// Layers go to stages by their parameters in products, the head's among them (nanotron); else as many to each.
  bool stages_by_cost = false;
  double step_s = 0.0;          ///< once a step: data, logging, clipping on the host
  double gradient_bytes = 4.0;  ///< of an element when it is reduced
  double gathered_bytes = 2.0;  ///< of a parameter when it is gathered
  double bucket_bytes = 160e6;  ///< transfers are put together up to so much
  bool overlap_gradients = true;
  bool overlap_parameters = false;
  bool sums_in_transfer =
      true;  ///< the collective adds gradients up; else computation does (the exact reduction)
  bool overlap_send = false;    ///< transfers between stages beside computation
  double tensor_exposed = 1.0;  ///< share of the tensor parallel collectives that nothing hides
  double expert_exposed = 1.0;  ///< the same of the exchanges of tokens among experts
  double fsdp_contention =
      0.0;  ///< slow-down of computation beside transfers, as a share of the transfer's time
  double optimizer_passes = 1.0;  ///< memory traffic of the optimizer, relative to one fused pass
  // Memory of a rank, in bytes a parameter.
  double weight_bytes = 2.0;
  double main_gradient_bytes = 4.0;
  double optimizer_bytes = 12.0;  ///< shared by ZeRO 1: masters and both moments
  double context_bytes = 0.0;     ///< held beside torch's allocator's tensors
  double activation_factor =
      1.0;  ///< of what a part keeps, relative to fused kernels that keep nothing twice
  double loss_bytes = 6.0;         ///< of a logit while the loss is computed
  bool keeps_projections = false;  ///< queries and keys are kept before their rotation too
  /// A pipeline's stage keeps its output with its input until their backward, and the first one the embedding's dropout mask.
  bool keeps_stage_outputs = false;
};

/// How often jobs fail and what that costs them.
struct ReliabilityProfile {
  std::string name;
  double failures_per_accelerator_hour = 0.0;
  double restart_s = 0.0;  ///< from a failure until work goes on from the last checkpoint
  double checkpoint_bytes_per_s = 0.0;  ///< of an accelerator's share of the storage
};

/// Which cluster or stack the text of a published row means; '*' stands for any text, letters' case does not matter.
struct Pattern {
  std::string text;
  std::string name;
};
bool matches_pattern(std::string_view pattern, std::string_view text);

/// All that profiles/ has.
struct ProfileLibrary {
  std::map<std::string, DeviceProfile> devices;
  std::map<std::string, NodeProfile> nodes;
  std::map<std::string, NetworkProfile> networks;
  std::map<std::string, ClusterSpec> clusters;
  std::map<std::string, StackProfile> stacks;
  std::map<std::string, ReliabilityProfile> reliabilities;
  std::vector<Pattern> cluster_patterns;  ///< the first that matches counts
  std::vector<Pattern> stack_patterns;
  std::vector<Calibration> calibrations;

  /// Reads one file and adds it; entries that refer to others (a cluster to its device) find those read before it. Patterns of
  /// later files come first. Error{kConfig} naming file, table and key.
  void add(const std::string& text, const std::string& origin);
  /// By name, else by pattern. Error{kConfig} with the nearest names if there is none.
  const ClusterSpec& cluster(const std::string& name_or_text) const;
  const StackProfile& stack(const std::string& name_or_text) const;
  const ReliabilityProfile& reliability(const std::string& name) const;  ///< by name alone
  /// The calibrated value for a device and a stack: the most specific entry that has observations left without `without`.
  double calibrated(const std::string& key, const std::string& device, const std::string& stack,
                    const std::string& without, double fallback) const;
};

/// The library that comes with the program.
const ProfileLibrary& shipped_profiles();

}  // namespace trireme::plan
