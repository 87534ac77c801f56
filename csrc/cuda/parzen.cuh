// Densities of Gaussian Parzen windows: the kernels. parzen.h has the arguments.
//
// Bound by the product of all pairs, 2 * rows * count * features operations: of 10,000 x 10,000 x 784 in three products of
// tf32 for one, 157 GFLOP are 470, 2.4 ms where tensor cores multiply 200 TFLOP/s of tf32 by mma.sync. A sigma costs an
// exponential per pair beside features / 8 products of fragments, 3% of them at 784 features.
//
// A block has 128 rows and meets one tile of 64 samples after the other, of a part of all samples. Sums of a tile go into
// log-sum-exps where mma leaves them: the four lanes of a row join by shuffles, and a warp keeps for each of its 64 rows
// the largest exponent so far (in units of 1 / sigma^2: the same pair for every sigma) and a sum for each sigma. Nothing a
// warp keeps is another's: there is no barrier but those of the product.
#pragma once

#include "matrix.cuh"
#include "parzen.h"

namespace dcgan_fast::cuda {

using ParzenShape = BlockShape<128, 64, 64, 32>;

constexpr double kMostHalfSquare = 1e37;  // beyond it float32 overflows
constexpr float kInfinity = __builtin_huge_valf();

struct ParzenLaunch {
  ParzenWindows args;
  int64_t padded;        // features, rounded up to whole 16 bytes
  float *x, *y;          // [rows, padded], [count, padded]: less the centre, zeros after the last feature
  double* half_squares;  // [rows]
  float* half_squares_of_samples;  // [tiles * kColumns], infinite where there is no sample
  int64_t tiles;         // of samples
  int splits;            // blocks that share the samples of a row
  float* parts;          // [rows, splits, warps across, 1 + sigmas]: the largest exponent, the sums

  __host__ __device__ int parts_of_row() const { return splits * ParzenShape::kWarpsAcross; }
};

// A warp's row of samples or data less the centre, and half its square. Rows [count, all) are samples that do not exist.
__global__ void __launch_bounds__(kThreads) parzen_centre(const ParzenLaunch launch) {
  const ParzenWindows& args = launch.args;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int64_t all_samples = launch.tiles * ParzenShape::kColumns, row = number - all_samples;
  const bool is_sample = number < all_samples;
  if (!is_sample && row >= args.rows) return;
  if (is_sample && number >= args.count) {
    if (lane == 0) launch.half_squares_of_samples[number] = kInfinity;
    return;
  }
  const float* const from = is_sample ? args.samples + number * args.features : args.data + row * args.features;
  float* const to = is_sample ? launch.y + number * launch.padded : launch.x + row * launch.padded;
  double square = 0;
  for (int64_t f = lane; f < launch.padded; f += kWarpSize) {
    float value = f < args.features ? from[f] - args.centre[f] : 0.f;
    if (args.precision == Precision::kTf32) value = __uint_as_float(ptx::cvt_rna_tf32(value));
    to[f] = value;
    square += static_cast<double>(value) * value;
  }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) square += __shfl_xor_sync(~0u, square, distance);
  if (lane != 0) return;
  square /= 2;
  if (is_sample) {
    launch.half_squares_of_samples[number] = static_cast<float>(square);
  } else {
    launch.half_squares[row] = square;
  }
  if (!(square <= kMostHalfSquare)) {
    using Place = unsigned long long;  // CUDA's name for the 64 bits that atomics take
    atomicMin(reinterpret_cast<Place*>(args.bad_row), static_cast<Place>(is_sample ? number : args.count + row));
  }
}

// What a warp knows of its rows, in shared memory.
struct ParzenRows {
  float* at;  // [kWarpRows, 1 + sigmas]
  int sigmas;

  __device__ ParzenRows(unsigned char* memory, int warp, int sigmas_)
      : at(reinterpret_cast<float*>(memory) + warp * ParzenShape::kWarpRows * (1 + sigmas_)), sigmas(sigmas_) {}
  __device__ float* row(int number) const { return at + number * (1 + sigmas); }
};

__host__ __device__ constexpr int parzen_rows_bytes(int sigmas) {
  return ParzenShape::kWarps * ParzenShape::kWarpRows * (1 + sigmas) * static_cast<int>(sizeof(float));
}

// Joins the products of a tile to what is known. `half_squares`: of the warp's 32 samples.
__device__ inline void parzen_join(const Accumulators<ParzenShape>& sums, const ParzenRows& known,
                                   const float* half_squares, const float* inverse_variance) {
  constexpr int kAcross = ParzenShape::kFragmentsAcross;
  const int lane = threadIdx.x % kWarpSize;
  float squares[kAcross][2];
#pragma unroll
  for (int j = 0; j < kAcross; j++) {
    const auto two = load<2>(half_squares + 8 * j + lane % 4 * 2);
    squares[j][0] = two.at[0], squares[j][1] = two.at[1];
  }
#pragma unroll
  for (int i = 0; i < 2 * ParzenShape::kFragmentsDown; i++) {
    float* const row = known.row(i / 2 * 16 + i % 2 * 8 + lane / 4);
    float exponents[2 * kAcross], highest = -kInfinity;
#pragma unroll
    for (int j = 0; j < kAcross; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        exponents[2 * j + e] = sums.at[i / 2][j][i % 2 * 2 + e] - squares[j][e];
        highest = fmaxf(highest, exponents[2 * j + e]);
      }
    }
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const float before = row[0], now = fmaxf(before, highest);
    const float origin = now == -kInfinity ? 0.f : now;  // where no sample was yet all terms are 0
    for (int s = 0; s < known.sigmas; s++) {
      float sum = 0.f;
#pragma unroll
      for (float exponent : exponents) sum += expf((exponent - origin) * inverse_variance[s]);
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) row[1 + s] = fmaf(row[1 + s], expf((before - origin) * inverse_variance[s]), sum);
    }
    __syncwarp();  // all four lanes have read `before`
    if (lane % 4 == 0) row[0] = now;
  }
}

template <class Step>
__global__ void __launch_bounds__(ParzenShape::kThreads, 2) parzen_products(const ParzenLaunch launch) {
  using Shape = ParzenShape;
  using Rows = typename Step::template Tile<Shape::kRows, true>;
  using Columns = typename Step::template Tile<Shape::kColumns, true>;
  const ParzenWindows& args = launch.args;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / launch.splits) * Shape::kRows;
  const int split = blockIdx.x % launch.splits, warp = threadIdx.x / kWarpSize;
  const int64_t first_tile = launch.tiles * split / launch.splits, end = launch.tiles * (split + 1) / launch.splits;
  const int sigmas = static_cast<int>(args.sigmas);
  const int rows_left = static_cast<int>(min(args.rows - first_row, int64_t{Shape::kRows}));
  const int steps = static_cast<int>((launch.padded + Rows::kDepth - 1) / Rows::kDepth);

  const ParzenRows known(shared_memory() + pipeline_bytes<Step, Shape>(), warp, sigmas);
  for (int i = threadIdx.x % kWarpSize; i < Shape::kWarpRows * (1 + sigmas); i += kWarpSize) {
    known.at[i] = i % (1 + sigmas) == 0 ? -kInfinity : 0.f;
  }
  __syncwarp();

  const Share<Rows, Shape::kThreads> row_lines;
  const Share<Columns, Shape::kThreads> column_lines;
  const float* const x = launch.x + (first_row + row_lines.line(0)) * launch.padded;
  for (int64_t tile = first_tile; tile < end; tile++) {
    const int64_t first_sample = tile * Shape::kColumns;
    const int samples_left = static_cast<int>(min(args.count - first_sample, int64_t{Shape::kColumns}));
    const float* const y = launch.y + (first_sample + column_lines.line(0)) * launch.padded;
    int64_t feature = row_lines.element();  // of the thread's chunks, in both tiles
    auto fill = [&](const Rows& a, const Columns& b) {
      const bool there = feature < launch.padded;
#pragma unroll
      for (int i = 0; i < row_lines.kLines; i++) {
        ptx::cp_async_16(a.chunk(row_lines.line(i), row_lines.chunk),
                         x + i * row_lines.kLinesApart * launch.padded + feature,
                         there && row_lines.line(i) < rows_left);
      }
#pragma unroll
      for (int i = 0; i < column_lines.kLines; i++) {
        ptx::cp_async_16(b.chunk(column_lines.line(i), column_lines.chunk),
                         y + i * column_lines.kLinesApart * launch.padded + feature,
                         there && column_lines.line(i) < samples_left);
      }
      feature += Rows::kDepth;
    };
    Accumulators<Shape> sums;
    multiply_pipeline<Step, Shape, Rows, Columns>(sums, steps, fill);
    parzen_join(sums, known, launch.half_squares_of_samples + first_sample + Shape::warp_column(warp),
                args.inverse_variance);
  }

  __syncwarp();
  const int64_t part = static_cast<int64_t>(split) * Shape::kWarpsAcross + warp % Shape::kWarpsAcross;
  for (int i = threadIdx.x % kWarpSize; i < Shape::kWarpRows * (1 + sigmas); i += kWarpSize) {
    const int row = Shape::warp_row(warp) + i / (1 + sigmas);
    if (row >= rows_left) break;
    launch.parts[((first_row + row) * launch.parts_of_row() + part) * (1 + sigmas) + i % (1 + sigmas)] = known.at[i];
  }
}

// A thread joins the parts of a row, in order, for one sigma.
__global__ void __launch_bounds__(kThreads) parzen_finish(const ParzenLaunch launch) {
  const ParzenWindows& args = launch.args;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= args.rows * args.sigmas) return;
  const int64_t sigma = number / args.rows, row = number % args.rows, stride = 1 + args.sigmas;
  const float* const parts = launch.parts + row * launch.parts_of_row() * stride;
  float highest = -kInfinity;
  for (int part = 0; part < launch.parts_of_row(); part++) highest = fmaxf(highest, parts[part * stride]);
  const float factor = args.inverse_variance[sigma];
  double sum = 0;
  for (int part = 0; part < launch.parts_of_row(); part++) {
    sum += static_cast<double>(parts[part * stride + 1 + sigma] * expf((parts[part * stride] - highest) * factor));
  }
  args.log_sums[number] = log(sum) + (highest - launch.half_squares[row]) * factor - args.offset[sigma];
}

}  // namespace dcgan_fast::cuda
