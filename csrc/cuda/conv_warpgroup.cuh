// The convolution kernels whose products are those of warpgroups: conv.cuh and conv_weight_grad.cuh with another step,
// where 64 channels make a stage. One block has two warpgroups, of 64 rows each.
//
// Why: mma takes its operands by way of registers, and the warps of a block load each several times: 192 bytes of
// shared memory a cycle at full rate where an SM has 128. wgmma reads 96, and leaves the issue slots to the copies.
#pragma once

#include "conv_launch.cuh"

namespace dcgan_fast::cuda {

template <typename T>
struct WarpgroupKernels {
  using Step = WarpgroupStep<T>;
  using Wide = BlockShape<kBlockRows, kWideColumns, 16, kWideColumns>;
  using Narrow = BlockShape<kBlockRows, kNarrowColumns, 16, kNarrowColumns>;

  static const char* forward(const ConvLaunch& call, Direction direction, bool wide, int64_t blocks,
                             CUstream_st* stream);
  static const char* weight_grad(const WeightGradLaunch& call, bool wide, CUstream_st* stream);
};

template <typename T>
const char* WarpgroupKernels<T>::forward(const ConvLaunch& call, Direction direction, bool wide, int64_t blocks,
                                         CUstream_st* stream) {
  if (direction == Direction::kUp) {
    return wide ? launch_forward<Step, Wide, true>(call, blocks, stream)
                : launch_forward<Step, Narrow, true>(call, blocks, stream);
  }
  return wide ? launch_forward<Step, Wide, false>(call, blocks, stream)
              : launch_forward<Step, Narrow, false>(call, blocks, stream);
}

template <typename T>
const char* WarpgroupKernels<T>::weight_grad(const WeightGradLaunch& call, bool wide, CUstream_st* stream) {
  return wide ? launch_weight_grad<Step, Wide>(call, stream) : launch_weight_grad<Step, Narrow>(call, stream);
}

}  // namespace dcgan_fast::cuda
