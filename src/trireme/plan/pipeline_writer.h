// Writes what a rank does between its first and its last micro-batch, in the order of a pipeline schedule. Internal to this room.
#pragma once

#include <deque>
#include <map>
#include <vector>

#include "trireme/plan/gradient_sums.h"
#include "trireme/plan/micro_batch_writer.h"
#include "trireme/plan/program_writer.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/stages.h"

namespace trireme::plan {

/// How the run's model lies on the ranks of a pipeline.
struct PipelineLayout {
  PipelineSchedule schedule;
  Stages stages;
  /// By part: whether it is on the rank.
  std::vector<char> parts_of(int pipeline_rank) const;
  /// For Program::stages; empty where there is no pipeline.
  std::vector<PipelineStage> ranked_stages() const;
};
/// Of any rank with that many micro-batches; one stage where there is no pipeline. The strategy is valid.
PipelineLayout pipeline_layout(const model::ModelSpec& spec, const Strategy& strategy,
                               int64_t micro_batches);
/// build_program() of a strategy that is known to be valid, with that layout: of all ranks of a world, one serves them all.
Program build_program(const model::ModelSpec& spec, const Strategy& strategy, int rank,
                      const PipelineLayout& layout);

/// Hidden states go to the rank of the next stage as soon as they are there, their gradients back. What is to come is received one
/// action ahead, while the one before it is computed; what two ranks send each other keeps its order, so a message that overtakes
/// another one is received after it. Ownership: borrows all.
class PipelineWriter {
 public:
  /// `pipeline_rank` is the rank's place in the pipeline, `group` the index of its ranks in Program::groups (-1: one rank).
  PipelineWriter(const model::ModelSpec& spec, const PipelineLayout& layout, int pipeline_rank,
                 int group, ProgramWriter& writer, MicroBatchWriter& micro_batches,
                 GradientSums& sums);

  /// All actions of the rank, for the micro-batches of its program.
  void write();

 private:
  static constexpr int kNone = ProgramWriter::kNone;

  /// A part's hidden state, or its gradient, of a micro-batch, on its way between two ranks.
  struct Message {
    int part = 0;
    int64_t micro_batch = 0;  ///< as the schedule counts them
    bool gradient = false;
    bool operator<(const Message& other) const;
  };
  struct Sent {
    int instruction = 0;
    int buffer = 0;
  };

  int rank_of(int stage) const {
    return layout_.schedule.rank_of_stage[static_cast<size_t>(stage)];
  }
  int first_part(int stage) const { return layout_.stages.begin[static_cast<size_t>(stage)]; }
  int end_part(int stage) const { return layout_.stages.begin[static_cast<size_t>(stage) + 1]; }
  MicroBatch& micro(int64_t index) { return live_.at(index); }

  void write_in_turn();
  void begin_micro_batch(int64_t index);
  void act(const Action& action);
  void act_together(const Action& forward, const Action& backward);
  void forward(int stage, int64_t index, int part);
  void backward_input(int stage, int64_t index, int part, bool with_weight);
  void backward_weight(int64_t index, int part);
  /// The input of multi-token prediction and heads add to one matrix's gradients: its backward-weight is not put off.
  bool keeps_order(int part) const {
    return spec_.parts[static_cast<size_t>(part)].kind == model::PartKind::kMtpInput;
  }
  void delayed_weights(int stage, int64_t index);

  void list_messages();
  void receive_for(size_t action);
  void receive(int from, const Message& message);
  void send(int to, const Message& message, int buffer);
  void wait_for_sent(size_t most);

  const model::ModelSpec& spec_;
  const PipelineLayout& layout_;
  const int rank_;
  const int group_;
  ProgramWriter& writer_;
  MicroBatchWriter& micro_batches_;
  GradientSums& sums_;
  const int last_part_;
  std::vector<int64_t> order_;                 ///< numbers of the micro-batches in the global batch
  std::map<int64_t, MicroBatch> live_;         ///< as the schedule counts them
  std::map<int, std::deque<Message>> coming_;  ///< by sender, in its order
  std::map<Message, int> sender_;
  std::map<Message, int> received_;  ///< the buffers
  std::deque<Sent> sent_;
  int last_compute_ = kNone;
};

}  // namespace trireme::plan
