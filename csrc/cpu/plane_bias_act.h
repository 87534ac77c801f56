// Biases of patterns of rows and columns + activation on the CPU: what the glue in ops/ hands to the kernels.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "../activation.h"

namespace dcgan_fast::cpu {

// Feature maps, dense in one of the two memory formats, and which bias each of their pixels has: that of the pattern
// (rows[h], columns[w]).
struct PlaneMaps {
  int64_t batch, channels, height, width;
  int64_t row_patterns, column_patterns;
  const int64_t* rows;     // [height], each below row_patterns
  const int64_t* columns;  // [width], each below column_patterns
  bool channels_last;      // [N, H, W, C] when true, [N, C, H, W] when false; biases alike
  at::ScalarType dtype;
};

// Biases and their gradients are of the accumulator's type: float, or double for float64 maps.
struct PlaneBiasActForward {
  const void* input;
  void* output;      // may be input
  const void* bias;  // [N, R, S, C] or [N, C, R, S]
  Activation activation;
  double negative_slope;
};

struct PlaneBiasActBackward {
  const void* grad;    // of the output
  const void* output;  // the forward's: the activation's derivative is taken from it; any where there is none
  void* grad_input;    // may be grad; null: not wanted
  void* grad_bias;     // as bias; null: not wanted
  Activation activation;
  double negative_slope;
};

// Bytes moved per element of e bytes: forward 2e; backward 3e with an activation, e without one, where the input's
// gradient is the output's. Biases are as many as patterns, a small part of the map. Results do not depend on the
// number of threads.
struct PlaneBiasActKernels {
  void (*forward)(const PlaneMaps&, const PlaneBiasActForward&);
  void (*backward)(const PlaneMaps&, const PlaneBiasActBackward&);
};

const PlaneBiasActKernels& plane_bias_act_kernels();

}  // namespace dcgan_fast::cpu
