// The weight of a convolution going up, along K: [coarse][tap][fine] becomes [fine][tap][coarse]. Products of
// warpgroups take operands of 32 bits along K alone, and there K is the coarse channels.
//
// A pass over the weight, 32 x 32 elements of one tap a block by way of shared memory: an example's largest weight, 8
// MB, is read and written in about 4 us of copy bandwidth.
#pragma once

#include "ptx.cuh"

namespace dcgan_fast::cuda {

constexpr int kPackSide = 32, kPackThreads = 256;
constexpr int kPackBytes = kPackSide * (kPackSide + 1) * static_cast<int>(sizeof(float));  // lines in different banks

struct PackLaunch {
  const float* weight;
  float* packed;
  int coarse, taps, fine;  // coarse a multiple of kPackSide, as a stage has it
  int fine_tiles;

  int64_t blocks() const { return static_cast<int64_t>(taps) * fine_tiles * (coarse / kPackSide); }
};

__global__ void __launch_bounds__(kPackThreads) conv_pack_weights(const PackLaunch launch) {
  constexpr int kLines = kPackThreads / kPackSide, kPitch = kPackSide + 1;
  float* const tile = reinterpret_cast<float*>(shared_memory());
  unsigned rest = blockIdx.x;
  const int fine = rest % launch.fine_tiles * kPackSide;
  rest /= launch.fine_tiles;
  const int tap = rest % launch.taps, coarse = rest / launch.taps * kPackSide;
  const int own = threadIdx.x % kPackSide, first = threadIdx.x / kPackSide;
#pragma unroll
  for (int line = first; line < kPackSide; line += kLines) {
    if (fine + own < launch.fine) {
      const int64_t from = (static_cast<int64_t>(coarse + line) * launch.taps + tap) * launch.fine + fine + own;
      tile[line * kPitch + own] = launch.weight[from];
    }
  }
  __syncthreads();
#pragma unroll
  for (int line = first; line < kPackSide; line += kLines) {
    if (fine + line < launch.fine) {
      const int64_t to = (static_cast<int64_t>(fine + line) * launch.taps + tap) * launch.coarse + coarse + own;
      launch.packed[to] = tile[own * kPitch + line];
    }
  }
}

}  // namespace dcgan_fast::cuda
