// A batch of images out of a data set of bytes: the kernel. gather_images.h has the arguments.
//
// A byte is read and a float written: 5 bytes a value, 1.6 million values of 128 images of 64 x 64 x 3 are 8 MB, 2 us of an
// H200's bandwidth and beside a training step of milliseconds nothing. So the kernel is the plain one: a thread writes V
// neighbouring values of one image, by one access of 16 bytes where V is 4, and finds the byte of each by its place. Blocks
// keep to one image, whose row and flip are then the same for all their threads.
#pragma once

#include "gather_images.h"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

constexpr int kGatherPasses = 4;  // of a block over its values

template <int V, bool channels_last>
__global__ void __launch_bounds__(kThreads) gather_images(GatherImages args, int blocks_an_image) {
  const int64_t image = blockIdx.x / blocks_an_image;
  const unsigned part = blockIdx.x % blocks_an_image;
  const unsigned channels = args.channels, width = args.width, plane = args.height * width, values = channels * plane;
  const int64_t row = args.rows[image];
  const bool there = row >= 0 && row < args.count, flip = args.flips && args.flips[image];
  const uint8_t* const from = args.images + (there ? row : 0) * values;
  float* const to = args.output + image * values;
#pragma unroll
  for (int pass = 0; pass < kGatherPasses; pass++) {
    const unsigned first = ((part * kGatherPasses + pass) * kThreads + threadIdx.x) * V;
    if (first >= values) return;
    Vec<float, V> result;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const unsigned place = first + i;
      const unsigned channel = channels_last ? place % channels : place / plane;
      const unsigned pixel = channels_last ? place / channels : place % plane;
      const unsigned x = pixel % width, source = flip ? pixel - x + (width - 1 - x) : pixel;
      const float value = static_cast<float>(from[channel * plane + source]) / args.divisor + args.low;
      result.at[i] = there ? value : NAN;
    }
    store<V>(to + first, result);
  }
}

}  // namespace dcgan_fast::cuda
