#include "cuda_switches.h"

#include <ATen/Context.h>

namespace dcgan_fast {

CudaSwitches& cuda_switches() {
  static CudaSwitches instance;
  return instance;
}

bool tf32_allowed() {
  const int allowed = cuda_switches().allow_tf32;
  return allowed == CudaSwitches::follow_torch ? at::globalContext().allowTF32CuDNN(at::Float32Op::CONV) : allowed;
}

cuda::Precision float32_precision() {
  if (tf32_allowed()) return cuda::Precision::kTf32;
  return cuda_switches().strict_on_tensor_cores ? cuda::Precision::kTf32x3 : cuda::Precision::kFma;
}

}  // namespace dcgan_fast
