// The weight gradient of a convolution between images and maps.
//
//     rows      64 coarse channels
//     columns   48 taps and fine channels in one, in the order of the weight
//     depth     coarse pixels, in runs (image_patch.cuh)
// The tiles are one or a few and the depth is all there is, so blocks share the runs, and a block's warps the pixels of
// each: a warp has the whole tile in its registers, and loads no fragment that another loads. The warps are added in
// shared memory, the blocks by conv_image_weight_grad_sum(), both in an order that the shape decides.
// Fragments of B take two pixels to a register, which lie apart in the patch: with 16-bit elements two loads and a
// permutation.
//
// Per run of 128 pixels, 3 to 64 channels through 4 x 4 taps at stride 2, bfloat16 (batch 128 at 64 x 64: 7.8 runs for
// each of 132 SMs, maps of 20 MB, which take 4.7 us or 1060 cycles a run at 4.3 TB/s and 1.75 GHz; 1510 at 70%):
//     memory         16 KB and 4 KB read
//     products       8 slices of 16 pixels x 4 x 6 mma = 192: 384 cycles or less
//     shared memory  passes: A 8 x 4 x 4 = 128, B 8 x 24 = 192, what is copied 160: 480
//     instructions   8 x 138 = 1100 for the product, 4 x 340 for copies and places: 2450, 610 cycles at four a cycle
// So bandwidth decides. What comes after does not shrink with it: a block's warps are added (1 us), its 12 KB of sums
// are 3 MB of all blocks, which the second launch reads from the L2 cache and adds (1 to 2 us and a launch): a third of
// the time at batch 128, and less the larger the batch.
#pragma once

#include "image_patch.cuh"

namespace dcgan_fast::cuda {

constexpr int kImageGradWarps = 4, kImageGradStages = 3;
using ImageGradTile = BlockShape<64, 48, 64, 48>;  // of a block, and of each of its warps

struct ImageGradLaunch {
  ImagePatch patch;
  int coarse_channels;
  int row_tiles, column_tiles;
  int runs, parts;  // of all images; blocks that share them, none for an empty batch
  const void *fine, *coarse;
  void* grad;
  float* partials;  // [tile, part][a warp's accumulators]

  __host__ __device__ int tiles() const { return row_tiles * column_tiles; }
  __host__ __device__ int columns() const { return patch.y.kernel * patch.kernel_row(); }
};

// How the block's shared memory is cut: stages of coarse pixels' channels, patch and places. The coarse pixels are a
// tile of matrix.cuh for each warp.
struct ImageGradMemory {
  static constexpr int kCoarse = kImageGradWarps * ImageGradTile::kRows * kStageDepthBytes;
  int patches, places, columns, bytes;  // bytes from the beginning; of all

  __host__ __device__ ImageGradMemory(const ImageGradLaunch& launch) {
    patches = kImageGradStages * kCoarse;
    places = patches + kImageGradStages * launch.patch.bytes();
    columns = places + kImageGradStages * launch.patch.run * static_cast<int>(sizeof(int));
    bytes = columns + (ImageGradTile::kColumns + 4) * static_cast<int>(sizeof(int));  // after the columns, zeros
  }
};

// Columns of a tile, and pixels from one on, in the shape that steps load fragments of B from.
template <typename T_>
struct ImageColumns {
  using T = T_;
  static constexpr bool kAlongK = false;
  static constexpr int kElements = 4 / sizeof(T);  // of a word
  const int* places;                               // of the pixels
  int pixels;                                      // that exist
  const int* columns;                              // their taps' places
  const float* zero;
  int own[ImageGradTile::kFragmentsAcross];  // those of column g of each fragment

  __device__ const float* at(int i, int k) const {
    const void* element = shared_memory() + places[k] + columns[i];
    return k < pixels ? static_cast<const float*>(element) : zero;
  }
};

template <typename T>
__device__ void load_fragments_b(uint32_t (&left)[2], uint32_t (&right)[2], const ImageColumns<T>& tile, int column,
                                 int) {
  constexpr int kElements = ImageColumns<T>::kElements;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int pixel = (threadIdx.x % 4 + 4 * r) * kElements;
    const auto pair = ptx::load_shared<Vec<int, kElements>>(tile.places + pixel);
    const uint32_t keep = keep_elements<T>(tile.pixels - pixel);
    const int first = pair.at[0], second = pair.at[kElements - 1];
    const int own_left = tile.own[column / 8], own_right = tile.own[column / 8 + 1];
    left[r] = load_word<T>(first + own_left, second + own_left, keep);
    right[r] = load_word<T>(first + own_right, second + own_right, keep);
  }
}

// Adds the warps' sums to those of the first, by halves.
__device__ inline void add_warps(Accumulators<ImageGradTile>& sums) {
  constexpr int kAcross = ImageGradTile::kFragmentsAcross, kFragments = ImageGradTile::kFragmentsDown * kAcross;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float* const shared = reinterpret_cast<float*>(shared_memory());
  for (int half = kImageGradWarps / 2; half >= 1; half /= 2) {
    float* const other = shared + (warp % half * kFragments * kWarpSize + lane) * 4;
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int f = 0; f < kFragments; f++) {
        const float (&four)[4] = sums.at[f / kAcross][f % kAcross];
        store(other + f * kWarpSize * 4, Vec<float, 4>{{four[0], four[1], four[2], four[3]}});
      }
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int f = 0; f < kFragments; f++) {
        const auto four = load<4>(static_cast<const float*>(other) + f * kWarpSize * 4);
#pragma unroll
        for (int e = 0; e < 4; e++) sums.at[f / kAcross][f % kAcross][e] += four.at[e];
      }
    }
    __syncthreads();
  }
}

template <class Step>
__global__ void __launch_bounds__(kImageGradWarps* kWarpSize, 2) conv_image_weight_grad(const ImageGradLaunch launch) {
  using T = typename Step::T;
  using Shape = ImageGradTile;
  using Coarse = SharedTile<T, Shape::kRows, false>;
  constexpr int kThreads = kImageGradWarps * kWarpSize;
  const ImagePatch& patch = launch.patch;
  const ImageGradMemory memory(launch);
  unsigned char* const shared = shared_memory();
  int* const places = reinterpret_cast<int*>(shared + memory.places);
  int* const columns = reinterpret_cast<int*>(shared + memory.columns);
  const int tile = blockIdx.x % launch.tiles(), part = blockIdx.x / launch.tiles();
  const int first_column = tile % launch.column_tiles * Shape::kColumns;
  const int first_row = tile / launch.column_tiles * Shape::kRows;
  const int first_run = static_cast<int>(static_cast<int64_t>(part) * launch.runs / launch.parts);
  const int end = static_cast<int>((static_cast<int64_t>(part) + 1) * launch.runs / launch.parts);
  const int own_columns = min(launch.columns() - first_column, Shape::kColumns);

  clear_patches(shared + memory.patches, kImageGradStages * patch.bytes());
  for (int i = threadIdx.x; i < Shape::kColumns + 4; i += kThreads) {
    const int row = (first_column + i) / patch.kernel_row(), element = first_column + i - row * patch.kernel_row();
    columns[i] = i < own_columns ? row * patch.pitch + element * static_cast<int>(sizeof(T)) : 0;
  }
  __syncthreads();

  const Share<Coarse, kThreads> lines;
  const int channel = first_row + lines.element();
  const T* const coarse = static_cast<const T*>(launch.coarse);
  const T* const fine = static_cast<const T*>(launch.fine);
  const auto start = [&](int number) {
    if (number < end) {
      const int which = number % kImageGradStages, origin = memory.patches + which * patch.bytes();
      const ImageRun run(patch, number);
      const int64_t first_pixel = static_cast<int64_t>(run.image) * patch.y.output * patch.x.output + run.first;
      const T* from = coarse + (first_pixel + lines.first) * launch.coarse_channels + channel;
#pragma unroll
      for (int i = 0; i < kImageGradWarps * lines.kLines; i++, from += lines.kLinesApart * launch.coarse_channels) {
        const int line = lines.line(i % lines.kLines), of_warp = i / lines.kLines;
        const Coarse to{shared + which * ImageGradMemory::kCoarse + of_warp * Coarse::kBytes};
        const bool valid = of_warp * Coarse::kDepth + line < run.pixels && channel < launch.coarse_channels;
        ptx::cp_async_16(to.chunk(line, lines.chunk), valid ? from : coarse, valid);
      }
      fill_patch<T, kThreads>(patch, run, fine, shared + origin, places + which * patch.run, origin);
    }
    ptx::cp_async_commit();  // an empty group too: the waits count groups
  };

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  ImageColumns<T> taps;
  taps.columns = columns;
  taps.zero = reinterpret_cast<const float*>(columns + Shape::kColumns);
#pragma unroll
  for (int j = 0; j < Shape::kFragmentsAcross; j++) taps.own[j] = columns[8 * j + lane / 4];
  Accumulators<Shape> sums;
  for (int i = 0; i < kImageGradStages - 1; i++) start(first_run + i);
  for (int number = first_run; number < end; number++) {
    ptx::cp_async_wait<kImageGradStages - 2>();
    __syncthreads();  // all have this run, and have done with the one before
    start(number + kImageGradStages - 1);
    const int which = number % kImageGradStages, first_pixel = warp * Coarse::kDepth;
    const Coarse a{shared + which * ImageGradMemory::kCoarse + warp * Coarse::kBytes};
    const int pixels = ImageRun(patch, number).pixels - first_pixel;
#pragma unroll 1
    for (int k = 0; k < min(Coarse::kDepth, pixels); k += Step::kDepth) {
      taps.places = places + which * patch.run + first_pixel + k;
      taps.pixels = pixels - k;
      typename Step::A down[Shape::kFragmentsDown];
#pragma unroll
      for (int i = 0; i < Shape::kFragmentsDown; i++) Step::load_a(down[i], a, 16 * i, k);
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsAcross; j += 2) {
        if (8 * j >= own_columns) break;
        typename Step::B left, right;
        Step::load_b(left, right, taps, 8 * j, 0);
#pragma unroll
        for (int i = 0; i < Shape::kFragmentsDown; i++) {
          Step::multiply(sums.at[i][j], down[i], left);
          Step::multiply(sums.at[i][j + 1], down[i], right);
        }
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // shared memory is free
  add_warps(sums);
  if (warp == 0) put_aside(sums, launch.partials, static_cast<int64_t>(tile) * launch.parts + part);
}

// Adds the parts: a block those of one fragment of a tile, a warp a share of the parts, then the warps in turn.
constexpr int kImageSumWarps = 16;

template <typename T>
__global__ void __launch_bounds__(kImageSumWarps* kWarpSize) conv_image_weight_grad_sum(const ImageGradLaunch launch) {
  using Shape = ImageGradTile;
  constexpr int kFragments = Shape::kFragmentsDown * Shape::kFragmentsAcross;
  const int fragment = blockIdx.x % kFragments, tile = blockIdx.x / kFragments;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const float* const partials =
      launch.partials + ((static_cast<int64_t>(tile) * launch.parts * kFragments + fragment) * kWarpSize + lane) * 4;
  float sum[4] = {};
  const int end = (warp + 1) * launch.parts / kImageSumWarps;
#pragma unroll 8
  for (int part = warp * launch.parts / kImageSumWarps; part < end; part++) {
    const auto four = load<4>(partials + static_cast<int64_t>(part) * kFragments * kWarpSize * 4);
#pragma unroll
    for (int e = 0; e < 4; e++) sum[e] += four.at[e];
  }
  float* const shared = reinterpret_cast<float*>(shared_memory());
  store(shared + threadIdx.x * 4, Vec<float, 4>{{sum[0], sum[1], sum[2], sum[3]}});
  __syncthreads();
  if (warp > 0) return;
  for (int other = 1; other < kImageSumWarps; other++) {
    const auto four = load<4>(static_cast<const float*>(shared) + (other * kWarpSize + lane) * 4);
#pragma unroll
    for (int e = 0; e < 4; e++) sum[e] += four.at[e];
  }
  T* const grad = static_cast<T*>(launch.grad);
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int row =
        tile / launch.column_tiles * Shape::kRows + fragment / Shape::kFragmentsAcross * 16 + lane / 4 + e / 2 * 8;
    const int column =
        tile % launch.column_tiles * Shape::kColumns + fragment % Shape::kFragmentsAcross * 8 + lane % 4 * 2 + e % 2;
    if (row < launch.coarse_channels && column < launch.columns())
      grad[static_cast<int64_t>(row) * launch.columns() + column] = from_float<T>(sum[e]);
  }
}

}  // namespace dcgan_fast::cuda
