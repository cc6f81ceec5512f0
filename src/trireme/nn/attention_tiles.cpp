#include "trireme/nn/attention_tiles.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::nn {

std::vector<AttentionTile> attention_tiles(int64_t rows,
                                           const std::vector<cluster::PlaceRange>& pieces,
                                           const kernels::Segments* segments, int64_t window) {
  std::vector<AttentionTile> tiles;
  int64_t here = 0;  // of the piece's first place
  for (const cluster::PlaceRange& piece : pieces) {
    // What of a document that begins at `start` the piece has, up to `end`.
    const auto add = [&](int64_t row, int64_t count, int64_t start, int64_t end) {
      const int64_t first = std::max(start, piece.first);
      const int64_t last = std::min(end, piece.last);
      if (first >= last) return;
      const int64_t key = window > 0 ? std::max(start, first - window + 1) : start;
      tiles.push_back({row, count, here + first - piece.first, last - first, key, last - key});
    };
    if (segments == nullptr) {
      add(0, rows, 0, piece.last);
    } else {
      TRIREME_CHECK(static_cast<int64_t>(segments->size()) == rows,
                    "documents of {} rows for a batch of {}", segments->size(), rows);
      for (int64_t row = 0; row < rows; ++row) {
        const std::vector<int32_t>& starts = (*segments)[static_cast<size_t>(row)];
        for (size_t i = 0; i < starts.size(); ++i)
          add(row, 1, starts[i], i + 1 < starts.size() ? starts[i + 1] : piece.last);
      }
    }
    here += piece.count();
  }
  return tiles;
}

std::vector<AttentionTile> ring_tiles(int64_t rows, const std::vector<cluster::PlaceRange>& queries,
                                      const std::vector<cluster::PlaceRange>& keys,
                                      const kernels::Segments* segments, int64_t window) {
  std::vector<AttentionTile> tiles;
  int64_t query_here = 0;
  for (const cluster::PlaceRange& asking : queries) {
    int64_t key_here = 0;
    for (const cluster::PlaceRange& asked : keys) {
      const auto add = [&](int64_t row, int64_t count, int64_t start, int64_t end) {
        const int64_t first = std::max(start, asking.first);
        int64_t last = std::min(end, asking.last);
        int64_t key = std::max(start, asked.first);
        const int64_t key_end = std::min(end, asked.last);
        if (window > 0) {
          key = std::max(key, first - window + 1);
          last = std::min(last, key_end + window - 1);
        }
        if (first >= last || key >= key_end) return;
        tiles.push_back({row, count, query_here + first - asking.first, last - first,
                         key_here + key - asked.first, key_end - key, first - key,
                         asking == asked});
      };
      if (asked.first <= asking.first) {
        const int64_t end = std::max(asking.last, asked.last);
        for (int64_t row = 0; row < (segments == nullptr ? 1 : rows); ++row) {
          if (segments == nullptr) {
            add(0, rows, 0, end);
            continue;
          }
          const std::vector<int32_t>& starts = (*segments)[static_cast<size_t>(row)];
          for (size_t i = 0; i < starts.size(); ++i)
            add(row, 1, starts[i], i + 1 < starts.size() ? starts[i + 1] : end);
        }
      }
      key_here += asked.count();
    }
    query_here += asking.count();
  }
  return tiles;
}

}  // namespace trireme::nn
