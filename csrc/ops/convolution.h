// The convolution inside a fused op, plain or transposed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "../activation.h"

namespace dcgan_fast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Convolution {
  const char* op;  // the public op, for error messages
  bool transposed;
  at::IntArrayRef stride;          // (vertical, horizontal)
  at::IntArrayRef padding;         // as stride
  at::IntArrayRef output_padding;  // as stride; zeros unless transposed

  // Raises unless `input` (N, in, H, W) can be convolved with `weight`: (out, in, kH, kW), transposed (in, out, kH, kW).
  void check(const Tensor& input, const Tensor& weight) const;
  int64_t out_channels(const Tensor& weight) const { return weight.size(transposed ? 1 : 0); }
  Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const;
  // Gradients of input, weight and bias; those not in `mask` are undefined.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                              std::array<bool, 3> mask) const;
};

}  // namespace dcgan_fast
