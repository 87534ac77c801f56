// The convolution inside a fused op, plain or transposed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../activation.h"
#include "bn_act.h"

namespace dcgan_fast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What happens to a convolution's output before it leaves the kernel.
struct ConvFinish {
  OptionalTensor bias;           // [C]
  const BnTensors* bn = nullptr; // batch norm by running statistics, in place of a bias
  double eps = 0;                // of bn
  Activation activation = Activation::none;
  double negative_slope = 0;
  MapStatistics* statistics = nullptr;  // gathered here, where neither of the others is asked for
};

struct Convolution {
  const char* op;  // the public op, for error messages
  bool transposed;
  at::IntArrayRef stride;          // (vertical, horizontal)
  at::IntArrayRef padding;         // as stride
  at::IntArrayRef output_padding;  // as stride; zeros unless transposed

  // Raises unless `input` (N, in, H, W) can be convolved with `weight`: (out, in, kH, kW), transposed (in, out, kH, kW).
  void check(const Tensor& input, const Tensor& weight) const;
  int64_t out_channels(const Tensor& weight) const { return weight.size(transposed ? 1 : 0); }

  // The convolution and its finish, where one of our kernels serves; undefined where none does.
  Tensor fused(const Tensor& input, const Tensor& weight, const ConvFinish& finish) const;
  // The same without an epilogue, in ATen's differentiable calls.
  Tensor reference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const;
  // Gradients of input, weight and bias; those not in `mask` are undefined.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                              std::array<bool, 3> mask) const;
};

// What runs the forward, the data gradient and the weight gradient: an engine's name or "ATen".
std::vector<std::string> convolution_engines(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                             at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed);

}  // namespace dcgan_fast
