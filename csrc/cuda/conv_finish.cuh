// What happens to a block's sums: put aside and added where the depth is split, then the affine map, the activation,
// rounding, 16-byte stores and statistics, or the sums that a batch norm's backward wants of a gradient. By way of shared
// memory, for accumulators lie in rows of 8 bytes.
#pragma once

#include <type_traits>

#include "activation.cuh"
#include "affine.cuh"
#include "conv.h"
#include "matrix.cuh"

namespace dcgan_fast::cuda {

struct Finish {
  void* output;  // its lines of `channels` elements
  int64_t channels;
  int64_t parameter_channels;  // below repeat after so many: a line may be several pixels
  bool by_chunks;              // 16 bytes at a time
  // y = act((x - mean) * scale + bias), all null for nothing of the sort; conv.h has the words.
  const void *mean, *var, *bn_weight, *bias;
  DType param_dtype;
  float eps;
  Activation activation;
  float negative_slope;
  // [G, tiles, channels] and [G, tiles], or null.
  float2* moments;
  float* counts;
  int64_t tiles;
  GradSums sums;

  __host__ __device__ bool changes() const {
    return mean || var || bn_weight || bias || activation != Activation::none;
  }
};

template <class Shape>
constexpr int finish_bytes() {
  return static_cast<int>(sizeof(float)) * Shape::kColumns * (Shape::kRows + kAffineRows);
}

// Accumulators in the workspace, a thread's beside its neighbours': [part][fragment][thread] of 16 bytes.
template <class Shape>
__device__ float* partial_at(float* partials, int64_t part, int fragment) {
  constexpr int64_t kFragments = Shape::kFragmentsDown * Shape::kFragmentsAcross;
  return partials + ((part * kFragments + fragment) * Shape::kThreads + threadIdx.x) * 4;
}

// Calls run(i, j) for the thread's fragments; where a tile has no more columns than one, for those.
template <class Shape, class Run>
__device__ void for_fragments(int64_t columns, const Run& run) {
  if (columns > 8) {
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsDown; i++) {
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsAcross; j++) run(i, j);
    }
  } else if (Shape::warp_column(threadIdx.x / kWarpSize) == 0) {
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsDown; i++) run(i, 0);
  }
}

template <class Shape>
__device__ void put_aside(const Accumulators<Shape>& sums, float* partials, int64_t part,
                          int64_t columns = Shape::kColumns) {
  for_fragments<Shape>(columns, [&](int i, int j) {
    Vec<float, 4> four;
#pragma unroll
    for (int e = 0; e < 4; e++) four.at[e] = sums.at[i][j][e];
    store(partial_at<Shape>(partials, part, i * Shape::kFragmentsAcross + j), four);
  });
}

// A few parts are on their way at once.
template <class Shape>
__device__ void add_parts(Accumulators<Shape>& sums, float* partials, int64_t first, int count, int64_t columns) {
  constexpr int kTogether = Shape::kFragmentsDown * Shape::kFragmentsAcross > 8 ? 2 : 4;
#pragma unroll 1
  for (int part = 0; part < count; part += kTogether) {
    for_fragments<Shape>(columns, [&](int i, int j) {
      Vec<float, 4> four[kTogether];
#pragma unroll
      for (int p = 0; p < kTogether; p++) {
        const int64_t own = first + min(part + p, count - 1);
        four[p] = load<4>(partial_at<Shape>(partials, own, i * Shape::kFragmentsAcross + j));
      }
#pragma unroll
      for (int p = 0; p < kTogether; p++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sums.at[i][j][e] += part + p < count ? four[p].at[e] : 0.f;
      }
    });
  }
}

// A block's sums as floats in shared memory, row by row; the places of 16-byte chunks are permuted, so that neither the
// eight rows of a fragment nor the chunks of a row meet in a bank.
template <class Shape>
struct Staging {
  float* data = reinterpret_cast<float*>(shared_memory());

  __device__ float* at(int row, int column) const {
    return data + row * Shape::kColumns + ((column / 4) ^ (row % 8 * 2)) * 4 + column % 4;
  }
  __device__ void put(const Accumulators<Shape>& sums) const {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsDown; i++) {
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsAcross; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = Shape::warp_row(warp) + 16 * i + 8 * half + lane / 4;
          const int column = Shape::warp_column(warp) + 8 * j + lane % 4 * 2;
          store(at(row, column), Vec<float, 2>{{sums.at[i][j][2 * half], sums.at[i][j][2 * half + 1]}});
        }
      }
    }
  }
  // N (4 or 8) neighbours in a row.
  template <int N>
  __device__ Vec<float, N> get(int row, int column) const {
    Vec<float, N> values;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const auto four = load<4>(static_cast<const float*>(at(row, column + i)));
#pragma unroll
      for (int e = 0; e < 4; e++) values.at[i + e] = four.at[e];
    }
    return values;
  }
};

// For a block without rows: empty statistics, or sums of nothing.
template <class Shape>
__device__ void finish_nothing(const Finish& to, int64_t group, int64_t tile, int64_t first_column) {
  float2* const pairs = to.moments ? to.moments : static_cast<float2*>(to.sums.tile_sums);
  if (!pairs) return;
  const int64_t at = group * to.tiles + tile, channel = first_column + threadIdx.x;
  if (threadIdx.x < Shape::kColumns && channel < to.channels) pairs[at * to.channels + channel] = make_float2(0.f, 0.f);
  if (to.moments && threadIdx.x == 0 && first_column == 0) to.counts[at] = 0.f;
}

// y = act((x - mean) * scale + bias) of each column: [mean, scale, bias][columns] in shared memory. The caller
// synchronises.
template <class Shape>
__device__ void put_affine_table(const Finish& to, int64_t first_column, float* table) {
  if (!to.changes() || threadIdx.x >= Shape::kColumns) return;
  const bool exists = first_column + threadIdx.x < to.channels;
  const int64_t channel = (first_column + threadIdx.x) % to.parameter_channels;
  float scale = exists && to.bn_weight ? load_parameter(to.bn_weight, channel, to.param_dtype) : 1.f;
  if (exists && to.var) scale *= 1.f / sqrtf(load_parameter(to.var, channel, to.param_dtype) + to.eps);
  table[threadIdx.x] = exists && to.mean ? load_parameter(to.mean, channel, to.param_dtype) : 0.f;
  table[threadIdx.x + Shape::kColumns] = scale;
  table[threadIdx.x + 2 * Shape::kColumns] = exists && to.bias ? load_parameter(to.bias, channel, to.param_dtype) : 0.f;
}

template <class Shape>
struct Affinity {
  bool changes, smooth;
  Activate<false> clip;
  Activate<true> bend;
  const float* table;

  __device__ Affinity(const Finish& to, const float* table)
      : changes(to.changes()),
        smooth(is_smooth(to.activation)),
        clip(to.activation, to.negative_slope),
        bend(to.activation, to.negative_slope),
        table(table) {}

  __device__ float operator()(float x, int column) const {
    if (!changes) return x;
    const float* numbers = table + column;
    const float z = fmaf(x - numbers[0], numbers[Shape::kColumns], numbers[2 * Shape::kColumns]);
    return smooth ? bend(z) : clip(z);
  }
};

// `rows` rows of the sums become lines of the output: line_of(row) elements from its start, at channel first_column.
template <typename T, class Shape, class LineOf>
__device__ void finish(const Accumulators<Shape>& sums, const Finish& to, int64_t group, int64_t tile,
                       int64_t first_column, int rows, const LineOf& line_of) {
  constexpr int kChunk = kAccessBytes / sizeof(T), kLanes = Shape::kColumns / kChunk;
  constexpr int kRowsApart = Shape::kThreads / kLanes;
  static_assert(kLanes <= kWarpSize && Shape::kColumns <= Shape::kThreads);
  const Staging<Shape> staging;
  float* table = staging.data + Shape::kRows * Shape::kColumns;  // [mean, scale, bias][columns]
  staging.put(sums);
  put_affine_table<Shape>(to, first_column, table);
  __syncthreads();

  const int lane = threadIdx.x % kLanes, first_row = threadIdx.x / kLanes, column = lane * kChunk;
  const int64_t channel = first_column + column;
  const int64_t channels = min(to.channels - channel, static_cast<int64_t>(kChunk));  // that exist, or less than none
  const Affinity<Shape> affinity(to, table);
  T* const output = static_cast<T*>(to.output) + channel;
  Moments<kChunk> moments;
  const auto store_rows = [&](auto whether) {
    constexpr bool kChanges = decltype(whether)::value;
#pragma unroll 2
    for (int row = first_row; row < rows; row += kRowsApart) {
      const auto values = staging.template get<kChunk>(row, column);
      Vec<T, kChunk> stored;
#pragma unroll
      for (int i = 0; i < kChunk; i++) {
        stored.at[i] = from_float<T>(kChanges ? affinity(values.at[i], column + i) : values.at[i]);
        if (!kChanges) moments.mean[i] += to_float(stored.at[i]);
      }
      T* const line = output + line_of(row);
      if (to.by_chunks) {
        if (channels > 0) store(line, stored);
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; i++) {
          if (i < channels) line[i] = stored.at[i];
        }
      }
    }
  };
  if (affinity.changes) {
    store_rows(std::true_type());
    return;
  }
  store_rows(std::false_type());
  if (!to.moments) return;

  // Of the values as they are stored: the mean of the thread's rows, then their deviations from it.
  moments.n = static_cast<float>(max(rows - first_row + kRowsApart - 1, 0) / kRowsApart);
  const float share = moments.n > 0.f ? 1.f / moments.n : 0.f;
#pragma unroll
  for (int i = 0; i < kChunk; i++) moments.mean[i] *= share;
  for (int row = first_row; row < rows; row += kRowsApart) {
    const auto values = staging.template get<kChunk>(row, column);
#pragma unroll
    for (int i = 0; i < kChunk; i++) {
      const float deviation = to_float(from_float<T>(values.at[i])) - moments.mean[i];
      moments.m2[i] = fmaf(deviation, deviation, moments.m2[i]);
    }
  }
  __syncthreads();  // the scratch lies where the sums are
  Moments<1>* scratch = reinterpret_cast<Moments<1>*>(shared_memory());
  const Moments<1> all = reduce_rows<Shape::kWarps>(moments, kLanes, scratch);
  const int64_t at = group * to.tiles + tile, own = first_column + threadIdx.x;
  if (threadIdx.x < Shape::kColumns && own < to.channels) {
    to.moments[at * to.channels + own] = make_float2(all.mean[0], all.m2[0]);
  }
  if (threadIdx.x == 0 && first_column == 0) to.counts[at] = all.n;
}

// After finish(): the sums of a gradient by tiles, for the batch norm that it is of. Reads that one's input and nothing
// else, for the gradient still lies in shared memory; it is rounded as it was stored, so that these are the sums of
// bn_act_backward_sums() in another order.
template <typename T, class Shape, class LineOf>
__device__ void finish_gradient_sums(const Finish& to, int64_t group, int64_t tile, int64_t first_column, int rows,
                                     const LineOf& line_of) {
  // More columns a thread ask for more registers, which the widest tiles have: a row is a warp's at most.
  constexpr int kChunk = Shape::kColumns > 4 * kWarpSize ? 8 : 4, kLanes = Shape::kColumns / kChunk;
  constexpr int kRowsApart = Shape::kThreads / kLanes;
  const GradSums& of = to.sums;
  const Staging<Shape> staging;
  float* const table = staging.data + Shape::kRows * Shape::kColumns;
  const int64_t own = first_column + threadIdx.x;
  const bool responsible = threadIdx.x < Shape::kColumns && own < to.channels;
  if (responsible) {
    const int64_t index = group * to.channels + own;
    put_affine(table, Shape::kColumns, threadIdx.x, of.mean[index], of.rstd[index], of.weight, of.bias, own,
               of.param_dtype);
  }
  __syncthreads();

  const int lane = threadIdx.x % kLanes, column = lane * kChunk;
  const int64_t channel = first_column + column;
  const int64_t channels = min(to.channels - channel, static_cast<int64_t>(kChunk));  // that exist, or less than none
  const Affine<kChunk> affine = take_affine<kChunk>(table, Shape::kColumns, lane);
  const Activate<false> activate(of.activation, of.negative_slope);
  const T* const x = static_cast<const T*>(of.x) + channel;
  Sums<float, 2, kChunk> sums;
  constexpr int kTogether = Shape::kWarpRows == 16 ? 4 : 2;  // rows that are on their way at once
  static_assert(Shape::kRows % (kTogether * kRowsApart) == 0);
#pragma unroll 1
  for (int first = threadIdx.x / kLanes; first < rows; first += kTogether * kRowsApart) {
    Vec<T, kChunk> inputs[kTogether] = {};
#pragma unroll
    for (int r = 0; r < kTogether; r++) {
      const int row = first + r * kRowsApart;
      if (row >= rows) continue;
      const T* const line = x + line_of(row);
      if (to.by_chunks) {
        if (channels > 0) inputs[r] = load<kChunk>(line);
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; i++) {
          if (i < channels) inputs[r].at[i] = line[i];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kTogether; r++) {
      const int row = first + r * kRowsApart;
      if (row >= rows) continue;
      const auto grads = staging.template get<kChunk>(row, column);
#pragma unroll
      for (int i = 0; i < kChunk; i++) {
        const float centred = to_float(inputs[r].at[i]) - affine.mean[i];
        const float dz = activate.backward(affine(centred, i), to_float(from_float<T>(grads.at[i])));
        sums.at[i][0] += dz;
        sums.at[i][1] = fmaf(dz, centred, sums.at[i][1]);
      }
    }
  }
  __syncthreads();  // the scratch lies where the gradient is
  using Pair = Sums<float, 2, 1>;
  const Pair total = reduce_rows<Shape::kWarps>(sums, kLanes, reinterpret_cast<Pair*>(shared_memory()));
  if (responsible) {
    static_cast<float2*>(of.tile_sums)[(group * to.tiles + tile) * to.channels + own] =
        make_float2(total.at[0][0], total.at[0][1]);
  }
}

}  // namespace dcgan_fast::cuda
