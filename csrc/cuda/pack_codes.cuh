// Activations to bits: the kernel. pack_codes.h has the arguments.
//
// Bound by memory. A row of `bits` activations of b bytes is read once and its words written once: bits * b + bits / 8
// bytes, 528 for 128 bits in float32 (272 in 16 bits), of which the results are 3% (6%). Over the copy bandwidth that is
// the floor: of 10 million rows 1.2 ms (0.6 ms) on an H200.
//
// The unit of work is half a word, 32 bits: one aligned store of 4 bytes. 32 / V neighbouring lanes read its activations,
// V of them each by one access of 16 bytes, and join their bits by shuffles: 3 for float32 and 2 for 16 bits, for each
// 512 bytes of a warp. (A ballot for each of the V would leave the bits of a word V places apart, to be sorted by more
// instructions than the shuffles are.) Where rows do not allow wide accesses V is 1, a warp reads half a word at a time,
// and one ballot is the result.
#pragma once

#include "pack_codes.h"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

constexpr int kHalf = 32;       // bits of half a word
constexpr int kPackUnroll = 4;  // loads of a thread in flight: 16 KB a block, as copies need (bn_act.cuh)
constexpr int kPackPasses = 4;  // of a block over its halves, for narrow rows

template <int V>
__device__ inline uint32_t join_bits(uint32_t own) {
  if constexpr (V == 1) {
    return __ballot_sync(~0u, own);
  } else {
    constexpr int kLanes = kHalf / V;
    own <<= threadIdx.x % kLanes * V;
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) own |= __shfl_xor_sync(~0u, own, distance);
    return own;
  }
}

// A block packs `block_rows` rows.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) pack_codes(PackCodes args, int block_rows) {
  constexpr unsigned kLanes = kHalf / V, kAtOnce = kThreads / kLanes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * block_rows, origin = first_row * args.bits;
  const unsigned bits = args.bits, row_halves = (bits + 63) / 64 * 2;
  const unsigned halves = row_halves * static_cast<unsigned>(min(int64_t{block_rows}, args.rows - first_row));
  const T* const from = static_cast<const T*>(args.activations) + origin;
  uint32_t* const to = reinterpret_cast<uint32_t*>(args.codes) + first_row * row_halves;
  const unsigned lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes;
  // Where the thread stands: a half of a row. Stepped, for to divide each time would double the instructions.
  unsigned row = own / row_halves, column = own % row_halves;
  const unsigned row_step = kAtOnce / row_halves, column_step = kAtOnce % row_halves;
  constexpr unsigned kNowhere = ~0u;
  unsigned nan_at = kNowhere;  // the first access of the thread that had one
  for (unsigned half = own; half < halves + own; half += kPackUnroll * kAtOnce) {
    Vec<T, V> items[kPackUnroll];
    unsigned places[kPackUnroll];  // in the block's rows
    bool valid[kPackUnroll];
#pragma unroll
    for (int u = 0; u < kPackUnroll; u++) {
      const unsigned bit = column * kHalf + lane * V;
      places[u] = row * bits + bit;
      valid[u] = half + u * kAtOnce < halves && bit < bits;
      if (valid[u]) items[u] = load<V>(from + places[u]);
      row += row_step;
      column += column_step;
      if (column >= row_halves) {
        column -= row_halves;
        row++;
      }
    }
#pragma unroll
    for (int u = 0; u < kPackUnroll; u++) {
      uint32_t above = 0;
      if (valid[u]) {
        bool nan = false;
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float value = to_float(items[u].at[i]);
          if (value > args.threshold) above |= 1u << i;
          nan |= value != value;
        }
        if (nan) nan_at = min(nan_at, places[u]);
      }
      const uint32_t joined = join_bits<V>(above);
      if (lane == 0 && half + u * kAtOnce < halves) to[half + u * kAtOnce] = joined;
    }
  }
  if (nan_at == kNowhere) return;
  while (to_float(from[nan_at]) == to_float(from[nan_at])) nan_at++;
  using Place = unsigned long long;  // CUDA's name for the 64 bits that atomics take
  atomicMin(reinterpret_cast<Place*>(args.first_nan), static_cast<Place>(origin + nan_at));
}

}  // namespace dcgan_fast::cuda
