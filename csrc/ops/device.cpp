#include "device.h"

namespace dcgan_fast {

Kernels kernels_of(const at::Tensor& t) {
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
