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
#include "gradient_sums.h"

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
  BatchNormBelow* below = nullptr;      // the output is its gradient: the sums of that are gathered there
  cpu::PoolFeatures* pool = nullptr;    // on the CPU: where the output's maxima go, image by image; gets the output's address
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
  std::array<int64_t, 4> output_sizes(const Tensor& input, const Tensor& weight) const;
  // The strides as kernels are told them: between coarse pixels, so that an axis of one has none. Any that reaches over the
  // fine map serves there, and multiples of a user's 2^63 - 1 would overflow.
  std::array<int64_t, 2> strides_between(const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse) const;

  // The convolution and its finish, where one of our kernels serves; undefined where none does.
  // `gradient_next`: the weight's is taken after this pass, so that nothing made of the weight is kept for another one.
  Tensor fused(const Tensor& input, const Tensor& weight, const ConvFinish& finish, bool gradient_next = false) const;
  // The same without an epilogue, in ATen's differentiable calls.
  Tensor reference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const;
  // Gradients of input, weight and bias; those not in `mask` are undefined. Gathers the sums of that of input for the
  // batch norm below, where one is given and a kernel can.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                              std::array<bool, 3> mask, BatchNormBelow* below = nullptr) const;
};

// What runs the forward, the data gradient and the weight gradient: an engine's name or "ATen".
std::vector<std::string> convolution_engines(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                             at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed);

}  // namespace dcgan_fast
