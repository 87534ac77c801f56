// Batch normalisation + activation: the kernels. `bn_act.h` has the mathematics and the arguments.
//
// All are bound by memory. With E elements of b bytes in x, the passes over the data move
//     statistics        1 E b    reads x
//     apply             2 E b    reads x, writes y
//     backward sums     2 E b    reads dy, x
//     backward apply    3 E b    reads dy, x, writes dx
// which is 8 E b for forward and backward in training (32 bytes an element in float32, 16 in bfloat16)
// and 2 E b for the eval mode forward. Over the copy bandwidth, that is each pass's floor. No kernel
// moves less unless it keeps x on the chip, for no output is known before the last input. batch_norm
// and relu as two ops move 13 E b: relu alone adds 2 forward and 3 backward. On top come the partial
// results (8 bytes a channel and tile: 1 to 3% of x) and the finalise kernels, which read only those:
// a few microseconds, felt in the smallest layers alone.
//
// One vocabulary for both memory orders. An *item* is what a thread moves at once: V neighbouring
// elements. Channels last ([rows, C]), an item lies across V channels, and items follow each other down
// the rows. In planes ([N, C, S]), it lies within one channel, and items follow each other along that
// channel's planes, image after image. A block covers `lanes` x K channels (K = V or 1) of one *tile*: a
// run of the items of one statistics group. Tiles depend on the shape and on V alone.
#pragma once

#include "activation.cuh"
#include "affine.cuh"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

// How many items a thread loads before it uses the first. To stream at full bandwidth, the loads in
// flight must cover the memory latency: about 22 KB an SM on an H200, where 2 blocks of 256 threads
// with 4 accesses of 16 bytes have 32 KB. More blocks would fit with fewer registers, but not more
// bytes. Smooth activations are long code: their kernels rely on blocks, not on unrolling.
constexpr int kBlocksPerSm = 2;  // hence at most 128 registers a thread
constexpr int kUnroll = 4;
constexpr int kUnrollTwoInputs = 2;
constexpr int kUnrollSmooth = 1;

// Channels of one block of the finalise kernels: 8 neighbours of 8 bytes, two memory sectors.
constexpr int kFinaliseLanes = 8;

struct Tiling {
  int64_t group_items;      // items of a channel block in a group
  int64_t tile_items;       // items of a tile; the last one of a group may have fewer
  int64_t tiles;            // tiles of a group, at least 1 (of an empty group: one empty tile)
  int64_t channel_blocks;   // blocks side by side along the channels
  int64_t values_per_item;  // of one channel: 1 channels last, V in planes
  int64_t step_offset;      // elements from an item of a thread to its next, inside a plane
  int64_t step_position;    // the same as a change of position in the plane; 0 channels last
  int lanes;                // threads side by side along the channels: a power of two <= 32

  __host__ __device__ int64_t blocks(const BnActShape& shape) const {
    return shape.stat_groups * tiles * channel_blocks;
  }
};

// Some items of a thread: the first `count` of the offsets, in elements from the start of x.
template <int U>
struct Batch {
  int64_t offsets[U];
  int count = 0;
};

template <typename T, int V, int U>
__device__ void load_items(Vec<T, V> (&items)[U], const T* from, const Batch<U>& batch) {
#pragma unroll
  for (int u = 0; u < U; u++) {
    if (u < batch.count) items[u] = load<V>(from + batch.offsets[u]);
  }
}

// A thread's way through its tile: the channels it owns and the item it stands at.
template <int V, bool kChannelsLast>
struct Walk {
  static constexpr int K = kChannelsLast ? V : 1;  // channels a thread owns

  // The channel that element i of an item belongs to, among the thread's own.
  __device__ static constexpr int own(int i) { return kChannelsLast ? i : 0; }

  __device__ Walk(const BnActShape& shape, const Tiling& tiling) : shape(shape), tiling(tiling) {
    // Neighbouring blocks take neighbouring channels of the same items: neighbours in memory.
    const unsigned channel_blocks = tiling.channel_blocks, tiles = tiling.tiles;
    const unsigned rest = blockIdx.x / channel_blocks;
    block_channel = static_cast<int64_t>(blockIdx.x % channel_blocks) * tiling.lanes * K;
    tile = rest % tiles;
    group = rest / tiles;
    lane = threadIdx.x % tiling.lanes;
    channel = block_channel + lane * K;
    rows = kThreads / tiling.lanes;
    end = min((tile + 1) * tiling.tile_items, tiling.group_items);
    item = tile * tiling.tile_items + threadIdx.x / tiling.lanes;
    if (channel >= shape.channels || item >= end) {
      item = end;  // nothing to do
    } else {
      offset = origin(channel);
      if constexpr (kChannelsLast) {
        offset += item * shape.channels;
      } else {
        const int64_t images = item * V / shape.spatial;
        position = item * V % shape.spatial;
        offset += images * shape.channels * shape.spatial + position;
      }
    }
  }

  __device__ bool done() const { return item >= end; }

  // The next items of the thread, U at most. Offsets first, then loads: U of them are in flight.
  template <int U>
  __device__ Batch<U> take() {
    Batch<U> batch;
#pragma unroll
    for (int u = 0; u < U; u++) {
      batch.offsets[u] = offset;
      batch.count += !done();
      next();
    }
    return batch;
  }

  __device__ void next() {
    item += rows;
    offset += tiling.step_offset;
    if constexpr (!kChannelsLast) {
      position += tiling.step_position;
      if (position >= shape.spatial) {  // past the end of the plane: on to the next image
        position -= shape.spatial;
        offset += (shape.channels - 1) * shape.spatial;
      }
    }
  }

  // Where the group's numbers of one channel begin, in elements from the start of x.
  __device__ int64_t origin(int64_t c) const {
    if constexpr (kChannelsLast) {
      return group * tiling.group_items * shape.channels + c;
    } else {
      const int64_t image = group * (shape.batch / shape.stat_groups);
      return (image * shape.channels + c) * shape.spatial;
    }
  }

  // Where [group, channel] lies in the arrays of statistics, and [group, tile, channel] in partials.
  __device__ int64_t group_index(int64_t c) const { return group * shape.channels + c; }
  __device__ int64_t partial_index(int64_t c) const { return (group * tiling.tiles + tile) * shape.channels + c; }

  const BnActShape& shape;
  const Tiling& tiling;
  int64_t group, tile;
  int64_t block_channel;  // first channel of the block
  int64_t channel;        // first own channel
  int64_t item, end;      // where the thread stands and where the tile ends, in items of the group
  int64_t offset = 0;     // of `item`, in elements from the start of x
  int64_t position = 0;   // of `item` in its plane, in elements
  int lane, rows;
};

// Rows of shared memory with one number for each channel of a block: the affine map's, and what is taken off dz.
constexpr int kBackwardApplyRows = kAffineRows + 2;

// After the partial results, the workspace has a pair for each group and channel, [G, C]: forward, the
// number that means are relative to; backward, what the apply pass takes off dz.
template <typename Args>
__host__ __device__ float2* per_group(const Args& args, const Tiling& tiling) {
  const int64_t partials = args.shape.stat_groups * tiling.tiles * args.shape.channels;
  return static_cast<float2*>(args.workspace) + partials;
}

// Forward 1, training: (mean, sum of squared deviations) of each channel in each tile -> workspace
// [G, tiles, C]. Reads x once: E b bytes.
//
// Numbers are taken relative to the channel's first in the group, which costs one subtraction and makes
// the rest as accurate as if the mean were near zero, and exact for a constant channel. A thread takes
// the moments of kUnroll items in two passes over registers and merges them by Chan's rule, so that
// nothing is lost should that first number be an outlier.
template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    bn_act_statistics(const BnActForward args, const Tiling tiling) {
  using Thread = Walk<V, kChannelsLast>;
  constexpr int K = Thread::K;
  constexpr float kValues = V / K;  // of one channel in one item
  Thread walk(args.shape, tiling);
  const T* x = static_cast<const T*>(args.x);

  float origin[K] = {};
  if (!walk.done()) {
    const Vec<T, K> first = load<K>(x + walk.origin(walk.channel));
#pragma unroll
    for (int k = 0; k < K; k++) origin[k] = to_float(first.at[k]);
  }

  Moments<K> moments;
  while (!walk.done()) {
    const Batch<kUnroll> batch = walk.template take<kUnroll>();
    Vec<T, V> in[kUnroll];
    load_items(in, x, batch);
    Moments<K> chunk;
    chunk.n = kValues * batch.count;
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (u >= batch.count) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int k = Thread::own(i);
        chunk.mean[k] += to_float(in[u].at[i]) - origin[k];
      }
    }
    const float share = 1.f / chunk.n;
#pragma unroll
    for (int k = 0; k < K; k++) chunk.mean[k] *= share;
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (u >= batch.count) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int k = Thread::own(i);
        const float deviation = to_float(in[u].at[i]) - origin[k] - chunk.mean[k];
        chunk.m2[k] = fmaf(deviation, deviation, chunk.m2[k]);
      }
    }
    moments.merge(chunk);
  }

  Moments<1>* scratch = reinterpret_cast<Moments<1>*>(shared_memory());
  const Moments<1> tile = reduce_rows(moments, tiling.lanes, scratch);
  const int thread = threadIdx.x;
  const int64_t channel = walk.block_channel + thread;
  if (thread < tiling.lanes * K && channel < args.shape.channels) {
    float2* partials = static_cast<float2*>(args.workspace);
    partials[walk.partial_index(channel)] = make_float2(tile.mean[0], tile.m2[0]);
    if (walk.tile == 0) {
      const float first = tiling.group_items > 0 ? to_float(x[walk.origin(channel)]) : 0.f;
      per_group(args, tiling)[walk.group_index(channel)].x = first;
    }
  }
}

// The numbers of one channel in a tile, and in a group.
__device__ inline double tile_count(const Tiling& tiling, int64_t tile) {
  const int64_t rest = tiling.group_items - tile * tiling.tile_items;
  return static_cast<double>(min(rest, tiling.tile_items) * tiling.values_per_item);
}

__device__ inline double group_count(const Tiling& tiling) {
  return static_cast<double>(tiling.group_items * tiling.values_per_item);
}

// What the finalise kernel combines: moments by tiles, of this op's own pass over x or of the convolution's.
struct TileMoments {
  const float2* at;      // [G, tiles, C]: (mean, sum of squared deviations)
  const float* counts;   // [G, tiles]; null: as the tiling says
  const float2* origin;  // [G, C]: what the means are relative to, in x; null: zero
  int64_t tiles;         // of a group

  __device__ double count(const Tiling& tiling, int64_t group, int64_t tile) const {
    return counts ? static_cast<double>(counts[group * tiles + tile]) : tile_count(tiling, tile);
  }
};

// Forward 2, training: combines the tiles, writes mean and rstd, updates the running statistics group
// after group. Reads 16 bytes a channel and tile, half of them again from the L1 cache.
//
// Chan's rule for all tiles at once: the mean of means, then the deviations of tiles from it. In
// double, since it is little work, needs no division a tile, and rounds only once at the end.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    bn_act_finalise(const BnActForward args, const Tiling tiling, const TileMoments moments) {
  using Sum = Sums<double, 1, 1>;
  const int lane = threadIdx.x % kFinaliseLanes, row = threadIdx.x / kFinaliseLanes;
  constexpr int kRows = kThreads / kFinaliseLanes;
  const int64_t channels = args.shape.channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kFinaliseLanes + lane;
  const int64_t tiles = channel < channels ? moments.tiles : 0;
  const double count = group_count(tiling);
  double* means = reinterpret_cast<double*>(shared_memory());  // [kFinaliseLanes]
  Sum* scratch = reinterpret_cast<Sum*>(means + kFinaliseLanes);

  for (int64_t group = 0; group < args.shape.stat_groups; group++) {
    const float2* partials = moments.at + group * moments.tiles * channels + channel;
    Sum sum;
    for (int64_t tile = row; tile < tiles; tile += kRows)
      sum.at[0][0] += moments.count(tiling, group, tile) * partials[tile * channels].x;
    const double total = reduce_rows(sum, kFinaliseLanes, scratch).at[0][0];
    if (threadIdx.x < kFinaliseLanes) means[lane] = count > 0 ? total / count : 0.;
    __syncthreads();

    const double relative_mean = means[lane];
    Sum m2;
    for (int64_t tile = row; tile < tiles; tile += kRows) {
      const float2 partial = partials[tile * channels];
      const double delta = partial.x - relative_mean;
      m2.at[0][0] += partial.y + moments.count(tiling, group, tile) * delta * delta;
    }
    const double total_m2 = reduce_rows(m2, kFinaliseLanes, scratch).at[0][0];
    if (threadIdx.x < kFinaliseLanes && channel < channels) {
      const int64_t index = group * channels + channel;
      const double mean = (moments.origin ? moments.origin[index].x : 0.) + relative_mean;
      const double variance = count > 0 ? total_m2 / count : 0.;
      args.mean[index] = static_cast<float>(mean);
      const double spread = variance + args.eps;  // of a constant channel without eps: 0, as PyTorch has it
      args.rstd[index] = spread > 0. ? static_cast<float>(1. / sqrt(spread)) : spread == 0. ? 0.f : NAN;
      if (args.running_mean && count > 0) {
        const DType dtype = args.shape.param_dtype;
        const auto update = [&](void* running, double value) {
          const double old = load_parameter(running, channel, dtype);
          const double mixed = (1. - args.momentum) * old + args.momentum * value;
          store_parameter(running, channel, dtype, static_cast<float>(mixed));
        };
        update(args.running_mean, mean);
        update(args.running_var, total_m2 / (count - 1.));
      }
    }
    __syncthreads();  // the next group writes `scratch` and `means` again
  }
}

// Forward 3, or all of it in eval mode: y = act((x - mean) * scale + bias). 2 E b bytes.
//
// Each thread keeps its channels' numbers in registers; the block computes them once. In eval mode the
// first tile also leaves mean and rstd for the backward pass.
template <typename T, int V, bool kChannelsLast, bool kSmooth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) bn_act_apply(const BnActForward args, const Tiling tiling) {
  using Thread = Walk<V, kChannelsLast>;
  constexpr int K = Thread::K;
  constexpr int U = kSmooth ? kUnrollSmooth : kUnroll;
  Thread walk(args.shape, tiling);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);

  const int columns = tiling.lanes * K, thread = threadIdx.x;
  float* table = reinterpret_cast<float*>(shared_memory());  // [kAffineRows, columns]
  const int64_t channel = walk.block_channel + thread;
  if (thread < columns && channel < args.shape.channels) {
    const DType dtype = args.shape.param_dtype;
    const int64_t index = walk.group_index(channel);
    float mean, rstd;
    if (args.training) {
      mean = args.mean[index];
      rstd = args.rstd[index];
    } else {
      mean = load_parameter(args.running_mean, channel, dtype);
      const float variance = load_parameter(args.running_var, channel, dtype);
      rstd = 1.f / sqrtf(variance + static_cast<float>(args.eps));
      if (walk.tile == 0 && args.mean) args.mean[index] = mean;
      if (walk.tile == 0 && args.rstd) args.rstd[index] = rstd;
    }
    put_affine(table, columns, thread, mean, rstd, args.weight, args.bias, channel, dtype);
  }
  __syncthreads();
  const Affine<K> affine = take_affine<K>(table, columns, walk.lane);

  const Activate<kSmooth> activate(args.activation, args.negative_slope);
  while (!walk.done()) {
    const Batch<U> batch = walk.template take<U>();
    Vec<T, V> values[U];
    load_items(values, x, batch);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (u >= batch.count) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int k = Thread::own(i);
        const float centred = to_float(values[u].at[i]) - affine.mean[k];
        values[u].at[i] = from_float<T>(activate(affine(centred, k)));
      }
      store(y + batch.offsets[u], values[u]);
    }
  }
}

// Backward 1: with dz the gradient before the activation, (sum of dz, sum of dz * (x - mean)) of each
// channel in each tile -> workspace [G, tiles, C]. Reads dy and x: 2 E b bytes.
template <typename T, int V, bool kChannelsLast, bool kSmooth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    bn_act_backward_sums(const BnActBackward args, const Tiling tiling) {
  using Thread = Walk<V, kChannelsLast>;
  constexpr int K = Thread::K;
  constexpr int U = kSmooth ? kUnrollSmooth : kUnrollTwoInputs;
  using Pair = Sums<float, 2, 1>;
  Thread walk(args.shape, tiling);
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);

  const int columns = tiling.lanes * K, thread = threadIdx.x;
  float* table = reinterpret_cast<float*>(shared_memory());  // [kAffineRows, columns]
  Pair* scratch = reinterpret_cast<Pair*>(table + kAffineRows * columns);
  const int64_t channel = walk.block_channel + thread;
  const bool responsible = thread < columns && channel < args.shape.channels;
  if (responsible) {
    const int64_t index = walk.group_index(channel);
    put_affine(table, columns, thread, args.mean[index], args.rstd[index], args.weight, args.bias, channel,
               args.shape.param_dtype);
  }
  __syncthreads();
  const Affine<K> affine = take_affine<K>(table, columns, walk.lane);

  const Activate<kSmooth> activate(args.activation, args.negative_slope);
  Sums<float, 2, K> sums;
  while (!walk.done()) {
    const Batch<U> batch = walk.template take<U>();
    Vec<T, V> inputs[U], grads[U];
    load_items(inputs, x, batch);
    load_items(grads, dy, batch);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (u >= batch.count) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int k = Thread::own(i);
        const float centred = to_float(inputs[u].at[i]) - affine.mean[k];
        const float dz = activate.backward(affine(centred, k), to_float(grads[u].at[i]));
        sums.at[k][0] += dz;
        sums.at[k][1] = fmaf(dz, centred, sums.at[k][1]);
      }
    }
  }

  const Pair total = reduce_rows(sums, tiling.lanes, scratch);
  if (responsible) {
    float2* partials = static_cast<float2*>(args.workspace);
    partials[walk.partial_index(channel)] = make_float2(total.at[0][0], total.at[0][1]);
  }
}

// What the next kernel combines: sums of this op's own pass over dy and x, or of the convolution that made dy.
struct TileSums {
  const float2* at;  // [G, tiles, C]: of dz, of dz * (x - mean)
  int64_t tiles;     // of a group
};

// Backward 2: combines the tiles; writes dweight and dbias, and for each group and channel what the
// next pass takes off dz: its mean, and its slope against x - mean. Reads 8 bytes a channel and tile.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    bn_act_backward_finalise(const BnActBackward args, const Tiling tiling, const TileSums given) {
  using Pair = Sums<double, 2, 1>;
  const int lane = threadIdx.x % kFinaliseLanes, row = threadIdx.x / kFinaliseLanes;
  constexpr int kRows = kThreads / kFinaliseLanes;
  const int64_t channels = args.shape.channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kFinaliseLanes + lane;
  const bool exists = channel < channels;
  const bool responsible = threadIdx.x < kFinaliseLanes && exists;
  const double count = group_count(tiling);
  Pair* scratch = reinterpret_cast<Pair*>(shared_memory());
  float2* coefficients = per_group(args, tiling);

  double dweight = 0., dbias = 0.;
  for (int64_t group = 0; group < args.shape.stat_groups; group++) {
    const float2* partials = given.at + group * given.tiles * channels + channel;
    Pair sums;
    for (int64_t tile = row; exists && tile < given.tiles; tile += kRows) {
      const float2 partial = partials[tile * channels];
      sums.at[0][0] += partial.x;
      sums.at[0][1] += partial.y;
    }
    const Pair total = reduce_rows(sums, kFinaliseLanes, scratch);
    if (responsible) {
      const int64_t index = group * channels + channel;
      const double rstd = args.rstd[index];
      const double sum_dz = total.at[0][0], sum_dz_normalised = total.at[0][1] * rstd;
      dbias += sum_dz;
      dweight += sum_dz_normalised;
      coefficients[index] =
          make_float2(static_cast<float>(sum_dz / count), static_cast<float>(sum_dz_normalised * rstd / count));
    }
    __syncthreads();  // the next group writes `scratch` again
  }
  if (responsible) {
    const DType dtype = args.shape.param_dtype;
    if (args.dweight) store_parameter(args.dweight, channel, dtype, static_cast<float>(dweight));
    if (args.dbias) store_parameter(args.dbias, channel, dtype, static_cast<float>(dbias));
  }
}

// Backward 3: dx = scale * (dz - mean of dz - slope * (x - mean)); in eval mode, where mean and rstd
// do not depend on x, dx = scale * dz. Reads dy and x, writes dx: 3 E b bytes.
template <typename T, int V, bool kChannelsLast, bool kSmooth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    bn_act_backward_apply(const BnActBackward args, const Tiling tiling, const Tiling sums_tiling) {
  using Thread = Walk<V, kChannelsLast>;
  constexpr int K = Thread::K;
  constexpr int U = kSmooth ? kUnrollSmooth : kUnrollTwoInputs;
  Thread walk(args.shape, tiling);
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);

  const int columns = tiling.lanes * K, thread = threadIdx.x;
  float* table = reinterpret_cast<float*>(shared_memory());  // [kBackwardApplyRows, columns]
  float* dz_means = table + kAffineRows * columns;
  float* dz_slopes = dz_means + columns;
  const int64_t channel = walk.block_channel + thread;
  if (thread < columns && channel < args.shape.channels) {
    const int64_t index = walk.group_index(channel);
    put_affine(table, columns, thread, args.mean[index], args.rstd[index], args.weight, args.bias, channel,
               args.shape.param_dtype);
    if (args.training) {
      const float2 off = per_group(args, sums_tiling)[index];
      dz_means[thread] = off.x;
      dz_slopes[thread] = off.y;
    }
  }
  __syncthreads();
  const Affine<K> affine = take_affine<K>(table, columns, walk.lane);
  float dz_mean[K], dz_slope[K];
  take_own(dz_mean, dz_means, walk.lane);
  take_own(dz_slope, dz_slopes, walk.lane);

  const Activate<kSmooth> activate(args.activation, args.negative_slope);
  while (!walk.done()) {
    const Batch<U> batch = walk.template take<U>();
    Vec<T, V> inputs[U], grads[U];
    load_items(inputs, x, batch);
    load_items(grads, dy, batch);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (u >= batch.count) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        const int k = Thread::own(i);
        const float centred = to_float(inputs[u].at[i]) - affine.mean[k];
        float dz = activate.backward(affine(centred, k), to_float(grads[u].at[i]));
        if (args.training) dz = fmaf(-centred, dz_slope[k], dz - dz_mean[k]);
        grads[u].at[i] = from_float<T>(affine.scale[k] * dz);
      }
      store(dx + batch.offsets[u], grads[u]);
    }
  }
}

}  // namespace dcgan_fast::cuda
