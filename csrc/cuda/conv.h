// Strided convolution on CUDA, plain and transposed, and its weight gradient: the launchers.
//
// The words are those of cpu/conv.h: a convolution and a transposed convolution are one linear map and its transpose
// between a fine grid of pixels and a coarse one. Coarse pixel i meets fine pixel i * stride - padding + k through
// weight[coarse channel, k, fine channel]. conv2d runs it down (fine to coarse), conv_transpose2d up; the data gradient
// of each is the other's forward, and the weight gradient is one function of the two maps for both.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device: which instructions multiply is one of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../activation.h"
#include "bn_act.h"
#include "precision.h"

namespace dcgan_fast::cuda {

enum class Direction : int32_t { kDown, kUp };

struct ConvGrid {
  int64_t height, width, channels;
};

struct ConvShape {
  int64_t batch;                             // N; may be 0
  ConvGrid fine, coarse;                     // of the maps, dense NHWC
  int64_t kernel[2], stride[2], padding[2];  // (vertical, horizontal)
  DType dtype;                               // of the maps and of the weight
  Precision precision;                       // where dtype is kFloat32
  bool warpgroups;                           // 16-bit products by wgmma: capability.h says where there are any
  bool boxes;                                // and tiles by the copy engine, those of tf32 too: where has_boxes()
};

// What the gradient of a map is summed up to on its way out, where the map is act(batch_norm(x)). With dz the gradient
// before the activation: per channel and tile the sums of dz and of dz * (x - mean), for which launch_bn_act_backward()
// would read both maps once more.
struct GradSums {
  const void* x;        // as the gradient: the batch norm's input. Null: not wanted
  const float* mean;    // [G, C], as the batch norm's forward left them
  const float* rstd;    // [G, C]
  const void* weight;   // [C], param_dtype; null means ones
  const void* bias;     // [C], param_dtype; null means zeros
  DType param_dtype;    // kFloat32, or the same as ConvShape::dtype
  Activation activation;  // none, relu or leaky_relu: tanh would be long code in every convolution kernel
  float negative_slope;
  void* tile_sums;      // [G, tiles, C] pairs of float, written
};

struct ConvForward {
  ConvShape shape;
  Direction direction;  // kDown: fine -> coarse, kUp: coarse -> fine
  const void* input;    // [N, height, width, channels] of the grid that is read, dtype
  const void* weight;   // [coarse channels, kernel[0], kernel[1], fine channels], dtype
  void* output;         // as input, of the other grid; every pixel is written
  void* workspace;      // conv_workspace_bytes() bytes, 16-byte aligned; uninitialised

  // On the way out, per channel c of the output:
  //     y = act((x - mean[c]) * scale[c] + bias[c]),   scale = weight / sqrt(var + eps)
  const void* mean;       // [C], param_dtype; null means zeros
  const void* var;        // [C], param_dtype; null means a scale of bn_weight alone
  const void* bn_weight;  // [C], param_dtype; null means ones
  const void* bias;       // [C], param_dtype; null means zeros
  DType param_dtype;      // kFloat32, or the same as shape.dtype
  double eps;             // >= 0
  Activation activation;
  float negative_slope;  // of leaky_relu

  // By tiles that lie within a statistics group each, conv_tiles() of them a group, what bn_act.h takes under the same
  // names: statistics of what is stored (null: not wanted), or, where what is stored is a gradient, its sums. Both are
  // of an output without affine map and activation.
  int64_t stat_groups;  // G >= 1, a divisor of N
  void* tile_moments;   // [G, tiles, C] pairs of float: mean, sum of squared deviations from it
  float* tile_counts;   // [G, tiles]: pixels of the tile; 0 for some
  GradSums sums;
};

struct ConvWeightGrad {
  ConvShape shape;
  const void* fine;    // [N, height, width, channels], dtype: the map or its gradient
  const void* coarse;  // as fine
  void* grad;          // [coarse channels, kernel[0], kernel[1], fine channels], dtype; written, not added to
  void* workspace;     // conv_weight_grad_workspace_bytes() bytes, 16-byte aligned; uninitialised
};

// Null, or why no kernel serves this shape: more pixels or channels than their 32-bit indices count.
const char* conv_refusal(const ConvShape& shape);

size_t conv_workspace_bytes(const ConvShape& shape, Direction direction, int64_t stat_groups);
size_t conv_weight_grad_workspace_bytes(const ConvShape& shape);
int64_t conv_tiles(const ConvShape& shape, Direction direction, int64_t stat_groups);

// Whether the sums of a gradient cost less on its way out than in a pass of their own. Not of images (an H200, 3 to 64
// channels on 64 x 64, batch 128: 40 us against 28).
bool conv_sums_pay(const ConvShape& shape, Direction direction);

// Both return null, or a static string that says what is wrong (then nothing was launched), or CUDA's own words.
const char* launch_conv(const ConvForward& args, CUstream_st* stream);
const char* launch_conv_weight_grad(const ConvWeightGrad& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
