// Reductions over the rows of a block, in an order that nothing but the block's shape decides.
#pragma once

#include "device.cuh"

namespace dcgan_fast::cuda {

constexpr int kThreads = 256;  // of a block, where nothing asks for another number: 8 warps
constexpr int kWarps = kThreads / kWarpSize;

// What a thread holds for K columns side by side; reduce_rows() merges them.

// N sums a column.
template <typename T, int N, int K>
struct Sums {
  static constexpr int kColumns = K;
  using Column = Sums<T, N, 1>;
  T at[K][N] = {};

  __device__ void merge(const Sums& other) {
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) at[k][i] += other.at[k][i];
    }
  }

  __device__ Sums shuffle_down(int distance) const {
    Sums from;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
      for (int i = 0; i < N; i++) from.at[k][i] = __shfl_down_sync(~0u, at[k][i], distance);
    }
    return from;
  }

  __device__ Column column(int k) const {
    Column one;
#pragma unroll
    for (int i = 0; i < N; i++) one.at[0][i] = at[k][i];
    return one;
  }
};

// Mean and sum of squared deviations from it, of n numbers a column.
template <int K>
struct Moments {
  static constexpr int kColumns = K;
  using Column = Moments<1>;
  float n = 0.f;
  float mean[K] = {};
  float m2[K] = {};

  // Chan, Golub and LeVeque (1979). The two factors delta stay apart: their product may overflow
  // where a weight of zero (either set empty) must win.
  __device__ void merge(const Moments& other) {
    const float total = n + other.n;
    const float share = total > 0.f ? other.n / total : 0.f;
    const float weight = n * share;
#pragma unroll
    for (int k = 0; k < K; k++) {
      const float delta = other.mean[k] - mean[k];
      mean[k] = fmaf(delta, share, mean[k]);
      m2[k] += fmaf(delta * weight, delta, other.m2[k]);
    }
    n = total;
  }

  __device__ Moments shuffle_down(int distance) const {
    Moments from;
    from.n = __shfl_down_sync(~0u, n, distance);
#pragma unroll
    for (int k = 0; k < K; k++) {
      from.mean[k] = __shfl_down_sync(~0u, mean[k], distance);
      from.m2[k] = __shfl_down_sync(~0u, m2[k], distance);
    }
    return from;
  }

  __device__ Column column(int k) const {
    Column one;
    one.n = n;
    one.mean[0] = mean[k];
    one.m2[0] = m2[k];
    return one;
  }
};

// A block of kBlockWarps warps is `lanes` threads wide (a power of two, at most a warp). Merges every
// column over the rows: rows of a warp by halving, then the warps in turn. Thread t < lanes * K gets
// column t, the others nothing of use. `scratch` has kBlockWarps * lanes * K places and is free again
// after the block's next barrier.
template <int kBlockWarps = kWarps, typename Value>
__device__ typename Value::Column reduce_rows(Value own, int lanes, typename Value::Column* scratch) {
  constexpr int K = Value::kColumns;
  for (int distance = kWarpSize / 2; distance >= lanes; distance /= 2) {
    own.merge(own.shuffle_down(distance));
  }
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int columns = lanes * K;
  if (lane < lanes) {
#pragma unroll
    for (int k = 0; k < K; k++) scratch[warp * columns + lane * K + k] = own.column(k);
  }
  __syncthreads();
  typename Value::Column total;
  if (thread < columns) {
    total = scratch[thread];
    for (int w = 1; w < kBlockWarps; w++) total.merge(scratch[w * columns + thread]);
  }
  return total;
}

}  // namespace dcgan_fast::cuda
