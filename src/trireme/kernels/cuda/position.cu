// Rotary position embedding (Su et al. 2021), and rows of tables by their numbers.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

/// A block a token; a thread kN neighbouring pairs. Pairs are (i, half + i), or (2 i, 2 i + 1).
template <class T, int kN, bool kInterleaved>
__global__ void rotary_kernel(Rotary r) {
  const int64_t token = blockIdx.x;
  // A position outside the table is a defect of the caller; it must not become an address outside it.
  int64_t position = r.positions[token];
  if (position < 0 || position >= r.table_rows) position = 0;
  const float* cos = r.cos + position * r.half;
  const float* sin = r.sin + position * r.half;
  T* x = static_cast<T*>(r.x) + token * r.stride;
  const float sign = r.inverse ? -1.0F : 1.0F;
  const int64_t per_head = r.half / kN;
  for (int64_t n = threadIdx.x; n < r.heads * per_head; n += kBlock) {
    T* head = x + n / per_head * r.head_stride;
    const int64_t i = n % per_head * kN;
    Pack<T, kN> first;
    Pack<T, kN> second;
    if constexpr (kInterleaved) {
      const auto both = load<2>(head + 2 * i);
      first.at[0] = both.at[0];
      second.at[0] = both.at[1];
    } else {
      first = load<kN>(head + i);
      second = load<kN>(head + r.half + i);
    }
    for (int j = 0; j < kN; ++j) {
      const float a = wide(first.at[j]);
      const float b = wide(second.at[j]);
      const float c = cos[i + j];
      const float s = sin[i + j] * sign;
      first.at[j] = rounded<T>(a * c - b * s);
      second.at[j] = rounded<T>(b * c + a * s);
    }
    if constexpr (kInterleaved) {
      Pack<T, 2> both;
      both.at[0] = first.at[0];
      both.at[1] = second.at[0];
      store(head + 2 * i, both);
    } else {
      store(head + i, first);
      store(head + r.half + i, second);
    }
  }
}

/// As above, pair by pair, wherever they lie.
template <class T>
__global__ void rotary_pairs_kernel(Rotary r) {
  const int64_t token = blockIdx.x;
  int64_t position = r.positions[token];
  if (position < 0 || position >= r.table_rows) position = 0;
  for (int64_t n = threadIdx.x; n < r.heads * r.half; n += kBlock) {
    T* head = static_cast<T*>(r.x) + token * r.stride + n / r.half * r.head_stride;
    const int64_t i = n % r.half;
    T* first = r.interleaved ? head + 2 * i : head + i;
    T* second = r.interleaved ? head + 2 * i + 1 : head + r.half + i;
    const float a = wide(*first);
    const float b = wide(*second);
    const float c = r.cos[position * r.half + i];
    const float s = r.sin[position * r.half + i] * (r.inverse ? -1.0F : 1.0F);
    *first = rounded<T>(a * c - b * s);
    *second = rounded<T>(b * c + a * s);
  }
}

__global__ void find_outside_kernel(const int64_t* ids, int64_t count, int64_t limit,
                                    int64_t ignored, int64_t* found) {
  __shared__ int64_t scratch[kBlock / kWarp];
  int64_t first = count;
  for (int64_t i = threadIdx.x; i < count; i += kBlock) {
    if (i < first && (ids[i] < 0 || ids[i] >= limit) && ids[i] != ignored) first = i;
  }
  // The smallest, as the largest of the negative.
  first = -team_reduce<kBlock>(-first, scratch, Max{});
  if (threadIdx.x == 0) found[0] = first == count ? -1 : first;
}

template <class T, int kN, int kTeam>
__global__ void gather_kernel(const int64_t* ids, const T* table, const int64_t* positions,
                              const T* more, T* out, int64_t count, int64_t width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kTeam) +
                      static_cast<int64_t>(threadIdx.x) / kTeam;
  if (row >= count) return;
  const int64_t id = ids[row];
  for (int64_t i = static_cast<int64_t>(threadIdx.x % kTeam) * kN; i < width; i += kTeam * kN) {
    Pack<T, kN> value = {};
    if (id >= 0) value = load<kN>(table + id * width + i);
    if (more != nullptr) {
      const auto other = load<kN>(more + positions[row] * width + i);
      for (int j = 0; j < kN; ++j) value.at[j] = rounded<T>(wide(value.at[j]) + wide(other.at[j]));
    }
    store(out + row * width + i, value);
  }
}

/// A thread a column of a run of equal ids, at whose first place it stands.
template <class T, int kN>
__global__ void scatter_sorted_kernel(const int64_t* ids, const int64_t* order, const T* rows,
                                      float* table, int64_t count, int64_t width,
                                      int64_t row_blocks) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) / row_blocks;
  const int64_t i =
      (static_cast<int64_t>(blockIdx.x) % row_blocks * kBlock + static_cast<int64_t>(threadIdx.x)) *
      kN;
  const int64_t id = ids[begin];
  if (i >= width || (begin > 0 && ids[begin - 1] == id)) return;
  float* out = table + id * width + i;
  float sums[kN];
  for (int j = 0; j < kN; ++j) sums[j] = out[j];
  for (int64_t n = begin; n < count && ids[n] == id; ++n) {
    const auto value = load<kN>(rows + order[n] * width + i);
    for (int j = 0; j < kN; ++j) sums[j] += wide(value.at[j]);
  }
  for (int j = 0; j < kN; ++j) out[j] = sums[j];
}

}  // namespace

void rotary(const Rotary& r, Stream stream) {
  for_type(r.type, [&](auto t) {
    using T = decltype(t);
    const auto in_packs_of = [&](int pack) {
      return reinterpret_cast<uintptr_t>(r.x) % (sizeof(T) * static_cast<size_t>(pack)) == 0 &&
             r.stride % pack == 0 && r.head_stride % pack == 0;
    };
    if (r.interleaved && in_packs_of(2)) {
      launch("rotary", &rotary_kernel<T, 1, true>, r.tokens, kBlock, 0, stream, r);
    } else if (!r.interleaved && r.half % kPack<T> == 0 && in_packs_of(kPack<T>)) {
      launch("rotary", &rotary_kernel<T, kPack<T>, false>, r.tokens, kBlock, 0, stream, r);
    } else {
      launch("rotary", &rotary_pairs_kernel<T>, r.tokens, kBlock, 0, stream, r);
    }
  });
}

void find_outside(const int64_t* ids, int64_t count, int64_t limit, int64_t ignored, int64_t* found,
                  Stream stream) {
  launch("find_outside", &find_outside_kernel, 1, kBlock, 0, stream, ids, count, limit, ignored,
         found);
}

void gather(Type type, const int64_t* ids, const void* table, const int64_t* positions,
            const void* more, void* out, int64_t count, int64_t width, Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    const bool packs = aligned(table) && aligned(more) && aligned(out) && width % kPack<T> == 0;
    for_pack<kPack<T>>(packs, [&](auto pack) {
      for_team(width, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("gather", &gather_kernel<T, decltype(pack)::value, kTeam>,
               divide_up(count, kBlock / kTeam), kBlock, 0, stream, ids,
               static_cast<const T*>(table), positions, static_cast<const T*>(more),
               static_cast<T*>(out), count, width);
      });
    });
  });
}

void scatter_sorted(Type type, const int64_t* ids, const int64_t* order, const void* rows,
                    float* table, int64_t count, int64_t width, Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    constexpr int kMost = 4;  // a thread's sums
    const bool packs = aligned(rows) && aligned(table) && width % kMost == 0;
    for_pack<kMost>(packs, [&](auto pack) {
      constexpr int kN = decltype(pack)::value;
      const int64_t row_blocks = divide_up(width, int64_t{kBlock} * kN);
      launch("scatter_sorted", &scatter_sorted_kernel<T, kN>, count * row_blocks, kBlock, 0, stream,
             ids, order, static_cast<const T*>(rows), table, count, width, row_blocks);
    });
  });
}

}  // namespace trireme::kernels::gpu
