// The weight gradient whose tiles the copy engine fills: conv_weight_grad.cuh's product, tiles and parts, of 16-bit
// elements alone, whose lines may run along channels. A stage is a box of 64 coarse pixels,
//     images x lines x pixels of a line
// where lines and pixels of it are powers of two that divide the map, and the same box of the fine map as a tap meets
// it, in the view of conv_boxes.cuh. Images that do not exist are zeros on both sides.
#pragma once

#include "conv_boxes.cuh"
#include "conv_weight_grad.cuh"

namespace dcgan_fast::cuda {

struct BoxGradLaunch {
  WeightGradLaunch grad;           // but for split_pixels
  int images, points_y, points_x;  // of a box
  int boxes_y, boxes_x;            // of an image
  int boxes, split_boxes;          // of all images, of a part
  int stages;
  CUtensorMap coarse, fine;
};

template <class Shape, typename T>
struct BoxGradTiles {
  using Coarse = WarpgroupTile<T, Shape::kRows, false>;
  using Fine = WarpgroupTile<T, Shape::kColumns, false>;
  using Stages = BoxStages<Coarse, Fine>;
  static constexpr int kDepth = Coarse::kDepth, kBoxBytes = kDepth * Coarse::kLineBytes;
};

// The thread that asks for all stages in turn: boxes of 64 channels, as many as a tile has.
template <class Tiles, class Tile>
__device__ void fill_gradient_boxes(const BoxGradLaunch& launch, const Tile& tile, const typename Tiles::Stages& stages,
                                    int first_box, int boxes) {
  constexpr int kChannels = Tiles::Coarse::kLineBytes / sizeof(typename Tiles::Coarse::T);
  const WeightGradLaunch& grad = launch.grad;
  const TapPlace y(PhaseAxis::of<false>(grad.y, 0), tile.tap / grad.x.kernel),
      x(PhaseAxis::of<false>(grad.x, 0), tile.tap % grad.x.kernel);
  const int line = first_box / launch.boxes_x;
  int image = line / launch.boxes_y, box_y = line - image * launch.boxes_y, box_x = first_box - line * launch.boxes_x;
  StageTurn turn;
#pragma unroll 1
  for (int box = 0; box < boxes; box++) {
    uint64_t* const full = stages.full(turn.stage);
    ptx::mbarrier_wait(stages.empty(turn.stage), turn.parity ^ 1);
    ptx::mbarrier_arrive_expect(full, Tiles::Stages::kBytes);
    const int first_y = box_y * launch.points_y, first_x = box_x * launch.points_x, first_image = image * launch.images;
#pragma unroll
    for (int i = 0; i < Tiles::Coarse::kBytes / Tiles::kBoxBytes; i++) {
      const int at[5] = {tile.first_row + i * kChannels, first_x, 0, first_y, first_image};
      ptx::copy_box(stages.rows(turn.stage).data + i * Tiles::kBoxBytes, launch.coarse, at, full);
    }
#pragma unroll
    for (int i = 0; i < Tiles::Fine::kBytes / Tiles::kBoxBytes; i++) {
      const int at[5] = {x.part * grad.fine_channels + tile.first_column + i * kChannels, first_x + x.on, y.part,
                         first_y + y.on, first_image};
      ptx::copy_box(stages.columns(turn.stage).data + i * Tiles::kBoxBytes, launch.fine, at, full);
    }
    turn.next(stages.count);
    if (++box_x == launch.boxes_x) {
      box_x = 0;
      if (++box_y == launch.boxes_y) box_y = 0, image++;
    }
  }
}

template <class Shape, class Step>
__global__ void __launch_bounds__(Shape::kThreads + kWarpSize, kBoxBlocks<Shape>)
    conv_boxes_weight_grad(const __grid_constant__ BoxGradLaunch launch) {
  using T = typename Step::T;
  using Tiles = BoxGradTiles<Shape, T>;
  const typename Tiles::Stages stages{launch.stages};
  begin_stages<Shape::kWarps>(stages, launch.coarse, launch.fine);
  const WeightGradLaunch& grad = launch.grad;
  const int tiles = grad.tiles(), split = blockIdx.x / tiles;
  const WeightGradTile<Shape> tile(grad, blockIdx.x % tiles);
  const int first_box = split * launch.split_boxes;
  const int boxes = max(min(launch.split_boxes, launch.boxes - first_box), 0);
  if (threadIdx.x >= Shape::kThreads) {
    if (threadIdx.x == Shape::kThreads) fill_gradient_boxes<Tiles>(launch, tile, stages, first_box, boxes);
    return;
  }
  Accumulators<Shape> sums;
  multiply_boxes<Step>(sums, stages, boxes);
  if (grad.splits > 1) {
    put_aside(sums, grad.partials, static_cast<int64_t>(blockIdx.x % tiles) * grad.splits + split);
  } else {
    finish_weight_grad<T>(sums, grad, tile);
  }
}

}  // namespace dcgan_fast::cuda
