// First gradients that can be differentiated again, as gradient penalties ask for (WGAN-GP, R1).
//
// A backward that builds a graph is made of these nodes in place of the fused one: each data gradient of a convolution
// is the other convolution, each derivative of these is again one of them, so that any order is served. Nothing of the
// forward is computed twice: its convolution's output, or its result, is what the forward's node saved.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "bn_act.h"
#include "convolution.h"

namespace dcgan_fast {

// The gradient of a convolution's input, whose values are not read, and that of its weight, likewise.
Tensor input_grad(const Convolution&, const Tensor& grad, const Tensor& input, const Tensor& weight);
Tensor weight_grad(const Convolution&, const Tensor& grad, const Tensor& input, const Tensor& weight);

// grad * activation'(z), by the activation's result: for activations of straight pieces that has no gradient.
Tensor activation_grad(Activation, double negative_slope, const Tensor& grad, const Tensor& output);

// Gradients of input, weight and bias of batch norm + activation.
std::tuple<Tensor, Tensor, Tensor> bn_act_grad(const BnActOptions&, const Tensor& grad, const Tensor& input,
                                               const Tensor& weight, const Tensor& bias, const Tensor& mean,
                                               const Tensor& rstd);

}  // namespace dcgan_fast
