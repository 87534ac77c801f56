// Maxout units: the kernel. maxout_linear.h has the arguments.
//
// The product of all pieces, 2 * rows * in * out * pieces operations, none of whose results is stored. A warp has 32 rows
// and 16 units with all their pieces, and a fragment of 8 columns is one piece of 8 units: so the pieces of a unit lie in
// one thread's registers, at the same place of neighbouring fragments, and the maximum is taken where mma leaves them.
#pragma once

#include "matrix.cuh"
#include "maxout_linear.h"

namespace dcgan_fast::cuda {

constexpr int kUnitsOfWarp = 16, kUnitsOfFragment = 8;

// Two warps down and two across.
template <int kPieces>
using MaxoutShape = BlockShape<64, 2 * kUnitsOfWarp * kPieces, 32, kUnitsOfWarp * kPieces>;
constexpr int kUnitsOfBlock = 2 * kUnitsOfWarp;

// Columns of a warp are two groups of units, in each the first piece of all, then the second ...
template <int kPieces>
struct MaxoutColumn {
  int unit, piece;  // of the block's units

  __device__ explicit MaxoutColumn(int column) {
    constexpr int kGroup = kUnitsOfFragment * kPieces;
    unit = column / kGroup * kUnitsOfFragment + column % kUnitsOfFragment;
    piece = column % kGroup / kUnitsOfFragment;
  }
};

template <class Step, int kPieces, bool kByChunks>
__global__ void __launch_bounds__(MaxoutShape<kPieces>::kThreads) maxout_linear(const MaxoutLinear args) {
  using T = typename Step::T;
  using Shape = MaxoutShape<kPieces>;
  using Rows = typename Step::template Tile<Shape::kRows, true>;
  using Columns = typename Step::template Tile<Shape::kColumns, true>;
  constexpr int kChunk = Rows::kChunk;
  const int64_t unit_tiles = (args.out + kUnitsOfBlock - 1) / kUnitsOfBlock;
  const int64_t first_row = blockIdx.x / unit_tiles * Shape::kRows, first_unit = blockIdx.x % unit_tiles * kUnitsOfBlock;
  const int rows_left = static_cast<int>(min(args.rows - first_row, int64_t{Shape::kRows}));
  const int units_left = static_cast<int>(min(args.out - first_unit, int64_t{kUnitsOfBlock}));
  const int steps = static_cast<int>((args.in + Rows::kDepth - 1) / Rows::kDepth);

  const Share<Rows, Shape::kThreads> row_lines;
  const Share<Columns, Shape::kThreads> column_lines;
  const T* const input = static_cast<const T*>(args.input) + first_row * args.in;
  const T* const weight = static_cast<const T*>(args.weight) + first_unit * kPieces * args.in;
  int64_t place = row_lines.element();  // of the thread's chunks along K, in both tiles
  const auto take = [&](T* to, const T* line, bool valid) {
    if constexpr (kByChunks) {
      ptx::cp_async_16(to, line + place, valid && place < args.in);
    } else {
      fill_one_by_one<T, kChunk>(to, [&](int e) { return valid && place + e < args.in ? line + place + e : nullptr; });
    }
  };
  auto fill = [&](const Rows& a, const Columns& b) {
#pragma unroll
    for (int i = 0; i < row_lines.kLines; i++) {
      const int row = row_lines.line(i);
      take(a.chunk(row, row_lines.chunk), input + row * args.in, row < rows_left);
    }
#pragma unroll
    for (int i = 0; i < column_lines.kLines; i++) {
      const MaxoutColumn<kPieces> column(column_lines.line(i));
      take(b.chunk(column_lines.line(i), column_lines.chunk), weight + (column.unit * kPieces + column.piece) * args.in,
           column.unit < units_left);
    }
    place += Rows::kDepth;
  };
  Accumulators<Shape> sums;
  multiply_pipeline<Step, Shape, Rows, Columns>(sums, steps, fill);

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int group = 0; group < kUnitsOfWarp / kUnitsOfFragment; group++) {
    const int first = Shape::warp_column(warp) / kPieces + group * kUnitsOfFragment + lane % 4 * 2;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int unit = first + e;
      if (unit >= units_left) continue;
      float bias[kPieces] = {};
      if (args.bias) {
#pragma unroll
        for (int p = 0; p < kPieces; p++) {
          bias[p] = to_float(static_cast<const T*>(args.bias)[(first_unit + unit) * kPieces + p]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * Shape::kFragmentsDown; i++) {
        const int row = Shape::warp_row(warp) + i / 2 * 16 + i % 2 * 8 + lane / 4;
        if (row >= rows_left) continue;
        float best = 0.f;
        int winner = 0;
#pragma unroll
        for (int p = 0; p < kPieces; p++) {
          const float value = sums.at[i / 2][group * kPieces + p][i % 2 * 2 + e] + bias[p];
          if (p == 0 || value > best || (value != value && best == best)) best = value, winner = p;
        }
        const int64_t at = (first_row + row) * args.out + first_unit + unit;
        static_cast<T*>(args.output)[at] = from_float<T>(best);
        if (args.winner) args.winner[at] = static_cast<uint8_t>(winner);
      }
    }
  }
}

}  // namespace dcgan_fast::cuda
