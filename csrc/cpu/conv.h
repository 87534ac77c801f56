// Strided convolution on the CPU: what the glue in ops/ hands to the engines.
//
// A convolution and a transposed convolution are one linear map and its transpose, between a fine grid of pixels and a
// coarse one: coarse pixel i meets fine pixel i * stride - padding + k through weight[coarse channel, fine channel, k].
// conv2d runs it `down` (fine to coarse), conv_transpose2d `up`; the data gradient of each is the other's forward, and the
// weight gradient is one function of the two maps for both.
//
// Maps are dense NHWC ("channels_last"). An engine serves some shapes, dtypes and directions on some machines; conv_plan.h
// chooses one.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../activation.h"
#include "moments.h"
#include "pool_features.h"

namespace dcgan_fast::cpu {

enum class Direction { down, up, weight_grad };

struct Grid {
  int64_t height, width, channels;
};

struct ConvShape {
  int64_t batch;
  Grid fine, coarse;
  int64_t kernel[2], stride[2], padding[2];  // (vertical, horizontal)
  at::ScalarType dtype;                      // of the maps and the weight: float, bfloat16 or half
};

// weight[coarse, fine, y, x] lies at data + coarse * strides[0] + fine * strides[1] + y * strides[2] + x * strides[3]
// (strides in elements). Both torch.nn.Conv2d and ConvTranspose2d store their weight in this order of dimensions.
struct WeightView {
  const void* data;
  int64_t strides[4];
};

struct MutableWeightView {
  void* data;
  int64_t strides[4];
};

// Per-channel statistics of a map, gathered block by block while a block is in cache and merged in block order afterwards
// (so the same bits on every run). Of the values as they are stored, that is after rounding to the map's dtype.
struct BlockMoments {
  int64_t groups = 1;           // in: the batch in so many equal runs of images, each with statistics of its own
  std::vector<int64_t> group;   // out: [blocks], the group of each block: blocks do not straddle groups
  std::vector<int64_t> count;   // out: [blocks], values per channel
  std::vector<float> mean, m2;  // out: [blocks, channels], mean and sum of squared deviations from it

  void resize(int64_t blocks, int64_t channels) {
    group.resize(blocks);
    count.resize(blocks);
    mean.resize(blocks * channels);
    m2.resize(blocks * channels);
  }
  void merge(float* mean, float* var) const;  // -> mean and biased variance, [groups, channels]
};

// What happens to an output block before it leaves the cache: * scale + bias, activation, rounding, statistics, pooling.
struct Epilogue {
  const float* scale = nullptr;  // [channels of the output]; none: 1
  const float* bias = nullptr;   // [channels of the output]; none: 0
  Activation activation = Activation::none;
  float negative_slope = 0;
  BlockMoments* moments = nullptr;
  const PoolFeatures* pool = nullptr;  // of the output, image by image
};

// An engine. Weights are packed once per version of the weight and direction (down or up); `packed` is 64-byte aligned.
// All functions run on at::parallel_for's threads; results are the same bits on every run with one number of threads.
struct ConvEngine {
  const char* name;  // for explain() and build_info()
  bool (*serves)(const ConvShape&, Direction);
  double (*seconds)(const ConvShape&, Direction);  // predicted, on as many threads as there are
  int64_t (*packed_bytes)(const ConvShape&, Direction);
  void (*pack)(const ConvShape&, Direction, const WeightView&, void* packed);
  void (*down)(const ConvShape&, const void* fine, const void* packed, void* coarse, const Epilogue&);
  void (*up)(const ConvShape&, const void* coarse, const void* packed, void* fine, const Epilogue&);
  // Writes (does not add to) the gradient, in shape.dtype.
  void (*weight_grad)(const ConvShape&, const void* fine, const void* coarse, const MutableWeightView&);
};

}  // namespace dcgan_fast::cpu
