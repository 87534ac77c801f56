// Biases of patterns of rows and columns + activation: the kernels. plane_bias_act.h has the arguments.
//
// Bound by memory, or by the launch: of E elements of b bytes forward moves 2 E b, backward 3 E b, and E b where there
// is no activation. That over the copy bandwidth is the floor: for 128 x 64 x 14 x 14 in bfloat16 6.4 and 9.6 MB, 1.5
// and 2.2 us on an H200, less than what the launches of PyTorch's dozen ops cost. Biases and their gradients are R S /
// (H W) of the map, 5 to 13% there.
//
// A block has a *tile*: some rows of one image in some of its channels, or several small images; in memory order, so
// that all accesses are wide whatever the pattern. [N, C, H, W] are N C images of one channel. Backward leaves the
// gradients of a tile in shared memory, float32, and adds them up there, first the rows of each pattern, then its
// columns: 8 bytes of traffic an element where an SM moves 128 a clock, several times its share of the memory's
// bandwidth. Were blocks to take pixels by patterns instead, most would have a corner or an edge and nothing to do;
// were the sums kept in registers, each thread would need R S of them for each of its channels.
#pragma once

#include "activation.cuh"
#include "plane_bias_act.h"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

constexpr int kTileElements = 8192;   // at most: 32 KB of gradients in shared memory
constexpr int kTileRows = 256;        // at most: each is compared with all when they are sorted
constexpr int kPlaneBlocksPerSm = 4;  // hence at most 64 registers a thread
constexpr int kPlaneUnroll = 2;       // items that a thread loads before it uses the first

struct PlaneTiling {
  int64_t images;  // of the maps: N channels last, N C in planes
  int inner;       // channels of a pixel: C channels last, 1 in planes
  int group;       // images of a tile; more than 1 of whole ones alone
  int rows;        // of a tile; the last one of an image may have fewer
  int row_tiles;   // of an image
  int chunk;       // channels of a tile; the last one of a pixel may have fewer
  int chunks;      // of a pixel

  __host__ __device__ int64_t blocks() const { return (images + group - 1) / group * row_tiles * chunks; }
};

// Of an image.
__host__ __device__ inline int64_t bias_count(const PlaneMaps& maps, const PlaneTiling& tiling) {
  return maps.row_patterns * maps.column_patterns * tiling.inner;
}

// Where an element of a tile lies, of [images, rows, width, chunk].
struct PlaneSpot {
  int image, row, column, channel;
};

struct PlaneTile {
  int64_t first_image;
  int row_tile, first_channel;
  int images, rows, channels;  // of this tile
  int elements;                // with those of channels beyond the last
  int64_t offset;              // of its first element in the maps

  __device__ PlaneTile(const PlaneMaps& maps, const PlaneTiling& tiling) : maps(maps), tiling(tiling) {
    const unsigned chunks = tiling.chunks, row_tiles = tiling.row_tiles, rest = blockIdx.x / chunks;
    first_channel = static_cast<int>(blockIdx.x % chunks) * tiling.chunk;
    row_tile = static_cast<int>(rest % row_tiles);
    first_image = static_cast<int64_t>(rest / row_tiles) * tiling.group;
    images = static_cast<int>(min(tiling.images - first_image, static_cast<int64_t>(tiling.group)));
    const int64_t first_row = static_cast<int64_t>(row_tile) * tiling.rows;
    rows = static_cast<int>(min(maps.height - first_row, static_cast<int64_t>(tiling.rows)));
    channels = min(tiling.inner - first_channel, tiling.chunk);
    elements = images * rows * static_cast<int>(maps.width) * tiling.chunk;
    offset = (first_image * maps.height + first_row) * maps.width * tiling.inner + first_channel;
  }

  __device__ PlaneSpot spot(int element) const {
    const unsigned chunk = tiling.chunk, width = static_cast<unsigned>(maps.width);
    const unsigned pixel = element / chunk, line = pixel / width, lines = rows;
    const unsigned image = images > 1 ? line / lines : 0;
    return {static_cast<int>(image), static_cast<int>(line - image * lines), static_cast<int>(pixel - line * width),
            static_cast<int>(element - pixel * chunk)};
  }

  // To the next element of an image, in a tile that has all channels; from the last one to none that is wanted.
  __device__ void advance(PlaneSpot& at) const {
    if (++at.channel < tiling.inner) return;
    at.channel = 0;
    if (++at.column < maps.width) return;
    at.column = 0;
    at.row = min(at.row + 1, rows - 1);
  }

  // In the maps, from `offset`; -1: beyond the tile or its channels.
  __device__ int64_t place(int element) const {
    if (element >= elements) return -1;
    if (tiling.chunks == 1) return element;
    const unsigned chunk = tiling.chunk, pixel = element / chunk;
    const int channel = static_cast<int>(element - pixel * chunk);
    return channel < channels ? static_cast<int64_t>(pixel) * tiling.inner + channel : -1;
  }

  const PlaneMaps& maps;
  const PlaneTiling& tiling;
};

// The patterns of the pixels of one axis in shared memory, -1 for one that does not exist.
__device__ inline void take_patterns(int* own, const int64_t* of_pixels, int pixels, int64_t patterns) {
  for (int i = threadIdx.x; i < pixels; i += kThreads) {
    const int64_t pattern = of_pixels[i];
    own[i] = pattern >= 0 && pattern < patterns ? static_cast<int>(pattern) : -1;
  }
}

// activation(input + bias). 2 E b bytes. An item is V neighbouring elements: channels of one pixel, or those of several
// where pixels have fewer (kAcross).
template <typename T, int V, bool kAcross, bool kSmooth>
__global__ void __launch_bounds__(kThreads, kPlaneBlocksPerSm)
    plane_bias_act_forward(const PlaneBiasActForward args, const PlaneTiling tiling) {
  constexpr int U = kSmooth || kAcross ? 1 : kPlaneUnroll;
  const PlaneTile tile(args.maps, tiling);
  const int width = static_cast<int>(args.maps.width), column_patterns = static_cast<int>(args.maps.column_patterns);
  int* const rows = reinterpret_cast<int*>(shared_memory());
  int* const columns = rows + tiling.rows;
  take_patterns(rows, args.maps.rows + static_cast<int64_t>(tile.row_tile) * tiling.rows, tile.rows,
                args.maps.row_patterns);
  take_patterns(columns, args.maps.columns, width, args.maps.column_patterns);
  __syncthreads();

  const T* const input = static_cast<const T*>(args.input) + tile.offset;
  T* const output = static_cast<T*>(args.output) + tile.offset;
  const int64_t biases = bias_count(args.maps, tiling);
  const float* const bias = args.bias + tile.first_image * biases + tile.first_channel;
  // Those of an element and of its neighbours; null where there are none.
  const auto bias_of = [&](const PlaneSpot& at) -> const float* {
    const int row = rows[at.row], column = columns[at.column];
    const int pattern = row * column_patterns + column;
    const float* const of_image = bias + at.image * biases;
    return row < 0 || column < 0 ? nullptr : of_image + static_cast<int64_t>(pattern) * tiling.inner + at.channel;
  };
  const Activate<kSmooth> activate(args.activation, args.negative_slope);
  for (int first = threadIdx.x * V; first < tile.elements; first += U * kThreads * V) {
    Vec<T, V> values[U];
    int64_t places[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
      places[u] = tile.place(first + u * kThreads * V);
      if (places[u] >= 0) values[u] = load<V>(input + places[u]);
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (places[u] < 0) continue;
      PlaneSpot at = tile.spot(first + u * kThreads * V);
      float added[V];
      if constexpr (kAcross) {
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float* const own = bias_of(at);
          added[i] = own ? *own : NAN;
          tile.advance(at);
        }
      } else {
        constexpr int N = V % 4 == 0 ? 4 : 1;
        const float* const own = bias_of(at);
#pragma unroll
        for (int i = 0; i < V; i += N) {
          const Vec<float, N> some = own ? load<N>(own + i) : Vec<float, N>{};
#pragma unroll
          for (int j = 0; j < N; j++) added[i + j] = own ? some.at[j] : NAN;
        }
      }
#pragma unroll
      for (int i = 0; i < V; i++) values[u].at[i] = from_float<T>(activate(to_float(values[u].at[i]) + added[i]));
      store(output + places[u], values[u]);
    }
  }
}

// dy * activation', from the activation's result y.
template <bool kSmooth>
__device__ float grad_of_result(const Activate<kSmooth>& activate, float y, float dy) {
  if constexpr (kSmooth) return dy * (activate.is_tanh ? 1.f - y * y : y * (1.f - y));
  if constexpr (!kSmooth) return activate.backward(y, dy);
}

// The pixels of one axis by their patterns, in shared memory.
struct SortedPatterns {
  int *of_pixels, *order, *begin;  // [pixels], [pixels]: the first of `begin[0]` have no pattern, [patterns + 1]
  int pixels, patterns;

  __host__ __device__ static int words(int pixels, int64_t patterns) {
    return 2 * pixels + static_cast<int>(patterns) + 1;
  }

  __device__ SortedPatterns(int* words, int pixels, int64_t patterns)
      : of_pixels(words),
        order(words + pixels),
        begin(words + 2 * pixels),
        pixels(pixels),
        patterns(static_cast<int>(patterns)) {}

  // After take_patterns(of_pixels) and a barrier; another one comes before the first use.
  __device__ void sort() {
    for (int i = threadIdx.x; i < pixels; i += kThreads) {
      const int own = of_pixels[i];
      int before = 0;
      for (int j = 0; j < pixels; j++) before += of_pixels[j] < own || (of_pixels[j] == own && j < i);
      order[before] = i;
    }
    for (int p = threadIdx.x; p <= patterns; p += kThreads) {
      int before = 0;
      for (int j = 0; j < pixels; j++) before += of_pixels[j] < p;
      begin[p] = before;
    }
  }

  // The sum of the pixels of a pattern, `stride` apart from `from`, in order; 0 of none.
  __device__ float sum(int pattern, const float* from, int stride) const {
    float total = 0.f;
    for (int i = begin[pattern]; i < begin[pattern + 1]; i++) total += from[order[i] * stride];
    return total;
  }

  __device__ bool has(int pattern) const { return begin[pattern] < begin[pattern + 1]; }
  __device__ int first(int pattern) const { return order[begin[pattern]]; }
};

// The gradients of the input, and of the biases in each tile. 3 E b bytes, or E b.
template <typename T, int V, bool kSmooth>
__global__ void __launch_bounds__(kThreads, kPlaneBlocksPerSm)
    plane_bias_act_backward(const PlaneBiasActBackward args, const PlaneTiling tiling, float* const sums) {
  constexpr int U = kPlaneUnroll;
  const PlaneTile tile(args.maps, tiling);
  const int width = static_cast<int>(args.maps.width);
  float* const gradients = reinterpret_cast<float*>(shared_memory());  // [images, rows, width, chunk] of a tile
  const int room = tiling.group * tiling.rows * width * tiling.chunk;
  int* const words = reinterpret_cast<int*>(gradients + (room + 3) / 4 * 4);
  SortedPatterns rows(words, tile.rows, args.maps.row_patterns);
  SortedPatterns columns(words + SortedPatterns::words(tiling.rows, args.maps.row_patterns), width,
                         args.maps.column_patterns);
  if (sums) {
    take_patterns(rows.of_pixels, args.maps.rows + static_cast<int64_t>(tile.row_tile) * tiling.rows, tile.rows,
                  args.maps.row_patterns);
    take_patterns(columns.of_pixels, args.maps.columns, width, args.maps.column_patterns);
  }

  const T* const grad = static_cast<const T*>(args.grad) + tile.offset;
  const bool changes = args.activation != Activation::none;
  const T* const output = changes ? static_cast<const T*>(args.output) + tile.offset : nullptr;
  T* const grad_input = args.grad_input ? static_cast<T*>(args.grad_input) + tile.offset : nullptr;
  const Activate<kSmooth> activate(args.activation, args.negative_slope);
  for (int first = threadIdx.x * V; first < tile.elements; first += U * kThreads * V) {
    Vec<T, V> grads[U], results[U];
    int64_t places[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
      places[u] = tile.place(first + u * kThreads * V);
      if (places[u] < 0) continue;
      grads[u] = load<V>(grad + places[u]);
      results[u] = output ? load<V>(output + places[u]) : grads[u];
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (places[u] < 0) continue;
      constexpr int N = V % 4 == 0 ? 4 : 1;
#pragma unroll
      for (int i = 0; i < V; i += N) {
        Vec<float, N> some;
#pragma unroll
        for (int j = 0; j < N; j++) {
          some.at[j] = grad_of_result(activate, to_float(results[u].at[i + j]), to_float(grads[u].at[i + j]));
          grads[u].at[i + j] = from_float<T>(some.at[j]);
        }
        if (sums) store(gradients + first + u * kThreads * V + i, some);
      }
      if (grad_input) store(grad_input + places[u], grads[u]);
    }
  }
  if (!sums) return;

  __syncthreads();  // patterns and gradients are there
  rows.sort();
  columns.sort();
  __syncthreads();  // patterns are sorted

  // The rows of each pattern, into the first of them.
  const int line = width * tiling.chunk;
  for (int i = threadIdx.x; i < tile.images * line; i += kThreads) {
    const int image = tile.images > 1 ? i / line : 0;
    float* const own = gradients + image * tile.rows * line + (i - image * line);
    for (int r = 0; r < rows.patterns; r++) {
      if (rows.has(r)) own[rows.first(r) * line] = rows.sum(r, own, line);
    }
  }
  __syncthreads();  // rows are added up

  // The columns of each pattern, in the order of biases.
  const int chunk = tiling.chunk, of_image = rows.patterns * columns.patterns * chunk;
  const int64_t biases = bias_count(args.maps, tiling);
  for (int i = threadIdx.x; i < tile.images * of_image; i += kThreads) {
    const int channel = i % chunk, pattern = i / chunk % (rows.patterns * columns.patterns), image = i / of_image;
    if (channel >= tile.channels) continue;
    const int r = pattern / columns.patterns;
    float total = 0.f;
    if (rows.has(r)) {
      const float* const of_row = gradients + (image * tile.rows + rows.first(r)) * line + channel;
      total = columns.sum(pattern % columns.patterns, of_row, chunk);
    }
    float* const to = sums + ((tile.first_image + image) * tiling.row_tiles + tile.row_tile) * biases;
    to[static_cast<int64_t>(pattern) * tiling.inner + tile.first_channel + channel] = total;
  }
}

// Adds the tiles of each image, [images, row_tiles, biases] -> [images, biases], in order.
__global__ void __launch_bounds__(kThreads)
    plane_bias_act_finalise(const float* sums, float* grad_bias, int64_t images, int64_t biases, int row_tiles) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= images * biases) return;
  const float* const from = sums + i / biases * row_tiles * biases + i % biases;
  float total = 0.f;
  for (int tile = 0; tile < row_tiles; tile++) total += from[tile * biases];
  grad_bias[i] = total;
}

}  // namespace dcgan_fast::cuda
