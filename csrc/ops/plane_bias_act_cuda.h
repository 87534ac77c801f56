// plane_bias_act on CUDA tensors: the torch side of cuda/plane_bias_act.cu.
#pragma once

#include <ATen/core/Tensor.h>

#include "../activation.h"

namespace dcgan_fast {

// Whether the kernels serve maps and patterns of such sizes; where they do not PyTorch's own ops do.
bool plane_bias_act_cuda_serves(const at::Tensor& maps, int64_t row_patterns, int64_t column_patterns);

// All maps are dense, of one of the two memory formats and alike; biases (N, C, R, S) are float32, their gradients of
// the maps' format.
void plane_bias_act_cuda_forward(const at::Tensor& input, const at::Tensor& bias, const at::Tensor& rows,
                                 const at::Tensor& columns, Activation activation, double negative_slope,
                                 const at::Tensor& output);

// Writes what is defined of `grad_input`, which may be `grad`, and of `grad_bias`.
void plane_bias_act_cuda_backward(const at::Tensor& grad, const at::Tensor& output, const at::Tensor& rows,
                                  const at::Tensor& columns, int64_t row_patterns, int64_t column_patterns,
                                  Activation activation, double negative_slope, const at::Tensor& grad_input,
                                  const at::Tensor& grad_bias);

}  // namespace dcgan_fast
