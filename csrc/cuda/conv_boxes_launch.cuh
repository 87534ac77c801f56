// The kernels of conv_boxes.cuh and conv_boxes_weight_grad.cuh, and which of them serves a call.
#pragma once

#include "conv_boxes_weight_grad.cuh"
#include "conv_launch.cuh"

namespace dcgan_fast::cuda {

constexpr int kBoxRows = 128;

template <int kColumns>
using BoxShape = BlockShape<kBoxRows, kColumns, 16, kColumns>;

// Shared memory of a block with so many stages, whose lines have 128 bytes of either type.
template <int kColumns>
constexpr int64_t box_bytes(int64_t stages) {
  using Stages = typename BoxTiles<BoxShape<kColumns>, float, false>::Stages;
  return stages * (Stages::kBytes + Stages::kBarrierBytes);
}

// The least number of stages: the sums fit where their tiles lay.
constexpr int kLeastStages = 3;

template <typename T>
struct BoxKernels {
  static const char* forward(const BoxLaunch& call, Direction direction, int columns, int64_t blocks,
                             CUstream_st* stream);
};

template <typename T>
struct BoxGradKernels {
  static const char* weight_grad(const BoxGradLaunch& call, bool wide, CUstream_st* stream);
};

// Writes the weight as a product of tf32 going up takes it, [fine][tap][coarse] (conv_pack_weights.cuh).
const char* launch_pack_weights(const float* weight, float* packed, int64_t coarse, int64_t taps, int64_t fine,
                                CUstream_st* stream);

template <typename T, int kColumns, bool kUp>
const char* launch_boxes(const BoxLaunch& call, int64_t blocks, CUstream_st* stream) {
  using Shape = BoxShape<kColumns>;
  static_assert(finish_bytes<Shape>() <= kLeastStages * BoxTiles<Shape, T, kUp>::Stages::kBytes);
  const char* error = launch(conv_boxes<Shape, WarpgroupStep<T>, kUp>, blocks * call.conv.splits,
                             Shape::kThreads + kWarpSize, box_bytes<kColumns>(call.stages), stream, call);
  if constexpr (kColumns > kWideColumns) {  // there are tiles enough
    return error;
  } else {
    if (error || call.conv.splits == 1) return error;
    return launch(conv_boxes_finish_splits<Shape, T, kUp>, blocks, Shape::kThreads, finish_bytes<Shape>(), stream,
                  call);
  }
}

template <typename T>
const char* BoxKernels<T>::forward(const BoxLaunch& call, Direction direction, int columns, int64_t blocks,
                                   CUstream_st* stream) {
  const bool up = direction == Direction::kUp;
  if constexpr (sizeof(T) == 2) {  // a row of 256 floats is more than a warp stores at once
    if (columns == 256)
      return up ? launch_boxes<T, 256, true>(call, blocks, stream) : launch_boxes<T, 256, false>(call, blocks, stream);
  }
  switch (columns) {
    case 128:
      return up ? launch_boxes<T, 128, true>(call, blocks, stream) : launch_boxes<T, 128, false>(call, blocks, stream);
    default:
      return up ? launch_boxes<T, 64, true>(call, blocks, stream) : launch_boxes<T, 64, false>(call, blocks, stream);
  }
}

template <typename T, int kColumns>
const char* launch_gradient_boxes(const BoxGradLaunch& call, CUstream_st* stream) {
  using Shape = BoxShape<kColumns>;
  const int tiles = call.grad.tiles();
  const char* error =
      launch(conv_boxes_weight_grad<Shape, WarpgroupStep<T>>, static_cast<int64_t>(tiles) * call.grad.splits,
             Shape::kThreads + kWarpSize, box_bytes<kColumns>(call.stages), stream, call);
  if (error || call.grad.splits == 1) return error;
  constexpr int kFragments = Shape::kFragmentsDown * Shape::kFragmentsAcross;
  return launch(conv_weight_grad_sum<T, Shape>, static_cast<int64_t>(tiles) * kFragments, Shape::kThreads, 0, stream,
                call.grad);
}

template <typename T>
const char* BoxGradKernels<T>::weight_grad(const BoxGradLaunch& call, bool wide, CUstream_st* stream) {
  return wide ? launch_gradient_boxes<T, kWideColumns>(call, stream)
              : launch_gradient_boxes<T, kNarrowColumns>(call, stream);
}

}  // namespace dcgan_fast::cuda
