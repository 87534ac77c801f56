// Maps pooled into rows of features: what the glue in ops/ hands to the kernel.
#pragma once

#include <ATen/core/ScalarType.h>

#include <cstdint>

#include "workspace.h"

namespace dcgan_fast::cpu {

// Of each image and channel the maxima of size x size windows, as adaptive_max_pool2d has them, in the order (C, size,
// size). Reads every map once, which is what it costs: least where a convolution that has just made an image calls for it
// (conv.h: Epilogue), from the cache.
struct PoolFeatures {
  const void* maps;      // [images, height, width, channels]
  at::ScalarType dtype;  // float32, bfloat16 or float16
  int64_t images, channels, height, width, size;
  void* features;  // written: image n's at features + n * row, channels * size * size of them
  bool half;       // float16, else float32
  int64_t row;     // elements from one image's to the next's

  bool divides() const { return height % size == 0 && width % size == 0; }  // no pixel is of two windows
  int64_t values() const { return size * size * channels; }                // of an image
  int64_t window(int64_t y, int64_t x) const { return y / (height / size) * size + x / (width / size); }  // where it divides
};

struct PoolFeaturesKernels {
  void (*all)(const PoolFeatures&);
  void (*one)(const PoolFeatures&, int64_t image);
  // Of an image whose maxima [windows, channels] are known already; room for as many floats behind them is scratch.
  void (*known)(const PoolFeatures&, int64_t image, float* maxima);
};

const PoolFeaturesKernels& pool_features_kernels();

constexpr int kPoolSlot = kWorkspaceSlots - 1;  // of workspace(): the others are in use where a convolution pools

}  // namespace dcgan_fast::cpu
