// The weight gradient: for every kernel tap the product of the coarse map, transposed, and the fine map as the tap
// meets it, along the pixels.
//     rows      coarse channels
//     columns   fine channels of one tap, or taps and fine channels in one where those are few
//     depth     coarse pixels of all images
// That depth is long and the tiles are few, so it is split among blocks; conv_weight_grad_sum adds the parts in
// order. Blocks of one part run together, and read the same pixels.
#pragma once

#include "conv.cuh"

namespace dcgan_fast::cuda {

struct WeightGradLaunch {
  ConvAxis y, x;  // going down: input is fine, output coarse
  int fine_channels, coarse_channels;
  int pixels;  // coarse ones of all images
  const void *fine, *coarse;
  float* partials;              // [tile, split][a block's accumulators]; null if splits is 1
  int row_tiles, column_tiles;  // column tiles of a tap, or of all where taps are merged
  int splits;                   // parts of the depth
  int split_pixels;             // a multiple of a stage's depth
  bool coarse_by_chunks, fine_by_chunks;  // 16 bytes at a time, else one by one
  bool merged;                            // a column is a tap and a channel; not by chunks
  Finish finish;                // lines: coarse channels (x taps)

  __host__ __device__ int taps() const { return y.kernel * x.kernel; }
  __host__ __device__ int tiles() const { return row_tiles * column_tiles * (merged ? 1 : taps()); }
};

template <class Shape>
struct WeightGradTile {
  int first_row, first_column;
  int tap;  // 0 where taps are merged

  __device__ WeightGradTile(const WeightGradLaunch& launch, int tile) {
    first_column = tile % launch.column_tiles * Shape::kColumns, tile /= launch.column_tiles;
    tap = launch.merged ? 0 : tile % launch.taps();
    first_row = (launch.merged ? tile : tile / launch.taps()) * Shape::kRows;
  }
};

template <typename T, class Shape>
__device__ void finish_weight_grad(const Accumulators<Shape>& sums, const WeightGradLaunch& launch,
                                   const WeightGradTile<Shape>& tile) {
  const auto line_of = [&](int row) {
    return (static_cast<int64_t>(tile.first_row + row) * launch.taps() + tile.tap) * launch.fine_channels;
  };
  const int rows = min(launch.coarse_channels - tile.first_row, Shape::kRows);
  finish<T>(sums, launch.finish, 0, 0, tile.first_column, rows, line_of);
}

template <class Shape, class Step, bool kCoarseByChunks, bool kFineByChunks>
__global__ void __launch_bounds__(Shape::kThreads, kConvBlocks<Shape, Step::kStrict>)
    conv_weight_grad(const WeightGradLaunch launch) {
  using T = typename Step::T;
  using Coarse = typename Step::template Tile<Shape::kRows, false>;
  using Fine = typename Step::template Tile<Shape::kColumns, false>;
  constexpr int kDepth = Fine::kDepth;
  [[maybe_unused]] constexpr int kChunk = Fine::kChunk;
  const int tiles = launch.tiles(), split = blockIdx.x / tiles;
  const WeightGradTile<Shape> tile(launch, blockIdx.x % tiles);
  const int first_pixel = split * launch.split_pixels, end = min(first_pixel + launch.split_pixels, launch.pixels);
  const int steps = (max(end - first_pixel, 0) + kDepth - 1) / kDepth, fine_channels = launch.fine_channels;

  // The thread's lines of the two tiles are pixels; a stage later each has moved kDepth on.
  const Share<Coarse, Shape::kThreads> coarse_lines;
  const Share<Fine, Shape::kThreads> fine_lines;
  const T* const coarse = static_cast<const T*>(launch.coarse);
  const T* const fine = static_cast<const T*>(launch.fine);
  const int coarse_channel = tile.first_row + coarse_lines.element();
  const int fine_column = tile.first_column + fine_lines.element();
  const int coarse_lines_bytes = launch.coarse_channels * static_cast<int>(sizeof(T)),
            fine_lines_bytes = fine_channels * static_cast<int>(sizeof(T));
  const int tap_y = tile.tap / launch.x.kernel, tap_x = tile.tap % launch.x.kernel;
  const int width = launch.x.output, height = launch.y.output;

  // The fine pixel that a coarse one meets, which may be outside of its map.
  struct Met {
    int y, x, pixel;

    __device__ bool inside(const WeightGradLaunch& launch) const {
      return static_cast<unsigned>(y) < static_cast<unsigned>(launch.y.input) &&
             static_cast<unsigned>(x) < static_cast<unsigned>(launch.x.input);
    }
  };
  const auto meet = [&](int number, int tap_y, int tap_x) {
    const int row = static_cast<unsigned>(number) / static_cast<unsigned>(width), image = row / height;
    const int y = (row - image * height) * launch.y.stride - launch.y.padding + tap_y;
    const int x = (number - row * width) * launch.x.stride - launch.x.padding + tap_x;
    return Met{y, x, (image * launch.y.input + y) * launch.x.input + x};
  };
  // By chunks: what each line meets, and how that moves on with a stage: by additions.
  const int move_x = kDepth % width * launch.x.stride, move_y = kDepth / width % height * launch.y.stride;
  const int move = (kDepth / (width * height) * launch.y.input + move_y) * launch.x.input + move_x;
  const int row_width = width * launch.x.stride, map_height = height * launch.y.stride;
  const int row_end = row_width - launch.x.padding + tap_x, map_end = map_height - launch.y.padding + tap_y;
  Met met[kFineByChunks ? fine_lines.kLines : 1];  // else found anew
  if constexpr (kFineByChunks) {
#pragma unroll
    for (int i = 0; i < fine_lines.kLines; i++) met[i] = meet(first_pixel + fine_lines.line(i), tap_y, tap_x);
  }

  int pixel = first_pixel;  // first of the stage that is filled next
  auto fill = [&](const Coarse& a, const Fine& b) {
    const int left = end - pixel;  // lines that exist
    if constexpr (kCoarseByChunks) {
#pragma unroll
      for (int i = 0; i < coarse_lines.kLines; i++) {
        const int line = coarse_lines.line(i);
        const char* from = reinterpret_cast<const char*>(coarse + coarse_channel) +
                           static_cast<int64_t>(pixel + line) * coarse_lines_bytes;
        ptx::cp_async_16(a.chunk(line, coarse_lines.chunk), from,
                         line < left && coarse_channel < launch.coarse_channels);
      }
    } else {
#pragma unroll 2
      for (int i = 0; i < coarse_lines.kLines; i++) {
        const int line = coarse_lines.line(i);
        const T* from = coarse + static_cast<int64_t>(pixel + line) * launch.coarse_channels + coarse_channel;
        fill_one_by_one<T, kChunk>(a.chunk(line, coarse_lines.chunk), [&](int e) {
          return line < left && coarse_channel + e < launch.coarse_channels ? from + e : nullptr;
        });
      }
    }
    if constexpr (kFineByChunks) {
#pragma unroll
      for (int i = 0; i < fine_lines.kLines; i++) {
        const int line = fine_lines.line(i);
        Met& at = met[i];
        const char* from =
            reinterpret_cast<const char*>(fine + fine_column) + static_cast<int64_t>(at.pixel) * fine_lines_bytes;
        ptx::cp_async_16(b.chunk(line, fine_lines.chunk), from,
                         at.inside(launch) && line < left && fine_column < fine_channels);
        at.pixel += move;
        at.y += move_y;
        if (move_x) {
          at.x += move_x;
          if (at.x >= row_end) {
            at.x -= row_width, at.y += launch.y.stride;
            at.pixel += launch.y.stride * launch.x.input - row_width;
          }
        }
        if (at.y >= map_end) at.y -= map_height, at.pixel += (launch.y.input - map_height) * launch.x.input;
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < fine_lines.kLines; i++) {
        const int line = fine_lines.line(i);
        fill_one_by_one<T, kChunk>(b.chunk(line, fine_lines.chunk), [&](int e) -> const T* {
          const int column = fine_column + e, tap = launch.merged ? column / fine_channels : 0;
          const int channel = column - tap * fine_channels;
          if (line >= left || channel >= fine_channels || tap >= launch.taps()) return nullptr;
          const Met at = meet(pixel + line, tap_y + tap / launch.x.kernel, tap_x + tap % launch.x.kernel);
          return at.inside(launch) ? fine + static_cast<int64_t>(at.pixel) * fine_channels + channel : nullptr;
        });
      }
    }
    pixel += kDepth;
  };

  Accumulators<Shape> sums;
  multiply_pipeline<Step, Shape, Coarse, Fine>(sums, steps, fill);
  if (launch.splits > 1) {
    put_aside(sums, launch.partials, static_cast<int64_t>(blockIdx.x % tiles) * launch.splits + split);
  } else {
    finish_weight_grad<T>(sums, launch, tile);
  }
}

// Adds the parts of a tile, a block those of one fragment of each thread: the tiles are few, and their parts many.
template <typename T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) conv_weight_grad_sum(const WeightGradLaunch launch) {
  constexpr int kFragments = Shape::kFragmentsDown * Shape::kFragmentsAcross;
  const int number = blockIdx.x / kFragments, fragment = blockIdx.x % kFragments;
  const WeightGradTile<Shape> tile(launch, number);
  float sums[4] = {};
#pragma unroll 8
  for (int part = 0; part < launch.splits; part++) {
    const int64_t place = static_cast<int64_t>(number) * launch.splits + part;
    const auto four = load<4>(partial_at<Shape>(launch.partials, place, fragment));
#pragma unroll
    for (int e = 0; e < 4; e++) sums[e] += four.at[e];
  }
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int row = tile.first_row + Shape::warp_row(warp) + fragment / Shape::kFragmentsAcross * 16 + lane / 4;
  const int column =
      tile.first_column + Shape::warp_column(warp) + fragment % Shape::kFragmentsAcross * 8 + lane % 4 * 2;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int own_row = row + e / 2 * 8, own_column = column + e % 2;
    if (own_row >= launch.coarse_channels || own_column >= launch.finish.channels) continue;
    const int64_t line = (static_cast<int64_t>(own_row) * launch.taps() + tile.tap) * launch.fine_channels;
    static_cast<T*>(launch.finish.output)[line + own_column] = from_float<T>(sums[e]);
  }
}

}  // namespace dcgan_fast::cuda
