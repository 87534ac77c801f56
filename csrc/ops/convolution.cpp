#include "convolution.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>

#include <utility>

#include "../checks.h"

namespace dcgan_fast {

namespace {

constexpr int64_t kUndilated[] = {1, 1};

int64_t output_extent(const Convolution& c, const Tensor& input, const Tensor& weight, int64_t axis) {
  const int64_t in = input.size(2 + axis), kernel = weight.size(2 + axis);
  if (c.transposed) return (in - 1) * c.stride[axis] - 2 * c.padding[axis] + kernel + c.output_padding[axis];
  return in + 2 * c.padding[axis] < kernel ? 0 : (in + 2 * c.padding[axis] - kernel) / c.stride[axis] + 1;
}

}  // namespace

void Convolution::check(const Tensor& input, const Tensor& weight) const {
  check_maps(op, input);
  DCGAN_CHECK(input.dim() == 4, op, "'input' must be (N, C, H, W), got ", input.sizes());
  const int64_t in = input.size(1);
  DCGAN_CHECK(weight.dim() == 4 && weight.size(transposed ? 0 : 1) == in, op, "'weight' must be ",
              transposed ? "(in, out, kH, kW)" : "(out, in, kH, kW)", " with in = ", in, ", got ", weight.sizes());
  DCGAN_CHECK(weight.numel() > 0, op, "'weight' must have no empty dimension, got ", weight.sizes());
  check_device(op, "weight", weight, input);
  TORCH_CHECK_TYPE(weight.scalar_type() == input.scalar_type(), op, "(): 'weight' must have input's dtype (",
                   input.scalar_type(), "), got ", weight.scalar_type());
  for (const auto& [setting, values] : {std::pair("stride", stride), {"padding", padding}, {"output_padding", output_padding}}) {
    DCGAN_CHECK(values.size() == 2, op, "'", setting, "' must be one number or (vertical, horizontal), got ", values);
  }
  for (int64_t axis = 0; axis < 2; ++axis) {
    DCGAN_CHECK(stride[axis] >= 1, op, "'stride' must be at least 1, got ", stride);
    DCGAN_CHECK(padding[axis] >= 0, op, "'padding' must be at least 0, got ", padding);
    DCGAN_CHECK(output_padding[axis] >= 0 && (output_padding[axis] == 0 || output_padding[axis] < stride[axis]), op,
                "'output_padding' must be at least 0 and smaller than 'stride' (", stride, "), got ", output_padding);
    DCGAN_CHECK(output_extent(*this, input, weight, axis) >= 1, op, "maps of ", input.sizes().slice(2),
                " are too small for a kernel of ", weight.sizes().slice(2), " with padding ", padding);
  }
}

Tensor Convolution::forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const {
  return at::convolution(input, weight, bias, stride, padding, kUndilated, transposed, output_padding, /*groups=*/1);
}

std::tuple<Tensor, Tensor, Tensor> Convolution::backward(const Tensor& grad, const Tensor& input,
                                                         const Tensor& weight, std::array<bool, 3> mask) const {
  if (!mask[0] && !mask[1] && !mask[2]) return {};
  const int64_t bias_sizes[] = {out_channels(weight)};
  return at::convolution_backward(grad, input, weight, bias_sizes, stride, padding, kUndilated, transposed,
                                  output_padding, /*groups=*/1, mask);
}

}  // namespace dcgan_fast
