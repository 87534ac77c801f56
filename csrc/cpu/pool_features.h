// Maps pooled into rows of features: what the glue in ops/ hands to the kernel.
#pragma once

#include <ATen/core/ScalarType.h>

#include <cstdint>

namespace dcgan_fast::cpu {

// Of each image and channel the maxima of size x size windows, as adaptive_max_pool2d has them, in the order (C, size,
// size). Reads every map once, which is what it costs: in the epilogue of a convolution it would cost that read less
// (of the 7-layer net's maps 1.4 MB an image in float32, some 50 us of a core, beside milliseconds of products).
struct PoolFeatures {
  const void* maps;      // [images, height, width, channels]
  at::ScalarType dtype;  // float32, bfloat16 or float16
  int64_t images, channels, height, width, size;
  void* features;  // written: image n's at features + n * row, channels * size * size of them
  bool half;       // float16, else float32
  int64_t row;     // elements from one image's to the next's
};

struct PoolFeaturesKernels {
  void (*run)(const PoolFeatures&);
};

const PoolFeaturesKernels& pool_features_kernels();

}  // namespace dcgan_fast::cpu
