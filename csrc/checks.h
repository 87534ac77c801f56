// Errors that help: "conv_bn_act(): 'weight' must be (out, in, kH, kW) with in = 64, got (128, 32, 4, 4)".
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string_view>

#include "activation.h"

// A wrong value is a ValueError, as it is in torch.nn.functional.
#define DCGAN_CHECK(condition, op, ...) TORCH_CHECK_VALUE(condition, op, "(): ", __VA_ARGS__)

namespace dcgan_fast {

inline Activation parse_activation(const char* op, std::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "tanh") return Activation::tanh;
  if (name == "sigmoid") return Activation::sigmoid;
  DCGAN_CHECK(name == "none", op, "'activation' must be 'relu', 'leaky_relu', 'tanh', 'sigmoid' or 'none', got '",
              name, "'");
  return Activation::none;
}

inline void check_maps(const char* op, const at::Tensor& input) {
  const auto dtype = input.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble, op,
                   "(): 'input' must be float32, bfloat16, float16 or float64, got ", dtype);
  TORCH_CHECK_TYPE(input.layout() == at::kStrided, op, "(): 'input' must be a dense tensor, got ", input.layout());
}

// A tensor that must live on `input`'s device.
inline void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& input) {
  DCGAN_CHECK(tensor.device() == input.device(), op, "'", name, "' must be on input's device (", input.device(),
              "), got ", tensor.device());
}

// A per-channel vector (or none) on `input`'s device: float32, or input's own dtype as PyTorch's batch_norm allows.
inline void check_channel_vector(const char* op, const char* name, const at::Tensor& vector, const at::Tensor& input,
                                 int64_t channels) {
  DCGAN_CHECK(vector.dim() == 1 && vector.size(0) == channels, op, "'", name, "' must be (channels,) = (", channels,
              ",), got ", vector.sizes());
  check_device(op, name, vector, input);
  const bool narrow = input.scalar_type() == at::kBFloat16 || input.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE(vector.scalar_type() == input.scalar_type() || (narrow && vector.scalar_type() == at::kFloat), op,
                   "(): '", name, "' must have input's dtype (", input.scalar_type(), ")", narrow ? " or Float" : "",
                   ", got ", vector.scalar_type());
}

}  // namespace dcgan_fast
