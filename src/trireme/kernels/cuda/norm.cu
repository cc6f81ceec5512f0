// RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba, Kiros & Hinton 2016): a team of threads a row.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

/// Blocks of rows that gradients of weights are summed in: fixed, so that the sum is the same on any device.
constexpr int64_t kParts = 512;
constexpr int64_t kMostShared = 48 << 10;  ///< bytes of a block without asking for more

template <class T, int kN, int kTeam, bool kCentred>
__global__ void forward_kernel(NormForward n) {
  __shared__ float scratch[kBlock / kWarp];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kTeam) +
                      static_cast<int64_t>(threadIdx.x) / kTeam;
  if (row >= n.rows) return;
  const int64_t first = static_cast<int64_t>(threadIdx.x % kTeam) * kN;
  const T* x = row_of<T>(n.x, row);
  T* y = row_of<T>(n.y, row);
  const float width = static_cast<float>(n.width);

  float mean = 0.0F;
  if constexpr (kCentred) {
    for (int64_t i = first; i < n.width; i += kTeam * kN) {
      const auto in = load<kN>(x + i);
      for (int j = 0; j < kN; ++j) mean += wide(in.at[j]);
    }
    mean = team_reduce<kTeam>(mean, scratch, Sum{}) / width;
  }
  float squares = 0.0F;
  for (int64_t i = first; i < n.width; i += kTeam * kN) {
    const auto in = load<kN>(x + i);
    for (int j = 0; j < kN; ++j) {
      const float centred = wide(in.at[j]) - mean;
      squares += centred * centred;
    }
  }
  squares = team_reduce<kTeam>(squares, scratch, Sum{});
  const float rstd = 1.0F / sqrtf(squares / width + n.eps);
  if (first == 0) {
    if (n.mean != nullptr) n.mean[row] = mean;
    if (n.rstd != nullptr) n.rstd[row] = rstd;
  }
  const T* weight = static_cast<const T*>(n.weight);
  const T* bias = static_cast<const T*>(n.bias);
  for (int64_t i = first; i < n.width; i += kTeam * kN) {
    const auto in = load<kN>(x + i);
    const auto w = load<kN>(weight + i);
    Pack<T, kN> b = {};
    if (kCentred && bias != nullptr) b = load<kN>(bias + i);
    Pack<T, kN> out;
    for (int j = 0; j < kN; ++j) {
      float value = (wide(in.at[j]) - mean) * rstd * (wide(w.at[j]) + n.offset);
      if (kCentred) value += wide(b.at[j]);
      out.at[j] = rounded<T>(value);
    }
    store(y + i, out);
  }
}

/// One block's rows: their dx, and their part of dweight and dbias. A thread adds up the columns that it visits, in shared
/// memory where they have room, else where the part belongs.
template <class T, int kN, int kTeam, bool kCentred>
__global__ void backward_kernel(NormBackward n, int64_t rows_of_part, bool in_shared) {
  constexpr int kTeams = kBlock / kTeam;
  __shared__ float scratch[kBlock / kWarp];
  GPU_DYNAMIC_SHARED(shared);
  const int team = static_cast<int>(threadIdx.x) / kTeam;
  const int64_t first = static_cast<int64_t>(threadIdx.x % kTeam) * kN;
  const float width = static_cast<float>(n.width);
  const T* weight = static_cast<const T*>(n.weight);
  // Per part: dweight, then dbias.
  float* part = n.partial == nullptr
                    ? nullptr
                    : n.partial + static_cast<int64_t>(blockIdx.x) * n.width * (kCentred ? 2 : 1);
  float* sums = in_shared ? shared + team * n.width * (kCentred ? 2 : 1) : part;
  if (part != nullptr) {
    for (int64_t i = first; i < n.width; i += kTeam * kN) {
      for (int j = 0; j < kN; ++j) {
        sums[i + j] = 0.0F;
        if constexpr (kCentred) sums[n.width + i + j] = 0.0F;
      }
    }
  }

  const int64_t begin = static_cast<int64_t>(blockIdx.x) * rows_of_part;
  const int64_t end = begin + rows_of_part < n.rows ? begin + rows_of_part : n.rows;
  for (int64_t row = begin + team; row < end; row += kTeams) {
    const T* x = row_of<T>(n.x, row);
    const T* dy = row_of<T>(n.dy, row);
    const float rstd = n.rstd[row];
    const float mean = kCentred ? n.mean[row] : 0.0F;
    float along = 0.0F;  // sum of the scaled gradient times the normed row
    float sum = 0.0F;    // sum of the scaled gradient
    for (int64_t i = first; i < n.width; i += kTeam * kN) {
      const auto in = load<kN>(x + i);
      const auto grad = load<kN>(dy + i);
      const auto w = load<kN>(weight + i);
      for (int j = 0; j < kN; ++j) {
        const float g = wide(grad.at[j]);
        const float normed = (wide(in.at[j]) - mean) * rstd;
        const float scaled = g * (wide(w.at[j]) + n.offset);
        along += scaled * normed;
        if constexpr (kCentred) sum += scaled;
        if (part != nullptr) {
          sums[i + j] += g * normed;
          if constexpr (kCentred) sums[n.width + i + j] += g;
        }
      }
    }
    if (n.dx.data == nullptr) continue;
    along = team_reduce<kTeam>(along, scratch, Sum{}) / width;
    if constexpr (kCentred) sum = team_reduce<kTeam>(sum, scratch, Sum{}) / width;
    T* dx = row_of<T>(n.dx, row);
    for (int64_t i = first; i < n.width; i += kTeam * kN) {
      const auto in = load<kN>(x + i);
      const auto grad = load<kN>(dy + i);
      const auto w = load<kN>(weight + i);
      Pack<T, kN> out = {};
      if (n.add_to_dx) out = load<kN>(static_cast<const T*>(dx) + i);
      for (int j = 0; j < kN; ++j) {
        const float normed = (wide(in.at[j]) - mean) * rstd;
        const float scaled = wide(grad.at[j]) * (wide(w.at[j]) + n.offset);
        const float value = rstd * (scaled - sum - normed * along);
        out.at[j] = rounded<T>(n.add_to_dx ? wide(out.at[j]) + value : value);
      }
      store(dx + i, out);
    }
  }
  if (part == nullptr || !in_shared) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n.width * (kCentred ? 2 : 1); i += kBlock) {
    float total = shared[i];
    for (int t = 1; t < kTeams; ++t) total += shared[t * n.width * (kCentred ? 2 : 1) + i];
    part[i] = total;
  }
}

template <class T>
__global__ void column_parts_kernel(Rows x, int64_t rows, int64_t width, int64_t rows_of_part,
                                    int64_t column_blocks, float* partial) {
  const int64_t part = static_cast<int64_t>(blockIdx.x) / column_blocks;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) % column_blocks * kBlock + static_cast<int64_t>(threadIdx.x);
  if (column >= width) return;
  const int64_t begin = part * rows_of_part;
  const int64_t end = begin + rows_of_part < rows ? begin + rows_of_part : rows;
  float sum = 0.0F;
  for (int64_t row = begin; row < end; ++row) sum += wide(row_of<T>(x, row)[column]);
  partial[part * width + column] = sum;
}

/// out[c] = sum over parts of partial[part * stride + c]: eight threads a column, each with every eighth part.
__global__ void sum_parts_kernel(const float* partial, int64_t parts, int64_t stride, int64_t width,
                                 float* out, bool accumulate) {
  constexpr int kSlices = kBlock / kWarp;
  __shared__ float sums[kBlock];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int slice = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0.0F;
  if (column < width) {
    for (int64_t part = slice; part < parts; part += kSlices)
      sum += partial[part * stride + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || column >= width) return;
  for (int s = 1; s < kSlices; ++s) sum += sums[s * kWarp + lane];
  out[column] = accumulate ? out[column] + sum : sum;
}

void sum_parts(const float* partial, int64_t parts, int64_t stride, int64_t width, float* out,
               bool accumulate, Stream stream) {
  launch("sum_parts", &sum_parts_kernel, divide_up(width, kWarp), kBlock, 0, stream, partial, parts,
         stride, width, out, accumulate);
}

int64_t rows_of_part(int64_t rows, int64_t at_least) {
  const int64_t even = divide_up(rows, kParts);
  return even > at_least ? even : at_least;
}

/// At least one row for each team of a block.
int64_t rows_of_norm_part(int64_t rows, int64_t width) {
  int64_t teams = 1;
  for_team(width, [&](auto team) { teams = kBlock / decltype(team)::value; });
  return rows_of_part(rows, teams);
}

}  // namespace

void norm_forward(const NormForward& n, Stream stream) {
  for_type(n.type, [&](auto t) {
    using T = decltype(t);
    const bool packs = in_packs(n.x, n.width, kPack<T>) && in_packs(n.y, n.width, kPack<T>) &&
                       aligned(n.weight) && aligned(n.bias);
    for_pack<kPack<T>>(packs, [&](auto pack) {
      for_team(n.width, [&](auto team) {
        constexpr int kN = decltype(pack)::value;
        constexpr int kTeam = decltype(team)::value;
        launch(
            "norm_forward",
            n.centred ? &forward_kernel<T, kN, kTeam, true> : &forward_kernel<T, kN, kTeam, false>,
            divide_up(n.rows, kBlock / kTeam), kBlock, 0, stream, n);
      });
    });
  });
}

int64_t norm_partial_floats(const NormBackward& n) {
  if (n.dweight == nullptr && n.dbias == nullptr) return 0;
  return divide_up(n.rows, rows_of_norm_part(n.rows, n.width)) * n.width * (n.centred ? 2 : 1);
}

void norm_backward(const NormBackward& given, Stream stream) {
  NormBackward n = given;
  const int64_t rows = rows_of_norm_part(n.rows, n.width);
  const int64_t parts = divide_up(n.rows, rows);
  if (n.dweight == nullptr && n.dbias == nullptr) n.partial = nullptr;
  for_type(n.type, [&](auto t) {
    using T = decltype(t);
    const bool packs = in_packs(n.x, n.width, kPack<T>) && in_packs(n.dy, n.width, kPack<T>) &&
                       in_packs(n.dx, n.width, kPack<T>) && aligned(n.weight);
    for_pack<kPack<T>>(packs, [&](auto pack) {
      for_team(n.width, [&](auto team) {
        constexpr int kN = decltype(pack)::value;
        constexpr int kTeam = decltype(team)::value;
        const int64_t bytes =
            static_cast<int64_t>(sizeof(float)) * (kBlock / kTeam) * n.width * (n.centred ? 2 : 1);
        // Several teams need a place each; one can do with the part's own.
        const bool in_shared = n.partial != nullptr && bytes <= kMostShared - 1024;
        launch("norm_backward",
               n.centred ? &backward_kernel<T, kN, kTeam, true>
                         : &backward_kernel<T, kN, kTeam, false>,
               parts, kBlock, in_shared ? bytes : 0, stream, n, rows, in_shared);
      });
    });
  });
  const int64_t stride = n.width * (n.centred ? 2 : 1);
  if (n.dweight != nullptr)
    sum_parts(n.partial, parts, stride, n.width, n.dweight, n.accumulate, stream);
  if (n.dbias != nullptr)
    sum_parts(n.partial + n.width, parts, stride, n.width, n.dbias, n.accumulate, stream);
}

int64_t column_partial_floats(int64_t rows, int64_t width) {
  return divide_up(rows, rows_of_part(rows, 16)) * width;
}

void column_sums(Type type, const Rows& x, int64_t rows, int64_t width, float* out, bool accumulate,
                 float* partial, Stream stream) {
  const int64_t of_part = rows_of_part(rows, 16);
  const int64_t parts = divide_up(rows, of_part);
  const int64_t column_blocks = divide_up(width, kBlock);
  for_type(type, [&](auto t) {
    launch("column_parts", &column_parts_kernel<decltype(t)>, parts * column_blocks, kBlock, 0,
           stream, x, rows, width, of_part, column_blocks, partial);
  });
  sum_parts(partial, parts, width, width, out, accumulate, stream);
}

}  // namespace trireme::kernels::gpu
