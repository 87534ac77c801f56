// Maps of a few channels, images above all, as the kernels that read them hold them: conv_image.cuh and
// conv_image_weight_grad.cuh.
//
// A block takes a *run*: neighbouring coarse pixels of one image, in order. The fine rows that a run meets are brought
// into shared memory whole, as a *patch*: contiguous memory, read once, 16 bytes at a time in the background, with
// zeros for the padding around it. What a coarse pixel meets through one kernel row is contiguous there, kernel columns
// and channels in one. So an element of the unfolded map is the place of its pixel plus the place of its tap, and is
// loaded from there: no map is unfolded, and nothing is divided in an inner loop.
#pragma once

#include "conv.cuh"

namespace dcgan_fast::cuda {

struct ImagePatch {
  ConvAxis y, x;              // going down: input is fine, output coarse
  int channels;               // fine
  int run, runs;              // pixels of a run; runs of an image
  Divisor by_runs, by_width;  // of the coarse map
  int rows;                   // fine rows that a run meets, at most
  int left, pitch;            // bytes before a row's first pixel, and of a row; multiples of 16
  bool by_chunks;             // a row is 16 bytes at a time, else one element

  __host__ __device__ int bytes() const { return rows * pitch; }
  __host__ __device__ int kernel_row() const { return x.kernel * channels; }  // elements
};

struct ImageRun {
  int image, first, pixels;  // first and number of its coarse pixels
  int top, bottom;           // its first and last coarse row

  __device__ ImageRun(const ImagePatch& patch, int number) {
    image = patch.by_runs.divide(number);
    first = (number - image * patch.runs) * patch.run;
    pixels = min(patch.run, patch.y.output * patch.x.output - first);
    top = patch.by_width.divide(first);
    bottom = patch.by_width.divide(first + pixels - 1);
  }
};

// The paddings of a patch, which no fill touches. The caller synchronises before the first.
__device__ inline void clear_patches(unsigned char* patches, int bytes) {
  for (int at = threadIdx.x * kAccessBytes; at < bytes; at += blockDim.x * kAccessBytes)
    store(reinterpret_cast<uint32_t*>(patches + at), Vec<uint32_t, 4>{});
}

// Brings a run's fine rows, a warp one at a time, as copies in the background or by ordinary writes, and writes the
// places of its pixels in the patch: bytes from `origin` to what the first tap meets. Pixels that a run does not have
// are given a place too.
template <typename T, int kThreads>
__device__ void fill_patch(const ImagePatch& patch, const ImageRun& run, const T* fine, unsigned char* to, int* places,
                           int origin) {
  constexpr int kChunk = kAccessBytes / sizeof(T);
  constexpr int kWarps = kThreads / kWarpSize;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int first_row = run.top * patch.y.stride - patch.y.padding, width = patch.x.input * patch.channels;
  const int rows = (run.bottom - run.top) * patch.y.stride + patch.y.kernel;
  const T* line = fine + (static_cast<int64_t>(run.image) * patch.y.input + first_row + warp) * width;
  unsigned char* place = to + warp * patch.pitch + patch.left;
#pragma unroll 1
  for (int row = warp; row < rows; row += kWarps, line += kWarps * width, place += kWarps * patch.pitch) {
    const bool inside = static_cast<unsigned>(first_row + row) < static_cast<unsigned>(patch.y.input);
    if (patch.by_chunks) {
#pragma unroll 1
      for (int at = lane * kChunk; at < width; at += kWarpSize * kChunk)
        ptx::cp_async_16(place + at * static_cast<int>(sizeof(T)), inside ? line + at : fine, inside);
    } else {
#pragma unroll 1
      for (int at = lane; at < width; at += kWarpSize)
        reinterpret_cast<T*>(place)[at] = inside ? line[at] : from_float<T>(0.f);
    }
  }
#pragma unroll 1
  for (int pixel = threadIdx.x; pixel < patch.run; pixel += kThreads) {
    const int number = run.first + pixel, y = patch.by_width.divide(number), x = number - y * patch.x.output;
    const int column = (x * patch.x.stride - patch.x.padding) * patch.channels * static_cast<int>(sizeof(T));
    const int place = (y - run.top) * patch.y.stride * patch.pitch + patch.left + column;
    places[pixel] = origin + (pixel < run.pixels ? place : 0);
  }
}

// Two 16-bit elements as a register of a fragment has them, or one of 32 bits. `keep` names those that exist, as
// keep_elements() says: others are zeros, for what is read in their stead may be infinite.
template <typename T>
__device__ uint32_t load_word(int first, int second, uint32_t keep) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t low = ptx::load_shared<uint16_t>(shared_memory() + first),
                   high = ptx::load_shared<uint16_t>(shared_memory() + second);
    return __byte_perm(low, high, keep);
  } else {
    return ptx::load_shared<uint32_t>(shared_memory() + first) & keep;
  }
}

// The first `count` of a word's elements.
template <typename T>
__device__ uint32_t keep_elements(int count) {
  if constexpr (sizeof(T) == 2) return count >= 2 ? 0x5410 : count == 1 ? 0x3210 : 0x3232;
  return count >= 1 ? ~0u : 0;
}

}  // namespace dcgan_fast::cuda
