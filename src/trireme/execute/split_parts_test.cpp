// Each part that tensor parallel ranks share against the part of one rank, with the exchanges between them done by hand.
#include <gtest/gtest.h>

#include <functional>

#include "trireme/execute/testing/step_fixture.h"
#include "trireme/execute/testing/tensor_models.h"
#include "trireme/nn/rank_sums.h"
#include "trireme/nn/split_model.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/tensor_share.h"

namespace trireme::execute {
namespace {

/// Flat gradients of a part and what a sink of it is.
struct Gradients {
  Gradients(const nn::ParameterStore& store, const std::vector<int>& parameters) {
    int64_t elements = 0;
    const auto& all = store.spec().parameters;
    for (const int index : parameters) elements += all[static_cast<size_t>(index)].numel();
    // One after the other, as a part's accumulator has them.
    const at::Tensor flat = at::zeros({elements});
    int64_t at = 0;
    for (const int index : parameters) {
      const model::ParameterSpec& parameter = all[static_cast<size_t>(index)];
      sink.gradients.push_back(flat.narrow(0, at, parameter.numel()).view(parameter.shape));
      sink.accumulate.push_back(1);
      at += parameter.numel();
    }
  }
  nn::GradientSink sink;
};

/// One model whole, and its shares on every rank.
class Shares {
 public:
  Shares(const model::ModelSpec& whole, int64_t tp, uint64_t seed) : store(whole), model(store) {
    store.initialize(seed);
    perturb(store);
    plan::Parallel parallel;
    parallel.tp = tp;
    for (int rank = 0; rank < tp; ++rank) {
      stores.push_back(
          std::make_unique<nn::ParameterStore>(plan::local_spec(whole, parallel, rank)));
      for (int i = 0; i < store.num_parameters(); ++i)
        stores.back()->set(
            i,
            nn::stretch(store.master(i), stores.back()->spec().parameters[static_cast<size_t>(i)]));
      models.push_back(std::make_unique<nn::Model>(*stores.back()));
      splits.push_back(std::make_unique<nn::SplitModel>(*models.back()));
    }
  }

  /// Biases begin at zero and norms at one: nothing would show of them.
  static void perturb(nn::ParameterStore& store) {
    for (int i = 0; i < store.num_parameters(); ++i) {
      at::Tensor values = store.master(i).clone();
      store.set(i, values.add_(at::randn_like(values).mul_(0.1)));
    }
  }

  size_t ranks() const { return splits.size(); }
  const model::TensorShare& share(size_t rank) const { return stores[rank]->spec().tensor; }
  at::Tensor rows_of(size_t rank, const at::Tensor& all) const {
    return all.narrow(0, share(rank).first(all.size(0)), share(rank).count(all.size(0)));
  }
  /// By rank: its rows of everybody's.
  std::vector<at::Tensor> scatter(const std::vector<at::Tensor>& partial) const {
    std::vector<at::Tensor> pieces;
    for (size_t rank = 0; rank < ranks(); ++rank) {
      std::vector<at::Tensor> of_rank;
      for (const at::Tensor& one : partial) of_rank.push_back(rows_of(rank, one));
      pieces.push_back(at::stack(of_rank));
    }
    return pieces;
  }

  /// What ranks found of a parameter, put together as the whole model's.
  at::Tensor joined(int parameter, const std::vector<at::Tensor>& of_ranks) const {
    const model::ParameterSpec& whole = store.spec().parameters[static_cast<size_t>(parameter)];
    at::Tensor sum = at::zeros(whole.shape);
    for (size_t rank = 0; rank < ranks(); ++rank) {
      const model::ModelSpec& local = stores[rank]->spec();
      const int64_t holders = plan::tensor_holders(local, parameter);
      const bool first = static_cast<int64_t>(rank) % holders == 0;
      if (plan::has_shared_gradient(local, parameter) || first)
        nn::stretch(sum, local.parameters[static_cast<size_t>(parameter)]).add_(of_ranks[rank]);
      if (!plan::has_shared_gradient(local, parameter) && holders > 1) {
        EXPECT_TRUE(
            at::equal(of_ranks[rank], of_ranks[rank - rank % static_cast<size_t>(holders)]));
      }
    }
    return sum;
  }

  nn::ParameterStore store;
  nn::Model model;
  std::vector<std::unique_ptr<nn::ParameterStore>> stores;
  std::vector<std::unique_ptr<nn::Model>> models;
  std::vector<std::unique_ptr<nn::SplitModel>> splits;
};

void expect_near(const at::Tensor& got, const at::Tensor& want, const std::string& what) {
  // Float32 in another order, of sums of a few hundred terms.
  const double error = (got - want).to(at::kDouble).norm().item<double>();
  EXPECT_LE(error, 2e-5 * want.to(at::kDouble).norm().item<double>() + 1e-7) << what;
}

void expect_gradients(const Shares& shares, const std::vector<int>& parameters,
                      const std::vector<Gradients>& got, const Gradients& want) {
  for (size_t place = 0; place < parameters.size(); ++place) {
    std::vector<at::Tensor> of_ranks;
    for (const Gradients& one : got) of_ranks.push_back(one.sink.gradients[place]);
    expect_near(shares.joined(parameters[place], of_ranks), want.sink.gradients[place],
                shares.store.spec().parameters[static_cast<size_t>(parameters[place])].name);
  }
}

/// Attention or an MLP.
void check_part(Shares& shares, int part, const nn::BatchTensors& batch, nn::SaveMode mode) {
  const int64_t tokens = batch.rows * batch.seq_len;
  const int64_t width = shares.store.spec().hidden;
  const at::Tensor x = at::randn({batch.rows, batch.seq_len, width});
  const at::Tensor dy = at::randn({batch.rows, batch.seq_len, width});
  const std::vector<int>& parameters = shares.model.part(part).gradient_parameters();

  nn::ForwardResult plain = shares.model.part(part).forward(x, batch, true, nn::SaveMode::kAll);
  const at::Tensor want_dx = plain.graph->backward_input(dy.clone());
  Gradients want(shares.store, parameters);
  plain.graph->backward_weight(want.sink);

  std::vector<std::unique_ptr<nn::SplitGraph>> graphs;
  std::vector<Gradients> got;
  std::vector<at::Tensor> rows;
  std::vector<at::Tensor> gradient_rows;
  std::vector<at::Tensor> normed;
  for (size_t rank = 0; rank < shares.ranks(); ++rank) {
    const nn::SplitPart& split = shares.splits[rank]->part(part);
    graphs.push_back(std::make_unique<nn::SplitGraph>(split, batch, true, mode));
    got.emplace_back(*shares.stores[rank], parameters);
    rows.push_back(shares.rows_of(rank, x.flatten(0, 1)).unsqueeze(0));
    gradient_rows.push_back(shares.rows_of(rank, dy.flatten(0, 1)).unsqueeze(0));
    normed.push_back(split.has_norm_before() ? graphs.back()->normalize(rows.back())
                                             : rows.back().squeeze(0));
  }
  const auto each = [&](const std::function<at::Tensor(size_t)>& call) {
    std::vector<at::Tensor> of_ranks;
    for (size_t rank = 0; rank < shares.ranks(); ++rank) of_ranks.push_back(call(rank));
    return of_ranks;
  };
  const at::Tensor gathered = at::cat(normed);
  std::vector<at::Tensor> pieces =
      shares.scatter(each([&](size_t rank) { return graphs[rank]->multiply(gathered); }));
  const at::Tensor y = at::cat(
      each([&](size_t rank) { return graphs[rank]->finish(rows[rank], pieces[rank]).squeeze(0); }));
  expect_near(y, plain.output.flatten(0, 1), "output");

  const at::Tensor gradient = at::cat(each([&](size_t rank) {
    return shares.splits[rank]->part(part).has_norm_after()
               ? graphs[rank]->begin_backward(gradient_rows[rank], got[rank].sink)
               : gradient_rows[rank].squeeze(0);
  }));
  pieces = shares.scatter(each([&](size_t rank) {
    if (mode != nn::SaveMode::kAll) graphs[rank]->give_input(gathered);
    if (mode == nn::SaveMode::kInputOnly) graphs[rank]->recompute();
    return graphs[rank]->backward_input(gradient.clone());
  }));
  const at::Tensor dx = at::cat(each([&](size_t rank) {
    const at::Tensor of_rank = graphs[rank]->finish_backward(rows[rank], gradient_rows[rank],
                                                             pieces[rank], got[rank].sink);
    graphs[rank]->backward_weight(got[rank].sink);
    return of_rank.squeeze(0);
  }));
  EXPECT_EQ(dx.size(0), tokens);
  expect_near(dx, want_dx.flatten(0, 1), "gradient of the input");
  expect_gradients(shares, parameters, got, want);
}

void check_embedding(Shares& shares, const nn::BatchTensors& batch) {
  const int64_t width = shares.store.spec().hidden;
  const std::vector<int>& parameters = shares.model.embedding().gradient_parameters();
  nn::ForwardResult plain = shares.model.embedding().forward({}, batch, true, nn::SaveMode::kAll);
  const at::Tensor dy = at::randn({batch.rows, batch.seq_len, width});
  Gradients want(shares.store, parameters);
  plain.graph->backward_input(dy.clone());
  plain.graph->backward_weight(want.sink);

  std::vector<at::Tensor> looked_up;
  std::vector<Gradients> got;
  for (size_t rank = 0; rank < shares.ranks(); ++rank) {
    looked_up.push_back(shares.splits[rank]->embedding().look_up(batch));
    got.emplace_back(*shares.stores[rank], parameters);
  }
  const std::vector<at::Tensor> pieces = shares.scatter(looked_up);
  std::vector<at::Tensor> rows;
  for (size_t rank = 0; rank < shares.ranks(); ++rank) {
    rows.push_back(shares.splits[rank]->embedding().finish(batch, pieces[rank]).squeeze(0));
    shares.splits[rank]->embedding().backward_weight(dy.flatten(0, 1).clone(), batch,
                                                     got[rank].sink);
  }
  // One rank alone adds to a token: no sum is split.
  EXPECT_TRUE(at::equal(at::cat(rows), plain.output.flatten(0, 1)));
  expect_gradients(shares, parameters, got, want);
}

void check_head(Shares& shares, const nn::BatchTensors& batch, int64_t chunk_rows) {
  const int part = shares.store.spec().head_part();
  const int64_t tokens = batch.rows * batch.seq_len;
  const at::Tensor x = at::randn({batch.rows, batch.seq_len, shares.store.spec().hidden});
  const std::vector<int>& parameters = shares.model.head().gradient_parameters();
  Gradients want(shares.store, parameters);
  const nn::LossResult plain =
      shares.model.head().loss(x, batch, 0.125, chunk_rows, &want.sink, true);

  std::vector<nn::NormStatistics> statistics(shares.ranks());
  std::vector<at::Tensor> normed;
  std::vector<Gradients> got;
  for (size_t rank = 0; rank < shares.ranks(); ++rank) {
    got.emplace_back(*shares.stores[rank], parameters);
    normed.push_back(shares.splits[rank]->head().normalize(
        shares.rows_of(rank, x.flatten(0, 1)).unsqueeze(0), true, statistics[rank]));
  }
  const at::Tensor gathered = at::cat(normed);
  std::vector<at::Tensor> d_normed(shares.ranks());
  for (at::Tensor& one : d_normed) one = at::zeros_like(gathered);
  double loss = 0.0;
  for (int64_t first = 0; first < tokens; first += chunk_rows) {
    const int64_t count = std::min(chunk_rows, tokens - first);
    const at::Tensor targets = batch.targets.flatten().narrow(0, first, count);
    const at::Tensor some = gathered.narrow(0, first, count);
    std::vector<nn::SplitHead::Rows> measured;
    std::vector<at::Tensor> all;
    for (size_t rank = 0; rank < shares.ranks(); ++rank) {
      measured.push_back(shares.splits[rank]->head().measure(some, targets));
      all.push_back(measured.back().statistics);
    }
    const at::Tensor together = at::stack(all);
    const at::Tensor losses = shares.splits[0]->head().losses(together, targets);
    loss = nn::add_losses(loss, losses);
    expect_near(losses.to(at::kFloat), plain.token_losses.flatten().narrow(0, first, count),
                "losses");
    for (size_t rank = 0; rank < shares.ranks(); ++rank) {
      EXPECT_TRUE(at::equal(shares.splits[rank]->head().losses(together, targets), losses));
      shares.splits[rank]->head().spread(measured[rank].logits, together, some, targets, 0.125,
                                         d_normed[rank].narrow(0, first, count), got[rank].sink);
    }
  }
  EXPECT_NEAR(loss, plain.loss_sum, 1e-5 * plain.loss_sum);
  const std::vector<at::Tensor> pieces = shares.scatter(d_normed);
  std::vector<at::Tensor> dx;
  for (size_t rank = 0; rank < shares.ranks(); ++rank)
    dx.push_back(shares.splits[rank]
                     ->head()
                     .finish(shares.rows_of(rank, x.flatten(0, 1)).unsqueeze(0), statistics[rank],
                             pieces[rank], got[rank].sink)
                     .squeeze(0));
  expect_near(at::cat(dx), plain.grad_hidden.flatten(0, 1), "gradient of the hidden state");
  expect_gradients(shares, parameters, got, want);
  EXPECT_EQ(part, shares.store.spec().head_part());
}

class SplitPartsTest : public ExecutorTest {};

TEST_F(SplitPartsTest, TogetherAreThePartsOfOneRank) {
  at::manual_seed(5);
  uint64_t seed = 0;
  for (const std::string& name : tensor_model_names()) {
    for (const int64_t tp : {2, 4}) {
      for (const auto& [rows, length] : {std::pair{1, 12}, {3, 7}}) {  // evenly, and not
        Shares shares(tensor_model(name), tp, ++seed);
        const nn::BatchTensors batch = to_tensors(
            random_batches(shares.store.spec(), 1, rows, length, seed).front(), 0, at::kCPU);
        SCOPED_TRACE(fmt::format("{} tp {}, {} x {}", name, tp, rows, length));
        check_embedding(shares, batch);
        for (const auto mode :
             {nn::SaveMode::kAll, nn::SaveMode::kSelective, nn::SaveMode::kInputOnly}) {
          check_part(shares, 1, batch, mode);
          check_part(shares, 2, batch, mode);
        }
        check_head(shares, batch, 5);
      }
    }
  }
}

TEST_F(SplitPartsTest, PiecesAreAddedInTheOrderOfTheRanks) {
  // 1 + 2^-24 + 2^-24: in order both small ones are lost, the other way round they are not.
  at::Tensor pieces = at::zeros({3, 1, 1});
  pieces[0] = 1.0F;
  pieces[1] = pieces[2] = 0x1.0p-24F;
  EXPECT_EQ(nn::sum_in_order(pieces).item<float>(), 1.0F);
  pieces[2] = 1.0F;
  pieces[0] = 0x1.0p-24F;
  EXPECT_GT(nn::sum_in_order(pieces).item<float>(), 1.0F);
  // bfloat16 is rounded once, at the end, with bias and residual.
  const at::Tensor low = at::full({2, 1, 1}, 0x1.0p-8F, at::kBFloat16);
  const at::Tensor one = at::ones({1, 1}, at::kBFloat16);
  EXPECT_EQ(nn::sum_in_order(low, {}, one).item<float>(), 1.0F + 0x1.0p-7F);
}

}  // namespace
}  // namespace trireme::execute
