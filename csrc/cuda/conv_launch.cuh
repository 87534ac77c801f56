// The convolution kernels of one step (matrix.cuh), and which of them serves a call. Each step is compiled by a file of
// its own, conv_<step>.cu, which instantiates ConvKernels.
#pragma once

#include <algorithm>

#include "conv_image.cuh"
#include "conv_image_weight_grad.cuh"
#include "conv_thin.cuh"
#include "conv_weight_grad.cuh"
#include "launch.cuh"

namespace dcgan_fast::cuda {

// Blocks of a step: wide ones where there are columns enough, narrow ones elsewhere and where elements are read one by
// one. Strict float32 steps have fragments of twice the registers, and no room for wide ones.
constexpr int kBlockRows = 128, kWideColumns = 128, kNarrowColumns = 64;

template <class Step>
struct Blocks {
  using Narrow = BlockShape<kBlockRows, kNarrowColumns, 64, 32>;
  using Wide = BlockShape<kBlockRows, Step::kStrict ? kNarrowColumns : kWideColumns, 64, 32>;
};

template <class Step, class Shape>
constexpr size_t kSharedBytes = std::max<size_t>(pipeline_bytes<Step, Shape>(), finish_bytes<Shape>());

template <class Step>
struct ConvKernels {
  static const char* forward(const ConvLaunch& call, Direction direction, bool wide, int64_t blocks,
                             CUstream_st* stream);
  static const char* thin(const ThinLaunch& call, int64_t blocks, CUstream_st* stream);
  static const char* image(const ConvImageLaunch& call, CUstream_st* stream);
  static const char* weight_grad(const WeightGradLaunch& call, bool wide, CUstream_st* stream);
  static const char* image_weight_grad(const ImageGradLaunch& call, CUstream_st* stream);
};

template <class Step, class Shape, bool kUp, Access kAccess = Access::kChunks>
const char* launch_forward(const ConvLaunch& call, int64_t blocks, CUstream_st* stream) {
  const char* error = launch(conv<Shape, Step, kUp, kAccess>, blocks * call.splits, Shape::kThreads,
                             kSharedBytes<Step, Shape>, stream, call);
  if (error || call.splits == 1) return error;
  return launch(conv_finish_splits<typename Step::T, Shape, kUp>, blocks, Shape::kThreads, finish_bytes<Shape>(),
                stream, call);
}

template <class Step>
const char* ConvKernels<Step>::forward(const ConvLaunch& call, Direction direction, bool wide, int64_t blocks,
                                       CUstream_st* stream) {
  using Wide = typename Blocks<Step>::Wide;
  using Narrow = typename Blocks<Step>::Narrow;
  const bool up = direction == Direction::kUp;
  switch (call.access) {
    case Access::kElements:
      return up ? launch_forward<Step, Narrow, true, Access::kElements>(call, blocks, stream)
                : launch_forward<Step, Narrow, false, Access::kElements>(call, blocks, stream);
    case Access::kPixelElements:  // going down, the weight's chunks are the input's
      return launch_forward<Step, Narrow, true, Access::kPixelElements>(call, blocks, stream);
    case Access::kWeightElements:  // nor are they fewer there
      return launch_forward<Step, Narrow, true, Access::kWeightElements>(call, blocks, stream);
    default:
      return up     ? wide ? launch_forward<Step, Wide, true>(call, blocks, stream)
                           : launch_forward<Step, Narrow, true>(call, blocks, stream)
             : wide ? launch_forward<Step, Wide, false>(call, blocks, stream)
                    : launch_forward<Step, Narrow, false>(call, blocks, stream);
  }
}

template <class Step>
const char* ConvKernels<Step>::thin(const ThinLaunch& call, int64_t blocks, CUstream_st* stream) {
  using Narrow = typename Blocks<Step>::Narrow;
  return launch(conv_thin<Narrow, Step>, blocks, Narrow::kThreads, kSharedBytes<Step, Narrow>, stream, call);
}

template <class Step>
const char* ConvKernels<Step>::image(const ConvImageLaunch& call, CUstream_st* stream) {
  const int64_t blocks = static_cast<int64_t>(call.parts) * call.column_tiles;
  return launch(call.direct ? conv_image<Step, true> : conv_image<Step, false>, blocks, ImageBlock::kThreads,
                ConvImageMemory(call, sizeof(typename Step::T)).bytes, stream, call);
}

template <class Step>
const char* ConvKernels<Step>::image_weight_grad(const ImageGradLaunch& call, CUstream_st* stream) {
  constexpr int kFragments = ImageGradTile::kFragmentsDown * ImageGradTile::kFragmentsAcross;
  constexpr int kSumThreads = kImageSumWarps * kWarpSize;
  if (call.parts) {
    const char* error = launch(conv_image_weight_grad<Step>, static_cast<int64_t>(call.tiles()) * call.parts,
                               kImageGradWarps * kWarpSize, ImageGradMemory(call).bytes, stream, call);
    if (error) return error;
  }
  return launch(conv_image_weight_grad_sum<typename Step::T>, static_cast<int64_t>(call.tiles()) * kFragments,
                kSumThreads, kSumThreads * kAccessBytes, stream, call);
}

template <class Step, class Shape, bool kCoarseByChunks = true, bool kFineByChunks = true>
const char* launch_weight_grad(const WeightGradLaunch& call, CUstream_st* stream) {
  const int tiles = call.tiles();
  const char* error = launch(conv_weight_grad<Shape, Step, kCoarseByChunks, kFineByChunks>,
                             static_cast<int64_t>(tiles) * call.splits, Shape::kThreads, kSharedBytes<Step, Shape>,
                             stream, call);
  if (error || call.splits == 1) return error;
  constexpr int kFragments = Shape::kFragmentsDown * Shape::kFragmentsAcross;
  return launch(conv_weight_grad_sum<typename Step::T, Shape>, static_cast<int64_t>(tiles) * kFragments,
                Shape::kThreads, 0, stream, call);
}

template <class Step>
const char* ConvKernels<Step>::weight_grad(const WeightGradLaunch& call, bool wide, CUstream_st* stream) {
  using Wide = typename Blocks<Step>::Wide;
  using Narrow = typename Blocks<Step>::Narrow;
  if (!call.coarse_by_chunks) {
    return call.fine_by_chunks ? launch_weight_grad<Step, Narrow, false, true>(call, stream)
                               : launch_weight_grad<Step, Narrow, false, false>(call, stream);
  }
  if (!call.fine_by_chunks) return launch_weight_grad<Step, Narrow, true, false>(call, stream);
  return wide ? launch_weight_grad<Step, Wide>(call, stream) : launch_weight_grad<Step, Narrow>(call, stream);
}

}  // namespace dcgan_fast::cuda
