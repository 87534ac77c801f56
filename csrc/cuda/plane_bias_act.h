// Biases of patterns of rows and columns + activation on CUDA, forward and backward: the launchers.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device.
//
//     output[n, c, h, w] = act(input[n, c, h, w] + bias[n, c, rows[h], columns[w]])
#pragma once

#include <cstddef>
#include <cstdint>

#include "bn_act.h"

namespace dcgan_fast::cuda {

constexpr int kMostPatterns = 64;   // of rows, and of columns
constexpr int kMostColumns = 1024;  // of a map; wider ones are PyTorch's

struct PlaneMaps {
  int64_t batch, channels, height, width;  // any may be 0, but for a width beyond kMostColumns
  int64_t row_patterns, column_patterns;   // 1 to kMostPatterns
  // The pattern of each row [height] and column [width]. A pixel of one that does not exist becomes NaN, and its
  // gradient counts for no bias.
  const int64_t* rows;
  const int64_t* columns;
  bool channels_last;  // [N, H, W, C] when true, [N, C, H, W] when false; biases alike
  DType dtype;
};

struct PlaneBiasActForward {
  PlaneMaps maps;
  const void* input;  // of maps
  void* output;       // as input, written; may be input itself
  const float* bias;  // [N, R, S, C] or [N, C, R, S]
  Activation activation;
  float negative_slope;
};

struct PlaneBiasActBackward {
  PlaneMaps maps;
  const void* grad;    // of the output
  const void* output;  // the forward's, from which the activation's derivative is taken; not read where there is none
  void* grad_input;    // as grad, written; may be grad itself; null: not wanted
  float* grad_bias;    // as bias, written; null: not wanted
  void* workspace;     // plane_bias_act_workspace_bytes(maps) bytes, 16-byte aligned; null if !grad_bias
  Activation activation;
  float negative_slope;
};

// Bytes that backward needs for the gradients of biases, where an image is summed up in parts: 16 at least.
size_t plane_bias_act_workspace_bytes(const PlaneMaps& maps);

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_plane_bias_act_forward(const PlaneBiasActForward& args, CUstream_st* stream);
const char* launch_plane_bias_act_backward(const PlaneBiasActBackward& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
