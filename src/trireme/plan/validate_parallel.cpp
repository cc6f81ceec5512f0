#include "trireme/plan/validate_parallel.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "trireme/base/error.h"
#include "trireme/plan/schedule_text.h"
#include "trireme/plan/stages.h"

namespace trireme::plan {

namespace {

// What of the table a problem is about, and so what is changed first.
enum class Key { kDp, kZero, kShard, kTp, kPp, kSchedule, kChunks, kCp, kContextKind, kEp, kEtp };

struct Size {
  Key key;
  const char* name;
  int64_t Parallel::* value;
  int64_t least;
};
constexpr std::array<Size, 9> kSizes = {{{Key::kDp, "dp", &Parallel::dp, 1},
                                         {Key::kZero, "zero", &Parallel::zero, 0},
                                         {Key::kShard, "shard", &Parallel::shard, 0},
                                         {Key::kTp, "tp", &Parallel::tp, 1},
                                         {Key::kPp, "pp", &Parallel::pp, 1},
                                         {Key::kChunks, "chunks", &Parallel::chunks, 1},
                                         {Key::kCp, "cp", &Parallel::cp, 1},
                                         {Key::kEp, "ep", &Parallel::ep, 1},
                                         {Key::kEtp, "etp", &Parallel::etp, 1}}};

const Size* size_of(Key key) {
  const auto* const found = std::ranges::find(kSizes, key, &Size::key);
  return found == kSizes.end() ? nullptr : found;
}

// "parallel.tp = 2"
std::string setting(Key key, const Parallel& parallel) {
  if (key == Key::kSchedule)
    return fmt::format("parallel.schedule = \"{}\"", parallel.schedule == ScheduleKind::kText
                                                         ? parallel.schedule_file
                                                         : to_string(parallel.schedule));
  if (key == Key::kContextKind)
    return fmt::format("parallel.cp_kind = \"{}\"", to_string(parallel.cp_kind));
  const Size* const size = size_of(key);
  return fmt::format("parallel.{} = {}", size->name, parallel.*size->value);
}

struct Found {
  Key key;
  std::string what;
};

// Which numbers of the model must divide; each one once.
struct ModelNumbers {
  std::set<int64_t> heads;
  std::set<int64_t> kv_heads;
  std::set<int64_t> widths;  ///< of MLPs and shared experts
  std::set<int64_t> experts;
  std::set<int64_t> expert_widths;
  int units = 0;  ///< of stage_units()

  explicit ModelNumbers(const model::ModelSpec& spec)
      : units(static_cast<int>(stage_units(spec).size()) - 1) {
    for (const model::LayerSpec& layer : spec.layers) {
      heads.insert(layer.attention.num_heads);
      // Latent attention keeps one compressed vector for all heads.
      if (!layer.attention.latent) kv_heads.insert(layer.attention.num_kv_heads);
      if (!layer.moe) {
        widths.insert(layer.mlp.hidden);
        continue;
      }
      if (layer.moe->shared_hidden > 0) widths.insert(layer.moe->shared_hidden);
      experts.insert(layer.moe->num_experts);
      expert_widths.insert(layer.moe->expert.hidden);
    }
  }
};

class Rules {
 public:
  Rules(const model::ModelSpec& spec, const Strategy& strategy)
      : spec_(spec), strategy_(strategy), numbers_(spec) {}

  std::vector<Found> problems(const Parallel& parallel) const {
    std::vector<Found> found;
    for (const Size& size : kSizes) {
      // Beyond this, products of sizes overflow before they mean anything.
      constexpr int64_t kMost = 1 << 15;
      const int64_t value = parallel.*size.value;
      if (value < size.least || value > kMost)
        found.push_back({size.key, fmt::format("{} is not between {} and {}",
                                               setting(size.key, parallel), size.least, kMost)});
    }
    if (!found.empty()) return found;  // the rest divides by them
    check_data(parallel, found);
    check_tensor(parallel, found);
    check_pipeline(parallel, found);
    check_context(parallel, found);
    check_experts(parallel, found);
    return found;
  }

 private:
  using List = std::vector<Found>;

  void check_data(const Parallel& p, List& found) const {
    if (p.dp > strategy_.lanes)
      found.push_back({Key::kDp, fmt::format("parallel.dp = {}: every data parallel rank needs a "
                                             "lane of its own, and batch.lanes = {}",
                                             p.dp, strategy_.lanes)});
    if (p.zero > 3)
      found.push_back(
          {Key::kZero, fmt::format("parallel.zero = {}: ZeRO has stages 0 to 3", p.zero)});
    if (p.shard == 0) return;
    if (p.zero == 0)
      found.push_back({Key::kShard, fmt::format("parallel.shard = {}: without ZeRO (parallel.zero "
                                                "= 0) nothing is sharded",
                                                p.shard)});
    if (p.shard == 1)
      found.push_back({Key::kShard, "parallel.shard = 1: one rank has nothing to share with"});
    // Blocks of ranks have to meet in one place of the tree.
    if (p.shard < p.dp && p.dp <= strategy_.lanes && strategy_.lanes % p.dp != 0)
      found.push_back({Key::kDp, fmt::format("parallel.dp = {} does not divide batch.lanes = {}, "
                                             "which replicas of shards (parallel.shard = {}) need",
                                             p.dp, strategy_.lanes, p.shard)});
    if (p.dp % p.shard != 0)
      found.push_back({Key::kShard, fmt::format("parallel.shard = {} does not divide parallel.dp = "
                                                "{}",
                                                p.shard, p.dp)});
  }

  static void check_divides(Key key, int64_t size, const char* name,
                            const std::set<int64_t>& numbers, const char* of, List& found) {
    for (const int64_t number : numbers) {
      if (number % size == 0) continue;
      found.push_back(
          {key, fmt::format("parallel.{} = {} does not divide {} {}", name, size, number, of)});
    }
  }

  void check_tensor(const Parallel& p, List& found) const {
    if (p.tp == 1) return;
    check_divides(Key::kTp, p.tp, "tp", numbers_.heads, "attention heads", found);
    check_divides(Key::kTp, p.tp, "tp", numbers_.widths, "columns of an MLP", found);
    check_divides(Key::kTp, p.tp, "tp", {spec_.vocab_size}, "tokens of the vocabulary", found);
    for (const int64_t heads : numbers_.kv_heads) {
      // Fewer heads than ranks: some ranks have the same one.
      if (heads % p.tp != 0 && p.tp % heads != 0)
        found.push_back({Key::kTp, fmt::format("parallel.tp = {}: {} key and value heads cannot "
                                               "be spread evenly",
                                               p.tp, heads)});
    }
    const int64_t tokens = strategy_.micro * strategy_.seq_len / p.cp;
    if (tokens % p.tp != 0)
      found.push_back({Key::kTp, fmt::format("parallel.tp = {} does not divide the {} tokens that "
                                             "a micro-batch has on a rank, which norms share",
                                             p.tp, tokens)});
  }

  void check_pipeline(const Parallel& p, List& found) const {
    if (p.pp == 1) {
      if (p.chunks > 1)
        found.push_back({Key::kChunks, fmt::format("parallel.chunks = {}: with parallel.pp = 1 "
                                                   "there are no stages",
                                                   p.chunks)});
      return;
    }
    const int fixed = fixed_chunks(p.schedule);
    const char* const name = to_string(p.schedule);
    if (p.schedule == ScheduleKind::kText) {
      check_text(p, found);
    } else if (fixed > 0 && p.chunks != fixed) {
      found.push_back(
          {Key::kChunks, fmt::format("parallel.schedule = \"{}\" has {} on every "
                                     "rank, not parallel.chunks = {}",
                                     name, fixed == 1 ? "one stage" : "two stages", p.chunks)});
    } else if (fixed == 0 && p.chunks < 2) {
      found.push_back({Key::kChunks, fmt::format("parallel.schedule = \"{}\" needs two stages on "
                                                 "every rank or more, not parallel.chunks = {}",
                                                 name, p.chunks)});
    }
    if (spec_.tied_embeddings || spec_.num_mtp_layers > 0) check_embedding(p, found);
    // Else the ranks that share parameters would end their stages in different orders.
    if (p.chunks > 1 && p.dp <= strategy_.lanes && strategy_.lanes % p.dp != 0)
      found.push_back({Key::kDp, fmt::format("parallel.dp = {} does not divide batch.lanes = {}, "
                                             "which several stages a rank (parallel.chunks = {}) "
                                             "need",
                                             p.dp, strategy_.lanes, p.chunks)});
    if (p.stages() > numbers_.units)
      found.push_back(
          {p.chunks > 2 ? Key::kChunks : Key::kPp,
           fmt::format("parallel.pp = {} x parallel.chunks = {} are {} stages; the model can be "
                       "cut into {}: embedding, {} layers, head",
                       p.pp, p.chunks, p.stages(), numbers_.units, numbers_.units - 2)});
  }

  // Where the last stage reads the embedding, the first and the last stage add to one matrix's gradients: on one rank, and with
  // one micro-batch a lane in the order in which a single rank does.
  void check_embedding(const Parallel& p, List& found) const {
    const char* const why = spec_.tied_embeddings ? "the model's head multiplies with its embedding"
                                                  : "multi-token prediction reads the embedding";
    if (strategy_.micro_batches_per_lane() > 1)
      found.push_back(
          {Key::kPp,
           fmt::format("parallel.pp = {}: {}, whose gradients a pipeline adds in the order "
                       "of one rank only with one micro-batch a lane (batch.lanes = {})",
                       p.pp, why, strategy_.micro_batches())});
    if (!first_and_last_stage_meet(p))
      found.push_back(
          {Key::kSchedule, fmt::format("{}: {}, which this schedule has on another rank",
                                       setting(Key::kSchedule, p), why)});
  }

  static bool first_and_last_stage_meet(const Parallel& p) {
    if (p.schedule != ScheduleKind::kText)
      return p.schedule == ScheduleKind::kZeroBubbleV || p.schedule == ScheduleKind::kDualPipeV ||
             p.schedule == ScheduleKind::kVHalf;
    try {
      const PipelineSchedule schedule = parse_schedule(p.schedule_text, p.schedule_file);
      return schedule.rank_of_stage.front() == schedule.rank_of_stage.back();
    } catch (const Error&) {
      return true;  // check_text() says what is wrong with it
    }
  }

  void check_text(const Parallel& p, List& found) const {
    try {
      const PipelineSchedule schedule = parse_schedule(p.schedule_text, p.schedule_file);
      if (schedule.num_ranks() != p.pp)
        found.push_back({Key::kPp, fmt::format("parallel.schedule = \"{}\" is for {} ranks, not "
                                               "parallel.pp = {}",
                                               p.schedule_file, schedule.num_ranks(), p.pp)});
      const int chunks = schedule.num_stages() / schedule.num_ranks();
      if (chunks != p.chunks)
        found.push_back({Key::kChunks, fmt::format("parallel.schedule = \"{}\" has {} stages a "
                                                   "rank, not parallel.chunks = {}",
                                                   p.schedule_file, chunks, p.chunks)});
      // Ranks of a pipeline have as many lanes as one another, but not every pipeline has.
      const int64_t per_lane = strategy_.micro_batches_per_lane();
      const int64_t fewest = strategy_.lanes / p.dp * per_lane;
      const int64_t most = (strategy_.lanes + p.dp - 1) / p.dp * per_lane;
      if (schedule.micro_batches != fewest || schedule.micro_batches != most)
        found.push_back({Key::kSchedule,
                         fmt::format("parallel.schedule = \"{}\" is for {} micro-batches, and a "
                                     "data parallel rank has {}",
                                     p.schedule_file, schedule.micro_batches,
                                     fewest == most ? fmt::format("{}", fewest)
                                                    : fmt::format("{} to {}", fewest, most))});
    } catch (const Error& error) {
      found.push_back({Key::kSchedule, fmt::format("parallel.schedule: {}", error.what())});
    }
  }

  void check_context(const Parallel& p, List& found) const {
    if (p.cp == 1) return;
    // Zigzag: a rank has a piece from the front and one from the back, for an even load under the causal mask.
    const int64_t pieces = p.cp_kind == ContextKind::kUlysses ? p.cp : 2 * p.cp;
    if (strategy_.seq_len % pieces != 0)
      found.push_back(
          {Key::kCp, fmt::format("parallel.cp = {} ({}) cuts a sequence into {} "
                                 "pieces, which does not divide data.seq_len = {}",
                                 p.cp, to_string(p.cp_kind), pieces, strategy_.seq_len)});
    if (p.cp_kind != ContextKind::kUlysses) return;
    const int64_t ranks = p.cp * p.tp;
    for (const int64_t heads : numbers_.heads) {
      if (heads % ranks != 0)
        found.push_back({Key::kContextKind, fmt::format("parallel.cp_kind = \"ulysses\": "
                                                        "parallel.cp x parallel.tp = {} does not "
                                                        "divide {} attention heads",
                                                        ranks, heads)});
    }
    for (const int64_t heads : numbers_.kv_heads) {
      if (heads % ranks != 0 && ranks % heads != 0)
        found.push_back({Key::kContextKind,
                         fmt::format("parallel.cp_kind = \"ulysses\": {} key and value heads "
                                     "cannot be spread evenly over parallel.cp x parallel.tp = {} "
                                     "ranks",
                                     heads, ranks)});
    }
  }

  void check_experts(const Parallel& p, List& found) const {
    if (numbers_.experts.empty()) {
      for (const Key key : {Key::kEp, Key::kEtp}) {
        if (p.*size_of(key)->value > 1)
          found.push_back({key, fmt::format("{}: the model has no experts", setting(key, p))});
      }
      return;
    }
    check_divides(Key::kEp, p.ep, "ep", numbers_.experts, "experts of a layer", found);
    check_divides(Key::kEtp, p.etp, "etp", numbers_.expert_widths, "columns of an expert", found);
    const int64_t ranks = p.dp * p.cp * p.tp;
    if (ranks % (p.ep * p.etp) != 0)
      found.push_back({ranks % p.etp != 0 ? Key::kEtp : Key::kEp,
                       fmt::format("parallel.ep x parallel.etp = {} x {} does not divide the {} "
                                   "ranks of a stage (dp x cp x tp)",
                                   p.ep, p.etp, ranks)});
  }

  const model::ModelSpec& spec_;
  const Strategy& strategy_;
  ModelNumbers numbers_;
};

// Values of a key other than the given one, the nearest first; of sizes those below and above by themselves.
std::vector<std::vector<Parallel>> alternatives(const Parallel& given, Key key) {
  std::vector<std::vector<Parallel>> lists;
  const auto with = [&](const auto& change) {
    Parallel changed = given;
    change(changed);
    return changed;
  };
  if (key == Key::kSchedule) {
    lists.emplace_back();
    for (const ScheduleKind kind :
         {ScheduleKind::k1F1B, ScheduleKind::kInterleaved, ScheduleKind::kZeroBubbleV})
      lists.back().push_back(with([&](Parallel& p) {
        p.schedule = kind;
        p.chunks = fixed_chunks(kind) > 0 ? fixed_chunks(kind) : std::max<int64_t>(p.chunks, 2);
      }));
    return lists;
  }
  if (key == Key::kContextKind) {
    lists.emplace_back();
    for (const ContextKind kind : {ContextKind::kRing, ContextKind::kGather})
      lists.back().push_back(with([&](Parallel& p) { p.cp_kind = kind; }));
    return lists;
  }
  const Size& size = *size_of(key);
  constexpr int64_t kFarthest = 256;
  const int64_t value = given.*size.value;
  lists.resize(2);
  for (int64_t below = std::min(value - 1, kFarthest); below >= size.least; --below)
    lists[0].push_back(with([&](Parallel& p) { p.*size.value = below; }));
  const int64_t above = std::max(value + 1, size.least);
  for (int64_t next = above; next <= std::min(2 * above, kFarthest); ++next)
    lists[1].push_back(with([&](Parallel& p) { p.*size.value = next; }));
  return lists;
}

// One rank, which every model can run on.
Parallel one_rank(Parallel parallel) {
  for (const Size& size : kSizes) parallel.*size.value = size.least;
  return parallel;
}

// The same with the least change that leaves nothing wrong with a key.
std::optional<Parallel> without_problem(const Rules& rules, const Parallel& parallel, Key key) {
  for (const std::vector<Parallel>& list : alternatives(parallel, key)) {
    for (const Parallel& candidate : list) {
      const std::vector<Found> found = rules.problems(candidate);
      if (std::ranges::count(found, key, &Found::key) == 0) return candidate;
    }
  }
  return std::nullopt;
}

// Changes one thing after another, as little as helps, until nothing is wrong any more.
Parallel repaired(const Rules& rules, Parallel parallel) {
  constexpr int kMostChanges = 24;
  for (int change = 0; change < kMostChanges; ++change) {
    const std::vector<Found> found = rules.problems(parallel);
    if (found.empty()) return parallel;
    const Key key = found.front().key;
    const std::optional<Parallel> better = without_problem(rules, parallel, key);
    if (better) {
      parallel = *better;
    } else if (key == Key::kContextKind || key == Key::kCp) {
      parallel.cp = 1;
    } else if (key == Key::kSchedule || key == Key::kChunks || key == Key::kPp) {
      parallel.pp = parallel.chunks = 1;
    } else {
      break;
    }
  }
  return one_rank(parallel);
}

// "parallel.tp = 2 with parallel.ep = 1"
std::string changes(const Parallel& from, const Parallel& to) {
  std::vector<std::string> words;
  for (const Size& size : kSizes) {
    if (from.*size.value != to.*size.value) words.push_back(setting(size.key, to));
  }
  if (from.schedule != to.schedule) words.push_back(setting(Key::kSchedule, to));
  if (from.cp_kind != to.cp_kind) words.push_back(setting(Key::kContextKind, to));
  return fmt::format("{}", fmt::join(words, " with "));
}

}  // namespace

std::vector<ParallelProblem> validate_parallel(const model::ModelSpec& spec,
                                               const Strategy& strategy) {
  const Rules rules(spec, strategy);
  const Parallel& given = strategy.parallel;
  std::vector<ParallelProblem> result;
  for (const Found& found : rules.problems(given)) {
    std::vector<Parallel> ways;
    for (const std::vector<Parallel>& list : alternatives(given, found.key)) {
      const auto good = std::ranges::find_if(
          list, [&](const Parallel& candidate) { return rules.problems(candidate).empty(); });
      if (good != list.end()) ways.push_back(*good);
    }
    std::string advice;
    if (ways.empty()) {
      ways.push_back(repaired(rules, given));
      advice = changes(given, ways.front());
    } else {
      advice = found.key == Key::kSchedule ? changes(given, ways.front())
                                           : setting(found.key, ways.front());
      const Size* const size = size_of(found.key);
      if (ways.size() > 1 && size != nullptr)
        advice += fmt::format(" or {}", ways.back().*size->value);
    }
    result.push_back({fmt::format("{}: use {}", found.what, advice), ways.front()});
  }
  return result;
}

std::string parallel_problem(const model::ModelSpec& spec, const Strategy& strategy) {
  const std::vector<Found> found = Rules(spec, strategy).problems(strategy.parallel);
  return found.empty() ? "" : found.front().what;
}

}  // namespace trireme::plan
