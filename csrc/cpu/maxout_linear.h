// A maxout layer in float: what the glue in ops/ hands to the kernels.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

struct MaxoutShape {
  int64_t rows, in, out, pieces;  // none is 0; pieces: at most 256
};

// Forward is one product of 2 * rows * in * out * pieces FLOPs, whose result is reduced while it lies in L1: written
// are the largest of each unit's pieces and which it was, a byte. The gradient of all other pieces is zero, so that
// backward needs only 2 * rows * in * out FLOPs for the input's gradient and as many for the weight's, where a product
// with the matrix of the pieces' gradients takes `pieces` times that. All on at::parallel_for's threads; the same bits
// whatever their number.
struct MaxoutKernels {
  // output, winner: [rows, out]; input: [rows, in], weight: [out, pieces, in], bias: [out, pieces] or null. The winner
  // is the first of equal pieces, the first NaN where there is one; null: not wanted.
  void (*forward)(const MaxoutShape&, const float* input, const float* weight, const float* bias, float* output,
                  uint8_t* winner);
  // grad: [rows, out]; grad_input: [rows, in], written
  void (*grad_input)(const MaxoutShape&, const float* grad, const uint8_t* winner, const float* weight,
                     float* grad_input);
  // grad_weight, grad_bias: as weight and bias, written; null: not wanted
  void (*grad_weight)(const MaxoutShape&, const float* grad, const uint8_t* winner, const float* input,
                      float* grad_weight, float* grad_bias);
};

const MaxoutKernels& maxout_linear_kernels();

}  // namespace dcgan_fast::cpu
