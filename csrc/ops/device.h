// Whose kernels serve a tensor.
#pragma once

#include <ATen/core/Tensor.h>

namespace dcgan_fast {

enum class Kernels {
  cpu,
  cuda,  // float32, bfloat16 and float16 on CUDA devices
  aten,  // all else: float64 on CUDA, and CUDA tensors where the CUDA half was not built
};

inline Kernels kernels_of(const at::Tensor& t) {
#if defined(DCGAN_FAST_EMULATED)  // tests/emulator: CPU tensors stand in for those of a device
  return t.scalar_type() == at::kDouble ? Kernels::aten : Kernels::cuda;
#elif defined(DCGAN_FAST_CUDA)
  if (t.is_cpu()) return Kernels::cpu;
  return t.is_cuda() && t.scalar_type() != at::kDouble ? Kernels::cuda : Kernels::aten;
#else
  return t.is_cpu() ? Kernels::cpu : Kernels::aten;
#endif
}

}  // namespace dcgan_fast
