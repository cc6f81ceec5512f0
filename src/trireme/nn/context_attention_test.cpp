// Attention of a sequence in pieces, as ranks that share it compute it, against the part that has all of it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "trireme/device/device.h"
#include "trireme/nn/model.h"
#include "trireme/nn/testing/tiny_models.h"

namespace trireme::nn {
namespace {

struct Computed {
  at::Tensor output;    ///< [rows, length, d]
  at::Tensor gradient;  ///< of the input
  at::Tensor weights;   ///< flat
};

class Attention {
 public:
  Attention(const model::ModelSpec& spec, at::ScalarType dtype, int layer)
      : store_(spec, dtype), layer_(layer) {
    store_.initialize(3);
    model_.emplace(store_);
    for (size_t part = 0; part < spec.parts.size(); ++part) {
      if (spec.parts[part].kind == model::PartKind::kAttention && spec.parts[part].layer == layer)
        part_ = static_cast<int>(part);
    }
  }

  Computed whole(const at::Tensor& hidden, const BatchTensors& batch, const at::Tensor& dy) {
    ForwardResult result = model_->part(part_).forward(hidden, batch, true, SaveMode::kAll);
    Computed computed;
    computed.output = result.output;
    computed.gradient = result.graph->backward_input(dy);
    computed.weights = weights_of({result.graph.get()});
    return computed;
  }

  /// As in_pieces(), the keys of one rank after the other.
  Computed in_a_ring(const at::Tensor& hidden, const BatchTensors& batch, const at::Tensor& dy,
                     int64_t ranks, SaveMode mode) {
    Pieces pieces = cut(hidden, batch, ranks, mode);
    Computed computed{at::empty_like(hidden), at::empty_like(hidden), {}};
    const auto packed = [&](int64_t rank) {
      ContextGraph& context = *pieces.graphs[static_cast<size_t>(rank)]->context();
      at::Tensor keys = at::empty({context.packed_numel()}, hidden.options());
      context.pack_keys(keys);
      return keys;
    };
    const auto attend = [&](int64_t rank) {
      ContextGraph& context = *pieces.graphs[static_cast<size_t>(rank)]->context();
      context.begin_ring();
      for (int64_t round = 0; round < ranks; ++round) {
        const int64_t other = (rank + ranks - round) % ranks;
        context.attend_to(round == 0 ? at::Tensor() : pieces.keys[static_cast<size_t>(other)],
                          other);
      }
      return &context;
    };
    const auto pack_all = [&] {
      pieces.keys.clear();
      for (int64_t rank = 0; rank < ranks; ++rank) pieces.keys.push_back(packed(rank));
    };
    pack_all();
    for (int64_t rank = 0; rank < ranks; ++rank)
      computed.output.index_copy_(1, pieces.places[static_cast<size_t>(rank)],
                                  attend(rank)->finish_ring());
    if (mode == SaveMode::kInputOnly) {
      for (auto& graph : pieces.graphs) graph->recompute();
      pack_all();
      for (int64_t rank = 0; rank < ranks; ++rank) attend(rank)->finish_ring_again();
    }
    pack_all();
    std::vector<at::Tensor> sent(static_cast<size_t>(ranks * ranks));
    for (int64_t rank = 0; rank < ranks; ++rank) {
      ContextGraph& context = *pieces.graphs[static_cast<size_t>(rank)]->context();
      context.begin_ring_backward(dy.index_select(1, pieces.places[static_cast<size_t>(rank)]));
      for (int64_t round = 0; round < ranks; ++round) {
        const int64_t other = (rank + ranks - round) % ranks;
        sent[static_cast<size_t>(rank * ranks + other)] =
            context.backward_to(pieces.keys[static_cast<size_t>(other)], other);
      }
    }
    for (int64_t owner = 0; owner < ranks; ++owner) {
      PartGraph& graph = *pieces.graphs[static_cast<size_t>(owner)];
      for (int64_t round = 1; round < ranks; ++round) {
        const int64_t rank = (owner + round) % ranks;
        graph.context()->add_key_gradients(sent[static_cast<size_t>(rank * ranks + owner)], rank);
      }
      graph.context()->finish_ring_backward();
      const at::Tensor& places = pieces.places[static_cast<size_t>(owner)];
      computed.gradient.index_copy_(1, places, graph.backward_input(dy.index_select(1, places)));
    }
    std::vector<PartGraph*> all;
    for (const auto& graph : pieces.graphs) all.push_back(graph.get());
    computed.weights = weights_of(all);
    return computed;
  }

  /// The key gradients of rank `lost` get lost on their way; -1: none.
  Computed in_pieces(const at::Tensor& hidden, const BatchTensors& batch, const at::Tensor& dy,
                     int64_t ranks, SaveMode mode, int64_t lost = -1) {
    Pieces pieces = cut(hidden, batch, ranks, mode);
    auto& [batches, graphs, places, unused] = pieces;
    const auto all_keys = [&] {
      const int64_t elements = graphs.front()->context()->packed_numel();
      at::Tensor all = at::empty({ranks * elements}, hidden.options());
      for (int64_t rank = 0; rank < ranks; ++rank)
        graphs[static_cast<size_t>(rank)]->context()->pack_keys(
            all.narrow(0, rank * elements, elements));
      return all;
    };
    Computed computed{at::empty_like(hidden), at::empty_like(hidden), {}};
    const auto each = [&](const auto& call) {
      for (size_t rank = 0; rank < graphs.size(); ++rank) call(rank, *graphs[rank]);
    };
    {
      const at::Tensor keys = all_keys();
      each([&](size_t rank, PartGraph& graph) {
        computed.output.index_copy_(1, places[rank], graph.context()->attend(keys));
      });
    }
    if (mode == SaveMode::kInputOnly) {
      each([](size_t, PartGraph& graph) { graph.recompute(); });
      const at::Tensor keys = all_keys();
      each([&](size_t, PartGraph& graph) { graph.context()->attend_again(keys); });
    }
    const at::Tensor keys = all_keys();
    std::vector<at::Tensor> sent;
    each([&](size_t rank, PartGraph& graph) {
      sent.push_back(graph.context()->backward_attention(dy.index_select(1, places[rank]), keys));
      if (static_cast<int64_t>(rank) == lost) sent.back().zero_();
    });
    const int64_t elements = keys.numel() / ranks;
    std::vector<int64_t> taken(static_cast<size_t>(ranks), 0);
    each([&](size_t owner, PartGraph& graph) {
      std::vector<at::Tensor> received;
      for (size_t rank = 0; rank < sent.size(); ++rank) {
        const int64_t count = owner >= rank ? elements : elements / 2;
        received.push_back(sent[rank].narrow(0, taken[rank], count));
        taken[rank] += count;
      }
      graph.context()->take_key_gradients(at::cat(received));
      computed.gradient.index_copy_(1, places[owner],
                                    graph.backward_input(dy.index_select(1, places[owner])));
    });
    std::vector<PartGraph*> all;
    for (const auto& graph : graphs) all.push_back(graph.get());
    computed.weights = weights_of(all);
    return computed;
  }

 private:
  struct Pieces {
    std::vector<BatchTensors> batches;  ///< graphs point to them
    std::vector<std::unique_ptr<PartGraph>> graphs;
    std::vector<at::Tensor> places;
    std::vector<at::Tensor> keys;
  };

  Pieces cut(const at::Tensor& hidden, const BatchTensors& batch, int64_t ranks, SaveMode mode) {
    Pieces result;
    auto& [batches, graphs, places, unused] = result;
    batches.resize(static_cast<size_t>(ranks));
    const int64_t length = batch.seq_len;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      BatchTensors& mine = batches[static_cast<size_t>(rank)];
      mine = batch;
      mine.pieces = cluster::zigzag_pieces(length, ranks, rank);
      mine.whole_len = length;
      mine.seq_len = length / ranks;
      mine.context_ranks = ranks;
      mine.context_rank = rank;
      std::vector<at::Tensor> ranges;
      for (const cluster::PlaceRange& piece : mine.pieces)
        ranges.push_back(at::arange(piece.first, piece.last, at::kLong));
      places.push_back(at::cat(ranges));
      for (at::Tensor* tensor : {&mine.tokens, &mine.positions})
        *tensor = tensor->index_select(1, places.back());
      graphs.push_back(
          model_->attention(layer_).begin(hidden.index_select(1, places.back()), mine, mode));
    }
    return result;
  }

  at::Tensor weights_of(const std::vector<PartGraph*>& graphs) {
    at::Tensor flat = at::zeros({store_.part_numel(part_)}, at::kFloat);
    for (PartGraph* const graph : graphs) {
      GradientSink sink;
      for (const int parameter : model_->part(part_).gradient_parameters()) {
        sink.gradients.push_back(store_.view(flat, parameter));
        sink.accumulate.push_back(1);
      }
      graph->backward_weight(sink);
    }
    return flat;
  }

  ParameterStore store_;
  std::optional<Model> model_;
  int layer_;
  int part_ = -1;
};

double relative(const at::Tensor& got, const at::Tensor& want) {
  return (got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>() /
         want.to(at::kDouble).abs().max().item<double>();
}

/// The largest of the three.
double difference(const Computed& got, const Computed& want) {
  return std::max({relative(got.output, want.output), relative(got.gradient, want.gradient),
                   relative(got.weights, want.weights)});
}

class ContextAttention : public ::testing::Test {
 protected:
  ContextAttention() : threads_(at::get_num_threads()) {
    device::install_cpu_allocator();
    at::set_num_threads(1);
  }
  ~ContextAttention() override { at::set_num_threads(threads_); }

 private:
  int threads_;
};

TEST_F(ContextAttention, PiecesOfEveryFamilyMakeTheWhole) {
  constexpr int64_t kLength = 16;
  uint64_t seed = 1;
  for (const model::ModelSpec& spec : testing::tiny_specs(7)) {
    if (spec.layers.front().attention.latent || spec.num_mtp_layers > 0) continue;
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const bool documents : {false, true}) {
        const int layer = static_cast<int>(seed % spec.layers.size());
        SCOPED_TRACE(fmt::format("{} layer {}, {}{}", spec.family, layer, c10::toString(dtype),
                                 documents ? ", documents" : ""));
        Attention attention(spec, dtype, layer);
        const BatchTensors batch = testing::random_batch(spec, 2, kLength, documents, ++seed);
        at::manual_seed(seed);
        const at::Tensor hidden = at::randn({2, kLength, spec.hidden}).to(dtype);
        const at::Tensor dy = at::randn({2, kLength, spec.hidden}).to(dtype);
        const Computed want = attention.whole(hidden, batch, dy.clone());
        for (const int64_t ranks : {1, 2, 4, 8}) {
          // Sums over places, in another order; a family's norms and its softmax pass errors on, each by a factor of some.
          const double unit = dtype == at::kFloat ? std::ldexp(1.0, -24) : std::ldexp(1.0, -9);
          const double bound = 16.0 * std::sqrt(static_cast<double>(kLength + ranks)) * unit;
          for (const SaveMode mode : {SaveMode::kAll, SaveMode::kSelective, SaveMode::kInputOnly}) {
            const Computed got = attention.in_pieces(hidden, batch, dy, ranks, mode);
            EXPECT_LE(difference(got, want), bound)
                << ranks << " ranks, mode " << static_cast<int>(mode);
            const Computed ring = attention.in_a_ring(hidden, batch, dy, ranks, mode);
            EXPECT_LE(difference(ring, want), bound)
                << ranks << " ranks in a ring, mode " << static_cast<int>(mode);
          }
        }
        const Computed faulty = attention.in_pieces(hidden, batch, dy, 2, SaveMode::kAll, 1);
        EXPECT_GT(difference(faulty, want), 1e-2) << "rank 1's gradients of keys are lost";
      }
    }
  }
}

}  // namespace
}  // namespace trireme::nn
