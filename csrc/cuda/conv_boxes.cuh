// Convolution whose tiles the copy engine fills (TMA, sm_90a): conv.cuh's product with its copies taken off the
// threads. One thread of a warp of its own asks for a stage by two instructions; two warpgroups multiply what has come.
//
// What a tile's rows meet through one tap is a box of the input: 128 points or a few less, which are neighbours,
//     images x lattice lines x lattice points of a line
// and zeros outside of the map are the engine's. Where the points are a stride apart (going down), the map is seen as
//     (N, height / stride, stride, width / stride, stride * channels)
// in which they are neighbours and a tap chooses what is left of its place: a row of the stride's, a part of the
// channels. Going up, the phases differ in where their taps' boxes begin, and are tiles of one launch.
//
// Why: the copies' instructions decide how fast conv.cuh is (145 a stage and warp), and their addresses take registers,
// which tiles of 256 columns need for sums. Floor as there: a stage of 128 x 128 is 32 KB, and 512 cycles of products.
#pragma once

#include "conv.cuh"
#include "conv_box_map.h"

namespace dcgan_fast::cuda {

struct BoxLaunch {
  ConvLaunch conv;                 // its `tiles` are boxes; no operand is read by elements
  int images, points_y, points_x;  // of a box
  int tiles_y, tiles_x;            // of an image's lattice, which they divide
  Divisor by_points, by_width;     // of a row, among those of an image and of a line
  int stages;
  CUtensorMap pixels, weights;
};

// Which part of the output a block computes, in the order of ConvTile. All phases have the same lattice.
template <class Shape, bool kUp>
struct BoxTile {
  PhaseAxis y, x;
  int group, tile, phase, split;
  int first_image, first_y, first_x;
  static constexpr int first_row = 0;
  int rows;
  int first_column;
  int points, width;
  Divisor by_points, by_width;

  __device__ BoxTile(const BoxLaunch& launch, unsigned block, int splits) {
    const ConvLaunch& conv = launch.conv;
    unsigned rest = block;
    split = rest % splits, rest /= splits;
    first_column = rest % conv.column_tiles * Shape::kColumns, rest /= conv.column_tiles;
    phase = rest % conv.phases(), rest /= conv.phases();
    tile = rest % conv.tiles, group = rest / conv.tiles;
    y = PhaseAxis::of<kUp>(conv.y, phase / conv.phases_x);
    x = PhaseAxis::of<kUp>(conv.x, phase % conv.phases_x);
    const int line = tile / launch.tiles_x, image = line / launch.tiles_y;
    first_x = (tile - line * launch.tiles_x) * launch.points_x;
    first_y = (line - image * launch.tiles_y) * launch.points_y;
    first_image = group * conv.group_images + image * launch.images;
    width = launch.points_x, points = launch.points_y * width;
    rows = min(conv.group_images - image * launch.images, launch.images) * points;
    by_points = launch.by_points, by_width = launch.by_width;
  }

  __device__ int taps() const { return y.taps * x.taps; }

  struct Point {
    int image, y, x;
  };
  __device__ Point point(const ConvLaunch&, int row) const {
    const int image = by_points.divide(row), within = row - image * points, line = by_width.divide(within);
    return {first_image + image, first_y + line, first_x + within - line * width};
  }

  __device__ int moments_tile(const ConvLaunch& launch) const { return tile * launch.phases() + phase; }
};

// What meets a tap along one axis: the lattice's places move by `on`, among `of` the step's that lie at `part`.
struct TapPlace {
  int on, part;

  __device__ TapPlace(const PhaseAxis& axis, int tap) {
    const int place = axis.first_input + tap * axis.input_per_tap, step = axis.input_step;
    on = place >= 0 ? place / step : -((step - 1 - place) / step);
    part = place - on * step;
  }
};

// The stages of a block in shared memory: tiles, and behind them two barriers each, "full" and "empty", which the
// copies of a stage and the warps that have multiplied it end.
template <class Rows, class Columns>
struct BoxStages {
  static constexpr int kBytes = Rows::kBytes + Columns::kBytes, kBarrierBytes = 2 * sizeof(uint64_t);
  int count;

  __device__ unsigned char* tiles(int stage) const { return shared_memory() + stage * kBytes; }
  __device__ Rows rows(int stage) const { return {tiles(stage)}; }
  __device__ Columns columns(int stage) const { return {tiles(stage) + Rows::kBytes}; }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(tiles(count)) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(count) + stage; }
};

// A stage, and the parity of how often all have been used.
struct StageTurn {
  int stage = 0, parity = 0;

  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

template <class Shape, typename T, bool kUp>
struct BoxTiles {
  using Pixels = WarpgroupTile<T, Shape::kRows, true>;
  static constexpr bool kWeightsAlongK = !kUp || sizeof(T) == 4;  // packed so (conv_pack_weights.cuh) where it is not
  using Weights = WarpgroupTile<T, Shape::kColumns, kWeightsAlongK>;
  using Stages = BoxStages<Pixels, Weights>;
  static constexpr int kDepth = Pixels::kDepth;
  // Boxes of the weight a stage: where its lines lie along the columns, a line's length of them a box.
  static constexpr int kWeightBoxes = kWeightsAlongK ? 1 : Weights::kBytes / (kDepth * Weights::kLineBytes);
};

// The thread that asks for all stages in turn.
template <class Tiles, class Tile, bool kUp>
__device__ void fill_boxes(const BoxLaunch& launch, const Tile& tile, const typename Tiles::Stages& stages,
                           int first_step, int steps) {
  constexpr int kDepth = Tiles::kDepth;
  const int in_channels = launch.conv.in_channels, channel_steps = in_channels / kDepth;
  const int bytes = launch.images * tile.points * Tiles::Pixels::kLineBytes + Tiles::Weights::kBytes;
  const int tap = first_step / channel_steps;
  int tap_y = tap / max(tile.x.taps, 1), tap_x = tap - tap_y * tile.x.taps;
  int channel = (first_step - tap * channel_steps) * kDepth;
  StageTurn turn;
#pragma unroll 1
  for (int left = steps; left > 0; tap_x++) {
    if (tap_x == tile.x.taps) tap_x = 0, tap_y++;
    const TapPlace y(tile.y, tap_y), x(tile.x, tap_x);
    const int place = (tile.y.first_tap + tap_y * tile.y.tap_step) * launch.conv.x.kernel + tile.x.first_tap +
                      tap_x * tile.x.tap_step;
#pragma unroll 1
    for (; channel < in_channels && left > 0; channel += kDepth, left--) {
      uint64_t* const full = stages.full(turn.stage);
      ptx::mbarrier_wait(stages.empty(turn.stage), turn.parity ^ 1);
      ptx::mbarrier_arrive_expect(full, bytes);
      const int pixels[5] = {x.part * in_channels + channel, tile.first_x + x.on, y.part, tile.first_y + y.on,
                             tile.first_image};
      ptx::copy_box(stages.rows(turn.stage).data, launch.pixels, pixels, full);
      unsigned char* const weights = stages.columns(turn.stage).data;
#pragma unroll
      for (int box = 0; box < Tiles::kWeightBoxes; box++) {
        const int column = tile.first_column + box * kDepth;
        const int at[3] = {Tiles::kWeightsAlongK ? channel : column, place, Tiles::kWeightsAlongK ? column : channel};
        ptx::copy_box(weights + box * kDepth * Tiles::Weights::kLineBytes, launch.weights, at, full);
      }
      turn.next(stages.count);
    }
    channel = 0;
  }
}

// First of all, where all threads meet: barriers of stages that kWarps warps multiply; the maps by which they come.
template <int kWarps, class Stages>
__device__ void begin_stages(const Stages& stages, const CUtensorMap& rows, const CUtensorMap& columns) {
  if (threadIdx.x == kWarps * kWarpSize) {
    ptx::prefetch_map(rows);
    ptx::prefetch_map(columns);
    for (int stage = 0; stage < stages.count; stage++) {
      ptx::mbarrier_init(stages.full(stage), 1);
      ptx::mbarrier_init(stages.empty(stage), kWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
}

// Adds the products of all stages in turn, one's while the next is waited for; then the tiles' memory is free.
template <class Step, class Shape, class Stages>
__device__ void multiply_boxes(Accumulators<Shape>& sums, const Stages& stages, int steps) {
  StageTurn turn;
  int multiplied = 0;  // the stage before this one
  for (int step = 0; step < steps; step++) {
    ptx::mbarrier_wait(stages.full(turn.stage), turn.parity);
    start_multiplying<Step>(sums, stages.rows(turn.stage), stages.columns(turn.stage));
    ptx::wgmma_wait<1>();
    __syncwarp();
    if (step > 0 && threadIdx.x % kWarpSize == 0) ptx::mbarrier_arrive(stages.empty(multiplied));
    multiplied = turn.stage;
    turn.next(stages.count);
  }
  ptx::wgmma_wait<0>();
  __syncthreads();  // all have multiplied
}

// Blocks on an SM: of 256 columns one, whose sums are half of its registers.
template <class Shape>
constexpr int kBoxBlocks = Shape::kColumns > 128 ? 1 : 2;

// Computes the sums of a tile; stores them, or puts them aside where the depth is split. A warp more than the shape's.
template <class Shape, class Step, bool kUp>
__global__ void __launch_bounds__(Shape::kThreads + kWarpSize, kBoxBlocks<Shape>)
    conv_boxes(const __grid_constant__ BoxLaunch launch) {
  using T = typename Step::T;
  using Tiles = BoxTiles<Shape, T, kUp>;
  const ConvLaunch& conv = launch.conv;
  const typename Tiles::Stages stages{launch.stages};
  begin_stages<Shape::kWarps>(stages, launch.pixels, launch.weights);
  const BoxTile<Shape, kUp> tile(launch, blockIdx.x, conv.splits);
  const int steps = tile.taps() * (conv.in_channels / Tiles::kDepth), each = (steps + conv.splits - 1) / conv.splits;
  const int first_step = min(tile.split * each, steps), own_steps = min(each, steps - first_step);
  if (threadIdx.x >= Shape::kThreads) {
    if (threadIdx.x == Shape::kThreads)
      fill_boxes<Tiles, BoxTile<Shape, kUp>, kUp>(launch, tile, stages, first_step, own_steps);
    return;  // barriers of the block are those of the others from here on
  }

  Accumulators<Shape> sums;
  multiply_boxes<Step>(sums, stages, own_steps);
  if (conv.splits > 1) {
    put_aside(sums, conv.partials, blockIdx.x, conv.out_channels - tile.first_column);
  } else {
    // Found anew: kept, the tile's numbers would take the product's registers.
    finish_conv<T>(sums, conv, BoxTile<Shape, kUp>(launch, ptx::unknown(blockIdx.x), 1));
  }
}

// Where the depth was split: as conv_finish_splits().
template <class Shape, typename T, bool kUp>
__global__ void __launch_bounds__(Shape::kThreads, 1) conv_boxes_finish_splits(const BoxLaunch launch) {
  const int splits = launch.conv.splits;
  const BoxTile<Shape, kUp> tile(launch, blockIdx.x, 1);
  Accumulators<Shape> sums;
  add_parts(sums, launch.conv.partials, static_cast<int64_t>(blockIdx.x) * splits, splits,
            launch.conv.out_channels - tile.first_column);
  finish_conv<T>(sums, launch.conv, tile);
}

}  // namespace dcgan_fast::cuda
