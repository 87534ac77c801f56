// The convolution of images: a discriminator's first layer, and the gradient of a generator's last.
//
//     rows      a run of coarse pixels (image_patch.cuh)
//     columns   output channels
//     depth     kernel rows, and for each its columns and channels in one, in words of 4 bytes
// A block keeps its weights and goes through several runs, of which the next is on its way while one is multiplied.
// Fragments of A are loaded from the patch, word by word; one of two 16-bit elements by two loads, which asks nothing
// of alignment: with a padding of 1 and 3 channels every pixel begins at an odd element.
//
// Per run of 128 pixels, 3 to 64 channels through 4 x 4 taps at stride 2, bfloat16 (batch 128 at 64 x 64: 7.8 runs for
// each of 132 SMs, maps of 20 MB, which take 4.7 us or 1060 cycles a run at 4.3 TB/s and 1.75 GHz; 1510 at 70%):
//     memory         4 KB read, 16 KB written
//     products       3 steps x 4 warps x 16 mma = 192: 384 cycles or less
//     shared memory  passes: A 3 x 4 x 16 = 192 (256: some words of four lanes lie in two kernel rows),
//                    B 3 x 4 x 4 x 4 = 192, the patch 40: 490
//     instructions   3 x 4 x 73 = 880 for the product; 4 x 620 for the rest, of which 260 are activation, rounding and
//                    stores, the others places, copies and zeros; the weights' 2400 for 2.6 runs: 4300, which are 1070
//                    cycles at four a cycle
// So bandwidth and instructions weigh the same, and 70% asks for 2.8 instructions a cycle; larger batches share the
// weights among more runs (3600 at batch 512). float32 moves twice the bytes (2120 cycles) with 6 x 4 x 112 + 4 x 620 +
// 900 = 6100 instructions in tf32 (1520 cycles).
#pragma once

#include <cstring>

#include "image_patch.cuh"

namespace dcgan_fast::cuda {

using ImageBlock = BlockShape<128, 64, 32, 64>;

struct ConvImageLaunch {
  ImagePatch patch;
  int out_channels, group_images;
  int column_tiles;
  int runs, parts;  // of all images; blocks that share them
  bool direct;      // sums are stored from registers, see store_directly(), not by finish()
  const void *input, *weight;
  Finish finish;
};

// How the block's shared memory is cut. Weights and taps are counted in words of the depth, 16 to a stage.
struct ConvImageMemory {
  static constexpr int kStageWords = kStageDepthBytes / 4, kPatches = 2;
  static constexpr int kStagingBytes = finish_bytes<ImageBlock>();
  int words;  // of a kernel row
  int stages;
  int weights, taps, table, places, patches, bytes;  // bytes from the beginning; of all

  __host__ __device__ ConvImageMemory(const ConvImageLaunch& launch, int element_bytes) {
    const ImagePatch& patch = launch.patch;
    words = (patch.kernel_row() * element_bytes + 3) / 4;
    stages = (words * patch.y.kernel + kStageWords - 1) / kStageWords;
    weights = launch.direct ? 0 : kStagingBytes;
    taps = weights + stages * ImageBlock::kColumns * kStageDepthBytes;
    table = taps + (stages * kStageWords + 2) * 8;  // after the taps, zeros
    places = table + 3 * ImageBlock::kColumns * static_cast<int>(sizeof(float));
    patches = places + kPatches * ImageBlock::kRows * static_cast<int>(sizeof(int));
    bytes = patches + kPatches * patch.bytes();
  }
};

// A word of the depth: what to add to a pixel's place, and which of its elements exist.
struct alignas(8) ImageTap {
  int place;
  uint32_t keep;
};

// Rows g and g + 8 of a fragment of A, from a word of the depth on, in the shape that steps load fragments from.
template <typename T_>
struct ImageRows {
  using T = T_;
  static constexpr bool kAlongK = false;
  int pixel[2];  // their places in shared memory
  const ImageTap* taps;
  const float* zero;

  __device__ const float* at(int i, int k) const {
    const ImageTap tap = taps[k];
    const void* element = shared_memory() + (i < 8 ? pixel[0] : pixel[1]) + tap.place;
    return tap.keep ? static_cast<const float*>(element) : zero;
  }
};

template <typename T>
__device__ void load_fragment_a(uint32_t (&a)[4], const ImageRows<T>& rows, int, int) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const auto tap = ptx::load_shared<ImageTap>(rows.taps + threadIdx.x % 4 + 4 * half);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int place = rows.pixel[i] + tap.place;
      a[2 * half + i] = load_word<T>(place, place + static_cast<int>(sizeof(T)), tap.keep);
    }
  }
}

// The channel that column n of a warp computes where sums are stored from registers: a lane's columns, two of each
// fragment, become neighbours, so that four lanes store 64 bytes.
template <typename T>
__device__ int direct_channel(int n) {
  constexpr int kChunk = kAccessBytes / sizeof(T), kFragments = kChunk / 2;  // that make a chunk
  const int fragment = n / 8, lane = n % 8 / 2;
  return fragment / kFragments * 4 * kChunk + lane * kChunk + fragment % kFragments * 2 + n % 2;
}

// What finish() does, for the few things that first layers ask for: 16 bytes at a time, no smooth activation, no
// statistics and no sums. Shared memory is spared 16 bytes an element, and two barriers a run. Stores a warp's sums at
// `output`, whose lines are pixels; `rows` of the block's exist.
template <typename T>
__device__ void store_directly(Accumulators<ImageBlock>& sums, const Finish& to, const float* table, T* output,
                               int first_column, int rows) {
  constexpr int kElements = 4 / sizeof(T), kChunk = 4 * kElements;
  constexpr int kRows = 2 * ImageBlock::kFragmentsDown;  // of a lane, 8 apart
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, channels = static_cast<int>(to.channels);
  const int row = ImageBlock::warp_row(warp) + lane / 4;
  const bool moves = to.mean || to.var || to.bn_weight || to.bias;
  const Activate<false> activate(to.activation, to.negative_slope);
#pragma unroll
  for (int first = 0; first < ImageBlock::kColumns; first += 4 * kChunk) {
    const int column = first + lane % 4 * kChunk;
    const auto at = [&](int r, int e) -> float& { return sums.at[r / 2][first / 8 + e / 2][r % 2 * 2 + e % 2]; };
    if (moves) {
#pragma unroll
      for (int e = 0; e < kChunk; e += 4) {
        const float* const numbers = table + column + e;
        const auto mean = load<4>(numbers), scale = load<4>(numbers + ImageBlock::kColumns),
                   bias = load<4>(numbers + 2 * ImageBlock::kColumns);
#pragma unroll
        for (int f = 0; f < 4; f++) {
#pragma unroll
          for (int r = 0; r < kRows; r++) at(r, e + f) = fmaf(at(r, e + f) - mean.at[f], scale.at[f], bias.at[f]);
        }
      }
    }
    T* line = output + static_cast<int64_t>(row) * channels + first_column + column;
#pragma unroll
    for (int r = 0; r < kRows; r++, line += 8 * channels) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; w++) {
        Vec<T, kElements> word;
#pragma unroll
        for (int e = 0; e < kElements; e++) word.at[e] = from_float<T>(activate(at(r, w * kElements + e)));
        memcpy(&words[w], &word, sizeof(word));
      }
      ptx::store_16(line, words, row + 8 * r < rows && first_column + column < channels);
    }
  }
}

// kDirect is launch.direct: in one kernel the two ways out would take each other's registers.
template <class Step, bool kDirect>
__global__ void __launch_bounds__(ImageBlock::kThreads, kConvBlocks<ImageBlock, Step::kStrict || !kDirect>)
    conv_image(const ConvImageLaunch launch) {
  using T = typename Step::T;
  using Shape = ImageBlock;
  using Weights = SharedTile<T, Shape::kColumns, true>;
  constexpr int kChunk = Weights::kChunk, kElements = 4 / sizeof(T);  // of a word
  constexpr int kStepWords = Step::kDepth / kElements;
  const ImagePatch& patch = launch.patch;
  const ConvImageMemory memory(launch, sizeof(T));
  unsigned char* const shared = shared_memory();
  unsigned char* const weights = shared + memory.weights;
  ImageTap* const taps = reinterpret_cast<ImageTap*>(shared + memory.taps);
  float* const table = reinterpret_cast<float*>(shared + memory.table);
  int* const places = reinterpret_cast<int*>(shared + memory.places);
  const int first_column = blockIdx.x % launch.column_tiles * Shape::kColumns;
  const int64_t part = blockIdx.x / launch.column_tiles;
  const int first_run = static_cast<int>(part * launch.runs / launch.parts),
            end = static_cast<int>((part + 1) * launch.runs / launch.parts);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  const T* const input = static_cast<const T*>(launch.input);
  const auto start = [&](int number) {
    if (number < end) {
      const int which = number % ConvImageMemory::kPatches, origin = memory.patches + which * patch.bytes();
      fill_patch<T, Shape::kThreads>(patch, ImageRun(patch, number), input, shared + origin,
                                     places + which * Shape::kRows, origin);
    }
    ptx::cp_async_commit();
  };
  clear_patches(shared + memory.patches, ConvImageMemory::kPatches * patch.bytes());
  __syncthreads();
  start(first_run);  // on its way while the weights are read

  // Taps, and their weights: a warp takes every fourth channel, a lane a word of each.
  const int kernel_row = patch.kernel_row(), weight_elements = patch.y.kernel * kernel_row;
#pragma unroll 1
  for (int word = lane; word < memory.stages * ConvImageMemory::kStageWords; word += kWarpSize) {
    const int row = word / memory.words, element = (word - row * memory.words) * kElements;
    const int exist = row < patch.y.kernel ? kernel_row - element : 0;
    if (warp == 0) {
      taps[word].place = exist > 0 ? row * patch.pitch + element * static_cast<int>(sizeof(T)) : 0;
      taps[word].keep = keep_elements<T>(exist);
    }
    const T* const from = static_cast<const T*>(launch.weight) + row * kernel_row + element;
    const Weights tile{weights + word / ConvImageMemory::kStageWords * Weights::kBytes};
    const int k = word % ConvImageMemory::kStageWords * kElements;
#pragma unroll 4
    for (int line = warp; line < Shape::kColumns; line += Shape::kWarps) {
      const int channel = first_column + (kDirect ? direct_channel<T>(line) : line);
      Vec<T, kElements> value;
#pragma unroll
      for (int e = 0; e < kElements; e++) {
        const bool exists = channel < launch.out_channels && e < exist;
        value.at[e] = exists ? from[static_cast<int64_t>(channel) * weight_elements + e] : from_float<T>(0.f);
      }
      store(tile.chunk(line, k / kChunk) + k % kChunk, value);
    }
  }
  ImageTap* const none = taps + memory.stages * ConvImageMemory::kStageWords;
  if (threadIdx.x == 0) *none = {0, 0};
  if (kDirect) put_affine_table<Shape>(launch.finish, first_column, table);

  const int steps = (memory.words * patch.y.kernel + kStepWords - 1) / kStepWords;
  for (int number = first_run; number < end; number++) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // all have this run (and the weights), and have done with the one before
    start(number + 1);

    const int* const own_places =
        places + number % ConvImageMemory::kPatches * Shape::kRows + Shape::warp_row(warp) + lane / 4;
    ImageRows<T> rows[Shape::kFragmentsDown];
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsDown; i++)
      rows[i] = {{own_places[16 * i], own_places[16 * i + 8]}, taps, reinterpret_cast<const float*>(none)};
    Accumulators<Shape> sums;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      const int k = step * Step::kDepth;
      const Weights tile{weights + k / Weights::kDepth * Weights::kBytes};
      typename Step::B across[Shape::kFragmentsAcross];
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsAcross; j += 2) {
        Step::load_b(across[j], across[j + 1], tile, Shape::warp_column(warp) + 8 * j, k % Weights::kDepth);
      }
#pragma unroll
      for (int i = 0; i < Shape::kFragmentsDown; i++) {
        typename Step::A down;
        Step::load_a(down, rows[i], 0, 0);
        rows[i].taps += kStepWords;
#pragma unroll
        for (int j = 0; j < Shape::kFragmentsAcross; j++) Step::multiply(sums.at[i][j], down, across[j]);
      }
    }

    const ImageRun run(patch, number);
    const int64_t first_pixel = static_cast<int64_t>(run.image) * patch.y.output * patch.x.output + run.first;
    if constexpr (kDirect) {
      store_directly<T>(sums, launch.finish, table,
                        static_cast<T*>(launch.finish.output) + first_pixel * launch.out_channels, first_column,
                        run.pixels);
    } else {
      const int group = run.image / launch.group_images, tile = number - group * launch.group_images * patch.runs;
      const auto line_of = [&](int row) { return (first_pixel + row) * launch.out_channels; };
      finish<T>(sums, launch.finish, group, tile, first_column, run.pixels, line_of);
      if (launch.finish.sums.x) {
        finish_gradient_sums<T, Shape>(launch.finish, group, tile, first_column, run.pixels, line_of);
      }
    }
  }
}

}  // namespace dcgan_fast::cuda
