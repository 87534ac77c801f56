// Sums that a batch norm's backward wants of its gradient, gathered by the convolution that makes the gradient.
//
// Two nodes of a backward pass work together. A convolution's node looks whether its input came from a batch norm
// (batch_norm_below); its kernel then adds the gradient up as it leaves (GradSums in cuda/conv.h); and the sums wait here
// until the batch norm's node asks for those of the gradient that it was handed. Is that another tensor, or was it changed
// since - a hook, a second reader of the map -, then there are none, and that node reads gradient and map for them as ever.
//
// CUDA and eager mode alone. Where ops are traced or intercepted nothing is gathered, so no op has an argument for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../activation.h"

namespace dcgan_fast {

struct BatchNormBelow {
  at::Tensor input, weight, bias, mean, rstd;  // as its node saved them; mean and rstd (groups, C)
  Activation activation;
  double negative_slope;
  at::Tensor tile_sums;  // out: (groups, tiles, C, 2); undefined: not gathered
};

// The batch norm whose output the convolution of the running node reads, where its sums can be gathered from `grad`'s
// backward. conv_bn_act.cpp.
std::optional<BatchNormBelow> batch_norm_below(const at::Tensor& grad);

// Leaves the sums of `grad`, which goes to the batch norm below; does nothing if there are none.
void keep_gradient_sums(const at::Tensor& grad, const BatchNormBelow& below);

// The sums of `grad` for the batch norm of that input, once; undefined if there are none.
at::Tensor take_gradient_sums(const at::Tensor& grad, const at::Tensor& batch_norm_input);

}  // namespace dcgan_fast
