// Whose kernels serve a tensor.
#pragma once

#include <ATen/core/Tensor.h>

namespace dcgan_fast {

enum class Kernels {
  cpu,
  cuda,  // float32, bfloat16 and float16 on CUDA devices
  aten,  // all else: float64 on CUDA, and CUDA tensors where the CUDA half was not built
};

Kernels kernels_of(const at::Tensor& t);

}  // namespace dcgan_fast
