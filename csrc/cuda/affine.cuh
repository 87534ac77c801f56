// The affine map that a batch norm is once its statistics are known, as kernels hold it.
#pragma once

#include "device.cuh"

namespace dcgan_fast::cuda {

// The affine map of channels, z = (x - mean) * scale + bias; not x * scale + shift, which subtracts two
// large rounded numbers where the mean is large against the deviation. A thread needs that of its own K
// channels in registers, and every row of a block needs the same: the block computes each once.
template <int K>
struct Affine {
  float mean[K], scale[K], bias[K];

  // fmaf by name, so that forward and backward round alike and agree on the sign of z.
  __device__ float operator()(float centred, int k) const { return fmaf(centred, scale[k], bias[k]); }
};

// The values of a thread's own channels, from a row of shared memory that has those of the block's.
template <int K>
__device__ void take_own(float (&own)[K], const float* row, int lane) {
  constexpr int N = K % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int k = 0; k < K; k += N) {
    const Vec<float, N> values = load<N>(row + lane * K + k);
#pragma unroll
    for (int i = 0; i < N; i++) own[k + i] = values.at[i];
  }
}

// Rows of shared memory with one number for each channel of a block.
constexpr int kAffineRows = 3;

// Writes column `thread` of the first three rows of `table`. The caller synchronises and takes.
__device__ inline void put_affine(float* table, int columns, int thread, float mean, float rstd, const void* weight,
                                  const void* bias, int64_t channel, DType dtype) {
  table[thread] = mean;
  table[columns + thread] = weight ? rstd * load_parameter(weight, channel, dtype) : rstd;
  table[2 * columns + thread] = bias ? load_parameter(bias, channel, dtype) : 0.f;
}

template <int K>
__device__ Affine<K> take_affine(const float* table, int columns, int lane) {
  Affine<K> affine;
  take_own(affine.mean, table, lane);
  take_own(affine.scale, table + columns, lane);
  take_own(affine.bias, table + 2 * columns, lane);
  return affine;
}

}  // namespace dcgan_fast::cuda
